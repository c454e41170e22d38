"""Section F of the catalogue, status and sidecar: who is gone, what is torn, what is not to be believed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from conftest import events, wait_until
from faults.nights import Night, keeper_of, one, record

pytest_plugins = ["faults.night_fixtures"]


@pytest.mark.fault("F1", by="launcher.sh: kit_wait_for_last_lines; sidecar.py: the end, whoever writes it down")
def test_a_run_without_a_sidecar_under_a_living_launcher_is_written_down_at_its_end(warm_night: Night) -> None:
    warm_night.config("--delay", "0.02", training={"max_steps": 60})
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 12, "some steps")
    sidecar = wait_until(lambda: warm_night.sidecar(run), "its sidecar")
    os.kill(keeper_of(sidecar), signal.SIGKILL)
    os.kill(sidecar, signal.SIGKILL)
    os.kill(warm_night.who(run, "trainer"), signal.SIGKILL)
    child = warm_night.next_of(run)
    process.communicate(timeout=60)
    assert (one(run, "exited")["signal"], warm_night.state(run)) == (9, "failed")
    assert b"resumekit: ended (code 137; signal 9)" in (run / "logs" / "train.log").read_bytes().splitlines()[-1]
    assert one(run, "recovery")["child_run_id"] == child.name


@pytest.mark.fault("F1", by="acting.py: another sidecar for a run that nobody follows")
@pytest.mark.parametrize("has_launcher", [True, False])
def test_the_watcher_gives_a_run_that_nobody_follows_another_sidecar_and_stops_nobody(
    night: Night, has_launcher: bool
) -> None:
    night.config("--delay", "0.02", training={"max_steps": 100_000})
    run = night.start()
    if has_launcher:
        sidecar = wait_until(lambda: night.sidecar(run), "its sidecar")
        os.kill(keeper_of(sidecar), signal.SIGKILL)
        os.kill(sidecar, signal.SIGKILL)
    else:
        night.kill_launcher(run)
    wait_until(lambda: night.sidecar(run) is None, "nobody follows it")
    if has_launcher:
        assert "a sidecar" not in night.watch(code=0).stderr, "its launcher may be about to start one"
        for name in ("run.json", ".sidecar.json"):
            with_age(run / name, 120)
    assert "a sidecar of its own does now" in night.watch(code=0).stderr
    told = len(events(run, "step"))
    wait_until(lambda: len(events(run, "step")) > told + 10, "its steps are told again")
    assert "a sidecar" not in night.watch(code=0).stderr
    assert not events(run, "abort") and night.run_dirs() == [run]


def with_age(path: Path, age_s: float) -> None:
    if path.exists():
        seen = os.stat(path).st_mtime - age_s
        os.utime(path, (seen, seen))


@pytest.mark.fault("F1", by="acting.py: a sidecar for an end that nobody has written down")
def test_a_run_that_finished_while_nobody_looked_is_written_down_by_the_watchers_next_pass(night: Night) -> None:
    night.config("--delay", "0.02", training={"max_steps": 50})
    run = night.start()
    night.kill_launcher(run)
    wait_until((run / "exit.json").exists, "its end")
    assert night.state(run) != "finished"
    night.watch(code=0)
    wait_until(lambda: night.state(run) == "finished", "its status says so")
    assert one(run, "exited")["code"] == 0
    wait_until(lambda: not (night.runs / ".live" / run.name).exists(), "the marker is gone")
    assert record(run)["run_id"] == run.name
