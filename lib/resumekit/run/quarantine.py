"""Checkpoints that no run goes on from: quarantined ones, and those saved after a run had gone wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..base import journal
from ..base.claims import locked
from ..base.errors import KitError
from ..base.files import UnreadableFile, read_json, to_json, utc_now, write_atomic
from ..base.imports import NamedTuple
from ..base.ownership import MadeFolder, refuse_exchanged
from ..base.paths import RunPaths
from ..base.terms import DIVERGED, NONFINITE
from ..base.values import count, items, text
from ..checkpoint import catalog, layout, proof
from ..checkpoint.selection import OLDER, PASSED, Candidate, Selection
from .run_folder import Run, open_run
from .run_table import RunTable, run_around

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
        found = layout.identity(path)
    except (OSError, ValueError):
        return None
    return [found.size, found.mtime_ns, found.inode]


def _entries(run: RunPaths) -> list[dict[str, object]]:
    try:
        entries = items(read_json(run.quarantine, MAX_BYTES))
    except UnreadableFile:
        return []
    return [entry for entry in entries if isinstance(entry, dict)]


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


# Which checkpoints were saved after a run had gone wrong: a trainer that loads by itself would train on from them.
#
# A trainer that was stopped for a loss that is not finite saves on TERM all the same, and only `save_checkpoint`
# looks whether its weights are finite. Reads the end of the journal of each run of the history, and lists the
# folder of one that was stopped; writes nothing. Try it: `bin/resume.sh EXP-01 --dry-run` after a NaN

_WHY = {NONFINITE: "whose loss was not finite", DIVERGED: "from where on the loss went out of bounds"}
History = Sequence[tuple[Run, int | None]]


class AfterNan(NamedTuple):
    """Where a run went wrong: its first bad step, and why that is one."""

    step: int
    why: str

    @property
    def reason(self) -> str:
        return f"saved after step {self.step}, {self.why}"


def saved_after_nan(run: Run) -> AfterNan | None:
    """Return from where on a run's checkpoints are spoilt by what it was stopped for; None where they are not."""
    aborted = (journal.newest(run.paths.journal, "abort") if run.is_ours else None) or {}
    step, cause = count(aborted.get("first_bad_step")), text(aborted.get("cause"))
    return AfterNan(step, _WHY[cause]) if step is not None and cause in _WHY else None


def without_after_nan(history: History, found: dict[str, AfterNan]) -> list[tuple[Run, int | None]]:
    """Return a history that leaves each run before its first bad step."""
    first = {run_id: bad.step for run_id, bad in found.items()}
    return [(run, _lower(limit, first[run.run_id] - 1) if run.run_id in first else limit) for run, limit in history]


def after_nan_along(history: History) -> dict[str, AfterNan]:
    """Return the runs of a history that went wrong, by run id."""
    return {run.run_id: bad for run, _ in history if (bad := saved_after_nan(run))}


def with_after_nan(selection: Selection, history: History, found: dict[str, AfterNan]) -> Selection:
    """Return a selection with the spoilt checkpoints in their places, passed over with the reason."""
    newest = selection.chosen.step if selection.chosen else None
    spoilt = [
        Candidate(
            step=step, folder=run.paths.checkpoints, name=name, run_id=run.run_id,
            verdict=OLDER if newest is not None and step <= newest else PASSED,
            grade=None, reason=found[run.run_id].reason,
        )
        for run, limit in history if run.run_id in found
        for step, name in _named(run) if step >= found[run.run_id].step and (limit is None or step <= limit)
    ]  # fmt: skip
    everything = sorted((*spoilt, *selection.candidates), key=lambda one: (one.step is None, -(one.step or 0)))
    return Selection(selection.chosen, tuple(everything))


def _named(run: Run) -> list[tuple[int, str]]:
    try:
        return catalog.steps_in(run.paths.checkpoints, run.form)
    except OSError:
        return []


def _lower(limit: int | None, other: int) -> int:
    return other if limit is None else min(limit, other)
