"""What a checkpoint is on disk: a regular file, with those that belong to it, or a folder of regular files.

A checkpoint is opened, asked for its state, kept and removed here, and nowhere else by its path; that there is
something at a path (lexists) is true of any kind, and asked where it is needed. How its name is found is in `catalog`,
what kind it is and what it holds in `kinds`, how it comes into another folder in `transfer`. A save of the kit writes a
file (`trainer/save_file`), and only what is one file is ever pinned, renamed or removed: the kit prunes no folder.

Folders are listed in bounds and without following a link but where `links` does; what is no regular file in one is
refused before a byte of it is read. Reads names and what stat says; writes where `pin`, `rename` and `remove` are asked
to.
Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..base.file_identity import FileIdentity, identity_of
from ..base.files import NO_HARD_LINKS, UnreadableFile, fsync_file, open_regular
from . import links

_FILE_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
# A folder of shards has a few files for each rank; with more than this, or deeper, it is no checkpoint.
MAX_FILES, MAX_DEPTH = 20_000, 4
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def refuse_odd_files(checkpoint: Path, *, may_be_folder: bool = False, follow_links: bool | None = None) -> None:
    """Look before opening: opening a device can already do something.

    Args:
        may_be_folder: False where what loads it reads one file.
        follow_links: `checkpoint.follow_links`; None where there is no config to say it.

    Raises:
        UnreadableFile: what lies there is none, or a link out of its folder or to another link that is not to be
            followed, or is not the caller's.
    """
    try:
        status = os.lstat(checkpoint)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(checkpoint)
            is_out = os.path.basename(target) != target
            if is_out and not follow_links:
                raise links.refused(f"a link that leads out of its folder, to '{target[:120]}'", follow_links)
            status = links.followed(checkpoint) if is_out else os.stat(checkpoint)
            if not is_out and os.path.islink(checkpoint.with_name(target)):
                if not follow_links:
                    raise links.refused("a link to another link", follow_links)
                links.followed(checkpoint)
    except FileNotFoundError as error:
        raise UnreadableFile("a link to nothing" if os.path.islink(checkpoint) else "not there") from error
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    for is_kind, name in _FILE_KINDS:
        if is_kind(status.st_mode) and not (may_be_folder and is_kind is stat.S_ISDIR):
            raise UnreadableFile(f"not a regular file ({name})")


def open_one(checkpoint: Path) -> int:
    """Open a checkpoint for its readers, without ever blocking.

    Returns:
        A descriptor; the caller closes it.

    Raises:
        UnreadableFile: it is missing, no regular file, or may not be read.
    """
    return open_regular(checkpoint)


class Opened:
    """An open checkpoint: its files by name, each with the identity that it had as it was opened.

    Args:
        path: the checkpoint.
        descriptor: of the file, or of the folder; closed with this.
        files: name -> identity; in a folder relative to it, with '/' between folders. In the order of the names.
        follow_links: some of them may be links, which were followed.
    """

    def __init__(
        self, path: Path, descriptor: int, files: dict[str, FileIdentity], *, is_folder: bool,
        follow_links: bool | None,
    ) -> None:  # fmt: skip
        self.path, self.is_folder, self.files = path, is_folder, files
        self._descriptor, self._follow_links = descriptor, follow_links

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def identity(self) -> FileIdentity:
        """Return which one it is and in which state: the size of all files together, and the newest of their times."""
        return _joined(self.files, os.fstat(self._descriptor))

    def open_file(self, name: str) -> int:
        """Return a descriptor of one of its files; the caller closes it.

        Raises:
            UnreadableFile: it is another file by now, or may not be read.
        """
        if not self.is_folder and name == self.path.name:
            return os.dup(self._descriptor)
        descriptor = self._open_in_folder(name) if self.is_folder else _open_beside(self.path, name, self._follow_links)
        if identity_of(os.fstat(descriptor)).version != self.files[name].version:
            os.close(descriptor)
            raise UnreadableFile(f"'{name}' changed while it was read")
        return descriptor

    def _open_in_folder(self, name: str) -> int:
        *folders, last = name.split("/")
        folder = os.dup(self._descriptor)
        try:
            for one in folders:
                parent, folder = folder, os.open(one, FOLDER_FLAGS, dir_fd=folder)
                os.close(parent)
            # Where a link is followed, the identity tells that it still leads to what was looked at.
            flags = _FILE_FLAGS & ~os.O_NOFOLLOW if self._follow_links else _FILE_FLAGS
            return os.open(last, flags, dir_fd=folder)
        except OSError as error:
            raise UnreadableFile(f"'{name}' cannot be read: {error.strerror}") from error
        finally:
            os.close(folder)


def open_checkpoint(checkpoint: Path, companions: tuple[str, ...] = (), follow_links: bool | None = None) -> Opened:
    """Open a checkpoint of any kind.

    Args:
        companions: names of the files beside it that belong to it; none has any beside a folder.
        follow_links: whether files in it, or companions, may be links of the caller's: `checkpoint.follow_links`; None
            where there is no config to say it.

    Returns:
        It; the caller closes it (`with`).

    Raises:
        UnreadableFile: it or a part of it is missing, or may not be read, or a folder holds what is no regular file,
            or too many files.
    """
    if not os.path.isdir(checkpoint):
        descriptor = open_one(checkpoint)
        try:
            files = {checkpoint.name: identity(descriptor)}
            for name in companions:
                files[name] = _beside(checkpoint, name, follow_links)
        except BaseException:
            os.close(descriptor)
            raise
        return Opened(checkpoint, descriptor, files, is_folder=False, follow_links=follow_links)
    try:
        folder = os.open(checkpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    try:
        files = dict(sorted(_files_below(folder, "", follow_links)))
        return Opened(checkpoint, folder, files, is_folder=True, follow_links=follow_links)
    except OSError as error:
        os.close(folder)
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    except BaseException:
        os.close(folder)
        raise


def _beside(checkpoint: Path, name: str, follow_links: bool | None) -> FileIdentity:
    descriptor = _open_beside(checkpoint, name, follow_links)
    try:
        return identity_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _open_beside(checkpoint: Path, name: str, follow_links: bool | None) -> int:
    path = checkpoint.with_name(name)
    try:
        if not os.path.islink(path):
            return open_regular(path, follow_links=False)
        if not follow_links:
            raise links.refused("a link", follow_links)
        links.followed(path)
        return open_regular(path)
    except UnreadableFile as error:
        raise UnreadableFile(f"'{name}', which belongs to it (checkpoint.with): {error}") from error


def _files_below(folder: int, prefix: str, follow_links: bool | None) -> list[tuple[str, FileIdentity]]:
    """Return (name, identity) of each file below an open folder; of a link that is followed that of its target.

    Raises UnreadableFile and OSError.
    """
    found: list[tuple[str, FileIdentity]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, seen = prefix + entry.name, entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(seen.st_mode):
                seen = _of_link(folder, entry.name, name, follow_links)
            if stat.S_ISREG(seen.st_mode):
                found.append((name, identity_of(seen)))
            elif stat.S_ISDIR(seen.st_mode) and name.count("/") + 1 < MAX_DEPTH:
                inner = os.open(entry.name, FOLDER_FLAGS, dir_fd=folder)
                try:
                    found += _files_below(inner, f"{name}/", follow_links)
                finally:
                    os.close(inner)
            else:
                raise UnreadableFile(f"'{name}' in it is {_what(seen.st_mode)}")
            if len(found) > MAX_FILES:
                raise UnreadableFile(f"it holds more than {MAX_FILES:,} files")
    return found


def _of_link(folder: int, own: str, name: str, follow_links: bool | None) -> os.stat_result:
    """Return what stat says of the file that a link in an open folder leads to. Raises UnreadableFile."""
    if not follow_links:
        raise links.refused(f"'{name}' in it is a link", follow_links)
    try:
        seen = links.followed(f"/proc/self/fd/{folder}/{own}")
        if stat.S_ISDIR(seen.st_mode):
            raise UnreadableFile("a link to a folder")
    except UnreadableFile as error:
        raise UnreadableFile(f"'{name}' in it is {error}") from error
    return seen


def _what(mode: int) -> str:
    kind = next((name for is_kind, name in _FILE_KINDS if is_kind(mode)), "no file")
    return "a folder too deep inside" if kind == "directory" else f"not a regular file ({kind})"


def _joined(files: dict[str, FileIdentity], whole: os.stat_result) -> FileIdentity:
    if len(files) == 1 and stat.S_ISREG(whole.st_mode):
        return identity_of(whole)
    own, seen = identity_of(whole), files.values()
    newest_ns = max((one.mtime_ns for one in seen), default=own.mtime_ns)
    changed_ns = max((one.ctime_ns for one in seen), default=own.ctime_ns)
    return own._replace(size=sum(one.size for one in seen), mtime_ns=newest_ns, ctime_ns=changed_ns)


def identity(checkpoint: Path | int, *, follow_links: bool = True) -> FileIdentity:
    """Return which one it is and in which state: its size, and the times by which a change is seen.

    One stat for a file; a folder is listed, and its size is that of all its files, its times are the newest of theirs.
    Links in it that are the caller's count as what they lead to.

    Args:
        checkpoint: its path, or what `open_one` returned.
        follow_links: False for a link's own.

    Raises:
        OSError: it is not there, or cannot be seen.
    """
    seen = os.stat(checkpoint, follow_symlinks=follow_links)
    if stat.S_ISDIR(seen.st_mode) and isinstance(checkpoint, Path):
        try:
            with open_checkpoint(checkpoint, follow_links=True) as opened:
                return opened.identity
        except UnreadableFile:
            return identity_of(seen)
    return identity_of(seen)


def own_identity(checkpoint: Path) -> FileIdentity | None:
    """Return the identity of what lies at a path where that is a checkpoint itself; None for a link or none."""
    try:
        seen = os.lstat(checkpoint)
    except OSError:
        return None
    return identity_of(seen) if stat.S_ISREG(seen.st_mode) else None


def is_same(one: Path, other: Path) -> bool:
    """Whether two names are those of one checkpoint, as a step and the best are; False where either is not there."""
    try:
        return identity(one).file == identity(other).file
    except OSError:
        return False


def files_of(checkpoint: Path, companions: tuple[str, ...] = ()) -> dict[str, os.stat_result]:
    """Return what stat says of each file that it consists of, by name, and of each folder in it. Raises OSError.

    Args:
        companions: as for `open_checkpoint`.
    """
    found = {name: os.stat(checkpoint.with_name(name)) for name in (checkpoint.name, *companions)}
    if stat.S_ISDIR(found[checkpoint.name].st_mode):
        for place, _, names in os.walk(checkpoint):
            for name in (*names, ""):
                path = os.path.join(place, name)
                found[os.path.relpath(path, checkpoint.parent)] = os.lstat(path)
                if len(found) > MAX_FILES:
                    raise OSError(0, "too many files")
    return found


def owners(checkpoint: Path, companions: tuple[str, ...] = ()) -> set[int]:
    """Return the user ids whose it is: those of its files, and of a link that leads to it. Raises OSError."""
    return {os.lstat(checkpoint).st_uid, *(seen.st_uid for seen in files_of(checkpoint, companions).values())}


def pin(checkpoint: Path, name: Path) -> None:
    """Give it a second name, which stays when the first is removed: a hard link, else a copy that is on the disk.

    Args:
        name: in the same folder; nothing has it.

    Raises:
        OSError: it cannot be done; a part of a copy may be left.
    """
    try:
        os.link(checkpoint, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        import shutil  # only where the file system has no hard links (exFAT, some network drives)

        shutil.copyfile(checkpoint, name)
        fsync_file(name)


def rename(checkpoint: Path, name: Path) -> None:
    """Give it another name of its folder, in the place of what has that. Raises OSError."""
    os.replace(checkpoint, name)


def remove(checkpoint: Path, *, missing_ok: bool = False) -> None:
    """Remove it; its manifest is the caller's, who knows which of the two has to go first. Raises OSError."""
    checkpoint.unlink(missing_ok=missing_ok)
