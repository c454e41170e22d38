"""Whose steps a log tells: the training's, or those of an evaluation with a bar of its own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from resumekit.run import journal_fold, steps, throughput
from resumekit.run.journal_fold import fold
from resumekit.run.state_types import is_sound
from resumekit.watch import rules
from resumekit.watch.rules import SICK, Limits, Observation
from support.journal_events import event

TRAINING, EVALUATION = 100_000, 600


class Log:
    """What is folded of a trainer's lines: at most one a second."""

    def __init__(self, *, has_totals: bool = True) -> None:
        self.now_s, self.has_totals = 10.0, has_totals
        self.state = fold({}, [event("launched", 0.0)])

    def tell(self, step: int, total: int, **fields: Any) -> None:
        told = {"step_total": total} if self.has_totals else {}
        self.state = fold(self.state, [event("step", self.now_s, step=step, source="log", **told, **fields)])

    def steps(self, first: int, speed: float, minutes: float, total: int, **fields: Any) -> int:
        """Count on from `first` at so many steps per second; return the last one."""
        begins_s, each_s, step = self.now_s, max(1.0, 1 / speed), first
        while self.now_s + each_s < begins_s + minutes * 60:
            self.now_s += each_s
            step = first + max(1, int((self.now_s - begins_s) * speed))
            self.tell(step, total, **fields)
        return step

    def found(self) -> list[str]:
        assert is_sound(json.loads(json.dumps(self.state)))
        found = rules.findings(self.state, Limits(), Observation(self.now_s, "running"))
        return [one.cause for one in found if one.verdict == SICK]


@pytest.mark.parametrize("has_totals", [True, False])
@pytest.mark.parametrize(
    "speed, minutes, eval_speed, eval_minutes",
    [(10, 20, 0.7, 8), (10, 20, 0.7, 14), (2, 30, 0.5, 12), (5, 20, 0.2, 15), (10, 20, 4, 15), (1, 60, 0.1, 12)],
)
def test_an_evaluation_with_a_bar_of_its_own_is_no_slow_training(
    speed: float, minutes: float, eval_speed: float, eval_minutes: float, has_totals: bool
) -> None:
    log, step = Log(has_totals=has_totals), 0
    for _ in range(4):
        step = log.steps(step, speed, minutes, TRAINING)
        log.steps(0, eval_speed, eval_minutes, EVALUATION)
        assert log.found() == []


@pytest.mark.parametrize("has_totals", [True, False])
def test_an_evaluation_that_counts_beyond_the_training_is_none_of_it(has_totals: bool) -> None:
    log, step = Log(has_totals=has_totals), 0
    for _ in range(5):
        step = log.steps(step, 1.0, 10, TRAINING)
        log.steps(0, 20.0, 20, 2 * TRAINING)
        assert log.found() == []
    assert throughput.baseline(log.state["pace"]) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("has_totals", [True, False])
def test_a_training_that_is_slow_after_such_evaluations_is_found(has_totals: bool) -> None:
    log, step = Log(has_totals=has_totals), 0
    for _ in range(3):
        step = log.steps(step, 10.0, 10, TRAINING)
        log.steps(0, 0.7, 14, EVALUATION)
    log.steps(step, 3.0, 12, TRAINING)
    assert log.found() == ["throughput"]


@pytest.mark.parametrize("has_totals", [True, False])
def test_a_training_that_begins_anew_in_each_epoch_is_judged(has_totals: bool) -> None:
    log = Log(has_totals=has_totals)
    for _ in range(8):
        log.steps(0, 2.0, 4, 480)
    assert log.found() == []
    for _ in range(3):
        log.steps(0, 0.5, 16, 480)
    assert log.found() == ["throughput"]


def test_epochs_that_count_anew_beside_evaluations_that_do_are_told_apart_by_their_totals() -> None:
    log = Log()
    for _ in range(8):
        log.steps(0, 2.0, 4, 480)
        log.steps(0, 0.3, 12, 220)
    assert log.found() == []
    log.steps(0, 0.5, 14, 480)
    assert log.found() == ["throughput"]


@pytest.mark.parametrize("shows_loss", [True, False])
def test_a_bar_before_the_training_is_not_what_the_training_is_measured_by(shows_loss: bool) -> None:
    """`Map: 45%| 450000/1000000 [01:00<01:10, 7500 examples/s]` prepares the data."""
    log, step = Log(), 0
    log.steps(0, 7500.0, 12, 10_000_000)
    fields = {"loss": 0.5} if shows_loss else {}
    for _ in range(3):
        step = log.steps(step, 2.0, 20, TRAINING, **fields)
        assert log.found() == []
        log.steps(0, 0.5, 12, EVALUATION)
        assert log.found() == []
    log.steps(step, 0.8, 12, TRAINING, **fields)
    assert log.found() == ["throughput"]


def test_a_bar_of_the_epochs_around_that_of_the_steps_is_not_the_training() -> None:
    log = Log()
    for epoch in range(1, 9):
        log.steps(0, 2.0, 4, 480)
        log.tell(epoch, 10)
    log.steps(0, 0.5, 14, 480)
    assert log.found() == ["throughput"]


def test_an_evaluation_whose_bar_stands_still_is_a_hang() -> None:
    log = Log()
    log.steps(0, 10.0, 20, TRAINING)
    step = log.steps(0, 0.7, 5, EVALUATION)
    for _ in range(31):
        log.now_s += 60.0
        log.tell(step, EVALUATION)
    assert log.found() == ["hang"]


def test_another_total_is_no_odd_step() -> None:
    log = Log()
    for _ in range(2):
        log.steps(0, 10.0, 5, TRAINING)
        log.steps(0, 0.7, 5, EVALUATION)
    assert "odd_step" not in log.state["symptoms"]
    assert journal_fold.measured_speed(log.state) == pytest.approx(0.7, rel=0.1)


def test_a_trainer_that_journals_its_steps_tells_the_training_alone() -> None:
    told = [event("step", 10.0 + n, step=n % 50) for n in range(4000)]
    state = fold({}, told)
    assert "counters" not in state and throughput.baseline(state["pace"]) == pytest.approx(1.0, rel=0.1)


def test_lines_with_a_total_and_lines_without_count_the_same_steps() -> None:
    log, step = Log(), 0
    for _ in range(300):
        step = log.steps(step, 10.0, 0.1, TRAINING)
        log.has_totals, step = False, step + 1
        log.tell(step, 0)
        log.has_totals = True
    assert log.state["counters"]["other"] is None


def _garbage(dice: random.Random) -> Iterator[steps.StepReport]:
    for _ in range(2000):
        total = dice.choice((None, None, 3, 600, dice.randrange(1, 10**12)))
        yield steps.StepReport(dice.choice((dice.randrange(20), dice.randrange(10**12))), total)


@pytest.mark.parametrize("seed", range(5))
def test_counters_of_any_steps_stay_small_and_sound(seed: int) -> None:
    known = None
    for telling in _garbage(random.Random(seed)):
        known = steps.count_step(known, telling, 1.0).counters
        assert steps.saved(json.loads(json.dumps(known))) == known
    assert len(json.dumps(known)) < 1000


@pytest.mark.parametrize("value", [None, [], {}, {"training": 1, "other": None, "stood": []}])
def test_what_are_no_counters_is_known(value: Any) -> None:
    assert steps.saved(value) is None
