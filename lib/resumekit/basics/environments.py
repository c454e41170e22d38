"""What a process's environment says of the run that it belongs to: its token, another run's, or none.

The environment is the one that the process began with. Reads /proc/PID/environ; writes nothing.
Try it: `tr '\\0' '\\n' < /proc/PID/environ | grep RESUMEKIT_`
"""

from __future__ import annotations

import contextlib
import os
import time

TOKEN_VARIABLE = "RESUMEKIT_RUN_TOKEN"
# What a process that was started to outlive its training has without the token (`env -u RESUMEKIT_RUN_TOKEN`).
RUN_ID_VARIABLE = "RESUMEKIT_RUN_ID"

ALIVE = "alive"
DEAD = "dead"
UNKNOWN = "unknown"  # another host, or a process we may not look at: never taken for dead

# How long an environment that is empty is read again, once a millisecond.
EXEC_S = 0.02


def read(pid: int) -> list[bytes]:
    """Return the entries of a process's environment; [b""] of an empty one.

    Raises:
        OSError: there is no such process, or it may not be looked at.
    """
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read().split(b"\0")


def entry(token: str) -> bytes:
    """Return what the environment of a process of the run with this token has in it."""
    return f"{TOKEN_VARIABLE}={token}".encode()


def carried(pid: int, token: str, until: float | None = None) -> str:
    """Say whether a process carries this run token: ALIVE; DEAD with another one; UNKNOWN where it carries none.

    None at all may be a trainer that has written its title over its environment (setproctitle): it may not be signalled
    for that alone, but it is not dead either.

    Args:
        pid: the process.
        token: the run token.
        until: on the monotonic clock, how long an empty environment is read again; EXEC_S from now without.
    """
    environment: list[bytes] = []
    until = time.monotonic() + EXEC_S if until is None else until
    while True:
        try:
            environment = read(pid)
        except (FileNotFoundError, ProcessLookupError):
            return DEAD
        except OSError:
            return UNKNOWN
        if environment != [b""] or time.monotonic() >= until:
            break
        time.sleep(0.001)  # in the middle of its exec a process has none
    if entry(token) in environment:
        return ALIVE
    return DEAD if any(one.startswith(TOKEN_VARIABLE.encode() + b"=") for one in environment) else UNKNOWN


def variable(pid: int, name: str) -> str | None:
    """Return one variable of a process's environment, as it was when it began; None where it has none or is hidden."""
    with contextlib.suppress(OSError):
        begins = name.encode() + b"="
        for one in read(pid):
            if one.startswith(begins):
                return os.fsdecode(one[len(begins) :])
    return None
