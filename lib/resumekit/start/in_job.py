"""What a start means in a job of Slurm: a requeued job goes on with its own run, and what is done is no failure.

A job script is run again from its first line: `run.sh EXP --fresh` or `resume.sh EXP --step N` in it would begin or
branch anew each time. Reads run folders. Try it: `scontrol requeue JOB`, and look at the job's output
"""

from __future__ import annotations

from collections.abc import Callable

from ..base import claims
from ..base.errors import NothingToDo, Refused
from ..base.slurm import Allocation
from ..base.values import mapping, string
from ..run import job_folder, status
from ..run.job_folder import JobFolder
from ..run.run_folder import Run
from ..run.run_table import RunTable
from . import search
from .choice import ALIVE, FINISHED, Choice, choose_start
from .request import Request


def chooser(choose: Callable[[Request], Choice], own: Allocation) -> Callable[[Request], Choice]:
    """Return what decides a start in a job.

    Args:
        choose: what decides it elsewhere, `choice.choose_start` or `choice.choose_resume`.
        own: the job.

    Returns:
        A function that raises NothingToDo where the run has finished, or where another task of the same job step
        trains it; else what `choose` raises.
    """

    def chosen(request: Request) -> Choice:
        try:
            again = _as_requeued(request, own)
            return choose(request) if again is None else choose_start(again)
        except Refused as error:
            if error.code == FINISHED:
                raise NothingToDo(str(error)) from error
            if error.code == ALIVE and own.tasks > 1 and (run := _of_this_step(request, own)) is not None:
                raise NothingToDo(
                    f"task {own.task} of {own.tasks} of job {own.job} does nothing: another one trains '{run.run_id}' "
                    "(one run.sh for a job; srun belongs into trainer.command)"
                ) from error
            raise

    return chosen


def _as_requeued(request: Request, own: Allocation) -> Request | None:
    """Return the request to go on with what this job has trained before it was requeued; None where it has not.

    The links of a chain, and whatever else starts the same job.sh, are one job.
    """
    if own.restarts == 0 and request.job is None:
        return None
    table = search.table_of(request)
    runs = [run for run in _of_job(request, table, own) if run.has_started]
    if not runs:
        return None
    run = _newest_from(max(runs, key=lambda run: run.created_at), table)
    if status.current(run)["state"] == "needs_attention":
        raise Refused(f"'{run.run_id}' needs attention: a requeued job does not go on from it (run it anew by hand)")
    return request._replace(
        experiment=run.run_id, name=run.name, fresh=False, init_from=None, step=None, best=False, checkpoint=None,
        from_run=None, reresolve=False, take_over=False,
    )  # fmt: skip


def _newest_from(run: Run, table: RunTable) -> Run:
    """Return the run that goes on from this one, or from what does."""
    for _ in range(len(table.names)):
        child_id = string((claims.continuation_of(run.paths) or {}).get("run_id"))
        child = table.get(child_id) if child_id else None
        if child is None or not child.has_started:
            return run
        run = child
    return run


def _of_job(request: Request, table: RunTable, own: Allocation) -> list[Run]:
    """Return the runs of the experiment that was asked for, and of its name, that this job has started."""
    experiment = search.experiment_of(request, table)
    lineage = search.lineage_of(request, table)
    known = [run for run in table.of_experiment(experiment) if request.name is None or run.name == request.name]
    if lineage is not None and request.name is None and not request.goes_back:
        known = [run for run in known if lineage.has(run)]
    return [run for run in known if _is_of(run, own) or _is_of_folder(run, request.job)]


def _of_this_step(request: Request, own: Allocation) -> Run | None:
    """Return the live run that another task of this very job step has started; None where there is none."""
    table = search.table_of(request)
    live = (
        run for run in _of_job(request, table, own)
        if mapping(run.record.get("scheduler")).get("restarts") == own.restarts
        and status.current(run)["state"] in status.LIVE
    )  # fmt: skip
    return next(live, None)


def _is_of(run: Run, own: Allocation) -> bool:
    scheduler = mapping(run.record.get("scheduler"))
    known = (scheduler.get("name"), scheduler.get("job"), scheduler.get("cluster"))
    return known == ("slurm", own.job, own.cluster)


def _is_of_folder(run: Run, job: JobFolder | None) -> bool:
    """Whether a run was started by a submitted job, under whatever id."""
    return job is not None and run.record.get("job_folder") == job_folder.as_recorded(job.path, run.paths.run_dir)
