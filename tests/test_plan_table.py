"""The table of effects: for each change of a resumed run, what happens to each component, and whether it may happen.

The expected column is written by hand from the protocol (§1, §2, §6 to §9) and the tables of docs/design.md, so that
an edit of the schema that changes a policy turns a row red.
"""

from __future__ import annotations

import runpy
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.base import paths
from resumekit.checkpoint.manifest import Manifest
from resumekit.config import config, schema
from resumekit.policy import decide as table
from resumekit.policy import plan_file
from resumekit.policy.config_diff import Change, changes
from resumekit.start import compatibility, plan_rules
from resumekit.start import plan_rules as c
from resumekit.start.baseline import with_swap
from resumekit.start.choice import BRANCH, Choice
from resumekit.start.plan_rules import Optimizers
from resumekit.trainer import checkpoint_content, decisions
from support.plan_rows import CONFIG_ROWS, CONSENT, NOTHING, READY, REDERIVE, REFIT, REFUSED, SWAP

FILE = config.load_config()
SCHEMA = schema.load()
BASE = config.resolve(FILE.document, schema=FILE.schema)
KEPT = ("weights", "optimizer", "scheduler", "ema", "counters", "rng", "data_position")


def held(*extra: str, without: tuple[str, ...] = (), optimizers: dict[str, str | None] | None = None) -> c.Held:
    names = frozenset({*KEPT, *extra}) - set(without)
    return c.Held(names, {"": "adamw"} if optimizers is None else optimizers)


def planned(
    settings: str, inside: c.Held, *, parent: str = "", step: int = 40000, started: int = 0, differs: Any = ()
) -> tuple[dict[str, str], str]:
    """Return (component -> action where it is not 'load' and not absent in the checkpoint anyway, verdict)."""
    before = config.override(BASE, parent.split(), FILE.schema, "a test")
    now = with_swap(config.override(before, settings.split(), FILE.schema, "a test"))
    changed = changes(before, now, SCHEMA)
    optimizers = Optimizers(c.optimizer_at(before, started), c.optimizer_at(now, step))
    found = c.decide_components(inside, (*changed, *differs), optimizers, now["resume"])
    choice = Choice(BRANCH, "T-1", None, now, SimpleNamespace(), changed=changed, step=step)
    judged = plan_rules.judge(found, choice, inside, optimizers)
    absent = {one.name for one in found if one.action == "absent" and "not in the checkpoint" in one.why}
    assert all(one.why for one in found if one.action != "load"), "every deviation has its reason"
    assert absent == {name for name in c.KEYS if name not in inside.components} - {
        one.name for one in found if one.action != "absent"
    }
    verdict = REFUSED if judged.refusals else CONSENT if judged.consents else READY
    return {one.name: one.action for one in found if one.action != "load" and one.name not in absent}, verdict


@pytest.mark.parametrize(("what", "settings", "expected", "verdict"), CONFIG_ROWS, ids=[row[0] for row in CONFIG_ROWS])
def test_a_changed_config(what: str, settings: str, expected: dict[str, str], verdict: str) -> None:
    assert planned(settings, held()) == (expected, verdict)


ENVIRONMENT_ROWS = [
    ("torch", {"scaler": "reset"}),
    ("cuda", {"scaler": "reset"}),
    ("driver", {"scaler": "reset"}),
    ("python", NOTHING),
]


@pytest.mark.parametrize(("name", "expected"), ENVIRONMENT_ROWS, ids=[row[0] for row in ENVIRONMENT_ROWS])
def test_a_changed_environment(name: str, expected: dict[str, str]) -> None:
    """Protocol §1: another torch, CUDA or driver makes a scaler's state meaningless."""
    versions = {"python": "3.11.7", "torch": "2.12.0", "cuda": "12.4", "driver": "550.1"}
    differs = compatibility.machine_changes({"versions": versions}, versions | {name: "other"}, None)
    assert [change.key for change in differs] == [name]
    assert planned("", held("scaler"), differs=differs) == (expected, READY)
    assert planned("", held(), differs=differs) == (NOTHING, READY), "without a scaler nothing is reset"


def test_another_number_of_ranks_leaves_the_generators_and_takes_other_parts_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    differs = compatibility.machine_changes({"environment": {"values": {}}}, {}, None)
    assert planned("", held(), differs=differs) == ({"rng": "reset", "data_position": "rederive"}, READY)


