"""The example carries out a plan: a swap with its ramp, an architecture edit, and what its status says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from arc_start import starting_step
from hrm_optim import kind_of
from support.example_jobs import go_on, job, load, save, with_changes
from support.example_runs import example_server
from support.resume_parts import same

RAMP = {"from_step": 5, "steps": 3, "factor": 0.8, "warm_restart": False}


pytestmark = pytest.mark.usefixtures("outside_the_kit")


def write_plan(folder: Path, ramp: dict | None = None, **actions: str) -> Path:
    """Write the part of a plan that the trainer's side reads; components that are not named are loaded."""
    loaded = ("weights", "optimizer.model", "optimizer.puzzles", "scheduler", "ema", "counters", "rng", "data_position")
    chosen = dict.fromkeys(loaded, "load") | {name.replace("__", "."): action for name, action in actions.items()}
    plan = {
        "version": 1, "step": 5, "new_params": "module", "lr_scale": {"factor": 1.0, "ramp": ramp},
        "components": {name: {"action": action, "why": "as the test says"} for name, action in chosen.items()},
    }  # fmt: skip
    (folder / "resume_plan.json").write_text(json.dumps(plan))
    return folder / "resume_plan.json"


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> tuple[Path, Any]:
    """A checkpoint of step 5 of a run with AdamW, and the training that it is of."""
    training = job()
    go_on(training, 5)
    return save(training, tmp_path_factory.mktemp("parent")), training


def planned_load(path: Path, plan: Path, config: dict, monkeypatch: Any) -> Any:
    """Load as a trainer under that plan does."""
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
    training = load(path, config, starting_step(str(path), None, "{step}.pt"))
    monkeypatch.delenv("RESUMEKIT_PLAN")
    return training


@pytest.mark.parametrize("changed", [{"swap_at": 5, "swap_to": "lion"}, {"name": "lion"}])
def test_a_planned_swap_ramps_the_rate_and_a_later_resume_inherits_lion_and_ramp(
    changed, parent, tmp_path, monkeypatch
):
    path, before = parent
    config = with_changes(optimizer=changed | {"swap_weight_decay": 0.02})
    plan = write_plan(tmp_path, RAMP, optimizer__model="swap", scheduler="refit")
    swapped = planned_load(path, plan, config, monkeypatch)
    assert (kind_of(swapped.optimizers), swapped.progress.swap_from_step) == ("lion", 5)
    assert swapped.optimizers["model"].param_groups[0]["weight_decay"] == 0.02
    assert not swapped.optimizers["model"].state
    assert same(swapped.model.state_dict(), before.model.state_dict())
    rates = [swapped.step().lr for _ in range(2)]
    later_path = save(swapped, tmp_path / "later")
    expected = [vars(swapped.step()) for _ in range(2)]
    rates += [outcome["lr"] for outcome in expected]
    factors = [before.schedule.rate(step) for step in range(5, 9)]
    assert rates == [1e-3 * (share * factor) for share, factor in zip((0.8, 0.8, 0.8, 1.0), factors, strict=True)]
    later = load(later_path, config, begins_at=7)
    assert (later.lr_ramp, later.progress.swap_from_step) == (RAMP, 5)
    assert later.optimizers["model"].param_groups[0]["weight_decay"] == 0.02
    assert [vars(later.step()) for _ in range(2)] == expected


def test_the_swap_of_the_models_optimizer_leaves_the_puzzles_rate_as_it_is(parent, tmp_path, monkeypatch):
    path, before = parent
    ramp = RAMP | {"optimizers": ["model"]}
    plan = write_plan(tmp_path, ramp, optimizer__model="swap", scheduler="refit")
    swapped = planned_load(path, plan, with_changes(optimizer={"swap_at": 5, "swap_to": "lion"}), monkeypatch)
    shape = before.schedule.rate(5)
    assert swapped.schedule.get_last_lr() == [1e-3 * (0.8 * shape), 1e-2 * shape]


def test_an_added_head_and_droppath_keep_every_old_weight_and_moment_bit_for_bit(parent, tmp_path, monkeypatch):
    path, before = parent
    config = with_changes(model={"aux_rule_head": True, "droppath_h": "0..0.2"})
    plan = write_plan(tmp_path, weights="partial", optimizer__model="partial", ema="partial")
    edited = planned_load(path, plan, config, monkeypatch)
    old, new = before.model.state_dict(), edited.model.state_dict()
    assert set(new) - set(old) == {"rule_head.weight", "rule_head.bias"}
    assert all(torch.equal(new[name], old[name]) for name in old)
    states = [
        {name: one.optimizers["model"].state.get(weight) for name, weight in one.model.named_parameters()}
        for one in (before, edited)
    ]
    assert not states[1].pop("rule_head.weight") and not states[1].pop("rule_head.bias")
    assert same(*states)
    assert same(edited.carries[0].state_dict(), before.carries[0].state_dict())
    assert edited.step().not_finite is None
    moments = edited.optimizers["model"].state[edited.model.rule_head.weight]
    assert int(moments["step"]) == 1, "the new parameters' moments begin here"


def test_the_status_names_the_optimizer_its_swap_and_the_scale_of_the_coming_step(parent, tmp_path):
    path, _ = parent
    plan = write_plan(tmp_path, RAMP, optimizer__model="swap", scheduler="refit")
    (tmp_path / "config.json").write_text(json.dumps(with_changes(optimizer={"swap_at": 5, "swap_to": "lion"})))
    flags = ["--config", "config.json", "--resume", str(path), "--max_steps", "7"]
    flags += ["--status_json_path", str(tmp_path / "status.json"), "--checkpoint_dir", str(tmp_path / "checkpoints")]
    done = subprocess.run(
        [sys.executable, *example_server().command("train_arc_full_nova", *flags)[1:]],
        cwd=tmp_path, env=os.environ | {"RESUMEKIT_PLAN": str(plan)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status = json.loads((tmp_path / "status.json").read_text())
    seen = [status[name] for name in ("global_step", "optimizer", "swap_from_step", "lr_scale")]
    assert seen == [7, "lion", 5, 0.8]
    used = job(with_changes(training={"max_steps": 7})).schedule.rate(6) * 0.8 * 1e-3
    assert status["lr"] == pytest.approx(used, rel=1e-12), "the last step's, not the coming one's"
