"""A checkpoint that two starts in a row could not get one step on from: it is left alone, the next one is taken.

Only where the ends point at it: a signal, or the codes with which the kit's own loading ends; then it goes into
quarantine. A trainer that loads by itself ends with 1 whatever is wrong: there it is left aside for this one time, and
only if an earlier start, from another file or none, did make steps. A program that fails to import fails with every
checkpoint. Reads the runs of a lineage; adds an entry to `quarantine.json` of the run that holds the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..basics.errors import INVALID, NO_STABLE_CHECKPOINT
from ..run_folder import last_error, run_end, status
from ..run_folder.quarantine import put_in_quarantine
from ..run_folder.runs import Run, RunTable, run_around

_REASON = "two starts from it ended before their first step"
# An error of these says nothing of what was loaded.
_NOT_ITS_FAULT = (last_error.ARGUMENTS, last_error.IMPORT, last_error.FILE, last_error.CONFIG, last_error.SYNTAX,
                  last_error.MAY_HEAL)  # fmt: skip


class Suspect(NamedTuple):
    """A checkpoint that is left aside for one recovery: its file's name and its step."""

    name: str
    step: int

    @property
    def words(self) -> str:
        return f"'{self.name}' is left aside: {_REASON}, and starts before them made steps; the next older one is tried"


def quarantine(run: Run, table: RunTable) -> str | None:
    """Put the checkpoint that a run and the one before it began from into quarantine; returns its name, or None.

    Raises:
        Refused, OSError: its run cannot be written to.
    """
    parent = table.parent(run)
    checkpoint = _failed(run)
    if checkpoint is None or parent is None or _failed(parent) != checkpoint:
        return None
    holder = run_around(table, Path(checkpoint))
    if holder is None:
        return None
    put_in_quarantine(holder.paths, os.path.basename(checkpoint), _REASON)
    return os.path.basename(checkpoint)


def left_aside(run: Run, table: RunTable) -> Suspect | None:
    """Return the checkpoint that a trainer which loads by itself failed twice to go on from; None without one."""
    parent, step = table.parent(run), run.parent_step
    checkpoint = _checkpoint(run)
    if checkpoint is None or parent is None or not step or _checkpoint(parent) != checkpoint:
        return None
    if not (_failed_by_itself(run) and _failed_by_itself(parent)):
        return None
    before = [one for one, _ in table.history(parent)[1:] if _checkpoint(one) != checkpoint]
    if not any(_made_steps(one) for one in before):
        return None
    return Suspect(os.path.basename(checkpoint), step)


def _failed(run: Run) -> str | None:
    """Return the checkpoint that a run began from, if it points at it that no step was made."""
    checkpoint, end = _checkpoint(run), run_end.read(run)
    if checkpoint is None or end is None or not _ended_before_a_step(run):
        return None
    is_loaded_by_us = run.setting("trainer", "loads_with_kit") is True
    codes = (NO_STABLE_CHECKPOINT, INVALID) if is_loaded_by_us else ()
    points_at_it = end.get("signal") is not None or end["code"] in codes
    return checkpoint if points_at_it else None


def _failed_by_itself(run: Run) -> bool:
    """Whether a trainer that loads by itself ended with an error before its first step that may be the checkpoint's."""
    end = run_end.read(run)
    if run.setting("trainer", "loads_with_kit") is True or end is None or end.get("signal") is not None:
        return False
    if not run_end.has_failed(end) or not _ended_before_a_step(run):
        return False
    found = last_error.of(run, end["code"])
    return found is None or found.kind not in _NOT_ITS_FAULT


def _ended_before_a_step(run: Run) -> bool:
    if not status.shows_steps(run):
        return False  # nobody knows how many it made
    if run_end.stopped_by(run_end.read(run)):
        return False  # a stop says nothing
    state = status.read_state(run)
    # Nor does a signal that was ours.
    return "aborted" not in state and "stopped" not in state and not _made_steps(run)


def _made_steps(run: Run) -> bool:
    step = status.read_state(run).get("step")
    return step is not None and step > (run.parent_step or 0)


def _checkpoint(run: Run) -> str | None:
    checkpoint = run.record.get("checkpoint")
    if not isinstance(checkpoint, str) or "\0" in checkpoint:
        return None
    return os.path.realpath(run.paths.run_dir / checkpoint)
