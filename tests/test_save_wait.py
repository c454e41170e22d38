"""A save that no phase was told of: the fold knows it for one, and a trainer that names no phases loses nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal
from resumekit.base.errors import KitError
from resumekit.run import throughput
from resumekit.run.journal_fold import fold, measured_speed
from resumekit.run.run_folder import open_run
from resumekit.run.state_types import is_sound
from resumekit.run.status import current
from resumekit.run.throughput import is_saving
from resumekit.trainer import saving
from resumekit.watch import rules
from resumekit.watch.rules import SICK, WARNING, Finding, Limits, Observation
from support.checkpoint_tools import IO_ERROR, failing, os_calls, quiet, save_steps, small_model
from support.journal_events import event
from support.places import ROOT
from support.processes import DEADLINE_S
from support.runs import events
from support.schemas import assert_valid

MINUTE = 60.0
SHORT = Limits(hang_minutes=5, save_minutes=30)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_new_process: None) -> Path:
    folder = tmp_path / "T-1_x_20260101-0000"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(folder))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", folder.name)
    return folder


def steps(first: int, last: int, from_s: float, step_s: float = 1.0, **fields: Any) -> Iterator[dict[str, Any]]:
    for number in range(first, last + 1):
        loss = 0.5 + 0.01 * (number % 7)
        yield event("step", from_s + (number - first + 1) * step_s, step=number, loss=loss, **fields)


def saved(step: int, mono_s: float, **fields: Any) -> dict[str, Any]:
    return event("checkpoint", mono_s, step=step, path="checkpoints/a.pt", sha256="0" * 64, size=1, **fields)


def after(told: list[dict[str, Any]], now_s: float, limits: Limits = SHORT) -> list[Finding]:
    state = fold({}, [event("launched", 0.0), *told])
    assert is_sound(json.loads(json.dumps(state, allow_nan=False)))
    return rules.findings(state, limits, Observation(now_s, "running"))


def sick(found: list[Finding]) -> list[str]:
    return [one.cause for one in found if one.verdict == SICK]


BEGUN = [*steps(1, 100, 0.0), event("saving", 100.5, step=100)]


@pytest.mark.fault("B16", by="save_checkpoint journals `saving`; rules.py: save_minutes until it is over")
def test_a_save_may_take_longer_than_the_hang_limit_and_what_follows_begins_anew() -> None:
    assert sick(after(BEGUN, 100.5 + 29 * MINUTE)) == []
    (found,) = after(BEGUN, 100.5 + 31 * MINUTE)
    assert (found.cause, found.since_s) == ("hang", 100.5)
    assert found.evidence == "no step since step 100, for 31 min (limit 30 min); a save is under way"
    over_s = 100.5 + 20 * MINUTE
    done = [*BEGUN, saved(100, over_s)]
    assert sick(after(done, over_s + 4 * MINUTE)) == []
    assert sick(after(done, over_s + 6 * MINUTE)) == ["hang"]


def test_a_save_has_no_shorter_limit_than_a_step() -> None:
    """Who raised hang_minutes because of long saves goes on as before; so does who tells a step an hour."""
    assert sick(after(BEGUN, 100 * MINUTE, Limits(hang_minutes=120, save_minutes=30))) == []
    hourly = [*steps(1, 20, 0.0, 3600.0), event("saving", 72001.0, step=20)]
    assert sick(after(hourly, 72001.0 + 4 * 3600)) == []


def test_a_failed_save_is_over_too() -> None:
    failed = event("warning", 110.0, kind="save_failed", message="no space")
    assert sick(after([*BEGUN, failed], 110.0 + 6 * MINUTE)) == ["hang"]


def test_a_file_that_the_sidecar_finds_ends_no_save() -> None:
    assert sick(after([*BEGUN, saved(90, 110.0, writer="sidecar")], 20 * MINUTE)) == []


def test_a_trainer_of_which_no_step_is_seen_is_never_stopped_because_it_saves() -> None:
    """`tells_phases` would make of it one that names what it does, and so one that hangs."""
    told = [event("saving", 1.0, step=0), saved(0, 2.0)]
    assert [(one.cause, one.verdict) for one in after(told, 60 * MINUTE)] == [("unseen", WARNING)]
    assert [(one.cause, one.verdict) for one in after(told[:1], 60 * MINUTE)] == [("unseen", WARNING)]
    assert "tells_phases" not in fold({}, told)


def test_an_evaluation_in_which_it_saves_stays_one() -> None:
    told = [*steps(1, 100, 0.0), event("phase", 100.0, phase="full_eval"), event("saving", 110.0, step=100)]
    whole = [*told, saved(100, 110.0 + 10 * MINUTE)]
    limits = SHORT._replace(eval_minutes=40)
    for one in (told, whole):
        assert sick(after(one, 100 + 39 * MINUTE, limits)) == []
        assert sick(after(one, 100 + 41 * MINUTE, limits)) == ["eval"]
    gone_on = fold({}, [*whole, event("phase", 1000.0, phase="train"), *steps(101, 200, 1000.0)])
    assert measured_speed(gone_on) == pytest.approx(1.0)


def test_a_step_of_the_trainer_itself_says_that_it_trains_on() -> None:
    """Saved in a thread, or broken off by an exception that the trainer got over: no step is a hang again."""
    told = [*BEGUN, *steps(101, 101, 100.5)]
    assert not is_saving(fold({}, told))
    assert sick(after(told, 101.5 + 6 * MINUTE)) == ["hang"]


def test_a_step_that_is_read_out_of_the_log_may_come_late() -> None:
    late = [*steps(1, 99, 0.0, source="log"), BEGUN[-1], event("step", 101.0, step=100, loss=0.5, source="log")]
    assert sick(after(late, 101.0 + 20 * MINUTE)) == []
    beat = [event("heartbeat", 50.0, global_step=50), BEGUN[-1], event("heartbeat", 165.0, global_step=100)]
    assert sick(after(beat, 165.0 + 20 * MINUTE)) == []
    beside = [*late, *steps(101, 200, 101.0, source="log")]  # in a thread: a minute later there is no doubt
    assert not is_saving(fold({}, beside))


@pytest.mark.parametrize("source", [{}, {"source": "log"}], ids=["told", "log"])
def test_the_time_of_a_save_is_no_training(source: dict[str, str]) -> None:
    """A step a second, and of every hundred seconds a save takes fifty; a log tells the last step late."""
    told, now_s = [], 0.0
    for first in range(1, 3001, 100):
        *before, last = steps(first, first + 99, now_s, **source)
        now_s += 100.0
        begins = event("saving", now_s + 0.001, step=first + 99)
        told += [*before, *([begins, {**last, "mono_s": now_s + 0.2}] if source else [last, begins])]
        now_s += 50.0
        told.append(saved(first + 99, now_s))
    state = fold({}, told)
    assert measured_speed(state) == pytest.approx(1.0, rel=0.02)
    assert throughput.baseline(state["pace"]) == pytest.approx(1.0, rel=0.05)
    assert is_sound(json.loads(json.dumps(state)))


def test_steps_told_every_fifty_right_before_a_save_still_have_a_speed() -> None:
    """The log is read when the save has begun already, each time: none of them may be lost."""
    told, now_s = [], 0.0
    for number in range(50, 3001, 50):
        now_s += 50.0
        told += [
            event("saving", now_s + 0.001, step=number),
            event("step", now_s + 0.2, step=number, loss=0.5 + now_s % 7, source="log"),
            saved(number, now_s + 10.0),
        ]
        now_s += 10.0
    assert throughput.baseline(fold({}, told)["pace"]) == pytest.approx(1.0, rel=0.05)


def test_a_save_is_told_before_it_begins_and_is_valid(run_dir: Path) -> None:
    save_steps(run_dir / "checkpoints", 5)
    assert [one["event"] for one in events(run_dir)] == ["saving", "checkpoint"]
    assert events(run_dir, "saving")[0]["step"] == 5
    for one in events(run_dir):
        assert_valid("event", one)


def test_telling_it_costs_no_flush_to_the_disk(run_dir: Path) -> None:
    counted: list[str] = []
    with os_calls(lambda _k, name, _arguments: counted.append(name), ("fsync",)):
        journal.append(run_dir / "journal.jsonl", "saving", "r", step=5)
    assert counted == []


def test_a_save_that_fails_is_over(run_dir: Path) -> None:
    model, optimizer = small_model()
    with os_calls(failing(IO_ERROR, "fsync")):
        assert (
            saving.save_checkpoint(run_dir / "checkpoints", 5, model=model, optimizer=optimizer, log_fn=quiet) is None
        )
    state = fold({}, events(run_dir))
    assert not is_saving(state) and state["warnings"] == 1


def test_a_save_that_is_refused_is_forgotten_with_the_next_one(run_dir: Path) -> None:
    model, _ = small_model()
    with pytest.raises(KitError):
        saving.save_checkpoint(run_dir / "checkpoints", 5, model=model, extra={"a": object()}, log_fn=quiet)
    assert is_saving(fold({}, events(run_dir)))
    save_steps(run_dir / "checkpoints", 6)
    assert not is_saving(fold({}, events(run_dir)))


@pytest.mark.fault("B16", by="saving.py journals `saving`; throughput.py; rules.py: save_minutes while it lasts")
@pytest.mark.parametrize(("save_minutes", "expected"), [(1.0, set()), (0.3 / 60, {"hang"})])
def test_a_real_save_on_a_slow_disk_that_the_trainer_does_not_tell_of(
    run_dir: Path, save_minutes: float, expected: set[str]
) -> None:
    """A hang is called after 0.3 s here, the save takes 1 s; the trainer tells its steps in its log alone."""
    limits = Limits(hang_minutes=0.3 / 60, save_minutes=save_minutes)
    found: list[set[str]] = []
    is_late, is_seen = threading.Event(), threading.Event()

    def watch() -> None:
        is_late.wait()
        state = fold({}, (one for one, _ in journal.read(run_dir / "journal.jsonl")))
        causes = rules.findings(state, limits, Observation(time.monotonic(), "running"))
        found.append({one.cause for one in causes if one.verdict == SICK})
        assert current(open_run(run_dir))["phase"] == "checkpoint"
        is_seen.set()

    def slow(_k: int, name: str, _arguments: object) -> None:
        if name == "fsync" and not is_late.is_set():
            time.sleep(1.0)
            is_late.set()
            assert is_seen.wait(DEADLINE_S)

    journal.append(run_dir / "journal.jsonl", "launched", "r")
    for step in range(1, 6):
        journal.append(run_dir / "journal.jsonl", "step", "r", step=step, loss=0.5 + step / 100, source="log")
    watcher = threading.Thread(target=watch)
    watcher.start()
    with os_calls(slow):
        assert save_steps(run_dir / "checkpoints", 5)[0] is not None
    watcher.join()
    assert found == [expected]
    assert current(open_run(run_dir))["phase"] == "train"


def test_the_documents_name_the_event() -> None:
    assert "`saving`" in (ROOT / "docs" / "watch.md").read_text()
