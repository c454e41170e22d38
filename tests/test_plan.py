"""The plan as a person and a program get it: the page, resume_plan.json, what the trainer is told."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from resumekit.base.terminal import COMPARED, PASSED_OVER, WARNING, Note, duration
from resumekit.base.terms import ABSENT, LOAD, PARTIAL
from resumekit.checkpoint import manifest
from resumekit.checkpoint.selection import Candidate
from resumekit.config.rules import SCHEDULES
from resumekit.policy import lr_scale
from resumekit.policy.config_diff import Change
from resumekit.start import forecast, plan_report, plan_rules
from resumekit.start import plan as plans
from resumekit.start.plan_rules import Component, show_component
from support import schema_examples
from support.commands import Kit
from support.places import ROOT, TOY
from support.plan_configs import SECTIONS, WITH_KIT, plan_of

SCHEMA = json.loads((ROOT / "schemas" / "plan.schema.json").read_text())


@pytest.fixture
def kit(tmp_path: Path):
    kit = Kit(tmp_path / "lab")
    yield kit
    kit.clean_up()


def killed(kit: Kit, at: int = 12, steps: int = 20, **sections: Any) -> Path:
    """A run with checkpoints of steps 5 and 10 that was killed; its trainer says that it loads with the kit."""
    trainer = {**WITH_KIT, **sections.pop("trainer", {})}
    own = {name: {**values, **sections.pop(name, {})} for name, values in SECTIONS.items()}
    training = {"max_steps": steps, "batch_size": 32, "grad_accum_steps": 1}
    kit.config("--save-every", "5", training=training, trainer=trainer, **own, **sections)
    kit("run", "T-1", code=137, env={"TOY_ARGS": f"--at {at} kill"})
    return kit.run_dirs()[-1]


def page_of(kit: Kit, *args: str, code: int = 0) -> list[str]:
    return kit("resume", "T-1", "--dry-run", *args, code=code).stdout.splitlines()


def test_the_page_lists_a_sentence_by_its_kind_and_not_by_how_it_begins() -> None:
    notes = (
        "passed over by chance: a sentence of no kind",
        Note(PASSED_OVER, "not taken: it has its own line"),
        Note(COMPARED, "held against 'a': it has its own line"),
        Note(WARNING, "warning: this may be wrong"),
        "warning: a sentence of no kind",
    )
    choice = SimpleNamespace(title="starting A anew", said=notes, consents=())
    assert plan_report.as_text(choice, None).splitlines() == [
        "starting A anew",
        "  note         passed over by chance: a sentence of no kind",
        "  warning      this may be wrong",
        "  note         warning: a sentence of no kind",
        "nothing was changed (--dry-run)",
    ]
    assert json.loads(json.dumps({"notes": notes}))["notes"] == list(map(str, notes)), "a note is written as a text"
    page = plan_report.as_text(choice, None, ["python", "train.py", "--note", "a b"])
    assert "  command      python train.py --note 'a b'" in page.splitlines()


def test_the_plan_is_written_into_the_new_run_by_its_schema_and_named_to_the_trainer(kit: Kit) -> None:
    killed(kit)
    shown = plan_of(kit, "--set", "training.max_steps=40")
    told = {"TOY_ARGS": "--at 11 exit=0"}
    kit("resume", "T-1", "--set", "training.max_steps=40", code=None, env=told)
    run = kit.run_dirs()[-1]
    plan = json.loads((run / "resume_plan.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(plan)
    jsonschema.Draft202012Validator(SCHEMA).validate(shown)
    assert plan["run_id"] == run.name and plan["components"] == shown["components"]
    expected = {"action": "refit", "why": "training.max_steps: 20 -> 40", "code": "changed"}
    assert plan["components"]["scheduler"] == expected
    assert f"RESUMEKIT_PLAN={run}/resume_plan.json" in (run / "command.sh").read_text()


def test_a_fresh_run_has_no_plan_and_is_told_of_none_that_stands_in_the_environment(kit: Kit) -> None:
    kit.config(trainer={"command": ["sh", "-c", "echo plan=$RESUMEKIT_PLAN."]})
    kit("run", "T-1", env={"RESUMEKIT_PLAN": "/somewhere/else.json"})
    (run,) = kit.run_dirs()
    assert not (run / "resume_plan.json").exists()
    assert "plan=." in (run / "logs" / "output.log").read_text()


def test_an_unchanged_resume_loads_what_is_there_and_says_what_is_not(kit: Kit) -> None:
    killed(kit)
    plan = plan_of(kit)
    actions = {name: one["action"] for name, one in plan["components"].items()}
    assert {name for name, action in actions.items() if action == "load"} == {
        "weights", "optimizer", "scheduler", "counters",
    }  # fmt: skip
    assert {name for name, action in actions.items() if action == "absent"} == {
        "scaler", "ema", "swa", "rng", "data_position",
    }  # fmt: skip
    assert plan["verdict"] == "ready" and plan["changes"] == []


def test_the_page_fits_a_terminal_of_80_by_24(kit: Kit) -> None:
    killed(kit)
    settings = ["optimizer.lr=5e-4", "training.batch_size=64", "schedule.warmup_steps=3", "optimizer.weight_decay=0.5"]
    args = [word for setting in settings for word in ("--set", setting)]
    lines = page_of(kit, *args, code=5)
    free = [line for line in lines if "checkpoint  " not in line and not line.startswith(("branching", "continuing"))]
    assert len(lines) <= 24 and max(map(len, free)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "verdict: needs consent, --accept gives it" in text
    assert "optimizer.weight_decay: 0.01 -> 0.5 (weight decay changes by more than a factor of two)" in text


def test_the_next_learning_rates_are_foretold_before_and_after(kit: Kit) -> None:
    """Three steps by the formula of a cosine, worked out here and not by the kit."""
    import math

    killed(kit)
    plan = plan_of(kit, "--set", "training.max_steps=40")
    (rate,) = [one for one in plan["learning_rates"] if one["key"] == "optimizer.lr"]

    def cosine(step: int, last: int) -> float:
        return 1e-4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / last)))

    assert rate["first_step"] == 11
    assert rate["before"] == pytest.approx([cosine(step, 20) for step in (10, 11, 12)], rel=1e-12)
    assert rate["after"] == pytest.approx([cosine(step, 40) for step in (10, 11, 12)], rel=1e-12)


def test_a_trainer_with_a_schedule_of_its_own_is_not_foretold(kit: Kit) -> None:
    killed(kit, trainer={"schedule_with_kit": False})
    plan = plan_of(kit)
    assert all(one["before"] is one["after"] is None for one in plan["learning_rates"])
    assert any("the trainer's own schedule decides" in line for line in page_of(kit))


def test_a_swap_lowers_the_rate_and_later_resumes_inherit_what_the_checkpoint_says(kit: Kit) -> None:
    killed(kit, optimizer={"swap_lr_steps": 2})
    plan = plan_of(kit, "--set", "optimizer.name=lion")
    assert plan["components"]["optimizer"]["action"] == "swap" and plan["components"]["scheduler"]["action"] == "refit"
    assert plan["lr_scale"] == {
        "factor": 1.0, "ramp": {"from_step": 10, "steps": 2, "factor": 0.8, "warm_restart": False},
    }  # fmt: skip
    (rate,) = [one for one in plan["learning_rates"] if one["key"] == "optimizer.lr"]
    shares = [now / was for now, was in zip(rate["after"], rate["before"], strict=True)]
    assert shares == pytest.approx([0.8, 0.8, 1.0])


def test_a_swap_by_hand_is_for_good(kit: Kit) -> None:
    """The policy holds for one resume, the optimizer that it chose for all that follow."""
    killed(kit)
    told = {"TOY_ARGS": "--at 17 kill"}
    kit("resume", "T-1", "--set", "resume.optimizer=swap_to_lion", code=137, env=told)
    resolved = json.loads((kit.run_dirs()[-1] / "resolved_config.json").read_text())
    assert (resolved["optimizer"]["name"], resolved["resume"]["optimizer"]) == ("lion", "auto")
    plan = plan_of(kit)
    assert plan["relation"] == "continue" and plan["changes"] == []
    assert plan["components"]["optimizer"]["action"] == "load"


def test_totals_are_derived_anew_where_the_batch_changed(kit: Kit) -> None:
    killed(kit)
    said = plan_of(kit, "--set", "training.batch_size=64")["totals"]
    assert said[0] == "64 examples in a step instead of 32; 320 seen so far"
    assert said[1] == "10 steps left to 20, 960 examples in all"
    assert plan_of(kit)["totals"] == []


def test_an_exhausted_schedule_is_asked_about_where_nothing_would_be_trained(kit: Kit) -> None:
    run = killed(kit)
    plan = plan_of(kit, "--set", "training.max_steps=10", code=5)
    assert plan["warnings"] == ["the schedule is exhausted: step 10 of 10; --set training.max_steps=N goes on"]
    (asked,) = plan["consents"]
    assert asked == "the schedule is exhausted at step 10 of 10, nothing would be trained: --set max_steps=N goes on"
    said = kit("resume", "T-1", "--set", "max_steps=5", code=5).stderr
    assert "exhausted at step 10 of 5" in said and "--set max_steps=N" in said and kit.run_dirs() == [run]
    again = ["resume.optimizer=reset", "resume.scheduler=reset", "resume.counters=reset"]
    anew = [word for setting in again for word in ("--set", setting)]
    assert plan_of(kit, "--set", "training.max_steps=10", *anew)["consents"] == []


def test_a_chain_that_comes_to_a_run_at_its_own_end_is_not_asked(kit: Kit) -> None:
    """It died in what follows the last step; `run.sh` finishes that, `resume.sh` asks a person."""
    kit.config("--save-every", "5", training={"max_steps": 10}, trainer=WITH_KIT, **SECTIONS)
    kit("run", "T-1", code=3, env={"TOY_ARGS": "--exit 3"})
    assert "step 10 of 10" in kit("run", "T-1", "--dry-run").stdout
    assert "exhausted at step 10 of 10" in " ".join(page_of(kit, code=5))


def test_a_schedule_that_the_kit_computes_is_one_that_it_knows(kit: Kit) -> None:
    killed(kit)
    said = kit("resume", "T-1", "--set", "schedule.name=foo", "--dry-run", code=4).stderr
    assert "schedule.name is 'foo'" in said and "cosine, linear, constant" in said and said.count("\n") == 1
    assert "--set 'schedule.name=foo'" in said
    free = ["--set", "schedule.name=foo", "--set", "trainer.schedule_with_kit=false"]
    assert plan_of(kit, *free)["verdict"] == "ready"


DESCRIBES = """
import json, sys
print(json.dumps({"parameters": [{"name": n, "shape": s} for n, s in %s]}))
"""


@pytest.mark.parametrize(
    ("tensors", "code", "words"),
    [
        ([["weight", [4]], ["rule_head.weight", [8, 4]]], 0, "1 new: rule_head.weight"),
        ([["module.weight", [4]]], 0, "1 tensors match: 100.0% of the checkpoint's weights are kept"),
        (
            [["weight", [5]], ["other", [9]]],
            6,
            "the checkpoint does not fit: none of its parameters is in the model by name and shape",
        ),
    ],
)
def test_a_trainer_that_describes_its_model_is_asked_where_weights_are_loaded_in_part(
    kit: Kit, tensors: list[Any], code: int, words: str
) -> None:
    script = kit.folder / "describe.py"
    script.write_text(DESCRIBES % tensors)
    killed(kit, trainer={"describe_args": ["--describe"]})
    # The toy has no --describe of its own: the command of the new run is one that does nothing else.
    command = f"trainer.command={json.dumps(['{python}', str(script)])}"
    args = ["--set", "model.aux_rule_head=true", "--set", command]
    page = " ".join(" ".join(page_of(kit, *args, code=code or 5)).split())
    assert words in page


def test_the_evidence_names_the_metric_of_the_last_evaluation() -> None:
    value = schema_examples.case("manifest")
    for metric, score in (("cell_accuracy", 0.4532), ("accuracy", 0)):
        known = manifest.parse({**value, "last_fast_eval": {"step": 380, metric: score}}, value["file"])
        candidate = Candidate(known.step, Path(), "x.pt", None, "chosen", "proven", "newest", known=known)
        assert plan_report._evidence(candidate).endswith(f"fast eval at step 380: {metric} {score}")


@pytest.mark.parametrize(
    ("tensors", "code", "words"),
    [
        ([["weight", [4]]], 0, "1 tensors match: 100.0% of the checkpoint's weights are kept"),
        ([["weight", [4]], ["new", [4]]], 5, "does not fit the trainer's model whole (1 of 2 parameters, 1 new)"),
        ([["other", [9]]], 6, "the checkpoint does not fit: none of its parameters is in the model by name and shape"),
    ],
)
def test_it_is_asked_too_where_the_weights_are_to_be_loaded_whole(
    kit: Kit, tensors: list[Any], code: int, words: str
) -> None:
    script = kit.folder / "trainer.py"
    own = ["{python}", str(script).replace("{", "{{").replace("}", "}}")]
    toy = (
        f"import sys, runpy\nif '--describe' not in sys.argv:\n    runpy.run_path({str(TOY)!r}, run_name='__main__')\n"
    )
    script.write_text(toy + "else:\n" + textwrap.indent(DESCRIBES % tensors, "    "))
    words_of_toy = ["--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--save-every", "5"]
    killed(kit, trainer={"describe_args": ["--describe"], "command": [*own, *words_of_toy]})
    page = " ".join(" ".join(page_of(kit, code=code)).split())
    assert words in page and "does the trainer read what was changed" not in page


def test_a_recovery_waits_for_no_description_of_weights_that_are_loaded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(plans.compatibility, "ask_for_shapes", lambda choice, ready: asked.append(choice.recovery))
    for action in (LOAD, PARTIAL, ABSENT):
        for recovery in (None, "one"):
            found, choice = (Component("weights", action),), SimpleNamespace(recovery=recovery)
            plans._compared(found, choice, None, is_asked=recovery is None)
    assert asked == [None, None, "one"]


SAME = SimpleNamespace(commit="a" * 40, left_out=())


@pytest.mark.parametrize(
    ("changed", "code", "record", "is_same"),
    [
        ((), SAME, {"git": {"commit": "a" * 40}}, True),
        (("optimizer.lr",), SAME, {"git": {"commit": "a" * 40}}, True),
        (("git.commit",), SAME, {"git": {"commit": "b" * 40}}, False),
        (("model.hidden_size",), SAME, {"git": {"commit": "a" * 40}}, False),
        (("trainer.command",), SAME, {"git": {"commit": "a" * 40}}, False),
        ((), SimpleNamespace(commit="a" * 40, left_out=("new.py",)), {"git": {"commit": "a" * 40}}, False),
        ((), SimpleNamespace(commit=None, left_out=()), {"git": {"commit": None}}, False),
        ((), None, {"git": {"commit": "a" * 40}}, False),
        ((), SAME, {}, False),
    ],
)
def test_the_model_of_the_checkpoints_own_run_needs_no_description(
    changed: tuple[str, ...], code: Any, record: dict[str, Any], is_same: bool
) -> None:
    choice = SimpleNamespace(changed=[Change(key, 1, 2, {}, None, None) for key in changed])
    assert plans._has_the_same_model(choice, SimpleNamespace(record=record), (), code) is is_same
    assert not plans._has_the_same_model(choice, None, (), code), "a file that lies in no run"


def test_a_trainer_that_fails_to_describe_itself_is_said(kit: Kit) -> None:
    killed(kit, trainer={"describe_args": ["--no-such-option"]})
    said = kit("resume", "T-1", "--set", "model.aux_rule_head=true", "--dry-run", code=4).stderr
    assert "the trainer does not describe its model (exit code 2:" in said and said.count("\n") == 1
    (warning,) = plan_of(kit)["warnings"]  # a load of the whole does not stand on it
    assert warning.startswith("the trainer does not describe its model (exit code 2:")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (["a", "--lr", "1e-3"], ["a", "--lr", "1"], "k[2]: 1e-3 -> 1"),
        (["a"], ["a", "--noise", "1"], "k[1]: '--noise 1' is put in"),
        (["a", "b", "c"], ["a", "c"], "k[1]: 'b' is taken out"),
        (["a", "b", "c", "d"], ["x", "b", "c", "y", "z"], "k[0]: a -> x, k[3]: d -> y z"),
        ([0.9, 0.95], [0.9, 0.999], "k[1]: 0.95 -> 0.999"),
        (list("abcdefghi"), list("AbCdEfGhI"), "k[0]: a -> A, k[2]: c -> C, k[4]: e -> E, k[6]: g -> G, and 1 more"),
        (None, ["a"], "k: null -> ['a']"),
        (1, 2, "k: 1 -> 2"),
    ],
)  # fmt: skip
def test_of_a_changed_list_the_elements_are_shown_that_differ(old: Any, new: Any, words: str) -> None:
    assert plan_rules.difference(Change("k", old, new, {}, None, None)) == words


def test_another_word_of_the_command_is_shown_and_makes_no_branch(kit: Kit) -> None:
    run = killed(kit)
    command = json.loads((run / "resolved_config.json").read_text())["trainer"]["command"]
    other = f"trainer.command={json.dumps([*command, '--delay', '0.001'])}"
    page = " ".join(" ".join(page_of(kit, "--set", other, code=5)).split())
    assert f"trainer.command[{len(command)}]: '--delay 0.001' is put in (another command" in page
    assert plan_of(kit, "--set", other, code=5)["relation"] == "continue"
    kit("resume", "T-1", "--set", other, "--accept")
    first, second = (json.loads((one / "run.json").read_text()) for one in kit.run_dirs())
    assert first["config_hash"] != second["config_hash"] and second["config_hash_version"] == 2


def test_a_ramp_holds_from_its_first_step_to_its_last() -> None:
    scale = lr_scale.LrScale(0.5, lr_scale.Ramp(100, 10, 0.8))
    assert [scale(step) for step in (99, 100, 109, 110)] == [0.5, 0.4, 0.4, 0.5]
    restart = lr_scale.LrScale(1.0, lr_scale.Ramp(100, 4, 0.8, warm_restart=True))
    assert [restart(step) for step in (99, 100, 101, 102, 103, 104)] == [1.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    "fields",
    [{"factor": 0}, {"factor": True}, {"factor": "1"}, {"ramp": {}}, {"ramp": [1]}, {"ramp": {"from_step": 1}}],
)
def test_a_scale_that_is_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lr_scale"):
        lr_scale.from_fields(fields.get("factor"), fields.get("ramp"))


def test_a_scale_is_read_back_as_it_was_written() -> None:
    scale = lr_scale.LrScale(0.64, lr_scale.Ramp(7, 1000, 0.8))
    fields = json.loads(json.dumps(scale.as_fields()))
    assert lr_scale.from_fields(fields["factor"], fields["ramp"]) == scale
    assert lr_scale.from_fields(None, None) == lr_scale.LrScale()


def test_the_schedules_meet_their_ends() -> None:
    for name in SCHEDULES:
        shape = [
            forecast.schedule_factor(name, step, warmup_steps=4, max_steps=20, min_lr_ratio=0.1)
            for step in (0, 3, 4, 20, 99)
        ]
        floor = 1.0 if name == "constant" else 0.1
        assert shape == pytest.approx([0.25, 1.0, 1.0, floor, floor])
    half = forecast.schedule_factor("linear", 12, warmup_steps=4, max_steps=20, min_lr_ratio=0.0)
    assert half == pytest.approx(0.5)


def test_values_are_shown_as_a_config_writes_them() -> None:
    assert [show_component(value) for value in (None, True, 1e-4, [0.9, 0.95], "x" * 50)] == [
        "null", "true", "0.0001", "[0.9, 0.95]", "x" * 37 + "...",
    ]  # fmt: skip


def test_durations_are_told_in_two_units() -> None:
    assert [duration(s) for s in (12, 600, 7_380, 200_000)] == ["12 s", "10 min", "2 h 03 min", "2 d 7 h"]
