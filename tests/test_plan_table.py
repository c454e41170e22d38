"""The table of effects: for each change of a resumed run, what happens to each component, and whether it may happen.

The expected column is written by hand from the protocol (§1, §2, §6 to §9) and the tables of docs/design.md, so that
an edit of the schema that changes a policy turns a row red.
"""

from __future__ import annotations

import runpy
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.basics import paths
from resumekit.configuration import config, schema
from resumekit.configuration.changes import changes
from resumekit.planning import components as c
from resumekit.planning import environment, plan_rules
from resumekit.planning.choice import BRANCH, Choice
from resumekit.planning.components import Optimizers
from resumekit.planning.resume_config import with_swap

FILE = config.load_config()
SCHEMA = schema.load()
BASE = config.resolve(FILE.document, schema=FILE.schema)
KEPT = ("weights", "optimizer", "scheduler", "ema", "counters", "rng", "data_position")
READY, CONSENT, REFUSED = "ready", "needs consent", "refused"

NOTHING: dict[str, str] = {}
EDIT = {"weights": "partial", "optimizer": "partial", "ema": "partial"}
SWAP = {"optimizer": "swap", "scheduler": "refit"}
REFIT = {"scheduler": "refit"}
REDERIVE = {"data_position": "rederive"}

# (what changes, --set of the new run, components that are not simply loaded, verdict)
CONFIG_ROWS: list[tuple[str, str, dict[str, str], str]] = [
    # protocol §2: cadence of validation and checkpoints, gradient noise
    ("fast eval cadence", "validation.fast_eval_every=1000", NOTHING, READY),
    ("full eval cadence", "validation.full_eval_every=5000", NOTHING, READY),
    ("the gate of full evals", "validation.gate_full_eval_on_fast_improvement=false", NOTHING, READY),
    ("the fast subset", "validation.fast_fraction=0.01", NOTHING, READY),
    ("another metric of the best", "validation.best_metric=loss", NOTHING, CONSENT),
    ("checkpoint cadence", "checkpoint.every=250", NOTHING, READY),
    ("checkpoints kept", "checkpoint.keep_last=9", NOTHING, READY),
    ("checkpoints kept for good", "checkpoint.keep_every=10000", NOTHING, READY),
    ("heartbeat", "status.interval_s=30", NOTHING, READY),
    ("gradient noise", "training.grad_noise_sigma=0.01", NOTHING, READY),
    ("log lines", "training.log_every=50", NOTHING, READY),
    ("threads", "training.threads=4", NOTHING, READY),
    # protocol §2: small tweaks of weight decay and clipping
    ("weight decay times 1.5", "optimizer.weight_decay=0.015", NOTHING, READY),
    ("weight decay times 2", "optimizer.weight_decay=0.02", NOTHING, READY),
    ("weight decay halved", "optimizer.weight_decay=0.005", NOTHING, READY),
    ("weight decay times 5", "optimizer.weight_decay=0.05", NOTHING, CONSENT),
    ("weight decay off", "optimizer.weight_decay=0", NOTHING, CONSENT),
    ("puzzle weight decay times 1.5", "optimizer.puzzle_weight_decay=0.15", NOTHING, READY),
    ("clip halved", "training.grad_clip=0.5", NOTHING, READY),
    ("clip to a tenth", "training.grad_clip=0.1", NOTHING, CONSENT),
    ("clip off", "training.grad_clip=null", NOTHING, CONSENT),
    # protocol §2: batch size and accumulation
    ("batch size", "training.batch_size=64", REDERIVE, READY),
    ("accumulation", "training.grad_accum_steps=4", REDERIVE, READY),
    ("both", "training.batch_size=16 training.grad_accum_steps=2", REDERIVE, READY),
    # protocol §1: schedule logic
    ("warm-up", "schedule.warmup_steps=4000", REFIT, READY),
    ("base rate", "optimizer.lr=5e-5", REFIT, READY),
    ("puzzle rate", "optimizer.puzzle_lr=5e-3", REFIT, READY),
    ("longer", "training.max_steps=200000", REFIT, READY),
    ("shorter", "training.max_steps=60000", REFIT, READY),
    ("the floor", "schedule.min_lr_ratio=0.01", REFIT, READY),
    ("a tail", "schedule.tail=cyclic", REFIT, READY),
    ("another kind of schedule", "schedule.name=linear", {"scheduler": "refit", "optimizer": "reset"}, READY),
    ("longer, larger batch", "training.max_steps=200000 training.batch_size=64", REFIT | REDERIVE, READY),
    # protocol §7: the swap (the checkpoint is of step 40000 and holds AdamW)
    ("another optimizer", "optimizer.name=lion", SWAP, READY),
    ("a swap step that is reached", "optimizer.swap_at=40000", SWAP, READY),
    ("a swap step long past", "optimizer.swap_at=30000", SWAP, READY),
    ("a swap step to come", "optimizer.swap_at=40001", NOTHING, READY),
    ("another successor without a swap step", "optimizer.swap_to=sgd", NOTHING, READY),
    ("the ramp's factor, no swap", "optimizer.swap_lr_factor=0.5", NOTHING, READY),
    ("the ramp's length, no swap", "optimizer.swap_lr_steps=2000", NOTHING, READY),
    ("betas", "optimizer.betas=[0.9,0.99]", NOTHING, CONSENT),
    # protocol §0, §2: architecture edits
    ("DropPath", "model.droppath_h=0..0.2", EDIT, READY),
    ("auxiliary head", "model.aux_rule_head=true", EDIT, READY),
    ("both edits", "model.droppath_h=0..0.2 model.aux_rule_head=true", EDIT, READY),
    ("an edit and a longer schedule", "model.aux_rule_head=true training.max_steps=200000", EDIT | REFIT, READY),
    ("an edit and a swap", "model.aux_rule_head=true optimizer.name=lion", EDIT | SWAP, READY),
    # protocol §8, §9
    ("EMA off", "ema.enabled=false", {"ema": "absent"}, READY),
    ("EMA's window", "ema.decay=0.99", NOTHING, CONSENT),
    ("SWA on", "swa.enabled=true", {"swa": "fresh"}, READY),
    ("SWA's start, before it was ever on", "swa.start_step=60000", NOTHING, READY),
    ("SWA's rate", "swa.lr=1e-5", REFIT, READY),
    # data and seed
    ("data moved", "data.path=..", NOTHING, READY),
    ("seed", "training.seed=7", NOTHING, CONSENT),
    ("other data", "data.name=other", NOTHING, CONSENT),
    ("fewer tasks", "data.subset=10", NOTHING, CONSENT),
    ("no augmentation", "data.augment=false", NOTHING, CONSENT),
    ("workers", "data.workers=2", NOTHING, READY),
    # shapes and meaning of the weights
    ("hidden size", "model.hidden_size=256", NOTHING, REFUSED),
    ("layers", "model.layers=4", NOTHING, REFUSED),
    ("expansion", "model.expansion=2.0", NOTHING, REFUSED),
    ("puzzle embedding", "model.puzzle_emb_dim=64", NOTHING, REFUSED),
    ("another model", "model.name=trm", NOTHING, REFUSED),
    ("heads", "model.heads=8", NOTHING, CONSENT),
    ("cycles", "model.h_cycles=3", NOTHING, CONSENT),
    ("dropout", "model.dropout=0.1", NOTHING, CONSENT),
    # names and places
    ("notes", "experiment.notes=again", NOTHING, READY),
    ("the trainer's arguments", "trainer.extra_args=[--compile]", NOTHING, CONSENT),
    ("the trainer's command", "trainer.command=[python,other.py]", NOTHING, CONSENT),
    # the person's own word: `resume:` wins over the automatic choice
    ("optimizer reset alone", "resume.optimizer=reset", {"optimizer": "reset"}, REFUSED),
    ("optimizer and schedule reset", "resume.optimizer=reset resume.scheduler=reset",
     {"optimizer": "reset", "scheduler": "reset"}, READY),
    ("schedule refit", "resume.scheduler=refit", REFIT, READY),
    ("schedule kept against a longer run", "resume.scheduler=load training.max_steps=200000", NOTHING, READY),
    ("EMA reset", "resume.ema=reset", {"ema": "reset"}, READY),
    ("generators reset", "resume.rng=reset", {"rng": "reset"}, READY),
    ("counters reset", "resume.counters=reset", {"counters": "reset"}, READY),
    ("data from the start", "resume.data_position=reset", {"data_position": "reset"}, READY),
    ("weights by name", "resume.weights=partial", {"weights": "partial", "ema": "partial"}, READY),
    ("a swap by hand", "resume.optimizer=swap_to_lion", SWAP, READY),
    ("one optimizer's state for another", "resume.optimizer=load optimizer.name=lion", NOTHING, REFUSED),
    ("new weights under old moments", "resume.weights=reset", {"weights": "reset"}, REFUSED),
    ("a control from scratch",
     "resume.weights=reset resume.optimizer=reset resume.scheduler=reset resume.ema=reset resume.counters=reset",
     {"weights": "reset", "optimizer": "reset", "scheduler": "reset", "ema": "reset", "counters": "reset"}, READY),
]  # fmt: skip


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
    found = c.decide(inside, (*changed, *differs), optimizers, now["resume"])
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
    differs = environment.changes({"versions": versions}, versions | {name: "other"}, None)
    assert [change.key for change in differs] == [name]
    assert planned("", held("scaler"), differs=differs) == (expected, READY)
    assert planned("", held(), differs=differs) == (NOTHING, READY), "without a scaler nothing is reset"


