"""A submitted job that may not start, because what it would do needs consent that was not given: told once.

A job asks no user. It ends with code 5, after which Slurm requeues nothing, and `notify.command` gets one line, once
for each job, and for each name of a sweep. Writes `held.json` into the job's folder.
"""

from __future__ import annotations

import contextlib
import os

from ..base import slurm
from ..base.errors import NeedsAccept
from ..base.files import to_json, utc_now, write_new
from ..base.imports import Any
from ..base.terminal import plain, say
from ..base.values import listed, string
from ..config import config
from ..run.job_folder import JobFolder
from ..start.request import Request
from . import escalation


def tell(request: Request, job: JobFolder, error: NeedsAccept) -> None:
    """Say that a job is held, and have a person told, unless that was done before.

    Args:
        request: of the start that was refused.
        job: the job's folder.
        error: why.
    """
    say(
        "run.sh", "a job asks no user, and this one is not started: see to it, and submit it again (submit.sh --accept)"
    )
    own = slurm.allocation()
    fields: dict[str, Any] = {
        "event": "held", "job_folder": str(job.path), "job": own.job if own else None, "experiment": request.experiment,
        "name": request.name, "at": utc_now(), "message": plain(str(error))[: escalation.MAX_REASON],
    }  # fmt: skip
    path = job.held(request.name if job.read().get("tasks") else None)
    try:
        write_new(path, to_json(fields))
    except FileExistsError:
        return
    except OSError:
        pass  # what cannot be written down is told all the same
    command = listed(string)(config.get(request.base, "notify.command"))
    if command and (wrong := escalation.notify(command, fields, str(request.root))):
        say("run.sh", plain(f"notify.command ('{command[0]}') {wrong}"))
        with contextlib.suppress(OSError):
            os.unlink(path)  # no user was told: the next start tries again
