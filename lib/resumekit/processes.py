"""Is this process really ours, is it alive, and a signal that cannot hit a stranger.

A process is known by host, boot id, pid, start time and the run token in its environment. A pid alone is nothing:
it is reused, and `kill -0` calls a zombie alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

TOKEN_VARIABLE = "RESUMEKIT_RUN_TOKEN"

ALIVE = "alive"
DEAD = "dead"
UNKNOWN = "unknown"  # another host, or a process we may not look at: never taken for dead


@dataclass(frozen=True)
class Identity:
    """One process, for good.

    Args:
        host: its host's name.
        boot_id: the kernel's id of the boot it runs in.
        pid: its process id.
        start_ticks: when it started, in clock ticks since boot (/proc/PID/stat, field 22).
        token: the run token in its environment; None where there is none (the launcher).
    """

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    token: str | None = None

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


def identity_from(fields: object) -> Identity | None:
    """Read an identity back from JSON; None if anything in it has the wrong type (it came from a file)."""
    if not isinstance(fields, dict):
        return None
    host, boot, pid, ticks, token = (fields.get(k) for k in ("host", "boot_id", "pid", "start_ticks", "token"))
    if not (isinstance(host, str) and isinstance(boot, str) and type(pid) is int and type(ticks) is int):
        return None
    if pid <= 1 or not (token is None or isinstance(token, str)):
        return None
    return Identity(host, boot, pid, ticks, token)


def identify(pid: int, token: str | None = None) -> Identity | None:
    """Return the identity of a process of this host, or None if there is none with that pid."""
    ticks = _stat(pid)
    return Identity(host_name(), boot_id(), pid, ticks[1], token) if ticks else None


def probe(identity: Identity | None) -> str:
    """Say whether a process still lives: ALIVE, DEAD, or UNKNOWN where that cannot be seen from here."""
    if identity is None:
        return UNKNOWN
    if identity.host != host_name():
        return UNKNOWN
    if identity.boot_id != boot_id():
        return DEAD
    found = _stat(identity.pid)
    if found is None or found[0] in "ZX" or found[1] != identity.start_ticks:
        return DEAD
    if identity.token is None:
        return ALIVE
    return _has_token(identity.pid, identity.token)


def send(identity: Identity, number: int) -> bool:
    """Send a signal to exactly this process; True if it was delivered.

    The pidfd is opened first and the identity is checked on it after: the pid cannot be given to another in between.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return False
    try:
        if probe(identity) != ALIVE:
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def wait_for_end(identity: Identity, timeout_s: float) -> bool:
    """Wait until the process has ended, at most `timeout_s` seconds; True if it has."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return True
    try:
        if probe(identity) == DEAD:
            return True
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def kill_session(identity: Identity) -> int:
    """KILL every process of the trainer's session that carries its token; return how many.

    Children of a killed trainer (data workers) leave its process tree but not its session. Repeated until none is
    left, for at most a second: a dying parent may still fork.
    """
    killed = 0
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        members = [i for i in session_members(identity) if send(i, signal.SIGKILL)]
        if not members:
            return killed
        killed += len(members)
        time.sleep(0.02)
    return killed


def session_members(leader: Identity) -> Iterator[Identity]:
    """Yield the live processes of the session that `leader` opened (its session id is the leader's pid)."""
    if leader.host != host_name() or leader.boot_id != boot_id() or leader.token is None:
        return
    for entry in os.listdir("/proc"):
        if not entry.isascii() or not entry.isdigit():
            continue
        pid = int(entry)
        with contextlib.suppress(OSError):
            found = _stat(pid)
            if found and os.getsid(pid) == leader.pid and _has_token(pid, leader.token) == ALIVE:
                yield Identity(leader.host, leader.boot_id, pid, found[1], leader.token)


def host_name() -> str:
    return socket.gethostname()


def boot_id() -> str:
    global _boot_id
    if _boot_id is None:
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                _boot_id = file.read().strip()
        except OSError:
            _boot_id = "unknown"
    return _boot_id


_boot_id: str | None = None


def _stat(pid: int) -> tuple[str, int] | None:
    """Return (state letter, start time in ticks) of a process, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name may hold spaces and brackets: everything is behind the last one.
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return fields[0].decode(), int(fields[19])


def _has_token(pid: int, token: str) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read().split(b"\0")
    except FileNotFoundError:
        return DEAD
    except ProcessLookupError:
        return DEAD
    except OSError:
        return UNKNOWN
    return ALIVE if f"{TOKEN_VARIABLE}={token}".encode() in environment else DEAD
