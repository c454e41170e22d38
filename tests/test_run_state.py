"""What a journal adds up to: resumekit.run_folder.run_state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.basics import journal
from resumekit.run_folder.run_state import fold, measured_speed
from resumekit.run_folder.state_types import is_sound

PROCESS = {"host": "h", "boot_id": "b", "pid": 77, "start_ticks": 5, "token": "t"}
KINDS = ["launched", "resumed", "phase", "step", "eval", "best", "checkpoint", "heartbeat", "warning", "stopped",
         "exited", "data", "nonfinite", "oom", "eval_crashed", "of the future"]  # fmt: skip
FIELDS = ["event", "mono_s", "at", "step", "loss", "lr", "epoch", "phase", "kind", "score", "global_step", "code",
          "signal", "by", "message", "trainer", "shim", "launcher", "source", "lr_scale", "steps_per_sec", "optimizer",
          "best_eval_acc", "last_fast_eval_step", "what", "finite", "size", "message"]  # fmt: skip

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=2)
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
GARBAGE = st.builds(
    lambda kind, fields: {**fields, "event": kind},
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(FIELDS), VALUES),
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


@pytest.mark.parametrize("value", ["12", -1, 1e30, True, [3], 10**12, None, {"a": 1}, float("nan")])
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
