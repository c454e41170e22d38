"""A new file that is hashed while it is written, and INT and TERM held back until it is there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..base.file_identity import identity_at, identity_of
from ..base.files import TempFile, fsync_directory
from ..base.imports import Any

DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Each of these asks for the same, and only the first one is handed on; the others may mean something of the lab's.
_STOPS = frozenset({signal.SIGINT, signal.SIGTERM})
# A second INT that comes sooner is a key that bounces, or a job that gets it twice.
MOMENT_S = 1.0


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer signals inside the `with`; in any thread but the main one this does nothing (they never arrive there)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    # SIG_IGN stays ignored; None is a handler that was not set from Python and can't be put back.
    before = {
        number: handler
        for number in DEFERRED
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
        and not (number not in _STOPS and handler == signal.SIG_DFL)
    }
    first_int_s: list[float] = []

    def hold(number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        is_now = number == signal.SIGINT and bool(first_int_s) and now_s - first_int_s[0] >= MOMENT_S
        if number == signal.SIGINT and not first_int_s:
            first_int_s.append(now_s)
        if number not in pending and not (number in _STOPS and _STOPS & set(pending)):
            pending.append(number)
        elif is_now:
            pending.append(number)
            _put_back(before)
            _hand_on(pending)

    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        _put_back(before)
        _hand_on(pending)


def _put_back(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _hand_on(pending: list[int]) -> None:
    """Send each held signal to this process again; its own handler runs before the next line of Python does."""
    while pending:
        os.kill(os.getpid(), pending.pop(0))


# A new file that is hashed while it is written: exclusive, under a temp name, fsynced, then moved to its name.
#
# A thread reads back what was written and hashes it, so that the digest is of the bytes that the kernel holds, and
# costs no time of its own where a second core is free.

_BUFFER_BYTES = 1 << 20


class DurableFile(TempFile):
    """A file object for torch.save; `finish` makes it durable, `publish` gives it its name, `discard` drops it.

    Args:
        target: the final name; the temp file lies beside it.

    Raises:
        OSError: the temp file could not be made.
    """

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self.error: BaseException | None = None
        self._hasher = hashlib.sha256()
        self._grown = threading.Condition()
        self._done = False
        self._read_error: OSError | None = None
        self._sync_error: BaseException | None = None
        self._syncer: threading.Thread | None = None
        self._follower = _started(self._follow)

    def write(self, data: bytes) -> int:
        """Write every byte; a first error is kept, because torch.save replaces it by one without an errno."""
        if self.error is not None:
            raise self.error
        try:
            return super().write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Nothing is held back here; torch.save asks for this method."""

    def seal(self) -> None:
        """Say that nothing more will be written: it is made durable from here on, in a thread."""
        self._stop(abandon=False)
        self._syncer = _started(self._sync)

    def finish(self) -> str:
        """Wait until the content is durable and hashed, and return its SHA-256.

        Raises:
            OSError: it is not durable. A failed fsync is final: the file has to be dropped, not synced again.
        """
        self._syncer.join() if self._syncer else self._sync()
        self._follower.join() if self._follower else self._follow()
        for error in (self._sync_error, self._read_error):
            if error is not None:
                raise error
        return self._hasher.hexdigest()

    def publish(self) -> None:
        """Give the file its final name, durably.

        Raises:
            FileExistsError: something has that name; it is left as it is.
            OSError: it could not be renamed, or the folder not be synced; the final name is free again.
        """
        try:
            self.move_new()
            fsync_directory(self.target.parent)
        except BaseException:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Take the final name away again, if it is still this very file."""
        with contextlib.suppress(OSError):
            here = identity_at(self.target, os.lstat)
            if here is not None and here.file == identity_of(os.fstat(self.descriptor)).file:
                os.unlink(self.target)

    def discard(self) -> None:
        """Close it, and remove the temp name where it has no other; safe to call twice.

        What the close answers says nothing: that it is durable, fsync has said.
        """
        if self.descriptor >= 0:
            self._stop(abandon=True)
            for thread in filter(None, (self._syncer, self._follower)):
                thread.join()
        super().discard()

    def _grow(self, count: int) -> None:
        with self._grown:
            super()._grow(count)
            self._grown.notify()

    def _stop(self, *, abandon: bool) -> None:
        with self._grown:
            self._done = True
            if abandon:
                self.size = 0
            self._grown.notify()

    def _sync(self) -> None:
        try:
            self.sync()
        except OSError as error:
            self._sync_error = error

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        position = 0
        try:
            while True:
                with self._grown:
                    while self.size - position < _BUFFER_BYTES and not self._done:
                        self._grown.wait()
                    end = self.size
                if position >= end:
                    return
                while position < end and position < self.size:
                    count = os.preadv(self.descriptor, [buffer[: min(_BUFFER_BYTES, end - position)]], position)
                    if not count:
                        raise OSError(errno.EIO, "the file is shorter than what was written", str(self.temp))
                    self._hasher.update(buffer[:count])
                    position += count
        except OSError as error:
            self._read_error = error


def _started(work: Callable[[], None]) -> threading.Thread | None:
    """Start `work` in a thread; None where there can be no more threads: the caller then does it itself."""
    thread = threading.Thread(target=work, name="resumekit-save", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
