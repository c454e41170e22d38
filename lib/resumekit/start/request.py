"""What was asked for on the command line of run.sh, resume.sh or runs.sh, and the config file that it is about.

bin/*.sh hand every option on as one word (`--name=VALUE`), so that reading them takes no parser library. Reads the
config file; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..base import paths
from ..base.errors import InvalidFile, UsageError
from ..base.imports import Any, NamedTuple
from ..base.paths import STEP_DIGITS
from ..config import config, settings
from ..config.config import ConfigFile
from ..config.yaml_scalars import show
from ..run.job_folder import JobFolder

# The process id of the launcher that reads the answer; a launcher of version 0.1.0 gives it by the second name.
_LAUNCHER, _OLD_LAUNCHER = "answer-to", "launcher-pid"
_VALUES = (
    "experiment", "config", "runs", "name", "notes", "step", "checkpoint", "resume", "from", "init-from",
    "job", "agreed", _LAUNCHER, _OLD_LAUNCHER,
)  # fmt: skip
_SWITCHES = ("fresh", "best", "reresolve", "dry-run", "json", "accept", "watch", "take-over")
_NAMES_A_CHECKPOINT = ("step", "best", "checkpoint", "resume", "init-from")


class Request(NamedTuple):
    """What was asked for; see bin/run.sh and bin/resume.sh.

    Args:
        experiment: an experiment's id, or a run id.
        config_file: config.yaml, or what --config named.
        base: the config without any experiment.
        root: the folder that relative paths of the base begin at.
        runs_dir: the folder of all runs: what --runs named, else `paths.runs` of the base.
        settings: what stood behind each --set.
        extra_args: what stood behind `--`; None if there was no `--`.
        fresh: begin anew, whatever there is.
        init_from: begin anew with the weights of this checkpoint.
        step, best, checkpoint, from_run: where to start from.
        reresolve: take the config as the file has it now.
        is_accepted: `--accept`: a person agrees to what needs consent.
        take_over: a person says that a head which cannot be told alive or dead is dead.
        job: the folder of the submitted job that this is a start of; None outside of any.
        agreed: what was agreed to when that job was submitted.
    """

    experiment: str
    config_file: ConfigFile
    base: dict[str, Any]
    root: Path
    runs_dir: Path
    settings: Sequence[str] = ()
    name: str | None = None
    notes: str | None = None
    extra_args: Sequence[str] | None = None
    fresh: bool = False
    step: int | None = None
    best: bool = False
    checkpoint: Path | None = None
    from_run: str | None = None
    reresolve: bool = False
    is_dry_run: bool = False
    is_accepted: bool = False
    init_from: Path | None = None

    def resolved(self, experiment: str) -> dict[str, Any]:
        """Return the config as the file has it now, with `--set` and the trainer's arguments of the command line.

        Raises:
            UsageError, InvalidFile: as config.resolve.
        """
        file = self.config_file
        resolved = config.resolve(file.document, experiment, self.settings, schema=file.schema)
        if self.extra_args is not None:
            resolved["trainer"]["extra_args"] = list(self.extra_args)
        return resolved

    take_over: bool = False
    job: JobFolder | None = None
    agreed: frozenset[str] = frozenset()

    def is_agreed(self, consents: Sequence[str]) -> bool:
        """Whether a person agrees to all of it: by `--accept`, or to these very sentences when a job was submitted."""
        return self.is_accepted or (self.job is not None and self.agreed.issuperset(consents))

    @property
    def keys_set(self) -> list[str]:
        """The dotted keys that --set changes, each value's own where a whole section was set.

        Raises:
            UsageError, InvalidFile: as config.resolve.
        """
        schema = self.config_file.schema
        parsed = [settings.parse(setting, schema) for setting in self.settings]
        return [key for path, value in parsed for key in settings.keys(path, value, schema)]

    @property
    def follows_links(self) -> bool:
        """`checkpoint.follow_links` as the file has it now, with `--set`: it holds for runs from before the key too.

        Raises:
            UsageError, InvalidFile: as config.override.
        """
        now = self.base
        if any("follow_links" in setting for setting in self.settings):
            now = config.override(now, self.settings, self.config_file.schema, "the command line")
        return bool(config.get(now, "checkpoint.follow_links"))

    @property
    def goes_back(self) -> bool:
        """Whether a place to start from is named: that makes it a branch."""
        return self.step is not None or self.best or self.checkpoint is not None or self.from_run is not None


def root_of(resolved: dict[str, Any], config_file: ConfigFile) -> Path:
    """Return the folder that relative paths of a config begin at: `paths.root`, relative to the config file.

    Raises:
        InvalidFile: it is written for a shell, and there is no folder of that very name.
    """
    text: str = resolved["paths"]["root"]
    root = config_file.path.absolute().parent / text
    _refuse_unexpanded(text, root, "paths.root")
    return root.resolve()


def runs_folder(base: dict[str, Any], config_file: ConfigFile) -> Path:
    """Return the folder of all runs where --runs names none: `paths.runs` of the base. Raises as `root_of`."""
    text: str = base["paths"]["runs"]
    folder = root_of(base, config_file) / text
    _refuse_unexpanded(text, folder, "paths.runs")
    return folder


def _refuse_unexpanded(text: str, path: Path, origin: str) -> None:
    """Refuse a folder that would be made under the name of a variable; one that is there is taken as it is."""
    if (hint := paths.unexpanded(text)) and not os.path.lexists(path):
        raise InvalidFile(f"{origin} is {show(text)}{hint}")


class Options(NamedTuple):
    """The words of a command line, taken apart.

    Args:
        values, switches: by name.
        settings: what stood behind each --set.
        extra_args: what stood behind `--`; None if there was no `--`.
        typed: the words as the user gave them, without what the launcher adds.
    """

    values: dict[str, str]
    switches: frozenset[str]
    settings: tuple[str, ...]
    extra_args: tuple[str, ...] | None
    typed: tuple[str, ...]

    @property
    def runs(self) -> Path | None:
        return self._path("runs")

    @property
    def config(self) -> Path | None:
        return self._path("config")

    @property
    def launcher_pid(self) -> int:
        """The launcher's process id; 0 where it was not given."""
        name = _OLD_LAUNCHER if self.is_answered_by_position else _LAUNCHER
        return _number(self.values.get(name, "0"), f"--{name} takes a process id")

    @property
    def is_answered_by_position(self) -> bool:
        """Whether the launcher is of version 0.1.0, which does not read fields by their names."""
        return _OLD_LAUNCHER in self.values

    def request(self) -> Request:
        """Read the config file and return the whole request.

        Raises:
            UsageError: a value that an option does not take, or two that exclude each other.
            InvalidFile: the config cannot be read.
        """
        self._check_exclusive()
        step, values = self.values.get("step"), self.values
        file = config.load_config(self.config)
        base = config.resolve(file.document, schema=file.schema)
        job = None if "job" not in values else JobFolder(Path(values["job"]).absolute())
        return Request(
            experiment=values.get("experiment", ""),
            config_file=file,
            base=base,
            root=root_of(base, file),
            runs_dir=self.runs.absolute() if self.runs is not None else runs_folder(base, file),
            settings=self.settings,
            name=values.get("name"),
            notes=values.get("notes"),
            extra_args=self.extra_args,
            fresh="fresh" in self.switches or "init-from" in values,
            step=None if step is None else _number(step, "--step takes a number of optimizer steps"),
            best="best" in self.switches,
            checkpoint=_checkpoint(values.get("checkpoint", values.get("resume"))),
            from_run=values.get("from"),
            init_from=_checkpoint(values.get("init-from")),
            reresolve="reresolve" in self.switches,
            is_dry_run="dry-run" in self.switches,
            is_accepted="accept" in self.switches,
            take_over="take-over" in self.switches,
            job=job,
            agreed=job.agreed(values["agreed"]) if job and "agreed" in values else frozenset(),
        )

    def _path(self, name: str) -> Path | None:
        text = self.values.get(name)
        if text == "":
            raise UsageError(f"--{name} is given with an empty name")
        if text is not None and text.startswith("~") and not os.path.lexists(text):  # a shell leaves --runs=~/x alone
            raise UsageError(f"--{name} is {show(text)}{paths.unexpanded(text)}")
        return None if text is None else Path(text)

    def _check_exclusive(self) -> None:
        if "fresh" in self.switches and "resume" in self.values:
            raise UsageError("--fresh and --resume exclude each other: one begins anew, the other from a checkpoint")
        named = [name for name in _NAMES_A_CHECKPOINT if name in self.values or name in self.switches]
        if len(named) > 1:
            raise UsageError(f"--{named[0]} and --{named[1]} exclude each other: each names the checkpoint")
        if "agreed" in self.values and "job" not in self.values:
            raise UsageError("--agreed goes with --job")
        if "json" in self.switches and "dry-run" not in self.switches:
            raise UsageError("--json goes with --dry-run")


