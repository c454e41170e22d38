"""From a decided start to a run folder: claimed, filled and ready for its trainer. Bash starts it.

One Python process decides and writes, because a second one would cost every launch as much again. Killed at any
point, it leaves at most a folder that is listed as `never_started` and a claim that counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..base import claims, processes
from ..base.errors import Busy, KitError, Refused
from ..base.files import UnreadableFile, fsync_directory, fsync_file, to_json, utc_now, write_atomic, write_new
from ..base.imports import Any, NamedTuple
from ..base.ownership import MadeFolder, refuse_exchanged
from ..base.paths import RunPaths
from ..base.terminal import say
from ..checkpoint import transfer
from ..checkpoint.form import of as form_of
from ..config import config
from ..run import live_marker, new_folder, run_names, seals
from ..run.run_folder import Run
from . import pipeline, preflight, run_record, torchrun, trainer_command
from .choice import CONTINUE, FRESH, Choice
from .pipeline import Planned
from .request import Request


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
        watch_every_s: `abort.watch_every_s`.
        ranks_grace_s: for how long torchrun is to wait for its ranks (`torchrun.ranks_grace_s`); None for its own.
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
    watch_every_s: float | None = None
    ranks_grace_s: int | None = None


def start(
    request: Request, choose: Callable[[Request], Choice], prog: str, launcher_pid: int, kit_argv: Sequence[str]
) -> Launch:
    """Decide what a user's command comes to, say it, and make the run folder.

    Args:
        choose: `choice.choose_start` or `choice.choose_resume`.
        prog: the command, whose name is put before what is said.
        launcher_pid: the process that starts the trainer.
        kit_argv: as in `prepare`.

    Raises:
        KitError: as `pipeline.decide` and `prepare`.
    """
    with pipeline.one_start_at_a_time(request):
        planned = pipeline.decide(request, choose, pipeline.of_a_user(request))
        choice, plan = planned.choice, planned.plan
        agreed = planned.consents  # what --accept was said to stands on record
        said = (*choice.said, *(f"accepted: {sentence}" for sentence in agreed), choice.headline)
        for sentence in (*said, *(plan.said if plan else ())):
            say(prog, sentence)
        launcher = processes.identify(launcher_pid)
        launch = prepare(planned, launcher, kit_argv)
    _, code = planned.startable
    unsealed = f"its records could not be sealed ({launch.unsealed}): nothing takes it up by itself"
    sentences = (launch.unheld, unsealed if launch.unsealed else None)
    for sentence in (*code.said, *filter(None, sentences), f"run {launch.run_id}"):
        say(prog, sentence)
    return launch


def prepare(planned: Planned, launcher: processes.Identity | None, kit_argv: Sequence[str]) -> Launch:
    """Make the run folder of a decided start, with everything in it that is known before the trainer starts.

    Args:
        planned: what `pipeline.decide` returns.
        launcher: the process that starts the trainer; None where it has ended.
        kit_argv: the command of the kit, for run.json.

    Raises:
        Refused: another run continues this head already, or it cannot be claimed.
        KitError: something cannot be written; what was made for this run is taken away again.
    """
    choice = planned.choice
    wanted = preflight.run_paths(choice, _new_run_id(choice))
    paths, made = new_folder.make(wanted)
    launch = None
    try:
        _claim_parent(choice, paths, launcher)
        unheld, loaded = _hold(choice, paths)
        launch = _launch(planned, paths, made, loaded)._replace(unheld=unheld)
        refuse_exchanged(paths.run_dir, made)
        launch = _fill(planned, launch, launcher, kit_argv)
        refuse_exchanged(paths.run_dir, made)
    except BaseException as error:
        _take_back(choice, paths, launch, made)
        if isinstance(error, OSError):
            raise KitError(f"the run folder '{paths.run_dir}' cannot be written: {error.strerror}") from error
        raise
    return launch


def _new_run_id(choice: Choice) -> str:
    exp_name = str(run_names.RunName(choice.experiment, choice.name))
    if choice.relation == FRESH:
        return run_names.make_run_id(exp_name)
    return run_names.make_run_id(exp_name, choice.parent.run_id if choice.parent else None, choice.step)


def _launch(planned: Planned, paths: RunPaths, made: MadeFolder, loaded: Path | None) -> Launch:
    """Return the launch of a decided start; `loaded` is the checkpoint that the trainer loads, None for the chosen."""
    choice, handed = planned.choice, planned.plan.handed if planned.plan else None
    ready, _ = planned.startable
    # Only such a trainer waits, in its own load, for the proof of its checkpoint.
    is_proven = (choice.candidate or choice.init) and choice.config["trainer"]["loads_with_kit"]
    return Launch(
        run_id=paths.run_dir.name,
        paths=paths,
        cwd=ready.cwd,
        token=os.urandom(16).hex(),
        config_hash=config.config_hash(choice.config, planned.request.config_file.schema),
        prove=preflight.chosen_file(choice) if is_proven else None,
        head=choice.parent.paths.run_dir if choice.relation == CONTINUE and choice.parent else None,
        argv=preflight.trainer_argv(choice, paths, ready, handed.args if handed else (), loaded),
        made=made,
        watch_every_s=config.get(choice.config, "abort.watch_every_s"),
        ranks_grace_s=torchrun.ranks_grace_s(choice.config),
    )


def _claim_parent(choice: Choice, paths: RunPaths, launcher: processes.Identity | None) -> None:
    """Claim the head that is continued; pin the step that the new run stands on."""
    parent, candidate = choice.parent, choice.candidate
    if parent is None or choice.step is None:
        return
    if choice.relation == CONTINUE:
        _claim_head(choice, parent, paths.run_dir.name, launcher)
    if candidate is None or (holder := choice.holder) is None:
        return
    with contextlib.suppress(OSError, Refused):  # a folder we may not write to is not pruned by a run of ours either
        claims.pin_step(holder.paths, choice.step, paths.run_dir.name)
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
        claims.refuse_continued(parent.paths, choice.table.has_started, is_taken_over=choice.is_taken_over)
        raise Refused(
            f"'{parent.run_id}' cannot be claimed ({error.strerror}): it may belong to another user; "
            "resume.sh --step N branches from it"
        ) from error
    if choice.is_taken_over or isinstance(parent.record.get("scheduler"), dict):
        from ..process import stop_request  # once in the life of a host

        stop_request.record_take_over(parent, run_id, has_word=choice.is_taken_over)


def _hold(choice: Choice, paths: RunPaths) -> tuple[str | None, Path | None]:
    """Hold what may be removed; return (why that could not be done, what the trainer loads instead of the chosen)."""
    if choice.candidate is None:
        return None, None
    from . import holding  # late: a first start holds nothing

    return holding.hold(choice, paths)


def _fill(planned: Planned, launch: Launch, launcher: processes.Identity | None, kit_argv: Sequence[str]) -> Launch:
    """Write everything into the new folder; run.json first, it says what the folder is.

    Returns:
        The launch, with what was written and why it could not be sealed.
    """
    choice, paths = planned.choice, launch.paths
    ready, code = planned.startable
    record = run_record.record_of(planned, launch, launcher, kit_argv)
    environment = _environment(launch, record["root_run_id"], ready.search_path, has_plan=planned.plan is not None)
    command = trainer_command.as_script(launch.argv, ready.cwd, environment, launch.run_id)
    data_files = ready.data.as_list() if ready.data is not None else None
    sealed = _sealed(planned, launch, record)
    write_atomic(paths.run_json, sealed[paths.run_json.name], durable=True)
    for folder in (paths.checkpoints, paths.logs, paths.status.parent):
        folder.mkdir(parents=True, exist_ok=True)
    config.write_resolved(paths.run_dir, choice.config)
    for path in (paths.config_copy, paths.resume_plan):
        if path.name in sealed:
            write_new(path, sealed[path.name])
    write_new(paths.command_sh, command, mode=0o777)
    if code.patch:
        write_new(paths.code_patch, code.patch, mode=0o600)  # a secret in no known form is in it
    if ready.dataset is not None:
        paths.dataset.symlink_to(ready.dataset)
    if data_files is not None:
        write_new(paths.data_files, data_files)
    _copy_checkpoint(choice, paths)
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
        **({torchrun.SHUTDOWN_TIMEOUT: str(launch.ranks_grace_s)} if launch.ranks_grace_s else {}),
        **({"PYTHONPATH": search_path} if search_path else {}),
        **({"RESUMEKIT_PLAN": str(launch.paths.resume_plan)} if has_plan else {}),
    }


def _sealed(planned: Planned, launch: Launch, record: dict[str, Any]) -> dict[str, bytes]:
    """Return the content of each file that a seal is about (`seals.records`), by its name."""
    paths = launch.paths
    contents = {
        paths.run_json.name: to_json(record),
        paths.resolved_json.name: config.as_json(planned.choice.config),
        paths.config_copy.name: planned.request.config_file.content,
    }
    if planned.plan is not None:
        plan = {"run_id": launch.run_id, "created_at": utc_now(), **planned.plan.as_fields()}
        contents[paths.resume_plan.name] = to_json(plan)
    return contents


def _copy_checkpoint(choice: Choice, paths: RunPaths) -> None:
    """Put the chosen checkpoint where a trainer that resumes from a fixed name looks for it.

    A copy, not a link: the trainer may write into it, and the parent's file must stay as it is.
    """
    target = preflight.checkpoint_for_trainer(choice, paths)
    if target is None or choice.candidate is None or target == (chosen := preflight.chosen_file(choice)):
        return
    own = form_of(choice.config.get("checkpoint"))
    form = choice.parent.form if choice.parent else own
    follow_links = form.follow_links or own.follow_links
    try:
        transfer.copy_below(chosen, paths.run_dir, target, form.companions_of(chosen.name), follow_links=follow_links)
    except UnreadableFile as error:
        raise KitError(f"the checkpoint '{chosen}' cannot be copied: {error}") from error


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
    if not new_folder.remove(paths.run_dir, made):
        _say(f"'{paths.run_dir}' stays as it is: it could not be removed, or is not the folder made for this run")
    if launch is not None:
        seals.release({"run_id": launch.run_id, "token": launch.token})
    with contextlib.suppress(OSError):
        live_marker.remove(paths)
    run_id = paths.run_dir.name
    if choice.parent is not None and choice.relation == CONTINUE:
        claims.release_continuation(choice.parent.paths, run_id)
    if choice.candidate is not None and choice.step is not None and (holder := choice.holder) is not None:
        claims.release_pin(holder.paths, choice.step, run_id)


def _say(sentence: str) -> None:
    say("resumekit", sentence)
