"""What happened to a run that is over: the class of its cause, the evidence, and how often in a row.

Reads the run's folder and those that it recovers; writes nothing.
Try it: `bin/abort-watch.sh --observe`
"""

from __future__ import annotations

from typing import NamedTuple

from ..basics.causes import DIED
from ..run_folder import status
from ..run_folder.run_state import State
from ..run_folder.runs import Run, RunTable
from ..watching import abort_rules, sighting
from ..watching.limits import limits_of


class Incident(NamedTuple):
    """How a run ended that something may go on from.

    Args:
        cause: one of basics/causes.
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
    fruitless = sighting.fruitless_starts(run, state, table, limits.max_attempts)
    if known := state.get("died"):
        cause, evidence = known["cause"] or DIED, known["evidence"] or ""
        return Incident(cause, evidence, known["first_bad_step"], known["mono_s"], state.get("step"), fruitless)
    seen = sighting.sight(run, state, view, table, limits)
    first = next(iter(abort_rules.findings(state, limits, seen)))
    since_s = first.since_s if "aborted" in state else None
    return Incident(first.cause, first.evidence, first.first_bad_step, since_s, state.get("step"), fruitless)
