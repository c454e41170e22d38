"""Checkpoints of a run that are not to be taken again: `quarantine.json` in its folder."""

from __future__ import annotations

import os

from .claims import locked
from .files import UnreadableFile, read_json, to_json, utc_now, write_atomic
from .paths import RunPaths

MAX_BYTES = 1 << 20


def quarantined_names(run: RunPaths) -> frozenset[str]:
    """Return the file names that are quarantined in a run; an unreadable list counts as empty."""
    return frozenset(str(entry.get("file")) for entry in _entries(run))


def put_in_quarantine(run: RunPaths, name: str, reason: str) -> None:
    """Add a checkpoint's file name with the reason, under the run's lock; the file itself is left alone."""
    with locked(run.lock):
        entries = _entries(run)
        if any(entry.get("file") == name for entry in entries):
            return
        entry = {"file": os.path.basename(name), "reason": reason, "at": utc_now()}
        write_atomic(run.quarantine, to_json([*entries, entry]), durable=True)


def _entries(run: RunPaths) -> list[dict[str, object]]:
    try:
        entries = read_json(run.quarantine, MAX_BYTES)
    except UnreadableFile:
        return []
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
