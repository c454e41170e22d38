"""The learning rate scale: a pure function of the step, put around each optimizer step, inherited by every resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_tools import quiet
from resume_parts import OPTIMIZERS, Net, train, write_plan
from resumekit.basics.errors import InvalidFile, KitError
from resumekit.basics.lr_scale import LrScale, Ramp, from_fields
from resumekit.trainer import lr_hook
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint

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
    lr_hook.attach([optimizer], scale, step)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert lr_hook.scale_of(optimizer) is None


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
    lr_hook.attach([optimizer], LrScale(0.5), 0)
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
    lr_hook.attach([optimizer], LrScale(1.0, Ramp(0, 2, 0.5)), 0)
    for wanted in (0.95, 0.9, 0.8):
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() == pytest.approx(wanted)


def test_steps_that_an_amp_scaler_leaves_out_are_not_counted() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    lr_hook.attach([optimizer], LrScale(1.0, Ramp(0, 1, 0.5)), 0)
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
        lr_hook.attach([Bare()], LrScale(0.5), 0)
    lr_hook.attach([Bare()], LrScale(), 0)


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


def test_a_scale_that_nobody_applies_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path, lr_scale=0.5)
    for own, count in ((False, 1), (True, 0)):
        lines: list[str] = []
        load_resume_bundle(Net(seed=2), ckpt_path=path, own_lr_scale=own, log_fn=lines.append)
        assert sum("no optimizer was passed" in line for line in lines) == count


def test_the_banner_names_the_rate_that_the_next_step_uses(tmp_path: Path) -> None:
    lines: list[str] = []
    resumed(saved(tmp_path, lr_scale=0.5), log_fn=lines.append)
    assert lines[0].endswith(f"lr={0.1 * 0.5**5:g}")
