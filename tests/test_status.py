"""The status of a run: resumekit.run.status, schemas/status.schema.json, schemas/event.schema.json."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import processes
from resumekit.base.paths import RunPaths
from resumekit.base.processes import ALIVE, DEAD, UNKNOWN
from resumekit.run import run_end, status
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run
from resumekit.run.status import View
from support import schema_examples
from support.commands import Kit
from support.places import ROOT
from support.processes import wait_until
from support.schemas import assert_valid

LAUNCHED = {
    "launched": {"trainer": None, "shim": None, "launcher": None, "at": None, "mono_s": 1.0},
    "phase": "startup",
}
STEPPED = fold(LAUNCHED, [{"event": "step", "step": 40, "mono_s": 3.0, "at": "2026-11-22T17:35:51.123456Z"}])
STOPPED = {**STEPPED, "stopped": {"by": "TERM", "at": None}}


def end(code: int, signal: int | None = None) -> dict[str, Any]:
    return {"code": code, "signal": signal}


@pytest.mark.parametrize(
    ("state", "trainer", "launcher", "ended", "name"),
    [
        ({}, UNKNOWN, ALIVE, None, "starting"),
        ({}, UNKNOWN, DEAD, None, "never_started"),
        ({}, UNKNOWN, UNKNOWN, None, "never_started"),
        ({}, UNKNOWN, ALIVE, end(1), "failed"),  # the journal could not be written, the end could
        (LAUNCHED, ALIVE, ALIVE, None, "starting"),
        (STEPPED, ALIVE, ALIVE, None, "running"),
        (STEPPED, UNKNOWN, ALIVE, None, "running"),  # another host, or one we may not look at: not dead
        (STEPPED, UNKNOWN, UNKNOWN, None, "running"),
        (STEPPED, ALIVE, DEAD, None, "unsupervised"),
        (STEPPED, DEAD, ALIVE, None, "lost"),
        (STEPPED, DEAD, DEAD, None, "lost"),
        (STEPPED, DEAD, ALIVE, end(0), "ended_early"),  # `sys.exit(256)` is 0 too
        ({**STEPPED, "step": 100}, DEAD, ALIVE, end(0), "finished"),
        ({**STEPPED, "step": 101}, DEAD, DEAD, end(0), "finished"),
        (LAUNCHED, DEAD, ALIVE, end(0), "ended_early"),  # it did nothing that could be seen
        ({**LAUNCHED, "last_checkpoint_step": 90}, DEAD, ALIVE, end(0), "finished"),  # it tells saves, not steps
        (STEPPED, DEAD, ALIVE, end(1), "failed"),
        ({**STEPPED, "step": 100}, DEAD, ALIVE, end(3), "failed"),
        (STEPPED, DEAD, ALIVE, end(137, 9), "failed"),
        (STEPPED, DEAD, ALIVE, end(143), "stopped"),  # a TERM from elsewhere; it saved
        (STEPPED, DEAD, ALIVE, end(143, 15), "stopped"),  # it did not
        (STEPPED, DEAD, ALIVE, end(130, 2), "stopped"),  # what Python makes of KeyboardInterrupt
        (STEPPED, DEAD, ALIVE, {**end(1), "by": "TERM"}, "stopped"),  # torchrun
        ({**STEPPED, "stopped": {"by": "USR1"}}, DEAD, ALIVE, end(143), "preempted"),
        ({**STEPPED, "stopped": {"by": "USR1"}}, DEAD, DEAD, None, "preempted"),
        (STOPPED, DEAD, ALIVE, end(143), "stopped"),
        (STOPPED, DEAD, ALIVE, end(0), "stopped"),
        (STOPPED, DEAD, ALIVE, end(137, 9), "stopped"),
        ({**STOPPED, "step": 100}, DEAD, ALIVE, end(0), "finished"),  # it had the last step already
    ],
)
def test_the_state_has_a_name(state: dict, trainer: str, launcher: str, ended: dict | None, name: str) -> None:
    assert status.state_of(state, View(trainer, launcher, ended, 0.0), 100) == name


@pytest.mark.parametrize(
    ("ended", "name"),
    [(end(143), "preempted"), (end(130, 2), "preempted"), (end(137, 9), "failed"), (end(1), "failed")],
)
def test_in_a_scheduler_s_job_a_stop_that_no_person_asked_for_is_the_scheduler_s(ended: dict, name: str) -> None:
    assert status.state_of(STEPPED, View(DEAD, ALIVE, ended, 0.0), 100, is_in_a_job=True) == name
    assert status.state_of(STOPPED, View(DEAD, ALIVE, ended, 0.0), 100, is_in_a_job=True) == "stopped"


def test_a_code_of_a_stop_may_be_an_incident_on_a_host_with_a_memory_guard() -> None:
    view = View(DEAD, ALIVE, end(143, 15), 0.0)
    assert status.state_of(STEPPED, view, 100, incident_codes=frozenset({143})) == "failed"
    assert status.state_of(STOPPED, view, 100, incident_codes=frozenset({143})) == "stopped"


def test_a_trainer_whose_steps_cannot_be_seen_and_that_was_stopped_has_not_finished() -> None:
    """It saves and exits with 0 on TERM: the next command must go on with it, not call it done."""
    view = View(DEAD, ALIVE, end(0), 0.0)
    assert status.state_of({**LAUNCHED, "stopped": {"by": "TERM"}}, view, None, shows_steps=False) == "stopped"
    assert status.state_of(LAUNCHED, view, None, shows_steps=False) == "finished"


def test_a_trainer_whose_steps_cannot_be_seen_is_running_when_it_is_there() -> None:
    view = View(ALIVE, ALIVE, None, 0.0)
    assert status.state_of(LAUNCHED, view, 100, shows_steps=False) == "running"
    assert status.state_of({**LAUNCHED, "phase": "train"}, view, 100) == "running"


def make_run(tmp_path: Path, config: Any, record: Any = None) -> Run:
    run_dir = tmp_path / "EXP-01_x"
    run_dir.mkdir(exist_ok=True)
    paths = RunPaths(run_dir)
    paths.resolved_json.write_text(json.dumps(config))
    return Run(paths, {"run_id": "EXP-01_x"} if record is None else record)


def steps_at_two_per_second(last: int) -> dict[str, Any]:
    events = [{"event": "step", "step": last - 20 + i, "mono_s": 100 + i / 2} for i in range(21)]
    return fold(LAUNCHED, events)


def test_etas_count_from_the_speed_since_the_resume_point(tmp_path: Path) -> None:
    config = {"training": {"max_steps": 50_000}, "validation": {"fast_eval_every": 2000, "full_eval_every": 10_000}}
    seen = status.observe(make_run(tmp_path, config), steps_at_two_per_second(40_500), View(ALIVE, ALIVE, None, 1e9))
    assert (seen["steps_per_sec"], seen["eta_s"]) == (2.0, 4750.0)
    assert (seen["eta_fast_eval_s"], seen["eta_full_eval_s"]) == (750.0, 4750.0)
    assert seen["eta_at"] == "2001-09-09T03:05:50.000000Z"
    assert_valid("status", seen)


def test_an_eta_counts_to_the_total_of_the_log_where_the_config_has_none(tmp_path: Path) -> None:
    told = {"event": "step", "step": 501, "mono_s": 111, "source": "log", "max_steps": 1000, "loss": 0.5, "lr": 3e-4}
    state = fold(LAUNCHED, [{**told, "step": 481 + i, "mono_s": 100 + i / 2} for i in range(20)] + [told])
    seen = status.observe(make_run(tmp_path, {"training": {}}), state, View(ALIVE, ALIVE, None, 1e9))
    assert (seen["max_steps"], seen["eta_s"], seen["lr"]) == (1000, pytest.approx(499 / seen["steps_per_sec"]), 3e-4)
    assert_valid("status", seen)
    assert status.state_of(state, View("dead", ALIVE, {"code": 0}, 0.0), None) == "finished", "a total is no order"


@pytest.mark.parametrize("value", ["12", -1, 1e30, True, [1], {"a": 1}, 10**400, None, "a[$(touch canary)]", 0])
def test_no_type_in_a_run_folder_is_trusted(tmp_path: Path, value: Any) -> None:
    """Another user's folder is shown, whatever is in it: no crash, nothing run, a valid status."""
    keys = (
        "max_steps",
        "fast_eval_every",
        "full_eval_every",
        "name",
        "log_patterns",
        "log_format",
        "metrics_file",
        "loads_with_kit",
    )
    config = {name: dict.fromkeys(keys, value) for name in ("training", "validation", "optimizer", "trainer")}
    record = dict.fromkeys(("run_id", "parent_run_id", "parent_step", "config_hash", "launcher"), value)
    run = make_run(tmp_path, config, {**record, "experiment": "EXP-01"})
    run.paths.journal.write_text(
        json.dumps({"event": "launched", "trainer": value, "at": value, "mono_s": value}) + "\n"
    )
    run.paths.exit_json.write_text(json.dumps({"code": value, "signal": value}))
    run.paths.sidecar_state.write_text(
        json.dumps({"run_id": run.run_id, "state": {"step": value}, "journal_offset": 0, "journal_tail": ""})
    )
    assert_valid("status", status.current(run))
    for broken in (value, {"training": value}, [value]):
        run.paths.resolved_json.write_text(json.dumps(broken))
        assert_valid("status", status.current(Run(run.paths, run.record)))


