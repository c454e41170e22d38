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

from ..base import background_command, imports, paths
from ..base.errors import InvalidFile, ToolMissing
from ..base.imports import Any
from ..base.terminal import WARNING, Note
from . import torchrun

TIMEOUT_S = 20.0
# One user's interpreter where the config, with the trainer.python of another one, is shared.
OVERRIDE = "RESUMEKIT_TRAINER_PYTHON"
MAX_BYTES = 1 << 20
_COLON = "':' separates the folders of PYTHONPATH"
_QUESTION = "import sys; print('%d.%d.%d' % sys.version_info[:3], *sys.path, sep='\\0', end='')"

# Behind a wrapper the folders are others' (a container's), so what stands in them is read there; in one line, for
# `conda run` takes no other.
_MARK = "=resumekit="
_QUESTION_INSIDE = (
    "import os, sys; paths = [os.path.join(one, 'torch', 'version.py') for one in sys.path if one]; "
    "texts = [open(one, encoding='utf-8').read(1 << 20) for one in paths if os.path.isfile(one)][:1]; "
    f"print('', '%d.%d.%d' % sys.version_info[:3], *(texts or ['']), '', sep='{_MARK}')"
)


def configured_python(resolved: Mapping[str, Any], root: Path) -> str:
    """Return the interpreter that `{python}` stands for.

    The user's own ($RESUMEKIT_TRAINER_PYTHON), else `trainer.python`, else the one that the kit runs under; behind
    `trainer.wrap` the `python` that is found there.
    """
    wanted = os.environ.get(OVERRIDE) or resolved["trainer"].get("python")
    if resolved["trainer"].get("wrap"):
        return str(root / wanted) if wanted and "/" in wanted else wanted or "python"
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


def search_path() -> str:
    """Return the PYTHONPATH that a trainer gets: the user's own, then the kit's helpers, where one can name them."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), _helpers()]))


def helpers_said() -> tuple[str, ...]:
    """Return the warning that no trainer can import the helpers, because PYTHONPATH cannot name their folder."""
    if _helpers() is not None:
        return ()
    lies = f"warning: the kit lies in '{paths.LIB.parent}'"
    return (Note(WARNING, f"{lies}: {_COLON}, so a trainer cannot import resume_helper from it"),)


def check_helpers(resolved: Mapping[str, Any]) -> None:
    """Raise InvalidFile where the trainer loads with the kit's helpers, and could not import them."""
    if resolved["trainer"].get("loads_with_kit") and _helpers() is None:
        raise InvalidFile(
            f"the kit lies in '{paths.LIB.parent}': {_COLON}, and this trainer imports its helpers "
            "(trainer.loads_with_kit); move the kit to a path without ':'"
        )


def _helpers() -> str | None:
    return None if os.pathsep in str(paths.LIB) else str(paths.LIB)


def check_override(python: str, search_path: str) -> None:
    """Raise ToolMissing if $RESUMEKIT_TRAINER_PYTHON names what is not there; `python` is what it stands for."""
    if os.environ.get(OVERRIDE) and paths.find_program(python, search_path) is None:
        raise ToolMissing(
            f"the Python '{python}' is not there or not executable ({OVERRIDE} in the environment): "
            "name another one, or unset it"
        )


def python_of_trainer(argv: Sequence[str], cwd: Path, python: str) -> str:
    """Return the interpreter that a trainer's command runs under: its program if that is a Python, else `python`."""
    program = argv[0]
    if not is_python(program):
        return python
    return os.path.join(cwd, program) if "/" in program else paths.find_program(program) or python


