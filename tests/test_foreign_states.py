"""Optimizer states of a plain torch.save, of sharded models, of other ranks: refused, told apart, or said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.errors import InvalidFile, KitError
from resumekit.checkpoint import parameters
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net, train, write_plan


def plain_file(folder: Path, name: str, *, seed: int = 1) -> Path:
    """Save a model and an optimizer as a trainer without the kit does, after a step."""
    model = Net(seed=seed)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    path = folder / "plain_7.pt"
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save({**content, "global_step": 7, "epoch": 0, "best_val_loss": 1.0}, path)
    return path


def load(path: Path, name: str, **more: Any) -> Any:
    model = Net(seed=2)
    return load_resume_bundle(model, OPTIMIZERS[name](model.parameters()), ckpt_path=path, **more, log_fn=quiet)


@pytest.mark.parametrize("saved, own", [*itertools.permutations(OPTIMIZERS, 2)])
def test_a_plain_state_of_another_optimizer_is_refused_in_a_sentence(saved: str, own: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"by its entries it holds the state of .*, the trainer uses"):
        load(plain_file(tmp_path, saved), own)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_state_of_the_same_optimizer_is_loaded(name: str, tmp_path: Path) -> None:
    assert load(plain_file(tmp_path, name), name).report["optimizer"].startswith("load")


def test_a_swap_to_lion_happens_once_on_plain_files_too(tmp_path: Path) -> None:
    swap = {"optimizer_policy": "swap_to_lion"}
    assert load(plain_file(tmp_path, "adamw"), "lion", **swap).report["optimizer"].startswith("swap")
    assert load(plain_file(tmp_path, "lion"), "lion", **swap).report["optimizer"].startswith("load")


@pytest.mark.parametrize(
    "kind, family",
    [("AdamW", "adam"), ("Adam", "adam"), ("NAdam", "adam"), ("RAdam", "adam"), ("SGD", "sgd"), ("RMSprop", "rmsprop"),
     ("Adagrad", "adagrad"), ("Adamax", None), ("Adafactor", None), ("Rprop", None), ("ASGD", None)],
)  # fmt: skip
def test_the_entries_of_torchs_own_optimizers_tell_their_family(kind: str, family: str | None) -> None:
    model = torch.nn.Linear(2, 1)
    more = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **more)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    entries = next(iter(optimizer.state_dict()["state"].values()))
    assert parameters.family_of_entries(entries) == family
    assert parameters.family_of_class(kind) in (family, None)


class Sharded(torch.nn.Linear):
    """A model as FSDP with use_orig_params has it: parameters are this rank's parts, the state dict is whole."""

    def __init__(self) -> None:
        super().__init__(4, 3, bias=False)
        self.whole = self.weight.detach().clone()
        self.weight = torch.nn.Parameter(self.whole.flatten()[:6].clone())

    def state_dict(self, *args: Any, **more: Any) -> dict[str, Any]:
        return {"weight": self.whole}


def test_a_model_of_which_this_rank_holds_a_part_is_not_saved(tmp_path: Path) -> None:
    model = Sharded()
    with pytest.raises(KitError, match=r"'weight' has shape \(6,\) in this rank and \(3, 4\) in model.state_dict\(\)"):
        save_checkpoint(tmp_path, 1, model=model, optimizer=torch.optim.AdamW(model.parameters()), log_fn=quiet)
    assert not list(tmp_path.iterdir())


def test_a_whole_checkpoint_is_not_loaded_into_a_part_of_its_optimizer(tmp_path: Path) -> None:
    whole = torch.nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.AdamW(whole.parameters())
    whole(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    path = save_checkpoint(tmp_path, 1, model=whole, optimizer=optimizer, data_state={}, log_fn=quiet)
    model = Sharded()
    with pytest.raises(InvalidFile, match="1 of its parameters have another shape than the model's weights, which fit"):
        load_resume_bundle(model, torch.optim.AdamW(model.parameters()), ckpt_path=path, log_fn=quiet)


def test_only_rank_0_saves_and_the_others_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    said: list[str] = []
    model = Net(seed=1)
    assert save_checkpoint(tmp_path, 1, model=model, data_state={}, log_fn=said.append) is None
    assert not said and not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    assert save_checkpoint(tmp_path, 1, model=model, data_state={}, log_fn=said.append) is not None
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("RANK", "7")
    assert save_checkpoint(tmp_path, 2, model=model, data_state={}, log_fn=said.append), "a lone RANK"


class AcceleratedOptimizer:
    """What accelerate.prepare returns, as far as its users see it."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.optimizer.load_state_dict(state)


AcceleratedOptimizer.__module__ = "accelerate.optimizer"


def test_an_optimizer_that_accelerate_has_wrapped_is_saved_and_loaded_as_itself(tmp_path: Path) -> None:
    model = Net(seed=1)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer)
    wrapped = AcceleratedOptimizer(optimizer)
    path = save_checkpoint(tmp_path, 1, model=model, optimizer=wrapped, data_state={}, lr_scale=0.8, log_fn=quiet)
    assert torch.load(path)["optimizer_name"] == "AdamW"
    other = Net(seed=2)
    again = AcceleratedOptimizer(OPTIMIZERS["adamw"](other.parameters()))
    bundle = load_resume_bundle(other, again, ckpt_path=path, log_fn=quiet)
    assert bundle.optimizer is again and bundle.report["optimizer"] == "load" and bundle.lr_scale_at(1) == 0.8
    swapped = {"optimizer_policy": "swap_to_lion"}
    with pytest.raises(InvalidFile, match="swap_to_lion' needs a Lion, and the trainer passes AdamW"):
        load_resume_bundle(other, again, ckpt_path=path, log_fn=quiet, **swapped)


def planned(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch, **actions: str) -> None:
    plan = write_plan(folder, path, 7, rng="absent", **actions)
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "optimizer": "lion"}))
    monkeypatch.setenv("RESUMEKIT_PLAN", str(plan))


def test_a_planned_swap_puts_a_lion_in_the_place_of_what_the_trainer_makes_and_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protocol §6 and §13 word for word: the trainer makes an AdamW in each process; three resumes of plain files."""
    pytest.importorskip("lion_pytorch")
    path, reports = plain_file(tmp_path, "adamw"), []
    for resume in range(3):
        planned(tmp_path, path, monkeypatch, optimizer="load" if resume else "swap", scheduler="absent")
        model = Net(seed=2)
        made = OPTIMIZERS["adamw"](model.parameters())
        bundle = load_resume_bundle(model, made, ckpt_path=path, log_fn=quiet)
        reports.append(bundle.report["optimizer"].partition(":")[0])
        assert type(bundle.optimizer).__name__ == "Lion"
        with pytest.raises(KitError, match="was swapped for a Lion"):
            made.step()
        train(model, bundle.optimizer)
        content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": bundle.optimizer.state_dict()}
        torch.save({**content, "global_step": 7, "epoch": 0, "best_val_loss": 1.0}, path)
    assert reports == ["swap", "load", "load"]


def test_a_planned_swap_that_does_not_happen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain_file(tmp_path, "adamw")
    planned(tmp_path, path, monkeypatch, optimizer="swap", scheduler="absent")
    monkeypatch.setattr("resumekit.trainer.optimizer_state.lion_stand_in", lambda *_: None)  # no lion_pytorch
    with pytest.raises(InvalidFile, match="the plan's optimizer 'lion' needs a Lion, and the trainer passes AdamW"):
        load(path, "adamw")
