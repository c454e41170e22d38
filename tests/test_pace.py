"""The speed of trainers whose steps are seen in bursts, or beside evaluations that nobody tells of; smoothed losses."""

from __future__ import annotations

import random
from typing import Any

import pytest

from resumekit.run_folder import pace
from resumekit.run_folder.run_state import fold
from resumekit.watching import abort_rules
from resumekit.watching.abort_rules import SICK, Sight
from resumekit.watching.limits import Limits
from test_abort_rules import event, step


def test_a_block_of_lines_is_one_telling() -> None:
    """A pipe on the way hands on blocks of 4 KiB: a hundred steps within a millisecond, once in a hundred seconds."""
    told = [event("launched", 0.0)]
    for block in range(100):
        told += [step(block * 100 + i, 100.0 * block + i * 1e-4, source="log") for i in range(1, 101)]
    state = fold({}, told)
    assert abs(pace.baseline(state["pace"]) - 1.0) < 0.1 and state["pace"]["typical_s"] > 90.0
    slow = [step(10_000 + 10 * i, 9900.0 + 300.0 * i, source="log") for i in range(1, 30)]
    found = abort_rules.findings(fold(state, slow), Limits(), Sight(9900.0 + 8800.0, "running"))
    assert [one.cause for one in found if one.verdict == SICK] == ["throughput"]


def test_a_slow_stretch_beside_an_evaluation_that_nobody_told_of_is_shorter_than_it_looks() -> None:
    """A beat a minute, nine minutes of slowness, and in the same half minute's five beats an evaluation of four."""
    at_s, number, told = 0.0, 0, [event("launched", 0.0)]

    def beats(count: int, steps: int, each_s: float = 60.0) -> None:
        nonlocal at_s, number
        for _ in range(count):
            at_s, number = at_s + each_s, number + steps
            told.append(event("heartbeat", at_s, global_step=number))

    beats(89, 54)
    beats(10, 3)
    beats(1, 54)
    beats(1, 23)
    beats(1, 10, each_s=240.0)
    beats(2, 54)
    assert not [
        one for one in abort_rules.findings(fold({}, told), Limits(), Sight(at_s, "running")) if one.verdict == SICK
    ]
    beats(40, 10)
    found = abort_rules.findings(fold({}, told), Limits(), Sight(at_s, "running"))
    assert [one.cause for one in found if one.verdict == SICK] == ["throughput"]


def test_a_slowness_of_four_usual_intervals_is_found() -> None:
    """Some of its intervals are long, and each of them counted as a usual one."""
    told, at_s = [event("launched", 0.0)], 0.0
    for number in range(1, 2001):
        at_s += 3.0 * (1.0 if number < 1500 else (4.5, 2.4, 2.4)[number % 3])
        told.append(step(number, at_s, 0.5 + 0.01 * (number % 7)))
    found = abort_rules.findings(fold({}, told), Limits(), Sight(at_s, "running"))
    assert [one.cause for one in found if one.verdict == SICK] == ["throughput"]


def _with_saves(own_s: float, count: int, stall_s: float) -> dict[str, Any]:
    """Return the state of a log trainer that saves for 31 s before every second line, and stalls early for once."""
    state, at_s = fold({}, [event("launched", 0.0)]), 0.0
    for number in range(1, count):
        at_s += own_s + (31.0 if number % 2 else 0.0) + (stall_s if number == 8 else 0.0)
        state = fold(state, [step(50 * number, at_s, 0.5 + number % 7, source="log")])
    return state


@pytest.mark.fault("E3", by="abort_rules.py: _is_only_counted_otherwise")
def test_a_run_that_counts_its_untold_saves_where_its_parent_left_them_out_is_not_slower() -> None:
    """Of the same intervals one life takes 40 s for long ones, and the other, after an early stall, does not."""
    parent = _with_saves(8.8, 400, 0.0)["pace"]
    norm = {"lineage_speed": pace.baseline(parent), "lineage_whole": pace.whole_speed(parent)}

    def found(state: dict[str, Any], **known: Any) -> list[str]:
        sight = Sight(state["step_mono_s"], "running", **known)
        return [one.cause for one in abort_rules.findings(state, Limits(), sight) if one.verdict == SICK]

    child = _with_saves(8.8, 80, 25.0)
    assert pace.baseline(child["pace"]) < 0.5 * pace.baseline(parent)
    assert found(child, lineage_speed=norm["lineage_speed"]) == ["throughput"]
    assert found(child, **norm) == []
    # One that is slow from its first step is slow with all intervals in full too.
    assert found(_with_saves(60.0, 40, 0.0), **norm) == ["throughput"]
    # And one that was as fast as its parent for an hour, and is slow now, is so by what it was lately.
    at_s, number = child["step_mono_s"], child["step"]
    for later in range(1, 60):
        child = fold(child, [step(number + 50 * later, at_s + 90.0 * later, 0.5 + later % 7, source="log")])
    assert found(child, **norm) == ["throughput"]


def test_a_first_loss_that_happens_to_be_small_is_no_best() -> None:
    """After a restart it was the recent best for thousands of steps, and a steady loss had diverged from it."""
    dice = random.Random(5)
    losses = [0.1, *(1.25 * dice.lognormvariate(0.0, 0.3) for _ in range(3000))]
    told = [step(number, float(number), loss) for number, loss in enumerate(losses, 1)]
    found = abort_rules.findings(fold({}, told), Limits(divergence=3.0), Sight(3001.0, "running"))
    assert found == []


def test_a_drift_that_comes_soon_after_a_restart_is_found() -> None:
    losses = [1.0] * 20 + [1.0 * min(50.0, 1.1**number) for number in range(2000)]
    told = [step(number, float(number), loss) for number, loss in enumerate(losses, 1)]
    found = abort_rules.findings(fold({}, told[:1500]), Limits(divergence=3.0), Sight(1501.0, "running"))
    assert "diverged" in [one.cause for one in found]
