"""optimizer_policy='swap_to_lion' without a plan: once, with a ramp, and never unnoticed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from resumekit.base.errors import InvalidFile, KitError
from resumekit.run.journal_fold import fold
from resumekit.trainer.loading import ResumeBundle, load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Lion, Net, moments, same, train
from support.runs import events

pytestmark = pytest.mark.usefixtures("in_a_new_process")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """lion_pytorch can be imported."""
    package = ModuleType("lion_pytorch")
    package.Lion = Lion  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lion_pytorch", package)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """lion_pytorch can not be imported."""
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)


def make(kind: str, seed: int) -> tuple[Net, Any, Any]:
    model = Net(seed=seed)
    optimizer = OPTIMIZERS[kind](model.parameters(), lr=0.1)
    return model, optimizer, schedules.CosineAnnealingLR(optimizer, 20)


def saved(folder: Path) -> Path:
    model, optimizer, schedule = make("adamw", 1)
    train(model, optimizer, schedule=schedule, steps=5)
    path = save_checkpoint(folder, 5, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    assert path is not None
    return path


def swap(path: Path, model: Net, optimizer: Any, schedule: Any) -> ResumeBundle:
    return load_resume_bundle(model, optimizer, schedule, ckpt_path=path, optimizer_policy="swap_to_lion", log_fn=quiet)


def test_the_lion_that_the_trainer_passes_takes_over_once(tmp_path: Path, missing: None) -> None:
    model, lion, schedule = make("lion", 2)
    bundle = swap(saved(tmp_path / "a"), model, lion, schedule)
    assert bundle.report["optimizer"] == "swap: optimizer_policy='swap_to_lion', the checkpoint holds AdamW"
    assert (
        bundle.report["scheduler"] == "refit: placed at step 5, the optimizer is swapped; the schedule keeps its phase"
    )
    assert not lion.state and bundle.optimizer is lion
    assert bundle.lr_ramp == {"from_step": 5, "steps": 1000, "factor": 0.8, "warm_restart": False}
    assert lion.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(0.05 * (1 + 0.5**0.5))
    train(model, lion, schedule=schedule)
    wanted = moments(model, lion)
    again = save_checkpoint(tmp_path / "b", 6, model=model, optimizer=lion, scheduler=schedule, log_fn=quiet)
    third, its_lion, its_schedule = make("lion", 3)
    bundle = swap(again, third, its_lion, its_schedule)
    assert bundle.report["optimizer"] == bundle.report["scheduler"] == "load"
    assert bundle.lr_ramp == {"from_step": 5, "steps": 1000, "factor": 0.8, "warm_restart": False}
    assert all(same(state, wanted[name]) for name, state in moments(third, its_lion).items())


def test_without_a_lion_and_without_the_package_it_is_said_what_to_pass(tmp_path: Path, missing: None) -> None:
    model, optimizer, schedule = make("adamw", 2)
    before = model.body.weight.clone()
    with pytest.raises(InvalidFile, match=r"needs a Lion, and the trainer passes AdamW: make lion_pytorch.Lion\("):
        swap(saved(tmp_path), model, optimizer, schedule)
    assert torch.equal(model.body.weight, before)
    train(model, optimizer)


def test_a_lion_is_made_in_its_place_and_the_old_one_refuses_to_step(tmp_path: Path, installed: None) -> None:
    path = saved(tmp_path / "a")
    model, optimizer, schedule = make("adamw", 2)
    bundle = swap(path, model, optimizer, schedule)
    lion = bundle.optimizer
    assert isinstance(lion, Lion) and schedule.optimizer is lion
    assert lion.param_groups[0]["weight_decay"] == 0.01
    assert lion.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(0.05 * (1 + 0.5**0.5))
    with pytest.raises(KitError, match=r"this AdamW was swapped for a Lion: write 'optimizer = bundle\.optimizer'"):
        train(model, optimizer)
    rates: list[float] = []
    lion.register_step_pre_hook(lambda one, *_: rates.append(one.param_groups[0]["lr"]))
    rate = lion.param_groups[0]["lr"]
    train(model, lion, schedule=schedule)
    assert rates == [rate * 0.8]
    again = save_checkpoint(tmp_path / "b", 6, model=model, optimizer=lion, scheduler=schedule, log_fn=quiet)
    wanted = moments(model, lion)
    third, its_optimizer, its_schedule = make("adamw", 3)
    bundle = swap(again, third, its_optimizer, its_schedule)
    assert bundle.report["optimizer"] == "load"
    assert all(same(state, wanted[name]) for name, state in moments(third, bundle.optimizer).items())


def test_of_several_optimizers_only_the_one_is_swapped_that_is_a_lion_now(tmp_path: Path, installed: None) -> None:
    def two(seed: int, kind: str) -> tuple[Net, dict[str, Any]]:
        model = Net(seed=seed)
        body, head = model.body.parameters(), model.head.parameters()
        return model, {"model": OPTIMIZERS[kind](body), "puzzles": OPTIMIZERS["sgd"](head)}

    model, optimizers = two(1, "adamw")
    train(model, *optimizers.values(), steps=2)
    path = save_checkpoint(tmp_path, 2, model=model, optimizer=optimizers, log_fn=quiet)
    new, fresh = two(2, "lion")
    bundle = swap(path, new, fresh, None)
    assert bundle.report["optimizer.model"].startswith("swap: ") and bundle.report["optimizer.puzzles"] == "load"
    assert not fresh["model"].state and len(fresh["puzzles"].state) == 2
    new, fresh = two(2, "adamw")
    with pytest.raises(InvalidFile, match="needs a Lion, and the trainer passes AdamW, SGD"):
        swap(path, new, fresh, None)


def test_a_scheduler_that_can_not_be_moved_is_a_reason_to_pass_a_lion(tmp_path: Path, installed: None) -> None:
    class Own:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

        def step(self) -> None: ...

    model, optimizer, _ = make("adamw", 2)
    with pytest.raises(InvalidFile, match="needs a Lion"):
        swap(saved(tmp_path), model, optimizer, Own())


def test_a_fresh_start_hands_the_trainers_own_optimizer_back(installed: None) -> None:
    model, optimizer, schedule = make("adamw", 2)
    bundle = load_resume_bundle(model, optimizer, schedule, ckpt_path=None, optimizer_policy="swap_to_lion")
    assert bundle.optimizer is optimizer
    train(model, optimizer)


def test_a_swap_is_an_event_of_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(tmp_path))
    path = saved(tmp_path / "checkpoints")
    swap(path, *make("lion", 2))
    [event] = events(tmp_path, "swap")
    assert {name: event[name] for name in ("step", "name", "old", "new")} == {
        "step": 5, "name": "", "old": "AdamW", "new": "Lion",
    }  # fmt: skip
    state = fold({}, [event])
    assert (state["optimizer"], state["swap_from_step"]) == ("lion", 5)
    load_resume_bundle(*make("adamw", 3), ckpt_path=path, log_fn=quiet)
    assert len(events(tmp_path, "swap")) == 1, "a load of the same optimizer is none"
