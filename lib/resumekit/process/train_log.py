"""From a trainer's output to train.log: followed line by line, cleaned, without a flood of bars."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable

from ..base.files import UnreadableFile, read_end
from ..base.imports import Any
from ..base.values import count, items, mapping
from ..run.run_folder import Run
from .log_numbers import LogNumbers
from .output_log import LogSource

# A line without an end is cut here: a trainer that prints a gigabyte without a newline must not fill our memory.
MAX_LINE_BYTES = 64 * 1024
_PROBE_BYTES = MAX_LINE_BYTES // 2
# A cut waits for these, so that it never stands inside `_DOWN_AND_UP` whose newline has not come yet.
_SLACK_BYTES = 8

_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    rb"|\][^\x07\x1b\r\n]*(?:\x07|\x1b\\)?"  # OSC: window titles, links
    rb"|[PX^_][^\x1b\r\n]*(?:\x1b\\)?"  # DCS and kin
    rb"|[ -/]*[0-~])?"
)
# The second bar of tqdm goes down a line and up again: that newline ends nothing.
_DOWN_AND_UP = re.compile(rb"(\x1b\[1?A)\n")
_SEGMENTS = re.compile(rb"[^\r\n]+")
# Everything a terminal obeys, but for tab and newline.
_CONTROLS = bytes(c for c in range(32) if c not in (9, 10)) + b"\x7f"
_C1_CONTROLS = re.compile(rb"\xc2[\x80-\x9f]")


class LineCleaner:
    """Cuts a stream into clean whole lines.

    A progress bar rewrites its line with carriage returns: only what stood there last is kept.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._held_bytes = 0
        self._unfinished = b""

    @property
    def held_bytes(self) -> int:
        """How many bytes of the stream have come since the last line that was given out."""
        return self._held_bytes

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the stream; return the clean lines that they complete, each with its newline."""
        data = self._pending + chunk
        if b"\x1b" in data:
            data = _DOWN_AND_UP.sub(rb"\1\r", data)
        if _may_have_long_line(data):
            data = _cut_long_lines(data)
        end = data.rfind(b"\n") + 1
        body, rest = data[:end], data[end:]
        # Nothing of what was pending is behind the last newline: `rest` is as it came.
        self._held_bytes = len(rest) if end else self._held_bytes + len(chunk)
        self._pending = _without_overwritten(rest) if b"\r" in rest else rest
        return clean(body) if body else b""

    def flush(self) -> bytes:
        """Return what is pending as a line of its own: at the end, or to show how far a progress bar has come."""
        body, self._pending, self._held_bytes = self._pending, b"", 0
        return clean(body + b"\n") if body.strip() else b""

    def shown(self) -> bytes:
        """Return what the line that has no newline yet shows, as a line; b'' where nothing of it is sure.

        What stands behind its last carriage return may have come in part: it counts once it is the same as in the last
        call, and until then what stood there before it.
        """
        before, _, last = self._pending.rpartition(b"\r")
        is_whole, self._unfinished = last == self._unfinished, last
        text = last if is_whole and _ESCAPES.sub(b"", last).strip() else before.rpartition(b"\r")[2]
        return clean(text + b"\n") if text.strip() else b""


def clean(lines: bytes) -> bytes:
    """Return whole lines without escape sequences, overwritten text and other control characters, as UTF-8."""
    if b"\x1b" in lines:
        lines = _ESCAPES.sub(b"", lines)
    if b"\r" in lines:
        lines = b"\n".join(map(_last_state, lines.split(b"\n")))
    lines = lines.translate(None, _CONTROLS)
    if lines.isascii():
        return lines
    try:
        lines.decode()
    except UnicodeDecodeError:  # binary is shown as \xff, it must not reach a terminal raw
        lines = lines.decode(errors="backslashreplace").encode()
    return _C1_CONTROLS.sub(b"", lines)


def stamp(lines: bytes, prefix: bytes) -> bytes:
    """Begin each of the whole `lines` with `prefix`."""
    return prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n" if lines else b""


def _last_state(line: bytes) -> bytes:
    """Return what a terminal would show of one line: what stands behind the last carriage return that text follows."""
    kept = line.rstrip(b"\r")
    return kept[kept.rfind(b"\r") + 1 :]


def _without_overwritten(unfinished: bytes) -> bytes:
    """Shorten a line that is still being rewritten to its last text and what has come behind it."""
    *before, last = unfinished.split(b"\r")
    # Whether `last` is text is not known yet: an escape sequence may have come in part.
    shown = next((text for text in reversed(before) if _ESCAPES.sub(b"", text)), None)
    return last if shown is None else shown + b"\r" + last


def _may_have_long_line(data: bytes) -> bool:
    """Probe, not scan: a line above the limit leaves one of these windows without a newline."""
    return any(
        data.find(b"\n", at, at + _PROBE_BYTES) < 0 for at in range(0, len(data) - _PROBE_BYTES + 1, _PROBE_BYTES)
    )


def _cut_long_lines(data: bytes) -> bytes:
    """Put a newline behind every MAX_LINE_BYTES of text without an end, counted from where the text begins."""
    parts, done = [], 0
    for match in _SEGMENTS.finditer(data):
        at, end = match.span()
        while end - at > MAX_LINE_BYTES + _SLACK_BYTES:
            at += MAX_LINE_BYTES
            parts += [data[done:at], b"\n"]
            done = at
    return b"".join([*parts, data[done:]]) if parts else data


# Follows a trainer's output into train.log, line by line; the trainer writes to a plain file and never waits for
# it.
#
# Reads logs/output.log from where the last sidecar stood, writes logs/train.log; `log_numbers` finds steps in it.

READ_BYTES = 256 * 1024
# How long a progress bar may run on one line before the log says how far it has come.
BAR_SNAPSHOT_S = 60.0
PREFIX_DIGITS = 12


class LogFollower:
    """Copies logs/output.log into logs/train.log and keeps account of how far it has come.

    Args:
        run: the run.
        saved: the account of the sidecar before this one.
        trainer_pid: returns the pid of the trainer while it lives, else None.
    """

    def __init__(self, run: Run, saved: dict[str, Any], trainer_pid: Callable[[], int | None] = lambda: None) -> None:
        self._run = run
        self._prefix = str(run.record.get("config_hash"))[:PREFIX_DIGITS].encode() + b" "
        self._numbers = LogNumbers(run, saved, _ESCAPES)
        self._cleaner = LineCleaner()
        offset, self._written = _offsets(run, saved)
        self._source = LogSource(
            run.paths.output_log, offset, saved.get("log_file"), saved.get("log_mark"), trainer_pid
        )
        self._bar_since = time.monotonic()
        self._shown, self._last_line = b"", b""
        self._has_written = False
        # (how far there was to read at some moment, that moment): once it is reached, the reader has caught up to it.
        self._goal = (offset, time.monotonic())
        self._caught_up_s = self._goal[1]
        self._text_s = saved.get("text_s")
        # What a predecessor has read is not new.
        self._read_before = count(saved.get("read_offset")) or 0
        self._unwritten = b""
        self._is_unread = False
        # What a successor goes on from: all before these offsets is in train.log, nothing after them.
        self._is_closed = bool(self._written) and saved.get("is_closed") is True
        self._place: list[Any] = []
        self._mark: str | None = None
        self._keep_account()
        if not self._written:
            self._unwritten = stamp(head_lines(run), self._prefix)

    @property
    def is_blocked(self) -> bool:
        """Whether there are lines that could not be written (disk full); they are tried again with every pump."""
        return bool(self._unwritten)

    @property
    def is_unreadable(self) -> bool:
        """Whether there is something to read that the last pump could not read: no pump follows it at once."""
        return self._is_unread and self.left_bytes > 0

    @property
    def left_bytes(self) -> int:
        """How much of the output has not been read yet; none of what came behind the closing line."""
        return 0 if self._is_closed else max(0, self._source.size - self._source.offset)

    @property
    def offset(self) -> int:
        """How far the output has been read, in bytes."""
        return self._source.offset

    @property
    def _is_new(self) -> bool:
        return self._source.offset > self._read_before

    def notices(self) -> list[str]:
        """Return once what has happened to the file: that it was cut, or replaced."""
        found, self._source.notices = self._source.notices, []
        return found

    def pump(self, limit_s: float) -> list[dict[str, Any]]:
        """Copy what has been written since, for at most about `limit_s` seconds: a flood must not hold up the rest.

        Returns:
            The steps that it tells; what is no step has a key `event` (`log_reader.Told`).
        """
        steps: list[dict[str, Any]] = []
        started = time.monotonic()
        self._aim(started)
        self._is_unread = True
        while self._write() and (chunk := self._read()):
            self._is_unread = False
            lines = self._cleaner.feed(chunk)
            steps += self._numbers.read(chunk, lines, is_new=self._is_new)
            self._see_text(lines)
            self._unwritten += stamp(lines, self._prefix)
            if time.monotonic() > started + limit_s:
                break
        self._aim(started)
        steps += self._told_by_bar()
        steps += self._numbers.rest()
        self._show_bar()
        self._write()
        return steps

    def last_told(self) -> list[dict[str, Any]]:
        """Return what the end of a log tells, once nothing comes any more: a last line without a newline too."""
        return self._numbers.rest(is_last=True)

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
        beginnings = self._source.beginnings
        chunk = self._source.read(READ_BYTES)
        if self._source.beginnings != beginnings:  # what was held of its last line is a line, and ends here
            self._unwritten += stamp(self._cleaner.flush(), self._prefix)
            self._numbers.begin_anew()
            self._goal = (0, self._goal[1])
            self._read_before = 0
            self._keep_what_is_written()
        return chunk

    def _aim(self, now: float) -> None:
        """Note up to which moment all that had been printed has been read."""
        goal, goal_s = self._goal
        if self._source.offset >= goal:
            self._caught_up_s = goal_s
            self._goal = (self._source.size, now)

    def _write(self) -> bool:
        """Append what is not yet in train.log; False while it cannot be written (disk full): nothing more is read."""
        if self._unwritten:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = os.open(self._run.paths.train_log, flags, 0o666)
                try:
                    # A predecessor may have been killed between its last line and its account of it. A log that was
                    # cut by another program is no shorter for it: it must not get a hole of zeros.
                    self._written = min(self._written, os.fstat(descriptor).st_size)
                    os.ftruncate(descriptor, self._written)
                    self._has_written = True
                    while self._unwritten:
                        count = os.pwrite(descriptor, self._unwritten, self._written)
                        self._written += count
                        self._unwritten = self._unwritten[count:]
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno == errno.ELOOP:  # a link, put there by another user: the next look makes the file anew
                    with contextlib.suppress(OSError):
                        os.unlink(self._run.paths.train_log)
                return False
        self._keep_account()
        return True

    def _keep_what_is_written(self) -> None:
        """A successor reads lines again that stand behind its account, but not those of a file that is no more."""
        if self._has_written:
            return
        with contextlib.suppress(OSError, UnreadableFile):
            tail, found = read_end(self._run.paths.train_log, 1)
            self._written = found.st_size
            self._unwritten = (b"" if tail in (b"", b"\n") else b"\n") + self._unwritten

    def _keep_account(self) -> None:
        offset = max(0, self.offset - self._cleaner.held_bytes)
        place = [offset, self._source.beginnings, self._source.identity]
        if place != self._place:  # three times a beat it is the same one
            self._place, self._mark = place, self._source.mark_at(offset)
        self.account = {
            **self._numbers.account,
            "output_offset": offset,
            "log_mark": self._mark,
            "read_offset": self.offset,
            "log_file": place[2],
            "caught_up_s": self._caught_up_s,
            "text_s": self._text_s,
            "train_log_bytes": self._written,
            "is_closed": self._is_closed,
        }

    def _see_text(self, lines: bytes) -> None:
        """Note when the text has changed: a line that is said again and again is no new one."""
        new = set(lines.split(b"\n")) - {self._last_line, b""}
        if new:
            self._text_s = time.monotonic()
            self._last_line = lines.rstrip(b"\n").rpartition(b"\n")[2]

    def _told_by_bar(self) -> list[dict[str, Any]]:
        """Return what an unfinished line tells: a progress bar may go without a newline for hours."""
        shown = self._cleaner.shown()
        if shown == self._shown:
            return []
        self._shown = shown
        self._see_text(shown)
        return self._numbers.of_bar(shown, is_new=self._is_new)

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
    versions, argv = mapping(record.get("versions")), items(record.get("argv"))
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
    offset, written = count(saved.get("output_offset")), count(saved.get("train_log_bytes"))
    with contextlib.suppress(OSError):
        if offset is None or written is None:
            return 0, 0
        if os.lstat(run.paths.train_log).st_size >= written:
            return offset, written
    return 0, 0
