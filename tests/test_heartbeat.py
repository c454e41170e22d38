"""The heartbeat and the guarded output: they tell what they can, and never hurt the training."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.trainer.heartbeat import FIELDS, heartbeat_writer, make_status_payload
from resumekit.trainer.trainer_env import GuardedRaw, journal_event, lineage
from support.checkpoint_tools import NO_SPACE, failing, os_calls
from support.places import LIB


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESUMEKIT_RUN_DIR", "RESUMEKIT_RUN_ID", "RESUMEKIT_CONFIG_HASH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "T-1_x")
    return tmp_path


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().split("\n") if line]


def python(program: str, *arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a process of its own, the kit last on its path."""
    head = f"import sys; sys.path.append({str(LIB)!r})\n"
    return subprocess.run([sys.executable, "-c", head + program, *arguments], timeout=60, **how)


def test_the_payload_has_the_protocols_fields_and_unknown_ones_are_none() -> None:
    payload = make_status_payload(global_step=5, mine=1)
    assert set(payload) == {*FIELDS, "mine"}
    assert {"run_id", "global_step", "steps_per_sec", "lr", "last_fast_eval_step", "last_full_eval_step",
            "best_eval_acc", "eta_s"} <= set(FIELDS)  # fmt: skip
    assert payload["global_step"] == 5 and payload["lr"] is None and payload["run_id"] is None


