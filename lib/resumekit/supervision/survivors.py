"""What is left of a training whose first process has ended, and the one stop signal that each part of it gets.

The training is the trainer's session and whatever carries the run's token, not its first process: `bash train.sh` ends
on a TERM at once, the Python inside it trains on. A signal to all of them would kill data workers in the middle of a
save, and would reach torchrun's ranks twice. So a process is told once, and only when its own parent has ended.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Collection
from typing import Any

from ..basics import process_details, processes
from ..basics.processes import Identity
from ..run_folder import status
from ..run_folder.event_values import seconds
from ..run_folder.run_state import State, fold
from ..run_folder.runs import Run
from . import spawned_ranks, step_writers

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
    return signal.SIGTERM if is_deaf or (dies_of_term and step_writers.is_wrapper(run, pid, members)) else number


def tell(run: Run, process: Identity, number: int, members: list[Identity]) -> list[Identity]:
    """Send one process the signal that stops it, and CONT where it is suspended, so that it can save.

    Returns:
        Those that were told: the process, or the ranks that it has spawned and waits for.
    """
    wanted = signal_for(run, process.pid, number, members)
    meant = spawned_ranks.of(run, process.pid, wanted, members) or [process]
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
