"""A start at a terminal that cannot succeed is not tried again; what may heal is, and what no user waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumekit.base.paths import RunPaths
from resumekit.run import log_end, run_end
from resumekit.run.run_folder import Run
from resumekit.watch import failed_start
from support.commands import Kit
from support.long_tests import long
from support.processes import wait_until
from support.recoveries import configure, live
from support.runs import events
from support.terminal import Terminal


def write_trainer(kit: Kit, code: str, **more: object) -> Path:
    script = kit.folder / "train.py"
    script.write_text(code)
    configure(kit, trainer={"command": ["{python}", str(script).replace("{", "{{"), *more.get("args", ())]})
    return script


def test_a_misspelt_option_ends_the_command_with_the_trainer_s_code_and_one_sentence(kit: Kit) -> None:
    configure(kit, notify={"command": ["tee", "-a", str(kit.folder / "told")]})
    terminal = Terminal(kit, "run", "T-1", "--", "--learning_rat=1")
    assert terminal.wait() == 2
    said = " ".join(terminal.shown.decode().split())
    assert "is not tried again: the trainer does not take its arguments: toy_trainer.py: error: unrecogni" in said
    (run,) = kit.run_dirs()
    assert events(run, "recovery")[-1]["outcome"] == "needs_attention" and live(kit) == []
    assert not (kit.folder / "told").exists(), "the person has been told"
    assert kit.status(run)["state"] == "needs_attention"
    kit("run", "T-1")  # corrected: it begins, whatever became of the first one


def test_away_from_a_terminal_the_person_is_told_in_the_other_way(kit: Kit) -> None:
    """`nohup run.sh`, cron, a terminal that was closed: what is said there is read by no person."""
    configure(kit, notify={"command": ["tee", "-a", str(kit.folder / "told")]})
    assert "is not tried again" in kit("run", "T-1", "--", "--learning_rat=1", code=2).stderr
    assert "does not take its arguments" in (kit.folder / "told").read_text()


@pytest.mark.parametrize("how", ["saves", "takes long"])
def test_a_run_whose_steps_no_pattern_reads_has_begun_once_it_saves_or_has_run_for_long(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It prints epochs; what it dies of in its eighth may heal: a file of a network drive is not there."""
    run = Run(RunPaths(kit.folder), {"checkpoint": None})
    state = {"last_checkpoint_step": 7} if how == "saves" else {}
    end = {"code": 1, "signal": None, "elapsed_s": 3.0 if how == "saves" else 36000.0}
    monkeypatch.setattr(run_end, "read", lambda _run: end)
    monkeypatch.setattr(log_end, "last_error_of", lambda _run, _code: log_end.LastError("shard_0123.tar", log_end.FILE))
    assert failed_start.cannot_heal(run, state) is None
    assert failed_start.cannot_heal(run, {}) is None or how == "saves"
    end["elapsed_s"] = 3.0
    assert failed_start.cannot_heal(run, {}) == "a file is not there: shard_0123.tar"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import torch_that_is_not_there\n", "no module named torch_that_is_not_there in '"),
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\")\n",
            "'): install torch there, or name another interpreter with trainer.python",
        ),
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
        long("raise ConnectionRefusedError('Connection refused')\n", {}, False),
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
