"""The trainer's command: its placeholders filled in, what it is told of, and whether what it names is there.

Reads the file system; starts nothing. Under which Python it runs says `interpreter`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base import paths
from ..base.errors import InvalidFile, ToolMissing
from ..base.imports import Any
from ..config import launcher_rules
from ..config.rules import WHOLE_CONFIG
from ..config.yaml_scalars import show
from . import interpreter, torchrun

# Sections that the kit itself acts on; in all others, and in `checkpoint.every` and its kin, the trainer has to.
_SECTIONS_OF_THE_KIT = {
    "experiment", "trainer", "checkpoint", "status", "resume", "abort", "recover", "notify", "cluster", "paths",
}  # fmt: skip
_KEYS_OF_THE_KIT = {"data.path"}
_KEYS_OF_THE_TRAINER = {"checkpoint.every", "checkpoint.keep_last", "checkpoint.keep_every"}
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def fill(template: str, values: Mapping[str, str], config: Mapping[str, Any], source: str) -> str:
    """Fill the placeholders of one argv element.

    Args:
        template: such as '--run_id={run_id}'.
        values: the run's own placeholders.
        config: the resolved config, for `{section.key}`.
        source: where the template stands, for the message.

    Raises:
        InvalidFile: a placeholder that does not exist, or whose value is not a single value.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name in values:
            return values[name]
        return _config_value(name, values, config, source)

    return _PLACEHOLDER.sub(replace, template)


def placeholders(template: str) -> list[str]:
    """Return the names in the placeholders of one argv element."""
    return [match[1] for match in _PLACEHOLDER.finditer(template) if match[1] is not None]


def is_told(config: Mapping[str, Any], key: str) -> bool:
    """Return whether the trainer can see a key of the config that it alone acts on; True for keys of the kit.

    A trainer that loads with the kit knows its run's folder; any other is known by its command line alone.
    """
    trainer, section = config.get("trainer") or {}, key.partition(".")[0]
    is_the_kits = key in _KEYS_OF_THE_KIT or (section in _SECTIONS_OF_THE_KIT and key not in _KEYS_OF_THE_TRAINER)
    if is_the_kits or trainer.get("loads_with_kit"):
        return True
    words = [*(trainer.get("command") or ()), *(trainer.get("resume_args") or ())]
    named = {name for word in words for name in placeholders(word)}
    return bool(named & {key, *WHOLE_CONFIG})


