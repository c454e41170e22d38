"""A resume from another shell than the run's: what differs is shown, an interpreter without torch asks."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from resumekit.start import compatibility, interpreter
from support.commands import Kit
from support.places import TOY

SAVES = ["--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "2", "--at", "5", "exit=3"]


@pytest.fixture
def in_venv(kit: Kit) -> dict[str, str]:
    """The environment of a run whose interpreter has torch; the same interpreter has none without it."""
    python = kit.folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: nothing that is installed
    python.chmod(0o755)
    (kit.folder / "venv" / "torch").mkdir(parents=True)
    (kit.folder / "venv" / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda = None\n")
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES"):
        kit.env.pop(name, None)  # the shell that runs the tests may have them
    return {"PYTHONPATH": str(kit.folder / "venv"), "VIRTUAL_ENV": "/lab/venv", "CUDA_VISIBLE_DEVICES": "3"}


def configure(kit: Kit, command: list[str], **trainer: Any) -> None:
    kit.config(trainer={"command": [*command, *SAVES], **trainer})


def test_variables_that_differ_are_shown_and_an_interpreter_without_torch_asks(
    kit: Kit, in_venv: dict[str, str]
) -> None:
    configure(kit, ["{python}", str(TOY)], python=str(kit.folder / "bin" / "python"))
    kit("run", "T-1", code=3, env=in_venv)
    page = " ".join(kit("resume", "T-1", "--dry-run", code=5).stdout.split())
    assert "CUDA_VISIBLE_DEVICES: 3 -> null" in page and "VIRTUAL_ENV: /lab/venv -> null" in page
    assert "torch: 2.13.0 -> null (the trainer's interpreter has none here" in page
    assert "VIRTUAL_ENV was '/lab/venv'" in page
    assert len(kit.run_dirs()) == 1
    assert "verdict: ready" in kit("resume", "T-1", "--dry-run", env=in_venv).stdout
    kit("resume", "T-1", "--accept", code=3)


def test_under_a_wrapper_the_python_of_this_shell_says_nothing(kit: Kit, in_venv: dict[str, str]) -> None:
    script = kit.folder / "train.sh"
    script.write_text(f'exec {sys.executable} {str(TOY)!r} "$@"\n')
    configure(kit, ["bash", "train.sh"])
    kit("run", "T-1", code=3, env=in_venv)
    page = kit("resume", "T-1", "--dry-run").stdout
    assert "verdict: ready" in page and "torch" not in page and "CUDA_VISIBLE_DEVICES: 3 -> null" in page


@pytest.mark.parametrize(
    ("command", "argv", "python", "wrapped"),
    [
        (["{python}", "train.py"], ["/venv/bin/python", "train.py"], None, False),
        (["python3.11", "-m", "torch.distributed.run"], ["python3.11"], None, False),
        (["/venv/bin/torchrun", "train.py"], ["/venv/bin/torchrun"], None, True),
        (["bash", "train.sh"], ["bash", "train.sh"], None, True),
        (["apptainer", "exec", "lab.sif", "python"], ["apptainer"], None, True),
        (["srun", "{python}", "train.py"], ["srun", "/venv/bin/python"], None, False),
        (["bash", "train.sh"], ["bash", "train.sh"], ".venv/bin/python", False),
    ],
)
def test_what_is_a_wrapper(command: list[str], argv: list[str], python: str | None, wrapped: bool) -> None:
    assert interpreter.is_wrapped({"trainer": {"command": command, "python": python}}, argv) is wrapped


def test_an_interpreter_that_does_not_answer_is_not_one_without_torch() -> None:
    had = {"versions": {"python": "3.11.2", "torch": "2.13.0"}}
    assert compatibility.machine_consents(had, {"python": None, "torch": None}) == []
    assert compatibility.machine_consents(had, {"driver": "560.1"}) == []
    assert compatibility.machine_consents(had, {"python": "3.11.2", "torch": "2.14.0"}) == []
    assert len(compatibility.machine_consents(had, {"python": "3.11.2", "torch": None})) == 1
    assert compatibility.machine_consents({}, {"python": "3.11.2", "torch": None}) == []
