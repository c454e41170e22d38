"""Follows a trainer's output: into train.log line by line, and onto the terminal as it is.

The trainer writes to a plain file and never waits for either of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from .files import utc_now
from .runs import Run
from .train_log import LineCleaner, stamp

POLL_S = 0.05
READ_BYTES = 256 * 1024
# How long a progress bar may run on one line before the log says how far it has come.
BAR_SNAPSHOT_S = 60.0
PREFIX_DIGITS = 12


class LogFollower:
    """Copies logs/output.log into logs/train.log, line by line, and keeps account of how far it has come."""

    def __init__(self, run: Run, saved: dict[str, Any]) -> None:
        self._run = run
        self._prefix = str(run.record.get("config_hash"))[:PREFIX_DIGITS].encode() + b" "
        self._patterns = _compiled(run.setting("trainer", "log_patterns", {}))
        self._cleaner = LineCleaner()
        self._read_offset, self._written = _offsets(run, saved)
        self._output = -1
        self._bar_since = time.monotonic()
        self._unwritten = b""
        # What a successor goes on from: all before these offsets is in train.log, nothing after them.
        self.account = {"output_offset": self._read_offset, "train_log_bytes": self._written}
        if not self._written:
            self._unwritten = stamp(head_lines(run), self._prefix)

    def pump(self, deadline: float | None = None) -> list[dict[str, Any]]:
        """Copy what has been written since; return the steps that `trainer.log_patterns` found in it.

        Args:
            deadline: monotonic time at which to stop though there is more.
        """
        steps: list[dict[str, Any]] = []
        while self._write() and (chunk := self._read()):
            lines = self._cleaner.feed(chunk)
            steps += found_steps(lines, self._patterns)
            self._unwritten += stamp(lines, self._prefix)
            if deadline is not None and time.monotonic() > deadline:
                break
        self._show_bar()
        self._write()
        return steps

    def close(self, last_line: bytes) -> None:
        """Write what is pending and the closing line."""
        self._unwritten += stamp(self._cleaner.flush() + last_line, self._prefix)
        self._write()

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):
            if self._output < 0:
                self._output = os.open(self._run.paths.output_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            chunk = os.pread(self._output, READ_BYTES, self._read_offset)
            self._read_offset += len(chunk)
            return chunk
        return b""

    def _write(self) -> bool:
        """Append what is not yet in train.log; False while it cannot be written (disk full): nothing more is read."""
        if not self._unwritten:
            return True
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._run.paths.train_log, flags, 0o666)
            try:
                os.ftruncate(descriptor, self._written)
                while self._unwritten:
                    count = os.pwrite(descriptor, self._unwritten, self._written)
                    self._written += count
                    self._unwritten = self._unwritten[count:]
            finally:
                os.close(descriptor)
        except OSError:
            return False
        self.account = {
            "output_offset": self._read_offset - self._cleaner.pending_bytes,
            "train_log_bytes": self._written,
        }
        return True

    def _show_bar(self) -> None:
        if not self._cleaner.pending_bytes:
            self._bar_since = time.monotonic()
        elif time.monotonic() - self._bar_since > BAR_SNAPSHOT_S:
            self._bar_since = time.monotonic()
            self._unwritten += stamp(self._cleaner.flush(), self._prefix)


class Echo(threading.Thread):
    """Shows the trainer's output on our stdout, colours and all.

    A thread with a file position of its own: a terminal that blocks (Ctrl-S, a pager) stops nothing but this.
    """

    def __init__(self, path: Path, offset: int) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._is_over = threading.Event()
        self.offset = offset

    def finish(self, wait_s: float) -> None:
        """Show what is left, for at most `wait_s` seconds."""
        self._is_over.set()
        self.join(wait_s)

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone: nothing to show it on
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            while True:
                is_over = self._is_over.is_set()
                while chunk := os.pread(descriptor, READ_BYTES, self.offset):
                    self.offset += os.write(1, chunk)
                if is_over:
                    return
                self._is_over.wait(POLL_S)


def head_lines(run: Run) -> bytes:
    """Return the lines that open train.log: the run, its parent, and what makes its curves comparable."""
    record = run.record
    versions = record.get("versions") or {}
    text = (
        f"resumekit: run_id={run.run_id} parent_run_id={record.get('parent_run_id')} "
        f"parent_step={record.get('parent_step')} config_hash={record.get('config_hash')}\n"
        f"resumekit: seed={record.get('seed')} python={versions.get('python')} torch={versions.get('torch')} "
        f"cuda={versions.get('cuda')} driver={versions.get('driver')}\n"
        f"resumekit: batch_size={run.setting('training', 'batch_size')} "
        f"grad_accum_steps={run.setting('training', 'grad_accum_steps')} "
        f"fast_eval_every={run.setting('validation', 'fast_eval_every')} "
        f"full_eval_every={run.setting('validation', 'full_eval_every')}\n"
        f"resumekit: started at {utc_now()}: {' '.join(map(str, record.get('argv') or []))!r}\n"
    )
    return text.encode("utf-8", "backslashreplace")


def found_steps(lines: bytes, patterns: dict[str, re.Pattern[str]]) -> list[dict[str, Any]]:
    """Return the steps that the patterns find in clean lines: a `step` is needed, the rest comes from its line."""
    if "step" not in patterns:
        return []
    result = []
    for raw in lines.splitlines():
        line = raw[:4096].decode("utf-8", "replace")
        fields = {name: _value(pattern.search(line)) for name, pattern in patterns.items()}
        if fields["step"] is not None:
            numbers = {name: value for name, value in fields.items() if value is not None}
            result.append(numbers | {"step": int(fields["step"])})
    return result


def _value(match: re.Match[str] | None) -> float | None:
    if not match:
        return None
    with contextlib.suppress(ValueError, IndexError, OverflowError):
        value = float(match[1].replace(",", ""))
        return value if abs(value) < 1e300 else None
    return None


def _compiled(patterns: Any) -> dict[str, re.Pattern[str]]:
    result = {}
    for name, text in (patterns or {}).items():
        with contextlib.suppress(re.error, TypeError):
            result[name] = re.compile(text)
    return result


def _offsets(run: Run, saved: dict[str, Any]) -> tuple[int, int]:
    """Return (offset in output.log, bytes of train.log) to go on from; (0, 0) where the account does not fit."""
    offset, written = saved.get("output_offset"), saved.get("train_log_bytes")
    with contextlib.suppress(OSError):
        is_known = type(offset) is int and type(written) is int and offset >= 0 and written >= 0
        if is_known and os.stat(run.paths.train_log).st_size >= written:
            return offset, written
    return 0, 0
