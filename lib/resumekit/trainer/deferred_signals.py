"""Hold back INT and TERM while a checkpoint is saved, and hand them on when it is done.

A signal in the middle of torch.save would finalise the archive on its way out. One stop is one stop: a scheduler sends
TERM to the whole job, and again, so what comes while one is held back is that one once more. A person's second INT,
after a moment, means now: it is handed on at once, and what was being saved is dropped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