def test_a_saved_state_of_another_run_or_of_wrong_types_is_folded_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path, {})
    run.paths.journal.write_text(json.dumps({"event": "step", "step": 7, "mono_s": 1.0}) + "\n")
    sound = {"events": 1}
    for saved in (
        {"run_id": "another", "state": sound, "journal_offset": 1, "journal_tail": "{"},
        {"run_id": run.run_id, "state": {"step": "9"}, "journal_offset": 1, "journal_tail": "{"},
        {"run_id": run.run_id, "state": sound, "journal_offset": 10**6, "journal_tail": None},
        {"run_id": run.run_id, "state": sound, "journal_offset": "1", "journal_tail": "{"},
        {"run_id": run.run_id, "state": sound, "journal_offset": 20, "journal_tail": "of a journal that was lost"},
        ["no", "dict"],
    ):
        run.paths.sidecar_state.write_text(json.dumps(saved))
        assert status.read_state(run)["step"] == 7


def test_processes_are_looked_at_before_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round, a trainer that ends between the two would look lost."""
    run, order = make_run(tmp_path, {}), []
    monkeypatch.setattr(processes, "probe", lambda identity: order.append("probe") or DEAD)
    monkeypatch.setattr(run_end, "read", lambda run: order.append("end") or end(0))
    status.look(run, LAUNCHED)
    assert order.index("end") > order.index("probe")


def test_a_live_shim_says_that_the_end_is_being_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"host": processes.host_name(), "boot_id": processes.boot_id()}
    who = {**where, "start_ticks": 1, "token": None}
    launched = {"trainer": {**who, "pid": 70}, "shim": {**who, "pid": 71}, "launcher": None, "at": None, "mono_s": 1.0}
    monkeypatch.setattr(processes, "probe", lambda known: ALIVE if known and known.pid == 71 else DEAD)
    assert status.look(make_run(tmp_path, {}), {"launched": launched}).trainer == ALIVE


def test_the_order_of_the_keys_is_the_schema_s(tmp_path: Path) -> None:
    """Protocol §3's fields first: a person reads the file from its top."""
    schema = json.loads((ROOT / "schemas" / "status.schema.json").read_text())
    seen = status.observe(make_run(tmp_path, {}), {}, View(UNKNOWN, UNKNOWN, None, 0.0))
    assert list(seen) == list(schema["properties"]) == schema["required"]


