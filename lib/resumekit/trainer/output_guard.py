"""Keep a failing stdout or stderr from hurting the training: log disk full, terminal gone, reader dead.

Replaces sys.stdout and sys.stderr by streams that drop what can't be written, also at the interpreter's exit, where
Python would otherwise turn the trainer's exit code into 120. Installed only under the kit.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any, TextIO

# A reader that stopped reading: after this long a full pipe counts as broken, and the text is dropped.
_WAIT_S = 1.0


class GuardedRaw(io.RawIOBase):
    """A raw stream on a descriptor whose write never raises; `dropped_bytes` counts what was lost."""

    def __init__(self, descriptor: int, name: Any) -> None:
        self._descriptor = descriptor
        self.name = name
        self.mode = "wb"
        self.dropped_bytes = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                if not select.select([], [self._descriptor], [], _WAIT_S)[1]:
                    self.dropped_bytes += len(view)
                    break
            except OSError:
                self.dropped_bytes += len(view)
                break
        return size

    def close(self) -> None:
        """Leave the descriptor open: 1 and 2 belong to the process."""


def guard_output() -> None:
    """Guard sys.stdout and sys.stderr under the kit; without it, or a second time, this does nothing."""
    if not os.environ.get("RESUMEKIT_RUN_DIR"):
        return
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


def _guarded(stream: TextIO) -> TextIO:
    if type(stream) is not io.TextIOWrapper:
        return stream  # a notebook's, a test's, or ours: not a plain descriptor, leave it
    if isinstance(getattr(stream.buffer, "raw", stream.buffer), GuardedRaw):
        return stream
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    with contextlib.suppress(OSError):  # the disk may be full already: that is what this is for
        stream.flush()
    raw = GuardedRaw(descriptor, stream.name)
    unbuffered = not isinstance(stream.buffer, io.BufferedWriter)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
