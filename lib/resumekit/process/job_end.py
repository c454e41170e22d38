"""Why a scheduler ends the job that a run is in: asked of the scheduler, and journaled as `job_ends`.

A signal alone does not say whether a user cancels a job, its time is over, or another job takes its place. Slurm says
it while the job ends (docs/slurm.md has the table). Try it: `scancel JOB`, then `bin/runs.sh EXP-01`
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from ..base import journal, slurm
from ..base.slurm import Allocation, Job
from ..base.terms import (
    CANCELLED,
    PREEMPTED,
    REQUEUED,
    SIGNALLED,
    TIME_LIMIT,
    UNKNOWN_CAUSE,
    WARNED_JOB,
)
from ..base.values import mapping, wait_s
from ..run.run_folder import Run

# A warning that comes so long before the end of a job's time is about that end.
NEAR_END_S = 900.0
# How long the answer is waited for before the trainer's end is; what comes later is taken in after that end.
FIRST_WAIT_S = 0.2
# What is asked a second time is asked so many seconds after the first.
AGAIN_S = 2.0


def own_allocation(run: Run) -> Allocation | None:
    """Return the job of Slurm that this process is of, where it is the very one that the run was started in."""
    recorded, own = mapping(run.record.get("scheduler")), slurm.allocation()
    is_own = own is not None and recorded.get("name") == "slurm" and recorded.get("job") == own.job
    return own if is_own and own is not None and recorded.get("restarts", 0) == own.restarts else None


def margin_s(run: Run) -> float:
    """Return cluster.margin_s: how long before the end of a job's time its run is stopped."""
    margin = wait_s(run.setting("cluster", "margin_s", 120))
    return 120.0 if margin is None else float(margin)


class Asked:
    """A question to the scheduler about the end of a run's job, beside the stop that it is about.

    Args:
        run: the run.
        signal_name: what has asked for the stop; None where the trainer alone was told.
    """

    def __init__(self, run: Run, signal_name: str | None) -> None:
        self._run, self._signal = run, signal_name
        self._own = own_allocation(run)
        self._question = slurm.start_asking(self._own.job) if self._own else None
        self._is_open, self._begun_s = self._own is not None, time.monotonic()

    def note(self, timeout_s: float) -> str | None:
        """Wait for the answer and journal it, once; the cause, or None where there is nothing to tell yet.

        Args:
            timeout_s: how long, in seconds; a question that has no answer then is asked anew at the next call.
        """
        if not self._is_open or self._own is None:
            return None
        if self._question is None:
            time.sleep(max(0.0, self._begun_s + AGAIN_S - time.monotonic()))
            self._question = slurm.start_asking(self._own.job)
        job = slurm.answer(self._question, self._own.job, timeout_s)
        self._question = None
        is_first = timeout_s < slurm.TIMEOUT_S
        # A controller that is just about to end the job may not say so yet.
        is_early = job is not None and cause_of(job, self._own.restarts, self._signal, time.time()) == SIGNALLED
        if is_first and (job is None or is_early):
            return None
        self._is_open = False
        return note(self._run, self._own, job, self._signal)


def told_why(run: Run, signal_name: str, end: Callable[[], int]) -> int:
    """End a run, and journal why its job ends: at once where the scheduler says so at once, else after the end.

    Args:
        run: the run.
        signal_name: what came to the launcher.
        end: ends it; its code is returned.
    """
    asked = Asked(run, signal_name)
    asked.note(FIRST_WAIT_S)
    try:
        return end()
    finally:
        asked.note(slurm.TIMEOUT_S)


def note(run: Run, own: Allocation, job: Job | None, signal_name: str | None, cause: str | None = None) -> str:
    """Journal `job_ends` by what Slurm says of the run's job; return the cause, or the one that is known already."""
    cause = cause or cause_of(job, own.restarts, signal_name, time.time())
    reason = "Slurm does not answer" if job is None else (
        f"JobState={job.state} Reason={job.reason} Restarts={job.restarts}"
        + (" PreemptTime is set" if job.preempt_s is not None else "")
    )  # fmt: skip
    with contextlib.suppress(OSError):
        journal.append(
            run.paths.journal, "job_ends", run.run_id, scheduler="slurm", job=own.job, cause=cause, reason=reason
        )
    return cause


def cause_of(job: Job | None, restarts: int, signal_name: str | None, now_s: float) -> str:
    """Say why a job ends; pure.

    Args:
        job: what Slurm says of it; None where it does not answer.
        restarts: how often it had been requeued when its run began.
        signal_name: what came to the launcher; None where the trainer alone got a signal.
        now_s: seconds since the epoch.
    """
    is_warning = signal_name in ("USR1", "USR2")
    if job is None:
        return WARNED_JOB if is_warning else UNKNOWN_CAUSE
    if job.preempt_s is not None:
        return REQUEUED if job.restarts > restarts else PREEMPTED
    if job.restarts > restarts:
        return REQUEUED
    if job.reason == "TimeLimit" or job.state == "TIMEOUT":
        return TIME_LIMIT
    if job.state == slurm.RUNNING:
        is_near = job.end_s is not None and job.end_s - now_s < NEAR_END_S
        return TIME_LIMIT if is_near else WARNED_JOB if is_warning else SIGNALLED
    return CANCELLED
