"""From a choice to a run folder: claimed, filled, with its run.json, and ready for its trainer. Bash starts it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..base import claims, file_identity, kit_version, ownership, processes, redaction
from ..base.errors import Busy, KitError, Refused
from ..base.files import fsync_directory, fsync_file, to_json, utc_now, write_atomic, write_new
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.ownership import MadeFolder, refuse_exchanged
from ..base.paths import RunPaths, relative_to_run
from ..base.redaction import redacted_text
from ..base.terminal import say
from ..config import config
from ..run import live_marker, run_names, seals
from ..run.run_folder import Run
from ..run.run_table import run_around
from . import pipeline, preflight, trainer_command
from .baseline import holder_of
from .choice import CONTINUE, FRESH, Choice, refuse_continued
from .code_state import MAX_UNTRACKED, Code
from .pipeline import Planned
from .request import Request

if TYPE_CHECKING:
    from .data_state import DataState
    from .handed_rate import HandedRate


def run_record(
    choice: Choice, request: Request, paths: RunPaths, *, root: Path, cwd: Path, argv: Sequence[str],
    kit_argv: Sequence[str], code: Code, data: DataState | None, versions: Mapping[str, str | None], config_hash: str,
    token: str, launcher: processes.Identity | None, handed: HandedRate | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return run.json's content, by schemas/run.schema.json; paths inside runs/ are relative, so that it may move."""
    resolved, parent = choice.config, choice.parent
    notes = request.notes if request.notes is not None else config.get(resolved, "experiment.notes")
    return {
        "run_id": paths.run_dir.name,
        "experiment": choice.experiment,
        "name": choice.name,
        "notes": notes and redacted_text(notes),
        "parent_run_id": parent.run_id if parent else None,
        "parent_step": choice.step,
        "root_run_id": preflight.root_run_id(choice, paths),
        "checkpoint": _checkpoint(choice, paths),
        "init_from": choice.init.as_fields() if choice.init else None,
        "relation": choice.relation,
        "recovery": choice.recovery.as_fields() if choice.recovery else None,
        "handed_rate": handed.as_fields() if handed else None,
        "config_hash": config_hash,
        "config_hash_version": config.HASH_VERSION,
        "resolved_sha256": file_identity.sha256(config.as_json(resolved)),
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
            "redacted": len(code.redacted),
        },
        "code": {
            "changed": code.changed, "files": code.files,
            "untracked": None if code.left_out is None else list(code.left_out[:MAX_UNTRACKED]),
            "untracked_count": None if code.left_out is None else len(code.left_out),
        },
        "data": data.as_fields() if data else None,
        "host": processes.host_name(),
        "boot_id": processes.boot_id(),
        "machine_id": processes.machine_id(),
        "pid_namespace": processes.pid_namespace(),
        "token": token,
        "launcher": launcher.as_fields() if launcher else None,
        "versions": dict(versions),
        "environment": run_environment(resolved["trainer"]["env"]),
        "scheduler": redaction.scheduler_variables(os.environ),
        "seed": config.get(resolved, "training.seed"),
        "created_at": utc_now(),
        "kit_version": kit_version.version(),
        "kit_digest": kit_version.digest(),
    }  # fmt: skip


def run_environment(extra_names: Sequence[str]) -> dict[str, Any]:
    """Return the recorded part of the environment; of `trainer.env` the names that are set, never the values."""
    kept = {
        name: redacted_text(sys.executable if name == "PYTHON" else os.environ[name])
        for name in sorted(os.environ)
        if redaction.is_recorded_variable(name)
    }
    return {"values": kept, "passed": [name for name in extra_names if name in os.environ]}


# From a decided start to a run folder: claimed, filled and ready for its trainer. Bash starts it.
#
# One Python process decides and writes, because a second one would cost every launch as much again. Killed at any
# point, it leaves at most a folder that is listed as `never_started` and a claim that counts for nothing.

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Launch(NamedTuple):
    """A run that is ready to start.

    Args:
        run_id, paths: the run and its files.
        cwd: the trainer's working folder.
        token: its run token.
        config_hash: 64 hex digits.
        prove: the checkpoint whose digest is to be computed beside the trainer's start, or None.
        head: the folder of the run that this one continues, or None; its claim is checked once more at the start.
        argv: the trainer's command.
        made: by what the processes of the run know its folder again.
        unsealed: why its records could not be sealed (`run/seals`); None where they are, or no seals are kept.
        unheld: the sentence that says why the checkpoint could not be held (`holding`); None where that is as planned.
    """

    run_id: str
    paths: RunPaths
    cwd: Path
    token: str
    config_hash: str
    prove: Path | None
    head: Path | None
    argv: list[str]
    made: MadeFolder
    unsealed: str | None = None
    unheld: str | None = None


