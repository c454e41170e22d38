"""What one pass of the watcher leaves to the next: what its log has said, and since when a run could not be helped.

One small JSON file of the caller's own (watcher_files.py), so that no other user can write it and a reboot does not
lose it. A file that cannot be read counts as none: findings are said again, and waits begin anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..basics.files import UnreadableFile, read_json, to_json, write_atomic
from ..basics.ownership import is_callers
from ..run_folder.event_values import count, text

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
        saved = read_json(path, MAX_BYTES)
        return saved if isinstance(saved, dict) else {}
    return {}


def _texts(saved: Any) -> dict[str, str]:
    return {key: value for key, value in saved.items() if text(value) is not None} if isinstance(saved, dict) else {}


def _waits(saved: Any) -> dict[str, Wait]:
    waits = {}
    for run_id, fields in saved.items() if isinstance(saved, dict) else ():
        if isinstance(fields, dict) and type(fields.get("since_s")) in (int, float):
            passes = count(fields.get("passes")) or 0
            waits[run_id] = Wait(float(fields["since_s"]), passes, fields.get("is_told") is True)
    return waits
