"""The trainer's command: `trainer.command` with its placeholders filled in, one argv element each, no shell.

`{{` stands for a brace. `{run_dir}` and its kin name the run, `{section.key}` any value of the resolved config.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..basics import paths
from ..basics.errors import InvalidFile, ToolMissing
from ..configuration.yaml_scalars import show

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


def build_argv(config: Mapping[str, Any], values: Mapping[str, str], *, is_resume: bool) -> list[str]:
    """Return the trainer's argv: command, then resume_args on a resume, then extra_args as they stand."""
    trainer = config["trainer"]
    parts = [(part, "trainer.command") for part in trainer["command"]]
    if is_resume:
        parts += [(part, "trainer.resume_args") for part in trainer["resume_args"]]
    argv = [fill(part, values, config, source) for part, source in parts]
    argv += trainer["extra_args"]
    if odd := next((part for part in argv if "\0" in part), None):
        raise InvalidFile(f"the trainer's argument {odd!r} holds a NUL character, which no command line can carry")
    return argv


def check_program(argv: Sequence[str], cwd: Path, search_path: str) -> None:
    """Raise ToolMissing if the trainer's program is not there or not executable, before anything is started."""
    if not _is_there(argv[0], cwd, search_path):
        raise ToolMissing(
            f"the trainer's program '{argv[0]}' is not there or not executable (trainer.command, seen from '{cwd}')"
        )


def check_notifier(argv: Sequence[str] | None, root: Path, search_path: str) -> None:
    """Raise InvalidFile if the program of `notify.command` is not there: in the night it is too late to say so."""
    if argv is None or _is_there(argv[0], root, search_path):
        return
    words = argv[0].split() if len(argv) == 1 else []
    advice = f"write each word by itself, [{', '.join(words)}]" if len(words) > 1 else "mend it, or write null"
    raise InvalidFile(
        f"the program {show(argv[0])} is not there or not executable (notify.command, seen from '{root}'), "
        f"so nobody would be told of a run that needs a person: {advice}"
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

        near = difflib.get_close_matches(name, [*values, *_leaves(config)], n=1)
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
