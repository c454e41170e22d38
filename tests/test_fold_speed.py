"""A journal of millions of events: the short way through the fold comes to what the rules come to, and is read once."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal, processes, terminal
from resumekit.process import sidecar
from resumekit.run import journal_fold, status, steps
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run
from resumekit.run.run_table import RunTable
from resumekit.run.state_types import is_sound
from resumekit.watch import acting, inspection, observe
from support.named_runs import made

AT = "2026-11-22T18:00:00.%06dZ"


def told(source: str | None, rng: random.Random, number: int) -> Iterator[dict[str, Any]]:
    """Yield the events of a run that mostly trains, with whatever else may stand between two steps."""
    step, mono_s = rng.randint(0, 50), 10.0
    yield {"event": "launched", "at": AT % 0, "mono_s": 5.0}
    if rng.random() < 0.5:
        yield {"event": "resumed", "step": step, "mono_s": 6.0, "lr_scale": 0.5}
    if rng.random() < 0.2:
        yield {"event": "phase", "phase": "warmup", "mono_s": 7.0}
    if rng.random() < 0.3:
        for early in range(3):  # told before the load
            yield {"event": "step", "at": AT % 0, "mono_s": 8.0 + early, "step": early, "loss": 0.5}
    total, oddness = rng.choice([None, None, 1000]), rng.choice([0.0, 0.02, 0.1])
    ways = rng.choice([[1], [1, 2], [1, 1, 1, 1, 10, 0]])
    for index in range(number):
        mono_s += rng.choice([0.001, 0.1, 0.1, 0.1, 2.0, 8.0]) * rng.random()
        step += rng.choice(ways)
        loss = rng.choice([0.5, rng.random(), 3])
        event = {"event": "step", "at": AT % index, "mono_s": mono_s, "step": step, "loss": loss, "lr": 0.1,
                 "epoch": index // 50, "steps_per_sec": rng.random()}  # fmt: skip
        if source:
            event |= {"source": source} | ({"step_total": total} if total else {})
        yield odd(event, rng) if rng.random() < oddness else event
        if rng.random() < 0.05:
            yield between(step, mono_s, rng)
        if rng.random() < 0.02:  # a save that nothing comes between
            yield {"event": "saving", "step": step, "mono_s": mono_s + 0.02}
            yield {"event": "checkpoint", "step": step, "mono_s": mono_s + 0.03, "size": 5, "finite": True}


def odd(event: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a step with one thing about it that is not as usual."""
    return event | rng.choice([
        {"loss": "nan"}, {"loss": -1.0}, {"loss": 1e31}, {"loss": None}, {"loss": 0}, {"loss": 1 << 60}, {"loss": True},
        {"step": event["step"] - 30}, {"step": event["step"] + 20_000}, {"step": "7"}, {"step": True}, {"step": 10**12},
        {"mono_s": 3}, {"mono_s": -1.0}, {"mono_s": event["mono_s"] + 400.0}, {"mono_s": None}, {"lr": "x"}, {"lr": 1},
        {"lr": float("inf")}, {"at": "yesterday"}, {"at": 7}, {"epoch": -1}, {"epoch": 1.5}, {"steps_per_sec": -2.0},
        {"source": "log"}, {"source": None}, {"step_total": 64}, {"step_total": 1000.0}, {"step_total": True},
    ])  # fmt: skip


def between(step: int, mono_s: float, rng: random.Random) -> dict[str, Any]:
    """Return an event that is no step."""
    return {"mono_s": mono_s + 0.01} | rng.choice([
        {"event": "saving", "step": step}, {"event": "checkpoint", "step": step, "size": 5, "finite": True},
        {"event": "checkpoint", "step": step, "writer": "witness"}, {"event": "phase", "phase": "fast_eval"},
        {"event": "phase", "phase": "train"}, {"event": "phase", "phase": "warmup"}, {"event": "eval", "kind": "fast"},
        {"event": "warning", "kind": "trainer_suspended"}, {"event": "warning", "kind": "clock_gap"},
        {"event": "warning", "kind": "save_failed"}, {"event": "heartbeat", "global_step": step + 1, "loss": 0.25},
        {"event": "nonfinite", "step": step, "what": "loss"}, {"event": "best", "step": step, "score": 0.5},
        {"event": "oom"}, {"event": "unknown"}, {"event": 7}, {},
    ])  # fmt: skip