def test_what_a_checkpoint_lacks_of_several_ranks_and_a_batch_that_is_to_stay_is_said() -> None:
    known = Manifest(
        writer="save_checkpoint", file="model_1.pt", size=1, sha256="0" * 64, step=1, created_at="", rng_ranks=1,
        versions={"world_size": 2},
    )  # fmt: skip
    (sentence,) = compatibility.of_ranks(known, (), {})
    assert sentence.startswith("the checkpoint of 2 ranks holds the random number generators of 1: the others begin")
    for whole in (known._replace(rng_ranks=2), known._replace(rng_ranks=None, versions={"world_size": 1}), None):
        assert compatibility.of_ranks(whole, (), {"training": {"global_batch": 64}}) == ()
    ranks = Change(key="world_size", old="2", new="4", actions={}, consent=None, refuse=None)
    (sentence,) = compatibility.of_ranks(None, (ranks,), {"training": {"global_batch": 64}})
    assert sentence.startswith("training.global_batch 64 stays only if the trainer accumulates accordingly")


def test_another_number_of_threads_costs_nothing_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compatibility.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    differs = compatibility.machine_changes({"environment": {"values": {"OMP_NUM_THREADS": "4"}}}, {}, None)
    assert [(one.key, one.old, one.new) for one in differs] == [("OMP_NUM_THREADS", "4", "2")]
    assert planned("", held(), differs=differs) == (NOTHING, READY)


def test_other_code_costs_nothing_and_is_said() -> None:
    code = SimpleNamespace(commit="b" * 40, diff_sha256=None)
    differs = compatibility.machine_changes({"git": {"commit": "a" * 40, "diff_sha256": None}}, {}, code)
    assert [(change.key, change.actions) for change in differs] == [("git.commit", {})]
    assert planned("", held(), differs=differs) == (NOTHING, READY)


def test_nothing_is_compared_with_a_run_that_recorded_nothing() -> None:
    assert compatibility.machine_changes({}, {"torch": "2.13.0"}, None) == []


AMP_ROWS = [
    ("fp16 to bf16", "training.amp=fp16", "training.amp=bf16", ("scaler",), {"scaler": "reset"}),
    ("off to fp16", "", "training.amp=fp16", (), NOTHING),
    ("other device", "training.amp=fp16 training.device=cuda", "training.device=cpu", ("scaler",), {"scaler": "reset"}),
]


@pytest.mark.parametrize(("what", "parent", "settings", "extra", "expected"), AMP_ROWS, ids=[r[0] for r in AMP_ROWS])
def test_mixed_precision(
    what: str, parent: str, settings: str, extra: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert planned(settings, held(*extra), parent=parent) == (expected, READY)


def test_ema_newly_enabled_starts_from_the_current_weights() -> None:
    """Protocol §9."""
    assert planned("ema.enabled=true", held(without=("ema",)), parent="ema.enabled=false") == ({"ema": "fresh"}, READY)


def test_an_average_that_is_there_does_not_change_its_window_without_consent() -> None:
    """What was collected so far stays in it; where nothing was, no question is asked."""
    tail = "swa.enabled=true"
    assert planned("swa.start_step=60000", held("swa"), parent=tail) == (NOTHING, CONSENT)
    assert planned("swa.start_step=60000", held(), parent=tail) == (NOTHING, READY)
    assert planned("ema.decay=0.99", held(without=("ema",))) == (NOTHING, READY)


def test_a_tail_taken_away_is_a_refit() -> None:
    assert planned("schedule.tail=null", held(), parent="schedule.tail=cyclic") == (REFIT, READY)


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "ema", "counters", "rng", "data_position"])
def test_what_the_checkpoint_lacks_is_absent_with_its_reason(name: str) -> None:
    inside = held(without=(name,))
    (component,) = [
        one for one in c.decide_components(inside, (), Optimizers("adamw", "adamw"), {}) if one.name == name
    ]
    becomes = "begins with the weights just loaded" if name == "ema" else "stays as the trainer has made it"
    assert (component.action, component.why) == ("absent", f"not in the checkpoint: {becomes}, where it is used")


def test_a_checkpoint_without_weights_is_refused() -> None:
    assert planned("", held(without=("weights",)))[1] == REFUSED


def test_a_trainer_that_loads_by_itself_may_call_its_weights_as_it_likes() -> None:
    own = "trainer.loads_with_kit=false"
    assert planned("", c.Held(frozenset({"counters"}), {}), parent=own)[1] == READY


