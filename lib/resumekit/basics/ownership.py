"""What belongs to the caller: their own state folder outside the runs, and whether a file or folder is theirs alone.

Labs share runs folders: a file that lies in one may be another user's. Everything here looks with lstat, so that a link
is never taken for what it leads to. Makes only folders that are to be the caller's alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

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
