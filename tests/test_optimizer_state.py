"""Momentum survives an architecture edit: each kept parameter's state by name, bit for bit, and its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import InvalidFile
from resumekit.trainer import optimizer_state
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Lion, Net, moments, same, train

pytestmark = pytest.mark.usefixtures("in_a_new_process")


def save(folder: Path, model: Any, optimizer: Any, **more: Any) -> Path:
    path = save_checkpoint(folder, 4, model=model, optimizer=optimizer, log_fn=quiet, **more)
    assert path is not None
    return path


def resume(path: Path, model: Any, optimizer: Any, scheduler: Any = None, **more: Any) -> Any:
    return load_resume_bundle(model, optimizer, scheduler, ckpt_path=path, **{"log_fn": quiet, **more})


def one_group(model: Net) -> Any:
    return list(model.parameters())


def by_decay(model: Net) -> Any:
    """Two groups, as trainers make them: matrices with decay, the rest without."""
    return [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def turned(model: Net) -> Any:
    return list(model.parameters())[::-1]


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lion"])
@pytest.mark.parametrize("before", [one_group, by_decay])
@pytest.mark.parametrize("after", [one_group, by_decay, turned])
def test_every_old_parameters_state_survives_new_parts_bit_for_bit(
    tmp_path: Path, kind: str, before: Any, after: Any
) -> None:
    """The new parts stand in front of the old ones and behind them: by position nothing would be right."""
    old = Net(seed=1)
    optimizer = OPTIMIZERS[kind](before(old))
    train(old, optimizer, steps=3)
    wanted = moments(old, optimizer)
    new = Net(grown=True, seed=2)
    fresh = OPTIMIZERS[kind](after(new))
    bundle = resume(save(tmp_path, old, optimizer), new, fresh, allow_partial_weights=True)
    assert bundle.report["optimizer"].split(";")[0] == "partial: 6 of 10 parameters, 4 new"
    found = moments(new, fresh)
    assert found.keys() == wanted.keys() and len(wanted) == 6
    assert all(same(found[name], wanted[name]) for name in wanted)
    train(new, fresh)
    assert len(moments(new, fresh)) == 10


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lion"])
def test_several_optimizers_keep_their_states_each_under_its_own_name(tmp_path: Path, kind: str) -> None:
    def pair(model: Net) -> dict[str, Any]:
        rest = [p for name, p in model.named_parameters() if not name.startswith("body")]
        return {"model": OPTIMIZERS[kind](rest), "body": OPTIMIZERS["sgd"](model.body.parameters())}

    old = Net(seed=1)
    two = pair(old)
    train(old, *two.values(), steps=3)
    wanted = moments(old, *two.values())
    new = Net(grown=True, seed=2)
    fresh = pair(new)
    bundle = resume(save(tmp_path, old, two), new, fresh, allow_partial_weights=True)
    assert bundle.report["optimizer.model"] == "partial: 4 of 8 parameters, 4 new"
    assert bundle.report["optimizer.body"] == "load"
    found = moments(new, *fresh.values())
    assert found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("after", [by_decay, turned])
def test_another_order_or_grouping_is_loaded_by_name_and_said(tmp_path: Path, after: Any) -> None:
    old = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](one_group(old), weight_decay=0.0)
    train(old, optimizer, steps=3)
    new = Net(seed=2)
    fresh = OPTIMIZERS["adamw"](after(new), weight_decay=0.0)
    lines: list[str] = []
    bundle = resume(save(tmp_path, old, optimizer), new, fresh, log_fn=lines.append)
    assert bundle.report["optimizer"].startswith("load: by name, the parameters are in another order or grouping")
    assert any("another order or grouping" in line for line in lines)
    wanted, found = moments(old, optimizer), moments(new, fresh)
    assert all(same(found[name], wanted[name]) for name in wanted)


def test_optimizers_that_were_renamed_or_put_into_a_dict_are_found_by_their_class(tmp_path: Path) -> None:
    old = Net(seed=1)
    two = {"adamw": OPTIMIZERS["adamw"](old.body.parameters()), "sign": OPTIMIZERS["lion"](old.head.parameters())}
    train(old, *two.values(), steps=2)
    path, wanted = save(tmp_path, old, two), moments(old, *two.values())
    new = Net(seed=2)
    fresh = {"puzzles": OPTIMIZERS["lion"](new.head.parameters()), "model": OPTIMIZERS["adamw"](new.body.parameters())}
    assert resume(path, new, fresh).report["optimizer.puzzles"] == "load"
    found = moments(new, *fresh.values())
    assert all(same(found[name], wanted[name]) for name in wanted)
    alone = Net(seed=2)
    bundle = resume(path, alone, OPTIMIZERS["adamw"](alone.body.parameters()))
    assert bundle.report["optimizer"] == "load"
    assert bundle.report["optimizer.sign"] == "absent: not used here, left in the checkpoint"


def test_which_of_the_saved_optimizers_it_continues() -> None:
    def content(**kinds: str) -> dict[str, Any]:
        states = {key: {"state": {}, "param_groups": []} for key in kinds}
        return {"optimizer_state_dict": states, "optimizer_name": ",".join(f"{k}={v}" for k, v in kinds.items())}

    def keys(content: dict[str, Any], **own: Any) -> dict[str, Any]:
        weight = [torch.nn.Parameter(torch.ones(1))]
        made = {key: OPTIMIZERS[kind](weight) for key, kind in own.items()}
        return {key: one and one.key for key, one in optimizer_state.match_optimizers(content, made).items()}

    assert keys(content(a="AdamW", b="SGD"), a="adamw", b="sgd") == {"a": "a", "b": "b"}
    assert keys(content(a="AdamW", b="AdamW"), c="adamw", b="adamw") == {"c": "a", "b": "b"}
    assert keys(content(a="AdamW", b="SGD"), x="sgd", y="adamw") == {"x": "b", "y": "a"}
    assert keys(content(a="AdamW", b="SGD"), x="sgd", y="lion") == {"x": "b", "y": "a"}  # a swap, under another name
    assert keys(content(a="AdamW", b="AdamW"), x="adamw", y="adamw") == {"x": None, "y": None}
    assert keys({"optimizer_state_dict": None}, x="sgd") == {"x": None}


def test_a_parameter_of_another_shape_starts_anew_and_the_others_keep_theirs(tmp_path: Path) -> None:
    old = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](old.parameters())
    train(old, optimizer, steps=2)
    new = Net(seed=2)
    new.head = torch.nn.Linear(3, 9)
    fresh = OPTIMIZERS["adamw"](new.parameters())
    bundle = resume(save(tmp_path, old, optimizer), new, fresh, allow_partial_weights=True)
    assert bundle.report["optimizer"] == "partial: 4 of 6 parameters, 2 of another shape"
    assert set(moments(new, fresh)) == {"body.weight", "body.bias", "norm.weight", "norm.bias"}
    train(new, fresh)


def test_the_trainers_own_hyper_parameters_stay_and_differences_are_said(tmp_path: Path) -> None:
    """pytorch/pytorch#156846: a loaded state overwrites what the trainer has just been told."""
    old = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](old.parameters(), weight_decay=0.01, betas=(0.9, 0.95))
    train(old, optimizer)
    new = Net(seed=2)
    fresh = OPTIMIZERS["adamw"](new.parameters(), lr=0.5, weight_decay=0.3, betas=(0.8, 0.95))
    lines: list[str] = []
    bundle = resume(save(tmp_path, old, optimizer), new, fresh, log_fn=lines.append)
    (group,) = fresh.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 0.3, (0.8, 0.95))
    assert bundle.report["optimizer"] == "load" and not any("trains with" in line for line in lines)
    group["lr"] = 0.01
    train(new, fresh)
    assert lines[-1] == (
        "[resume] optimizer: trains with betas (0.8, 0.95), in the checkpoint (0.9, 0.95), "
        "weight_decay 0.3, in the checkpoint 0.01"
    )


