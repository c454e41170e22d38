"""The end of a run's log: bounded however long the log is, whatever bytes are in it.

Reads logs/output.log, what the trainer wrote itself.
Try it: `tail -c 64K runs/<run_id>/logs/output.log`
"""

from __future__ import annotations

import time

from ..base.files import UnreadableFile, read_end
from ..base.redaction import redact
from ..base.terminal import plain
from .run_folder import Run

TAIL_BYTES = 64 * 1024
# A longer line is cut.
LINE_BYTES = 500


def read(run: Run) -> tuple[list[bytes], float]:
    """Return (the last lines, seconds since the log was written to); progress bars end a line too.

    Without a log, or one that cannot be read: no lines, and an age of infinity.
    """
    try:
        tail, found = read_end(run.paths.output_log, TAIL_BYTES)
    except UnreadableFile:
        return [], float("inf")
    lines = tail.replace(b"\r", b"\n").splitlines()
    return lines[1:] if found.st_size > TAIL_BYTES else lines, max(0.0, time.time() - found.st_mtime)


def last_lines(run: Run, number: int = 20) -> list[str]:
    """Return the last lines for an event: printable, each cut to 500 bytes, without what looks like a secret."""
    lines = [line for line in read(run)[0] if line.strip()][-number:]
    return [plain(redact(line)[0][:LINE_BYTES].decode("utf-8", "replace")) for line in lines]
