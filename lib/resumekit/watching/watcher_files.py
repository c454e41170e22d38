"""Where the watcher's own files lie, and how its log is opened: nothing of them where another user could put a link.

They lie in the caller's state folder (basics/ownership.py), under a name of the runs folder's own; without one, as
under a cron without HOME, beside the runs. The lock alone always lies with the markers, so that a watcher that was
started with another HOME finds the same one.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from ..basics import digests
from ..basics.errors import KitError
from ..basics.files import write_all
from ..basics.ownership import state_folder
from ..basics.paths import live_folder

MAX_LOG_BYTES = 1 << 20
# What is kept of a log that has grown beyond that.
KEPT_BYTES = 256 << 10
_ODD = re.compile("[^A-Za-z0-9._-]")


class WatcherFiles(NamedTuple):
    """The files of one user's watcher of one runs folder.

    Args:
        lock: held during a pass.
        log: what the watcher says (`--log`).
        recovery_log: what the launchers say that it starts.
        memory: what one pass leaves to the next.
    """

    lock: Path
    log: Path
    recovery_log: Path
    memory: Path


def of(runs_dir: Path, *, create: bool = False) -> WatcherFiles:
    """Return where the caller's files for this runs folder lie.

    Args:
        runs_dir: the folder of all runs.
        create: make the state folder, where one can be made.
    """
    markers = live_folder(runs_dir)
    lock = markers / ".watch.lock"
    folder = _folder(create=create)
    if folder is None:
        log = runs_dir / f".watch.{os.geteuid()}.log"
        return WatcherFiles(lock, log, markers / ".recover.log", markers / ".watch.json")
    path = os.fsencode(os.path.realpath(runs_dir))
    stem = f"{_ODD.sub('_', runs_dir.name)[:80]}-{digests.sha256(path)[:8]}"
    return WatcherFiles(lock, folder / f"{stem}.log", folder / f"{stem}.recover.log", folder / f"{stem}.json")


def _folder(*, create: bool) -> Path | None:
    with contextlib.suppress(OSError):  # a HOME that is not there, or that nothing can be written to
        if (state := state_folder(create=create)) is not None:
            folder = state / "watch"
            if create:
                folder.mkdir(mode=0o700, exist_ok=True)
            return folder
    return None


def open_log(path: Path) -> int:
    """Open a log of the watcher's for appending; one that has grown too large keeps its end alone.

    Returns:
        A file descriptor; the caller closes it.

    Raises:
        KitError: it is a link, a FIFO, another user's, or has a second name: nothing is written through it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        # No reader is waited for, where it is a FIFO: that would keep each pass for ever.
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise KitError(f"the log '{path}' cannot be written: {_why(path, error)}") from error
    try:
        found = os.fstat(descriptor)
        if reason := _not_a_log(found):
            raise KitError(f"the log '{path}' is not written to: {reason}")
        if found.st_size > MAX_LOG_BYTES:
            with contextlib.suppress(OSError):  # a full disk: then it is only shorter
                _shorten(descriptor, found.st_size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _why(path: Path, error: OSError) -> str:
    return "it is a link" if os.path.islink(path) else (error.strerror or str(error)).lower()


def _not_a_log(found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != os.geteuid():
        return f"it belongs to another user (uid {found.st_uid})"
    if found.st_nlink > 1:
        return "it has another name beside this one (a hard link), and may be another file of the caller's"
    return None


def _shorten(descriptor: int, size: int) -> None:
    """Keep the last whole lines of a log; of two processes that do it at once one loses a line, and no more."""
    kept = os.pread(descriptor, KEPT_BYTES, size - KEPT_BYTES)
    os.ftruncate(descriptor, 0)
    write_all(descriptor, kept.partition(b"\n")[2])