def start(
    request: Request, choose: Callable[[Request], Choice], prog: str, launcher_pid: int, kit_argv: Sequence[str]
) -> Launch:
    """Decide what a user's command comes to, say it, and make the run folder.

    Args:
        choose: `choice.choose_start` or `choice.choose_resume`.
        prog: the command, whose name is put before what is said.
        launcher_pid, kit_argv: as in `prepare`.

    Raises:
        KitError: as `pipeline.decide` and `prepare`.
    """
    with pipeline.one_start_at_a_time(request):
        planned = pipeline.decide(request, choose, pipeline.of_a_user(request))
        choice, plan = planned.choice, planned.plan
        agreed = plan.consents if plan is not None else choice.consents  # what --accept was said to stands on record
        said = (*choice.said, *(f"accepted: {sentence}" for sentence in agreed), choice.headline)
        for sentence in (*said, *(plan.said if plan else ())):
            say(prog, sentence)
        launch = prepare(planned, launcher_pid, kit_argv)
    _, code = planned.startable
    unsealed = f"its records could not be sealed ({launch.unsealed}): nothing takes it up by itself"
    sentences = (launch.unheld, unsealed if launch.unsealed else None)
    for sentence in (*code.said, *filter(None, sentences), f"run {launch.run_id}"):
        say(prog, sentence)
    return launch


def prepare(planned: Planned, launcher_pid: int, kit_argv: Sequence[str]) -> Launch:
    """Make the run folder of a decided start, with everything in it that is known before the trainer starts.

    Args:
        planned: what `pipeline.decide` returns.
        launcher_pid: the process that starts the trainer.
        kit_argv: the command of the kit, for run.json.

    Raises:
        Refused: another run continues this head already, or it cannot be claimed.
        KitError: something cannot be written; what was made for this run is taken away again.
    """
    choice, request = planned.choice, planned.request
    ready, _ = planned.startable
    launcher = processes.identify(launcher_pid)
    paths, made = _claim_folder(choice)
    launch = None
    try:
        handed = planned.plan.handed if planned.plan else None
        _claim_parent(choice, paths, launcher)
        unheld, loaded = _hold(choice, paths)
        argv = preflight.trainer_argv(choice, paths, ready, handed.args if handed else (), loaded)
        digest = config.config_hash(choice.config, request.config_file.schema)
        head = choice.parent.paths.run_dir if choice.relation == CONTINUE and choice.parent else None
        token = os.urandom(16).hex()
        launch = Launch(
            run_id=paths.run_dir.name, paths=paths, cwd=ready.cwd, token=token, config_hash=digest,
            prove=_to_prove(choice), head=head, argv=argv, made=made, unheld=unheld,
        )  # fmt: skip
        refuse_exchanged(paths.run_dir, made)
        launch = _fill(planned, launch, launcher, kit_argv)
        refuse_exchanged(paths.run_dir, made)
    except BaseException as error:
        _take_back(choice, paths, launch, made)
        if isinstance(error, OSError):
            raise KitError(f"the run folder '{paths.run_dir}' cannot be written: {error.strerror}") from error
        raise
    return launch


def _claim_folder(choice: Choice) -> tuple[RunPaths, MadeFolder]:
    """Make the run's folder under a name that is free; plain mkdir is what makes it ours alone.

    Returns:
        (the run's files, by what its folder is known from now on).
    """
    exp_name = str(run_names.RunName(choice.experiment, choice.name))
    if choice.relation == FRESH:
        run_id = run_names.make_run_id(exp_name)
    else:
        run_id = run_names.make_run_id(exp_name, choice.parent.run_id if choice.parent else None, choice.step)
    runs_dir = choice.table.runs_dir
    try:
        _make_runs_dir(runs_dir)
        for number in range(1, 10000):
            paths = preflight.run_paths(choice, run_id if number == 1 else f"{run_id}-{number}")
            if live_marker.is_there(paths):
                continue  # of a run whose folder was moved, and which may still train under this id
            with contextlib.suppress(FileExistsError):
                paths.run_dir.mkdir()
                return paths, _just_made(paths.run_dir)
    except OSError as error:
        raise KitError(f"no run folder can be made in '{runs_dir}': {error.strerror}") from error
    raise KitError(f"no free name for '{run_id}' in '{runs_dir}'")


