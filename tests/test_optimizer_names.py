"""The line that names a checkpoint's optimizers: what is written is read back, whatever the trainer calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resumekit.checkpoint import archive
from resumekit.checkpoint.parameters import plain_optimizer_name, read_optimizer_names, write_optimizer_names
from resumekit.start import plan_rules
from resumekit.trainer import optimizer_state
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import quiet
from support.resume_parts import OPTIMIZERS, Net

AWKWARD = ["", "a=b", "a,b", "a=AdamW,b", ",", "=", "b", " ", "a\nb", "AdamW", "b=SGD"]


@given(st.dictionaries(st.text(alphabet="ab=, ", max_size=6), st.sampled_from(["AdamW", "SGD", "a", "b"]), min_size=1))
def test_what_was_written_for_several_is_read_back(kinds: dict[str, str]) -> None:
    assert read_optimizer_names(write_optimizer_names(kinds), kinds) == kinds


def test_what_was_written_for_one_is_read_back() -> None:
    assert (write_optimizer_names("AdamW"), read_optimizer_names("AdamW", [""])) == ("AdamW", {"": "AdamW"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {"model": None, "puzzles": None}),
        (7, {"model": None, "puzzles": None}),
        ("", {"model": None, "puzzles": None}),
        ("AdamW", {"model": None, "puzzles": None}),
        ("model=AdamW", {"model": "AdamW", "puzzles": None}),
        ("puzzles=SGD,model=AdamW", {"model": "AdamW", "puzzles": "SGD"}),
        ("heads=Lion,model=AdamW,puzzles=SGD", {"model": "AdamW", "puzzles": "SGD"}),
        ("model=,puzzles=SGD", {"model": None, "puzzles": "SGD"}),
    ],
)
def test_a_line_of_other_names_says_what_it_says(text: Any, expected: dict[str, str | None]) -> None:
    assert read_optimizer_names(text, ["model", "puzzles"]) == expected


def test_launcher_and_trainer_read_the_same_in_a_real_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = Net(seed=1)
    kinds = {name: ("adamw", "sgd")[at % 2] for at, name in enumerate(AWKWARD)}
    several = {name: OPTIMIZERS[kind]([model.body.weight]) for name, kind in kinds.items()}
    path = save_checkpoint(tmp_path, 4, model=model, optimizer=several, log_fn=quiet)
    assert path is not None
    inside = archive.summarize(path)
    planned = plan_rules.held_by(inside.keys, inside.counters, inside.optimizers).optimizers
    loaded = optimizer_state.held_optimizers(torch.load(path, weights_only=True))
    assert planned == kinds
    assert {name: plain_optimizer_name(str(one.kind)) for name, one in loaded.items()} == kinds


def test_names_of_classes_and_configs_are_compared_without_their_spelling() -> None:
    assert (
        plain_optimizer_name("AdamW")
        == plain_optimizer_name("adam_w")
        == plain_optimizer_name("adamw")
        != plain_optimizer_name("adam")
    )
