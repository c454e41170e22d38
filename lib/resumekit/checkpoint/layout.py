"""What a checkpoint is on disk: a regular file, with those that belong to it, or a folder of regular files.

A checkpoint is opened, asked for its state, copied, kept and removed here, and nowhere else by its path; that there is
something at a path (lexists) is true of any kind, and asked where it is needed. How its name is found is in `catalog`,
what kind it is and what it holds in `kinds`. A save of the kit writes a file (`trainer/save_file`), and only what is
one file is ever pinned, renamed or pruned. Of a folder the kit removes nothing but hard links that it made itself.

Folders are listed in bounds and without following a link; what is no regular file in one is refused before a byte of
it is read. Reads names and what stat says; writes where `copy`, `pin`, `link_whole`, `rename` and
`remove` are asked to.
Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from ..base.file_identity import FileIdentity, identity_of
from ..base.files import NO_HARD_LINKS, UnreadableFile, fsync_directory, fsync_file, open_regular

_FILE_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20
# A folder of shards has a few files for each rank; with more than this, or deeper, it is no checkpoint.
MAX_FILES, MAX_DEPTH = 20_000, 4
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def refuse_odd_files(checkpoint: Path, *, may_be_folder: bool = False) -> None:
    """Look before opening: opening a device can already do something.

    Args:
        may_be_folder: False where what loads it reads one file.

    Raises:
        UnreadableFile: what lies there is none, or a link out of its folder, or to another link.
    """
    try:
        status = os.lstat(checkpoint)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(checkpoint)
            if os.path.basename(target) != target:
                raise UnreadableFile(f"a link that leads out of its folder, to '{target[:120]}'")
            status = os.stat(checkpoint)
            if os.path.islink(checkpoint.with_name(target)):
                raise UnreadableFile("a link to another link")
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
    """

    def __init__(self, path: Path, descriptor: int, files: dict[str, FileIdentity], *, is_folder: bool) -> None:
        self.path, self.is_folder, self.files = path, is_folder, files
        self._descriptor = descriptor

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
        descriptor = self._open_in_folder(name) if self.is_folder else _open_beside(self.path, name)
        if identity_of(os.fstat(descriptor)).version != self.files[name].version:
            os.close(descriptor)
            raise UnreadableFile(f"'{name}' changed while it was read")
        return descriptor

    def _open_in_folder(self, name: str) -> int:
        *folders, last = name.split("/")
        folder = os.dup(self._descriptor)
        try:
            for one in folders:
                parent, folder = folder, os.open(one, _FOLDER_FLAGS, dir_fd=folder)
                os.close(parent)
            return os.open(last, _FILE_FLAGS, dir_fd=folder)
        except OSError as error:
            raise UnreadableFile(f"'{name}' cannot be read: {error.strerror}") from error
        finally:
            os.close(folder)


def open_checkpoint(checkpoint: Path, companions: tuple[str, ...] = ()) -> Opened:
    """Open a checkpoint of any kind.

    Args:
        companions: names of the files beside it that belong to it; none has any beside a folder.

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
                files[name] = _beside(checkpoint, name)
        except BaseException:
            os.close(descriptor)
            raise
        return Opened(checkpoint, descriptor, files, is_folder=False)
    try:
        folder = os.open(checkpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    try:
        return Opened(checkpoint, folder, dict(sorted(_files_below(folder, ""))), is_folder=True)
    except OSError as error:
        os.close(folder)
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    except BaseException:
        os.close(folder)
        raise


def _beside(checkpoint: Path, name: str) -> FileIdentity:
    descriptor = _open_beside(checkpoint, name)
    try:
        return identity_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _open_beside(checkpoint: Path, name: str) -> int:
    try:
        return open_regular(checkpoint.with_name(name), follow_links=False)
    except UnreadableFile as error:
        raise UnreadableFile(f"'{name}', which belongs to it (checkpoint.with): {error}") from error


def _files_below(folder: int, prefix: str) -> list[tuple[str, FileIdentity]]:
    """Return (name, identity) of each file below an open folder. Raises UnreadableFile and OSError."""
    found: list[tuple[str, FileIdentity]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, seen = prefix + entry.name, entry.stat(follow_symlinks=False)
            if stat.S_ISREG(seen.st_mode):
                found.append((name, identity_of(seen)))
            elif stat.S_ISDIR(seen.st_mode) and name.count("/") + 1 < MAX_DEPTH:
                inner = os.open(entry.name, _FOLDER_FLAGS, dir_fd=folder)
                try:
                    found += _files_below(inner, f"{name}/")
                finally:
                    os.close(inner)
            else:
                raise UnreadableFile(f"'{name}' in it is {_what(seen.st_mode)}")
            if len(found) > MAX_FILES:
                raise UnreadableFile(f"it holds more than {MAX_FILES:,} files")
    return found


def _what(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
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

    Args:
        checkpoint: its path, or what `open_one` returned.
        follow_links: False for a link's own.

    Raises:
        OSError: it is not there, or cannot be seen.
    """
    seen = os.stat(checkpoint, follow_symlinks=follow_links)
    if stat.S_ISDIR(seen.st_mode) and isinstance(checkpoint, Path):
        try:
            with open_checkpoint(checkpoint) as opened:
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