def test_what_a_trainer_sets_back_behind_the_load_is_no_difference(tmp_path: Path) -> None:
    """After a swap: made with the config's weight decay of 0.1, then set to the swapped one's, which is the saved."""
    old = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](old.parameters(), weight_decay=0.01)
    train(old, optimizer)
    new = Net(seed=2)
    fresh = OPTIMIZERS["adamw"](new.parameters(), weight_decay=0.1)
    lines: list[str] = []
    bundle = resume(save(tmp_path, old, optimizer), new, fresh, log_fn=lines.append)
    fresh.param_groups[0]["weight_decay"] = 0.01
    train(new, fresh)
    assert bundle.report["optimizer"] == "load"
    assert not any("weight_decay" in line for line in lines)


def test_the_rate_comes_from_the_checkpoint_with_the_schedulers_state_and_nothing_else_does(tmp_path: Path) -> None:
    old = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](old.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(old, optimizer, schedule=schedule, steps=3)
    path = save(tmp_path, old, optimizer, scheduler=schedule)
    new = Net(seed=2)
    fresh = OPTIMIZERS["sgd"](new.parameters(), lr=0.1, momentum=0.5)
    resume(path, new, fresh, torch.optim.lr_scheduler.ExponentialLR(fresh, 0.5))
    (group,) = fresh.param_groups
    assert (group["lr"], group["initial_lr"], group["momentum"]) == (0.1 * 0.5**3, 0.1, 0.5)
    without = OPTIMIZERS["sgd"](new.parameters(), lr=0.2)
    resume(path, new, without)
    # An old initial_lr left behind would be the base rate of whatever schedule is made later.
    assert without.param_groups[0]["lr"] == 0.2 and "initial_lr" not in without.param_groups[0]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("cycle", ["OneCycleLR", "CyclicLR"])
def test_a_cycled_momentum_goes_on_where_it_was(tmp_path: Path, kind: str, cycle: str) -> None:
    def make(seed: int) -> tuple[Any, ...]:
        model = Net(seed=seed)
        optimizer = OPTIMIZERS[kind](model.parameters())
        more = {"max_lr": 0.1, **({"total_steps": 20} if cycle == "OneCycleLR" else {"base_lr": 0.01})}
        return model, optimizer, getattr(torch.optim.lr_scheduler, cycle)(optimizer, **more)

    model, optimizer, schedule = make(1)
    train(model, optimizer, schedule=schedule, steps=6)
    path = save(tmp_path, model, optimizer, scheduler=schedule)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    losses = train(model, optimizer, schedule=schedule, steps=5)
    again, fresh, new_schedule = make(2)
    resume(path, again, fresh, new_schedule)
    assert [{k: v for k, v in group.items() if k != "params"} for group in fresh.param_groups] == groups
    assert train(again, fresh, schedule=new_schedule, steps=5) == losses


class Learner(torch.optim.SGD):
    """Keeps what it has learned in its groups, as Prodigy (`d`) and the schedule-free optimizers (`k`) do."""

    def __init__(self, params: Any, lr: float = 0.1, d0: float = 1.0) -> None:
        super().__init__(params, lr=lr)
        self.defaults["d"] = d0
        for group in self.param_groups:
            group.update(d0=d0, d=d0, name="mine")

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["d"] *= 2
        return super().step(closure)


def test_what_an_optimizer_has_learned_in_its_groups_is_loaded_and_what_it_was_told_is_not(tmp_path: Path) -> None:
    old = Net(seed=1)
    optimizer = Learner(old.parameters())
    train(old, optimizer, steps=3)
    optimizer.param_groups[0]["name"] = "theirs"
    new = Net(seed=2)
    fresh = Learner(new.parameters(), d0=1.5)
    resume(save(tmp_path, old, optimizer), new, fresh)
    (group,) = fresh.param_groups
    assert (group["d"], group["d0"], group["name"]) == (8.0, 1.5, "mine")
    assert {"lr", "momentum", "weight_decay", "d0"} <= optimizer_state.hyper_parameters(fresh)


def test_what_belongs_to_no_parameter_is_kept_too(tmp_path: Path) -> None:
    """Some optimizers count their steps once for all parameters, under a name."""
    old = Net(seed=1)
    optimizer = OPTIMIZERS["sgd"](old.parameters())
    train(old, optimizer)
    optimizer.state["clock"] = {"ticks": 7}
    new = Net(grown=True, seed=2)
    fresh = OPTIMIZERS["sgd"](new.parameters())
    resume(save(tmp_path, old, optimizer), new, fresh, allow_partial_weights=True)
    assert fresh.state["clock"] == {"ticks": 7}


def foreign(folder: Path, model: Net, optimizer: Any, **more: Any) -> Path:
    """Save as a trainer without the kit does: no names."""
    path = folder / "hrm_arc_step_4.pt"
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(), **more}
    torch.save({**content, "global_step": 4}, path)
    return path


