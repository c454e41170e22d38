"""The plan as a person and a program get it: the page, resume_plan.json, what the trainer is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conftest import ROOT, Kit
from resumekit.basics import lr_scale
from resumekit.basics.terminal import duration
from resumekit.planning import schedules
from resumekit.planning.components import show

SCHEMA = json.loads((ROOT / "schemas" / "plan.schema.json").read_text())
SECTIONS = {
    "model": {"aux_rule_head": False},
    "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup_steps": 0, "min_lr_ratio": 0.1},
}
WITH_KIT = {"loads_with_kit": True, "schedule_with_kit": True}


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


def plan_of(kit: Kit, *args: str, code: int = 0) -> dict[str, Any]:
    return json.loads(kit("resume", "T-1", "--dry-run", "--json", *args, code=code).stdout)


def page_of(kit: Kit, *args: str, code: int = 0) -> list[str]:
    return kit("resume", "T-1", "--dry-run", *args, code=code).stdout.splitlines()


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
    assert plan["components"]["scheduler"] == {"action": "refit", "why": "training.max_steps: 20 -> 40"}
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


def test_an_exhausted_schedule_is_warned_about(kit: Kit) -> None:
    killed(kit)
    (said,) = plan_of(kit, "--set", "training.max_steps=10")["warnings"]
    assert said == "the schedule is exhausted: step 10 of 10; --set training.max_steps=N goes on"


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


def test_a_trainer_that_fails_to_describe_itself_is_said(kit: Kit) -> None:
    killed(kit, trainer={"describe_args": ["--no-such-option"]})
    said = kit("resume", "T-1", "--set", "model.aux_rule_head=true", "--dry-run", code=4).stderr
    assert "the trainer does not describe its model (exit code 2:" in said and said.count("\n") == 1


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
    for name in schedules.NAMES:
        shape = [
            schedules.factor(name, step, warmup_steps=4, max_steps=20, min_lr_ratio=0.1) for step in (0, 3, 4, 20, 99)
        ]
        floor = 1.0 if name == "constant" else 0.1
        assert shape == pytest.approx([0.25, 1.0, 1.0, floor, floor])
    half = schedules.factor("linear", 12, warmup_steps=4, max_steps=20, min_lr_ratio=0.0)
    assert half == pytest.approx(0.5)


def test_values_are_shown_as_a_config_writes_them() -> None:
    assert [show(value) for value in (None, True, 1e-4, [0.9, 0.95], "x" * 50)] == [
        "null", "true", "0.0001", "[0.9, 0.95]", "x" * 37 + "...",
    ]  # fmt: skip


def test_durations_are_told_in_two_units() -> None:
    assert [duration(s) for s in (12, 600, 7_380, 200_000)] == ["12 s", "10 min", "2 h 03 min", "2 d 7 h"]
