"""The speed of trainers whose steps are seen in bursts, or beside evaluations that nobody tells of; smoothed losses."""

from __future__ import annotations

import random

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
