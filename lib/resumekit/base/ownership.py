"""What belongs to the caller: their own state folder, whether a file or folder is theirs alone, and the folder that
a launcher has just made, known again by its device, inode and records.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from .errors import KitError
from .file_identity import identity_of
from .imports import NamedTuple

_NAME = "resumekit"
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def state_folder(*, create: bool = False) -> Path | None:
    """Return the caller's own state folder: `$XDG_STATE_HOME/resumekit`, else `$HOME/.local/state/resumekit`.

    Args:
        create: make it, with mode 0700, where it is not there.

    Returns:
        The folder; None where neither variable names an absolute path, or where what lies there is a link, no folder,
        or may be written by another user. Without `create` also None where it is not there.

    Raises:
        OSError: it cannot be made.
    """
    base = _base()
    if base is None:
        return None
    folder = base / _NAME
    if create:
        make_private(folder)
    return folder if is_callers_alone(folder, stat.S_IFDIR) else None


def make_private(folder: Path) -> None:
    """Make a folder, and each parent of it that is missing, with mode 0700.

    Under umask 0002 a group could write into them, and rename what lies there. What exists may be reached
    through links; where a folder is made none is followed. Raises OSError.
    """
    missing: list[str] = []
    while not os.path.isdir(folder) and folder != folder.parent:
        missing.append(folder.name)
        folder = folder.parent
    descriptor = os.open(folder, _FOLDER)
    try:
        for name in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=descriptor)
            parent, descriptor = descriptor, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(parent)
    finally:
        os.close(descriptor)


def is_callers_alone(path: Path, kind: int = stat.S_IFREG) -> bool:
    """Whether a file or folder is the caller's own, no link, and no other user may write to it.

    Args:
        path: looked at itself, not what a link leads to; False where it is not there or cannot be looked at.
        kind: `stat.S_IFREG` or `stat.S_IFDIR`.
    """
    return is_callers(path, kind) and not os.lstat(path).st_mode & _OTHERS_MAY_WRITE


def is_callers(path: Path, kind: int = stat.S_IFREG) -> bool:
    """Whether a file or folder is the caller's own and no link; its group may be allowed to write to it."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid()


def _base() -> Path | None:
    for variable, below in (("XDG_STATE_HOME", ""), ("HOME", ".local/state")):
        value = os.environ.get(variable, "")
        if value.startswith("/"):  # the XDG specification: a relative path is ignored
            return Path(value, below)
    return None


# By what the folder that a launcher has made for its run is known again: its device, its inode and its records.
#
# In a runs folder without the sticky bit another user can rename a run's folder and put an own one in its place. So
# the launcher hands on what it made, and the processes that it starts use that folder or none. Looks with lstat
# alone.


class Exchanged(KitError):
    """A run's name leads to another folder than the one that its launcher has made."""


class MadeFolder(NamedTuple):
    """A run's folder as its launcher made it.

    Args:
        device, inode: of the folder; no rename changes them.
        records: the digest of the records that the launcher wrote into it (`seals.digest`); '' where it wrote none yet.
    """

    device: int
    inode: int
    records: str = ""

    def __str__(self) -> str:
        return f"{self.device}:{self.inode}:{self.records}"

    def is_at(self, found: os.stat_result) -> bool:
        """Whether a folder that was looked at is this one."""
        return identity_of(found).file == (self.device, self.inode)


def made_folder_of(found: os.stat_result, records: str = "") -> MadeFolder:
    """Return by what a folder that was looked at is known."""
    return MadeFolder(*identity_of(found).file, records)


def made_folder_from_text(text: str) -> MadeFolder | None:
    """Return what a launcher has handed on as text; None for '' (an older launcher hands on nothing)."""
    if not text:
        return None
    device, inode, records = text.split(":")
    return MadeFolder(int(device), int(inode), records)


def refuse_exchanged(run_dir: Path, made: MadeFolder | None) -> None:
    """Raise Exchanged where a run's name leads to another folder than its launcher made; OSError where to none."""
    if made is not None and not made.is_at(os.lstat(run_dir)):
        raise exchanged(run_dir)


def exchanged(run_dir: Path) -> Exchanged:
    """Return the error of a run whose name leads to another folder."""
    return Exchanged(f"'{run_dir}' is not the folder that was made for this run: it was moved, removed or exchanged")
