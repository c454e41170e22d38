"""Every command has a manual: `--help` equals its golden file, README shows its usage.

To accept a change: `make approve`.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from support.places import ROOT

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
def test_an_unknown_option_is_one_sentence_with_the_known_ones_and_where_the_manual_is(command: str) -> None:
    done = subprocess.run([ROOT / "bin" / command, "EXP-01", "--stpe"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{command}: unknown option '--stpe'; known are --")
    assert line.endswith(f" ('{command} --help' is the manual)")
    shown = set(re.findall(r"--[a-z-]+", line)) - {"--stpe", "--help"}
    assert shown == options_of(command) - {"--version"}
    assert len(line) <= 4 * 80, "four lines of a terminal"


def test_an_option_that_takes_no_value_is_not_called_unknown() -> None:
    done = subprocess.run([ROOT / "bin/run.sh", "EXP-01", "--fresh=1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run.sh: option '--fresh' takes no value ('run.sh --help' is the manual)\n"


def test_an_option_whose_value_was_forgotten_does_not_swallow_the_next_one() -> None:
    done = subprocess.run([ROOT / "bin/run.sh", "EXP-01", "--name", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run.sh: option '--name' needs a value (")


def options_of(command: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", usage_of(help_of(command))))


def sentences_of(module: Path) -> list[str]:
    """Return every text in a module that is no docstring; of an f-string its words, each value as one letter."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            found.append(node.value)
    docs = {
        ast.get_docstring(n, clean=False)
        for n in ast.walk(tree)
        if isinstance(n, (ast.Module, ast.FunctionDef, ast.ClassDef))
    }
    return [text for text in found if text not in docs]


def test_a_hint_names_the_command_of_an_option_that_only_one_has() -> None:
    """run.sh and resume.sh say the same sentences: "--step branches" is no help to who has typed run.sh."""
    only = {command: options_of(command) for command in ("run.sh", "resume.sh")}
    unnamed = []
    # What request.py says is about the options that were given; --answer-to and its kin are the launcher's own.
    for module in sorted((ROOT / "lib" / "resumekit").rglob("*.py")):
        if module.name in ("request.py", "dry_run.py"):
            continue
        for text in sentences_of(module):
            for command, other in (("run.sh", "resume.sh"), ("resume.sh", "run.sh")):
                for option in only[command] - only[other]:
                    for match in re.finditer(rf"(?<![-\w]){option}(?![-\w])", text):
                        before, words = text[: match.start()], text.replace(option, "")
                        is_given = "given with " in before[-12:] or not re.search("[a-z]{2}", words)
                        if not is_given and not re.search(rf"{re.escape(command)}( --[a-z]+| [A-Z_]+)* $", before):
                            unnamed.append(f"{module.name}: {text}")
    assert not unnamed


@pytest.mark.parametrize("door", ["config_resolver.py", "resume_helper.py"])
def test_the_doors_for_people_have_help(door: str) -> None:
    done = subprocess.run(
        [os.environ.get("PYTHON", "python3"), ROOT / "lib" / door, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "usage:" in done.stdout.lower()
