"""How often a run is taken up within an hour and a day, how many starts failed, and how much room the next one
needs.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from ..base import claims, journal, processes
from ..base.errors import DiskFull
from ..base.imports import NamedTuple
from ..base.values import count, epoch_s
from ..checkpoint import layout
from ..checkpoint.selection import Candidate
from ..run import run_table, status
from ..run.journal_fold import State
from ..run.run_folder import Run
from ..run.run_table import RunTable
from . import escalation
from .incident import Incident
from .rules import limits_of


def origin_of_failed_spawn(run: Run, table: RunTable) -> Run | None:
    """Return the run that a false start was to go on from; None where `run` is none."""
    return table.parent(run) if _is_one(run) else None


def give_back_claim(parent: Run, run: Run, launcher: processes.Identity | None) -> bool:
    """Give back the claim that this launcher made for a false start; whether there was one."""
    claim = claims.continuation_of(parent.paths) or {}
    if launcher is None or claim.get("run_id") != run.run_id or claim.get("claimer") != launcher.as_fields():
        return False
    claims.release_continuation(parent.paths, run.run_id)
    return True


def count_failed_spawns(parent: Run, table: RunTable) -> int:
    """Return how many runs were to go on from this one and could not start."""
    runs = table.of_experiment(parent.experiment or "")
    return sum(run.record.get("parent_run_id") == parent.run_id and _is_one(run) for run in runs)


def _is_one(run: Run) -> bool:
    """Whether it has an end and never had a trainer; one whose launcher was killed before has no end."""
    return run_table.recovery_of(run) is not None and not run.has_started and os.path.lexists(run.paths.exit_json)


# How often a run is taken up within an hour and a day, how much room that needs, and who hears of equal ends.
#
# Counted along the lineage by run.json and journals, so that no launcher's memory is needed; what a person starts
# begins a new count. Reads those and the file system; `tell_of_equal_ends` writes a warning.

HOUR_S, DAY_S = 3600.0, 24 * 3600.0
# As in config.yaml, for runs from before there was a budget over time.
MAX_PER_HOUR, MAX_PER_DAY = 6, 24
# For the new run's own files and the first of its log.
FOLDER_BYTES = 16 << 20
# At so many equal ends in a row a person is told, though each start made progress.
EQUAL_ENDS = 3
SAME_END = "same_end"


class Spent(NamedTuple):
    """A budget over time that is used up: how long to wait for the next start (None: a person decides), and why."""

    wait_s: float | None
    reason: str


def spent(run: Run, table: RunTable, now: float | None = None) -> Spent | None:
    """Return the budget that another start would exceed; None while there is one left.

    Args:
        now: seconds since the epoch.
    """
    now = time.time() if now is None else now
    started = sorted(
        epoch_s(one.created_at)
        for one in run_table.recovery_chain(run, table)
        if run_table.recovery_of(one) is not None
    )
    today = [at for at in started if now - at < DAY_S]
    lately = [at for at in today if now - at < HOUR_S]
    per_hour, per_day = _limit(run, "max_per_hour", MAX_PER_HOUR), _limit(run, "max_per_day", MAX_PER_DAY)
    if per_day is not None and len(today) >= per_day:
        return Spent(None, f"it was taken up {len(today)} times within 24 hours (recover.max_per_day)")
    if per_hour is not None and len(lately) >= per_hour:
        wait_s = min(HOUR_S, max(1.0, lately[-per_hour] + HOUR_S - now))
        return Spent(wait_s, f"it was taken up {len(lately)} times within an hour (recover.max_per_hour)")
    return None


def free_for_s(run: Run, table: RunTable) -> float:
    """Return for how long the budget of an hour has let a run go on, in s; infinite where it did not hold it back."""
    per_hour = _limit(run, "max_per_hour", MAX_PER_HOUR)
    started = sorted(
        epoch_s(one.created_at)
        for one in run_table.recovery_chain(run, table)
        if run_table.recovery_of(one) is not None
    )
    if per_hour is None or len(started) < per_hour:
        return float("inf")
    return max(0.0, time.time() - (started[-per_hour] + HOUR_S))


def require_room(run: Run, state: State, candidate: Candidate | None) -> None:
    """Make sure that the disk has room for a log and for a checkpoint as large as the last one.

    Raises:
        DiskFull: it has not; that may pass by itself.
    """
    sizes = [int(state.get("symptoms", {}).get("save_bytes", 0))]
    try:
        sizes += [layout.identity(candidate.path).size] if candidate is not None else []
        disk = os.statvfs(run.paths.run_dir.parent)
    except OSError:
        return  # what cannot be asked is found out by writing
    wanted = max(limits_of(run.setting).free_mb << 20, max(sizes) + FOLDER_BYTES)
    free = disk.f_bavail * disk.f_frsize
    if free < wanted:
        raise DiskFull(
            f"the disk of '{run.paths.run_dir.parent}' has {free >> 20:,} MiB left, {wanted >> 20:,} are wanted for a "
            "checkpoint and a log (abort.free_mb, the last save)"
        )


def tell_of_equal_ends(run: Run, state: State, table: RunTable, found: Incident) -> None:
    """Tell a person, once, that a run has ended in the same way for the third time in a row. Raises OSError."""
    if SAME_END in state.get("warned_of", ()) or _equal_ends(run, table, found) != EQUAL_ENDS:
        return
    message = f"{EQUAL_ENDS} ends in a row are alike, though each start made progress: {found.evidence}"
    journal.append(run.paths.journal, "warning", run.run_id, kind=SAME_END, message=message)
    escalation.tell_of(run, SAME_END, message)


def _equal_ends(run: Run, table: RunTable, found: Incident) -> int:
    """Return how many ends in a row, the newest first, have the same cause and, but for numbers, the same words."""
    number = 1
    for cause, evidence in _ends_before(run, table):
        if (cause, _without_numbers(evidence)) != (found.cause, _without_numbers(found.evidence)):
            break
        number += 1
    return number


def _ends_before(run: Run, table: RunTable) -> Iterator[tuple[str | None, str]]:
    for one in run_table.recovery_chain(run, table):
        if one is not run:
            state = status.read_state(one)
            end = state.get("aborted") or state.get("died") or {}
            yield end.get("cause"), end.get("evidence") or ""


def _without_numbers(words: str) -> str:
    return re.sub(r"[0-9][0-9.,e+-]*", "#", words)


def _limit(run: Run, key: str, default: int) -> int | None:
    value = run.setting("recover", key, default)
    return None if value is None else count(value) or default