def parse(arguments: Sequence[str]) -> Options:
    """Take apart what bin/*.sh hand on: `--name=VALUE`, `--switch`, and behind `--` what belongs to the trainer.

    Raises:
        UsageError: an unknown option, one that is given twice, or a trainer argument that is not UTF-8.
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    values: dict[str, str] = {}
    switches, settings, typed = set(), [], []
    for word in arguments[:at]:
        name, equals, value = word.removeprefix("--").partition("=")
        if equals and name == "set":
            settings.append(value)
        elif equals and name in _VALUES:
            if name in values:
                raise UsageError(f"--{name} is given twice: '{values[name]}' and '{value}'")
            values[name] = value
        elif word.startswith("--") and not equals and name in _SWITCHES:
            switches.add(name)
        else:
            raise UsageError(f"unknown option '{word}'")
        if name not in (_LAUNCHER, _OLD_LAUNCHER):
            typed.append(word)
    extra = tuple(arguments[at + 1 :]) if at < len(arguments) else None
    for word in extra or ():
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UsageError(f"the trainer's argument {word!r} is not UTF-8, and could not be kept in the config")
    return Options(values, frozenset(switches), tuple(settings), extra, (*typed, *arguments[at:]))


def _number(text: str, sentence: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= STEP_DIGITS):
        raise UsageError(f"{sentence}, not '{text}'")
    return int(text)


def _checkpoint(text: str | None) -> Path | None:
    if text is None:
        return None
    if not text or not os.path.lexists(text):
        raise UsageError(f"there is no checkpoint '{text}'{paths.unexpanded(text)}")
    return Path(text)
