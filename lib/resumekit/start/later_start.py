"""What a later start of a submitted job goes on with: the run that its first start began.

Slurm starts the same job.sh again after a requeue, and a chain starts it link by link. What that says of a beginning
(`--fresh`, `--resume`, `--init-from`, `--take-over`, a run's id) was for the first time. Reads run.json of each run.
"""

from __future__ import annotations

from ..run import job_folder
from ..run.job_folder import JobFolder
from ..run.run_folder import Run
from . import search
from .request import Request


def settled(request: Request) -> Request:
    """Return the request of this start: as job.sh has it, or, where the job has a run, one that goes on with that.

    Args:
        request: of a start of any kind; one that is no job's stays as it is.
    """
    own = None if request.job is None else _own_run(request, request.job)
    if own is None or own.experiment is None:
        return request
    return request._replace(
        experiment=own.experiment, name=own.name, fresh=False, checkpoint=None, init_from=None, take_over=False
    )


def _own_run(request: Request, job: JobFolder) -> Run | None:
    """Return the newest run that a start of the job has begun; of a sweep, of this task's name."""
    found = [
        run
        for run in search.table_of(request).all()
        if run.record.get("job_folder") == job_folder.as_recorded(job.path, run.paths.run_dir)
        and request.name in (None, run.name)
        and run.has_started
    ]
    return max(found, key=lambda run: (run.created_at, run.run_id), default=None)