@pytest.mark.parametrize("schema", ["status", "event", "plan"])
def test_the_examples_beside_a_schema_are_judged_as_their_names_say(schema: str) -> None:
    names = schema_examples.names(schema)
    assert {name.partition("-")[0] for name in names} == {"valid", "invalid"}
    for name in names:
        value = schema_examples.case(schema, name)
        if schema_examples.is_valid(name):
            assert_valid(schema, value)
        else:
            with pytest.raises(AssertionError):
                assert_valid(schema, value)


@pytest.mark.parametrize("schema", ["status", "event"])
def test_every_property_is_described_and_its_examples_are_valid(schema: str) -> None:
    import jsonschema

    document = json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text())
    groups = [document["properties"], *(branch["then"]["properties"] for branch in document.get("allOf", []))]
    for properties in groups:
        for name, rule in properties.items():
            assert rule["description"].endswith((".", ")")), name
            for example in rule.get("examples", []):
                jsonschema.validate(example, rule)


@pytest.mark.usefixtures("valid_records")
def test_a_reader_of_a_running_run_sees_whole_files_only(kit: Kit) -> None:
    kit.config("--delay", "0.02", status={"interval_s": 1}, training={"max_steps": 100})
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until((run / "status.json").exists, "a first status")
    states, reads = [], 0
    while process.poll() is None:
        seen = kit.status(run)
        assert_valid("status", seen) if reads % 50 == 0 else None
        states.append(seen["state"])
        reads += 1
        time.sleep(0.002)
    assert kit.status(run)["state"] == "finished"
    order = ["starting", "running", "finished"]
    assert sorted(states, key=order.index) == states and "running" in states
    process.communicate()


@pytest.mark.fault("F2", by="status.py: a temp file and a rename")
def test_of_a_trainer_whose_steps_are_not_read_the_last_checkpoint_tells_the_step() -> None:
    steps = (
        {"step": 7},
        {"last_checkpoint_step": 50},
        {"step": 25, "last_checkpoint_step": 50},
        {"step": 60, "last_checkpoint_step": 50},
    )
    assert [status._last_step(one) for one in steps] == [7, 50, 50, 60]
