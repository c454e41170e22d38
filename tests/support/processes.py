"""Wait for something with a deadline, and find the processes that a test has started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Far above anything that is expected: a loaded machine must not turn a test red.
DEADLINE_S = 60.0


def wait_until(ask: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true answer of `ask`; fail with `what` when there is none within `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    while not (answer := ask()):
        if time.monotonic() > end:
            pytest.fail(f"after {deadline_s:.0f} s still not: {what}")
        time.sleep(0.02)
    return answer


def marked_pids(entry: str) -> Iterator[int]:
    """Yield the pids of live processes with `entry` in their environment."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and int(pid) != os.getpid():
                yield int(pid)


def pids_about(folder: Path) -> Iterator[int]:
    """Yield the pids of live processes with a path below `folder` in an argument."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(word.startswith(os.fsencode(folder) + b"/") for word in words) and int(pid) != os.getpid():
                yield int(pid)
