"""What starts the ranks of a training: torchrun in a command of the lab's own, and what trainer.launcher may say.

Reads nothing. Try it: `python -m pytest tests/test_torchrun_command.py`
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ..base.imports import Any
from .yaml_scalars import show

TORCHRUN = "torchrun"
PYTHON = "{python}"
_PROGRAMS = frozenset({TORCHRUN, "accelerate"})
_MODULES = frozenset({"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"})
_RESTARTS = re.compile(r"--max[-_]restarts(?:=(.*))?", re.DOTALL)


def launcher_refused(config: dict[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """Return (the keys, the sentence) of what trainer.launcher cannot mean; None where it is well."""
    launcher, command = config["trainer"].get("launcher") or {}, config["trainer"].get("command") or []
    kind, nproc, key = launcher.get("kind", "none"), launcher.get("nproc"), "trainer.launcher"
    if kind == "none":
        named = [name for name, unset in (("nproc", None), ("nnodes", 1), ("args", [])) if
                 launcher.get(name, unset) != unset]  # fmt: skip
        if not named:
            return None
        value = launcher[named[0]]
        shown = value if isinstance(value, int) else show(value)
        what = f"{key}.{named[0]} is {shown} and {key}.kind is none"
        return (f"{key}.{named[0]}", f"{key}.kind"), f"{what}, so it does nothing: set kind to torchrun, or take it out"
    if nproc is None:
        return (f"{key}.nproc",), f"{key}.nproc is null and {key}.kind is {kind}: say how many ranks a machine has"
    if words := _torchrun_words(command):
        why = f"trainer.command starts {words[0]} and {key}.kind is {kind}, which starts it too"
        return ("trainer.command", f"{key}.kind"), f"{why}: write the script alone, [train.py, ...]"
    if command and script_words(command) is None:
        what = f"trainer.command begins with {show(' '.join(command[:3]))} and {key}.kind is {kind}"
        why = "each rank is a Python of torchrun's with a script or a module and no other options"
        return ("trainer.command", f"{key}.kind"), f"{what}, but {why}: write [train.py, ...], or [-m, package.module]"
    return None


def restarts_doubted(config: dict[str, Any]) -> str | None:
    """Return the warning that torchrun itself would start the ranks again; None where no word of the config says so."""
    trainer = config["trainer"]
    launcher = trainer.get("launcher") or {}
    words = [*(trainer.get("wrap") or ()), *(trainer.get("command") or ())]
    options = _torchrun_words(words)[1:]
    key, number = "trainer.command", _restarts(options)
    if launcher.get("kind") == TORCHRUN:
        key, number = "trainer.launcher.args", _restarts(launcher.get("args") or [])
    if not number:
        return None
    return (
        f"{key} says --max-restarts {number}: the kit takes a run up by itself, in a new folder and from its newest"
        " checkpoint; a restart by torchrun begins with the first start's arguments, in the same folder, where only a"
        " trainer that calls load_resume_bundle goes on, and any other writes over what is there; set it to 0"
    )


def script_words(command: Sequence[str]) -> list[str] | None:
    """Return a trainer's script, or `-m` and its module, and what follows; None where a command runs neither.

    Args:
        command: trainer.command; `{python}` and its `-u` in front are left out, since torchrun puts its own there.
    """
    words = list(command)
    if words[:1] == [PYTHON]:
        words = words[1:]
        while words[:1] == ["-u"]:
            words = words[1:]
    is_module = words[:1] == ["-m"] and len(words) > 1
    return words if is_module or (words and words[0].endswith(".py")) else None


def _torchrun_words(command: Sequence[str]) -> list[str]:
    """Return a launcher's words in a command, up to the script that it starts; its name first; [] without one."""
    for at, word in enumerate(command):
        is_module = at > 0 and command[at - 1] == "-m" and word in _MODULES
        if is_module or os.path.basename(word) in _PROGRAMS:
            end = next((i for i in range(at + 1, len(command)) if command[i].endswith(".py")), len(command))
            return list(command[at:end])
    return []


def _restarts(options: Sequence[str]) -> int:
    """Return how often torchrun's options let it start the ranks again; 0 where they do not say."""
    number = 0
    for at, word in enumerate(options):
        if match := _RESTARTS.fullmatch(word):
            value = match[1] if match[1] is not None else "".join(options[at + 1 : at + 2])
            number = int(value) if re.fullmatch("[0-9]{1,9}", value) else 0
    return number
