"""A trainer's output where it lies, in one file that may be cut, renamed or replaced; and shown on our own stdout."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..base.file_identity import identity_of
from ..base.files import UnreadableFile, open_regular
from ..base.imports import Any
from ..base.values import MAX_KERNEL, between, row, string

# How often the name of the log is looked at, for another file under it.
NAME_LOOK_S = 1.0
# Two lines of a log are the same for so long hardly ever: there is a step or a time in them.
MARK_BYTES = 64

_saved_identity = row(*[between(0, MAX_KERNEL)] * 2)


class LogSource:
    """Reads a growing file from an offset on, and begins anew where the file does.

    A file that was cut and has grown beyond the offset since is known by the bytes before it.

    Args:
        path: logs/output.log.
        offset: where to begin, in bytes.
        mark: the bytes that stood before the offset, as `mark_at` gave them; None where that is not known.
        identity: [device, inode] of the file that the offset is of; None for the one under `path`.
        trainer_pid: returns the pid of the trainer while it lives, else None.
    """

    def __init__(
        self, path: Path, offset: int, identity: Any = None, mark: Any = None,
        trainer_pid: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._path, self._trainer_pid = path, trainer_pid
        self._wanted = _saved_identity(identity)
        self._mark = string(mark) if offset else None
        self._descriptor = -1
        self._looked_s = float("-inf")
        self.offset = offset
        self.beginnings = 0
        self.notices: list[str] = []

    @property
    def identity(self) -> list[int] | None:
        """Return [device, inode] of the file that is being read; what a successor needs to find it again."""
        with contextlib.suppress(OSError):
            if self._descriptor >= 0:
                return _identity(os.fstat(self._descriptor))
        return self._wanted

    @property
    def size(self) -> int:
        """Return the size of the file that is being read, in bytes; that of the named one before it is open.

        A link has none: it is not read, and the end of a run must not wait for what it leads to.
        """
        with contextlib.suppress(OSError):
            found = os.fstat(self._descriptor) if self._descriptor >= 0 else os.lstat(self._path)
            return found.st_size if stat.S_ISREG(found.st_mode) else 0
        return 0

    def read(self, count: int) -> bytes:
        """Return the next bytes; b'' where there are none, or the file cannot be read now."""
        with contextlib.suppress(OSError, UnreadableFile):
            if self._descriptor < 0:
                self._open()
            chunk = os.pread(self._descriptor, count, self.offset)
            if not chunk:
                chunk = self._after_the_end(count)
            elif self._mark is not None and self.mark_at(self.offset) != self._mark:
                self._begin_anew(f"'{self._path.name}' was cut, and has grown since")
                chunk = os.pread(self._descriptor, count, 0)
            self.offset += len(chunk)
            if chunk:
                self._mark = self.mark_at(self.offset)
            return chunk
        return b""

    def mark_at(self, offset: int) -> str | None:
        """Return the last bytes before an offset, in hexadecimal; None where they cannot be read."""
        begin = max(0, offset - MARK_BYTES)
        with contextlib.suppress(OSError):
            if self._descriptor >= 0:
                return os.pread(self._descriptor, offset - begin, begin).hex()
        return None

    def _open(self) -> None:
        """Open the file that the offset is of, or, where that is gone, the one under the name from its beginning."""
        descriptor = _of_trainer(self._trainer_pid(), self._wanted)
        if descriptor < 0:
            descriptor = self._opened()
        self._descriptor = descriptor
        found = _identity(os.fstat(descriptor))
        # A network drive has another device number after each mount: the inode alone says whether it is the same.
        if self._wanted is not None and found[1] != self._wanted[1]:
            self._begin_anew(f"another file took the place of '{self._path.name}'")
        self._wanted = found

    def _opened(self) -> int:
        return open_regular(self._path, follow_links=False)

    def _after_the_end(self, count: int) -> bytes:
        """Nothing stands at the offset: has the file been cut, or another one taken its place?"""
        size = os.fstat(self._descriptor).st_size
        if size < self.offset:
            self._begin_anew(f"'{self._path.name}' was cut from {self.offset} bytes or more to {size}")
            return os.pread(self._descriptor, count, 0)
        now = time.monotonic()
        if now - self._looked_s >= NAME_LOOK_S:
            self._looked_s = now
            if self._is_replaced():
                os.close(self._descriptor)
                self._descriptor = -1
                self._open()
                return os.pread(self._descriptor, count, self.offset)
        return b""

    def _is_replaced(self) -> bool:
        """Whether another file under the name holds the output now: it has something in it, and the trainer not ours.

        After a rotation by rename the trainer goes on in the renamed file; a new one under the old name stays empty, or
        is of a user's making.
        """
        named = os.lstat(self._path)
        if not stat.S_ISREG(named.st_mode) or not named.st_size or _identity(named) == self.identity:
            return False
        return _output_of(self._trainer_pid()) != self.identity

    def _begin_anew(self, what: str) -> None:
        self.offset, self._mark = 0, None
        self.beginnings += 1
        self.notices.append(f"{what}: read from its beginning")


def _of_trainer(pid: int | None, identity: list[int] | None) -> int:
    """Open the trainer's own output, if it is the file with this identity; else return -1."""
    if pid is None or identity is None or _output_of(pid) != identity:
        return -1
    with contextlib.suppress(OSError, UnreadableFile):
        descriptor = open_regular(f"/proc/{pid}/fd/1")
        if _identity(os.fstat(descriptor)) == identity:
            return descriptor
        os.close(descriptor)
    return -1


def _output_of(pid: int | None) -> list[int] | None:
    """Return the identity of the regular file that is a process's standard output; None where that cannot be known."""
    with contextlib.suppress(OSError):
        if pid is not None:
            found = os.stat(f"/proc/{pid}/fd/1")
            return _identity(found) if stat.S_ISREG(found.st_mode) else None
    return None


def _identity(found: os.stat_result) -> list[int]:
    return [*identity_of(found).file]


# Shows a trainer's output on our own stdout, as it is, colours and all.
#
# A thread with a file position of its own: a terminal that blocks (Ctrl-S, a pager) stops nothing but this.

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
