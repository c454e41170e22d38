"""The lock that a trainer's session holds: an open descriptor which every process of it inherits.

The kernel frees it when the last of them has ended, however that came about, and every container of the host sees it.
Neither launcher, shim nor sidecar holds it. Writes `trainer.lock` in the run's folder.
Try it: `fuser -v runs/<run_id>/trainer.lock`
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

from ..base.claims import open_lock, try_lock
from ..base.errors import Refused
from ..base.imports import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Above what programs close by number, below what they use as a soft limit (1024).
DESCRIPTOR = 900
# A command that asks for the lock holds it shared for some microseconds.
WAIT_S = 5.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO)


def take(path: Path) -> None:
    """Take the lock for this process and all that it starts; nothing where the file system has none, or is full.

    Raises:
        Refused: another process holds it: a second trainer would write into this folder.
    """
    try:
        descriptor = open_lock(path)
    except OSError:
        return  # no room, no permission: then a dead trainer can be told by its processes alone
    try:
        is_ours = _take(descriptor)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            # A lock that is always free would prove the death of one that lives.
            with contextlib.suppress(OSError):
                os.unlink(path)
        return
    if not is_ours:
        os.close(descriptor)
        raise Refused(f"another process holds '{path}': the trainer was not started beside it")
    _hand_on(descriptor)


def _take(descriptor: int) -> bool:
    give_up = time.monotonic() + WAIT_S
    while not try_lock(descriptor):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.005)
    return True


def _hand_on(descriptor: int) -> None:
    """Let every process that is started from here on inherit the descriptor, under a number that is out of the way."""
    with contextlib.suppress(OSError, ValueError):
        fcntl.fcntl(descriptor, fcntl.F_DUPFD, DESCRIPTOR)  # without close-on-exec
        os.close(descriptor)
        return
    os.set_inheritable(descriptor, True)  # a soft limit below that number
