"""EMA and SWA: continued with their count, begun at the loaded weights, or left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resumekit.base.errors import InvalidFile, KitError
from resumekit.trainer.averages import STALL_FAST_EVALS, SwaCycle, SwaTail, average_of
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net, same, train, write_plan

pytestmark = pytest.mark.usefixtures("in_a_new_process")


class Shadow:
    """An average as many repos have it: a dict of weights by name inside its state."""

    def __init__(self, model: Any) -> None:
        self.decay, self.num_updates = 0.9, 3
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.decay, self.num_updates, self.shadow = state["decay"], state["num_updates"], state["shadow"]


class Nameless:
    """An average whose state does not name the weights."""

    def __init__(self, model: Any) -> None:
        self.values = [value.detach().clone() for value in model.parameters()]

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


def averaged(model: Net) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def saved(folder: Path, *, ema: bool, steps: int = 3) -> tuple[Path, Net, AveragedModel]:
    model = Net(seed=1)
    average = averaged(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for _ in range(steps):
        train(model, optimizer)
        average.update_parameters(model)
    path = save_checkpoint(folder, 4, model=model, ema=average if ema else None, log_fn=quiet)
    assert path is not None
    return path, model, average


def test_enabled_in_the_middle_it_starts_from_the_loaded_weights(tmp_path: Path) -> None:
    """Protocol §9; as newly made it would hold the weights that the model was initialised with."""
    path, model, _ = saved(tmp_path, ema=False)
    new = Net(seed=2)
    ema, swa = averaged(new), Shadow(new)
    bundle = load_resume_bundle(new, ckpt_path=path, ema=ema, swa=swa, log_fn=quiet)
    assert bundle.report["ema"] == bundle.report["swa"] == "fresh: the checkpoint has none"
    assert same(dict(ema.module.state_dict()), dict(model.state_dict())) and int(ema.n_averaged) == 0
    assert same(swa.shadow, dict(model.named_parameters())) and swa.num_updates == 0 and swa.decay == 0.9
    before = swa.shadow["head.weight"].clone()
    train(new, OPTIMIZERS["sgd"](new.parameters()))
    assert torch.equal(swa.shadow["head.weight"], before), "the average must not be the weights themselves"


def test_fresh_in_the_plan_starts_anew_though_the_checkpoint_has_an_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, _ = saved(tmp_path, ema=True)
    for action in ("fresh", "reset"):
        monkeypatch.setenv("RESUMEKIT_PLAN", str(write_plan(tmp_path, path, ema=action, optimizer="absent")))
        new = Net(seed=2)
        ema = averaged(new)
        bundle = load_resume_bundle(new, ckpt_path=path, ema=ema, log_fn=quiet)
        assert bundle.report["ema"] == f"{action}: the plan's reason"
        assert same(dict(ema.module.state_dict()), dict(model.state_dict())) and int(ema.n_averaged) == 0


def test_absent_in_the_plan_is_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, _ = saved(tmp_path, ema=True)
    monkeypatch.setenv("RESUMEKIT_PLAN", str(write_plan(tmp_path, path, ema="absent", optimizer="absent")))
    new = Net(seed=2)
    ema = averaged(new)
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    load_resume_bundle(new, ckpt_path=path, ema=ema, log_fn=quiet)
    assert same(dict(ema.state_dict()), before)


def test_a_new_part_of_the_model_joins_the_average_with_its_current_weights(tmp_path: Path) -> None:
    path, _, average = saved(tmp_path, ema=True)
    new = Net(grown=True, seed=2)
    ema = averaged(new)
    bundle = load_resume_bundle(new, ckpt_path=path, ema=ema, allow_partial_weights=True, log_fn=quiet)
    assert bundle.report["ema"] == "partial: 10 of 14 parameters, 4 new"
    assert int(ema.n_averaged) == int(average.n_averaged) == 3
    for name, value in ema.module.state_dict().items():
        of = new if name in bundle.missing else average.module
        assert torch.equal(value, of.state_dict()[name]), name


def test_an_average_of_a_wrapped_model_is_the_same_average(tmp_path: Path) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    path, _, average = saved(tmp_path, ema=True)
    new = Wrapped(Net(seed=2))
    ema = AveragedModel(new)
    assert load_resume_bundle(new, ckpt_path=path, ema=ema, log_fn=quiet).report["ema"] == "load"
    assert same(dict(ema.module.module.state_dict()), dict(average.module.state_dict())) and int(ema.n_averaged) == 3


def test_an_average_that_does_not_name_its_weights_is_left_as_made_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = saved(tmp_path, ema=False)
    new = Net(seed=2)
    bundle = load_resume_bundle(new, ckpt_path=path, ema=Nameless(new), log_fn=quiet)
    assert bundle.report["ema"] == (
        "absent: the checkpoint has none, and the weights can't be put into a 'Nameless': starts as made"
    )
    monkeypatch.setenv("RESUMEKIT_PLAN", str(write_plan(tmp_path, path, ema="fresh", optimizer="absent")))
    with pytest.raises(InvalidFile, match="ema: the weights can't be put into a 'Nameless', whose state does not name"):
        load_resume_bundle(new, ckpt_path=path, ema=Nameless(new), log_fn=quiet)


def test_an_average_of_another_model_is_refused(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, ema=True)
    other = averaged(Net(seed=2, hidden=5))
    with pytest.raises(InvalidFile, match="ema: other shapes: 7 "):
        load_resume_bundle(Net(seed=2), ckpt_path=path, ema=other, log_fn=quiet)


def test_an_average_whose_state_is_no_dict_is_handed_over_as_it_is(tmp_path: Path) -> None:
    class Plain(Nameless):
        def state_dict(self) -> Any:
            return self.values

        def load_state_dict(self, state: Any) -> None:
            self.values = list(state)

    model = Net(seed=1)
    path = save_checkpoint(tmp_path, 4, model=model, ema=Plain(model), log_fn=quiet)
    ema = Plain(Net(seed=2))
    bundle = load_resume_bundle(Net(seed=2), ckpt_path=path, ema=ema, log_fn=quiet)
    assert bundle.report["ema"] == "load"
    assert all(torch.equal(one, two) for one, two in zip(ema.values, model.parameters(), strict=True))


class Stateless:
    """An average of a lab's own that keeps no state for others."""