@pytest.mark.parametrize("source", [None, "log"])
@pytest.mark.parametrize("seed", range(15))
def test_the_short_way_comes_to_the_state_that_the_rules_come_to(
    source: str | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list(told(source, random.Random(seed), 250))
    short = in_parts(events, seed)
    assert fold({}, events) == short[-1]
    monkeypatch.setattr(steps, "take_steady_step", lambda state, event: False)
    assert in_parts(events, seed) == short and is_sound(short[-1])


def in_parts(events: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Fold events in parts; return the state after each, and see that the given one stays as it is."""
    states, rng = [{}], random.Random(seed)
    while events:
        size = rng.randint(1, 9)
        before = copy.deepcopy(states[-1])
        states.append(fold(states[-1], events[:size]))
        assert states[-2] == before
        events = events[size:]
    return states


@pytest.mark.parametrize("more", [{}, {"source": "log"}, {"source": "log", "step_total": 10**6}])
def test_nearly_every_step_of_a_training_takes_the_short_way(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_rules = []
    rule = journal_fold._FOLDS["step"]
    monkeypatch.setitem(
        journal_fold._FOLDS, "step", lambda state, event: by_the_rules.append(event) or rule(state, event)
    )
    events = [{"event": "launched", "at": AT % 0, "mono_s": 1.0}]
    for step in range(1, 5001):
        events.append({"event": "step", "at": AT % step, "mono_s": 2.0 + step, "step": step, "loss": 1 / step, **more})
        if step % 100 == 0:
            events.append({"event": "saving", "mono_s": 2.1 + step, "step": step})
            events.append({"event": "checkpoint", "mono_s": 2.2 + step, "step": step, "size": 7, "finite": True})
    state = fold({}, events)
    assert state["step"] == 5000 and state["events"] == len(events)
    assert len(by_the_rules) <= 2 + 50


def long_run(runs: Path, run_id: str = "T-1_a_1", steps: int = 300, **record: Any) -> Run:
    """Make a run of so many journaled steps that no sidecar has read."""
    run = made(runs, run_id, "a")
    run.record.update(record)
    with open(run.paths.journal, "w", encoding="ascii") as file:
        file.write('\n{"event":"launched","mono_s":1.0}\n')
        for step in range(steps):
            file.write(f'\n{{"event":"step","mono_s":{step + 2}.0,"step":{step},"loss":0.5}}\n')
    return run


@pytest.fixture
def read_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The byte offsets from which journals are read from now on; whatever is folded is kept."""
    begun: list[int] = []
    read = journal.read
    monkeypatch.setattr(status, "KEPT_BYTES", 1)
    monkeypatch.setattr(status, "_folded", {})
    monkeypatch.setattr(status.journal, "read", lambda path, offset=0: begun.append(offset) or read(path, offset))
    return begun


def test_a_command_folds_a_long_journal_once_and_goes_on_from_there(tmp_path: Path, read_from: list[int]) -> None:
    run = long_run(tmp_path)
    first = status.read_state(run)
    whole = run.paths.journal.stat().st_size
    assert status.read_state(run) == first and read_from == [0, whole]
    with open(run.paths.journal, "a", encoding="ascii") as file:
        file.write('\n{"event":"step","mono_s":400.0,"step":300,"loss":0.25}\n')
    assert status.read_state(RunTable(tmp_path).get(run.run_id))["step"] == 300 and read_from[-1] == whole


def test_what_was_folded_of_a_journal_that_lies_there_no_more_counts_nothing(
    tmp_path: Path, read_from: list[int]
) -> None:
    run = long_run(tmp_path)
    status.read_state(run)
    text = run.paths.journal.read_text().replace('"loss":0.5', '"loss":0.7')
    run.paths.journal.write_text(text)
    assert status.read_state(run)["loss"] == 0.7 and read_from == [0, 0]
    run.paths.journal.write_text(text[:400])
    assert status.read_state(run)["step"] < 10 and read_from[-1] == 0


def test_a_long_reading_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    run = long_run(tmp_path)
    status.read_state(run)
    assert not said, "nothing is said where no command has asked for it"
    monkeypatch.setattr(terminal, "progress", said.append)
    status.read_state(run)
    assert not said, "nor of a short one"
    monkeypatch.setattr(status, "PROGRESS_S", 0.0)
    monkeypatch.setattr(status, "PROGRESS_EVENTS", 100)
    status.read_state(run)
    assert len(said) == 3 and said[0].startswith("reading the journal of 'T-1_a_1': 3") and said[0].endswith(" MB")


def test_a_sidecar_without_an_account_folds_in_parts_and_keeps_account_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = long_run(tmp_path)
    monkeypatch.setattr(sidecar, "FOLDED_AT_ONCE", 100)
    monkeypatch.setattr(sidecar, "SAVE_S", 0.0)
    one = sidecar.Sidecar(run, has_echo=False)
    saved: list[int] = []
    monkeypatch.setattr(one, "_save", lambda now: saved.append(one._state["step"]))
    one._fold_journal()
    assert one._state == fold({}, (event for event, _ in journal.read(run.paths.journal)))
    assert saved == [98, 198, 298]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that a pass starts a sidecar for; every journal of theirs is too long for a look."""
    found: list[str] = []
    monkeypatch.setattr(status, "LONG_UNREAD_BYTES", 100)
    monkeypatch.setattr(acting.own_runs, "why_marked_run_is_not_own", lambda paths: None)
    monkeypatch.setattr(inspection.own_runs, "why_marked_run_is_not_own", lambda paths: None)
    monkeypatch.setattr(acting, "_start", lambda command, *more: found.append(Path(command[-1]).name))
    return found


def with_config(run: Run, **record: Any) -> None:
    run.paths.resolved_json.write_text('{"trainer": {}}')
    fields = {**run.record, "host": processes.host_name(), "boot_id": processes.boot_id(), **record}
    run.paths.run_json.write_bytes(sidecar.status.to_json(fields))
    os.utime(run.paths.run_json, (0, 0))


@pytest.mark.parametrize(
    ("record", "is_started"),
    [({}, True), ({"host": "another", "boot_id": "another"}, False), ({"pid_namespace": 1}, False)],
)
def test_the_watcher_starts_a_sidecar_for_a_journal_that_is_too_long_for_a_look(
    tmp_path: Path, started: list[str], record: dict[str, Any], is_started: bool
) -> None:
    with_config(long_run(tmp_path), **record)
    look = inspection.look_at(tmp_path, "T-1_a_1")
    assert (look.verdict, look.is_unread) == (inspection.UNKNOWN, True) and "is_unread" not in look.as_fields()
    deeds = acting._about(tmp_path, look)
    assert [deed.words for deed in deeds] == [
        "its journal has been read by no sidecar: one of its own does it now"
    ] * is_started
    assert started == ["T-1_a_1"] * is_started


def test_no_second_sidecar_is_started_while_one_is_at_it(tmp_path: Path, started: list[str]) -> None:
    run = long_run(tmp_path)
    with_config(run)
    with acting.claims.locked(run.paths.status_lock, 1.0):
        assert list(acting._about(tmp_path, inspection.look_at(tmp_path, run.run_id))) == [] and not started


def test_an_ancestor_whose_journal_is_too_long_keeps_no_look_from_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_run(tmp_path)
    child = made(tmp_path, "T-1_a_2", "a", parent="T-1_a_1", step=4)
    monkeypatch.setattr(status, "LONG_UNREAD_BYTES", 100)
    monkeypatch.setattr(observe.own_runs, "why_run_is_not_own", lambda paths: None)
    monkeypatch.setattr(observe.status, "read_state", lambda run: pytest.fail(f"{run.run_id} is read"))
    assert observe.lineage_speed(child, RunTable(tmp_path)) == (None, None)
