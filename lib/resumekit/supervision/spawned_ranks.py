"""The ranks of `torch.multiprocessing.spawn`: a stop is theirs where the process that has started them only waits.

Their parent has no handler for TERM and dies of it; torch has the kernel send the ranks INT then, and takes that for an
order to end at once. So ranks that save on the signal get it themselves; data workers never do.
Try it: `python -m pytest tests/test_shell_stops.py -k ranks`
"""

from __future__ import annotations

import signal
import time

from ..basics import process_details, processes
from ..basics.processes import Identity
from ..run_folder.runs import Run
from . import step_writers

LOOK_S = 0.25
# What torch gives a data worker a handler for, and not for ABRT, for which faulthandler has one as well.
DATA_WORKER_S = (signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
# What the parent takes to end once its ranks have.
JOIN_S = 5.0


def of(run: Run, pid: int, number: int, members: list[Identity]) -> list[Identity]:
    """Return the ranks that get a signal instead of their parent; none where a process is no such parent.

    It would die of the signal, and has started by multiprocessing what has a handler for it and has shown the steps.
    How much the parent itself has written says nothing: it hands each rank its arguments through a pipe.
    """
    if process_details.catches(pid, number) or process_details.ignores(pid, number):
        return []
    own = process_details.arguments(pid)
    ranks = [
        member
        for member in members
        if process_details.parent_of(member.pid) == pid
        and process_details.catches(member.pid, number)
        and not _is_data_worker(member.pid)
        and _is_of_multiprocessing(process_details.arguments(member.pid), own)
    ]
    shows_steps = any(step_writers.has_written(run, process_details.written_bytes(rank.pid)) for rank in ranks)
    return ranks if shows_steps else []


def wait_for_parent(parent: Identity, ranks: list[Identity], number: int, deadline: float) -> None:
    """Wait until the parent of ranks that were told ends; it is told itself where it goes on when they have ended."""
    alone_since = None
    while time.monotonic() < deadline and not processes.wait_for_end(parent, LOOK_S):
        if any(processes.probe(rank) == processes.ALIVE for rank in ranks):
            continue
        alone_since = alone_since or time.monotonic()
        if time.monotonic() - alone_since > JOIN_S:
            processes.send(parent, number)
            return


def _is_data_worker(pid: int) -> bool:
    is_torch_s = all(process_details.catches(pid, number) for number in DATA_WORKER_S)
    return is_torch_s and not process_details.catches(pid, signal.SIGABRT)


def _is_of_multiprocessing(arguments: list[bytes], parent_s: list[bytes]) -> bool:
    """Whether Python's multiprocessing has started a process: by `spawn`, which says so, or by a fork of its parent."""
    return b"--multiprocessing-fork" in arguments or (bool(arguments) and arguments == parent_s)
