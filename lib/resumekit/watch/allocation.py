"""Whose a run is: what a scheduler's job has started is taken up in that job alone.

A trainer that another process of the host started in its place would compute outside of the allocation, on a login node
or on another job's devices, beside the same job once its scheduler has requeued it. Reads the run's record and the
environment. Try it: `env -u SLURM_JOB_ID bin/abort-watch.sh --observe` on a node where a job's run has died
"""

from __future__ import annotations

import os

from ..base import redaction
from ..base.imports import Any
from ..base.values import mapping, string
from ..run.run_folder import Run


def why_not_callers(run: Run) -> str | None:
    """Return why the caller may not take a run up: one of the two belongs to a job that the other is not of.

    A scheduler that names no job (Kubernetes) keeps nothing apart, and neither does a record that says nothing of one.
    """
    values = mapping(mapping(run.record.get("environment")).get("values"))
    if "scheduler" not in run.record and "SLURM_JOB_ID" not in values:
        return None  # of a version before
    before = {"name": "slurm", "job": values.get("SLURM_JOB_ID")}
    theirs = _job(run.record.get("scheduler") if "scheduler" in run.record else before)
    own = _job(redaction.scheduler_variables(os.environ))
    if theirs == own:
        return None
    if theirs is None:
        reason = f"it was started outside of {_named(own)}, which this process is of: a watcher outside takes it up"
    else:
        reason = (
            f"it belongs to {_named(theirs)}, and this process to {_named(own)}: its scheduler starts that job again"
        )
    return f"{reason}, or bin/run.sh {run.experiment} goes on from it"


def _job(scheduler: Any) -> tuple[str, str] | None:
    """Return (scheduler, job); None outside of any."""
    name, job = string(mapping(scheduler).get("name")), string(mapping(scheduler).get("job"))
    return None if name is None or not job else (name, job)


def _named(job: tuple[str, str] | None) -> str:
    return "no job" if job is None else f"job {job[1][:100]} of {job[0][:20]}"
