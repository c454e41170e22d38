"""A checkpoint that two starts in a row could not get one step on from: it goes into quarantine, the next one is taken.

Only where the ends point at it: a signal, or the codes with which the kit's own loading ends. A program that fails to
import fails with every checkpoint. Reads two runs; adds an entry to `quarantine.json` of the run that holds the file.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..basics.errors import INVALID, NO_STABLE_CHECKPOINT
from ..run_folder import run_end, status
from ..run_folder.quarantine import put_in_quarantine
from ..run_folder.runs import Run, RunTable, run_around

_REASON = "two starts from it ended before their first step"


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


def _failed(run: Run) -> str | None:
    """Return the checkpoint that a run began from, if it points at it that no step was made."""
    checkpoint, end = run.record.get("checkpoint"), run_end.read(run)
    if not isinstance(checkpoint, str) or "\0" in checkpoint or end is None:
        return None
    if not status.shows_steps(run):
        return None  # nobody knows how many it made
    state = status.read_state(run)
    if "aborted" in state or "stopped" in state:
        return None  # the signal was ours
    step = state.get("step")
    is_loaded_by_us = run.setting("trainer", "loads_with_kit") is True
    codes = (NO_STABLE_CHECKPOINT, INVALID) if is_loaded_by_us else ()
    points_at_it = end.get("signal") is not None or end["code"] in codes
    if not points_at_it or (step is not None and step > (run.parent_step or 0)):
        return None
    return os.path.realpath(run.paths.run_dir / checkpoint)
