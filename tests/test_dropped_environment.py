"""A trainer behind a wrapper that drops the launcher's variables: the plan reaches it all the same, or the run ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from resumekit.trainer import decisions, trainer_env
from support.acceptance_events import PARENT, healthy, judged
from support.commands import Kit
from support.fork_server import ForkServer
from support.long_tests import long
from support.places import ROOT
from support.runs import events

TRAINER = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from resumekit.trainer.heartbeat import journal_event
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint

torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
checkpoint = sys.argv[4] if len(sys.argv) > 4 else None
if "--ignore" in sys.argv:
    step = 4
else:
    step = load_resume_bundle(model, optimizer, ckpt_path=checkpoint).global_step
while step < 6:
    loss = model(torch.ones(1, 2)).square().sum()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    step += 1
    print(f"step {step} loss {loss.item()}", flush=True)
    journal_event("step", step=step, loss=loss.item())
    if step == 4:
        save_checkpoint(sys.argv[1], step, model=model, optimizer=optimizer, data_state={"step": step})
        if checkpoint is None:
            sys.exit(0)
"""


@pytest.fixture
def lab(kit: Kit, tmp_path: Path, scripts: ForkServer) -> Any:
    script = tmp_path / "train.py"
    script.write_text(TRAINER)

    def set_up(*wrapper: str, more: tuple[str, ...] = ()) -> Kit:
        command = [*wrapper, *scripts.script(script, "{checkpoints_dir}", str(ROOT / "lib"))]
        trainer = {"command": command, "resume_args": ["--resume", "{checkpoint}", *more], "loads_with_kit": True}
        kit.config(trainer=trainer, training={"max_steps": 6}, checkpoint={"pattern": "ck_{step}.pt"})
        return kit

    return set_up


@pytest.mark.parametrize(
    "drop",
    [
        long(["-u", "RESUMEKIT_PLAN"], id="plan"),
        pytest.param(["-i", f"PATH={os.environ['PATH']}"], id="all"),
    ],
)
def test_the_plan_reaches_a_trainer_whatever_drops_its_variables(lab: Any, drop: list[str]) -> None:
    kit = lab()
    kit("run", "T-1", code=None)
    lab("env", *drop, f"RESUMEKIT_TEST_MARK={kit.mark}")
    reset = ("--set", "resume.optimizer=reset", "--set", "resume.scheduler=reset")
    kit("resume", "T-1", *reset, "--reresolve", "--accept", code=None)
    assert json.loads((kit.run_dirs()[-1] / "run.json").read_text())["argv"][0] == "env"
    told = events(kit.run_dirs()[-1])
    (resumed,) = [one for one in told if one["event"] == "resumed"]
    assert resumed["plan"] == str(kit.run_dirs()[-1] / "resume_plan.json")
    assert resumed["step"] == 4 and resumed["report"]["optimizer"].startswith("reset: resume.optimizer is 'reset'")
    assert {one["run_id"] for one in told} == {kit.run_dirs()[-1].name}
    (step,) = [one for one in told if one["event"] == "check" and one["name"] == "step"]
    assert step["verdict"] == "passed"


def test_a_trainer_that_never_loads_ends_the_run_with_7(lab: Any) -> None:
    kit = lab(more=("--ignore",))
    kit("run", "T-1", code=None)
    failed = kit("resume", "T-1", "--accept", code=7)
    assert "the trainer has not loaded a checkpoint with load_resume_bundle" in failed.stdout + failed.stderr


def test_a_run_folder_is_known_by_the_output_that_a_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RESUMEKIT_RUN_DIR", raising=False)
    monkeypatch.delenv("RESUMEKIT_RUN_ID", raising=False)
    log = tmp_path / "EXP-01_x" / "logs" / "output.log"
    log.parent.mkdir(parents=True)
    monkeypatch.setattr(os, "readlink", lambda path: str(log) if path == "/proc/self/fd/2" else "/dev/null")
    assert trainer_env.run_dir() is None, "a log of that name that is no run's"
    (tmp_path / "EXP-01_x" / "run.json").write_text(json.dumps({"run_id": "EXP-01_x", "parent_step": 7}))
    assert (trainer_env.run_dir(), trainer_env.run_id()) == (tmp_path / "EXP-01_x", "EXP-01_x")
    assert trainer_env.lineage()["parent_step"] == 7
    monkeypatch.delenv(decisions.VARIABLE, raising=False)
    assert decisions.read_plan() is None, "a fresh start"


def test_a_load_that_did_not_go_by_the_plan_s_rate_is_a_failed_check() -> None:
    told = [{**one, "lr_scale": 1.0} if one["event"] == "resumed" else one for one in healthy()]
    assert judged(told, PARENT._replace(scale=1.0))["lr"].verdict != "failed"
    check = judged(told, PARENT._replace(scale=0.8))["lr"]
    assert (check.verdict, check.expected, check.found) == ("failed", "lr_scale 0.8", "1")


def test_without_a_load_by_the_first_steps_the_step_check_fails() -> None:
    told = [one for one in healthy() if one["event"] != "resumed"]
    assert judged(told, PARENT._replace(loads_with_kit=True))["step"].verdict == "failed"
    assert judged(told, PARENT._replace(loads_with_kit=False))["step"].verdict == "passed"