def open_in_folder(checkpoint: Path) -> int:
    """Open one that was looked at as a file of its own folder, as `open_one` does.

    A link that has come into its place since may lead to what the caller alone may read, and is not followed.

    Raises:
        UnreadableFile: it is missing, no regular file, may not be read, or is a link out of its folder.
    """
    refuse_link_out(checkpoint)
    return open_regular(Path(os.path.realpath(checkpoint)), follow_links=False)


def refuse_link_out(checkpoint: Path) -> None:
    """Raise UnreadableFile where a checkpoint that was looked at is a link out of its folder by now."""
    if Path(os.path.realpath(checkpoint)).parent != Path(os.path.realpath(checkpoint.parent)):
        raise UnreadableFile("it is a link out of its folder by now")


def copy(opened: int, folder: int, name: str) -> None:
    """Copy an open checkpoint into an open folder, under a name that nothing has there.

    Args:
        opened: what `open_one` or `open_in_folder` returned.
        folder: a descriptor.

    Raises:
        OSError: the copy cannot be written; what there is of it is left.
    """
    import shutil  # late: few starts copy anything

    new = os.open(name, _NEW_FILE, 0o666, dir_fd=folder)
    with os.fdopen(new, "wb") as made, os.fdopen(opened, "rb", closefd=False) as original:
        shutil.copyfileobj(original, made, _COPY_BYTES)


def copy_whole(checkpoint: Path, folder: int, name: str, companions: tuple[str, ...] = ()) -> None:
    """Copy a checkpoint of any kind, with what belongs to it, into an open folder.

    Args:
        checkpoint: it is looked at as one of its own folder (`open_in_folder`).
        folder: a descriptor; nothing in it has the name.
        name: of the copy; a file that belongs to it keeps its own.
        companions: as for `open_checkpoint`.

    Raises:
        UnreadableFile: it cannot be read.
        OSError: the copy cannot be written; what there is of it is left.
    """
    if not os.path.isdir(checkpoint):
        for own, target in ((checkpoint.name, name), *((one, one) for one in companions)):
            opened = open_in_folder(checkpoint.with_name(own))
            try:
                copy(opened, folder, target)
            finally:
                os.close(opened)
        return
    refuse_link_out(checkpoint)
    os.mkdir(name, dir_fd=folder)
    with open_checkpoint(checkpoint) as whole:
        for file in whole.files:
            source, target_folder = whole.open_file(file), os.open(name, _FOLDER_FLAGS, dir_fd=folder)
            try:
                target_folder = _made_inside(target_folder, file.split("/")[:-1])
                copy(source, target_folder, file.rpartition("/")[2])
            finally:
                os.close(target_folder)
                os.close(source)


def _made_inside(folder: int, names: list[str]) -> int:
    """Return a descriptor of a folder inside an open one, in the place of that; each that is not there is made."""
    for name in names:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
        inner = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
        os.close(folder)
        folder = inner
    return folder


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


def link_whole(checkpoint: Path, folder: Path, companions: tuple[str, ...] = ()) -> None:
    """Give each file of a checkpoint of any kind a second name below another folder: hard links, never a copy.

    Args:
        folder: nothing in it has the checkpoint's name, nor that of a file that belongs to it.
        companions: as for `open_checkpoint`.

    Raises:
        UnreadableFile: it cannot be read, or its files were exchanged meanwhile; nothing of it is left.
        OSError: a link cannot be made, on another file system say; nothing of it is left.
    """
    target = folder / checkpoint.name
    with open_checkpoint(checkpoint, companions) as opened:
        source, below = (checkpoint, target) if opened.is_folder else (checkpoint.parent, folder)
        try:
            places = {folder}
            for name, seen in opened.files.items():
                link = below / name
                link.parent.mkdir(parents=True, exist_ok=True)
                places.add(link.parent)
                os.link(os.path.realpath(source / name), link)
                if identity(link).version != seen.version:
                    raise UnreadableFile(f"'{name}' changed while it was linked")
            for place in places:
                fsync_directory(place)
        except BaseException:
            remove_links(checkpoint.name, folder, companions)
            raise


def remove_links(name: str, folder: Path, companions: tuple[str, ...] = ()) -> None:
    """Remove what `link_whole` made of a checkpoint of this name; what is not there is no error. Raises OSError."""
    opened = os.open(folder, _FOLDER_FLAGS)  # no link that comes into its place is followed
    try:
        own = f"/proc/self/fd/{opened}/{name}"
        if os.path.isdir(own) and not os.path.islink(own):
            import shutil  # late: few runs hold a folder

            shutil.rmtree(own)
            return
        for one in (name, *companions):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(one, dir_fd=opened)
    finally:
        os.close(opened)


def rename(checkpoint: Path, name: Path) -> None:
    """Give it another name of its folder, in the place of what has that. Raises OSError."""
    os.replace(checkpoint, name)


def remove(checkpoint: Path, *, missing_ok: bool = False) -> None:
    """Remove it; its manifest is the caller's, who knows which of the two has to go first. Raises OSError."""
    checkpoint.unlink(missing_ok=missing_ok)
