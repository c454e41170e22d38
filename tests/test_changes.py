"""What a changed key costs a resumed run: the schema's words, chosen by direction; consent where it has none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumekit.config import config, schema
from resumekit.policy.config_diff import Change, _effect, changes

KIT = schema.load()
SHIPPED = config.load_config()
BASE = config.resolve(SHIPPED.document, "EXP-01", schema=KIT)
REFIT = {"scheduler": "refit"}
SWAP = {"optimizer": "swap"}


def change(key: str, old: Any, new: Any) -> Change:
    """Return the change of one key between two values, neither of them checked."""
    before, after = (json.loads(json.dumps(BASE)) for _ in range(2))
    for data, value in ((before, old), (after, new)):
        *parents, name = key.split(".")
        for parent in parents:
            data = data.setdefault(parent, {})
        data[name] = value
    (found,) = changes(before, after, KIT)
    assert (found.key, found.old, found.new) == (key, old, new)
    return found


def cost(key: str, old: Any, new: Any) -> dict[str, str] | str:
    """Return 'refuse', 'consent', or the actions, which must stand alone."""
    found = change(key, old, new)
    if found.refuse or found.consent:
        assert (found.refuse is None) != (found.consent is None)
        return "refuse" if found.refuse else "consent"
    return found.actions


@pytest.mark.parametrize(
    ("key", "old", "new", "expected"),
    [
        # protocol §2: safe on resume
        ("validation.fast_eval_every", 100, 2000, {}),
        ("validation.full_eval_every", 500, 10000, {}),
        ("validation.gate_full_eval_on_fast_improvement", True, False, {}),
        ("checkpoint.every", 50, 100, {}),
        ("checkpoint.keep_last", 5, None, {}),
        ("status.interval_s", 5.0, 60.0, {}),
        ("training.grad_noise_sigma", 0.0, 0.1, {}),
        ("training.log_every", 10, 1, {}),
        ("training.batch_size", 32, 8, {"data_position": "rederive"}),
        ("training.grad_accum_steps", 1, 5, {"data_position": "rederive"}),
        ("data.path", None, "/data", {}),
        ("paths.runs", "runs", "/big/runs", {}),
        ("experiment.notes", "", "x", {}),
        ("resume.optimizer", "auto", "reset", {}),
        # a small tweak or more than that
        ("optimizer.weight_decay", 0.01, 0.02, {}),
        ("optimizer.weight_decay", 0.02, 0.01, {}),
        ("optimizer.weight_decay", 0.1, 0.2, {}),
        ("optimizer.weight_decay", 0.01, 0.021, "consent"),
        ("optimizer.weight_decay", 0.0, 0.01, "consent"),
        ("optimizer.weight_decay", 0.01, 0.0, "consent"),
        ("training.grad_clip", 1.0, 0.5, {}),
        ("training.grad_clip", 1.0, 0.4, "consent"),
        ("training.grad_clip", None, 1.0, "consent"),
        ("training.grad_clip", 1.0, None, "consent"),
        # the schedule is a new function of the step that is kept
        ("schedule.warmup_steps", 100, 200, REFIT),
        ("optimizer.lr", 1e-3, 5e-4, REFIT),
        ("training.max_steps", 2000, 4000, REFIT),
        ("schedule.tail", None, "cyclic", REFIT),
        ("schedule.tail", "cyclic", None, REFIT),
        ("schedule.tail", "cyclic", "linear", REFIT),
        ("schedule.name", "cosine", "constant", {"scheduler": "refit", "optimizer": "reset"}),
        # another optimizer
        ("optimizer.name", "adamw", "lion", SWAP),
        ("optimizer.swap_at", None, 40000, SWAP),
        # new parts
        ("model.droppath_h", "0", "0..0.2", {"weights": "partial", "optimizer": "partial"}),
        ("model.aux_rule_head", False, True, {"weights": "partial", "optimizer": "partial"}),
        ("ema.enabled", False, True, {"ema": "fresh"}),
        ("ema.enabled", True, False, {"ema": "absent"}),
        ("swa.enabled", False, True, {"swa": "fresh"}),
        ("training.amp", "off", "bf16", {"scaler": "reset"}),
        # curves that cannot be compared
        ("training.seed", 42, 43, "consent"),
        ("data.name", "arc_agi_1", "arc_agi_2", "consent"),
        ("data.subset", None, 10, "consent"),
        ("trainer.extra_args", [], ["--compile"], "consent"),
        ("model.dropout", 0.0, 0.1, "consent"),
        # other shapes
        ("model.hidden_size", 64, 128, "refuse"),
        ("model.layers", 2, 4, "refuse"),
        ("model.name", "hrm", "gpt", "refuse"),
        ("model.puzzle_emb_dim", 64, 0, "refuse"),
    ],
)
def test_a_change_costs_what_the_protocol_says(key: str, old: Any, new: Any, expected: dict[str, str] | str) -> None:
    assert cost(key, old, new) == expected


@pytest.mark.parametrize("key", ["x-new", "training.x-new", "newsection", "training.unheard_of"])
def test_a_key_that_the_schema_does_not_declare_needs_consent_and_is_never_safe(key: str) -> None:
    found = change(key, 1, 2)
    assert found.consent == "the schema does not say what a change of it does to a resumed run"
    assert found.actions == {}


def test_equal_configs_have_no_changes_whatever_the_spelling_of_their_numbers() -> None:
    same = json.loads(json.dumps(BASE))
    same["training"]["max_steps"] = 2000.0
    same["optimizer"]["lr"] = 0.001
    same["status"]["interval_s"] = 5
    assert changes(BASE, same, KIT) == []


def test_true_is_not_one_and_a_list_in_another_order_is_another_list() -> None:
    assert change("x-a", True, 1).consent
    assert change("x-a", [1, 2], [2, 1]).consent
    assert change("x-a", {"a": 1}, {"a": 1.0}).consent
    before, after = ({**BASE, "x-a": value} for value in ({"a": 1, "b": [0]}, {"b": [0], "a": 1}))
    assert changes(before, after, KIT) == []


def test_a_key_that_one_config_lacks_has_the_schemas_default_there() -> None:
    older = json.loads(json.dumps(BASE))
    del older["checkpoint"]["keep_best_artifacts"], older["notify"]
    assert changes(older, BASE, KIT) == []
    older["checkpoint"]["keep_last"] = 7
    (found,) = changes(older, BASE, KIT)
    assert (found.key, found.old, found.new, found.actions) == ("checkpoint.keep_last", 7, 5, {})


def test_changes_come_in_key_order_and_safe_ones_outside_the_hash_are_listed_too() -> None:
    new = config.override(BASE, ["seed=7", "batch_size=16", "keep_last=9", "notes=n"], KIT)
    assert [found.key for found in changes(BASE, new, KIT)] == [
        "checkpoint.keep_last",
        "experiment.notes",
        "training.batch_size",
        "training.seed",
    ]


def test_the_direction_chooses_the_effect() -> None:
    declared = {
        "increase": {"a": "load"},
        "decrease": {"a": "reset"},
        "enable": {"a": "fresh"},
        "disable": {"a": "absent"},
    }
    assert _effect(declared, 1, 2) == {"a": "load"}
    assert _effect(declared, 2, 1) == {"a": "reset"}
    assert _effect(declared, 0, 1) == {"a": "fresh"}
    assert _effect(declared, 1, 0.0) == {"a": "absent"}
    assert _effect(declared, False, True) == {"a": "fresh"}
    assert _effect(declared, "a", "b") is None
    assert _effect({**declared, "otherwise": {}}, "a", "b") == {}
    assert _effect({"increase": {"within": 2.0, "consent": "c"}}, 1, 2) == {}
    assert _effect({"increase": {"within": 2.0, "consent": "c"}}, 1, 3) == {"within": 2.0, "consent": "c"}
    assert _effect({"increase": {"within": 2.0}}, 3, 1) is None
    assert _effect("safe", 1, 2) is None
    assert _effect(None, 1, 2) is None


def test_only_a_resume_that_loses_nothing_or_rederives_its_place_in_the_data_costs_nothing_more() -> None:
    """Every key with an empty effect is a safe one by the protocol or changes nothing in the training."""
    unhashed = {key for key in KIT.leaves if not KIT.hashed(key)}
    safe = {key for key, node in KIT.leaves.items() if node["x-on-resume"] == {}}
    assert safe - unhashed == {
        "data.workers",
        # a swap's numbers: they count when one happens, and the plan shows them then
        "optimizer.swap_lr_factor",
        "optimizer.swap_lr_steps",
        "optimizer.swap_warm_restart",
        "swa.start_on_stall",
        "training.grad_noise_sigma",
        "training.threads",
        "validation.fast_eval_every",
        "validation.full_eval_every",
        "validation.fast_fraction",
        "validation.gate_full_eval_on_fast_improvement",
    }
