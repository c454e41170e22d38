"""The watcher's own files: where they lie, and what one pass leaves to the next."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from ..base import file_identity
from ..base.errors import KitError
from ..base.files import UnreadableFile, read_json, to_json, write_all, write_atomic
from ..base.imports import Any, NamedTuple
from ..base.ownership import is_callers, state_folder
from ..base.paths import live_folder
from ..base.values import count, mapping, seconds, string

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
    stem = f"{_ODD.sub('_', runs_dir.name)[:80]}-{file_identity.sha256(path)[:8]}"
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


# What one pass of the watcher leaves to the next: what its log has said, and since when a run could not be helped.
#
# One small JSON file of the caller's own (watcher_files.py), so that no other user can write it and a reboot does
# not lose it. A file that cannot be read counts as none: findings are said again, and waits begin anew.

MAX_BYTES = 4 << 20
# Runs whose marker went while nothing could be done about them are forgotten beyond so many.
MAX_WAITS = 1000


class Wait(NamedTuple):
    """How long nothing could be done about a run.

    Args:
        since_s: when that was first seen, in seconds since the epoch.
        passes: in how many passes.
        is_told: whether a person was told.
    """

    since_s: float
    passes: int = 0
    is_told: bool = False


class Memory:
    """Read when it is made; `save` writes what has changed.

    Args:
        path: the file; None for one that is lost with the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        saved = _read(path) if path is not None else {}
        self.said: dict[str, str] = _texts(saved.get("said"))
        self.waits: dict[str, Wait] = _waits(saved.get("waits"))
        self._saved = self._fields()

    def forget_waits(self, run_ids: Iterable[str]) -> None:
        """Forget the runs about which something can be done again; a pass may have been asked for some runs alone."""
        for run_id in run_ids:
            self.waits.pop(run_id, None)
        for run_id in sorted(self.waits, key=lambda name: self.waits[name].since_s)[:-MAX_WAITS]:
            del self.waits[run_id]  # its marker is gone, most likely

    def save(self) -> None:
        """Write the file where anything has changed; on a full disk the next pass begins where this one did."""
        fields = self._fields()
        if self._path is None or fields == self._saved:
            return
        with contextlib.suppress(OSError):
            write_atomic(self._path, to_json(fields, indent=None), mode=0o600)
            self._saved = fields

    def _fields(self) -> dict[str, Any]:
        return {"said": dict(self.said), "waits": {run_id: wait._asdict() for run_id, wait in self.waits.items()}}


def _read(path: Path) -> dict[str, Any]:
    if not is_callers(path):  # a link, or another user's
        return {}
    with contextlib.suppress(UnreadableFile):
        return mapping(read_json(path, MAX_BYTES))
    return {}


def _texts(saved: Any) -> dict[str, str]:
    return {key: value for key, value in mapping(saved).items() if string(value) is not None}


def _waits(saved: Any) -> dict[str, Wait]:
    waits = {}
    for run_id, fields in mapping(saved).items():
        of = mapping(fields).get
        if (since_s := seconds(of("since_s"))) is not None:
            waits[run_id] = Wait(float(since_s), count(of("passes")) or 0, of("is_told") is True)
    return waits
