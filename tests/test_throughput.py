"""The speed of trainers whose steps are seen in bursts, or beside evaluations without an event; smoothed losses."""

from __future__ import annotations

import random
from typing import Any

import pytest

from resumekit.run import throughput
from resumekit.run.journal_fold import fold
from resumekit.watch import rules
from resumekit.watch.rules import SICK, Limits, Observation
from support.journal_events import event, step


def test_a_block_of_lines_is_one_telling() -> None:
    """A pipe on the way hands on blocks of 4 KiB: a hundred steps within a millisecond, once in a hundred seconds."""
    told = [event("launched", 0.0)]
    for block in range(100):
        told += [step(block * 100 + i, 100.0 * block + i * 1e-4, source="log") for i in range(1, 101)]
    state = fold({}, told)
    assert abs(throughput.baseline(state["pace"]) - 1.0) < 0.1 and state["pace"]["typical_s"] > 90.0
    slow = [step(10_000 + 10 * i, 9900.0 + 300.0 * i, source="log") for i in range(1, 30)]
    found = rules.findings(fold(state, slow), Limits(), Observation(9900.0 + 8800.0, "running"))
    assert [one.cause for one in found if one.verdict == SICK] == ["throughput"]


def test_a_slow_stretch_beside_an_evaluation_without_an_event_is_shorter_than_it_looks() -> None:
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
        one for one in rules.findings(fold({}, told), Limits(), Observation(at_s, "running")) if one.verdict == SICK
    ]
    beats(40, 10)
    found = rules.findings(fold({}, told), Limits(), Observation(at_s, "running"))
    assert [one.cause for one in found if one.verdict == SICK] == ["throughput"]


def test_a_slowness_of_four_usual_intervals_is_found() -> None:
    """Some of its intervals are long, and each of them counted as a usual one."""
    told, at_s = [event("launched", 0.0)], 0.0
    for number in range(1, 2001):
        at_s += 3.0 * (1.0 if number < 1500 else (4.5, 2.4, 2.4)[number % 3])
        told.append(step(number, at_s, 0.5 + 0.01 * (number % 7)))
    found = rules.findings(fold({}, told), Limits(), Observation(at_s, "running"))
    assert [one.cause for one in found if one.verdict == SICK] == ["throughput"]


def _with_saves(own_s: float, count: int, stall_s: float) -> dict[str, Any]:
    """Return the state of a log trainer that saves for 31 s before every second line, and stalls early for once."""
    state, at_s = fold({}, [event("launched", 0.0)]), 0.0
    for number in range(1, count):
        at_s += own_s + (31.0 if number % 2 else 0.0) + (stall_s if number == 8 else 0.0)
        state = fold(state, [step(50 * number, at_s, 0.5 + number % 7, source="log")])
    return state


@pytest.mark.fault("E3", by="rules.py: _is_only_counted_otherwise")
def test_a_run_that_counts_its_untold_saves_where_its_parent_left_them_out_is_not_slower() -> None:
    """Of the same intervals one life takes 40 s for long ones, and the other, after an early stall, does not."""
    parent = _with_saves(8.8, 400, 0.0)["pace"]
    norm = {"lineage_speed": throughput.baseline(parent), "lineage_whole": throughput.whole_speed(parent)}

    def found(state: dict[str, Any], **known: Any) -> list[str]:
        sight = Observation(state["step_mono_s"], "running", **known)
        return [one.cause for one in rules.findings(state, Limits(), sight) if one.verdict == SICK]

    child = _with_saves(8.8, 80, 25.0)
    assert throughput.baseline(child["pace"]) < 0.5 * throughput.baseline(parent)
    assert found(child, lineage_speed=norm["lineage_speed"]) == ["throughput"]
    assert found(child, **norm) == []
    # One that is slow from its first step is slow with all intervals in full too.
    assert found(_with_saves(60.0, 40, 0.0), **norm) == ["throughput"]
    # And one that was as fast as its parent for an hour, and is slow now, is so by what it was lately.
    at_s, number = child["step_mono_s"], child["step"]
    for later in range(1, 60):
        child = fold(child, [step(number + 50 * later, at_s + 90.0 * later, 0.5 + later % 7, source="log")])
    assert found(child, **norm) == ["throughput"]


def test_what_is_slow_from_its_restart_on_is_so_from_its_first_steps() -> None:
    """Told every five minutes instead of every one, the first bucket is a quarter of an hour, and the start's alone."""
    parent = fold({}, [event("launched", 0.0)] + [step(10 * i, 60.0 * i, 0.5) for i in range(1, 120)])["pace"]
    child = fold({}, [event("launched", 0.0), *(step(1200 + 10 * i, 300.0 * i, 0.5) for i in range(1, 8))])
    sight = Observation(child["step_mono_s"], "running", lineage_speed=throughput.baseline(parent))
    found = [one.cause for one in rules.findings(child, Limits(), sight) if one.verdict == SICK]
    assert found == ["throughput"]
    # A start's own interval is no slowness, and what came in one block is no speed.
    fast = fold({}, [event("launched", 0.0), *(step(i, 1800.0 * (i > 1) + 1.0 * i, 0.5) for i in range(1, 400))])
    assert throughput.slow_for(fast["pace"], 0.5) < 60.0 and abs(throughput.recent_speed(fast["pace"]) - 1.0) < 0.1


def test_a_first_loss_that_happens_to_be_small_is_no_best() -> None:
    """After a restart it was the recent best for thousands of steps, and a steady loss had diverged from it."""
    dice = random.Random(5)
    losses = [0.1, *(1.25 * dice.lognormvariate(0.0, 0.3) for _ in range(3000))]
    told = [step(number, float(number), loss) for number, loss in enumerate(losses, 1)]
    found = rules.findings(fold({}, told), Limits(divergence=3.0), Observation(3001.0, "running"))
    assert found == []


def test_a_drift_that_comes_soon_after_a_restart_is_found() -> None:
    losses = [1.0] * 20 + [1.0 * min(50.0, 1.1**number) for number in range(2000)]
    told = [step(number, float(number), loss) for number, loss in enumerate(losses, 1)]
    found = rules.findings(fold({}, told[:1500]), Limits(divergence=3.0), Observation(1501.0, "running"))
    assert "diverged" in [one.cause for one in found]
