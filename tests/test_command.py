"""The trainer's command line: placeholders, the program, and the script that runs it again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from resumekit.basics.errors import InvalidFile, ToolMissing
from resumekit.planning import command

CONFIG = {
    "training": {"max_steps": 5, "amp": True, "grad_clip": None, "betas": [1, 2]},
    "trainer": {
        "command": ["train", "{run_id}"],
        "resume_args": ["--from={checkpoint}"],
        "extra_args": ["{run_id}", "a b"],
    },
}
VALUES = {"run_id": "R 1", "checkpoint": "/c/{step}.pt"}


@pytest.mark.parametrize(
    "template, expected",
    [
        ("--id={run_id}", "--id=R 1"),
        ("{training.max_steps}/{training.amp}", "5/true"),
        ("{{run_id}}", "{run_id}"),
        ("{{{run_id}}}", "{R 1}"),
        ("$(x) `y` ; *", "$(x) `y` ; *"),
        ("{checkpoint}", "/c/{step}.pt"),
    ],
)
def test_placeholders_become_part_of_one_element(template: str, expected: str):
    assert command.fill(template, VALUES, CONFIG, "trainer.command") == expected


@pytest.mark.parametrize(
    "template, words",
    [
        ("{run_idd}", "did you mean '{run_id}'"),
        ("{training.max_step}", "did you mean '{training.max_steps}'"),
        ("{training.grad_clip}", "is null in this config"),
        ("{training.betas}", "is not a single value"),
        ("{training}", "is not a single value"),
        ("{}", "unknown placeholder '{}'"),
    ],
)
def test_a_placeholder_that_is_none_is_refused(template: str, words: str):
    with pytest.raises(InvalidFile, match=r"trainer\.command") as refused:
        command.fill(template, VALUES, CONFIG, "trainer.command")
    assert words in str(refused.value)


def test_resume_args_come_on_a_resume_and_what_stood_behind_the_dashes_is_left_as_it_is():
    assert command.build_argv(CONFIG, VALUES, is_resume=False) == ["train", "R 1", "{run_id}", "a b"]
    assert command.build_argv(CONFIG, VALUES, is_resume=True)[2] == "--from=/c/{step}.pt"


def test_a_nul_in_an_argument_is_refused():
    config = {"trainer": {"command": ["train", "a\0b"], "resume_args": [], "extra_args": []}}
    with pytest.raises(InvalidFile, match="NUL"):
        command.build_argv(config, {}, is_resume=False)


def test_the_program_is_looked_for_before_anything_is_started(tmp_path: Path):
    (tmp_path / "run.py").write_text("#!/bin/sh\n")
    for program in ("nothing-of-this-name", "./run.py", "./gone"):
        with pytest.raises(ToolMissing, match=r"trainer\.command"):
            command.check_program([program], tmp_path, "/usr/bin:/bin")
    (tmp_path / "run.py").chmod(0o755)
    command.check_program(["./run.py"], tmp_path, "/usr/bin:/bin")


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["nosuchprogram"], "mend it, or write null"),
        ([""], "mend it, or write null"),
        (["./tell.sh"], "mend it, or write null"),
        (["cat -n x"], "write each word by itself, [cat, -n, x]"),
        (["no such", "x"], "mend it, or write null"),
    ],
)
def test_a_notifier_that_cannot_run_is_named_with_what_to_do(argv: list[str], advice: str, tmp_path: Path):
    with pytest.raises(InvalidFile, match=r"notify\.command") as refused:
        command.check_notifier(argv, tmp_path, "/usr/bin:/bin")
    assert f"'{argv[0]}'" in str(refused.value) and str(refused.value).endswith(advice)


def test_a_notifier_is_looked_for_from_the_root_and_on_the_path(tmp_path: Path):
    (tmp_path / "tell.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tell.sh").chmod(0o755)
    for argv in (None, ["cat", "-n"], ["./tell.sh"], [str(tmp_path / "tell.sh"), "x"]):
        command.check_notifier(argv, tmp_path, "/usr/bin:/bin")


def test_the_script_runs_the_same_when_it_is_pasted(weird_tmp_path: Path):
    argv = ["sh", "-c", 'printf "<%s>" "$@" "$PWD" "$MARK"; exit 7', "-", "it's", "a\nb", "$(x)", "-n", "ä", ""]
    script = command.as_script(argv, weird_tmp_path, {"MARK": "'\"\n"}, "R")
    (weird_tmp_path / "command.sh").write_bytes(script)
    expected = "<it's><a\nb><$(x)><-n><ä><>" + f"<{weird_tmp_path}><'\"\n>"
    run = subprocess.run(["bash", str(weird_tmp_path / "command.sh")], capture_output=True, cwd="/")
    assert (run.returncode, run.stdout.decode()) == (7, expected)
    pasted = subprocess.run(["bash"], input=script + b'echo "code $? in $PWD"\n', capture_output=True, cwd="/")
    assert pasted.stdout.decode() == expected + "code 7 in /\n", "the shell that it is pasted into lives on"
