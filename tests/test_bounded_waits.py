"""Every wait has an end, also when what it waits for never comes.

Each is made in a thread or process of its own: one without an end turns a test red here, it does not hang it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.base import claims, processes
from resumekit.base.errors import Busy
from resumekit.base.paths import RunPaths
from resumekit.process import stopping
from resumekit.watch import escalation
from support.places import LIB
from support.runs import events

TOKEN = "a" * 32
FAR_ABOVE_S = 10.0


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call comes to, its error if it has one; fail if it does not come to an end."""
    found: list[Any] = []

    def make() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(FAR_ABOVE_S)
    assert found, f"it has not ended within {FAR_ABOVE_S:.0f} s"
    return found[0]


@pytest.fixture
def sleeper() -> Iterator[processes.Identity]:
    """A live process that leads a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"], start_new_session=True,
        env={processes.TOKEN_VARIABLE: TOKEN},
    )  # fmt: skip
    known = processes.identify(process.pid, TOKEN)
    assert known is not None and processes.session_members(known)
    yield known
    process.kill()
    process.wait()


@pytest.mark.fault("E7", by="processes.py: kill_session ends after its time")
def test_a_session_that_no_kill_ends_is_given_up(sleeper: processes.Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in uninterruptible sleep: KILL is sent and nothing comes of it."""
    monkeypatch.setattr(processes, "send", lambda *_: True)
    assert outcome(lambda: processes.kill_session(sleeper, 0.2)) == 1


def test_a_process_that_does_not_end_is_waited_for_no_longer_than_was_said(sleeper: processes.Identity) -> None:
    assert outcome(lambda: processes.wait_for_end(sleeper, 0.2)) is False


@pytest.mark.fault("G13", by="stopping.py: KILL after the grace, to what is left")
def test_what_a_trainer_leaves_behind_has_until_the_end_of_the_grace(
    sleeper: processes.Identity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run: Any = SimpleNamespace(setting=lambda *_: 0.2, paths=RunPaths(tmp_path))
    monkeypatch.setattr(processes, "send", lambda *_: True)
    monkeypatch.setattr(processes, "wait_for_end", lambda *_: True)  # the trainer itself has gone
    killed: list[processes.Identity] = []
    monkeypatch.setattr(processes, "kill_session", lambda leader, _wait_s: killed.append(leader) or 0)
    assert outcome(lambda: stopping._end(run, sleeper, "TERM")) == 0
    assert killed == [sleeper]


def test_a_lock_that_is_never_let_go_is_given_up(tmp_path: Path) -> None:
    with claims.locked(tmp_path / "lock"):
        found = outcome(lambda: claims.locked(tmp_path / "lock", 0.2).__enter__())
    assert isinstance(found, Busy)


SLOW_LOOK = """
import sys, time
sys.path.append(sys.argv[1])
from resumekit.watch.inspection import TooSlow, time_limit
try:
    with time_limit(0.2):
        time.sleep(300)
except TooSlow:
    print("given up")
"""


@pytest.mark.fault("G9", by="inspection.py: time_limit")
def test_a_look_that_takes_too_long_is_given_up() -> None:
    """In a process of its own: the alarm comes to the main thread."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW_LOOK, str(LIB)], capture_output=True, text=True, timeout=FAR_ABOVE_S, check=False
    )
    assert done.stdout == "given up\n", done.stderr


def test_a_notify_command_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escalation, "NOTIFY_S", 0.2)
    run: Any = SimpleNamespace(
        run_id="T-1", record={}, setting=lambda *_: ["sleep", str(2 * FAR_ABOVE_S)],
        paths=SimpleNamespace(journal=tmp_path / "journal.jsonl"),
    )  # fmt: skip
    began = time.monotonic()
    escalation._notify(run, {"event": "recovery"})
    assert time.monotonic() - began < FAR_ABOVE_S
    (warned,) = events(tmp_path, "warning")
    assert warned["kind"] == "notify_failed" and "did not end within" in warned["message"]
