"""What a start needs beside its choice, checked before anything is made: folders, data, program, command line.

Reads the file system; writes nothing, so that --dry-run finds what the start would find.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..base.errors import DiskFull, InvalidFile, UsageError
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import KIT_ROOT, RunPaths, checkpoint_name, unexpanded
from ..base.redaction import secret_line, secret_word
from ..checkpoint import layout
from ..config import config
from . import code_state, interpreter, trainer_command
from .choice import Choice
from .request import Request, root_of

if TYPE_CHECKING:
    from .data_state import DataState

# Room that a launch wants to find: a full disk is refused before there is half a run folder.
MIN_FREE_BYTES = 1 << 20


class Ready(NamedTuple):
    """What was found.

    Args:
        root: the folder that relative paths of the config begin at.
        cwd: the trainer's working folder.
        dataset: where data.path leads, or None.
        python: what `{python}` stands for.
        search_path: the trainer's PYTHONPATH.
        versions: the question for the versions of the trainer's interpreter, under way.
        data: the files that data.path leads to; None where there is none, or they were not looked at.
        may_start: whether the trainer and its interpreter may be started; not before a person has agreed to words
            of another user's, and never by a dry run of such.
    """

    root: Path
    cwd: Path
    dataset: Path | None
    python: str
    search_path: str
    versions: interpreter.Versions | interpreter.NotAsked = interpreter.NotAsked()
    may_start: bool = True
    data: DataState | None = None


def check(choice: Choice, request: Request) -> Ready:
    """Look for everything that a start of this choice needs.

    Raises:
        UsageError: the command line carries what looks like a secret.
        InvalidFile: data, folders or a command of the config cannot be used, or it holds what looks like a secret.
        ToolMissing: the trainer's program is not there.
    """
    root = root_of(choice.config, request.config_file)
    _refuse_secrets(request)
    _refuse_secrets_in_the_config(choice, request)
    ready = Ready(
        root,
        _folder(root, config.get(choice.config, "trainer.cwd")),
        _dataset(root, config.get(choice.config, "data.path")),
        interpreter.configured_python(choice.config, root),
        interpreter.search_path(),
    )
    _refuse_unresumable(choice)
    interpreter.check_helpers(choice.config)
    # A placeholder that there is not is found by a person's start, not by the night's first cut.
    argv = trainer_argv(choice, run_paths(choice, "RUN_ID"), ready, trainer_command.lr_words(choice.config, "0"))
    search_path = os.environ.get("PATH", os.defpath)
    if not choice.config["trainer"].get("wrap"):  # what lies behind a wrapper is not to be seen from here
        interpreter.check_override(ready.python, search_path)
    trainer_command.check_program(argv, ready.cwd, search_path, interpreter.python_origin(choice.config))
    if choice.recovery is None:  # a missing mailer must not keep a run from going on in the night
        trainer_command.check_notifier(config.get(choice.config, "notify.command"), root, search_path)
    _refuse_full_disk(choice.table.runs_dir)
    if choice.consents and not (request.is_agreed(choice.consents) and not request.is_dry_run):
        return ready._replace(versions=interpreter.NotAsked(), may_start=False)
    asked_as = interpreter.asked_as(argv, ready.cwd, ready.python, choice.config)
    is_wrapped = interpreter.is_wrapped(choice.config, argv)
    ready = ready._replace(versions=interpreter.Versions(asked_as, ready.search_path, is_wrapped=is_wrapped))
    return ready._replace(data=_data(choice, ready.dataset))


def run_paths(choice: Choice, run_id: str) -> RunPaths:
    """Return where the files of the new run lie."""
    names = choice.config["paths"]
    return RunPaths(choice.table.runs_dir / run_id, names["checkpoints"], names["logs"], names["status"])


def checkpoint_for_trainer(choice: Choice, paths: RunPaths) -> Path | None:
    """Return the checkpoint that the trainer is told of: the chosen file, or its copy under `trainer.checkpoint_in`."""
    if not _is_resume(choice):
        return None
    wanted = config.get(choice.config, "trainer.checkpoint_in")
    return chosen_file(choice) if wanted is None else paths.run_dir / wanted


def chosen_file(choice: Choice) -> Path:
    """Return the file of a choice; for the best one its step's own file, which is the same as long as it is there.

    The best name moves on when a live parent has a new best, its step's file does not.
    """
    candidate = choice.chosen
    path = candidate.path.absolute()
    if choice.parent and path.name == choice.parent.form.best_pattern and candidate.step is not None:
        own = path.with_name(checkpoint_name(choice.parent.form.step_pattern, candidate.step))
        if layout.is_same(own, path):
            return own
    return path


def trainer_argv(
    choice: Choice, paths: RunPaths, ready: Ready, handed: Sequence[str] = (), held: Path | None = None
) -> list[str]:  # fmt: skip
    """Return the trainer's command line in the run folder that `paths` names.

    Args:
        handed: the words that hand a cut rate over.
        held: the checkpoint that it loads in the place of the chosen one; None for that.
    """
    values = {
        "run_id": paths.run_dir.name,
        "root_run_id": root_run_id(choice, paths),
        "parent_run_id": choice.parent.run_id if choice.parent else "",
        "parent_step": "" if choice.step is None else str(choice.step),
        "run_dir": str(paths.run_dir),
        "checkpoints_dir": str(paths.checkpoints),
        "logs_dir": str(paths.logs),
        "heartbeat_json": str(paths.heartbeat_json),
        "config_yaml": str(paths.resolved_yaml),
        "config_json": str(paths.resolved_json),
        "checkpoint": str(held or checkpoint_for_trainer(choice, paths) or ""),
        "init_from": str(chosen_file(choice)) if choice.init else "",
        "step": str(choice.step or 0),
        "python": ready.python,
        "kit": str(KIT_ROOT),
    }
    return trainer_command.build_argv(
        choice.config,
        values,
        is_resume=_is_resume(choice),
        is_init=choice.init is not None and not _is_resume(choice),
        handed=handed,
    )


def _is_resume(choice: Choice) -> bool:
    """Whether the trainer is told of a checkpoint by its resume_args: of a base, where its plan says what to load."""
    return choice.candidate is not None or (choice.init is not None and choice.config["trainer"]["loads_with_kit"])


def _is_told_of_a_base(trainer: dict[str, Any]) -> bool:
    words = [*trainer["command"], *(trainer.get("init_args") or ())]
    return any("init_from" in trainer_command.placeholders(word) for word in words)


def root_run_id(choice: Choice, paths: RunPaths) -> str:
    """Return the id of the run that the new run's lineage begins with: its own where it has no parent."""
    return choice.table.root_id(choice.parent) if choice.parent else paths.run_dir.name


