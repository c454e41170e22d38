"""What the verdict on a resume says that it compared, by run folders on the disk: checks.expectations and acceptance.

The rules alone: tests/test_acceptance.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal
from resumekit.base.errors import NoStableCheckpoint
from resumekit.checkpoint.selection import Selection
from resumekit.process import aborting, acceptance
from resumekit.process.acceptance import Acceptance
from resumekit.run import listing, status
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.watch import restart_point
from support.schemas import assert_valid

ROOT_ID, PARENT_ID, CHILD_ID = (
    "T-1_toy_20261122-1000",
    "T-1_toy_resume@10_20261122-1100",
    "T-1_toy_resume@30_20261122-1200",
)
LOADED = dict.fromkeys(("weights", "optimizer", "rng", "data_position"), "load")
BY_KIT = {"trainer": {"loads_with_kit": True}}
BY_ITSELF = {"trainer": {"loads_with_kit": False, "log_patterns": {"step": "step ([0-9]+)"}}}


def make_run(
    runs: Path, run_id: str, steps: dict[int, float], *, config: Any = BY_KIT, saved: int | None = 30, **record: Any
) -> Path:
    """Write a run folder whose journal tells these steps with their losses, by the trainer or by its log.

    A checkpoint is named `saved`; it is told behind the last step up to there.
    """
    folder = runs / run_id
    folder.mkdir(parents=True)
    fields = {"run_id": run_id, "experiment": "T-1", "name": "toy", "host": "here", "versions": {}, **record}
    (folder / "run.json").write_text(json.dumps(fields))
    (folder / "resolved_config.json").write_text(json.dumps(config))
    before = {step: loss for step, loss in steps.items() if saved is None or step <= saved}
    tell(folder, before, config)
    if saved is not None and steps:
        journal.append(folder / "journal.jsonl", "checkpoint", run_id, step=saved, path="x.pt")
    tell(folder, {step: loss for step, loss in steps.items() if step not in before}, config)
    return folder


def tell(folder: Path, steps: dict[int, float], config: Any = BY_KIT) -> None:
    source = {} if config["trainer"]["loads_with_kit"] else {"source": "log"}
    with open(folder / "journal.jsonl", "a") as file:
        for step, loss in steps.items():  # each takes as long as any other, on whatever machine this is
            fields = {"event": "step", "run_id": folder.name, "mono_s": 0.1 * step, "step": step, "loss": loss}
            fields |= source
            file.write(f"\n{json.dumps(fields)}\n")


def resumed(runs: Path, steps: dict[int, float], *, at: int = 30, config: Any = BY_KIT, changes: Any = (),
            report: Any = None, parent: str = ROOT_ID, **components: str) -> Path:  # fmt: skip
    """Write a child of the parent's checkpoint `at` that has told these steps, behind its load if that is the kit's."""
    record = {"parent_run_id": parent, "parent_step": at, "checkpoint": f"../{parent}/checkpoints/x.pt"}
    folder = make_run(runs, CHILD_ID, {}, config=config, **record)
    done = {name: {"action": action, "why": ""} for name, action in {**LOADED, **components}.items()}
    plan = {"version": 1, "step": at, "components": done, "changes": list(changes), "checkpoint": {"run_id": parent}}
    (folder / "resume_plan.json").write_text(json.dumps(plan))
    if config["trainer"]["loads_with_kit"]:
        told = {"weights": "load", **(report or {})}
        journal.append(folder / "journal.jsonl", "resumed", CHILD_ID, step=at, checkpoint="x.pt", report=told)
    tell(folder, steps, config)
    return folder


def judged(folder: Path, monkeypatch: pytest.MonkeyPatch, *known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Let the sidecar's part judge a run that is over; returns the check events by name."""
    for one in known:
        journal.append(folder / "journal.jsonl", "check", folder.name, **one)
    monkeypatch.setattr(aborting, "note", lambda *_args, **_more: True)
    run = open_run(folder)
    part = Acceptance(run, {}, 1 << 20)
    part.decide(lambda event, **fields: journal.append(run.paths.journal, event, run.run_id, **fields) is None,
                lambda line: None, has_ended=True)  # fmt: skip
    events = [event for event, _ in journal.read(run.paths.journal) if event["event"] == "check"]
    for event in events:
        assert_valid("event", event)
    return {event["name"]: event for event in events}


