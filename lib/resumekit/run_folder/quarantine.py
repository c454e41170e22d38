"""Checkpoints of a run that are not to be taken again: `quarantine.json` in its folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..basics.claims import locked
from ..basics.errors import KitError
from ..basics.files import UnreadableFile, read_json, to_json, utc_now, write_atomic
from ..basics.made_folder import MadeFolder, refuse_exchanged
from ..basics.paths import RunPaths
from ..proving import proof
from .runs import RunTable, open_run, run_around

MAX_BYTES = 1 << 20


def quarantined_names(run: RunPaths) -> frozenset[str]:
    """Return the file names that are quarantined in a run; an unreadable list counts as empty.

    An entry is about the bytes that failed: a file that was put back from a backup since is another one.
    """
    return frozenset(
        str(entry.get("file"))
        for entry in _entries(run)
        if not entry.get("is") or _bytes_of(run.checkpoints / str(entry.get("file"))) in (entry["is"], None)
    )


def put_in_quarantine(run: RunPaths, name: str, reason: str) -> None:
    """Add a checkpoint's file name with the reason, under the run's lock; the file itself is left alone."""
    with locked(run.lock):
        if name in quarantined_names(run):
            return
        known = _bytes_of(run.checkpoints / name)
        entry = {"file": os.path.basename(name), "is": known, "reason": reason, "at": utc_now()}
        write_atomic(run.quarantine, to_json([*_entries(run), entry]), durable=True)


def _bytes_of(path: Path) -> list[int] | None:
    """Return what tells one content of a file from another without reading it: size, mtime in ns, inode."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _entries(run: RunPaths) -> list[dict[str, object]]:
    try:
        entries = read_json(run.quarantine, MAX_BYTES)
    except UnreadableFile:
        return []
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def quarantine_damaged(run_dir: Path, checkpoint: Path, made: MadeFolder | None = None) -> bool:
    """Put the checkpoint that a run started from into quarantine, if its proof failed.

    Args:
        run_dir: the run that was to start from it, with the proof in its folder.
        checkpoint: the file.
        made: by what its launcher knows the run's folder.

    Returns:
        Whether it is in quarantine now: then the same command takes the next candidate. Not if it did not fail, if it
        lies in no run (a list there would lie in another program's folder), or if its run cannot be written to.

    Raises:
        Exchanged: another folder lies there by now.
    """
    refuse_exchanged(run_dir, made)
    verdict = proof.read(open_run(run_dir).paths.proof)
    if verdict is None or verdict.verdict not in (proof.DIFFERS, proof.UNREADABLE):
        return False
    if os.path.realpath(verdict.path) != os.path.realpath(checkpoint):
        return False  # about another file, one that the trainer loads beside it
    holder = run_around(RunTable(run_dir.parent), checkpoint)
    if holder is None:
        return False
    try:
        put_in_quarantine(holder.paths, checkpoint.name, verdict.reason or verdict.verdict)
    except (OSError, KitError):
        return False
    return checkpoint.name in quarantined_names(holder.paths)
