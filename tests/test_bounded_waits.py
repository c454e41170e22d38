"""Every wait has an end, also when what it waits for never comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import events
from resumekit.basics import processes
from resumekit.recovery import attention


@pytest.mark.fault("E7", by="processes.py: kill_session ends after its time")
def test_a_session_that_no_kill_ends_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in uninterruptible sleep: KILL is sent and nothing comes of it."""
    sleeper = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(300)"], start_new_session=True,
        env={**os.environ, processes.TOKEN_VARIABLE: "a" * 32},
    )  # fmt: skip
    left: list[int] = []
    try:
        known = processes.identify(sleeper.pid, "a" * 32)
        assert known is not None and processes.session_members(known)
        monkeypatch.setattr(processes, "send", lambda *_: True)
        killing = threading.Thread(target=lambda: left.append(processes.kill_session(known, 0.2)), daemon=True)
        killing.start()
        killing.join(timeout=10)
        assert left == [1]
    finally:
        sleeper.kill()
        sleeper.wait()


def test_whoever_is_told_of_a_run_and_never_answers_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "NOTIFY_S", 0.2)
    settings = {("notify", "command"): ["sleep", "15"]}
    run = SimpleNamespace(
        run_id="T-1", record={}, setting=lambda *key: settings.get(key),
        paths=SimpleNamespace(journal=tmp_path / "journal.jsonl"),
    )  # fmt: skip
    began = time.monotonic()
    attention._notify(run, {"event": "recovery"})
    assert time.monotonic() - began < 10
    (warned,) = events(tmp_path, "warning")
    assert warned["kind"] == "notify_failed" and "did not end within" in warned["message"]
