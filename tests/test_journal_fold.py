"""What a journal adds up to: resumekit.run.journal_fold."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.base import journal, values
from resumekit.run.journal_fold import fold, measured_speed
from resumekit.run.state_types import is_sound
from support.garbage_events import GARBAGE, VALUES

PROCESS = {"host": "h", "boot_id": "b", "pid": 77, "start_ticks": 5, "token": "t"}

VALUES |= st.sampled_from(
    [
        PROCESS,
        "train",
        "full_eval",
        "fast",
        10**400,
        1e308,
        -1,
        "a[$(touch canary)]",
        "12",
        "nan",
        "-inf",
        "clock_gap",
        True,
    ]
)


def step(number: int, mono_s: float, **fields: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "mono_s": mono_s, "at": "2026-11-22T17:35:51.123456Z", **fields}


def phase(name: str, mono_s: float) -> dict[str, Any]:
    return {"event": "phase", "phase": name, "mono_s": mono_s}


@settings(max_examples=200, deadline=None)
@given(st.lists(GARBAGE, max_size=12), st.data())
def test_no_event_breaks_a_fold_and_it_can_be_split_anywhere(events: list[dict], data: st.DataObject) -> None:
    """Through JSON and back at every split, as the sidecar's own file does it."""
    whole = fold({}, events)
    assert is_sound(whole)
    at = data.draw(st.integers(0, len(events)))
    half = json.loads(json.dumps(fold({}, events[:at]), allow_nan=False))
    assert fold(half, events[at:]) == whole


def test_a_fold_leaves_the_state_it_was_given_alone() -> None:
    before = fold({}, [step(1, 1.0)])
    copy = json.loads(json.dumps(before))
    fold(before, [step(2, 2.0), phase("full_eval", 3.0), phase("train", 4.0)])
    assert before == copy


@pytest.mark.parametrize("value", ["12", -1, 1e30, True, [3], 10**15, None, {"a": 1}, float("nan")])
def test_a_step_of_the_wrong_type_is_passed_over(value: Any) -> None:
    assert "step" not in fold({}, [{"event": "step", "step": value, "mono_s": 1.0}])


@pytest.mark.parametrize(
    "state",
    [
        None, [], "x", {"step": 3}, {"unknown": 1}, {"phase": "lunch"}, {"loss": "0.5"}, {"loss": float("inf")},
        {"waited_s": "1"}, {"launched": {"trainer": None}}, {"tells_steps": 1}, {"last_warning": None},
        {"step": 1, "step_mono_s": "a", "first_step": 1, "first_step_mono_s": 1.0, "waited_s": 0.0},
    ],
)  # fmt: skip
def test_a_state_of_the_wrong_types_is_not_sound(state: Any) -> None:
    assert not is_sound(state)


def test_the_speed_leaves_evals_and_saves_out() -> None:
    events = [step(101, 10.0), step(103, 11.0), phase("full_eval", 11.0), phase("train", 500.0), step(105, 501.0)]
    assert measured_speed(fold({}, events)) == 2.0


def test_the_speed_is_measured_from_the_resume_point() -> None:
    assert measured_speed(fold({}, [step(40_001, 100.0), step(40_005, 101.0)])) == 4.0
    assert measured_speed(fold({}, [step(40_001, 100.0)])) is None


def test_a_burst_says_nothing_about_the_speed() -> None:
    """A sidecar that comes late reads many lines in the same moment."""
    assert measured_speed(fold({}, [step(1, 1.0), step(500, 1.001)])) is None


def test_a_trainer_that_only_beats_makes_progress() -> None:
    beat = {"event": "heartbeat", "mono_s": 1.0, "at": "2026-11-22T17:35:51.123456Z"}
    state = fold({}, [{**beat, "global_step": 10}, {**beat, "global_step": 70, "mono_s": 61.0, "loss": 0.5}])
    assert (state["step"], state["loss"], measured_speed(state)) == (70, 0.5, 1.0)
    assert "tells_steps" not in state


def test_a_beat_behind_the_steps_takes_nothing_back() -> None:
    state = fold({}, [step(10, 1.0), {"event": "heartbeat", "mono_s": 2.0, "global_step": 9}])
    assert state["step"] == 10


def test_steps_that_the_trainer_tells_are_known_from_those_of_its_log() -> None:
    assert "tells_steps" not in fold({}, [step(1, 1.0, source="log")])
    assert fold({}, [step(1, 1.0)])["tells_steps"] is True


@pytest.mark.long
def test_a_journal_of_half_a_million_events_is_read_on_from_an_offset(tmp_path: Path) -> None:
    """The second reading costs what is new, and both together give what one gives."""
    path = tmp_path / "journal.jsonl"
    lines = [
        b'\n{"event":"step","at":"","mono_s":%d.0,"run_id":"r","step":%d,"loss":0.5}\n' % (i, i) for i in range(1000)
    ]
    with open(path, "wb") as file:
        for _ in range(500):
            file.writelines(lines)
    offsets = [0]
    state = fold({}, (offsets.__setitem__(0, offset) or event for event, offset in journal.read(path)))
    offset = offsets[0]
    assert (state["events"], state["step"], offset) == (500_000, 999, path.stat().st_size)
    journal.append(path, "step", "r", step=1000)
    assert [event["step"] for event, _ in journal.read(path, offset)] == [1000]


def test_of_several_that_tell_a_rate_or_a_best_score_the_events_are_believed_and_nothing_jumps() -> None:
    """The heartbeat told the accuracy, the event the cells: the status showed one, then the other."""
    beat = {"event": "heartbeat", "global_step": 9, "mono_s": 3.0, "best_eval_acc": 0.0, "best_step": 7, "lr": 0.5}
    best = {"event": "best", "step": 8, "score": 0.5}
    seen = [fold({}, [step(1, 1.0, lr=0.3, source="log"), beat, *more]) for more in ([], [best], [best, beat])]
    assert [(one["best_eval_acc"], one["best_step"]) for one in seen] == [(0.0, 7), (0.5, 8), (0.5, 8)]
    assert {one["lr"] for one in seen} == {0.5}
    logged = fold(seen[2], [step(10, 4.0, lr=0.3, source="log")])
    assert logged["lr"] == 0.5
    told = fold(logged, [step(11, 5.0, lr=0.2, lr_scale=0.8), beat, step(12, 6.0, lr=0.1, source="log")])
    assert (told["lr"], told["lr_scale"]) == (0.2, 0.8) and is_sound(told)
    assert not is_sound({**told, "tellers": {"lr": "another"}}) and not is_sound({**told, "tellers": {"x": "event"}})


def test_a_time_of_a_record_is_the_second_that_the_calendar_says() -> None:
    dice = random.Random(1)
    for _ in range(500):
        second = dice.randrange(4_000_000_000)
        written = time.strftime("%Y-%m-%dT%H:%M:%S.123456Z", time.gmtime(second))
        assert values.epoch_s(written) == second
    assert values.epoch_s("") == values.epoch_s("yesterday") == 0.0