def untold(config: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the warning that keys which were set on the command line do not reach the trainer; None where all do."""
    unseen = [key for key in dict.fromkeys(keys) if not is_told(config, key)]
    if not unseen:
        return None
    return (
        f"the trainer is not told of {', '.join(unseen)} (--set): trainer.command has neither {{{unseen[0]}}} nor "
        "{config_json}; it takes effect only if the trainer reads resolved_config.json in $RESUMEKIT_RUN_DIR"
    )


def build_argv(
    config: Mapping[str, Any], values: Mapping[str, str], *, is_resume: bool, is_init: bool = False,
    handed: Sequence[str] = (), is_alone: bool = False,
) -> list[str]:  # fmt: skip
    """Return the trainer's argv: wrap, launcher, command, resume_args on a resume, then extra_args as they stand.

    Args:
        config: the resolved config.
        values: the run's own placeholders.
        is_resume: the run starts from a checkpoint.
        is_init: it begins with the weights of one: init_args, too.
        handed: what comes last: a trainer takes an option's last value (`handed_rate`).
        is_alone: one process of it, without the launcher: to ask the trainer something.

    Raises:
        InvalidFile: as `fill` and `torchrun.torchrun_words`; an argument cannot be one.
    """
    trainer = config["trainer"]

    def filled(words: Sequence[str] | None, key: str) -> list[str]:
        return [fill(word, values, config, f"trainer.{key}") for word in words or ()]

    argv, command = filled(trainer.get("wrap"), "wrap"), trainer["command"]
    if torchrun.is_launched(config):
        command = launcher_rules.script_words(command) or command
        if not is_alone:  # a word of the script's may be the beginning of one of torchrun's: --logs, --start
            command = ["-m", "--", *command[1:]] if command[0] == "-m" else ["--", *command]
        options = filled(trainer["launcher"]["args"], "launcher.args")
        starter = [values["python"]] if is_alone else torchrun.torchrun_words(config, values, options)
        argv = [*([] if is_alone else torchrun.node_words(config)), *argv, *starter]
    argv += filled(command, "command")
    if is_resume:
        argv += filled(trainer["resume_args"], "resume_args")
    if is_init:
        argv += filled(trainer.get("init_args"), "init_args")
    argv += [*trainer["extra_args"], *handed]
    if odd := next((part for part in argv if "\0" in part), None):
        raise InvalidFile(f"the trainer's argument {odd!r} holds a NUL character, which no command line can carry")
    return argv


def lr_words(config: Mapping[str, Any], rate: str) -> list[str]:
    """Return the arguments that hand over a rate; none without `recover.lr_args`.

    Raises:
        InvalidFile: as `fill`; or the trainer's own arguments set the rate too, so that it is not the config's.
    """
    templates = (config.get("recover") or {}).get("lr_args") or ()
    options = {word.partition("=")[0] for word in templates if word.startswith("-")}
    if again := next((word for word in config["trainer"]["extra_args"] if word.partition("=")[0] in options), None):
        raise InvalidFile(
            f"trainer.extra_args (what stands behind '--') has {show(again)}, and recover.lr_args hands over the rate "
            "of the config, cut: give the rate with --set optimizer.lr=VALUE instead"
        )
    return [fill(word, {"lr": rate}, config, "recover.lr_args") for word in templates]


def check_program(argv: Sequence[str], cwd: Path, search_path: str, origin: str = "trainer.command") -> None:
    """Raise ToolMissing if what the command names is not there, before anything is made or started.

    Its program, which has to be executable, and the script that a Python is to run.

    Args:
        argv: the trainer's command line, filled in.
        cwd: its working folder.
        search_path: the folders in which a program without a '/' is looked for.
        origin: the key of the config that says the program.
    """
    if not _is_there(argv[0], cwd, search_path):
        advice = paths.unexpanded(argv[0]) or "; name one that is"
        raise ToolMissing(
            f"the trainer's program '{argv[0]}' is not there or not executable ({origin}, seen from '{cwd}'){advice}"
        )
    script = interpreter.script_of(argv)
    if script is not None and not os.path.exists(os.path.join(cwd, script)):
        advice = paths.unexpanded(script) or "; name one that is"
        raise ToolMissing(f"the script '{script}' is not there (trainer.command, seen from '{cwd}'){advice}")


def check_notifier(argv: Sequence[str] | None, root: Path, search_path: str) -> None:
    """Raise InvalidFile if the program of `notify.command` is not there: in the night it is too late to say so."""
    if argv is None or _is_there(argv[0], root, search_path):
        return
    words = argv[0].split() if len(argv) == 1 else []
    advice = f"write each word by itself, [{', '.join(words)}]" if len(words) > 1 else "mend it, or write null"
    raise InvalidFile(
        f"the program {show(argv[0])} is not there or not executable (notify.command, seen from '{root}'), "
        f"so no message would say that a run needs a person: {advice}"
    )


def _is_there(program: str, cwd: Path, search_path: str) -> bool:
    return paths.find_program(program if "/" not in program else os.path.join(cwd, program), search_path) is not None


def as_script(argv: Sequence[str], cwd: Path, environment: Mapping[str, str], run_id: str) -> bytes:
    """Return command.sh: what to paste to run the trainer again by hand, without the kit around it.

    All of it stands in one pair of brackets: pasted into a terminal it ends the trainer's shell, not the person's.
    """
    lines = [
        "#!/usr/bin/env bash",
        f"# The trainer of run {run_id}, as it was started: without launcher, sidecar and log.",
        "(",
        f"  cd -- {shlex.quote(str(cwd))} || exit",
        *(f"  export {name}={shlex.quote(value)}" for name, value in environment.items()),
        "  exec " + " ".join(shlex.quote(part) for part in argv),
        ")",
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _config_value(name: str, values: Mapping[str, str], config: Mapping[str, Any], source: str) -> str:
    value: Any = config
    for part in name.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    if value is _MISSING:
        import difflib  # only for a message

        near = difflib.get_close_matches(name, [*values, *_leaves(config)], n=1, cutoff=0.8)
        hint = f"; did you mean '{{{near[0]}}}'?" if near else ""
        raise InvalidFile(f"unknown placeholder '{{{name}}}' in {source}{hint} (a brace itself is written '{{{{')")
    if value is None or isinstance(value, (Mapping, list)):
        kind = "null" if value is None else "not a single value"
        raise InvalidFile(f"placeholder '{{{name}}}' in {source} is {kind} in this config")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    result = []
    for key, value in config.items():
        result += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return result


_MISSING = object()
