"""A resume is compared with the run that holds its checkpoint: what was changed since is done, and asked for once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import Kit
from support.plan_configs import SECTIONS, WITH_KIT, plan_of
from support.runs import events
from support.toy_trainer import write_checkpoint

RECOVERS = {"enabled": True, "backoff_s": 1, "max_attempts": 1, "replay_steps": 5}
LINEAR = ("--set", "schedule.name=linear")
TOLD = ("--set", "resume.optimizer=reset", "--set", "resume.scheduler=reset", "--set", "resume.rng=reset")
DIES = {"TOY_ARGS": "--at 11 kill"}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path / "lab")
    yield kit
    kit.clean_up()


def grandparent(kit: Kit, *toy_args: str, **trainer: Any) -> Path:
    """A run with checkpoints of steps 5 and 10 that was killed in step 12 and is not taken up."""
    kit.config(
        "--save-every", "5", *toy_args, training={"max_steps": 30}, trainer={**WITH_KIT, **trainer}, **SECTIONS,
        recover={**RECOVERS, "enabled": False},
    )  # fmt: skip
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--at 12 kill"})
    return kit.run_dirs()[-1]


def dead_child(kit: Kit, *args: str, env: dict[str, str] = DIES, code: int = 137) -> Path:
    """Resume the head with `args`; the child dies in its first step, without a checkpoint."""
    kit("resume", "T-1", *args, code=code, env=env)
    return kit.run_dirs()[-1]


def plan_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "resume_plan.json").read_text())


def keys(plan: dict[str, Any]) -> set[str]:
    return {change["key"] for change in plan["changes"]}


@pytest.mark.parametrize("args", [LINEAR, TOLD, (*LINEAR, *TOLD)], ids=["changed", "told", "both"])
def test_a_person_who_goes_on_from_a_run_without_a_checkpoint_gets_what_it_was_told(kit: Kit, args: tuple[str, ...]):
    first = grandparent(kit)
    second = dead_child(kit, *args)
    plan = plan_of(kit)
    assert (plan["parent_run_id"], plan["checkpoint"]["run_id"], plan["relation"]) == (
        second.name, first.name, "continue",
    )  # fmt: skip
    assert plan["components"] == plan_in(second)["components"] and plan["changes"] == plan_in(second)["changes"]
    assert plan["components"]["optimizer"]["action"] == "reset" and plan["verdict"] == "ready"
    page = " ".join(kit("resume", "T-1", "--dry-run").stdout.split())
    assert f"compared with '{first.name}': what '{second.name}' changed" in page and page.count("compared") == 1


@pytest.mark.parametrize("args", [LINEAR, (*LINEAR, *TOLD)], ids=["changed", "told"])
def test_a_recovery_does_what_the_run_that_it_recovers_had_to_do(kit: Kit, args: tuple[str, ...]):
    first = grandparent(kit)
    dead_child(kit, *args, "--set", "recover.enabled=true")
    _, second, *recovered = kit.run_dirs()
    assert recovered, "the launcher has taken it up"
    for run in recovered:
        plan = plan_in(run)
        assert plan["checkpoint"]["run_id"] == first.name and plan["verdict"] == "ready"
        assert plan["components"] == plan_in(second)["components"]
        assert plan["changes"] == plan_in(second)["changes"]
        assert plan["learning_rates"] == plan_in(second)["learning_rates"]


def test_a_recovery_after_a_checkpoint_of_its_own_loads_what_is_there(kit: Kit):
    """The checkpoint of step 15 was made after the reset: it is not reset again."""
    grandparent(kit)
    kit("resume", "T-1", *LINEAR, *TOLD, "--set", "recover.enabled=true", code=137, env={"TOY_ARGS": "--at 17 kill"})
    _, second, third, *_ = kit.run_dirs()
    plan = plan_in(third)
    assert (plan["checkpoint"]["run_id"], plan["step"]) == (second.name, 15)
    assert plan["components"]["optimizer"]["action"] == plan["components"]["scheduler"]["action"] == "load"
    assert keys(plan) == set() and not [note for note in plan["notes"] if "is held by links" not in note]


def test_what_was_agreed_to_is_not_asked_again(kit: Kit):
    first = grandparent(kit)
    dead_child(kit, "--set", "optimizer.weight_decay=0.5", "--set", "recover.enabled=true", "--accept")
    recovered = kit.run_dirs()[2:]
    assert recovered and not any(event["outcome"] == "needs_attention" and "weight decay" in event["reason"]
                                 for run in kit.run_dirs() for event in events(run, "recovery"))  # fmt: skip
    plan = plan_in(recovered[0])
    assert plan["checkpoint"]["run_id"] == first.name and plan["consents"] == []
    assert keys(plan) >= {"optimizer.weight_decay"}
    assert plan_of(kit)["verdict"] == "ready"
    # Another step in the same direction is another question, and so is another one beside it.
    (asked,) = plan_of(kit, "--set", "optimizer.weight_decay=0.9", code=5)["consents"]
    assert asked.startswith("optimizer.weight_decay: 0.01 -> 0.9 ")
    (asked,) = plan_of(kit, "--set", "training.seed=9", code=5)["consents"]
    assert asked.startswith("training.seed: ")
    # Back to what the checkpoint was trained with is no change.
    assert plan_of(kit, "--set", "optimizer.weight_decay=0.01")["consents"] == []


def test_a_trainer_that_loads_by_itself_is_not_asked_about_again(kit: Kit):
    """What cannot be seen has been agreed to; a recovery goes on, as does a person."""
    grandparent(kit, loads_with_kit=False)
    dead_child(kit, *LINEAR, "--set", "recover.enabled=true", "--accept")
    recovered = kit.run_dirs()[2:]
    assert recovered and plan_in(recovered[0])["components"]["optimizer"]["action"] == "reset"
    assert plan_of(kit)["consents"] == []
    (asked,) = plan_of(kit, "--set", "resume.ema=reset", code=5)["consents"]
    assert "'ema: reset'" in asked and "optimizer" not in asked


def test_along_a_chain_of_runs_without_a_checkpoint_everything_is_still_to_be_done(kit: Kit):
    first = grandparent(kit)
    dead_child(kit, *TOLD)
    dead_child(kit, "--set", "training.max_steps=40")
    kit("resume", "T-1", "--set", "ema.enabled=true", "--set", "recover.enabled=true", code=137, env=DIES)
    last = kit.run_dirs()[-1]
    assert len(kit.run_dirs()) > 4, "the launcher has taken it up"
    for plan in (plan_in(last), plan_of(kit)):
        assert plan["checkpoint"]["run_id"] == first.name
        actions = {name: one["action"] for name, one in plan["components"].items()}
        assert (actions["optimizer"], actions["scheduler"], actions["ema"]) == ("reset", "reset", "fresh")
        assert keys(plan) >= {"training.max_steps", "ema.enabled", "resume.optimizer", "resume.scheduler"}
    # Of two words about the same thing the later one holds, where both are about the same checkpoint.
    assert plan_of(kit, "--set", "resume.scheduler=refit")["components"]["scheduler"]["action"] == "refit"


def test_a_checkpoint_from_before_a_reset_is_reset_though_the_run_that_was_told_has_saved_since(kit: Kit):
    """The last run began behind the reset and knows nothing of it; its checkpoint is gone, an older one is taken."""
    first = grandparent(kit)
    dead_child(kit, *TOLD, env={"TOY_ARGS": "--at 17 kill"})
    second = kit.run_dirs()[-1]
    dead_child(kit, env={"TOY_ARGS": "--at 16 kill"})
    assert plan_of(kit)["checkpoint"]["run_id"] == second.name and plan_of(kit)["changes"] == []
    assert plan_of(kit)["components"]["optimizer"]["action"] == "load"
    for path in (second / "checkpoints").glob("hrm_arc_step_15.pt*"):
        path.unlink()
    shutil.rmtree(kit.run_dirs()[-1] / "held")
    plan = plan_of(kit)
    assert plan["checkpoint"]["run_id"] == first.name
    assert plan["components"] == plan_in(second)["components"]


def test_what_was_told_over_a_checkpoint_that_the_kit_did_not_make_is_done_and_not_asked_again(kit: Kit):
    """There is no config to compare with, and what the run of ours was told stands all the same."""
    write_checkpoint(kit.runs / "T-1_base" / "checkpoints" / "hrm_arc_step_10.pt", 10)
    kit.config("--save-every", "5", training={"max_steps": 30}, recover={**RECOVERS, "enabled": False}, **SECTIONS)
    dead_child(kit, *TOLD, "--accept")
    [first] = kit.run_dirs()
    plan = plan_of(kit)
    assert plan["checkpoint"]["run_id"] == "T-1_base" and plan["consents"] == []
    assert plan["components"] == plan_in(first)["components"]
    assert plan["components"]["optimizer"]["action"] == "reset"
    (asked,) = plan_of(kit, "--set", "resume.ema=reset", code=5)["consents"]
    assert "'ema: reset'" in asked and "optimizer" not in asked


def test_a_record_that_names_an_impossible_checkpoint_is_no_traceback(kit: Kit):
    grandparent(kit)
    second = dead_child(kit, *TOLD)
    record = json.loads((second / "run.json").read_text())
    for named in (7, "a\0b", "\ud800", "x" * 9000, ["list"], None):
        (second / "run.json").write_text(json.dumps({**record, "checkpoint": named}))
        assert plan_of(kit)["components"]["optimizer"]["action"] == "reset", ascii(named)


def test_a_config_that_is_taken_anew_takes_nothing_over_and_is_compared_with_the_checkpoint_s_run(kit: Kit):
    first = grandparent(kit)
    dead_child(kit, *LINEAR, *TOLD)
    document = json.loads(kit.config_file.read_text())
    document["training"]["max_steps"] = 50
    kit.config_file.write_text(json.dumps(document))
    plan = plan_of(kit, "--reresolve")
    assert plan["checkpoint"]["run_id"] == first.name and keys(plan) == {"training.max_steps"}
    assert plan["components"]["optimizer"]["action"] == "load"
