"""The rate that a trainer is handed as an argument: start.handed_rate, and the rules of `recover.lr_args`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.base.errors import InvalidFile
from resumekit.base.paths import RunPaths
from resumekit.config import config, schema
from resumekit.policy.lr_scale import LrScale, Ramp
from resumekit.start import handed_rate, plan_rules
from resumekit.start.plan_rules import Held, Optimizers
from support import schema_examples
from support.commands import Kit

KIT = schema.load()
OWN = {"command": ["train", "--lr", "{optimizer.lr}"], "loads_with_kit": False, "extra_args": []}


def resolved(*settings: str, **sections: dict[str, Any]) -> dict[str, Any]:
    base = {"trainer": OWN, "optimizer": {"lr": 1e-4}, "recover": {"lr_args": ["--lr", "{lr}"]}, **sections}
    return config.override(base, settings, KIT, "a test")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("recover.lr_args=[--lr]", "with {lr} in it 0 times: write it once"),
        ("recover.lr_args=['{lr}', '{lr}']", "with {lr} in it 2 times"),
        ("recover.lr_args=['{{lr}}']", "with {lr} in it 0 times"),
        ("recover.lr_args=[]", "'recover.lr_args' is '[]'"),
        ("recover.lr_args=[1]", "item 1 of 'recover.lr_args' is '1', a whole number, and must be a text"),
        ("recover.lr_args=--lr", "'recover.lr_args' is '--lr'"),
        ("trainer.loads_with_kit=true", "it would be cut twice"),
        ("optimizer.puzzle_lr=1e-3", "the config has optimizer.lr and optimizer.puzzle_lr"),
        ("trainer.command=[train]", "the trainer is not told of optimizer.lr"),
    ],
)
def test_a_rate_that_could_not_be_cut_right_is_refused(setting: str, says: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        resolved(setting)
    assert says in str(caught.value) and str(caught.value).endswith(f"(--set '{setting}')")


def test_a_rate_that_the_config_does_not_say_is_not_cut() -> None:
    with pytest.raises(
        InvalidFile, match=r"what \{lr\} is to be cut from is not known, for the config has no base rate"
    ):
        resolved(optimizer={})


def test_the_base_rate_times_the_scale_is_handed_over_and_nothing_where_that_is_one() -> None:
    own = resolved()
    before = ({**own, "optimizer": {"lr": 2e-4}}, LrScale(0.8))
    found = handed_rate.of(own, KIT, 10, LrScale(0.64), before)
    assert found is not None
    assert (found.key, found.lr, found.args) == ("optimizer.lr", 6.4e-05, ("--lr", "6.4e-05"))
    assert found.before == pytest.approx(1.6e-4)
    assert found.words == "--lr 6.4e-05 (recover.lr_args): optimizer.lr 0.0001 x 0.64, cut by recoveries"
    assert handed_rate.of(own, KIT, 10, LrScale(), before) is None
    assert handed_rate.of(resolved("recover.lr_args=null"), KIT, 10, LrScale(0.64), before) is None


def test_a_ramp_after_a_swap_holds_until_the_first_resume_behind_it() -> None:
    scale = LrScale(1.0, Ramp(40, 1000, 0.8))
    found = handed_rate.of(resolved(), KIT, 40, scale, (None, LrScale()))
    assert found is not None and (found.lr, found.before) == (8e-05, None)
    assert found.why == "lowered by the swap of the optimizer, whole again at the first resume from step 1,040 on"
    assert handed_rate.of(resolved(), KIT, 1040, scale, (None, LrScale())) is None
    warm = LrScale(1.0, Ramp(40, 1000, 0.8, warm_restart=True))
    assert "swap_warm_restart" in handed_rate.refusal(resolved(), warm, 40)
    assert handed_rate.refusal(resolved(), scale, 40) == ""


@pytest.mark.parametrize(("lr_args", "is_refused"), [("[--lr,'{lr}']", False), ("null", True)])
def test_a_swap_needs_consent_where_the_cut_that_it_begins_with_can_be_handed_over(
    lr_args: str, is_refused: bool
) -> None:
    held, swap = Held(frozenset({"weights", "optimizer"}), {"": "adamw"}), Optimizers("adamw", "lion")
    found = plan_rules.decide_components(held, (), swap, {})
    now: Any = SimpleNamespace(config=resolved(f"recover.lr_args={lr_args}"), changed=(), already_accepted=(), step=4)
    now.recovery, now.is_chained = None, False
    judged = plan_rules.judge(found, now, held, swap)
    assert bool(judged.refusals) == is_refused
    assert any("'optimizer: swap'" in sentence for sentence in judged.consents) != is_refused


@pytest.mark.parametrize(
    ("handed", "factor"),
    [({"lr": 8e-05, "before": 1e-4}, 0.8), (None, 1.0), ({"lr": "8e-05"}, None), ([], None), ("absent", 1.0)],
)
def test_what_a_runs_checkpoints_are_scaled_by_stands_in_its_plan(
    tmp_path: Path, handed: Any, factor: float | None
) -> None:
    plan = schema_examples.case("plan") | {"lr_scale": {"factor": 0.8, "ramp": None}, "handed_rate": handed}
    if handed != "absent":
        (tmp_path / "resume_plan.json").write_text(json.dumps(plan))
    holder: Any = SimpleNamespace(config=resolved(), paths=RunPaths(tmp_path))
    if factor is not None:
        assert handed_rate.held_scale(holder, resolved()) == LrScale(factor)
        return
    with pytest.raises(InvalidFile, match=r"--set recover.lr_args=null"):
        handed_rate.held_scale(holder, resolved())
    assert handed_rate.held_scale(holder, resolved("recover.lr_args=null")) == LrScale(), "and that it does"


@pytest.mark.parametrize(
    ("lr_args", "extra", "says"),
    [
        (["{lr}", "{optimiser.lr}"], [], "unknown placeholder '{optimiser.lr}' in recover.lr_args; did you mean"),
        (["--lr={lr}"], ["--", "--lr", "3"], "has '--lr', and recover.lr_args hands over the rate of the config"),
    ],
)
def test_what_the_first_cut_would_stumble_over_is_found_by_the_first_start(
    tmp_path: Path, lr_args: list[str], extra: list[str], says: str
) -> None:
    kit = Kit(tmp_path / "lab")
    kit.config("--lr", "{optimizer.lr}", optimizer={"lr": 1.0}, recover={"lr_args": lr_args})
    assert says in kit("run", "T-1", "--dry-run", *extra, code=4).stderr
