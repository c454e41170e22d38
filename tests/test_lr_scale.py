"""The learning rate scale: a pure function of the step, put around each optimizer step, inherited by every resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from resumekit.base.errors import InvalidFile, KitError
from resumekit.policy.lr_scale import LrScale, Ramp, from_fields
from resumekit.trainer import learning_rate
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from resumekit.trainer.trainer_env import journal_event
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net, train, write_plan
from support.runs import events
from support.schemas import assert_valid

pytestmark = pytest.mark.usefixtures("in_a_new_process")

RAMP = {"from_step": 4, "steps": 2, "factor": 0.5, "warm_restart": False}


def test_a_ramp_holds_for_its_steps_and_a_warm_restart_rises_through_them() -> None:
    scale = LrScale(0.5, Ramp(10, 4, 0.8))
    assert [scale(step) for step in (9, 10, 13, 14)] == [0.5, 0.4, 0.4, 0.5]
    rising = LrScale(1.0, Ramp(10, 4, 0.8, True))
    assert [rising(step) for step in range(9, 15)] == [1.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert from_fields(*scale.as_fields().values()) == scale and from_fields(None, None) == LrScale()


@pytest.mark.parametrize(
    ("factor", "ramp"),
    [
        ("0.5", None), (True, None), (0, None), (-1.0, None), (float("nan"), None), (float("inf"), None),
        (1.0, []), (1.0, {**RAMP, "more": 1}), (1.0, {**RAMP, "steps": -1}), (1.0, {**RAMP, "factor": "x"}),
        (1.0, {**RAMP, "from_step": 1.5}),
    ],
)  # fmt: skip
def test_a_scale_that_is_none_is_refused(factor: Any, ramp: Any) -> None:
    with pytest.raises(ValueError, match="lr_scale"):
        from_fields(factor, ramp)


def test_a_ramp_holds_for_the_optimizers_that_it_names_and_a_cut_for_all() -> None:
    scale = LrScale(0.5, Ramp(10, 4, 0.8, optimizers=("model",)))
    assert [scale(10, name) for name in ("model", "puzzles", "", None)] == [0.4, 0.5, 0.4, 0.4]
    fields = json.loads(json.dumps(scale.as_fields()))
    assert from_fields(*fields.values()) == scale
    old = LrScale(0.5, Ramp(10, 4, 0.8))
    assert old(10, "puzzles") == 0.4 and "optimizers" not in old.as_fields()["ramp"], "as checkpoints before hold it"
    for wrong in ([], "model", [1]):
        with pytest.raises(ValueError, match="has optimizers that are not a list of names"):
            from_fields(1.0, {**RAMP, "optimizers": wrong})


def rates_of_steps(optimizer: Any, model: Net, steps: int, schedule: Any = None) -> list[float]:
    """Train; return the rate that each step really used."""
    seen: list[float] = []
    handle = optimizer.register_step_pre_hook(lambda one, *_: seen.append(one.param_groups[0]["lr"]))
    train(model, optimizer, schedule=schedule, steps=steps)
    handle.remove()
    return seen


def saved(folder: Path, **more: Any) -> Path:
    model = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, schedule=schedule, steps=4)
    path = save_checkpoint(folder, 4, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet, **more)
    assert path is not None
    return path


def resumed(path: Path, **more: Any) -> tuple[Net, Any, Any, Any]:
    model = Net(seed=2)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    bundle = load_resume_bundle(model, optimizer, schedule, ckpt_path=path, **{"log_fn": quiet, **more})
    return model, optimizer, schedule, bundle


def test_the_kit_scales_each_step_and_the_schedule_does_not_notice(tmp_path: Path) -> None:
    """ExponentialLR goes on from the rate that it finds in the optimizer: a cut left there would multiply."""
    path = saved(tmp_path, lr_scale=0.5, lr_ramp=RAMP)
    model, optimizer, schedule, bundle = resumed(path)
    assert (bundle.lr_scale, bundle.lr_ramp) == (0.5, RAMP)
    assert [bundle.lr_scale_at(step) for step in (4, 5, 6)] == [0.25, 0.25, 0.5]
    rates = rates_of_steps(optimizer, model, 4, schedule)
    assert rates == pytest.approx([0.1 * 0.5**n * s for n, s in zip(range(4, 8), (0.25, 0.25, 0.5, 0.5), strict=True)])
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == 0.1 * 0.5**8


def test_a_trainer_that_scales_by_itself_is_left_to_it(tmp_path: Path) -> None:
    model, optimizer, schedule, bundle = resumed(saved(tmp_path, lr_scale=0.5), own_lr_scale=True)
    assert rates_of_steps(optimizer, model, 1, schedule) == [0.1 * 0.5**4] and bundle.lr_scale_at(4) == 0.5


@pytest.mark.parametrize(
    ("scale", "step"),
    [(LrScale(), 0), (LrScale(1.0, Ramp(0, 4, 0.8)), 4), (LrScale(1.0, Ramp(9, 4, 1.0)), 0)],
)
def test_a_scale_of_one_for_good_registers_no_hook(scale: LrScale, step: int) -> None:
    optimizer = OPTIMIZERS["sgd"]([torch.nn.Parameter(torch.ones(1))])
    learning_rate.attach_scale({"": optimizer}, scale, step)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert learning_rate.scale_of(optimizer) is None


def test_a_second_load_takes_the_first_scale_off(tmp_path: Path) -> None:
    path = saved(tmp_path, lr_scale=0.5)
    model, optimizer, schedule, _ = resumed(path)
    load_resume_bundle(model, optimizer, schedule, ckpt_path=path, log_fn=quiet)
    assert rates_of_steps(optimizer, model, 1, schedule) == [0.1 * 0.5**4 * 0.5]


def test_a_step_that_raises_leaves_no_scaled_rate_behind() -> None:
    class Breaks(torch.optim.SGD):
        broken = True

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise RuntimeError("no step")
            return super().step(closure)

    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = Breaks([weight], lr=0.1)
    learning_rate.attach_scale({"": optimizer}, LrScale(0.5), 0)
    weight.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="no step"):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 and weight.item() == pytest.approx(1 - 0.05)


def test_a_step_that_calls_its_base_classs_is_one_step() -> None:
    """torch hooks the step of every class that was ever made: both are hooked here, one inside the other."""

    class Base(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Outer(Base):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    weight = torch.nn.Parameter(torch.ones(1))
    Base([weight])
    optimizer = Outer([weight], lr=0.1)
    learning_rate.attach_scale({"": optimizer}, LrScale(1.0, Ramp(0, 2, 0.5)), 0)
    for wanted in (0.95, 0.9, 0.8):
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() == pytest.approx(wanted)


def test_steps_that_an_amp_scaler_leaves_out_are_not_counted() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    learning_rate.attach_scale({"": optimizer}, LrScale(1.0, Ramp(0, 1, 0.5)), 0)
    for gradient in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert weight.item() == pytest.approx(1 - 0.05)


def test_an_optimizer_without_hooks_is_said(tmp_path: Path) -> None:
    class Bare:
        param_groups: tuple[Any, ...] = ()

    with pytest.raises(KitError, match="a 'Bare' has no hooks to do that: call load_resume_bundle with own_lr_scale"):
        learning_rate.attach_scale({"": Bare()}, LrScale(0.5), 0)
    learning_rate.attach_scale({"": Bare()}, LrScale(), 0)


def test_a_cut_is_inherited_by_every_later_resume_though_the_trainer_knows_nothing_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path, lr_scale=0.8, lr_ramp=RAMP)
    for step in (5, 6):
        model, optimizer, schedule, bundle = resumed(path)
        assert (bundle.lr_scale, bundle.lr_ramp) == (0.8, RAMP)
        train(model, optimizer, schedule=schedule)
        path = save_checkpoint(tmp_path, step, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    content = torch.load(path, weights_only=True)
    assert (content["lr_scale"], content["lr_ramp"]) == (0.8, RAMP)


def test_a_checkpoint_keeps_what_the_trainer_says(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path), weights_only=True)
    assert (content["lr_scale"], content["lr_ramp"]) == (1.0, None)
    with pytest.raises(KitError, match=r"save_checkpoint: lr_scale is '-1\.0', not a number above 0"):
        saved(tmp_path / "b", lr_scale=-1.0)
    with pytest.raises(KitError, match="save_checkpoint: the ramp of lr_scale needs exactly"):
        saved(tmp_path / "b", lr_ramp={"steps": 3})


def test_a_broken_scale_in_a_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    path = tmp_path / "x.pt"
    torch.save({**content, "lr_ramp": {"steps": "$(touch canary)"}}, path)
    with pytest.raises(InvalidFile, match=r"x\.pt': the ramp of lr_scale needs exactly"):
        resumed(path)


def test_the_plans_scale_takes_the_place_of_the_inherited_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, lr_scale=0.5)
    scale = {"factor": 0.4, "ramp": RAMP}
    plan = write_plan(tmp_path, path, scheduler="load", lr_scale=scale)
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
    model, optimizer, schedule, bundle = resumed(path)
    assert (bundle.lr_scale, bundle.lr_ramp) == (0.4, RAMP)
    assert rates_of_steps(optimizer, model, 1, schedule) == pytest.approx([0.1 * 0.5**4 * 0.2])


def test_a_scale_that_is_not_applied_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path, lr_scale=0.5)
    for own, count in ((False, 1), (True, 0)):
        lines: list[str] = []
        load_resume_bundle(Net(seed=2), ckpt_path=path, own_lr_scale=own, log_fn=lines.append)
        assert sum("no optimizer was passed" in line for line in lines) == count


def test_the_banner_names_the_rate_that_the_next_step_uses(tmp_path: Path) -> None:
    lines: list[str] = []
    resumed(saved(tmp_path, lr_scale=0.5), log_fn=lines.append)
    assert lines[0].endswith(f"lr={0.1 * 0.5**5:g}")


class Two:
    """A trainer with two optimizers, under one schedule each; the first may be another class than in the checkpoint."""

    def __init__(self, kind: str = "adamw") -> None:
        self.model = Net(seed=1)
        self.optimizers = {
            "model": OPTIMIZERS[kind](self.model.body.parameters(), lr=0.1),
            "puzzles": OPTIMIZERS["sgd"](self.model.head.parameters(), lr=0.3),
        }

    def save(self, folder: Path, step: int) -> Path:
        return save_checkpoint(folder, step, model=self.model, optimizer=self.optimizers, log_fn=quiet)

    def load(self, path: Path, **more: Any) -> Any:
        return load_resume_bundle(self.model, self.optimizers, ckpt_path=path, **{"log_fn": quiet, **more})

    def rates(self, steps: int) -> list[tuple[float, float]]:
        """Train; return the rates that each step really used."""
        seen: dict[str, list[float]] = {name: [] for name in self.optimizers}
        for name, one in self.optimizers.items():
            one.register_step_pre_hook(lambda own, *_, name=name: seen[name].append(own.param_groups[0]["lr"]))
        train(self.model, *self.optimizers.values(), steps=steps)
        return list(zip(*seen.values(), strict=True))


def test_the_swap_of_one_optimizer_cuts_its_rate_alone_and_a_later_resume_goes_on_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Two()
    train(first.model, *first.optimizers.values(), steps=4)
    path = first.save(tmp_path, 4)
    ramp = {**RAMP, "steps": 3, "factor": 0.5, "optimizers": ["model"]}
    parts = {"optimizer.model": "swap", "optimizer.puzzles": "load"}
    plan = write_plan(tmp_path, path, **parts, lr_scale={"factor": 1.0, "ramp": ramp})
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
    second = Two("lion")
    bundle = second.load(path)
    assert [bundle.lr_scale_at(4, name) for name in ("model", "puzzles")] == [0.5, 1.0]
    assert second.rates(2) == [(0.05, 0.3)] * 2
    path = second.save(tmp_path, 6)
    monkeypatch.delenv("RESUMEKIT_PLAN")
    third = Two("lion")
    third.load(path)
    assert third.rates(2) == [(0.05, 0.3), (0.1, 0.3)]


def test_a_swap_without_a_plan_cuts_the_swapped_ones_rate_alone(tmp_path: Path) -> None:
    first = Two()
    train(first.model, *first.optimizers.values(), steps=4)
    second = Two("lion")
    bundle = second.load(first.save(tmp_path, 4), optimizer_policy="swap_to_lion")
    assert bundle.lr_ramp["optimizers"] == ["model"] and second.rates(1) == [(0.1 * 0.8, 0.3)]


def test_the_rate_that_is_told_of_a_step_is_the_one_that_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(learning_rate, "_hooks", WeakKeyDictionary())  # an optimizer of another test may live on
    model, optimizer, schedule, _ = resumed(saved(tmp_path, lr_scale=0.5))
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(run))
    train(model, optimizer)
    journal_event("step", step=5, lr=optimizer.param_groups[0]["lr"])
    schedule.step()
    journal_event("step", step=5, lr=schedule.get_last_lr()[0])  # told behind the schedule's step
    journal_event("heartbeat", global_step=5, lr=schedule.get_last_lr()[0])
    journal_event("step", step=5, lr=0.123)  # a rate of another make
    used = 0.1 * 0.5**4 * 0.5
    told = [*events(run, "step"), *events(run, "heartbeat")]
    assert [one["lr"] for one in told] == [used, used, 0.123, used]
    assert {one["lr_scale"] for one in told} == {0.5}
    for one in told:
        assert_valid("event", one)
    assert learning_rate.used_lr(optimizer) == learning_rate.used_lr({"only": optimizer}) == used
    journal_event("step", step=5, lr=used * 2)  # who asks `used_lr` is taken at its word
    assert events(run, "step")[-1]["lr"] == used * 2


def test_what_is_told_of_an_uncut_rate_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_rate, "_hooks", type(learning_rate._hooks)())
    _, optimizer, _, _ = resumed(saved(tmp_path))
    assert learning_rate.used_lr(optimizer) == optimizer.param_groups[0]["lr"]
    fields = {"step": 5, "lr": 0.1}
    assert learning_rate.with_used_lr(fields) is fields
    optimizer = resumed(saved(tmp_path / "cut", lr_scale=0.5))[1]
    assert learning_rate.used_lr(optimizer) == learning_rate.rates(optimizer, is_stepping=False)[0], (
        "before a step: the next one's"
    )


def test_the_banner_of_a_trainer_that_scales_by_itself_names_the_next_rate_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved rate has the old scale in it, and the plan cuts once more."""
    path = saved(tmp_path, lr_scale=0.5)
    plan = write_plan(tmp_path, path, scheduler="load", lr_scale={"factor": 0.4, "ramp": None})
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))
    lines: list[str] = []
    resumed(path, own_lr_scale=True, log_fn=lines.append)
    assert lines[0].endswith(f"lr={0.1 * 0.5**4 * 0.4 / 0.5:g}")
