"""What run.json says of a new run: all that made it. The fields are described in schemas/run.schema.json."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base import file_identity, kit_version, processes, redaction
from ..base.files import utc_now
from ..base.imports import TYPE_CHECKING, Any
from ..base.paths import RunPaths, relative_to_run
from ..base.redaction import redacted_text
from ..config import config
from ..run import job_folder
from ..run.run_table import run_around
from . import preflight
from .code_state import MAX_UNTRACKED, Code

if TYPE_CHECKING:
    from .choice import Choice
    from .make_folder import Launch
    from .pipeline import Planned
    from .request import Request


def record_of(
    planned: Planned, launch: Launch, launcher: processes.Identity | None, kit_argv: Sequence[str]
) -> dict[str, Any]:
    """Return run.json's content; paths inside runs/ are relative, so that it may move.

    Args:
        planned: what was decided.
        launch: the run that is made of it.
        launcher: the process that starts the trainer; None where it has ended.
        kit_argv: the command of the kit.
    """
    choice, request = planned.choice, planned.request
    ready, code = planned.startable
    handed = planned.plan.handed if planned.plan else None
    notes = request.notes if request.notes is not None else config.get(choice.config, "experiment.notes")
    return {
        "run_id": launch.run_id,
        "experiment": choice.experiment,
        "name": choice.name,
        "notes": notes and redacted_text(notes),
        **_lineage_fields(choice, launch.paths),
        "handed_rate": handed.as_fields() if handed else None,
        **_config_fields(choice, request, launch),
        "argv": list(launch.argv),
        "kit_argv": [redacted_text(word) for word in kit_argv],
        "cwd": str(ready.cwd),
        "root": str(ready.root),
        "paths": {key: choice.config["paths"][key] for key in ("checkpoints", "logs", "status")},
        **_code_fields(code),
        "data": ready.data.as_fields() if ready.data else None,
        **_machine_fields(),
        "token": launch.token,
        "launcher": launcher.as_fields() if launcher else None,
        "versions": dict(ready.versions.answer()),
        "environment": environment(choice.config["trainer"]["env"]),
        "job_folder": _job_folder(planned, launch.paths),
        "scheduler": redaction.scheduler_variables(os.environ),
        "seed": config.get(choice.config, "training.seed"),
        "created_at": utc_now(),
        "kit_version": kit_version.version(),
        "kit_digest": kit_version.digest(),
    }


def _lineage_fields(choice: Choice, paths: RunPaths) -> dict[str, Any]:
    parent = choice.parent
    return {
        "parent_run_id": parent.run_id if parent else None,
        "parent_step": choice.step,
        "root_run_id": preflight.root_run_id(choice, paths),
        "checkpoint": _checkpoint(choice, paths.run_dir),
        "init_from": choice.init.as_fields() if choice.init else None,
        "relation": choice.relation,
        "recovery": choice.recovery.as_fields() if choice.recovery else None,
    }


def _job_folder(planned: Planned, paths: RunPaths) -> str | None:
    """Return the submitted job's folder; what takes a run of it up belongs to it too."""
    job, choice = planned.request.job, planned.choice
    if job is not None:
        return job_folder.as_recorded(job.path, paths.run_dir)
    if choice.recovery is None or choice.parent is None or (of_parent := job_folder.of_run(choice.parent)) is None:
        return None
    return job_folder.as_recorded(of_parent.path, paths.run_dir)


def _checkpoint(choice: Choice, run_dir: Path) -> str | None:
    """Return the chosen checkpoint: where it lay first, also where the parent holds it."""
    if choice.candidate is None:
        return None
    from ..run import held  # late: a first start goes on from no run

    path = choice.candidate.path.absolute()
    return relative_to_run(held.origin_of(path, run_around(choice.table, path)), run_dir)


def _config_fields(choice: Choice, request: Request, launch: Launch) -> dict[str, Any]:
    return {
        "config_hash": launch.config_hash,
        "config_hash_version": config.HASH_VERSION,
        "resolved_sha256": file_identity.sha256(config.as_json(choice.config)),
        "config_file": str(request.config_file.path.absolute()),
        "config_sha256": request.config_file.sha256,
        "settings": list(choice.settings),
    }


def _code_fields(code: Code) -> dict[str, Any]:
    left_out = code.left_out
    return {
        "git": {
            "commit": code.commit,
            "first_commit": code.first_commit,
            "diff_sha256": code.diff_sha256,
            "redacted": len(code.redacted),
            "unknown": code.unknown,
        },
        "code": {
            "changed": code.changed,
            "files": code.files,
            "untracked": None if left_out is None else list(left_out[:MAX_UNTRACKED]),
            "untracked_count": None if left_out is None else len(left_out),
        },
    }


def _machine_fields() -> dict[str, Any]:
    return {
        "host": processes.host_name(),
        "boot_id": processes.boot_id(),
        "machine_id": processes.machine_id(),
        "pid_namespace": processes.pid_namespace(),
    }


def environment(extra_names: Sequence[str]) -> dict[str, Any]:
    """Return the recorded part of the environment; of `trainer.env` the names that are set, never the values."""
    kept = {
        name: redacted_text(sys.executable if name == "PYTHON" else os.environ[name])
        for name in sorted(os.environ)
        if redaction.is_recorded_variable(name)
    }
    return {"values": kept, "passed": [name for name in extra_names if name in os.environ]}
