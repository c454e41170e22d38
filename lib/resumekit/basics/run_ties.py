"""What ties a process to a run though its environment does not: it writes the run's output, or descends from the run.

A wrapper may start its trainer with an environment of its own (`subprocess.run(env=...)`, `env -i`, `runuser -l`), in
a session of its own too. Such a process carries no token. It is the run's if its output is the run's log, or if its
parent is the run's shim or a process of the run. Reads /proc; writes nothing.
"""

from __future__ import annotations

import os
import stat
import time
from collections import namedtuple
from collections.abc import Collection, Mapping

from . import environments
from .environments import DEAD, EXEC_S, RUN_ID_VARIABLE, UNKNOWN


class Ties(namedtuple("Ties", ["output_log", "shim"], defaults=[None])):
    """What ties a process without any token to its run: its output, or its parent.

    Args:
        output_log: the path of the run's log; a process of the training writes into it with descriptor 1 or 2.
        shim: the Identity of the run's shim, the subreaper of the training; None where it is not known.
    """

    __slots__ = ()


def log_of(path: str) -> os.stat_result | None:
    """Return the file under a log's name, where it can be no other process's output: no link, no second name."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    # With a second name it may be another process's output, which a journal's writer has linked here.
    return found if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else None


def writes_into(pid: int, log: os.stat_result | None) -> bool:
    """Whether a process's standard output or error is this very file, and open for writing."""
    return log is not None and any(_is_open_as(pid, number, log) for number in (1, 2))


def tied(
    known: Collection[int], others: Collection[int], parents: Mapping[int, int], token: str, log: os.stat_result | None
) -> set[int]:
    """Return which of some processes belong to a run without carrying its token.

    None does that carries the token of another run, or was started to outlive the training (the run's id without its
    token), and nothing does that only such a process has started. What has started a process of another run (the
    launcher of a run within this one) is tied by its output alone.

    Args:
        known: the pids of the run's shim and of the processes that are known to be the training's.
        others: the pids in question.
        parents: pid -> its parent's pid, of `others` at least.
        token: the run token.
        log: the run's log; None where it ties nothing.
    """
    until = time.monotonic() + EXEC_S
    found = {pid for pid in others if writes_into(pid, log) and _is_free(pid, token, until)}
    children: dict[int, list[int]] = {}
    for pid in others:
        children.setdefault(parents[pid], []).append(pid)
    queue = [*known, *found]
    for parent in queue:  # grows while it is walked
        for pid in children.get(parent, ()):
            starts_another = any(environments.carried(one, token, until) == DEAD for one in children.get(pid, ()))
            if pid not in found and not starts_another and _is_free(pid, token, until):
                found.add(pid)
                queue.append(pid)
    return found


def _is_free(pid: int, token: str, until: float) -> bool:
    """Whether a process says of no other run, and not of this one either, that it belongs there."""
    carried = environments.carried(pid, token, until)
    return carried == UNKNOWN and environments.variable(pid, RUN_ID_VARIABLE) is None


def _is_open_as(pid: int, number: int, file: os.stat_result) -> bool:
    try:
        seen = os.stat(f"/proc/{pid}/fd/{number}")
        if (seen.st_dev, seen.st_ino) != (file.st_dev, file.st_ino):
            return False
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as info:
            flags = next((line.split()[1] for line in info if line.startswith("flags:")), "1")
    except OSError:
        return False
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
