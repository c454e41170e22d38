"""What was asked for on the command line of run.sh, resume.sh or runs.sh, and the config file that it is about.

bin/*.sh hand every option on as one word (`--name=VALUE`), so that reading them takes no parser library. Reads the
config file; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..basics.errors import UsageError
from ..configuration import config
from ..configuration.config import ConfigFile

_VALUES = ("experiment", "config", "runs", "name", "notes", "step", "checkpoint", "resume", "from", "launcher-pid")
_SWITCHES = ("fresh", "best", "reresolve", "dry-run", "json", "accept", "watch", "take-over")
_NAMES_A_CHECKPOINT = ("step", "best", "checkpoint", "resume")


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
        step, best, checkpoint, from_run: where to start from.
        reresolve: take the config as the file has it now.
        is_accepted: `--accept`: a person agrees to what needs consent.
        take_over: a person says that a head which cannot be told alive or dead is dead.
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

    @property
    def goes_back(self) -> bool:
        """Whether a place to start from is named: that makes it a branch."""
        return self.step is not None or self.best or self.checkpoint is not None or self.from_run is not None


def root_of(resolved: dict[str, Any], config_file: ConfigFile) -> Path:
    """Return the folder that relative paths of a config begin at: `paths.root`, relative to the config file."""
    return (config_file.path.absolute().parent / resolved["paths"]["root"]).resolve()


def runs_folder(base: dict[str, Any], config_file: ConfigFile) -> Path:
    """Return the folder of all runs where --runs names none: `paths.runs` of the base."""
    return root_of(base, config_file) / base["paths"]["runs"]


class Options(NamedTuple):
    """The words of a command line, taken apart: values and switches by name, settings, what stood behind `--`."""

    values: dict[str, str]
    switches: frozenset[str]
    settings: tuple[str, ...]
    extra_args: tuple[str, ...] | None

    @property
    def runs(self) -> Path | None:
        return self._path("runs")

    @property
    def config(self) -> Path | None:
        return self._path("config")

    @property
    def launcher_pid(self) -> int:
        """The launcher's process id; 0 where it was not given."""
        return _number(self.values.get("launcher-pid", "0"), "--launcher-pid takes a process id")

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
            fresh="fresh" in self.switches,
            step=None if step is None else _number(step, "--step takes a number of optimizer steps"),
            best="best" in self.switches,
            checkpoint=_checkpoint(values.get("checkpoint", values.get("resume"))),
            from_run=values.get("from"),
            reresolve="reresolve" in self.switches,
            is_dry_run="dry-run" in self.switches,
            is_accepted="accept" in self.switches,
            take_over="take-over" in self.switches,
        )

    def _path(self, name: str) -> Path | None:
        text = self.values.get(name)
        if text == "":
            raise UsageError(f"--{name} is given with an empty name")
        return None if text is None else Path(text)

    def _check_exclusive(self) -> None:
        if "fresh" in self.switches and "resume" in self.values:
            raise UsageError("--fresh and --resume exclude each other: one begins anew, the other from a checkpoint")
        named = [name for name in _NAMES_A_CHECKPOINT if name in self.values or name in self.switches]
        if len(named) > 1:
            raise UsageError(f"--{named[0]} and --{named[1]} exclude each other: each names the checkpoint")
        if "json" in self.switches and "dry-run" not in self.switches:
            raise UsageError("--json goes with --dry-run")


def parse(arguments: Sequence[str]) -> Options:
    """Take apart what bin/*.sh hand on: `--name=VALUE`, `--switch`, and behind `--` what belongs to the trainer.

    Raises:
        UsageError: an unknown option, one that is given twice, or a trainer argument that is not UTF-8.
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    values: dict[str, str] = {}
    switches, settings = set(), []
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
    extra = tuple(arguments[at + 1 :]) if at < len(arguments) else None
    for word in extra or ():
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UsageError(f"the trainer's argument {word!r} is not UTF-8, and could not be kept in the config")
    return Options(values, frozenset(switches), tuple(settings), extra)


def _number(text: str, sentence: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise UsageError(f"{sentence}, not '{text}'")
    return int(text)


def _checkpoint(text: str | None) -> Path | None:
    if text is None:
        return None
    if not text or not os.path.lexists(text):
        raise UsageError(f"there is no checkpoint '{text}'")
    return Path(text)