def test_a_foreign_state_is_loaded_by_position_if_counts_and_shapes_agree_else_reset_with_its_reason(
    tmp_path: Path,
) -> None:
    old = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](old.parameters())
    train(old, optimizer, steps=2)
    path, wanted = foreign(tmp_path, old, optimizer), moments(old, optimizer)
    new = Net(seed=2)
    fresh = OPTIMIZERS["adamw"](new.parameters())
    assert resume(path, new, fresh).report["optimizer"] == "load"
    assert all(same(state, wanted[name]) for name, state in moments(new, fresh).items())
    grown = Net(grown=True, seed=2)
    fresh = OPTIMIZERS["adamw"](grown.parameters())
    report = resume(path, grown, fresh, allow_partial_weights=True).report
    assert report["optimizer"] == (
        "reset: the checkpoint does not name its parameters, and has [6] of them per group where the trainer has [10]"
    )
    assert not fresh.state
    fresh = OPTIMIZERS["adamw"](turned(new))
    assert resume(path, new, fresh).report["optimizer"] == (
        "reset: the checkpoint does not name its parameters, and 4 of its moments have another shape than the "
        "parameter at their place"
    )


def test_names_that_torch_itself_has_saved_are_names_too(tmp_path: Path) -> None:
    old = Net(seed=1)
    optimizer = torch.optim.AdamW(list(old.named_parameters()), lr=0.01)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch keeps no names")
    train(old, optimizer, steps=2)
    path, wanted = foreign(tmp_path, old, optimizer), moments(old, optimizer)
    new = Net(grown=True, seed=2)
    fresh = OPTIMIZERS["adamw"](new.parameters())
    bundle = resume(path, new, fresh, allow_partial_weights=True)
    assert bundle.report["optimizer"] == "partial: 6 of 10 parameters, 4 new"
    assert all(same(state, wanted[name]) for name, state in moments(new, fresh).items())
    assert "param_names" not in fresh.param_groups[0]