def _just_made(folder: Path) -> MadeFolder:
    """Return what the folder is that this process has just made; OSError where another one lies there by now."""
    descriptor = os.open(folder, _FOLDER)
    try:
        if os.listdir(descriptor):
            raise OSError(errno.ESTALE, "it was exchanged as soon as it was made", str(folder))
        return ownership.made_folder_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _make_runs_dir(runs_dir: Path) -> None:
    """Make the folder of all runs if it is not there, and tell the lab's git to leave it alone, as pytest's cache does.

    One that is there is the lab's to decide on.
    """
    is_new = not os.path.lexists(runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    if is_new:
        with contextlib.suppress(OSError):
            write_new(runs_dir / ".gitignore", b"# made by resumekit: checkpoints are not for git\n*\n")


def _claim_parent(choice: Choice, paths: RunPaths, launcher: processes.Identity | None) -> None:
    """Claim the head that is continued; pin the step that the new run stands on."""
    parent, candidate = choice.parent, choice.candidate
    if parent is None or choice.step is None:
        return
    if choice.relation == CONTINUE:
        _claim_head(choice, parent, paths.run_dir.name, launcher)
    if candidate is None:
        return
    with contextlib.suppress(OSError, Refused):  # a folder we may not write to is not pruned by a run of ours either
        claims.pin_step(holder_of(candidate, parent, choice.table).paths, choice.step, paths.run_dir.name)
    if not os.path.lexists(candidate.path):
        raise Refused(f"'{candidate.path}' was pruned while this resume was being made: try again")


def _claim_head(choice: Choice, parent: Run, run_id: str, launcher: processes.Identity | None) -> None:
    if launcher is None:
        raise Busy("the launcher that asks has ended")  # the next who asks may have one
    try:
        claims.claim_continuation(
            parent.paths, run_id, launcher, choice.table.has_started, is_taken_over=choice.is_taken_over
        )
    except OSError as error:
        refuse_continued(parent, choice.table, is_taken_over=choice.is_taken_over)
        raise Refused(
            f"'{parent.run_id}' cannot be claimed ({error.strerror}): it may belong to another user; "
            "resume.sh --step N branches from it"
        ) from error
    if choice.is_taken_over:
        from ..process import stop_request  # once in the life of a host

        stop_request.record_take_over(parent, run_id)


def _hold(choice: Choice, paths: RunPaths) -> tuple[str | None, Path | None]:
    """Hold what may be removed; return (why that could not be done, what the trainer loads instead of the chosen)."""
    if choice.candidate is None:
        return None, None
    from . import holding  # late: a first start holds nothing

    return holding.hold(choice, paths), holding.for_trainer(choice, paths)


def _checkpoint(choice: Choice, paths: RunPaths) -> str | None:
    """Return the chosen checkpoint for run.json: where it lay first, also where the parent holds it."""
    if choice.candidate is None:
        return None
    from ..run import held

    path = choice.candidate.path.absolute()
    return relative_to_run(held.origin_of(path, run_around(choice.table, path)), paths.run_dir)


def _to_prove(choice: Choice) -> Path | None:
    """Return the checkpoint that is proven beside the trainer's start: where the trainer's own load waits for it."""
    if (choice.candidate is None and choice.init is None) or not choice.config["trainer"]["loads_with_kit"]:
        return None
    return preflight.chosen_file(choice)


def _fill(planned: Planned, launch: Launch, launcher: processes.Identity | None, kit_argv: Sequence[str]) -> Launch:
    """Write everything into the new folder; run.json first, it says what the folder is.

    Returns:
        The launch, with what was written and why it could not be sealed.
    """
    choice, request, paths = planned.choice, planned.request, launch.paths
    ready, code = planned.startable
    plan = planned.plan.as_fields() if planned.plan is not None else None
    record = run_record(
        choice, request, paths, root=ready.root, cwd=ready.cwd, argv=launch.argv, kit_argv=kit_argv, code=code,
        data=ready.data, versions=ready.versions.answer(), config_hash=launch.config_hash, token=launch.token,
        launcher=launcher, handed=planned.plan.handed if planned.plan else None,
    )  # fmt: skip
    sealed = {
        paths.run_json.name: to_json(record),
        paths.resolved_json.name: config.as_json(choice.config),
        paths.config_copy.name: request.config_file.content,
    }
    if plan is not None:
        sealed[paths.resume_plan.name] = to_json({"run_id": launch.run_id, "created_at": utc_now(), **plan})
    write_atomic(paths.run_json, sealed[paths.run_json.name], durable=True)
    for folder in (paths.checkpoints, paths.logs, paths.status.parent):
        folder.mkdir(parents=True, exist_ok=True)
    config.write_resolved(paths.run_dir, choice.config)
    write_new(paths.config_copy, request.config_file.content)
    if plan is not None:
        write_new(paths.resume_plan, sealed[paths.resume_plan.name])
    environment = _environment(launch, record["root_run_id"], ready.search_path, has_plan=plan is not None)
    write_new(
        paths.command_sh, trainer_command.as_script(launch.argv, ready.cwd, environment, launch.run_id), mode=0o777
    )
    if code.patch:
        write_new(paths.code_patch, code.patch, mode=0o600)  # a secret in no known form is in it
    if ready.dataset is not None:
        paths.dataset.symlink_to(ready.dataset)
    if ready.data is not None:
        write_new(paths.data_files, ready.data.as_list())
    preflight.copy_checkpoint(choice, paths)
    write_new(paths.output_log, b"", mode=0o644)
    # From what was written, not from what lies there now: other users may be able to write into the folder.
    unsealed = seals.keep(paths, record, sealed, config.get(choice.config, "notify.command"))
    live_marker.make(paths.live_marker)
    _make_durable(paths)
    return launch._replace(made=launch.made._replace(records=seals.digest(sealed)), unsealed=unsealed)


def _environment(launch: Launch, root_run_id: str, search_path: str, *, has_plan: bool) -> dict[str, str]:
    """Return what command.sh sets, as kit_run_trainer in lib/launcher.sh does."""
    return {
        "RESUMEKIT_RUN_DIR": str(launch.paths.run_dir),
        "RESUMEKIT_RUN_ID": launch.run_id,
        "RESUMEKIT_ROOT_RUN_ID": root_run_id,
        "RESUMEKIT_CONFIG_HASH": launch.config_hash,
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": os.environ.get("PYTHONUTF8") or "1",
        **({"PYTHONPATH": search_path} if search_path else {}),
        **({"RESUMEKIT_PLAN": str(launch.paths.resume_plan)} if has_plan else {}),
    }


def _make_durable(paths: RunPaths) -> None:
    """Let survive a power cut, before there is a trainer, what a recovery of this run reads, and every name.

    A run that is known to have started, and whose config or plan is gone, could not be taken up, or at another rate.
    """
    for path in (paths.resolved_json, paths.config_copy, paths.resume_plan):
        if os.path.lexists(path):
            fsync_file(path)
    fsync_directory(paths.run_dir)
    fsync_directory(paths.run_dir.parent)


def _take_back(choice: Choice, paths: RunPaths, launch: Launch | None, made: MadeFolder) -> None:
    """Remove the folder that this process has just made, its seal and its claims; no other process has seen it."""
    if not _remove(paths.run_dir, made):
        _say(f"'{paths.run_dir}' stays as it is: it could not be removed, or is not the folder made for this run")
    if launch is not None:
        seals.release({"run_id": launch.run_id, "token": launch.token})
    with contextlib.suppress(OSError):
        live_marker.remove(paths)
    run_id = paths.run_dir.name
    if choice.parent is not None and choice.relation == CONTINUE:
        claims.release_continuation(choice.parent.paths, run_id)
    if choice.parent is not None and choice.candidate is not None and choice.step is not None:
        claims.release_pin(holder_of(choice.candidate, choice.parent, choice.table).paths, choice.step, run_id)


def _remove(folder: Path, made: MadeFolder) -> bool:
    """Remove the folder that was made, and no other one that was moved to its name; False where something is left.

    What lies in it is removed through its descriptor, and rmdir takes away what is empty alone.
    """
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        return not os.path.lexists(folder)
    try:
        if not made.is_at(os.fstat(descriptor)):
            return False
        for name in os.listdir(descriptor):
            _remove_entry(f"/proc/self/fd/{descriptor}/{name}")
        os.rmdir(folder)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove_entry(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil  # late: a start that succeeds removes nothing

        shutil.rmtree(path)
    else:
        os.unlink(path)


def _say(sentence: str) -> None:
    say("resumekit", sentence)
