"""Checkpoints that a trainer saved after its loss was not finite, where the journal alone knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal
from support.commands import Kit
from support.processes import wait_until
from support.recoveries import PATTERNS
from support.runs import events, put_back, reseal
from support.toy_trainer import write_checkpoint

REASON = "saved after step 25, whose loss was not finite"


@pytest.fixture(scope="module")
def nan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    """A run of a trainer that loads by itself: NaN from step 25 on, stopped for it, saved on TERM all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        kit = Kit(tmp_path_factory.mktemp("nan"))
    kit.config(
        "--save-every", "5", "--delay", "0.05", "--nan-from", "25", training={"max_steps": 9999},
        trainer={"log_patterns": PATTERNS}, status={"interval_s": 1}, checkpoint={"keep_last": None},
    )  # fmt: skip
    kit("run", "T-1", code=8)
    [run] = kit.run_dirs()
    assert [event["first_bad_step"] for event in events(run, "abort")] == [25]
    wait_until(lambda: all(Path(f"{path}.json").exists() for path in checkpoints(run)), "they are attested")
    yield kit
    kit.clean_up()


@pytest.fixture
def kit(nan: Kit, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    monkeypatch.setenv("XDG_STATE_HOME", nan.env["XDG_STATE_HOME"])
    with put_back(nan.runs, Path(nan.env["XDG_STATE_HOME"])):
        yield nan
        nan.clean_up()


@pytest.fixture
def stopped(kit: Kit) -> Path:
    [run] = kit.run_dirs()
    return run


def checkpoints(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("*.pt"))


def steps(run: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("_")[2]) for path in checkpoints(run))


def shown(kit: Kit, *args: str) -> dict[str, Any]:
    return json.loads(kit("resume", "T-1", "--dry-run", "--json", *args).stdout)


def test_a_trainer_that_loads_by_itself_goes_on_from_before_the_nan(kit: Kit, stopped: Path):
    after = [step for step in steps(stopped) if step >= 25]
    assert len(after) >= 2 and after[0] == 25
    plan = shown(kit)
    assert plan["step"] == 20 and plan["checkpoint"]["grade"] == "attested"
    passed = [one for one in plan["candidates"] if one["verdict"] == "passed"]
    assert [(one["step"], one["reason"]) for one in passed] == [(step, REASON) for step in reversed(after)]
    assert [one["step"] for one in plan["passed_over"]] == list(reversed(after))
    assert f"passed over 'hrm_arc_step_{after[-1]}.pt': {REASON}" in plan["notes"]
    kit("run", "T-1", code=None, env={"TOY_ARGS": "--at 21 kill"})
    assert json.loads((kit.run_dirs()[-1] / "run.json").read_text())["parent_step"] == 20


@pytest.mark.parametrize("how", ["step", "checkpoint", "best"])
def test_a_person_who_names_one_gets_it_with_a_note(kit: Kit, stopped: Path, how: str):
    path = stopped / "checkpoints" / "hrm_arc_step_25.pt"
    if how == "best":
        write_checkpoint(path := path.with_name("hrm_arc_best.pt"), 26)
    plan = shown(kit, f"--{how}", *({"step": ["25"], "checkpoint": [str(path)]}.get(how, [])))
    assert plan["checkpoint"]["path"] == str(path)
    assert f"'{path.name}' was {REASON}: it is taken because it was named" in plan["notes"]
    assert not any("because it was named" in note for note in shown(kit, "--step", "20")["notes"])


def test_where_nothing_else_is_left_the_reason_is_said(kit: Kit, stopped: Path):
    for step in (5, 10, 15, 20):
        (stopped / "checkpoints" / f"hrm_arc_step_{step}.pt").unlink()
    said = kit("run", "T-1", code=3).stderr
    assert "no stable checkpoint" in said and REASON in said


def test_a_branch_that_began_behind_the_bad_step_is_not_led_back_to_it(kit: Kit, stopped: Path):
    """A child took step 25 because a person said so, and left nothing: what comes next does not inherit that."""
    kit("resume", "T-1", "--step", "25", code=137, env={"TOY_ARGS": "--at 26 kill"})
    plan = shown(kit)
    assert plan["parent_run_id"] == kit.run_dirs()[-1].name and plan["step"] == 20
    assert [one["step"] for one in plan["passed_over"]] == [25]


def test_an_older_spoilt_checkpoint_is_older_and_another_cause_spoils_nothing(kit: Kit, stopped: Path):
    kit("resume", "T-1", "--step", "25", code=137, env={"TOY_ARGS": "--nan-from 99 --at 32 kill"})
    child = kit.run_dirs()[-1]
    journal.append(child / "journal.jsonl", "abort", child.name, cause="hang", evidence="", first_bad_step=26)
    plan = shown(kit)
    assert (plan["checkpoint"]["run_id"], plan["step"], plan["passed_over"]) == (child.name, 30, [])
    found = [(one["step"], one["verdict"]) for one in plan["candidates"]]
    assert found == [(30, "chosen"), *((step, "older") for step in (25, 20, 15, 10, 5))]


def test_for_a_trainer_that_loads_with_the_kit_the_proof_alone_counts(kit: Kit, stopped: Path):
    """Its checkpoints say themselves whether they were finite."""
    plan = shown(kit, "--set", "trainer.loads_with_kit=true")
    assert plan["step"] == 20, "what the head was decides how it is searched"
    resolved = json.loads((stopped / "resolved_config.json").read_text())
    resolved["trainer"]["loads_with_kit"] = True
    (stopped / "resolved_config.json").write_text(json.dumps(resolved))
    reseal(stopped)
    assert shown(kit)["step"] == steps(stopped)[-1]
