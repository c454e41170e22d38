"""A new file that is hashed while it is written: exclusive, under a temp name, fsynced, then moved to its name.

A thread reads back what was written and hashes it, so that the digest is of the bytes that the kernel holds, and costs
no time of its own where a second core is free.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from ..basics.files import NO_HARD_LINKS, fsync_directory, temp_path

_BUFFER_BYTES = 1 << 20


class DurableFile:
    """A file object for torch.save; `finish` makes it durable, `publish` gives it its name, `discard` drops it.

    Args:
        target: the final name; the temp file lies beside it.

    Raises:
        OSError: the temp file could not be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.temp = temp_path(target)
        self.error: BaseException | None = None
        self.size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.temp, flags, 0o666)
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
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._descriptor, view[: 8 * _BUFFER_BYTES])
                view = view[written:]
                with self._grown:
                    self.size += written
                    self._grown.notify()
        except BaseException as error:
            self.error = error
            raise
        return len(data)

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
            # A hard link is the exclusive form of a rename: of two writers one wins, and nothing is overwritten.
            os.link(self.temp, self.target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS or os.path.lexists(self.target):
                raise
            os.rename(self.temp, self.target)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.temp)
            fsync_directory(self.target.parent)
        except BaseException:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Take the final name away again, if it is still this very file."""
        with contextlib.suppress(OSError):
            here, own = os.lstat(self.target), os.fstat(self._descriptor)
            if (here.st_dev, here.st_ino) == (own.st_dev, own.st_ino):
                os.unlink(self.target)

    def close(self) -> None:
        """Close the descriptor and remove the temp name if it is still there; safe to call twice."""
        if self._descriptor < 0:
            return
        self._stop(abandon=True)
        for thread in filter(None, (self._syncer, self._follower)):
            thread.join()
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):  # it is closed whatever is answered; that it is durable, fsync has said
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(self.temp)

    def _stop(self, *, abandon: bool) -> None:
        with self._grown:
            self._done = True
            if abandon:
                self.size = 0
            self._grown.notify()

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
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
                    count = os.preadv(self._descriptor, [buffer[: min(_BUFFER_BYTES, end - position)]], position)
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