SWAP_ROWS = [
    # parent's settings, step, step that the checkpoint's run started at, class in the checkpoint -> swapped?
    ("planned, reached exactly", "optimizer.swap_at=40000", 40000, 0, "adamw", True),
    ("planned, one step early", "optimizer.swap_at=40000", 39999, 0, "adamw", False),
    ("planned, trained past it", "optimizer.swap_at=40000", 45000, 0, "adamw", True),
    ("done before: the checkpoint holds Lion", "optimizer.swap_at=40000", 50000, 40000, "lion", False),
    ("done, and back before it", "optimizer.swap_at=40000", 39000, 0, "adamw", False),
    ("planned, and the checkpoint does not say which", "optimizer.swap_at=40000", 40000, 0, None, True),
]


@pytest.mark.parametrize(
    ("what", "parent", "step", "started", "own", "swaps"), SWAP_ROWS, ids=[r[0] for r in SWAP_ROWS]
)
def test_a_swap_happens_once(what: str, parent: str, step: int, started: int, own: str | None, swaps: bool) -> None:
    """Protocol §6, §7: recognised by the optimizer that the checkpoint holds."""
    inside = held(optimizers={"": own})
    assert planned("", inside, parent=parent, step=step, started=started) == (SWAP if swaps else NOTHING, READY)


def test_of_several_optimizers_only_the_one_that_the_config_is_about_is_swapped() -> None:
    inside = held(optimizers={"model": "adamw", "puzzles": "signsgd"})
    expected = {"optimizer.model": "swap", "scheduler": "refit"}
    assert planned("optimizer.name=lion", inside) == (expected, READY)


def test_a_swap_by_hand_is_about_that_one_too_and_happens_once() -> None:
    by_hand = "resume.optimizer=swap_to_lion"
    inside = held(optimizers={"model": "adamw", "puzzles": "signsgd"})
    assert planned(by_hand, inside) == ({"optimizer.model": "swap", "scheduler": "refit"}, READY)
    swapped = held(optimizers={"model": "lion", "puzzles": "signsgd"})
    assert planned(by_hand, swapped, parent="optimizer.name=lion") == (NOTHING, READY)
    assert planned("", swapped, parent="optimizer.name=lion") == (NOTHING, READY), "a later resume keeps Lion"


def test_a_swap_that_is_about_none_of_the_optimizers_is_refused() -> None:
    inside = held(optimizers={"model": "adafactor", "puzzles": "signsgd"})
    assert planned("optimizer.name=lion", inside)[1] == REFUSED


def test_an_architecture_edit_reaches_every_optimizer() -> None:
    inside = held(optimizers={"model": "adamw", "puzzles": "signsgd"})
    each = ("weights", "optimizer.model", "optimizer.puzzles", "ema")
    expected = dict.fromkeys(each, "partial")
    assert planned("model.aux_rule_head=true", inside) == (expected, READY)


def test_a_trainer_that_loads_by_itself_cannot_be_told_to_swap() -> None:
    own = "trainer.loads_with_kit=false"
    assert planned("optimizer.name=lion", held(), parent=own)[1] == REFUSED
    assert planned("training.max_steps=200000", held(), parent=own)[1] == CONSENT, "what it does cannot be seen"
    assert planned("training.batch_size=64", held(), parent=own) == (REDERIVE, READY)


def test_a_reason_names_key_and_values() -> None:
    before, now = BASE, config.override(BASE, ["optimizer.lr=5e-5"], FILE.schema, "a test")
    found = c.decide_components(held(), changes(before, now, SCHEMA), Optimizers("adamw", "adamw"), now["resume"])
    assert [one.why for one in found if one.name == "scheduler"] == ["optimizer.lr: 0.0001 -> 5e-05"]
    now = config.override(now, ["resume.scheduler=load"], FILE.schema, "a test")
    found = c.decide_components(held(), changes(before, now, SCHEMA), Optimizers("adamw", "adamw"), now["resume"])
    assert [one.why for one in found if one.name == "scheduler"] == ["resume.scheduler is 'load' (without it: refit)"]


# What a user can ask for on both sides: (resume.* in the config, an argument of load_resume_bundle).
ASKED_ROWS = [
    ("", {}),
    ("resume.weights=partial", {"allow_partial": True}),
    ("resume.optimizer=reset", {"optimizer": "reset"}),
    ("resume.rng=reset", {"restore_rng": False}),
]