def asked_as(argv: Sequence[str], cwd: Path, python: str, resolved: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the command by which a trainer's interpreter is asked anything: through `trainer.wrap`, in its folder.

    Args:
        argv: the trainer's command line, filled in.
        cwd: its working folder.
        python: what `{python}` stands for.
        resolved: the config.
    """
    number = len(resolved["trainer"].get("wrap") or ())
    if not number:
        return (python_of_trainer(argv, cwd, python),)
    own = argv[number] if is_python(argv[number]) else python
    return ("/bin/sh", "-c", 'cd -- "$0" && exec "$@"', str(cwd), *argv[:number], own)


def is_python(program: str) -> bool:
    """Whether a program is an interpreter itself, by its name: not torchrun, a shell script, a container."""
    return bool(re.fullmatch(r"python[0-9.]*", os.path.basename(program)))


def script_of(argv: Sequence[str]) -> str | None:
    """Return the script that a command has a Python run; None for a module, a text, or where that cannot be told."""
    if not is_python(argv[0]):
        return None
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        if word in ("-W", "-X"):
            next(words, None)
        elif not re.fullmatch("-(?:[bBdEiIOPqsSuvx]+|[WX].+)", word):
            return None
    return None


def python_origin(resolved: Mapping[str, Any]) -> str:
    """Return the key of the config that says which program the command begins with."""
    trainer = resolved["trainer"]
    if trainer.get("wrap"):
        return "trainer.wrap"
    is_named = trainer["command"][0] == "{python}" or torchrun.is_launched(resolved)
    return "trainer.python" if is_named and trainer.get("python") else "trainer.command"


def is_wrapped(resolved: Mapping[str, Any], argv: Sequence[str]) -> bool:
    """Whether nothing here says under which interpreter a trainer runs: its command begins with a wrapper.

    Through `trainer.wrap` it is asked.

    Args:
        resolved: the config; a `trainer.python`, or `{python}` in the command, says it.
        argv: the command line, filled in.
    """
    trainer = resolved["trainer"]
    is_said = trainer.get("python") is not None or any("{python}" in word for word in trainer["command"])
    return not is_said and not trainer.get("wrap") and not is_python(argv[0])


class Versions:
    """The question for an interpreter's versions: asked when this is made, answered by `answer`."""

    def __init__(self, command: Sequence[str], search_path: str, *, is_wrapped: bool = False) -> None:
        """Begin to ask.

        Args:
            command: how the interpreter is started (`asked_as`); the kit's own is not asked, it knows.
            search_path: the PYTHONPATH that the trainer gets.
            is_wrapped: see `is_wrapped`: the interpreter here is not the trainer's.
        """
        self._search_path, self._is_wrapped = search_path, is_wrapped
        self._asked = None
        self._answer: dict[str, str | None] | None = None
        self._is_ours = [os.path.abspath(word) for word in command] == [os.path.abspath(sys.executable)]
        self._is_inside = len(command) > 1
        if not self._is_ours:
            question = _QUESTION_INSIDE if self._is_inside else _QUESTION
            self._asked = background_command.start(
                [*command, "-c", question], {**os.environ, "PYTHONPATH": search_path}
            )

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
            imports.find_packages()  # the folders that the trainer's start of this same Python has
            version: str | None = "{}.{}.{}".format(*sys.version_info[:3])
            folders = [*self._search_path.split(os.pathsep), *sys.path, *_user_folder()]
        else:
            text = background_command.result(self._asked, MAX_BYTES, TIMEOUT_S).kept.decode("utf-8", "surrogateescape")
            if self._is_inside:
                return {**_said_inside(text), "driver": _driver_version()}
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
    import site

    return [site.USER_SITE] if isinstance(site.USER_SITE, str) else []


def _torch_version(folders: Sequence[str]) -> tuple[str | None, str | None]:
    for folder in filter(None, folders):
        try:
            with open(os.path.join(folder, "torch", "version.py"), encoding="utf-8") as file:
                text = file.read(MAX_BYTES)
        except (OSError, ValueError):
            continue
        return _versions_in(text)
    return None, None


def _versions_in(text: str) -> tuple[str | None, str | None]:
    """Return (torch, CUDA) as torch/version.py says them."""
    found = (re.search(rf"^{name}\b[^=\n]*=\s*'([^']*)'", text, re.MULTILINE) for name in ("__version__", "cuda"))
    version, cuda = (match[1] if match else None for match in found)
    return version, cuda


def _said_inside(text: str) -> dict[str, str | None]:
    """Return the versions out of an answer through a wrapper, which may say things of its own before and behind it."""
    match = re.search(rf"{_MARK}([0-9.]{{3,20}}){_MARK}(.*){_MARK}", text, re.DOTALL)
    torch, cuda = _versions_in(match[2]) if match else (None, None)
    return {"python": match[1] if match else None, "torch": torch, "cuda": cuda}


def _driver_version() -> str | None:
    try:
        with open("/sys/module/nvidia/version", encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return None
