"""What follows in a scheduler's job when no run goes on in it: the job is put back into its queue, or it is over.

The launcher asks when its last trainer has ended. A job that a user has cancelled is never requeued, nor one whose run
has finished or needs a person, nor one of which so many allocations in a row brought no step. Writes `job_ends` and
`requeued` into the run's journal. Try it: `scontrol requeue JOB`, then `bin/runs.sh EXP-01`
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..base import journal, slurm
from ..base.errors import DONE, TO_BE_CONTINUED, KitError
from ..base.slurm import Allocation
from ..base.terminal import say
from ..base.terms import DIED, REQUEUED, STOPPED_JOB, TO_BE_REQUEUED
from ..base.values import count, mapping
from ..process import job_end
from ..run import status
from ..run.journal_fold import State
from ..run.run_folder import Run, open_run
from ..run.run_table import RunTable
from . import escalation
from .incident import Incident


def after_the_last_run(run_dir: Path, code: int) -> int:
    """Decide about the job of a run behind which no other one goes on; return the code that the launcher ends with.

    Args:
        run_dir: the folder of the last run that the launcher has supervised.
        code: what the launcher would end with outside of any job.

    Returns:
        0 where the run has finished; TO_BE_CONTINUED where it is to go on in another allocation; else `code`.
    """
    run = open_run(run_dir)
    own = job_end.own_allocation(run)
    if own is None:
        return code
    state = status.read_state(run)
    name = status.name_of(run, state, status.look(run, state))
    if name == "finished":
        return DONE
    if name not in ("preempted", "stopped"):
        return code
    cause = status.job_cause(state) or _asked_now(run, state)
    with contextlib.suppress(OSError):
        status.renew(run)
    if cause is None or cause in STOPPED_JOB:
        return code
    if cause == REQUEUED:
        _say(f"'{run.run_id}' goes on when Slurm starts job {own.job} again, which it has requeued")
        return TO_BE_CONTINUED
    if reason := _fruitless(run, state):
        return _hold(run, state, reason, code)
    return _requeue(run, own, code) if cause in TO_BE_REQUEUED else code


def _asked_now(run: Run, state: State) -> str | None:
    """Ask why the job ends where that was not asked yet; None where a user's command has stopped the run.

    Slurm signals every process of a job: its trainer may end before the launcher has had a signal.
    """
    if state.get("stopped"):
        return None
    asked = job_end.Asked(run, None)
    return asked.note(job_end.FIRST_WAIT_S) or asked.note(slurm.TIMEOUT_S)


def _requeue(run: Run, own: Allocation, code: int) -> int:
    """Have the job put back into the queue; where the site does not allow it, the next job of a chain goes on."""
    job = slurm.ask(own.job)
    if job is not None and job.restarts > own.restarts:
        return TO_BE_CONTINUED  # Slurm has done it meanwhile
    is_done = job is not None and job.may_requeue and slurm.requeue(own.job)
    with contextlib.suppress(OSError):
        journal.append(run.paths.journal, "requeued", run.run_id, scheduler="slurm", job=own.job, is_done=is_done)
    if is_done:
        _say(f"'{run.run_id}' is to go on: job {own.job} is requeued")
    else:
        why = "Slurm does not answer" if job is None else "Slurm does not requeue it (Requeue=0, --no-requeue)"
        _say(
            f"'{run.run_id}' is to go on, and job {own.job} is not requeued: {why}; the next job that starts it goes on"
        )
    return TO_BE_CONTINUED


def _fruitless(run: Run, state: State) -> str:
    """Say that so many allocations in a row have saved no new step; '' where they did, or were fewer."""
    limit = count(run.setting("cluster", "max_fruitless")) or 3
    table = RunTable(run.paths.run_dir.parent)
    seen: set[tuple[object, object]] = set()
    one: Run | None = run
    while one is not None:
        scheduler = mapping(one.record.get("scheduler"))
        if scheduler.get("name") != "slurm":
            break
        # A step that no checkpoint holds is done again in the next allocation.
        reached = status.read_state(one) if one is not run else state
        if (reached.get("last_checkpoint_step") or 0) > (count(one.parent_step) or 0):
            break
        seen.add((scheduler.get("job"), scheduler.get("restarts")))
        if len(seen) >= limit:
            return f"{limit} allocations in a row saved no new step (cluster.max_fruitless)"
        one = table.parent(one) or _begun_before(one, table)
    return ""


def _begun_before(run: Run, table: RunTable) -> Run | None:
    """Return the run that the same job began before this one, which had no checkpoint to go on from."""
    known = (
        one for one in table.of_experiment(run.experiment or "")
        if one.name == run.name and one.has_started and one.created_at < run.created_at
    )  # fmt: skip
    same = (one for one in known if _job_of(one) == _job_of(run))
    return max(same, key=lambda one: one.created_at, default=None)


def _job_of(run: Run) -> tuple[object, object]:
    scheduler = mapping(run.record.get("scheduler"))
    return scheduler.get("job"), scheduler.get("cluster")


def _hold(run: Run, state: State, reason: str, code: int) -> int:
    _say(f"'{run.run_id}' needs attention, and its job is not requeued: {reason}")
    found = Incident(cause=DIED, evidence=reason, step=state.get("step"))
    with contextlib.suppress(OSError, KitError):
        escalation.call_a_person(run, found, reason)
    return code


def _say(sentence: str) -> None:
    say("resumekit", sentence)
