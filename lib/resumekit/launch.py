"""From a choice to a run folder: claimed, filled and ready for its trainer. Bash starts it.

One Python process decides and writes, because a second one would cost every launch as much again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import claims, command, config, lineage, processes, run_record
from .choice import CONTINUE, FRESH, Choice, Request, root_of
from .errors import InvalidFile, KitError, Refused
from .files import to_json, utc_now, write_atomic, write_new
from .paths import KIT_ROOT, LIB, RunPaths, relative_to_run
from .runs import RunTable


@dataclass(frozen=True)
class Launch:
    """A run that is ready to start.

    Args:
        run_id, paths: the run and its files.
        cwd: the trainer's working folder.
        token: its run token.
        config_hash: 64 hex digits.
        prove: the checkpoint whose digest is to be computed beside the trainer's start, or None.
        argv: the trainer's command.
    """

    run_id: str
    paths: RunPaths
    cwd: Path
    token: str
    config_hash: str
    prove: Path | None
    argv: list[str]

    def answer(self) -> list[str]:
        """Return the fields for Bash, in the order of kit_supervise in lib/launcher.sh."""
        prove = str(self.prove) if self.prove else ""
        return [self.run_id, str(self.paths.run_dir), str(self.cwd), self.token, self.config_hash,
                str(self.paths.output_log), prove, *self.argv]  # fmt: skip


def prepare(choice: Choice, request: Request, launcher_pid: int, kit_argv: Sequence[str]) -> Launch:
    """Make the run folder of a choice, with everything in it that is known before the trainer starts.

    Raises:
        Refused: another run continues this head already, or it cannot be claimed.
        InvalidFile: data or command of the config cannot be used.
        KitError: something cannot be written; what was made for this run is taken away again.
    """
    root = root_of(choice.config, request.config_file)
    snapshot = run_record.start_snapshot(root)
    cwd = _folder(root, config.get(choice.config, "trainer.cwd"), "trainer.cwd")
    dataset = _dataset(root, config.get(choice.config, "data.path"))
    _refuse_unresumable(choice)
    launcher = processes.identify(launcher_pid)
    paths = _claim_folder(choice)
    try:
        token = secrets.token_hex(16)
        digest = config.config_hash(choice.config, request.config_file.schema)
        checkpoint = _checkpoint_for_trainer(choice, paths)
        python = _trainer_python(choice.config, root)
        argv = command.build_argv(
            choice.config, _placeholders(choice, paths, checkpoint, python), is_resume=choice.candidate is not None
        )
        search_path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(LIB)]))
        command.check_program(argv, cwd, os.environ.get("PATH", os.defpath))
        _claim_parent(choice, paths, launcher)
        code = run_record.finish_snapshot(snapshot)
        record = _record(choice, request, paths, root, cwd, argv, code, digest, token, launcher)
        record["versions"] = run_record.versions(python, search_path)
        record["kit_argv"] = list(kit_argv)
        _fill(choice, request, paths, run_record.describe(record), code, dataset, search_path)
    except BaseException as error:
        _take_back(choice, paths)
        if isinstance(error, OSError):
            raise KitError(f"the run folder '{paths.run_dir}' cannot be written: {error.strerror}") from error
        raise
    loads_with_kit = choice.config["trainer"]["loads_with_kit"]
    prove = choice.candidate.path.absolute() if choice.candidate and loads_with_kit else None
    return Launch(paths.run_dir.name, paths, cwd, token, digest, prove, argv)


def _claim_folder(choice: Choice) -> RunPaths:
    """Make the run's folder under a name that nobody has; plain mkdir is what makes it ours alone."""
    exp_name = str(lineage.RunName(choice.experiment, choice.name))
    if choice.relation == FRESH:
        run_id = lineage.make_run_id(exp_name)
    else:
        run_id = lineage.make_run_id(exp_name, choice.parent.run_id if choice.parent else None, choice.step)
    names = choice.config["paths"]
    try:
        choice.runs_dir.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10000):
            run_dir = choice.runs_dir / (run_id if number == 1 else f"{run_id}-{number}")
            with contextlib.suppress(FileExistsError):
                run_dir.mkdir()
                return RunPaths(run_dir, names["checkpoints"], names["logs"], names["status"])
    except OSError as error:
        raise KitError(f"no run folder can be made in '{choice.runs_dir}': {error.strerror}") from error
    raise KitError(f"no free name for '{run_id}' in '{choice.runs_dir}'")


def _claim_parent(choice: Choice, paths: RunPaths, launcher: processes.Identity | None) -> None:
    """Claim the head that is continued, or pin the step that a branch stands on."""
    parent = choice.parent
    if parent is None or choice.step is None:
        return
    table = RunTable(choice.runs_dir)
    run_id = paths.run_dir.name
    if choice.relation == CONTINUE:
        if launcher is None:
            raise Refused("the launcher that asks has ended")

        def has_started(child: str) -> bool:
            run = table.get(child)
            return run is not None and run.has_started

        try:
            claims.claim_continuation(parent.paths, run_id, launcher, has_started)
        except OSError as error:
            raise Refused(
                f"'{parent.run_id}' cannot be claimed ({error.strerror}): it may belong to somebody else; "
                "name a step with --step to branch from it"
            ) from error
    holder = table.get(choice.candidate.run_id) or parent
    with contextlib.suppress(OSError):  # a folder we may not write to is not pruned by a run of ours either
        claims.pin_step(holder.paths, choice.step, run_id)


