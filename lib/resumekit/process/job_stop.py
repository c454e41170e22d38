"""Ending a run of Slurm's from outside of its job: `scancel`, of the user's own jobs alone.

A run on another host cannot be signalled from here, and one that waits in the queue, requeued or as the next link of a
chain, has no process at all: both would be started again. What Slurm has to know is in run.json, which has to be the
caller's own word: another user's may name any job. Writes `stopped` into the run's journal first.
"""

from __future__ import annotations

import contextlib
import os

from ..base import journal, slurm
from ..base.errors import InvalidFile
from ..base.slurm import Job
from ..base.terms import SCANCEL
from ..base.values import mapping, string, strings
from ..run import job_folder, status, trust
from ..run.run_folder import Run


def cancel(run: Run) -> str | None:
    """Have Slurm cancel every job that would go on with a run.

    Returns:
        What is to be said of it; None where the run is in no job of the caller's that still runs or waits, or Slurm
        does not cancel it.
    """
    jobs = open_jobs(run)
    if not jobs:
        return None
    with contextlib.suppress(OSError):  # a job that is cancelled is stopped by Slurm's word too
        journal.append(run.paths.journal, "stopped", run.run_id, by=SCANCEL, now=False)
    cancelled = [job.job for job in jobs if slurm.cancel(job.job)]
    if len(cancelled) < len(jobs):
        return None
    named = ", ".join(f"{job.job} ({job.state.lower()})" for job in jobs)
    return f"'{run.run_id}' is ended by Slurm: scancel {named}"


def may_wait(run: Run) -> bool:
    """Whether a job of Slurm's may wait to go on with a run: one that has not finished and that no run continues."""
    if mapping(run.record.get("scheduler")).get("name") != "slurm" or os.path.lexists(run.paths.continuation):
        return False
    with contextlib.suppress(OSError):
        return bool(status.current(run)["state"] != "finished")
    return False


def open_jobs(run: Run) -> list[Job]:
    """Return the caller's jobs that run or wait, and go on with this run: its own, and the links of its chain.

    Asks Slurm of all of them at once.
    """
    scheduler = mapping(run.record.get("scheduler"))
    own, cluster = string(scheduler.get("job")), string(scheduler.get("cluster"))
    if scheduler.get("name") != "slurm" or own is None or not trust.standing(run).is_callers:
        return []
    ids = list(dict.fromkeys([own, *_chain_of(run)]))
    slurm.ask_together(ids)
    if cluster is None or slurm.cluster_name() != cluster:
        return []
    found = [job for one in ids if (job := slurm.ask(one)) is not None]
    return [job for job in found if job.state not in (slurm.GONE, *slurm.ENDED) and job.uid == os.geteuid()]


def _chain_of(run: Run) -> list[str]:
    """Return the ids of a chain's jobs; the one id of a sweep is that of all its tasks, and of no use for one."""
    folder = job_folder.of_run(run)
    if folder is None:
        return []
    try:
        record = folder.read()
    except InvalidFile:
        return []
    return [] if record.get("tasks") else list(strings(record.get("jobs")))