def losses(first: int, last: int, shift: float = 0.0) -> dict[int, float]:
    return {step: 2.5 - 0.01 * step + shift for step in range(first, last + 1)}


WEIGHTS = {"name": "weights", "verdict": "passed", "expected": None, "found": None, "why": ""}


def test_steps_that_stand_in_both_journals_are_compared_where_no_position_in_the_data_was_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W18: killed at 35, resumed at 30, a plain shuffled loader: steps 31 to 35 have been trained twice."""
    make_run(tmp_path, ROOT_ID, losses(1, 35))
    found = judged(resumed(tmp_path, losses(31, 60, 0.2), data_position="absent"), monkeypatch, WEIGHTS)
    assert found["loss"]["verdict"] == "warned" and found["resume"]["verdict"] == "warned"
    assert found["loss"]["why"].startswith("losses differ from the parent's in 5 of 5 steps, first in step 31")
    assert "the checkpoint holds no data position (data_state): the resume is not exact" in found["loss"]["why"]
    assert found["resume"]["found"].startswith("losses differ from the parent's in 5 of 5 steps")


def test_a_trainer_that_restores_its_data_by_itself_is_seen_to_be_exact(tmp_path: Path, monkeypatch) -> None:
    """W10, the other way round: the sampler went with `extra`, and came back."""
    make_run(tmp_path, ROOT_ID, losses(1, 35))
    found = judged(resumed(tmp_path, losses(31, 60), data_position="absent"), monkeypatch, WEIGHTS)
    assert (found["loss"]["verdict"], found["loss"]["compared"]) == ("passed", "bit for bit")
    assert found["resume"]["found"].startswith("losses equal bit for bit in 5 steps")


@pytest.mark.parametrize(
    "parents, more, because",
    [
        (losses(1, 30), {}, "the parent told no loss of a step after 30"),
        (losses(1, 60), {"changes": [{"key": "training.batch_size"}]}, "training.batch_size was changed"),
        (losses(1, 60), {"optimizer": "reset"}, "the plan says optimizer: reset"),
    ],
)
def test_losses_that_cannot_be_compared_step_by_step_are_not_told_and_say_why(
    parents: dict[int, float], more: Any, because: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, ROOT_ID, parents)
    found = judged(resumed(tmp_path, losses(31, 60), **more), monkeypatch)
    assert found["loss"]["verdict"] == "not_told"
    assert found["loss"]["why"] == f"not comparable step by step, because {because}"
    assert found["resume"]["verdict"] == "not_told", "neither the weights nor losses step by step"
    assert found["resume"]["found"].startswith("losses within the band of the parent (not comparable step by step")


def test_with_the_weights_a_resume_passes_and_says_what_was_compared(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path, ROOT_ID, losses(1, 30))
    found = judged(resumed(tmp_path, losses(31, 60)), monkeypatch, WEIGHTS)
    assert found["resume"]["verdict"] == "passed"
    assert found["resume"]["found"].startswith("weights as in the checkpoint, losses within the band of the parent")


@pytest.mark.parametrize("every", [10, 100])
def test_a_parent_that_tells_few_steps_is_compared_on_those(every: int, tmp_path: Path, monkeypatch) -> None:
    told = {step: 2.5 - 0.001 * step for step in range(every, 600, every)}
    make_run(tmp_path, ROOT_ID, told)
    own = {step: 2.5 - 0.001 * step for step in range(31, 400)}
    found = judged(resumed(tmp_path, own), monkeypatch)
    common = min(20, sum(31 <= step < 400 for step in told))
    assert found["loss"]["why"] == f"losses equal bit for bit in {common} steps"
    assert found["resume"]["verdict"] == "passed"


def test_what_a_log_shows_is_equal_to_its_last_digit_and_no_more(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path, ROOT_ID, losses(1, 35), config=BY_ITSELF)
    own = {"config": BY_ITSELF, **dict.fromkeys(LOADED, "absent")}
    found = judged(resumed(tmp_path, losses(31, 60), **own), monkeypatch)
    assert found["loss"]["why"] == "losses equal to the last digit that the log shows in 5 steps"
    assert found["resume"]["verdict"] == "passed"


def test_a_run_that_trained_nothing_has_no_verdict_that_passes(tmp_path: Path, monkeypatch) -> None:
    """W11: loaded, and ended before its first step."""
    make_run(tmp_path, ROOT_ID, losses(1, 35))
    found = judged(resumed(tmp_path, {}), monkeypatch)
    assert found["step"]["verdict"] == "passed" and found["resume"]["verdict"] == "not_told"
    assert found["resume"]["found"].startswith("nothing compared: no step was seen after the load; 1 of 6 passed")


def test_one_check_of_six_is_no_verdict_that_passes(tmp_path: Path, monkeypatch) -> None:
    """W11: the step alone could be told."""
    make_run(tmp_path, ROOT_ID, losses(1, 30))
    found = judged(resumed(tmp_path, losses(31, 33)), monkeypatch)
    assert found["resume"]["verdict"] == "not_told"
    assert found["resume"]["found"].startswith("nothing compared: not comparable step by step, because the parent")
    assert found["resume"]["found"].endswith("1 of 6 passed, not told: lr, data, phase, loss, throughput")
    assert status.current(open_run(tmp_path / CHILD_ID))["checks"]["verdict"] == "not_told"


@pytest.mark.parametrize("config", [BY_KIT, BY_ITSELF], ids=["kit", "log"])
@pytest.mark.parametrize("roots, verdict", [(losses(0, 35), "passed"), (losses(1, 35), None)], ids=["from 0", "from 1"])
def test_whether_a_trainer_counts_from_0_is_learned_from_the_root_run(
    roots: dict[int, float], verdict: str | None, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W13: what counts from 0 calls the step after a checkpoint of 30 steps 30, here behind another resume."""
    make_run(tmp_path, ROOT_ID, roots, config=config)
    record = {"parent_run_id": ROOT_ID, "parent_step": 10, "checkpoint": f"../{ROOT_ID}/checkpoints/x.pt"}
    make_run(tmp_path, PARENT_ID, losses(10, 35), config=config, **record)
    found = judged(resumed(tmp_path, losses(30, 59), config=config, parent=PARENT_ID), monkeypatch)
    doubted = "failed" if config is BY_KIT else "warned"
    assert found["step"]["verdict"] == (verdict or doubted)
    if verdict:
        how = "bit for bit" if config is BY_KIT else "to the last digit that the log shows"
        assert found["loss"]["why"] == f"losses equal {how} in 6 steps", "step 30 too"


