"""Hold back INT and TERM while a checkpoint is saved, and hand them on when it is done.

A signal in the middle of torch.save would finalise the archive on its way out. A second signal means now: both are
handed on at once, and what was being saved is dropped.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
        and not (number == signal.SIGUSR1 and handler == signal.SIG_DFL)
    }

    def hold(number: int, frame: FrameType | None) -> None:
        pending.append(number)
        if len(pending) > 1:
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
