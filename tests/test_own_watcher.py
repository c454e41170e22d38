"""The watcher that a launcher brings for its own run: what it finds, when it ends, and beside a second watcher."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.run import status
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.watch import acting, escalation, inspection
from resumekit.watch.rules import WARNING, Finding
from support.commands import Kit
from support.nights import Night
from support.processes import pids_about, wait_until
from support.runs import events
from support.watched_runs import live_run

EACH_SECOND = {"watch_every_s": 1, "hang_minutes": 0.05, "grace_s": 2}


@pytest.fixture
def night(weird_tmp_path: Path) -> Iterator[Night]:
    night = Night(weird_tmp_path)
    night.config("--delay", "0.02", abort=EACH_SECOND, training={"max_steps": 100_000})
    try:
        yield night
    finally:
        night.clean_up()


def watchers(night: Kit) -> list[int]:
    """Return the pids of the watchers that launchers have brought for runs of this folder."""
    return [pid for pid in pids_about(night.runs) if b"watch-own" in _words(pid)]


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_its_log_is_the_user_s_own_watcher_s(night: Night) -> None:
    night.config(
        "--delay",
        "0.02",
        "--at",
        "25",
        "hang",
        abort=EACH_SECOND,
        recover={"enabled": False},
        training={"max_steps": 60},
    )
    night("run", "T-1", code=None)
    (run,) = night.run_dirs()
    (log,) = (Path(night.env["XDG_STATE_HOME"]) / "resumekit" / "watch").glob("runs-*.log")
    said = [line for line in log.read_text().splitlines() if run.name in line]
    assert sum(f"{run.name}: stopping it: hang" in line for line in said) == 1


def test_a_run_without_the_interval_is_left_to_other_watchers(night: Night) -> None:
    night.config("--delay", "0.02", abort={**EACH_SECOND, "watch_every_s": None}, training={"max_steps": 100_000})
    run = night.start(steps=5)
    (launched,) = events(run, "launched")
    children = Path(f"/proc/{launched['launcher']['pid']}/task/{launched['launcher']['pid']}/children")
    assert len(children.read_text().split()) == 2, "the shim and the loop of the sidecar"


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_it_ends_with_its_launcher_however_that_ends(night: Night, name: str) -> None:
    run = night.start(steps=5)
    wait_until(lambda: watchers(night), "its first look")
    os.kill(night.who(run, "launcher"), signal.Signals[f"SIG{name}"])
    wait_until(lambda: not watchers(night), "it has ended")
    assert name == "TERM" or night.state(run) == "running", "the trainer goes on without its launcher"


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "USR2"])
def test_a_signal_to_all_processes_of_a_job_does_not_end_it(night: Night, name: str) -> None:
    night.start(steps=5)
    (watcher,) = wait_until(lambda: watchers(night), "its first look")
    os.kill(watcher, signal.Signals[f"SIG{name}"])
    # Of a signal that ends it nothing is pending or blocked; the mask of the ignored ones says that none of these does.
    ignored = next(line for line in Path(f"/proc/{watcher}/status").read_text().splitlines() if "SigIgn" in line)
    assert int(ignored.split()[1], 16) >> (signal.Signals[f"SIG{name}"] - 1) & 1
    assert watchers(night) == [watcher]


def test_one_that_was_killed_is_followed_by_another_one(night: Night) -> None:
    night.start(steps=5)
    (first,) = wait_until(lambda: watchers(night), "its first look")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: [pid for pid in watchers(night) if pid != first], "another one")


def test_a_paused_run_is_not_stopped_by_it(night: Night) -> None:
    night.config("--delay", "0.02", "--at", "25", "hang", abort=EACH_SECOND, training={"max_steps": 100_000})
    run = night.start(steps=5)
    (run / "paused").touch()
    wait_until(lambda: events(run, "step")[-1]["step"] == 25, "it hangs")
    night.watched_beyond_a_hang(EACH_SECOND["hang_minutes"])
    assert not events(run, "abort")
    (run / "paused").unlink()
    wait_until(lambda: events(run, "abort"), "it is stopped now")


def test_two_watchers_that_have_seen_the_same_write_a_warning_down_once(night: Night) -> None:
    """Each has read the journal before the other one wrote into it."""
    folder = night.start(steps=5)
    run = open_run(folder)
    state = status.read_state(run)
    look = inspection.Report(run.run_id, "running", WARNING, findings=(Finding("disk", WARNING, "no room"),))
    for _ in range(2):
        acting._note_warnings(run, state, look)
    assert [event["kind"] for event in events(folder, "warning")] == ["disk"]


def test_two_watchers_that_can_do_nothing_about_a_run_tell_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live_run(tmp_path, ("step", {"step": 1}))
    told: list[str] = []
    monkeypatch.setattr(escalation, "tell_of", lambda _run, _kind, message: told.append(message))
    for _ in range(2):
        escalation.escalate(open_run(run), RunTable(tmp_path), "its trainer is suspended")
    assert told == ["its trainer is suspended"] == [one["message"] for one in events(run, "warning")]
    later_s = time.monotonic() + escalation.TOLD_FOR_S
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    escalation.escalate(open_run(run), RunTable(tmp_path), "its trainer is suspended")
    assert len(told) == 2