def _checkpoint_for_trainer(choice: Choice, paths: RunPaths) -> Path | None:
    """Return the checkpoint that the trainer is told of: the chosen file, or its copy under `checkpoint_in`."""
    if choice.candidate is None:
        return None
    wanted = config.get(choice.config, "trainer.checkpoint_in")
    source = choice.candidate.path.absolute()
    if wanted is None:
        return source
    target = paths.run_dir / wanted
    if not target.resolve().is_relative_to(paths.run_dir.resolve()):
        raise InvalidFile(f"trainer.checkpoint_in '{wanted}' leads out of the run folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy, not a link: the trainer may write into it, and the parent's file must stay as it is.
    shutil.copyfile(source, target)
    return target


def _placeholders(choice: Choice, paths: RunPaths, checkpoint: Path | None, python: str) -> dict[str, str]:
    return {
        "run_id": paths.run_dir.name,
        "run_dir": str(paths.run_dir),
        "checkpoints_dir": str(paths.checkpoints),
        "logs_dir": str(paths.logs),
        "heartbeat_json": str(paths.heartbeat_json),
        "config_yaml": str(paths.resolved_yaml),
        "config_json": str(paths.resolved_json),
        "checkpoint": str(checkpoint or ""),
        "step": str(choice.step or 0),
        "python": python,
        "kit": str(KIT_ROOT),
    }


def _record(
    choice: Choice, request: Request, paths: RunPaths, root: Path, cwd: Path, argv: list[str],
    code: run_record.Code, digest: str, token: str, launcher: processes.Identity | None,
) -> dict[str, Any]:  # fmt: skip
    resolved, parent, candidate = choice.config, choice.parent, choice.candidate
    notes = request.notes if request.notes is not None else config.get(resolved, "experiment.notes")
    names = resolved["paths"]
    return {
        "run_id": paths.run_dir.name,
        "experiment": choice.experiment,
        "name": choice.name,
        "notes": notes,
        "parent_run_id": parent.run_id if parent else None,
        "parent_step": choice.step,
        "relation": choice.relation,
        "checkpoint": relative_to_run(candidate.path.absolute(), paths.run_dir) if candidate else None,
        "config_hash": digest,
        "config_file": str(request.config_file.path.absolute()),
        "config_sha256": request.config_file.sha256,
        "argv": argv,
        "cwd": str(cwd),
        "root": str(root),
        "paths": {key: names[key] for key in ("checkpoints", "logs", "status")},
        "git": {"commit": code.commit, "diff_sha256": code.diff_sha256, "redacted": code.redacted},
        "host": processes.host_name(),
        "boot_id": processes.boot_id(),
        "token": token,
        "launcher": launcher.as_fields() if launcher else None,
        "environment": run_record.environment(resolved["trainer"]["env"]),
        "seed": config.get(resolved, "training.seed"),
        "created_at": utc_now(),
        "kit_version": (KIT_ROOT / "VERSION").read_text(encoding="utf-8").strip(),
    }


def _fill(
    choice: Choice, request: Request, paths: RunPaths, record: dict[str, Any], code: run_record.Code,
    dataset: Path | None, search_path: str,
) -> None:  # fmt: skip
    """Write everything into the new folder; run.json first, it says what the folder is."""
    write_atomic(paths.run_json, to_json(record), durable=True)
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    paths.logs.mkdir(parents=True, exist_ok=True)
    config.write_resolved(paths.run_dir, choice.config)
    write_new(paths.config_copy, request.config_file.content)
    environment = {
        "RESUMEKIT_RUN_DIR": str(paths.run_dir),
        "RESUMEKIT_RUN_ID": record["run_id"],
        "RESUMEKIT_CONFIG_HASH": record["config_hash"],
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": search_path,
    }
    script = command.as_script(record["argv"], Path(record["cwd"]), environment, record["run_id"])
    write_new(paths.command_sh, script, mode=0o777)
    if code.patch:
        write_new(paths.code_patch, code.patch)
    if dataset is not None:
        paths.dataset.symlink_to(dataset)
    write_new(paths.output_log, b"")
    paths.live_marker.parent.mkdir(exist_ok=True)
    write_atomic(paths.live_marker, b"")


def _take_back(choice: Choice, paths: RunPaths) -> None:
    """Remove the folder that this process has just made, and its claims; nobody else has seen it."""
    shutil.rmtree(paths.run_dir, ignore_errors=True)
    paths.live_marker.unlink(missing_ok=True)
    if choice.parent is not None:
        claims.release_continuation(choice.parent.paths, paths.run_dir.name)
        holder = RunTable(choice.runs_dir).get(choice.candidate.run_id) or choice.parent
        with contextlib.suppress(OSError):
            (holder.paths.claims / f"pin_{choice.step}_{paths.run_dir.name}.json").unlink()


def _refuse_unresumable(choice: Choice) -> None:
    trainer = choice.config["trainer"]
    if choice.candidate and not trainer["resume_args"] and not trainer.get("checkpoint_in"):
        raise InvalidFile(
            "this trainer is never told which checkpoint to load: set trainer.resume_args, "
            "or trainer.checkpoint_in where it reads a fixed name"
        )


def _folder(root: Path, relative: str | None, key: str) -> Path:
    folder = root / relative if relative else root
    if not folder.is_dir():
        raise InvalidFile(f"{key} '{folder}' is not a folder")
    return folder


def _dataset(root: Path, relative: str | None) -> Path | None:
    if relative is None:
        return None
    target = (root / relative).absolute()
    if not target.exists():
        raise InvalidFile(f"the data are not there: data.path is '{target}'")
    return target


def _trainer_python(resolved: dict[str, Any], root: Path) -> str:
    wanted = config.get(resolved, "trainer.python")
    if wanted is None:
        return sys.executable
    return str(root / wanted) if "/" in wanted else shutil.which(wanted) or wanted
