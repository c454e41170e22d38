"""A checkpoint that two starts in a row could not get one step on from: it is left alone, the next one is taken.

Only where steps can be seen: of a trainer that prints none, a start that was killed after hours looks the same.
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
from ..run_folder import last_error, run_end, status, step_sight
from ..run_folder.quarantine import put_in_quarantine
from ..run_folder.runs import Run, RunTable, run_around

# Loading takes no longer; a trainer that tells its steps rarely may have made some by then.
LOAD_S = 600.0
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
    checkpoint = _failed(run, table)
    if checkpoint is None or parent is None or _failed(parent, table) != checkpoint:
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
    if not (_failed_by_itself(run, table) and _failed_by_itself(parent, table)):
        return None
    before = [one for one, _ in table.history(parent)[1:] if _checkpoint(one) != checkpoint]
    if not any(_made_steps(one) for one in before):
        return None
    return Suspect(os.path.basename(checkpoint), step)


def _failed(run: Run, table: RunTable) -> str | None:
    """Return the checkpoint that a run began from, if it points at it that no step was made."""
    checkpoint, end = _checkpoint(run), run_end.read(run)
    if checkpoint is None or end is None or not _ended_before_a_step(run, table):
        return None
    is_loaded_by_us = run.setting("trainer", "loads_with_kit") is True
    codes = (NO_STABLE_CHECKPOINT, INVALID) if is_loaded_by_us else ()
    points_at_it = end.get("signal") is not None or end["code"] in codes
    return checkpoint if points_at_it else None


def _failed_by_itself(run: Run, table: RunTable) -> bool:
    """Whether a trainer that loads by itself ended with an error before its first step that may be the checkpoint's."""
    end = run_end.read(run)
    if run.setting("trainer", "loads_with_kit") is True or end is None or end.get("signal") is not None:
        return False
    if not run_end.has_failed(end) or not _ended_before_a_step(run, table):
        return False
    found = last_error.of(run, end["code"])
    return found is None or found.kind not in _NOT_ITS_FAULT


def _ended_before_a_step(run: Run, table: RunTable) -> bool:
    end, state = run_end.read(run), status.read_state(run)
    is_blind = run.setting("trainer", "loads_with_kit") is not True and not step_sight.can_be_seen(run, state, table)
    if is_blind or run_end.stopped_by(end):
        return False  # how many it made is not known; a stop says nothing
    # Nor does a signal that was the kit's, or an end long after any load.
    is_late = end is not None and type(end.get("elapsed_s")) in (int, float) and end["elapsed_s"] > LOAD_S
    return not is_late and "aborted" not in state and "stopped" not in state and not _made_steps(run)


def _made_steps(run: Run) -> bool:
    state, begun_at = status.read_state(run), run.parent_step or 0
    return any((state.get(key) or 0) > begun_at for key in ("step", "last_checkpoint_step"))


def _checkpoint(run: Run) -> str | None:
    checkpoint = run.record.get("checkpoint")
    if not isinstance(checkpoint, str) or "\0" in checkpoint:
        return None
    return os.path.realpath(run.paths.run_dir / checkpoint)
