"""`trainer.wrap`: the words before a trainer's command, through which its Python is asked too."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.errors import InvalidFile
from resumekit.config import config, schema
from resumekit.start import interpreter, trainer_command
from support.commands import Kit
from support.runs import events, record

KIT = schema.load()


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "lab")
    yield kit
    kit.clean_up()


def environment(kit: Kit, name: str, torch: str) -> list[str]:
    """Make a wrapper as `conda run -n env` is one: it has a `python` and a torch of its own, and words to say.

    Returns:
        The words, relative to the working folder.
    """
    folder = kit.folder / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "lib" / "torch").mkdir(parents=True)
    (folder / "lib" / "torch" / "version.py").write_text(f"__version__ = '{torch}'\ncuda = '12.6'\n")
    (folder / "run.sh").write_text(
        'here="$(cd "${0%/*}" && pwd)"; echo "activating $here"; echo "$*" >>"$here/asked"\n'
        'PATH="$here/bin:$PATH" PYTHONPATH="$here/lib:$PYTHONPATH" exec "$@"\n'
    )
    return ["sh", f"{name}/run.sh"]


def test_a_trainer_and_all_that_is_asked_of_it_goes_through_its_wrap(kit: Kit) -> None:
    one, other = environment(kit, "one", "9.8.7"), environment(kit, "other", "9.9.0")
    kit.config("--save-every", "5", trainer={"wrap": one}, training={"max_steps": 20})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    (run,) = kit.run_dirs()
    own = record(run)
    assert own["argv"][:3] == [*one, "python"]
    assert (own["versions"]["torch"], own["versions"]["cuda"]) == ("9.8.7", "12.6")
    assert own["versions"]["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert "exec sh one/run.sh python " in (run / "command.sh").read_text()
    asked = (kit.folder / "one" / "asked").read_text().splitlines()
    assert len(asked) == 2 and asked[0].startswith("python -c import os, sys"), "the versions, then the training"
    page = kit("resume", "T-1", "--set", f"trainer.wrap={json.dumps(other)}", "--dry-run").stdout
    assert "continuing 'T-1_toy" in page and "trainer.wrap[1]: one/run.sh -> other/run.sh" in page
    assert "torch: 9.8.7 -> 9.9.0 (scaler: reset)" in page
    kit("resume", "T-1", "--set", f"trainer.wrap={json.dumps(other)}")
    later = kit.run_dirs()[-1]
    assert record(later)["config_hash"] == own["config_hash"] and record(later)["relation"] == "continue"
    assert kit.status(later)["state"] == "finished" and events(later, "launched")


def test_a_description_is_asked_through_the_wrap(kit: Kit) -> None:
    words = environment(kit, "one", "9.8.7")
    answer = json.dumps({"parameters": [{"name": "other", "shape": [3]}]})
    kit.config("--save-every", "5", trainer={"wrap": words})
    kit("run", "T-1", "--set", "training.max_steps=20", code=137, env={"TOY_ARGS": "--at 12 kill"})
    (kit.folder / "one" / "run.sh").write_text(f"echo '{answer}'\n")
    described = ["--set", "trainer.describe_args=[--describe]", "--set", "training.batch_size=2"]
    page = kit("resume", "T-1", "--dry-run", *described, code=6).stdout
    assert "the checkpoint does not fit" in " ".join(page.split())


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        ([], "'trainer.wrap'"),
        ([""], "item 1 of 'trainer.wrap' is ''"),
        ([7], "item 1 of 'trainer.wrap' is '7', a whole number, and must be a text"),
        ("uv run", "'trainer.wrap' is 'uv run'"),
    ],
)
def test_a_wrap_that_is_no_list_of_words_is_refused(wrap: Any, says: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        config.override({"trainer": {"command": ["train"], "wrap": wrap}}, (), KIT, "a test")
    assert says in str(caught.value)


def test_a_wrap_that_is_not_there_is_named_with_its_key(kit: Kit) -> None:
    kit.config(trainer={"wrap": ["apptainer-of-nowhere", "exec"]})
    said = kit("run", "T-1", "--dry-run", code=127).stderr
    assert (
        "the trainer's program 'apptainer-of-nowhere' is not there or not executable (trainer.wrap, seen from" in said
    )


@pytest.mark.parametrize(
    ("python", "command", "asked"),
    [
        (None, ["{python}", "x.py"], "python"),
        ("python3.11", ["{python}", "x.py"], "python3.11"),
        ("venv/bin/python", ["{python}", "x.py"], "/root/venv/bin/python"),
        (None, ["python3", "x.py"], "python3"),
        (None, ["torchrun", "x.py"], "python"),
    ],
)
def test_the_python_behind_a_wrap_is_not_looked_for_on_this_side_of_it(
    python: str | None, command: list[str], asked: str
) -> None:
    resolved = {"trainer": {"wrap": ["uv", "run"], "command": command, "python": python, "extra_args": []}}
    found = interpreter.configured_python(resolved, Path("/root"))
    argv = trainer_command.build_argv(resolved, {"python": found}, is_resume=False)
    words = interpreter.asked_as(argv, Path("/here"), found, resolved)
    assert words[3:] == ("/here", "uv", "run", asked)
    assert not interpreter.is_wrapped(resolved, argv)
