"""Whether a run has done its last step: one judgement for the status, the end of a session, and a recovery."""

from __future__ import annotations

import pytest

from resumekit.run import run_end, status
from support.commands import Kit


@pytest.mark.parametrize(
    ("step", "saved", "tells", "is_reached", "is_proven"),
    [
        (None, None, False, False, False),
        (999, 1000, False, False, False),
        (1000, None, False, True, False),
        (1000, 1000, False, True, True),
        (3000, None, False, False, False),  # the bar of an evaluation: 3000/5000
        (3000, 900, False, False, False),
        (1010, 1000, False, True, False),
        (1000, None, True, True, True),
        (1001, None, True, True, True),
    ],
)
def test_a_step_of_the_log_beyond_the_end_is_no_last_step_without_a_checkpoint(
    step: int | None, saved: int | None, tells: bool, is_reached: bool, is_proven: bool
) -> None:
    told = {"step": step, "last_checkpoint_step": saved, "tells_steps": tells or None, "has_step_events": True}
    state = {name: value for name, value in told.items() if value is not None}
    assert run_end.last_step_is_reached(state, 1000) is is_reached
    assert run_end.last_step_is_proven(state, step, 1000) is is_proven
    assert not run_end.last_step_is_reached(state, None) and not run_end.last_step_is_proven(state, step, None)
    view = status.View("dead", "dead", {"code": 0}, 0.0)
    name = status.state_of({"launched": {}, **state}, view, 1000)
    assert (name == "finished") is is_reached


@pytest.mark.parametrize(("saved", "is_reached"), [(1000, True), (990, False), (None, False)])
def test_a_framework_that_prints_now_and_then_is_done_with_the_checkpoint_of_its_last_step(
    saved: int | None, is_reached: bool
) -> None:
    state = {"step": 950, "has_step_events": True, "log_format": "torchtitan", "last_checkpoint_step": saved or 0}
    assert run_end.last_step_is_reached(state, 1000) is is_reached
    assert not run_end.last_step_is_reached({**state, "tells_steps": True}, 1000)


def test_a_run_that_ends_with_0_behind_an_evaluation_s_bar_has_not_finished(kit: Kit) -> None:
    """`step 3000` of an evaluation's log, and then an end with 0 at step 3 of 1000."""
    line = b"step 3000 of the evaluation\n".hex()
    kit.config("--at", "3", f"raw={line}", "--at", "3", "exit=0", training={"max_steps": 1000})
    kit("run", "T-1")
    assert kit.status(kit.run_dirs()[0])["state"] == "ended_early"
