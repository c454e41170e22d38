"""Shows a trainer's output on our own stdout, as it is, colours and all.

A thread with a file position of its own: a terminal that blocks (Ctrl-S, a pager) stops nothing but this.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque

from .log_source import LogSource

POLL_S = 0.05
READ_BYTES = 64 * 1024


class Echo(threading.Thread):
    """Copies a growing file to descriptor 1.

    Args:
        source: logs/output.log, from where to begin.
    """

    def __init__(self, source: LogSource) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._unshown = 0
        self._is_over = threading.Event()
        self._notes: deque[bytes] = deque()

    @property
    def offset(self) -> int:
        """How far the output has been shown, in bytes."""
        return max(0, self._source.offset - self._unshown)

    def say(self, line: bytes) -> None:
        """Show a line of our own, between two pieces of the output; never waits for the terminal."""
        self._notes.append(line)

    def finish(self, stall_s: float) -> None:
        """Show what is left; give up when nothing has moved for `stall_s` seconds."""
        self._is_over.set()
        shown, since = self.offset, time.monotonic()
        while self.is_alive() and time.monotonic() - since < stall_s:
            self.join(POLL_S)
            if self.offset != shown:
                shown, since = self.offset, time.monotonic()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone: nothing to show it on
            while True:
                is_over = self._is_over.is_set()
                while chunk := self._source.read(READ_BYTES):
                    self._unshown = len(chunk)
                    while chunk:
                        written = _write_some(chunk)
                        chunk, self._unshown = chunk[written:], self._unshown - written
                while self._notes:
                    note = self._notes.popleft()
                    while note:
                        note = note[_write_some(note) :]
                if is_over:
                    return
                self._is_over.wait(POLL_S)


def _write_some(chunk: bytes) -> int:
    """Write to stdout, which another program on the terminal may have made non-blocking; return how much it took."""
    while True:
        try:
            return os.write(1, chunk)
        except BlockingIOError:
            ready = select.poll()
            ready.register(1, select.POLLOUT)
            ready.poll()
