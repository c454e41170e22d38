"""A refitted schedule is the new function of the step, placed at the kept step: every kind that torch has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from resumekit.base.errors import InvalidFile
from resumekit.trainer import learning_rate
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net, moments, same, train

pytestmark = pytest.mark.usefixtures("in_a_new_process")


def sequential(optimizer: Any, length: int) -> Any:
    return schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.1, total_iters=3), schedules.CosineAnnealingLR(optimizer, length)],
        milestones=[3],
    )


KINDS: dict[str, Callable[[Any, int], Any]] = {
    "lambda": lambda optimizer, length: schedules.LambdaLR(optimizer, lambda step: 1 - step / (2 * length)),
    "step": lambda optimizer, length: schedules.StepLR(optimizer, max(1, length // 4), gamma=0.7),
    "exponential": lambda optimizer, length: schedules.ExponentialLR(optimizer, 1 - 1 / length),
    "cosine": lambda optimizer, length: schedules.CosineAnnealingLR(optimizer, length),
    "restarts": lambda optimizer, length: schedules.CosineAnnealingWarmRestarts(optimizer, length // 3),
    "polynomial": lambda optimizer, length: schedules.PolynomialLR(optimizer, length, power=2.0),
    "onecycle": lambda optimizer, length: schedules.OneCycleLR(optimizer, max_lr=0.5, total_steps=length),
    "cyclic": lambda optimizer, length: schedules.CyclicLR(optimizer, 0.01, 0.1, step_size_up=length // 3),
    "sequential": sequential,
    "chained": lambda optimizer, length: schedules.ChainedScheduler(
        [schedules.ConstantLR(optimizer, 0.5, total_iters=4), schedules.ExponentialLR(optimizer, 1 - 1 / length)]
    ),
    "swa": lambda optimizer, length: torch.optim.swa_utils.SWALR(optimizer, 0.02, anneal_epochs=length),
}


def make(kind: str, length: int, lr: float, seed: int) -> tuple[Net, Any, Any]:
    model = Net(seed=seed)
    groups = [{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": lr / 4}]
    optimizer = OPTIMIZERS["sgd"](groups, lr=lr)
    return model, optimizer, KINDS[kind](optimizer, length)


def settings(optimizer: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_refit_every_groups_rate_is_the_new_schedules_at_the_kept_step(kind: str, tmp_path: Path) -> None:
    """Longer and from another base rate; later steps go on as the new schedule does, and the moments are kept."""
    model, optimizer, schedule = make(kind, 12, 0.1, 1)
    train(model, optimizer, schedule=schedule, steps=9)
    path = save_checkpoint(tmp_path, 9, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    wanted_moments = moments(model, optimizer)

    never_stopped, its_optimizer, its_schedule = make(kind, 30, 0.2, 3)
    train(never_stopped, its_optimizer, schedule=its_schedule, steps=9)
    new, fresh, refitted = make(kind, 30, 0.2, 2)
    bundle = load_resume_bundle(new, fresh, refitted, ckpt_path=path, schedule_policy="reset", log_fn=quiet)
    assert settings(fresh) == settings(its_optimizer) and refitted.get_last_lr() == its_schedule.get_last_lr()
    assert bundle.report["scheduler"] == "refit: placed at step 9, schedule_policy='reset'"
    assert all(same(state, wanted_moments[name]) for name, state in moments(new, fresh).items())
    for _ in range(4):
        train(new, fresh, schedule=refitted)
        train(never_stopped, its_optimizer, schedule=its_schedule)
        assert settings(fresh) == settings(its_optimizer)


def test_a_schedule_that_is_stepped_once_per_epoch_is_placed_by_its_own_count(tmp_path: Path) -> None:
    model, optimizer, schedule = make("cosine", 10, 0.1, 1)
    for _ in range(3):
        train(model, optimizer, steps=20)
        schedule.step()
    path = save_checkpoint(tmp_path, 60, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    new, fresh, refitted = make("cosine", 40, 0.1, 2)
    bundle = load_resume_bundle(new, fresh, refitted, ckpt_path=path, schedule_policy="reset", log_fn=quiet)
    assert bundle.report["scheduler"] == "refit: placed at step 3, schedule_policy='reset'"
    assert refitted.last_epoch == 3


def test_the_random_numbers_and_warnings_of_a_refit_reach_no_other_code(recwarn: pytest.WarningsRecorder) -> None:
    _, optimizer, schedule = make("cosine", 10, 0.1, 1)
    before = torch.get_rng_state()
    assert learning_rate.refit_schedule(schedule, None, 7) == 7
    assert torch.equal(torch.get_rng_state(), before) and not recwarn.list and not optimizer.state


def test_a_schedule_with_a_refit_of_its_own_is_asked_and_not_stepped() -> None:
    class Own:
        placed: int | None = None

        def refit(self, step: int) -> None:
            self.placed = step

        def step(self) -> None:
            raise AssertionError

    own, other = Own(), Own()
    learning_rate.refit_schedule({"model": own, "puzzles": other}, None, 40_000)
    assert own.placed == other.placed == 40_000


def test_several_schedules_behind_one_object_are_stepped_through_it() -> None:
    class Both:
        def __init__(self, *parts: Any) -> None:
            self.parts = parts

        def step(self) -> None:
            for part in self.parts:
                part.step()

    made = [make("lambda", 10, 0.1, 1) for _ in range(2)]
    saved = {"model": {"last_epoch": 6}, "puzzles": {"last_epoch": 6}}
    assert learning_rate.refit_schedule(Both(*(one[2] for one in made)), saved, 6) == 6
    assert [one[2].last_epoch for one in made] == [6, 6]


def test_a_plateau_schedule_can_not_be_refitted_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    plateau = schedules.ReduceLROnPlateau(optimizer)
    path = save_checkpoint(tmp_path, 4, model=model, optimizer=optimizer, scheduler=plateau, log_fn=quiet)
    new = Net(seed=2)
    before = new.body.weight.clone()
    fresh = OPTIMIZERS["sgd"](new.parameters())
    with pytest.raises(InvalidFile, match="a ReduceLROnPlateau is no function of the step"):
        load_resume_bundle(
            new, fresh, schedules.ReduceLROnPlateau(fresh), ckpt_path=path, schedule_policy="reset", log_fn=quiet
        )
    assert torch.equal(new.body.weight, before)
    again = schedules.ReduceLROnPlateau(fresh)
    assert load_resume_bundle(new, fresh, again, ckpt_path=path, log_fn=quiet).report["scheduler"] == "load"


def test_a_schedule_that_is_too_short_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    model, optimizer, schedule = make("onecycle", 20, 0.1, 1)
    train(model, optimizer, schedule=schedule, steps=9)
    path = save_checkpoint(tmp_path, 9, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    new, fresh, short = make("onecycle", 5, 0.1, 2)
    before = new.body.weight.clone()
    with pytest.raises(InvalidFile, match="the new schedule 'OneCycleLR' can't be placed at step 9, and nothing was"):
        load_resume_bundle(new, fresh, short, ckpt_path=path, schedule_policy="reset", log_fn=quiet)
    assert torch.equal(new.body.weight, before) and not fresh.state


def test_what_a_loaded_schedule_overwrites_is_said(tmp_path: Path) -> None:
    """pytorch/pytorch#156846: the new length and base rate would go by unnoticed."""
    model, optimizer, schedule = make("cosine", 10, 0.1, 1)
    path = save_checkpoint(tmp_path, 0, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    lines: list[str] = []
    new, fresh, longer = make("cosine", 20, 0.2, 2)
    load_resume_bundle(new, fresh, longer, ckpt_path=path, log_fn=lines.append)
    said = [line for line in lines if line.startswith("[warn] the schedule goes on as in the checkpoint")]
    assert any("T_max: 20 here, 10 in it" in line for line in said)
    assert any("base_lrs: [0.2, 0.05] here, [0.1, 0.025] in it" in line for line in said)
    lines.clear()
    new, fresh, equal = make("cosine", 10, 0.1, 2)
    load_resume_bundle(new, fresh, equal, ckpt_path=path, log_fn=lines.append)
    assert not [line for line in lines if line.startswith("[warn]")]


def resume(path: Path, kind: str, groups: Callable[[Net], Any], **more: Any) -> tuple[Any, Any, Any]:
    new = Net(seed=2)
    fresh = OPTIMIZERS["sgd"](groups(new), lr=0.1)
    schedule = KINDS[kind](fresh, 20)
    return fresh, schedule, load_resume_bundle(new, fresh, schedule, ckpt_path=path, **{"log_fn": quiet, **more})


@pytest.mark.parametrize("kind", ["lambda", "exponential", "cosine"])
def test_a_schedule_of_other_groups_is_placed_anew_because_its_state_has_one_entry_per_group(
    tmp_path: Path, kind: str
) -> None:
    """torch zips one group's rate with two groups and ends with a ValueError at the first step."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.1)
    schedule = KINDS[kind](optimizer, 20)
    train(model, optimizer, schedule=schedule, steps=5)
    path = save_checkpoint(tmp_path, 5, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)

    def two(new: Net) -> Any:
        return [{"params": new.body.parameters()}, {"params": [*new.norm.parameters(), *new.head.parameters()]}]

    fresh, placed, bundle = resume(path, kind, two)
    assert (
        bundle.report["scheduler"] == "refit: placed at step 5, the optimizer has other groups than in the checkpoint"
    )
    assert bundle.report["optimizer"] == "load: by name, the parameters are in another order or grouping"
    assert [group["lr"] for group in fresh.param_groups] == [optimizer.param_groups[0]["lr"]] * 2
    assert len(fresh.state) == 6
    fresh.step()
    placed.step()
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in fresh.param_groups] == [optimizer.param_groups[0]["lr"]] * 2


@pytest.mark.parametrize("kind", ["exponential", "cosine", "polynomial"])
def test_an_optimizer_that_starts_anew_under_a_schedule_that_goes_on_has_its_rate(tmp_path: Path, kind: str) -> None:
    """These schedules work from the rate that they find: from the one it was made with they would never come down."""
    model = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.1)
    schedule = KINDS[kind](optimizer, 20)
    train(model, optimizer, schedule=schedule, steps=5)
    path = save_checkpoint(tmp_path, 5, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    fresh, again, bundle = resume(path, kind, lambda new: new.parameters(), optimizer_policy="reset")
    assert bundle.report["scheduler"] == "load" and not fresh.state
    for _ in range(3):
        assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for one in (fresh, again, optimizer, schedule):
            one.step()


def test_another_kind_of_schedule_under_the_old_state_is_said(tmp_path: Path) -> None:
    model = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.1)
    schedule = KINDS["cosine"](optimizer, 20)
    path = save_checkpoint(tmp_path, 0, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)
    lines: list[str] = []
    resume(path, "step", lambda new: new.parameters(), log_fn=lines.append)
    assert any("step_size: 5 here, none in it" in line for line in lines)


def test_groups_in_another_order_keep_each_its_own_rate(tmp_path: Path) -> None:
    """A schedule's state has the base rates in the order of the groups: loaded, they would change places."""
    model = Net(seed=1)
    slow, fast = {"params": model.body.parameters(), "lr": 0.01}, {"params": model.head.parameters(), "lr": 0.1}
    optimizer = OPTIMIZERS["sgd"]([slow, fast])
    schedule = KINDS["cosine"](optimizer, 20)
    train(model, optimizer, schedule=schedule, steps=5)
    path = save_checkpoint(tmp_path, 5, model=model, optimizer=optimizer, scheduler=schedule, log_fn=quiet)

    def turned(new: Net) -> Any:
        return [{"params": new.head.parameters(), "lr": 0.1}, {"params": new.body.parameters(), "lr": 0.01}]

    fresh, placed, bundle = resume(path, "cosine", turned)
    assert bundle.report["scheduler"].startswith("refit: placed at step 5")
    rates = [group["lr"] for group in optimizer.param_groups][::-1]
    assert [group["lr"] for group in fresh.param_groups] == placed.get_last_lr() == rates and rates[0] > rates[1]
