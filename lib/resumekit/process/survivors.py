"""What is left of a training whose first process has ended: its writers, spawned ranks, and the stop signal for
each part.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Collection

from ..base import journal, process_details, processes
from ..base.imports import Any
from ..base.processes import Identity
from ..base.values import seconds
from ..run import status
from ..run.journal_fold import State, fold
from ..run.run_folder import Run

# So much is enough whatever the log holds: a wrapper may have started its training more than once.
ENOUGH_BYTES = 16 * 1024
# Of a shorter log.
SHARE = 0.5


def is_wrapper(run: Run, pid: int, members: list[Identity]) -> bool:
    """Whether a process has not shown the steps, and one that it has started, or its child's child, has."""
    parents = {member.pid: process_details.parent_of(member.pid) for member in members}
    below = [pid]
    for one in below:  # grows while it is walked
        below += [child for child, parent in parents.items() if parent == one and child not in below]
    # The first process has written `launched` itself, before its exec.
    own = (process_details.written_bytes(pid) or 0) - launched_bytes(run)
    return not has_written(run, own) and any(
        has_written(run, process_details.written_bytes(child)) for child in below[1:]
    )


def launched_bytes(run: Run) -> int:
    """Return how much the first process of a training has written of the kit's own: the journal's first event."""
    with contextlib.suppress(OSError):
        return next((offset for _, offset in journal.read(run.paths.journal)), 0)
    return 0


def has_written(run: Run, written_bytes: int | None) -> bool:
    """Whether a process that has written so many bytes has written the steps; False where that is not known.

    What a trainer says of its steps in files (a heartbeat) counts too: of a log that is empty any byte is enough.
    """
    if written_bytes is None:
        return False
    try:
        size = os.stat(run.paths.output_log).st_size
    except OSError:
        size = 0
    return written_bytes >= max(1, min(SHARE * size, ENOUGH_BYTES))


# What is left of a training whose first process has ended, and the one stop signal that each part of it gets.
#
# The training is the trainer's session and whatever carries the run's token, not its first process: `bash train.sh`
# ends on a TERM at once, the Python inside it trains on. A signal to all of them would kill data workers in the
# middle of a save, and would reach torchrun's ranks twice. So a process is told once, and only when its own parent
# has ended.

# What the sidecar still reads out of the log that was written before this moment.
SETTLE_S = 1.0
# A trainer that was told to stop finishes the step that it is in; one that begins another was not.
STEPS_AFTER_A_STOP = 2
# What may have heard already, from its wrapper or with the whole job, is told only when it begins further steps after
# this share of the grace: it may finish an epoch, or look at its flag each hundred steps.
PATIENCE = 0.25
_SIGNS = frozenset({"saving", "checkpoint", "eval", "phase"})


def signal_for(run: Run, pid: int, number: int, members: list[Identity]) -> int:
    """Return the signal that stops a process where `number` is asked for: for INT, TERM where that would not do.

    A shell that waits for its child puts INT off until that has ended, and the child has not got it: at a terminal both
    would have. A shell's background job ignores INT. A wrapper in Python (`subprocess.run`) kills its child a quarter
    of a second after INT, because at a terminal that has got it too: it ends on TERM, and then its child gets the INT.

    Args:
        run: the run.
        pid: the process.
        number: what is asked for.
        members: the live processes of the training.
    """
    if number != signal.SIGINT:
        return number
    is_deaf = process_details.is_shell(pid) or process_details.ignores(pid, number)
    dies_of_term = not process_details.catches(pid, signal.SIGTERM) and not process_details.ignores(pid, signal.SIGTERM)
    return signal.SIGTERM if is_deaf or (dies_of_term and is_wrapper(run, pid, members)) else number


def tell(run: Run, process: Identity, number: int, members: list[Identity]) -> list[Identity]:
    """Send one process the signal that stops it, and CONT where it is suspended, so that it can save.

    Returns:
        Those that were told: the process, or the ranks that it has spawned and waits for.
    """
    wanted = signal_for(run, process.pid, number, members)
    meant = spawned_ranks_of(run, process.pid, wanted, members) or [process]
    told = [one for one in meant if processes.send(one, wanted)]
    for one in told:
        if process_details.is_suspended(one.pid):
            processes.send(one, signal.SIGCONT)
    return told