class Halfway:
    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("name", ["model", "optimizer", "scheduler", "scaler", "ema", "swa"])
def test_a_component_without_a_state_is_named_at_the_start_and_at_the_save(name: str, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    own = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "scheduler": None, "scaler": None}
    for part in ({name: Stateless()}, {name: {"a": Stateless()}} if name == "optimizer" else {name: Stateless()}):
        with pytest.raises(
            KitError, match=rf"save_checkpoint: {name} is a 'test_averages.Stateless' without state_dict\(\)"
        ):
            save_checkpoint(tmp_path / "checkpoints", 1, **{**own, **part})
    for part, method in ((Stateless(), "state_dict"), (Halfway(), "load_state_dict")):
        with pytest.raises(
            KitError, match=rf"load_resume_bundle: {name} is a '.*' without {method}\(\): give its class"
        ):
            load_resume_bundle(**{**own, name: part}, ckpt_path=None)
    assert not (tmp_path / "checkpoints").exists()


def test_an_ema_keeps_its_share_of_what_it_was() -> None:
    model = Net(seed=1)
    ema = average_of(model, decay=0.75)
    ema.update_parameters(model)
    before = model.head.weight.detach().clone()
    train(model, OPTIMIZERS["sgd"](model.parameters()))
    ema.update_parameters(model)
    torch.testing.assert_close(ema.module.head.weight, 0.75 * before + 0.25 * model.head.weight)


@pytest.mark.parametrize("resumed_at", [None, 2, 5, 8])
def test_an_swa_tail_is_the_mean_of_the_weights_where_its_cycles_end(resumed_at: int | None, tmp_path: Path) -> None:
    """It begins at its step, the weights of which are the first ones; also when a resume comes in between."""

    def started(path: Path | None) -> tuple[Net, Any, SwaTail, int]:
        model = Net(seed=1)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        tail = SwaTail(average_of(model), start_step=3, cycle_steps=2)
        bundle = load_resume_bundle(model, optimizer, ckpt_path=path, swa=tail.average, log_fn=quiet)
        assert not tail.after_load(bundle.global_step, model, bundle.extra.get("tail"))
        return model, optimizer, tail, bundle.global_step

    model, optimizer, tail, _ = started(None)
    kept, begun, step = [], [], 0
    while step < 9:
        train(model, optimizer)
        step += 1
        begun += [step] if tail.after_step(step, model) else []
        kept += [model.head.weight.detach().clone()] if step in (3, 5, 7, 9) else []
        assert (tail.collected is None) == (step < 3)
        if step == resumed_at:
            own = {"model": model, "optimizer": optimizer, "swa": tail.collected, "extra": {"tail": tail.state_dict()}}
            model, optimizer, tail, step = started(save_checkpoint(tmp_path, step, **own, log_fn=quiet))
    assert (begun, tail.from_step, int(tail.average.n_averaged)) == ([3], 3, 4)
    torch.testing.assert_close(tail.average.module.head.weight, torch.stack(kept).mean(0))


def test_an_swa_tail_enabled_later_begins_at_the_resume_and_one_of_long_ago_is_over(tmp_path: Path) -> None:
    path, model, _ = saved(tmp_path, ema=False)
    new = Net(seed=2)
    tail = SwaTail(average_of(new), start_step=2, cycle_steps=5)
    load_resume_bundle(new, ckpt_path=path, swa=tail.average, log_fn=quiet)
    assert tail.after_load(4, new, {"from_step": 1, "stalled": 2}) and tail.from_step == 4 and tail.stalled == 2
    assert same(dict(tail.average.module.state_dict()), dict(model.state_dict())) and int(tail.average.n_averaged) == 1
    again = SwaTail(tail.average, start_step=2, cycle_steps=5)
    assert again.after_load(4, new) and int(tail.average.n_averaged) == 1, "an average of which no step is known"


@pytest.mark.parametrize(
    ("evals", "on_stall", "begins"),
    [
        ([True, *[False] * STALL_FAST_EVALS, True], True, True),
        ([True, *[False] * (STALL_FAST_EVALS - 1), True], True, False),
        ([*[False] * (STALL_FAST_EVALS + 1)], True, False),
        ([True, *[False] * STALL_FAST_EVALS, True], False, False),
    ],
)
def test_an_swa_tail_begins_when_a_fast_eval_improves_after_a_stall(
    evals: list[bool], on_stall: bool, begins: bool
) -> None:
    model = Net(seed=1)
    tail = SwaTail(average_of(model), start_step=None, cycle_steps=2, start_on_stall=on_stall)
    said = [tail.after_fast_eval(step, model, is_new_best=is_new_best) for step, is_new_best in enumerate(evals)]
    assert said == [False] * (len(evals) - 1) + [begins]
    assert tail.from_step == (len(evals) - 1 if begins else None)


def test_the_rate_of_a_tail_is_lowest_where_a_cycle_ends() -> None:
    cycle = SwaCycle(amplitude=0.25, steps=4)
    assert [cycle(step, 2.0) for step in range(5)] == [1.5, 2.0, 2.5, 2.0, 1.5]
    assert SwaCycle(0.25, 4, middle=1.0)(2, 2.0) == 1.25
