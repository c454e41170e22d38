"""Who trains right now: the processes that a run's trainer consists of, as /proc has them.

A trainer leads a session of its own and carries its run's token; where a script that led it has ended, what goes on in
that session and writes the run's log stands for it. Where a warm server stands in
(support/fork_server.py) that is a client of 30 ms, and what trains is a fork of the server: in the server's session,
with the server's environment, known only by its standard output, which is the run's log. Both are told.
Try it: `python -m pytest tests/faults/test_oracle.py -k trainers`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TOKEN = b"RESUMEKIT_RUN_TOKEN="


class Trainer(NamedTuple):
    """One live process that trains, or stands in for one that does.

    Args:
        pid: of the process.
        run: whose trainer it is, by name.
        is_fork: it is known by the log that it writes, not by a token.
    """

    pid: int
    run: str
    is_fork: bool


def of_runs(tokens: Mapping[str, str], logs: Mapping[bytes, str]) -> list[Trainer]:
    """Return the live trainers of some runs.

    Args:
        tokens: run token -> run.
        logs: path of a run's output.log, as the kernel names it -> run.
    """
    leaders = {pid: tokens[token] for pid, token in trainers() if token in tokens}
    leaders |= _of_dead_leaders(leaders, logs)
    sessions = {os_session(pid) for pid in leaders}
    writing = {pid: run for pid, run in _writing(logs) if pid not in leaders and os_session(pid) not in sessions}
    forks = {pid: run for pid, run in writing.items() if _parent(pid) not in writing and not _is_the_kits(pid)}
    return [
        *(Trainer(pid, run, False) for pid, run in leaders.items()),
        *(Trainer(pid, run, True) for pid, run in forks.items()),
    ]


def _of_dead_leaders(leaders: Mapping[int, str], logs: Mapping[bytes, str]) -> dict[int, str]:
    """Return pid -> run of what goes on in sessions whose leader, a script, has ended: one process of each."""
    found: dict[int, tuple[int, str]] = {}
    for pid, run in _writing(logs):
        session = os_session(pid)
        with contextlib.suppress(OSError):
            if session in (None, pid) or session in leaders or _token(pid) is None or _is_shim(pid):
                continue
            if _state(pid) not in (b"Z", b"X") and not _is_alive(session):
                found.setdefault(session, (pid, run))
    return dict(found.values())


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _state(pid) not in (b"Z", b"X")
    return False


def at_once(found: list[Trainer]) -> int:
    """Return how many trainers these processes are: a fork and its client are one."""
    return sum(
        max(sum(one.run == run and one.is_fork is is_fork for one in found) for is_fork in (False, True))
        for run in {one.run for one in found}
    )


def trainers() -> Iterator[tuple[int, str]]:
    """Yield (pid, run token) of each live process but a shim that leads a session of its own and carries a token."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) != pid or (token := _token(pid)) is None or _is_shim(pid):
                continue
            if _state(pid) not in (b"Z", b"X"):
                yield pid, token


def _is_shim(pid: int) -> bool:
    return any(word.endswith(b"/shim.py") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:5])


def os_session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def _writing(logs: Mapping[bytes, str]) -> Iterator[tuple[int, str]]:
    """Yield (pid, run) of each live process whose standard output is a run's log; a zombie has none."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            if (run := logs.get(os.readlink(b"/proc/%d/fd/1" % pid))) is not None:
                yield pid, run


def _is_the_kits(pid: int) -> bool:
    """Whether it is the shim, which carries the token too, or the shell that is about to become it; or is gone."""
    try:
        program = os.path.basename(os.readlink(b"/proc/%d/exe" % pid))
        return program == b"bash" or _token(pid) is not None
    except OSError:
        return True


def _token(pid: int) -> str | None:
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    at = environment.find(TOKEN)
    return environment[at + len(TOKEN) :].partition(b"\0")[0].decode() if at >= 0 else None


def _state(pid: int) -> bytes:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return None


def _pids() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))
