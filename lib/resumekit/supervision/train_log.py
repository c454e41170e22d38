"""From what a trainer prints to what `train.log` holds: whole lines of plain UTF-8, no colour codes, no flood of bars.

Pure: bytes in, bytes out. The chunks are whatever `os.read` gave, and what comes out does not depend on where they were
cut: a successor that begins at the last line that is written goes on as if it had always been there.
"""

from __future__ import annotations

import re

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
    except UnicodeDecodeError:  # binary is shown as \xff, it must not reach anybody's terminal raw
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
