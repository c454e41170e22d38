"""Whether the steps of a trainer can be seen at all: only then is it a sign of anything that none was.

A pattern that is configured proves nothing: it may fit no line. Asks the journal of a run and those of its ancestors.
"""

from __future__ import annotations

from typing import Any

from . import status
from .run_state import State
from .runs import Run, RunTable

MAX_ANCESTORS = 5


def can_be_seen(run: Run, state: State, table: RunTable) -> bool:
    """Whether steps of this trainer can be seen: some of this run were, or of a run that it came from."""
    return has_stepped(state) or parent_stepped(run, table)


def has_stepped(state: State) -> bool:
    """Whether steps or phases of this run were seen, by its folded journal."""
    return bool(state.get("has_stepped") or state.get("tells_phases"))


def parent_stepped(run: Run, table: RunTable) -> bool:
    """Whether steps were seen of a run that this one came from, by the means that this one has.

    Not asked is whether it has a pattern or the kit's helpers: a heartbeat, which needs neither, tells steps too.
    """
    means = _means(run)
    for ancestor, _ in table.history(run)[1 : 1 + MAX_ANCESTORS]:
        if _means(ancestor) != means:
            return False
        if "has_stepped" in status.read_state(ancestor):
            return True
    return False


def _means(run: Run) -> tuple[Any, Any]:
    """Return what decides how the steps of a run are seen."""
    return run.setting("trainer", "log_patterns"), run.setting("trainer", "loads_with_kit")
