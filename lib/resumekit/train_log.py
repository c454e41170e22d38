"""From what a trainer prints to what `train.log` holds: whole lines, no colour codes, no flood of progress bars.

Pure: bytes in, bytes out. The chunks are whatever `os.read` gave; a line may come in any number of pieces.
"""

from __future__ import annotations

import re

# A line without an end is cut here: a trainer that prints a gigabyte without a newline must not fill our memory.
MAX_LINE_BYTES = 64 * 1024

_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    rb"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC: window titles, links
    rb"|[PX^_][^\x1b\n]*(?:\x1b\\)?"  # DCS and kin
    rb"|[ -/]*[0-~])?"
)
_OVERWRITTEN = re.compile(rb"[^\n]*\r(?=[^\r\n])")
# Everything a terminal obeys, but for tab and newline.
_CONTROLS = bytes(c for c in range(32) if c not in (9, 10)) + b"\x7f"


class LineCleaner:
    """Cuts a stream into clean whole lines.

    A progress bar rewrites its line with carriage returns: only what stood there last is kept.
    """

    def __init__(self) -> None:
        self._pending = b""

    @property
    def pending_bytes(self) -> int:
        """How many bytes of the stream are held back, waiting for the end of their line."""
        return len(self._pending)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the stream; return the clean lines that they complete, each with its newline."""
        data = self._pending + chunk
        end = data.rfind(b"\n") + 1
        body, rest = data[:end], data[end:]
        if b"\r" in rest:
            rest = _last_state(rest)
        if len(rest) > MAX_LINE_BYTES:
            body, rest = body + rest + b"\n", b""
        self._pending = rest
        return clean(body) if body else b""

    def flush(self) -> bytes:
        """Return what is pending as a line of its own: at the end, or to show how far a progress bar has come."""
        body, self._pending = self._pending, b""
        return clean(body + b"\n") if body.strip() else b""


def clean(lines: bytes) -> bytes:
    """Return whole lines without escape sequences, overwritten text and other control characters."""
    if b"\x1b" in lines:
        lines = _ESCAPES.sub(b"", lines)
    if b"\r" in lines:
        lines = _OVERWRITTEN.sub(b"", lines)
    return lines.translate(None, _CONTROLS)


def stamp(lines: bytes, prefix: bytes) -> bytes:
    """Begin each of the whole `lines` with `prefix`."""
    return prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n" if lines else b""


def _last_state(text: bytes) -> bytes:
    """Return what a terminal would show of a line that is still being rewritten."""
    kept = text.rstrip(b"\r")
    start = kept.rfind(b"\r") + 1
    return kept[start:] + (b"\r" if len(kept) < len(text) else b"")
