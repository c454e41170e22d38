"""The process beside the trainer: follows its output and its journal, writes train.log and status.json.

It is our `tee`: the trainer writes to a plain file and never waits for us. It may be killed at any moment; the next one
goes on where `.sidecar.json` says this one stood. It ends when the trainer's end is known and written down.

    python -I -S lib/resumekit_cli.py sidecar RUN_DIR [--echo]
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from . import journal, status
from .claims import try_lock
from .files import UnreadableFile, read_json, to_json, utc_now, write_atomic
from .log_follower import Echo, LogFollower
from .run_state import fold
from .runs import Run, open_run
from .witness import Witness

POLL_S = 0.1
PROBE_S = 1.0
# A grandchild may hold the output open and go on writing for ever.
LAST_LINES_S = 5.0


class Sidecar:
    """Holds the status lock of one run and keeps its views up to date until the trainer has ended."""

    def __init__(self, run: Run, *, has_echo: bool) -> None:
        self._run = run
        saved = _saved(run)
        self._state, self._journal_offset = status.saved_state(run)
        self._log = LogFollower(run, saved)
        self._witness = Witness(run)
        self._echo = Echo(run.paths.output_log, saved.get("echo_offset", 0)) if has_echo else None
        self._heartbeat_mtime = 0.0
        self._last_save = self._last_probe = self._last_status = float("-inf")
        self._shown_state: str | None = None

    def run_until_end(self) -> None:
        """Follow the run; return when its end is in journal, log and status."""
        if self._echo:
            self._echo.start()
        while True:
            end = status.read_end(self._run)
            self._beat()
            if end is not None or self._shown_state == "lost":
                break
            time.sleep(POLL_S)
        self._conclude(end)

    def _beat(self) -> None:
        for step in self._log.pump():
            if step["step"] > self._state.get("step", -1):  # a successor may see a line again
                self._append("step", **step)
        self._fold_heartbeat_file()
        self._fold_journal()
        now = time.monotonic()
        if now - self._last_probe >= PROBE_S:
            self._last_probe = now
            self._witness.look()
            self._show(now)
        if now - self._last_save >= PROBE_S:
            self._save(now)

    def _show(self, now: float, *, is_last: bool = False) -> None:
        """Write status.json if its interval is over or the state has changed; a full disk is tried again."""
        seen = status.observe(self._run, self._state, status.look(self._run, self._state))
        interval_s = self._run.setting("status", "interval_s", 60)
        if seen["state"] == self._shown_state and now - self._last_status < interval_s and not is_last:
            return
        with contextlib.suppress(OSError):
            status.write(self._run, seen)
            self._last_status = now
        self._shown_state = seen["state"]

    def _conclude(self, end: dict[str, Any] | None) -> None:
        for step in self._log.pump(deadline=time.monotonic() + LAST_LINES_S):
            if step["step"] > self._state.get("step", -1):
                self._append("step", **step)
        self._witness.look_last()
        self._fold_journal()
        if "exited" not in self._state:
            self._append("exited", **_exit_fields(end))
            self._log.close(f"resumekit: {end_words(end)}\n".encode())
            self._fold_journal()
        self._show(time.monotonic(), is_last=True)
        self._save(time.monotonic())
        if end is not None:
            self._run.paths.live_marker.unlink(missing_ok=True)
        if self._echo:
            self._echo.finish(LAST_LINES_S)

    def _append(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):
            journal.append(self._run.paths.journal, event, self._run.run_id, **fields)

    def _fold_journal(self) -> None:
        events = []
        for event, offset in journal.read(self._run.paths.journal, self._journal_offset):
            events.append(event)
            self._journal_offset = offset
        if events:
            self._state = fold(self._state, events)

    def _fold_heartbeat_file(self) -> None:
        """Take in heartbeat.json, where a trainer that knows nothing of the kit writes a status of its own."""
        path = self._run.paths.heartbeat_json
        try:
            mtime = os.stat(path).st_mtime
            if mtime == self._heartbeat_mtime:
                return
            self._heartbeat_mtime = mtime
            payload = read_json(path)
        except (OSError, UnreadableFile):
            return
        if isinstance(payload, dict) and payload.get("run_id") in (None, self._run.run_id):
            fields = {k: v for k, v in payload.items() if k not in ("event", "at", "mono_s", "run_id")}
            self._append("heartbeat", **fields)

    def _save(self, now: float) -> None:
        self._last_save = now
        account = {
            "run_id": self._run.run_id,
            "journal_offset": self._journal_offset,
            "state": self._state,
            "echo_offset": self._echo.offset if self._echo else 0,
            **self._log.account,
        }
        with contextlib.suppress(OSError):
            write_atomic(self._run.paths.sidecar_state, to_json(account, indent=None))


def main(run_dir: Path, *, has_echo: bool) -> int:
    """Run the sidecar of one run; 0 when its end is written down, or when another sidecar is at it already."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = open_run(run_dir)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(run.paths.status_lock, flags, 0o666)
    if not try_lock(lock):
        return 0
    Sidecar(run, has_echo=has_echo).run_until_end()
    sys.stdout = None  # its flush at exit may fail or block; there is nothing in it
    return 0


def end_words(end: dict[str, Any] | None) -> str:
    """Say how a trainer ended: 'ended (code 137; signal 9), elapsed 12.3 s'."""
    if end is None:
        return "ended, nobody saw how (its shim was killed too)"
    by_signal = f"; signal {end['signal']}" if end.get("signal") else ""
    elapsed_s = end.get("elapsed_s")
    elapsed = f", elapsed {elapsed_s:.1f} s" if isinstance(elapsed_s, (int, float)) else ""
    return f"ended (code {end['code']}{by_signal}){elapsed}, {utc_now()}"


def _exit_fields(end: dict[str, Any] | None) -> dict[str, Any]:
    fields = ("code", "signal", "elapsed_s", "pid")
    return {key: end.get(key) if end else None for key in fields}


def _saved(run: Run) -> dict[str, Any]:
    try:
        saved = read_json(run.paths.sidecar_state)
    except UnreadableFile:
        return {}
    return saved if isinstance(saved, dict) and saved.get("run_id") == run.run_id else {}
