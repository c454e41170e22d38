"""Every command has a manual: `--help` equals its golden file, README shows its usage.

To accept a change: `make approve`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT

GOLDEN = Path(__file__).resolve().parent / "golden"
COMMANDS = sorted(path.name for path in (ROOT / "bin").glob("*.sh"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def help_of(command: str) -> str:
    done = subprocess.run([ROOT / "bin" / command, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def usage_of(text: str) -> str:
    """Return the usage of a help text, from the command's name to the empty line, without indentation."""
    block = re.search(r"^Usage: (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert block, "no line 'Usage:'"
    return "\n".join(line.strip() for line in block[1].splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_the_golden_text(command: str) -> None:
    text, golden = help_of(command), GOLDEN / f"{command}.help"
    if os.environ.get("RESUMEKIT_APPROVE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "if this is meant: make approve"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_part_of_a_manual(command: str) -> None:
    text = help_of(command)
    for part in ("Summary: ", "Usage: ", "Example:", "Exit status:"):
        assert f"\n{part}" in f"\n{text}", part
    assert text.splitlines()[0].startswith("Summary: ")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_shows_the_usage_that_the_command_prints(command: str) -> None:
    fenced = README.split("\n```")[1::2]  # every second part stands between two fences
    shown = ["\n".join(line.strip() for line in block.splitlines()[1:]) for block in fenced]
    assert usage_of(help_of(command)) in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_the_usage_is_explained_and_the_other_way_round(command: str) -> None:
    text = help_of(command)
    used = set(re.findall(r"--[a-z]+", usage_of(text)))
    body = text.split("\n\n", 1)[1].split("Example:")[0]
    explained = set(re.findall(r"^  (--[a-z]+)", body, re.MULTILINE))
    assert used - explained <= {"--json"}
    assert explained <= used


@pytest.mark.parametrize("command", COMMANDS)
def test_a_usage_error_is_one_sentence_and_the_usage(command: str) -> None:
    done = subprocess.run([ROOT / "bin" / command, "EXP-01", "--stpe"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first == f"{command}: unknown option '--stpe'"
    assert rest[0].startswith("Usage: ")
    assert rest[-1] == f"Try '{command} --help'."


def test_an_option_whose_value_was_forgotten_does_not_swallow_the_next_one() -> None:
    done = subprocess.run([ROOT / "bin/run.sh", "EXP-01", "--name", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run.sh: option '--name' needs a value\n")


@pytest.mark.parametrize("door", ["config_resolver.py", "resume_helper.py"])
def test_the_doors_for_people_have_help(door: str) -> None:
    done = subprocess.run(
        [os.environ.get("PYTHON", "python3"), ROOT / "lib" / door, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "usage:" in done.stdout.lower()
