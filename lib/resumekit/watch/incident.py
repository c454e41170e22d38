"""What happened to a run that is over: its cause and evidence, and what its trainer has left behind."""

from __future__ import annotations

import os
import time

from ..base import journal, process_details, processes
from ..base.imports import NamedTuple
from ..base.terminal import duration
from ..base.terms import DIED
from ..run import life_signs, run_end, status
from ..run.journal_fold import State
from ..run.run_folder import Run
from ..run.run_table import RunTable
from . import observe, rules
from .rules import limits_of


class Incident(NamedTuple):
    """How a run ended that something may go on from.

    Args:
        cause: one of base/terms.
        evidence: one sentence with numbers.
        first_bad_step: a recovery begins before it; None where any step is as good.
        since_s: when it was noted, on the monotonic clock of the run's boot; None before that.
        step: the last step that the run reached; None where none was seen.
        fruitless: how many starts in a row, this one included, brought nothing new.
    """

    cause: str
    evidence: str
    first_bad_step: int | None = None
    since_s: float | None = None
    step: int | None = None
    fruitless: int = 0


def of(run: Run, state: State, table: RunTable) -> Incident | None:
    """Return the incident that ended a run; None where it lives, is unknown, or ended as it was meant to."""
    if not run.has_started:
        return None  # a shim that could not start a trainer leaves an end, and nothing to go on from
    view = status.look(run, state)
    name = status.name_of(run, state, view)
    if name not in status.TAKEN_UP:
        return None
    limits = limits_of(run.setting)
    fruitless = observe.fruitless_starts(run, state, table, limits.max_attempts)
    if known := state.get("died"):
        cause, evidence = known["cause"] or DIED, known["evidence"] or ""
        return Incident(
            cause=cause, evidence=evidence, first_bad_step=known["first_bad_step"], since_s=known["mono_s"],
            step=state.get("step"), fruitless=fruitless,
        )  # fmt: skip
    seen = observe.observation(run, state, view, table, limits)
    first = next(iter(rules.findings(state, limits, seen)))
    since_s = first.since_s if "aborted" in state else None
    return Incident(
        cause=first.cause, evidence=first.evidence, first_bad_step=first.first_bad_step, since_s=since_s,
        step=state.get("step"), fruitless=fruitless,
    )  # fmt: skip


# What a trainer whose end is written down has left behind: it goes on, or it is ended before the run is taken up.
#
# A wrapper may have ended before what it wrapped, and that may still train: then the run is not dead, and nothing
# is started beside it. What shows nothing for as long as a hang takes is killed. Reads /proc and the run's files.
# Try it: `python -m pytest tests/test_leftovers.py`

# So long the processor time of what is left is looked at.
LOOK_S = 0.5


def leftovers_go_on(run: Run, state: State) -> str:
    """Say that a run that would be taken up goes on after its end; '' where nothing of it moves, or another state."""
    view = status.look(run, state)
    if not view.trains_on or status.name_of(run, state, view._replace(sight=None)) not in status.TAKEN_UP:
        return ""
    return _sentence(run, life_signs.left_of(run, state))


def end_leftovers(run: Run, state: State) -> str:
    """KILL what a dead trainer has left: data workers, or what a dead wrapper wrapped; '' when that is done.

    A second trainer beside it would be worse; whatever it was saving has no final name yet.

    Returns:
        The sentence that says by what it is seen to go on: then nothing was killed. What a rule has ended is over.
    """
    members = life_signs.left_of(run, state)
    if not members:
        return ""
    if "aborted" not in state and (sentence := _sentence(run, members)):
        return sentence
    from ..process import stopping  # late: few dead trainers leave something

    left = stopping.kill_what_is_left(run, state)
    message = f"processes of the dead trainer's session: {len(members)} killed" + (
        f", {left} of them do not end" if left else ""
    )
    journal.append(run.paths.journal, "warning", run.run_id, kind="orphans_killed", message=message)
    return ""


def _sentence(run: Run, members: list[processes.Identity]) -> str:
    """Say by what the processes that are left are seen to go on; '' where they are not."""
    if not members:
        return ""
    pids = process_details.shown(member.pid for member in members)
    left = f"its end is written down, but what its trainer has started goes on (pid {pids})"
    if sign := life_signs.moved_after_the_end(run):
        return f"{left}: {sign.name} has changed since; bin/abort-watch.sh --stop {run.run_id} ends it"
    limit_s = run_end.silence_limit_s(run)
    if _age_s(run) < limit_s and _are_busy(members):
        return f"{left}: they compute; they are ended when they have shown nothing for {duration(limit_s)}"
    return ""


def _age_s(run: Run) -> float:
    """Return how long ago the end was written down, by the file system's clock."""
    try:
        return life_signs.now_of(run) - os.stat(run.paths.exit_json).st_mtime
    except OSError:
        return 0.0


def _are_busy(members: list[processes.Identity]) -> bool:
    pids = [member.pid for member in members]
    begun, used_s = time.monotonic(), process_details.total_cpu_s(pids)
    time.sleep(LOOK_S)
    return process_details.total_cpu_s(pids) - used_s > process_details.BUSY * (time.monotonic() - begun)