def test_another_number_of_ranks_leaves_the_generators_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    differs = environment.changes({"environment": {"values": {}}}, {}, None)
    assert planned("", held(), differs=differs) == ({"rng": "reset"}, READY)


def test_another_number_of_threads_costs_nothing_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    differs = environment.changes({"environment": {"values": {"OMP_NUM_THREADS": "4"}}}, {}, None)
    assert [(one.key, one.old, one.new) for one in differs] == [("OMP_NUM_THREADS", "4", "2")]
    assert planned("", held(), differs=differs) == (NOTHING, READY)


def test_other_code_costs_nothing_and_is_said() -> None:
    code = SimpleNamespace(commit="b" * 40, diff_sha256=None)
    differs = environment.changes({"git": {"commit": "a" * 40, "diff_sha256": None}}, {}, code)
    assert [(change.key, change.actions) for change in differs] == [("git.commit", {})]
    assert planned("", held(), differs=differs) == (NOTHING, READY)


def test_nothing_is_compared_with_a_run_that_recorded_nothing() -> None:
    assert environment.changes({}, {"torch": "2.13.0"}, None) == []


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
    """What was collected so far stays in it; where nothing was, nobody is asked."""
    tail = "swa.enabled=true"
    assert planned("swa.start_step=60000", held("swa"), parent=tail) == (NOTHING, CONSENT)
    assert planned("swa.start_step=60000", held(), parent=tail) == (NOTHING, READY)
    assert planned("ema.decay=0.99", held(without=("ema",))) == (NOTHING, READY)