@pytest.mark.parametrize("swaps", [False, True], ids=["same optimizer", "another optimizer"])
@pytest.mark.parametrize("upgraded", [False, True], ids=["same torch", "another torch"])
@pytest.mark.parametrize("lacks", ["", "optimizer", "scheduler", "ema", "rng", "data_position"])
@pytest.mark.parametrize(("settings", "arguments"), ASKED_ROWS, ids=[row[0] or "nothing asked" for row in ASKED_ROWS])
def test_launcher_and_trainer_decide_alike(
    settings: str, arguments: dict[str, Any], lacks: str, upgraded: bool, swaps: bool
) -> None:
    """The same case in a plan, and in a trainer without one."""
    content = _content(lacks)
    resolved = config.override(BASE, settings.split(), FILE.schema, "a test")
    optimizers = Optimizers("adamw", "lion" if swaps else "adamw")
    differs = compatibility.machine_changes({"versions": {"torch": "1"}}, {"torch": "2"}, None) if upgraded else []
    inside = c.held_by(content, {"optimizer_name": "AdamW"}, [""] if lacks != "optimizer" else [])
    planned = {one.name: one.action for one in c.decide_components(inside, differs, optimizers, resolved["resume"])}
    wishes = decisions.Wishes(**({"optimizer": "swap_to_lion"} if swaps else {}) | arguments)
    costs = checkpoint_content.version_costs({"torch": "1"}, {"torch": "2"}) if upgraded else []
    own = type("Lion" if swaps else "AdamW", (), {})()
    parts = {"optimizer": own, "scheduler": object(), "scaler": object(), "ema": object(), "swa": None}
    alone = {name: one.action for name, one in decisions.decide(content, parts, wishes, None, costs).items()}
    if lacks == "ema":  # protocol §9: it starts from the weights, where the trainer keeps one
        assert (planned.pop("ema"), alone.pop("ema")) == ("absent", "fresh")
    assert planned == alone


def _content(lacks: str) -> dict[str, Any]:
    """Return what a checkpoint of AdamW holds, but for one component."""
    states = {f"{kind}_state_dict": {"of": kind} for kind in ("model", "scheduler", "scaler", "ema")}
    optimizer = {"param_groups": [], "state": {}}
    content = {**states, "optimizer_state_dict": optimizer, "optimizer_name": "AdamW", "global_step": 7, "epoch": 0}
    content |= {"best_val_loss": 1.0, "rng_state": {"torch": 1}, "data_state": {"at": 7}}
    of = {"rng": "rng_state", "data_position": "data_state"}
    return {key: value for key, value in content.items() if key != of.get(lacks, f"{lacks}_state_dict")}


def test_what_the_trainer_sees_of_its_machine_outvotes_a_plan_that_loads_but_not_a_user() -> None:
    """Written for one machine, and carried out on another one."""
    costs = checkpoint_content.version_costs({"torch": "1", "world_size": 1}, {"torch": "2", "world_size": 4})
    for code, expected in ((table.PLANNED, "reset"), (table.PLANNED_AS_ASKED, "load")):
        planned = dict.fromkeys(("scaler", "rng"), table.Decision("load", "as it was planned", code))
        holds = {"weights": True, "scaler": True, "rng": True}
        found = table.decide(table.Case(holds, costs, unused={}, planned=planned))
        assert {found["scaler"].action, found["rng"].action} == {expected}


def test_there_are_at_least_60_rows() -> None:
    assert len(CONFIG_ROWS) + len(ENVIRONMENT_ROWS) + len(AMP_ROWS) + len(SWAP_ROWS) >= 60


def test_the_policy_page_has_the_schemas_table() -> None:
    """`make approve` writes it anew."""
    tool = runpy.run_path(str(paths.KIT_ROOT / "tools" / "policy_table.py"))
    text = (paths.KIT_ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    assert text == tool["page_with"](text, tool["table"]())


def test_every_plan_that_the_launcher_writes_can_be_read_back() -> None:
    """By the sidecar too, of trainers that load by themselves: a checkpoint may hold nothing that the kit knows."""
    recorded = sorted((paths.KIT_ROOT / "tests" / "recorded").rglob("resume_plan.json"))
    assert recorded
    for path in (*recorded, paths.SCHEMAS / "examples" / "plan.json"):
        assert plan_file.read(path).components["weights"].action
    for inside in (c.Held(frozenset(), {}), held(), held("scaler", "swa")):
        found = c.decide_components(inside, (), Optimizers("adamw", "lion"), {})
        fields = {one.name: {"action": one.action, "why": one.why, "code": one.code} for one in found}
        read = plan_file.parse("x", {"version": 1, "components": fields})
        assert {name: one.action for name, one in read.components.items()} == {one.name: one.action for one in found}