class Survivors:
    """The processes of one training, each told to stop at most once."""

    def __init__(self, run: Run, leader: Identity) -> None:
        self._run, self._leader = run, leader
        self._told: set[tuple[int, int]] = set()

    def members(self) -> list[Identity]:
        """Return the live processes of the training; one look through /proc."""
        return processes.session_members(self._leader)

    def orphans(self, members: list[Identity]) -> list[Identity]:
        """Return those whose parent has ended; none that reads what another one writes: the end of that one ends it."""
        pids = [member.pid for member in members]
        return [
            member
            for member in members
            if process_details.parent_of(member.pid) not in pids and not process_details.reads_from(member.pid, pids)
        ]

    def behind_shells(self) -> list[Identity]:
        """Return what the first process, a shell, has started, and shells below it; no reader of another's output."""
        members = self.members()
        parents = {member.pid: process_details.parent_of(member.pid) for member in members}
        shells, found = [self._leader.pid], []
        for shell in shells:  # grows while it is walked
            children = [member for member in members if parents[member.pid] == shell]
            pids = [child.pid for child in children]
            for child in children:
                if process_details.is_shell(child.pid):
                    shells.append(child.pid)
                elif not process_details.reads_from(child.pid, pids):
                    found.append(child)
        return found

    def tell(self, number: int, members: list[Identity]) -> None:
        """Send a stop signal to each orphan that has not been told."""
        for orphan in self.orphans(members):
            if _key(orphan) not in self._told and (told := tell(self._run, orphan, number, members)):
                self._told.update(_key(one) for one in (orphan, *told))

    def have_heard(self, numbers: Collection[int], members: list[Identity]) -> None:
        """Take note that these may have got one of some signals: it went to the whole job, or a wrapper handed it on.

        One that has no handler for them and is still there has not got it.
        """
        self._told.update(
            _key(member) for member in members if any(process_details.catches(member.pid, each) for each in numbers)
        )

    def forget(self) -> None:
        """Take back `have_heard`: they have not."""
        self._told.clear()


class Progress:
    """What a run's journal tells of its training from a moment on: steps, saves, evaluations.

    Args:
        run: the run.
        since_s: what the trainer itself has told after this moment, on the monotonic clock, is `has_own_word`.
    """

    def __init__(self, run: Run, since_s: float = math.inf) -> None:
        self._run, self._since_s = run, since_s
        self.has_own_word = False
        self.state: State
        self.state, self._offset = status.saved_state(run)
        self.steps = 0
        self.look()
        self.steps = 0

    def look(self) -> bool:
        """Read on; return whether anything new was told. An OSError (a network drive) is no news."""
        is_new = False
        try:
            for event, offset in status.told(self._run, self._offset):
                self._offset = offset
                is_new |= self._take(event)
        except OSError:
            return False
        return is_new

    def _take(self, event: dict[str, Any]) -> bool:
        before = self.state.get("step")
        self.state = fold(self.state, [event])
        self.has_own_word |= _is_own_word(event) and (seconds(event.get("mono_s")) or 0.0) > self._since_s
        has_stepped = self.state.get("step") != before
        self.steps += has_stepped
        return has_stepped or event["event"] in _SIGNS

    def begin_anew(self) -> None:
        """Count steps from here on."""
        self.steps = 0

    @property
    def trains_on(self) -> bool:
        return self.steps >= STEPS_AFTER_A_STOP


def _is_own_word(event: dict[str, Any]) -> bool:
    """Whether the trainer itself tells a step or a save; the sidecar tells them later than they were."""
    if event["event"] == "step":
        return event.get("source") != "log"
    return event["event"] == "saving" or (event["event"] == "checkpoint" and event.get("writer") != "sidecar")


def _key(member: Identity) -> tuple[int, int]:
    return member.pid, member.start_ticks


# The ranks of `torch.multiprocessing.spawn`: a stop is theirs where the process that has started them only waits.
#
# Their parent has no handler for TERM and dies of it; torch has the kernel send the ranks INT then, and takes that
# for an order to end at once. So ranks that save on the signal get it themselves; data workers never do. Try it:
# `python -m pytest tests/test_shell_stops.py -k ranks`

LOOK_S = 0.25
# What torch gives a data worker a handler for, and not for ABRT, for which faulthandler has one as well.
DATA_WORKER_S = (signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
# What the parent takes to end once its ranks have.
JOIN_S = 5.0


def spawned_ranks_of(run: Run, pid: int, number: int, members: list[Identity]) -> list[Identity]:
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
    shows_steps = any(has_written(run, process_details.written_bytes(rank.pid)) for rank in ranks)
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
