"""The file in `runs/.live.<uid>/` that says of a run that its user's watcher has to look at it.

The launcher makes it, in a folder of its own user's, and it holds its own inode number: in a tree that was copied,
restored or unpacked it is another file, and the watcher starts nothing that it finds there. Markers in `runs/.live/`,
which all users shared, are read and removed, never made. Reads and writes these files alone, and follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from ..base import processes
from ..base.errors import KitError
from ..base.file_identity import file_at
from ..base.files import TempFile
from ..base.paths import SHARED_LIVE, RunPaths, live_folder
from .run_names import parse_run_name

_FOLDER = rf"{re.escape(SHARED_LIVE)}(\.[0-9]{{1,10}})?"
_MAX_BYTES = 64


def make(path: Path) -> None:
    """Make the marker; its folder is made if it is not there.

    Raises:
        KitError: the folder is a link, or belongs to another user.
        OSError: it cannot be written.
    """
    folder = make_folder(path.parent)

    def opener(name: str, flags: int) -> int:
        # For its user alone: a lock on it keeps that user's watcher waiting (watch/escalation.py).
        return open_own(folder, path.with_name(name), flags)

    try:
        with TempFile(path, folder=folder, opener=opener) as temp:
            temp.write(b"%d\n" % os.fstat(temp.descriptor).st_ino)
            temp.sync()
            temp.close()
            temp.replace()
        os.fsync(folder)  # after a power cut no watcher would look at a run without it
    finally:
        os.close(folder)


def make_folder(folder: Path) -> int:
    """Make a folder for markers where there is none; return a descriptor of it, which the caller closes.

    Raises:
        KitError: a link or a file lies there.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o755)
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise KitError(f"'{folder}' is to hold the live markers of this user's runs, and is no folder") from error


def was_made_here(path: Path) -> bool:
    """Whether it is the very file that a launcher of the caller made: theirs, no link, with its own inode number."""
    return why_not_made_here(path) is None


def why_not_made_here(path: Path) -> str | None:
    """Return why it is not the file that a launcher of the caller made; None where it is.

    A file with a second name (`cp -al runs bak`) is the same file in both folders: neither counts.
    """
    copied = "its marker was not made by a launcher here, but copied"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return copied
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return copied
        if found.st_nlink > 1:
            return (
                f"its marker '{path.parent.name}/{path.name}' has a second name (hard links, as `cp -al` makes): "
                "which of the two runs folders is the copy cannot be told; remove the marker in the copy"
            )
        return None if os.read(descriptor, _MAX_BYTES).strip() == b"%d" % found.st_ino else copied
    except OSError:
        return copied
    finally:
        os.close(descriptor)


def of(paths: RunPaths) -> Path:
    """Return where the run's marker lies: the caller's own, or that of a version before if only this one is there."""
    if not os.path.lexists(paths.live_marker) and os.path.lexists(paths.shared_marker):
        return paths.shared_marker
    return paths.live_marker


def remove(paths: RunPaths) -> None:
    """Remove the caller's marker of a run, wherever a version put it; another user's is theirs to remove.

    Raises:
        OSError: it is there and cannot be removed.
    """
    paths.live_marker.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.lstat(paths.shared_marker).st_uid == os.geteuid():
            paths.shared_marker.unlink(missing_ok=True)


def run_ids(runs_dir: Path) -> set[str]:
    """Return the ids of the runs that have a marker of the caller's, or one in the folder that all users shared.

    Raises:
        OSError: a folder of markers is there and cannot be read.
    """
    return {name for folder in (live_folder(runs_dir), runs_dir / SHARED_LIVE) for name in _names(folder)}


def is_there(paths: RunPaths) -> bool:
    """Whether a marker of the caller's has the name of this run: that name is given to no other run."""
    return os.path.lexists(of(paths))


def carriers(run_dir: Path) -> list[int]:
    """Return the live processes that were started for the run of this folder, whether the folder is still there or not.

    Reads the environment of every process. A helper that was started to outlive its trainer carries no token.
    """
    found = []
    runs = file_at(run_dir.parent)
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if processes.environment_variable(pid, "RESUMEKIT_RUN_ID") != run_dir.name:
            continue
        theirs = processes.environment_variable(pid, "RESUMEKIT_RUN_DIR")
        is_of_this_folder = theirs is not None and file_at(f"/proc/{pid}/root{os.path.dirname(theirs)}") == runs
        if is_of_this_folder and processes.environment_variable(pid, processes.TOKEN_VARIABLE) is not None:
            found.append(pid)
    return found


def folders(runs_dir: Path) -> list[Path]:
    """Return the folders of live markers of all users; one listing of the runs folder. Raises OSError."""
    return [runs_dir / name for name in os.listdir(runs_dir) if re.fullmatch(_FOLDER, name)]


def run_ids_in(marked: Iterable[Path]) -> set[str]:
    """Return the ids of the runs that have a marker in these folders; one that cannot be read holds none."""
    found: set[str] = set()
    for folder in marked:
        with contextlib.suppress(OSError):
            found |= _names(folder)
    return found


def open_own(folder: int, path: Path, flags: int) -> int:
    """Make or open a file in the folder of the caller's markers, for the caller alone; never through a link.

    Args:
        folder: a descriptor of its folder, from `make_folder`.
        path: the file.
        flags: O_EXCL where it must be new.

    Raises:
        KitError: the folder belongs to another user.
        OSError: the file cannot be opened.
    """
    try:
        descriptor = os.open(
            path.name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o600,
            dir_fd=folder,
        )  # fmt: skip
    except PermissionError:
        _refuse_others(folder, path.parent, os.geteuid())
        raise
    try:
        # Not the caller's id: where a server gives all files to one user (NFS, CIFS), both are that one's.
        _refuse_others(folder, path.parent, os.fstat(descriptor).st_uid)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_others(folder: int, path: Path, own_uid: int) -> None:
    """Refuse a folder whose owner is not the one that this file system gives to what the caller makes."""
    uid = os.fstat(folder).st_uid
    if uid != own_uid:
        raise KitError(
            f"'{path}' is to hold the live markers of this user's runs, and belongs to another user (uid {uid}): "
            "its owner, or that of the runs folder, has to remove it"
        )


def _names(folder: Path) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if parse_run_name(name)}
    except FileNotFoundError:
        return set()
