"""What a checkpoint is on disk: one regular file that `torch.save` wrote. Its manifest lies beside it (`manifest`).

A checkpoint is found by its name, asked for its state, opened, copied, kept and removed here, and nowhere else by its
path; that there is something at a path (lexists) is true of any kind, and asked where it is needed. A save writes it
(`trainer/save_file`); the readers `archive`, `one_pass`, `finiteness` and `weights_file` take what `open_one` returns.
One file is the only kind. A second one, a folder of shards say, has to answer:

- which names in a folder are checkpoints, of which step, and which are not taken though they look alike (`steps_in`,
  `sorted_names`, `is_named_as_one`);
- what at a path is refused before a byte of it is read (`refuse_odd_files`);
- what a reader gets instead of a descriptor (`open_one`, `open_in_folder`), and over what the one digest of it is
  (`one_pass.read`);
- which one it is, how large, written when, and whether it may have changed, without a byte read (`identity`,
  `own_identity`, `is_same`);
- whose it is (`files_of`, `owners`);
- how it is copied into a folder, kept under a second name that pruning leaves, renamed and removed, each so that a
  process that is killed in between leaves none that looks whole (`copy`, `pin`, `rename`, `remove`).

Reads names and what stat says; writes where `copy`, `pin`, `rename` and `remove` are asked to.
Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import collections
import contextlib
import os
import stat
from pathlib import Path

from ..base.file_identity import FileIdentity, identity_of
from ..base.files import NO_HARD_LINKS, UnreadableFile, fsync_file, open_regular
from ..base.paths import MANIFEST_SUFFIX, step_form, step_of_name

# The only kind, as records name it.
FILE = "file"
_FILE_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20


def is_named_as_one(name: str, pattern: str, best_pattern: str) -> bool:
    """Whether a name is that of a checkpoint: of a step by `checkpoint.pattern`, or of the best."""
    return name == best_pattern or step_of_name(name, pattern) is not None


def steps_in(folder: Path, pattern: str) -> list[tuple[int, str]]:
    """Return (step, name) of each checkpoint in a folder, in no order; one listing. Raises OSError."""
    return [(step, name) for name in os.listdir(folder) if (step := step_of_name(name, pattern)) is not None]


def sorted_names(folder: Path, names: set[str], pattern: str) -> tuple[list[tuple[int, str]], list[str]]:
    """Return the checkpoints of a folder as (step, name), newest first, and the names that are none and look alike.

    Those are step_-1, step_1e5, Arabic digits, a newline at the end and their like. Of two checkpoints of one step
    (`model_100.pt`, `model_00100.pt`) the one that was written later is first.

    Args:
        names: all names in the folder.
        pattern: `checkpoint.pattern`.
    """
    before, _, after = pattern.partition("{step}")
    form = step_form(pattern)
    steps, odd = [], []
    for name in names:
        if match := form.fullmatch(name):
            steps.append((int(match[1]), name))
        elif not name.endswith(MANIFEST_SUFFIX) and name.startswith(before) and name.rstrip().endswith(after):
            odd.append(name)
    return _newest_first(steps, folder), sorted(odd)


def _newest_first(steps: list[tuple[int, str]], folder: Path) -> list[tuple[int, str]]:
    number = collections.Counter(step for step, _ in steps)

    def place(one: tuple[int, str]) -> tuple[int, int, str]:
        written_ns = 0
        if number[one[0]] > 1:
            with contextlib.suppress(OSError):
                written_ns = identity(folder / one[1], follow_links=False).mtime_ns
        return one[0], written_ns, one[1]

    return sorted(steps, key=place, reverse=True)


def refuse_odd_files(checkpoint: Path) -> None:
    """Look before opening: opening a device can already do something.

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
        if is_kind(status.st_mode):
            raise UnreadableFile(f"not a regular file ({name})")


def open_one(checkpoint: Path) -> int:
    """Open a checkpoint for its readers, without ever blocking.

    Returns:
        A descriptor; the caller closes it.

    Raises:
        UnreadableFile: it is missing, no regular file, or may not be read.
    """
    return open_regular(checkpoint)


def identity(checkpoint: Path | int, *, follow_links: bool = True) -> FileIdentity:
    """Return which one it is and in which state: its size, and the times by which a change is seen. One stat.

    Args:
        checkpoint: its path, or what `open_one` returned.
        follow_links: False for a link's own.

    Raises:
        OSError: it is not there, or cannot be seen.
    """
    return identity_of(os.stat(checkpoint, follow_symlinks=follow_links))


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


def files_of(checkpoint: Path) -> dict[str, os.stat_result]:
    """Return what stat says of each file that it consists of, by name. Raises OSError."""
    return {checkpoint.name: os.stat(checkpoint)}


def owners(checkpoint: Path) -> set[int]:
    """Return the user ids whose it is: those of its files, and of a link that leads to it. Raises OSError."""
    return {os.lstat(checkpoint).st_uid, os.stat(checkpoint).st_uid}


def open_in_folder(checkpoint: Path) -> int:
    """Open one that was looked at as a file of its own folder, as `open_one` does.

    A link that has come into its place since may lead to what the caller alone may read, and is not followed.

    Raises:
        UnreadableFile: it is missing, no regular file, may not be read, or is a link out of its folder.
    """
    real = Path(os.path.realpath(checkpoint))
    if real.parent != Path(os.path.realpath(checkpoint.parent)):
        raise UnreadableFile("it is a link out of its folder by now")
    return open_regular(real, follow_links=False)


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