@pytest.mark.parametrize(
    "names",
    ["body.weight", [["body.weight"]], [[1, 2, 3, 4, 5, 6]], {"": []}, [None], [["x"] * 6, []]],
)
def test_names_that_are_none_are_not_believed(tmp_path: Path, names: Any) -> None:
    old = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](old.parameters())
    train(old, optimizer)
    path = foreign(tmp_path, old, optimizer, parameter_names=names)
    new = Net(seed=2)
    assert resume(path, new, OPTIMIZERS["adamw"](new.parameters())).report["optimizer"] == "load"


@pytest.mark.parametrize(
    "state",
    [{"param_groups": []}, {"state": {}, "param_groups": [1]}, {"state": {}, "param_groups": [{"params": "abc"}]},
     {"state": 1, "param_groups": [{"params": []}]}, {"adam": 3}],
)  # fmt: skip
def test_a_state_that_is_none_is_refused_in_a_sentence(tmp_path: Path, state: Any) -> None:
    new = Net(seed=2)
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": new.state_dict(), "optimizer_state_dict": state}, path)
    with pytest.raises(InvalidFile, match="optimizer: no state in it"):
        resume(path, new, OPTIMIZERS["adamw"](new.parameters()))


def test_a_parameter_that_is_none_of_the_models_is_found_by_its_order(tmp_path: Path) -> None:
    """A learnable temperature of the loss: it has no name in the model."""

    def make(seed: int, grown: bool) -> tuple[Net, torch.nn.Parameter, Any]:
        model, outside = Net(seed=seed, grown=grown), torch.nn.Parameter(torch.ones(2))
        return model, outside, OPTIMIZERS["sgd"]([outside, *model.parameters()])

    old, outside, optimizer = make(1, False)
    outside.grad = torch.full((2,), 3.0)
    optimizer.step()
    path = save(tmp_path, old, optimizer)
    new, other, fresh = make(2, True)
    resume(path, new, fresh, allow_partial_weights=True)
    assert torch.equal(fresh.state[other]["momentum_buffer"], torch.full((2,), 3.0))


def test_compile_prefixes_do_not_hide_the_names(tmp_path: Path) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner

    old = Net(seed=1)
    optimizer = OPTIMIZERS["lion"](old.parameters())
    train(old, optimizer, steps=2)
    path = save(tmp_path, Wrapped(old), optimizer)
    new = Net(grown=True, seed=2)
    fresh = OPTIMIZERS["lion"](new.parameters())
    resume(path, new, fresh, allow_partial_weights=True)
    wanted = moments(old, optimizer)
    assert len(wanted) == 6 and all(same(state, wanted[name]) for name, state in moments(new, fresh).items())
    assert isinstance(fresh, Lion) and optimizer_state.is_lion(fresh)