@pytest.mark.parametrize(
    "parents, own, verdict",
    [
        (losses(1, 35), losses(1, 8), "failed"),
        (losses(1, 35), {1: 2.5}, "warned"),  # a line of a log, and then it crashed
        (losses(1, 35), {0: 2.5, **losses(31, 40)}, "warned"),  # a line that speaks of an older step
        (losses(1, 9), losses(1, 8), "not_told"),  # it counts anew in each epoch
        (losses(1, 9), losses(31, 38), "passed"),
        ({}, losses(400, 430), "warned"),
        ({}, losses(1, 8), "warned"),
        (losses(1, 35), losses(400, 430), "failed"),
        (losses(1, 35), losses(36, 60), "warned"),  # lines may have gone unread
    ],
)
def test_a_log_that_tells_another_step_fails_only_where_the_parent_counted_so(
    parents: dict[int, float], own: dict[int, float], verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, ROOT_ID, parents, config=BY_ITSELF)
    found = judged(resumed(tmp_path, own, config=BY_ITSELF), monkeypatch)
    assert found["step"]["verdict"] == verdict


@pytest.mark.parametrize("config", [BY_KIT, BY_ITSELF], ids=["kit", "log"])
@pytest.mark.parametrize("own", [losses(1, 9), losses(71, 79)], ids=["in each epoch", "over all epochs"])
def test_of_checkpoints_named_by_the_epoch_the_steps_tell_nothing(
    own: dict[int, float], config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven epochs of ten steps, of which a checkpoint is named 7: the trainer goes on as it is meant to."""
    parent = make_run(tmp_path, ROOT_ID, {}, config=config)
    for epoch in range(8):
        begun = 0 if 1 in own else 10 * epoch
        tell(parent, losses(begun + 1, begun + 10), config)
        journal.append(parent / "journal.jsonl", "checkpoint", ROOT_ID, step=epoch + 1, path="x.pt")
    found = judged(resumed(tmp_path, own, at=7, config=config), monkeypatch)
    assert found["step"]["verdict"] == "not_told", found["step"]


def test_what_the_trainer_reports_as_not_restored_makes_a_difference_no_failure(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path, ROOT_ID, losses(1, 60))
    child = resumed(tmp_path, losses(31, 60, 0.2), report={"rng": "rank 0 only"})
    found = judged(child, monkeypatch)
    assert found["loss"]["verdict"] == "warned" and "rng: rank 0 only: the resume is not exact" in found["loss"]["why"]


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize("steps, ends", [(losses(1, 8), {True, False}), (losses(31, 60, 0.2), {True})])
def test_only_another_step_ends_a_run_without_strict_checks(
    steps: dict[int, float], ends: set[bool], is_strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**BY_KIT, "resume": {"strict_checks": is_strict}}
    make_run(tmp_path, ROOT_ID, losses(1, 60))
    child = resumed(tmp_path, steps, config=config)
    noted, stopped = [], []
    monkeypatch.setattr(acceptance.aborting, "note", lambda run, cause, why: noted.append((cause, why)) or True)
    monkeypatch.setattr(acceptance.aborting, "stop_aborted", stopped.append)
    part = Acceptance(open_run(child), {}, 1 << 20)
    part.decide(lambda *_args, **_more: True, lambda line: None, has_ended=False)
    assert [cause for cause, _ in noted] == (["checks_failed"] if is_strict in ends else [])
    assert stopped == ([child] if is_strict in ends else [])


def test_no_recovery_goes_on_from_or_over_a_run_that_began_at_another_step(tmp_path: Path) -> None:
    """W12, of a run folder that an older kit let train on."""
    make_run(tmp_path, ROOT_ID, losses(1, 35))
    child = resumed(tmp_path, losses(1, 8))
    wrong = {"name": "step", "verdict": "failed", "expected": "steps after 30", "found": 1, "why": ""}
    journal.append(child / "journal.jsonl", "check", CHILD_ID, **wrong)
    run, table = open_run(child), RunTable(tmp_path)
    with pytest.raises(NoStableCheckpoint, match=f"'{CHILD_ID}' began at another step than the planned one"):
        restart_point._refuse_wrong_start(run, table, Selection(None, ()))
    restart_point._refuse_wrong_start(open_run(tmp_path / ROOT_ID), table, Selection(None, ()))
    seen = listing.state_of(run)
    assert seen["state"] not in status.LIVE and "failed checks: step" in listing.cells(run, seen)[2]


def test_a_load_behind_a_restart_in_place_is_none_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the run's own checkpoint, at another step than the planned one, before the checks are through."""
    make_run(tmp_path, ROOT_ID, losses(1, 60))
    child, own = resumed(tmp_path, {31: 0.5}), "checkpoints/x.pt"
    journal.append(child / "journal.jsonl", "warning", CHILD_ID, kind="restarted_in_place", message="again")
    journal.append(child / "journal.jsonl", "resumed", CHILD_ID, step=31, checkpoint=own, report={"weights": "load"})
    tell(child, losses(32, 60), BY_KIT)
    assert judged(child, monkeypatch)["step"]["verdict"] == "passed"