def test_without_the_kit_it_writes_the_status_file_at_once_then_regularly_and_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    step = 0
    write_status = heartbeat_writer(path, lambda: make_status_payload(global_step=step, loss=float("nan")), 0.05)
    assert json.loads(path.read_text())["global_step"] == 0
    step = 1
    assert write_status() is True
    first = json.loads(path.read_text())
    assert (first["global_step"], first["loss"]) == (1, "nan")
    end = time.monotonic() + 20
    while json.loads(path.read_text())["heartbeat_at"] == first["heartbeat_at"] and time.monotonic() < end:
        time.sleep(0.01)
    assert json.loads(path.read_text())["heartbeat_at"] > first["heartbeat_at"]
    step = 2
    write_status.close()
    assert json.loads(path.read_text())["global_step"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_under_the_kit_it_goes_into_the_journal_and_writes_no_file(run_dir: Path) -> None:
    write_status = heartbeat_writer(run_dir / "status.json", lambda: make_status_payload(global_step=7), 60)
    write_status.close()
    assert [(event["event"], event["global_step"], event["run_id"]) for event in events(run_dir)] == [
        ("heartbeat", 7, "T-1_x"),
        ("heartbeat", 7, "T-1_x"),
    ]
    assert not (run_dir / "status.json").exists()


def test_a_payload_that_fails_or_a_full_disk_only_skips_a_beat(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    state = {"fail": True}

    def payload() -> dict[str, Any]:
        if state["fail"]:
            raise ZeroDivisionError
        return {"global_step": 3}

    write_status = heartbeat_writer(path, payload, 60)
    assert write_status() is False and not path.exists()
    state["fail"] = False
    with os_calls(failing(NO_SPACE, "write")):
        assert write_status() is False
    assert write_status() is True and json.loads(path.read_text())["global_step"] == 3
    write_status.close()


def test_a_payload_that_hangs_hangs_neither_the_training_nor_its_end(tmp_path: Path) -> None:
    release, calls = threading.Event(), []

    def payload() -> dict[str, Any]:
        if threading.current_thread().name == "resumekit-heartbeat":  # the first beat is the caller's own
            calls.append(1)
            release.wait(30)
        return {}

    write_status = heartbeat_writer(tmp_path / "status.json", payload, 0.01)
    while not calls:
        time.sleep(0.005)
    started = time.monotonic()
    assert write_status() is False
    write_status.close()
    assert time.monotonic() - started < 10
    release.set()


def test_a_process_ends_with_its_heart_still_beating(tmp_path: Path) -> None:
    program = "from resumekit.trainer.heartbeat import *; heartbeat_writer(sys.argv[1], dict, 0.001); sys.exit(5)"
    assert python(program, str(tmp_path / "status.json")).returncode == 5


def test_an_event_is_journalled_under_the_kit_and_never_raises(run_dir: Path) -> None:
    journal_event("step", step=1, loss=float("nan"), lr=0.1)
    with os_calls(failing(NO_SPACE, "write")):
        journal_event("step", step=2)
    with os_calls(failing(errno.EIO, "open")):
        journal_event("step", step=3)
    assert [(event["step"], event["loss"], event["lr"]) for event in events(run_dir)] == [(1, "nan", 0.1)]


def test_without_the_kit_an_event_goes_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal_event("step", step=1)
    assert list(tmp_path.iterdir()) == []
    assert lineage() == {"run_id": None, "parent_run_id": None, "parent_step": None, "config_hash": None}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parent_run_id": 5, "parent_step": "3"}'])
def test_a_run_json_that_is_unusable_leaves_the_parent_unknown(run_dir: Path, content: str) -> None:
    (run_dir / "run.json").write_text(content)
    assert (lineage()["parent_run_id"], lineage()["parent_step"]) == (None, None)


GUARDED = "from resumekit.trainer.trainer_env import guard_output; guard_output(); "


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a14_a_full_disk_behind_stdout_changes_neither_the_training_nor_the_exit_code(
    tmp_path: Path, unbuffered: str
) -> None:
    program = GUARDED + (
        "print('x' * 100000); print('y', file=sys.stderr); sys.stdout.flush(); open(sys.argv[1], 'w').close(); "
        "print('z'); raise SystemExit(7)"
    )
    env = {**os.environ, "RESUMEKIT_RUN_DIR": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = python(program, str(tmp_path / "went on"), stdout=full, stderr=full, env=env)
        assert done.returncode == 7 and (tmp_path / "went on").exists()
        bare = python(program.replace(GUARDED, ""), str(tmp_path / "bare"), stdout=full, stderr=full, env=env)
    assert bare.returncode != 7 and not (tmp_path / "bare").exists()  # what would happen without the guard


def test_a_reader_that_went_away_or_stopped_reading_does_not_stop_the_training(tmp_path: Path) -> None:
    env = {**os.environ, "RESUMEKIT_RUN_DIR": str(tmp_path)}
    reader, writer = os.pipe()
    os.close(reader)
    assert python(GUARDED + "print('x' * 10**6); raise SystemExit(3)", stdout=writer, env=env).returncode == 3
    os.close(writer)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    assert python(GUARDED + "print('x' * 10**6); raise SystemExit(3)", stdout=writer, env=env).returncode == 3
    os.close(reader)
    os.close(writer)


def test_guarded_output_reaches_its_reader_byte_for_byte(tmp_path: Path) -> None:
    env = {**os.environ, "RESUMEKIT_RUN_DIR": str(tmp_path), "PYTHONUTF8": "1"}
    program = (
        GUARDED
        + "print('ü', end='\\r'); sys.stdout.buffer.write(b'\\x00\\xff\\n'); guard_output(); print(sys.stdout.isatty())"
    )
    for unbuffered in ("", "1"):
        done = python(program, stdout=subprocess.PIPE, env={**env, "PYTHONUNBUFFERED": unbuffered})
        assert sorted(done.stdout) == sorted("ü\r".encode() + b"\x00\xff\n" + b"False\n")


def test_without_the_kit_the_output_is_left_as_it_is() -> None:
    program = "before = sys.stdout; " + GUARDED + "print(sys.stdout is before)"
    env = {name: value for name, value in os.environ.items() if name != "RESUMEKIT_RUN_DIR"}
    assert python(program, stdout=subprocess.PIPE, env=env).stdout == b"True\n"


def test_what_was_dropped_is_counted() -> None:
    with open("/dev/full", "wb") as full:
        raw = GuardedRaw(full.fileno(), "full")
        assert raw.write(b"12345") == 5 and raw.dropped_bytes == 5