def code_of(choice: Choice, ready: Ready, snapshot: code_state.Snapshot) -> code_state.Code:
    """Return the state of the code that a start of this choice would train with.

    Args:
        ready: what `check` found.
        snapshot: what git is being asked about `paths.root`, under way since the command began.
    """
    from . import code_scope, command_files  # late: `check` alone has no use for them

    argv = trainer_argv(choice, run_paths(choice, "RUN_ID"), ready)
    files = command_files.named_files(argv, ready.cwd, ready.root, choice.table.runs_dir)
    if ready.root != snapshot.root:
        snapshot = code_state.start_snapshot(ready.root)
    return code_state.finish_snapshot(snapshot, code_scope.of(choice.config, ready.root), files)


def _refuse_secrets(request: Request) -> None:
    for words, origin in ((request.extra_args or (), "behind --"), (request.settings, "with --set")):
        if found := secret_word(words):
            raise UsageError(
                f"'{found}' ({origin}) looks like a secret, and would be written into the run folder: "
                "give it to the trainer in an environment variable instead"
            )


def _refuse_secrets_in_the_config(choice: Choice, request: Request) -> None:
    file = request.config_file
    line = secret_line(file.content)
    found = f"line {line}" if line else _secret_leaf(choice.config)
    if found:
        raise InvalidFile(
            f"{found} of the config '{file.path}' looks like a secret, and would be copied into the run folder: "
            "give it to the trainer in an environment variable instead"
        )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _secret_leaf(tree: dict[str, Any]) -> str | None:
    """Name the first key of a config whose value looks like a secret, in quotes; None where none does."""
    words = {key: [str(word) for word in value] if isinstance(value, list) else [f"{key}={value}"]
             for key, value in _leaves(tree, "")}  # fmt: skip
    if secret_word([word for of_key in words.values() for word in (*of_key, "")]) is None:  # one look at all of them
        return None
    return next((f"'{key}'" for key, of_key in words.items() if secret_word(of_key)), None)


def _refuse_unresumable(choice: Choice) -> None:
    trainer = choice.config["trainer"]
    if choice.init and not (trainer["resume_args"] if trainer["loads_with_kit"] else _is_told_of_a_base(trainer)):
        raise InvalidFile(
            "this trainer is never told whose weights to begin with (run.sh --init-from): set trainer.init_args, such "
            "as [--init_from, '{init_from}']"
        )
    if choice.candidate and not trainer["resume_args"] and not trainer.get("checkpoint_in"):
        raise InvalidFile(
            "this trainer is never told which checkpoint to load: set trainer.resume_args, "
            "or trainer.checkpoint_in where it reads a fixed name"
        )


def _refuse_full_disk(runs_dir: Path) -> None:
    """Raise DiskFull where the runs folder's disk has no room; what cannot be asked is found out by writing."""
    folder = runs_dir
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        free = os.statvfs(folder)
    except OSError:
        return
    if free.f_bavail * free.f_frsize < MIN_FREE_BYTES or (free.f_files and not free.f_favail):
        what = f"{free.f_bavail * free.f_frsize:,} bytes" if free.f_favail or not free.f_files else "no inodes"
        raise DiskFull(f"the disk of '{runs_dir}' is full ({what} left): nothing was started; make room there")


def _folder(root: Path, relative: str | None) -> Path:
    folder = root / relative if relative else root
    if not os.path.isdir(folder):
        origin = "trainer.cwd" if relative else "paths.root"
        raise InvalidFile(f"{origin} '{folder}' is not a folder{unexpanded(relative or '')}")
    return folder


def _dataset(root: Path, relative: str | None) -> Path | None:
    if relative is None:
        return None
    target = Path(os.path.abspath(root / relative))
    if not target.exists():
        leads_to = f", a link to '{os.readlink(target)}'" if target.is_symlink() else ""
        raise InvalidFile(f"the data are not there: data.path is '{target}'{leads_to}{unexpanded(relative)}")
    return target


def _data(choice: Choice, dataset: Path | None) -> DataState | None:
    if dataset is None:
        return None
    from . import data_state  # late: data of a package, the example's say, lie in no folder

    # What a recovery waits for has to be bounded.
    reads = config.get(choice.config, "data.fingerprint") == data_state.CONTENT and choice.recovery is None
    return data_state.look(dataset, reads=reads)
