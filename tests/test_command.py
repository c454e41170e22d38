"""The trainer's command line: placeholders, the program, and the script that runs it again."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from resumekit.base.errors import InvalidFile, ToolMissing
from resumekit.config import schema
from resumekit.start import choice, interpreter, trainer_command
from resumekit.start.request import parse
from support.commands import Kit

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
    assert trainer_command.fill(template, VALUES, CONFIG, "trainer.command") == expected


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
        trainer_command.fill(template, VALUES, CONFIG, "trainer.command")
    assert words in str(refused.value)


def test_resume_args_come_on_a_resume_and_what_stood_behind_the_dashes_is_left_as_it_is():
    assert trainer_command.build_argv(CONFIG, VALUES, is_resume=False) == ["train", "R 1", "{run_id}", "a b"]
    assert trainer_command.build_argv(CONFIG, VALUES, is_resume=True)[2] == "--from=/c/{step}.pt"


def test_a_nul_in_an_argument_is_refused():
    config = {"trainer": {"command": ["train", "a\0b"], "resume_args": [], "extra_args": []}}
    with pytest.raises(InvalidFile, match="NUL"):
        trainer_command.build_argv(config, {}, is_resume=False)


def test_the_program_is_looked_for_before_anything_is_started(tmp_path: Path):
    (tmp_path / "run.py").write_text("#!/bin/sh\n")
    for program in ("nothing-of-this-name", "./run.py", "./gone"):
        with pytest.raises(ToolMissing, match=r"trainer\.command"):
            trainer_command.check_program([program], tmp_path, "/usr/bin:/bin")
    with pytest.raises(ToolMissing, match="are not expanded here: write '/"):
        trainer_command.check_program(["~/train"], tmp_path, "/usr/bin:/bin")
    python = interpreter.configured_python({"trainer": {"python": "~/.venv/bin/python"}}, tmp_path)
    with pytest.raises(ToolMissing, match=re.escape(f"write '{os.path.expanduser('~/.venv/bin/python')}'")):
        trainer_command.check_program([python], tmp_path, "/usr/bin:/bin")
    (tmp_path / "run.py").chmod(0o755)
    trainer_command.check_program(["./run.py"], tmp_path, "/usr/bin:/bin")


@pytest.mark.parametrize(
    ("words", "script"),
    [
        ([], None),
        (["train.py", "gone.py"], "train.py"),
        (["-u", "-Im", "train", "gone.py"], None),
        (["-uIS", "-X", "utf8", "-Xdev", "-W", "ignore", "a b.py"], "a b.py"),
        (["-c", "print()", "gone.py"], None),
        (["-m", "train"], None),
        (["-"], None),
        (["--check-hash-based-pycs", "never", "train.py"], None),
    ],
)
def test_the_script_that_a_python_runs_is_told_from_its_options(words: list[str], script: str | None):
    assert interpreter.script_of(["/usr/bin/python3.11", *words]) == script
    assert interpreter.script_of(["bash", *words]) is None


@pytest.mark.parametrize("switch", [[], ["--dry-run"]])
def test_a_program_or_a_script_that_is_not_there_is_one_sentence_with_its_key_and_nothing_is_made(
    kit: Kit, switch: list[str]
):
    kit.config(trainer={"command": ["{python}", "-u", "trian.py"]})
    said = kit("run", "T-1", *switch, code=127).stderr
    assert said.startswith("run.sh: the script 'trian.py' is not there (trainer.command, seen from '")
    assert said.endswith("'); name one that is\n") and said.count("\n") == 1
    kit.config(trainer={"python": ".venv/bin/python"})
    said = kit("run", "T-1", *switch, code=127).stderr
    assert "/.venv/bin/python' is not there or not executable (trainer.python, seen from '" in said
    assert said.endswith("'); name one that is\n") and not kit.runs.exists()


def test_a_placeholder_is_told_from_the_nearest_alone():
    for name, hint in (("optimizer.lrr", ""), ("training.max_step", "; did you mean '{training.max_steps}'?")):
        with pytest.raises(InvalidFile) as raised:
            config = {"training": {"max_steps": 1}, "resume": {"optimizer": "auto"}}
            trainer_command.fill(f"{{{name}}}", VALUES, config, "trainer.command")
        assert str(raised.value).startswith(f"unknown placeholder '{{{name}}}' in trainer.command{hint} (a brace")


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
        trainer_command.check_notifier(argv, tmp_path, "/usr/bin:/bin")
    assert f"'{argv[0]}'" in str(refused.value) and str(refused.value).endswith(advice)


def test_a_notifier_is_looked_for_from_the_root_and_on_the_path(tmp_path: Path):
    (tmp_path / "tell.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tell.sh").chmod(0o755)
    for argv in (None, ["cat", "-n"], ["./tell.sh"], [str(tmp_path / "tell.sh"), "x"]):
        trainer_command.check_notifier(argv, tmp_path, "/usr/bin:/bin")


def test_the_script_runs_the_same_when_it_is_pasted(weird_tmp_path: Path):
    argv = ["sh", "-c", 'printf "<%s>" "$@" "$PWD" "$MARK"; exit 7', "-", "it's", "a\nb", "$(x)", "-n", "ä", ""]
    script = trainer_command.as_script(argv, weird_tmp_path, {"MARK": "'\"\n"}, "R")
    (weird_tmp_path / "command.sh").write_bytes(script)
    expected = "<it's><a\nb><$(x)><-n><ä><>" + f"<{weird_tmp_path}><'\"\n>"
    run = subprocess.run(["bash", str(weird_tmp_path / "command.sh")], capture_output=True, cwd="/")
    assert (run.returncode, run.stdout.decode()) == (7, expected)
    pasted = subprocess.run(["bash"], input=script + b'echo "code $? in $PWD"\n', capture_output=True, cwd="/")
    assert pasted.stdout.decode() == expected + "code 7 in /\n", "the shell that it is pasted into lives on"


KIT_SCHEMA = schema.load()


@pytest.mark.parametrize(
    "words, key, is_told",
    [
        (["train"], "optimizer.lr", False),
        (["train"], "training.max_steps", False),
        (["train"], "checkpoint.every", False),
        (["train", "--lr={optimizer.lr}"], "optimizer.lr", True),
        (["train", "--lr={optimizer.lr}"], "training.max_steps", False),
        (["train", "{config_json}"], "optimizer.lr", True),
        (["train", "{config_yaml}"], "optimizer.lr", True),
        (["sh", "train.sh", "{run_dir}"], "optimizer.lr", True),
        (["train"], "checkpoint.pattern", True),
        (["train"], "data.path", True),
    ],
)
def test_what_a_trainer_is_told_of_is_seen_in_its_command_or_the_kit_acts_on_it(words: list, key: str, is_told: bool):
    told = {"trainer": {"command": words, "resume_args": [], "loads_with_kit": False}}
    assert trainer_command.is_told(told, key) == is_told
    assert trainer_command.is_told({"trainer": {**told["trainer"], "loads_with_kit": True}}, key)


def test_a_lab_s_own_section_and_each_key_of_the_config_hash_is_the_trainer_s():
    """But for the arguments of a command line, which are part of the hash."""
    deaf = {"trainer": {"command": ["train"], "resume_args": [], "loads_with_kit": False}}
    hashed = [key for key in KIT_SCHEMA.leaves if KIT_SCHEMA.hashed(key) and key != "trainer.extra_args"]
    assert hashed and not any(trainer_command.is_told(deaf, key) for key in [*hashed, "augmentation.mixup"])


def test_settings_that_do_not_reach_the_trainer_are_warned_of(kit: Kit):
    def said(*words: str) -> str:
        options = parse(["--experiment=T-1", f"--config={kit.config_file}", f"--runs={kit.runs}", *words])
        return "\n".join(choice.choose_start(options.request()).said)

    settings = ("--set=learning_rate=1e-3", "--set=training={batch_size: 4}", "--set=max_steps=9", "--set=grace_s=5")
    assert "warning: the trainer is not told of optimizer.lr, training.batch_size (--set): " in said(*settings)
    assert said(*settings[2:]) == ""
