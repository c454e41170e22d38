"""What a sidecar does for a run that is sick, or that another one goes on from: it need not wait for the watcher.

Stops a run whose numbers have not been finite for a moment; writes down, in the run that recovers and in the one that
it recovers, that it does. Source: protocol §12.
"""

from __future__ import annotations

import contextlib
import os

from ..base import journal
from ..base.claims import locked
from ..base.errors import CHECKS_FAILED as CHECKS_FAILED_CODE
from ..base.errors import DONE, ENDED_EARLY, STOPPED_BY_RULE, KitError
from ..base.imports import Any
from ..base.terms import CHECKS_FAILED, NONFINITE
from ..base.values import string
from ..run import health, live_marker, run_table, status
from ..run.journal_fold import State
from ..run.run_folder import Run, open_run

# A loss that is finite again within this time is not stopped for, nor one of which no second telling has come.
HEALS_S = 2.0
STOP_AGAIN_S = 30.0


class NanGuard:
    """Watches one run's numbers."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._bad_since: float | None = None
        self._stops_at: float | None = None

    def stop_if_nonfinite(self, state: State, now: float) -> None:
        """Stop the run if what it tells has not been finite for HEALS_S seconds, and in two tellings at least.

        Args:
            state: its folded journal.
            now: the monotonic clock.
        """
        if "aborted" in state:
            self._repeat_the_stop(now)
            return
        known = state.get("symptoms", {})
        is_well = not health.not_finite(known, is_last=True)
        if is_well or "stopped" in state or os.path.lexists(self._run.paths.paused):
            self._bad_since = None
            return
        self._bad_since = now if self._bad_since is None else self._bad_since
        if now - self._bad_since >= HEALS_S and (found := health.not_finite(known)):
            from . import aborting  # late: few runs are stopped, and each sidecar's start would wait for it

            evidence, _, first_bad_step = found[0]
            with contextlib.suppress(OSError, KitError):  # what cannot be written down is tried again
                aborting.abort(self._run, NONFINITE, evidence, first_bad_step=first_bad_step)

    def _repeat_the_stop(self, now: float) -> None:
        """Stop it again now and then: the process that wrote the stop down may have been killed before the signal."""
        if self._stops_at is None or now >= self._stops_at:
            if self._stops_at is not None:
                from . import aborting  # late, as above

                aborting.stop_aborted(self._run.paths.run_dir)
            self._stops_at = now + STOP_AGAIN_S

    def release_marker(self, state: State, is_now: str) -> None:
        """Take the live marker of a run that is over, unless something may go on from it.

        Raises:
            OSError: it cannot be removed.
        """
        is_enabled = self._run.setting("recover", "enabled") is True
        if is_now == status.NEEDS_ATTENTION or is_to_be_told(self._run, is_now):
            return  # what tells a person takes it away, then
        # Of a run whose end was not seen a person has to be told, taken up or not.
        is_to_be_taken_up = is_now == "lost" or (is_now in status.TAKEN_UP and is_enabled)
        if not is_to_be_taken_up or _went_on(state, self._run):
            live_marker.remove(self._run.paths)


def record_recovery(run: Run, state: State) -> None:
    """Write the `recovery` event into a run that recovers another one, and into that one; safe to repeat.

    The run's own sidecar does, at its first look. Where it was killed before that, the next recovery does: of the run
    itself, which is over by then.

    Args:
        run: the run, which may recover another one or not.
        state: its folded journal.
    """
    record = run_table.recovery_of(run)
    if record is None or "launched" not in state or "recovery" in state:
        return
    fields = {
        "outcome": status.RESUMED, "cause": record.cause, "parent_run_id": run.record.get("parent_run_id"),
        "child_run_id": run.run_id, "step": run.parent_step, "attempt": record.attempt,
        "lr_factor": record.lr_factor, "reason": None,
    }  # fmt: skip
    with contextlib.suppress(OSError, KitError):
        _tell_parent(run, fields)
        with locked(run.paths.lock):
            if "recovery" not in status.read_state(run):
                journal.append(run.paths.journal, "recovery", run.run_id, **fields)


def is_to_be_told(run: Run, is_now: str) -> bool:
    """Whether a person is to be told that a run has ended before its last step, and there is a way to tell."""
    is_watched = run.setting("recover", "enabled") is True and run.setting("notify", "command") is not None
    return is_now == status.ENDED_EARLY and is_watched


def exit_code(run: Run, state: State, is_now: str) -> int:
    """Return what the launcher is to know: 7 or 8 where checks or a rule ended the run, 9 of one that a person has to
    be told of though its trainer ended with 0, else 0. It ends with 7 or 8 itself if nothing goes on.
    """
    if (state.get("aborted") or {}).get("cause") == CHECKS_FAILED:
        return CHECKS_FAILED_CODE
    if is_to_be_told(run, is_now):
        return ENDED_EARLY
    return STOPPED_BY_RULE if is_now == "aborted" else DONE


def _tell_parent(run: Run, fields: dict[str, Any]) -> None:
    parent_id = string(fields["parent_run_id"])
    if parent_id is None or "/" in parent_id:
        return
    parent = open_run(run.paths.run_dir.parent / parent_id)
    if not parent.is_ours:
        return
    with locked(parent.paths.lock):
        if _went_on(status.read_state(parent), parent):
            return
        journal.append(parent.paths.journal, "recovery", parent.run_id, **fields)
    status.renew(parent)
    live_marker.remove(parent.paths)


def _went_on(state: State, run: Run) -> bool:
    """Whether a run's journal says that another one goes on from it."""
    return (state.get("recovery") or {}).get("parent_run_id") == run.run_id
