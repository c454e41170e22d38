"""Which Python a trainer runs under, and the versions that it has: python, torch, CUDA, driver.

Asks another interpreter in a process beside the rest, and reads torch's version as text: importing torch costs more
than all the rest of a launch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..basics import answers, paths
from ..basics.errors import ToolMissing

TIMEOUT_S = 20.0
# One user's interpreter where the config, with the trainer.python of another one, is shared.
OVERRIDE = "RESUMEKIT_TRAINER_PYTHON"
MAX_BYTES = 1 << 20
_QUESTION = "import sys; print('%d.%d.%d' % sys.version_info[:3], *sys.path, sep='\\0', end='')"


def configured(resolved: Mapping[str, Any], root: Path) -> str:
    """Return the interpreter that `{python}` stands for.

    The user's own ($RESUMEKIT_TRAINER_PYTHON), else `trainer.python`, else the one that the kit runs under.
    """
    wanted = os.environ.get(OVERRIDE) or resolved["trainer"].get("python")
    if wanted is None:
        return sys.executable
    return str(root / wanted) if "/" in wanted else paths.find_program(wanted) or wanted


def override_said(resolved: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sentence that names the user's own interpreter where it is not that of the config."""
    own, shared = os.environ.get(OVERRIDE), resolved["trainer"].get("python")
    if not own or own == shared:
        return ()
    instead = "" if shared is None else f", not '{shared}' (trainer.python)"
    return (f"the trainer's Python is '{own}' ({OVERRIDE}){instead}",)


def check_override(python: str, search_path: str) -> None:
    """Raise ToolMissing if $RESUMEKIT_TRAINER_PYTHON names what is not there; `python` is what it stands for."""
    if os.environ.get(OVERRIDE) and paths.find_program(python, search_path) is None:
        raise ToolMissing(
            f"the Python '{python}' is not there or not executable ({OVERRIDE} in the environment): "
            "name another one, or unset it"
        )


def of_trainer(argv: Sequence[str], cwd: Path, python: str) -> str:
    """Return the interpreter that a trainer's command runs under: its program if that is a Python, else `python`."""
    program = argv[0]
    if not is_python(program):
        return python
    return os.path.join(cwd, program) if "/" in program else paths.find_program(program) or python


def is_python(program: str) -> bool:
    """Whether a program is an interpreter itself, by its name: not torchrun, a shell script, a container."""
    return bool(re.fullmatch(r"python[0-9.]*", os.path.basename(program)))


def is_wrapped(resolved: Mapping[str, Any], argv: Sequence[str]) -> bool:
    """Whether nothing here says under which interpreter a trainer runs: its command begins with a wrapper.

    Args:
        resolved: the config; a `trainer.python`, or `{python}` in the command, says it.
        argv: the command line, filled in.
    """
    trainer = resolved["trainer"]
    is_said = trainer.get("python") is not None or any("{python}" in word for word in trainer["command"])
    return not is_said and not is_python(argv[0])


class Versions:
    """The question for an interpreter's versions: asked when this is made, answered by `answer`."""

    def __init__(self, python: str, search_path: str, *, is_wrapped: bool = False) -> None:
        """Begin to ask.

        Args:
            python: the interpreter; the kit's own is not asked, it knows.
            search_path: the PYTHONPATH that the trainer gets.
            is_wrapped: see `is_wrapped`: the interpreter here is not the trainer's.
        """
        self._search_path, self._is_wrapped = search_path, is_wrapped
        self._asked = None
        self._answer: dict[str, str | None] | None = None
        if os.path.abspath(python) != os.path.abspath(sys.executable):
            self._asked = answers.ask([python, "-c", _QUESTION], {**os.environ, "PYTHONPATH": search_path})
            self._is_ours = False
        else:
            self._is_ours = True

    def answer(self) -> dict[str, str | None]:
        """Return python, torch, cuda and driver versions; None where something is not there or does not say."""
        if self._answer is None:
            self._answer = self._read()
        return self._answer

    def comparable(self) -> dict[str, str | None]:
        """Return the versions that say something of the trainer: under a wrapper only the driver's."""
        known = self.answer()
        return {"driver": known["driver"]} if self._is_wrapped else known

    def _read(self) -> dict[str, str | None]:
        if self._is_ours:
            version: str | None = "{}.{}.{}".format(*sys.version_info[:3])
            folders = [*self._search_path.split(os.pathsep), *sys.path, *_user_folder()]
        else:
            text = answers.collect(self._asked, MAX_BYTES, TIMEOUT_S).kept.decode("utf-8", "surrogateescape")
            version, *folders = text.split("\0")
            version = version if re.fullmatch(r"[0-9.]{3,20}", version) else None
        torch, cuda = _torch_version(folders)
        return {"python": version, "torch": torch, "cuda": cuda, "driver": _driver_version()}


class NotAsked:
    """In the place of `Versions` where the interpreter may not be started yet: nothing is known, nothing compared."""

    def answer(self) -> dict[str, str | None]:
        """Return no version at all."""
        return {}

    def comparable(self) -> dict[str, str | None]:
        """Return no version at all."""
        return {}


def _user_folder() -> list[str]:
    """Return the user's own site-packages: `-I` leaves it out of our path, the trainer has it on its own."""
    import site  # loaded already wherever it is of use

    return [site.USER_SITE] if isinstance(site.USER_SITE, str) else []


def _torch_version(folders: Sequence[str]) -> tuple[str | None, str | None]:
    for folder in filter(None, folders):
        try:
            with open(os.path.join(folder, "torch", "version.py"), encoding="utf-8") as file:
                text = file.read(MAX_BYTES)
        except (OSError, ValueError):
            continue
        found = (re.search(rf"^{name}\b[^=\n]*=\s*'([^']*)'", text, re.MULTILINE) for name in ("__version__", "cuda"))
        version, cuda = (match[1] if match else None for match in found)
        return version, cuda
    return None, None


def _driver_version() -> str | None:
    try:
        with open("/sys/module/nvidia/version", encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return None
