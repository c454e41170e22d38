"""Follows a trainer's output into train.log, line by line; the trainer writes to a plain file and never waits for it.

Reads logs/output.log from where the last sidecar stood, writes logs/train.log, and finds steps in the lines with
`trainer.log_patterns`.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from ..basics.files import UnreadableFile, open_regular
from ..run_folder import log_patterns
from ..run_folder.runs import Run
from .train_log import LineCleaner, stamp

READ_BYTES = 256 * 1024
# How long a progress bar may run on one line before the log says how far it has come.
BAR_SNAPSHOT_S = 60.0
PREFIX_DIGITS = 12


class LogFollower:
    """Copies logs/output.log into logs/train.log and keeps account of how far it has come."""

    def __init__(self, run: Run, saved: dict[str, Any]) -> None:
        self._run = run
        self._prefix = str(run.record.get("config_hash"))[:PREFIX_DIGITS].encode() + b" "
        self._patterns = log_patterns.compiled(run.setting("trainer", "log_patterns"))
        self._cleaner = LineCleaner()
        self.offset, self._written = _offsets(run, saved)
        self._output = -1
        self._bar_since = time.monotonic()
        self._unwritten = b""
        # What a successor goes on from: all before these offsets is in train.log, nothing after them.
        self._is_closed = bool(self._written) and saved.get("is_closed") is True
        self._keep_account()
        if not self._written:
            self._unwritten = stamp(head_lines(run), self._prefix)

    @property
    def is_blocked(self) -> bool:
        """Whether there are lines that could not be written (disk full); they are tried again with every pump."""
        return bool(self._unwritten)

    @property
    def left_bytes(self) -> int:
        """How much of the output has not been read yet; none of what came behind the closing line."""
        with contextlib.suppress(OSError):
            return 0 if self._is_closed else max(0, os.stat(self._run.paths.output_log).st_size - self.offset)
        return 0

    def pump(self, limit_s: float) -> list[dict[str, Any]]:
        """Copy what has been written since, for at most about `limit_s` seconds: a flood must not hold up the rest.

        Returns:
            The steps that the log patterns found in it.
        """
        steps: list[dict[str, Any]] = []
        until = time.monotonic() + limit_s
        while self._write() and (chunk := self._read()):
            lines = self._cleaner.feed(chunk)
            steps += log_patterns.found_steps(lines, self._patterns)
            self._unwritten += stamp(lines, self._prefix)
            if time.monotonic() > until:
                break
        self._show_bar()
        self._write()
        return steps

    def note(self, line: bytes) -> None:
        """Put a line of our own into train.log, with the next pump."""
        if not self._is_closed:
            self._unwritten += stamp(line, self._prefix)

    def close(self, last_line: bytes) -> bool:
        """Write what is pending and the closing line, once; False if that could not be written yet."""
        if not self._is_closed:
            self._is_closed = True
            self._unwritten += stamp(self._cleaner.flush() + last_line, self._prefix)
        return self._write()

    def _read(self) -> bytes:
        if self._is_closed:
            return b""
        with contextlib.suppress(OSError, UnreadableFile):
            if self._output < 0:
                self._output = open_regular(self._run.paths.output_log)
            chunk = os.pread(self._output, READ_BYTES, self.offset)
            self.offset += len(chunk)
            return chunk
        return b""

    def _write(self) -> bool:
        """Append what is not yet in train.log; False while it cannot be written (disk full): nothing more is read."""
        if self._unwritten:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = os.open(self._run.paths.train_log, flags, 0o666)
                try:
                    # A predecessor may have been killed between its last line and its account of it.
                    os.ftruncate(descriptor, self._written)
                    while self._unwritten:
                        count = os.pwrite(descriptor, self._unwritten, self._written)
                        self._written += count
                        self._unwritten = self._unwritten[count:]
                finally:
                    os.close(descriptor)
            except OSError:
                return False
        self._keep_account()
        return True

    def _keep_account(self) -> None:
        self.account = {
            "output_offset": self.offset - self._cleaner.held_bytes,
            "train_log_bytes": self._written,
            "is_closed": self._is_closed,
        }

    def _show_bar(self) -> None:
        if not self._cleaner.held_bytes:
            self._bar_since = time.monotonic()
        elif time.monotonic() - self._bar_since > BAR_SNAPSHOT_S:
            self._bar_since = time.monotonic()
            self._unwritten += stamp(self._cleaner.flush(), self._prefix)


def head_lines(run: Run) -> bytes:
    """Return the lines that open train.log: the run, its parent, and what makes its curves comparable.

    Source: protocol §3, §10.
    """
    record = run.record
    versions = record.get("versions") if isinstance(record.get("versions"), dict) else {}
    argv = record.get("argv") if isinstance(record.get("argv"), list) else []
    lines: list[dict[str, Any]] = [
        {name: record.get(name) for name in ("run_id", "parent_run_id", "parent_step", "config_hash")},
        {"seed": record.get("seed"), **{name: versions.get(name) for name in ("python", "torch", "cuda", "driver")}},
        {name: run.setting("training", name) for name in ("batch_size", "grad_accum_steps")}
        | {name: run.setting("validation", name) for name in ("fast_eval_every", "full_eval_every")},
    ]
    # The run's own time, not ours: a successor that begins anew writes the same.
    started = f"resumekit: started at {_shown(record.get('created_at'))}: {' '.join(map(repr, argv))}\n"
    text = "".join("resumekit: " + " ".join(f"{k}={_shown(v)}" for k, v in line.items()) + "\n" for line in lines)
    return (text + started).encode("utf-8", "backslashreplace")


def _shown(value: Any) -> str:
    """Return '-' for what is unknown; a newline in a value must not begin a line of its own."""
    return "-" if value is None else str(value).replace("\n", "\\n")


def _offsets(run: Run, saved: dict[str, Any]) -> tuple[int, int]:
    """Return (offset in output.log, bytes of train.log) to go on from; (0, 0) where the account does not fit."""
    offset, written = saved.get("output_offset"), saved.get("train_log_bytes")
    with contextlib.suppress(OSError):
        is_known = type(offset) is int and type(written) is int and offset >= 0 and written >= 0
        if is_known and os.stat(run.paths.train_log).st_size >= written:
            return offset, written
    return 0, 0
