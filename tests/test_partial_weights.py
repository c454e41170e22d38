"""Weights by name and shape: what is kept, what is new, what is another model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resumekit.checkpoint.parameters import pair_paths, plain_path
from resumekit.trainer.loading import load_resume_bundle
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import Net, train

pytestmark = pytest.mark.usefixtures("in_a_new_process")


class Wrapped(nn.Module):
    """A model inside another one, under the name that DDP or torch.compile gives it."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        setattr(self, name, inner)


def saved(folder: Path, model: nn.Module, **more: Any) -> Path:
    path = save_checkpoint(folder, 4, model=model, log_fn=quiet, **more)
    assert path is not None
    return path


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.layers.0.weight", "layers.0.weight"),
        ("_orig_mod.module.layers.0.weight", "layers.0.weight"),
        ("layers.0._orig_mod.weight", "layers.0.weight"),
        ("modules.weight", "modules.weight"),
        ("my_module.weight", "my_module.weight"),
    ],
)
def test_wrappers_are_left_out_wherever_they_stand_and_nothing_else_is(name: str, plain: str) -> None:
    assert plain_path(name) == plain


def test_exact_names_win_and_what_is_ambiguous_is_not_guessed() -> None:
    assert pair_paths(["module.a", "a"], ["a", "module.a"]) == {"module.a": "module.a", "a": "a"}
    assert pair_paths(["module.a", "_orig_mod.a"], ["a"]) == {}
    assert pair_paths(["a"], ["module.a", "_orig_mod.a"]) == {}
    assert pair_paths(["module.a", "b"], ["a", "b"]) == {"module.a": "a", "b": "b"}


@pytest.mark.parametrize("before", [None, "module", "_orig_mod"])
@pytest.mark.parametrize("after", [None, "module", "_orig_mod"])
def test_a_strict_load_goes_through_ddp_and_compile_prefixes_on_either_side(
    tmp_path: Path, before: str | None, after: str | None
) -> None:
    old, new = Net(seed=1), Net(seed=2)
    path = saved(tmp_path, Wrapped(old, before) if before else old)
    bundle = load_resume_bundle(Wrapped(new, after) if after else new, ckpt_path=path, log_fn=quiet)
    assert bundle.report["weights"] == "load" and bundle.missing == bundle.unexpected == ()
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in new.state_dict().items())


def test_a_grown_model_takes_what_fits_and_keeps_its_own_initialisation_for_the_rest(tmp_path: Path) -> None:
    old, new = Net(seed=1), Net(grown=True, seed=2)
    made = {name: value.clone() for name, value in new.state_dict().items()}
    lines: list[str] = []
    bundle = load_resume_bundle(new, ckpt_path=saved(tmp_path, old), allow_partial_weights=True, log_fn=lines.append)
    assert bundle.missing == ("gate.weight", "gate.bias", "rule_head.weight", "rule_head.bias")
    assert bundle.unexpected == bundle.reshaped == bundle.reinitialised == ()
    assert bundle.report["weights"] == "partial: 9 of 13 parameters, 4 new"
    assert "[warn] missing params: 4 (new layers?)" in lines
    for name, value in new.state_dict().items():
        assert torch.equal(value, made[name] if name in bundle.missing else old.state_dict()[name]), name


def test_a_part_that_is_gone_is_named_and_so_is_another_shape(tmp_path: Path) -> None:
    lines: list[str] = []
    old = saved(tmp_path / "a", nn.ModuleDict({"body": nn.Linear(9, 9), "old": nn.Linear(2, 2)}))
    new = nn.ModuleDict({"body": nn.Linear(9, 9)})
    bundle = load_resume_bundle(new, ckpt_path=old, allow_partial_weights=True, log_fn=lines.append)
    assert bundle.unexpected == ("old.weight", "old.bias") and bundle.missing == bundle.reshaped == ()
    assert "[warn] unexpected params in ckpt: 2" in lines
    assert bundle.report["weights"] == "partial: 2 of 2 parameters, 2 left out"
    wider = Net(seed=2)
    wider.head = nn.Linear(3, 3)
    before = wider.head.weight.clone()
    path = saved(tmp_path / "b", Net(seed=1))
    bundle = load_resume_bundle(wider, ckpt_path=path, allow_partial_weights=True, log_fn=lines.append)
    assert bundle.reshaped == ("head.weight", "head.bias") and bundle.missing == bundle.unexpected == ()
    assert "[warn] params of another shape in ckpt: 2 (taken as new)" in lines
    assert torch.equal(wider.head.weight, before)


def test_kaiming_gives_new_matrices_the_protocols_initialisation_and_lists_them(tmp_path: Path) -> None:
    """Protocol §6: kaiming_uniform_(a=sqrt 5); a bias has one dimension, where it is not defined."""
    new = Net(grown=True, seed=2)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.fill_(7.0)
    path = saved(tmp_path, Net(seed=1))
    bundle = load_resume_bundle(
        new, ckpt_path=path, allow_partial_weights=True, new_params="kaiming", restore_rng=False, log_fn=quiet
    )
    assert bundle.reinitialised == ("gate.weight", "rule_head.weight")
    for name in bundle.reinitialised:
        weight = new.get_parameter(name)
        # a = sqrt(5): uniform within 1 / sqrt(fan in)
        assert 0 < weight.abs().max() <= 1 / math.sqrt(weight.shape[1]) and weight.unique().numel() == weight.numel()
    assert (new.gate.bias == 7.0).all() and (new.rule_head.bias == 7.0).all()


def test_the_random_numbers_go_on_as_saved_whatever_new_parameters_have_drawn(tmp_path: Path) -> None:
    path = saved(tmp_path, Net(seed=1))
    want = torch.rand(3)
    for how in ("module", "kaiming"):
        load_resume_bundle(
            Net(grown=True, seed=2), ckpt_path=path, allow_partial_weights=True, new_params=how, log_fn=quiet
        )
        assert torch.equal(torch.rand(3), want)


def test_a_model_that_fits_wholly_is_loaded_whole_though_less_was_allowed(tmp_path: Path) -> None:
    path = saved(tmp_path, Net(seed=1))
    bundle = load_resume_bundle(Net(seed=2), ckpt_path=path, allow_partial_weights=True, log_fn=quiet)
    assert bundle.report["weights"] == "load"


def test_batch_norm_and_other_buffers_are_loaded_by_name_too(tmp_path: Path) -> None:
    old, new = Net(seed=1), Net(grown=True, seed=2)
    train(old, torch.optim.SGD(old.parameters(), lr=0.1), steps=3)
    load_resume_bundle(new, ckpt_path=saved(tmp_path, old), allow_partial_weights=True, log_fn=quiet)
    assert int(new.norm.num_batches_tracked) == 3 and torch.equal(new.norm.running_var, old.norm.running_var)


def test_a_tied_weight_is_loaded_once_and_stays_tied(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
        model["out"].weight = model["embed"].weight
        return model

    old, new = tied(1), tied(2)
    bundle = load_resume_bundle(
        Wrapped(new, "module"), ckpt_path=saved(tmp_path, old), allow_partial_weights=True, log_fn=quiet
    )
    assert bundle.report["weights"] == "load" and new["out"].weight is new["embed"].weight
    assert torch.equal(new["embed"].weight, old["embed"].weight)
