"""A start at a terminal that cannot succeed is not tried again; what may heal is, and what nobody waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Kit, events, wait_until
from test_recovery import configure, live


def write_trainer(kit: Kit, code: str, **more: object) -> Path:
    script = kit.folder / "train.py"
    script.write_text(code)
    configure(kit, trainer={"command": ["{python}", str(script).replace("{", "{{"), *more.get("args", ())]})
    return script


def test_a_misspelt_option_ends_the_command_with_the_trainer_s_code_and_one_sentence(kit: Kit) -> None:
    configure(kit, notify={"command": ["tee", "-a", str(kit.folder / "told")]})
    done = kit("run", "T-1", "--", "--learning_rat=1", code=2)
    assert (
        "is not tried again: the trainer does not take its arguments: toy_trainer.py: error: unrecogni" in done.stderr
    )
    (run,) = kit.run_dirs()
    assert events(run, "recovery")[-1]["outcome"] == "needs_attention" and live(kit) == []
    assert not (kit.folder / "told").exists(), "the person has been told"
    assert kit.status(run)["state"] == "needs_attention"
    kit("run", "T-1")  # corrected: it begins, whatever became of the first one


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import torch_that_is_not_there\n", "no module named torch_that_is_not_there in '"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")\n", "'make setup' installs torch"),
        ("open('data.bin')\n", "a file is not there: FileNotFoundError"),
        ("modle.train()\n", "NameError: name 'modle' is not defined"),
    ],
)
def test_what_cannot_succeed_is_not_tried_again(kit: Kit, code: str, words: str) -> None:
    write_trainer(kit, code)
    assert words in kit("run", "T-1", code=1).stderr
    assert len(kit.run_dirs()) == 1


@pytest.mark.parametrize(
    ("code", "env", "detached"),
    [
        ("raise RuntimeError('CUDA error: device busy')\n", {}, False),
        ("raise ConnectionRefusedError('Connection refused')\n", {}, False),
        ("import torch_that_is_not_there\n", {"SLURM_JOB_ID": "7"}, False),
        ("import torch_that_is_not_there\n", {}, True),
    ],
)
def test_what_may_heal_and_what_no_one_waits_for_is_tried_again(
    kit: Kit, code: str, env: dict[str, str], detached: bool
) -> None:
    write_trainer(kit, code)
    launcher = kit.popen("run", "T-1", *(["--detach"] if detached else []), env=env)
    wait_until(lambda: len(kit.run_dirs()) == 2, "a second start")
    launcher.kill()


def test_a_start_that_has_made_a_step_is_taken_up(kit: Kit) -> None:
    write_trainer(kit, "print('step 1 loss 0.5', flush=True)\nimport torch_that_is_not_there\n")
    launcher = kit.popen("run", "T-1")
    wait_until(lambda: len(kit.run_dirs()) == 2, "a second start")
    launcher.kill()
