"""run.json: what is known of a run at its start. Where it came from, what code, which versions, which machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..basics import digests, kit_version, processes, recorded_environment
from ..basics.files import utc_now
from ..basics.paths import RunPaths, relative_to_run
from ..basics.redaction import redacted_text
from ..configuration import config
from ..planning.choice import Choice
from ..planning.code_state import Code
from ..planning.request import Request


def record(
    choice: Choice, request: Request, paths: RunPaths, *, root: Path, cwd: Path, argv: Sequence[str],
    kit_argv: Sequence[str], code: Code, versions: Mapping[str, str | None], config_hash: str, token: str,
    launcher: processes.Identity | None,
) -> dict[str, Any]:  # fmt: skip
    """Return run.json's content, by schemas/run.schema.json; paths inside runs/ are relative, so that it may move."""
    resolved, parent, candidate = choice.config, choice.parent, choice.candidate
    notes = request.notes if request.notes is not None else config.get(resolved, "experiment.notes")
    return {
        "run_id": paths.run_dir.name,
        "experiment": choice.experiment,
        "name": choice.name,
        "notes": notes and redacted_text(notes),
        "parent_run_id": parent.run_id if parent else None,
        "parent_step": choice.step,
        "checkpoint": relative_to_run(candidate.path.absolute(), paths.run_dir) if candidate else None,
        "relation": choice.relation,
        "recovery": choice.recovery.as_fields() if choice.recovery else None,
        "config_hash": config_hash,
        "config_hash_version": config.HASH_VERSION,
        "resolved_sha256": digests.sha256(config.as_json(resolved)),
        "config_file": str(request.config_file.path.absolute()),
        "config_sha256": request.config_file.sha256,
        "settings": list(choice.settings),
        "argv": list(argv),
        "kit_argv": [redacted_text(word) for word in kit_argv],
        "cwd": str(cwd),
        "root": str(root),
        "paths": {key: resolved["paths"][key] for key in ("checkpoints", "logs", "status")},
        "git": {
            "commit": code.commit, "first_commit": code.first_commit, "diff_sha256": code.diff_sha256,
            "redacted": code.redacted,
        },
        "code": {"changed": code.changed, "files": code.files},
        "host": processes.host_name(),
        "boot_id": processes.boot_id(),
        "machine_id": processes.machine_id(),
        "pid_namespace": processes.pid_namespace(),
        "token": token,
        "launcher": launcher.as_fields() if launcher else None,
        "versions": dict(versions),
        "environment": environment(resolved["trainer"]["env"]),
        "scheduler": recorded_environment.scheduler(os.environ),
        "seed": config.get(resolved, "training.seed"),
        "created_at": utc_now(),
        "kit_version": kit_version.version(),
        "kit_digest": kit_version.digest(),
    }  # fmt: skip


def environment(extra_names: Sequence[str]) -> dict[str, Any]:
    """Return the recorded part of the environment; of `trainer.env` the names that are set, never the values."""
    kept = {
        name: redacted_text(sys.executable if name == "PYTHON" else os.environ[name])
        for name in recorded_environment.NAMES
        if name in os.environ
    }
    return {"values": kept, "passed": [name for name in extra_names if name in os.environ]}
