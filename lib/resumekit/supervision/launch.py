"""From a choice to a run folder: claimed, filled and ready for its trainer. Bash starts it.

One Python process decides and writes, because a second one would cost every launch as much again. Killed at any point,
it leaves at most a folder that is listed as `never_started` and a claim that counts for nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..basics import claims, made_folder, processes
from ..basics.errors import Busy, KitError, Refused
from ..basics.files import fsync_directory, fsync_file, to_json, utc_now, write_atomic, write_new
from ..basics.made_folder import MadeFolder, refuse_exchanged
from ..basics.paths import RunPaths
from ..basics.terminal import say
from ..configuration import config
from ..planning import command, preflight
from ..planning.choice import CONTINUE, FRESH, Choice, refuse_continued
from ..planning.code_state import Code
from ..planning.heads import holder_of
from ..planning.request import Request
from ..run_folder import lineage, live_marker, seals
from ..run_folder.runs import Run
from . import run_record

# Fifty commands at once take a tenth of a second each.
START_WAIT_S = 60.0
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
        unsealed: why its records could not be sealed (`run_folder/seals`); None where they are, or no seals are kept.
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

    def answer(self) -> list[str]:
        """Return the fields for Bash, in the order of kit_supervise_one in lib/launcher.sh.

        What the folder is known by and the head are one field: a launcher of before it hands both to the shim as they
        are, and the files of a kit may be copied over while it runs.
        """
        prove = str(self.prove) if self.prove else ""
        return [self.run_id, str(self.paths.run_dir), str(self.cwd), self.token, self.config_hash,
                str(self.paths.output_log), prove, f"{self.made}{self.head or ''}", *self.argv]  # fmt: skip


@contextlib.contextmanager
def one_start_at_a_time(request: Request) -> Iterator[None]:
    """Let one command choose and make its folder at a time, where it may begin anew without being told to.

    Two `run.sh EXP` at once, a person's and cron's, must not both find nothing and both begin.
    """
    if request.fresh or request.goes_back:
        yield
        return
    # The config file is locked: it is there, and nothing has to be made before it is known that a run will be.
    path = request.config_file.path
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(claims.held(_open_to_lock(path), path, START_WAIT_S))
        yield


def _open_to_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks nothing for a writer that may not write
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def prepare(
    choice: Choice, request: Request, ready: preflight.Ready, code: Code, plan: dict[str, Any] | None,
    launcher_pid: int, kit_argv: Sequence[str],
) -> Launch:  # fmt: skip
    """Make the run folder of a choice, with everything in it that is known before the trainer starts.

    Args:
        ready: what preflight found.
        code: the state of the lab's code.
        plan: the fields of resume_plan.json; None for a fresh start.
        launcher_pid: the process that starts the trainer.
        kit_argv: what the person typed, for run.json.

    Raises:
        Refused: another run continues this head already, or it cannot be claimed.
        KitError: something cannot be written; what was made for this run is taken away again.
    """
    launcher = processes.identify(launcher_pid)
    paths, made = _claim_folder(choice)
    launch = None
    try:
        argv = preflight.trainer_argv(choice, paths, ready)
        _claim_parent(choice, paths, launcher)
        digest = config.config_hash(choice.config, request.config_file.schema)
        head = choice.parent.paths.run_dir if choice.relation == CONTINUE and choice.parent else None
        token = os.urandom(16).hex()
        launch = Launch(paths.run_dir.name, paths, ready.cwd, token, digest, _to_prove(choice), head, argv, made)
        refuse_exchanged(paths.run_dir, made)
        launch = _fill(choice, request, launch, ready, code, plan, launcher, kit_argv)
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
    exp_name = str(lineage.RunName(choice.experiment, choice.name))
    if choice.relation == FRESH:
        run_id = lineage.make_run_id(exp_name)
    else:
        run_id = lineage.make_run_id(exp_name, choice.parent.run_id if choice.parent else None, choice.step)
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
        return made_folder.of(os.fstat(descriptor))
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
            f"'{parent.run_id}' cannot be claimed ({error.strerror}): it may belong to somebody else; "
            "name a step with --step to branch from it"
        ) from error
    if choice.is_taken_over:
        from . import take_over  # once in the life of a host

        take_over.write_down(parent, run_id)


def _to_prove(choice: Choice) -> Path | None:
    """Return the checkpoint that is proven beside the trainer's start: where the trainer's own load waits for it."""
    if choice.candidate is None or not choice.config["trainer"]["loads_with_kit"]:
        return None
    return preflight.chosen_file(choice)


def _fill(
    choice: Choice, request: Request, launch: Launch, ready: preflight.Ready, code: Code,
    plan: dict[str, Any] | None, launcher: processes.Identity | None, kit_argv: Sequence[str],
) -> Launch:  # fmt: skip
    """Write everything into the new folder; run.json first, it says what the folder is.

    Returns:
        The launch, with what was written and why it could not be sealed.
    """
    paths = launch.paths
    record = run_record.record(
        choice, request, paths, root=ready.root, cwd=ready.cwd, argv=launch.argv, kit_argv=kit_argv, code=code,
        versions=ready.versions.answer(), config_hash=launch.config_hash, token=launch.token, launcher=launcher,
    )  # fmt: skip
    sealed = {
        paths.run_json.name: to_json(record),
        paths.resolved_json.name: config.as_json(choice.config),
        paths.config_copy.name: request.config_file.content,
    }
    if plan is not None:
        sealed[paths.resume_plan.name] = to_json({"run_id": launch.run_id, "created_at": utc_now(), **plan})
    write_atomic(paths.run_json, sealed[paths.run_json.name], durable=True)
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    paths.logs.mkdir(parents=True, exist_ok=True)
    paths.status.parent.mkdir(parents=True, exist_ok=True)
    config.write_resolved(paths.run_dir, choice.config)
    write_new(paths.config_copy, request.config_file.content)
    if plan is not None:
        write_new(paths.resume_plan, sealed[paths.resume_plan.name])
    environment = {
        "RESUMEKIT_RUN_DIR": str(paths.run_dir),
        "RESUMEKIT_RUN_ID": launch.run_id,
        "RESUMEKIT_CONFIG_HASH": launch.config_hash,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": ready.search_path,
        **({"RESUMEKIT_PLAN": str(paths.resume_plan)} if plan is not None else {}),
    }
    script = command.as_script(launch.argv, ready.cwd, environment, launch.run_id)
    write_new(paths.command_sh, script, mode=0o777)
    if code.patch:
        write_new(paths.code_patch, code.patch)
    if ready.dataset is not None:
        paths.dataset.symlink_to(ready.dataset)
    preflight.copy_checkpoint(choice, paths)
    write_new(paths.output_log, b"", mode=0o644)
    # From what was written, not from what lies there now: other users may be able to write into the folder.
    unsealed = seals.keep(paths, record, sealed, config.get(choice.config, "notify.command"))
    live_marker.make(paths.live_marker)
    _make_durable(paths)
    return launch._replace(made=launch.made._replace(records=seals.digest(sealed)), unsealed=unsealed)


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
