"""Which checkpoints were saved after a run had gone wrong: a trainer that loads by itself would train on from them.

A trainer that was stopped for a loss that is not finite saves on TERM all the same, and nobody but `save_checkpoint`
looks whether its weights are finite. Reads the end of the journal of each run of the history, and lists the folder of
one that was stopped; writes nothing.
Try it: `bin/resume.sh EXP-01 --dry-run` after a NaN
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ..basics import journal
from ..basics.causes import DIVERGED, NONFINITE
from ..basics.paths import step_of_name
from ..proving.checkpoints import OLDER, PASSED, Candidate, Selection
from ..run_folder.event_values import count, text
from ..run_folder.runs import Run

_WHY = {NONFINITE: "whose loss was not finite", DIVERGED: "from where on the loss went out of bounds"}
History = Sequence[tuple[Run, int | None]]


class Spoilt(NamedTuple):
    """Where a run went wrong: its first bad step, and why that is one."""

    step: int
    why: str

    @property
    def reason(self) -> str:
        return f"saved after step {self.step}, {self.why}"


def of(run: Run) -> Spoilt | None:
    """Return from where on a run's checkpoints are spoilt by what it was stopped for; None where they are not."""
    aborted = (journal.newest(run.paths.journal, "abort") if run.is_ours else None) or {}
    step, cause = count(aborted.get("first_bad_step")), text(aborted.get("cause"))
    return Spoilt(step, _WHY[cause]) if step is not None and cause in _WHY else None


def without(history: History, found: dict[str, Spoilt]) -> list[tuple[Run, int | None]]:
    """Return a history that leaves each run before its first bad step."""
    first = {run_id: bad.step for run_id, bad in found.items()}
    return [(run, _lower(limit, first[run.run_id] - 1) if run.run_id in first else limit) for run, limit in history]


def along(history: History) -> dict[str, Spoilt]:
    """Return the runs of a history that went wrong, by run id."""
    return {run.run_id: bad for run, _ in history if (bad := of(run))}


def added(selection: Selection, history: History, found: dict[str, Spoilt]) -> Selection:
    """Return a selection with the spoilt checkpoints in their places, passed over with the reason."""
    newest = selection.chosen.step if selection.chosen else None
    spoilt = [
        Candidate(
            step, run.paths.checkpoints, name, run.run_id, OLDER if newest is not None and step <= newest else PASSED,
            None, found[run.run_id].reason,
        )
        for run, limit in history if run.run_id in found
        for step, name in _named(run) if step >= found[run.run_id].step and (limit is None or step <= limit)
    ]  # fmt: skip
    everything = sorted((*spoilt, *selection.candidates), key=lambda one: (one.step is None, -(one.step or 0)))
    return Selection(selection.chosen, tuple(everything))


def _named(run: Run) -> list[tuple[int, str]]:
    try:
        names = os.listdir(run.paths.checkpoints)
    except OSError:
        return []
    return [(step, name) for name in names if (step := step_of_name(name, run.step_pattern)) is not None]


def _lower(limit: int | None, other: int) -> int:
    return other if limit is None else min(limit, other)
