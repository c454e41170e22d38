"""What the watcher does about what it has seen: resumekit.watching.acting, and its passes one after the other."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import LIVE, ROOT, events, wait_until
from resumekit.basics import journal, processes
from resumekit.run_folder import listing, live_marker, status
from resumekit.run_folder.runs import open_run
from resumekit.watching import acting, watch
from test_watch import its_own_process_may_stand_for_a_trainer, journal_of, made

__all__ = ["its_own_process_may_stand_for_a_trainer"]  # a fixture, for every test of this file too
LOSS_OF_NOTHING = [("step", {"step": number, "loss": 0.0}) for number in range(1, 30)]


def live_run(runs_dir: Path, *events_of_it: Any) -> Path:
    """Make a live run of ours whose processes are this one."""
    config = json.dumps({"recover": {"enabled": False}}).encode()
    run = made(runs_dir, "T-1_run_20261122-1735", resolved_config_json=config)
    (runs_dir / LIVE / run.name).unlink()
    live_marker.make(runs_dir / LIVE / run.name)
    record = json.loads((run / "run.json").read_text())
    own = processes.identify(os.getpid())
    assert own
    (run / "run.json").write_text(json.dumps({**record, "launcher": own.as_fields()}))
    journal_of(run, *events_of_it)
    return run


@pytest.mark.fault("D7", by="acting.py: _note_warnings")
def test_a_kind_of_warning_is_journaled_once_however_often_it_is_seen(tmp_path: Path) -> None:
    run = live_run(tmp_path, *LOSS_OF_NOTHING)
    for _ in range(3):
        assert acting.act(tmp_path, watch.one_pass(tmp_path)) == []
    (warning,) = events(run, "warning")
    assert (warning["kind"], "exactly 0" in warning["message"]) == ("zero", True)
    assert "exactly 0" in status.current(open_run(run))["last_warning"]


@pytest.mark.fault("G9", by="acting.py: time_limit")
def test_one_run_that_does_not_answer_takes_no_more_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_run(tmp_path, *LOSS_OF_NOTHING)
    looks = watch.one_pass(tmp_path)

    def stuck(_run: Any) -> Any:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(acting, "LIMIT_S", 0.2)
    monkeypatch.setattr(acting.status, "read_state", stuck)
    (deed,) = acting.act(tmp_path, looks)
    assert (deed.words, deed.is_done) == ("nothing could be done within 0 s", False)


@pytest.mark.fault("G9", by="acting.py: a config that cannot be read now")
def test_a_config_that_cannot_be_read_for_a_moment_does_not_switch_recovery_off(tmp_path: Path) -> None:
    run = live_run(tmp_path)
    journal.append(run / "journal.jsonl", "exited", run.name, code=1, signal=None)
    end = {"code": 1, "signal": None, "pid": None, "at": None, "elapsed_s": 0}
    (run / "exit.json").write_text(json.dumps(end))
    (run / "resolved_config.json").rename(run / "away")
    acting.act(tmp_path, watch.one_pass(tmp_path))
    assert (tmp_path / LIVE / run.name).exists()


@pytest.mark.fault("G9", by="watching/command.py: said, and tried again in the next pass")
def test_a_watcher_outlives_what_keeps_it_from_looking(tmp_path: Path) -> None:
    (tmp_path / LIVE).write_text("a file, for a while")
    words = [str(ROOT / "bin" / "abort-watch.sh"), "--runs", str(tmp_path), "--every", "1"]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert b"tried again in 1 s" in process.stderr.readline()
            (tmp_path / LIVE).unlink()
            wait_until(lambda: b"0 live runs" in process.stderr.readline(), "a pass")
        finally:
            process.kill()


@pytest.mark.fault("F5", by="status.py: told: what says that it is of the future is of now")
def test_an_event_of_the_future_does_not_switch_off_what_goes_by_ages(tmp_path: Path) -> None:
    """A trainer that writes lines of its own, by another clock."""
    run = live_run(tmp_path, ("step", {"step": 1, "loss": 0.5}))
    line = {"event": "step", "at": "2099-01-01T00:00:00.000000Z", "run_id": run.name, "step": 2, "loss": 0.4}
    with open(run / "journal.jsonl", "a") as file:
        file.write(f"\n{json.dumps({**line, 'mono_s': time.monotonic() + 1e9})}\n")
    state = status.read_state(open_run(run))
    assert state["step"] == 2 and state["active_mono_s"] <= time.monotonic()


@pytest.mark.fault("G9", by="journal.py: what cannot be read now is no empty journal")
def test_a_journal_that_cannot_be_read_for_a_moment_is_no_run_without_a_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale handle of a network drive: nobody takes the marker away, and nobody starts a second trainer."""
    run = live_run(tmp_path, ("step", {"step": 1, "loss": 0.5}))
    os.utime(run / "run.json", (0, 0))
    real = os.open

    def stale(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith("journal.jsonl"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", stale)
    looks = watch.one_pass(tmp_path)
    assert [one.verdict for one in looks] == [watch.UNKNOWN] and acting.act(tmp_path, looks) == []
    assert (tmp_path / LIVE / run.name).exists()
    with pytest.raises(OSError):
        journal.newest(run / "journal.jsonl", "abort")
    assert open_run(run).has_started and listing.state_of(open_run(run))["state"] == "unknown"