def test_a_tail_taken_away_is_a_refit() -> None:
    assert planned("schedule.tail=null", held(), parent="schedule.tail=cyclic") == (REFIT, READY)


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "ema", "counters", "rng", "data_position"])
def test_what_the_checkpoint_lacks_is_absent_with_its_reason(name: str) -> None:
    inside = held(without=(name,))
    (component,) = [one for one in c.decide(inside, (), Optimizers("adamw", "adamw"), {}) if one.name == name]
    assert (component.action, component.why) == ("absent", "not in the checkpoint: as newly made, where it is used")


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
    assert planned("training.max_steps=200000", held(), parent=own)[1] == CONSENT, "nobody can see what it does"
    assert planned("training.batch_size=64", held(), parent=own) == (REDERIVE, READY)


def test_a_reason_names_key_and_values() -> None:
    before, now = BASE, config.override(BASE, ["optimizer.lr=5e-5"], FILE.schema, "a test")
    found = c.decide(held(), changes(before, now, SCHEMA), Optimizers("adamw", "adamw"), now["resume"])
    assert [one.why for one in found if one.name == "scheduler"] == ["optimizer.lr: 0.0001 -> 5e-05"]
    now = config.override(now, ["resume.scheduler=load"], FILE.schema, "a test")
    found = c.decide(held(), changes(before, now, SCHEMA), Optimizers("adamw", "adamw"), now["resume"])
    assert [one.why for one in found if one.name == "scheduler"] == ["resume.scheduler is 'load' (without it: refit)"]


def test_there_are_at_least_60_rows() -> None:
    assert len(CONFIG_ROWS) + len(ENVIRONMENT_ROWS) + len(AMP_ROWS) + len(SWAP_ROWS) >= 60


def test_the_policy_page_has_the_schemas_table() -> None:
    """`make approve` writes it anew."""
    tool = runpy.run_path(str(paths.KIT_ROOT / "tools" / "policy_table.py"))
    text = (paths.KIT_ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    assert text == tool["page_with"](text, tool["table"]())
