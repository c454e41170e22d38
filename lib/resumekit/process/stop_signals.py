"""Who gets a stop signal where a shell or a wrapper stands before the training, and the signs of a save under way."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ..base import process_details, processes
from ..base.processes import Identity
from ..run.run_folder import Run
from ..run.throughput import is_saving
from .survivors import Progress, Survivors, tell

# Since the last sign: a progress bar that is drawn ten times a second writes a tenth of it in a quarter of a minute.
SAVE_BYTES = 256 * 1024


class SaveSigns:
    """Compares each look at a training with the one before.

    Args:
        run: the run.
        members: its live processes.
    """

    def __init__(self, run: Run, members: list[processes.Identity]) -> None:
        self._run = run
        self._newest = self._newest_change()
        self._written: dict[int, int] = {}
        self._has_written(members)

    def look(self, members: list[processes.Identity]) -> bool:
        """Whether a checkpoint has been written to since the last look."""
        newest, self._newest = self._newest, self._newest_change()
        has_changed = newest != self._newest
        return self._has_written(members) or has_changed

    def _newest_change(self) -> int:
        """Return the time of the newest change in the checkpoints folder, and in the folders in it; 0 for none."""
        newest = 0
        try:
            with os.scandir(self._run.paths.checkpoints) as found:
                for entry in found:
                    newest = max(newest, entry.stat(follow_symlinks=False).st_mtime_ns)
                    if entry.is_dir(follow_symlinks=False):
                        newest = max(newest, _newest_in(entry.path))
        except OSError:
            return newest  # a network drive, or a temp file that has just got its name
        return newest

    def _has_written(self, members: list[processes.Identity]) -> bool:
        has_written = False
        for member in members:
            written = process_details.written_bytes(member.pid) or 0
            if written - self._written.setdefault(member.pid, written) >= SAVE_BYTES:
                self._written[member.pid] = written
                has_written = True
        return has_written


def _newest_in(folder: str) -> int:
    with os.scandir(folder) as found:
        return max((entry.stat(follow_symlinks=False).st_mtime_ns for entry in found), default=0)


# A stop that a shell puts off: `trap cleanup TERM` around a Python in the foreground, which the shell tells
# nothing.
#
# A shell acts on its trap when its foreground child has ended, so that child is told from here, once. A child in
# the background may have been told by the trap already.

LOOK_S = 0.25


def in_foreground(child: int, shell: int) -> bool:
    """Whether a shell waits for a child before it acts on a signal.

    A job in the background ignores QUIT, or has a process group of its own where the shell has job control.
    """
    with contextlib.suppress(OSError):
        is_same_group = os.getpgid(child) == os.getpgid(shell)
        return is_same_group and not process_details.ignores(child, signal.SIGQUIT)
    return False


def tell_first(run: Run, shell: Identity, number: int, deadline: float, patience_s: float, *, has_heard: bool) -> None:
    """Tell what a shell, the first process, waits for, once; until then wait for the shell's end, or for the deadline.

    Whatever begins further steps after the patience has heard nothing. A child in the foreground that catches the
    signal cannot have heard, and is told after the patience in any case; one that saves, when it has done so: it may
    have the signal from elsewhere.

    Args:
        run: the run.
        shell: its first process, which has got the signal.
        number: the signal.
        deadline: the end of the grace.
        patience_s: how long what may have heard is waited for.
        has_heard: the signal went to every process of the job.
    """
    survivors, progress, begun = Survivors(run, shell), Progress(run), time.monotonic()
    signs, quiet_since = SaveSigns(run, survivors.members()), begun
    while time.monotonic() < deadline and not processes.wait_for_end(shell, LOOK_S):
        progress.look()
        if time.monotonic() - begun <= patience_s:
            progress.begin_anew()
        children = survivors.behind_shells()
        if signs.look(children) or is_saving(progress.state):
            quiet_since = time.monotonic()
        is_quiet = not has_heard and time.monotonic() - quiet_since > patience_s
        if not progress.trains_on:
            children = [child for child in children if is_quiet and _is_held(child.pid, shell.pid, number)]
        if children:
            for child in children:
                tell(run, child, number, survivors.members())
            return


def _is_held(pid: int, shell: int, number: int) -> bool:
    """Whether a process would act on a signal that a shell keeps to itself until this process has ended."""
    return process_details.catches(pid, number) and in_foreground(pid, shell)


# Who gets a signal that is only handed on (`trainer.pass_signals`): what has a handler for it, nearest to the root.
#
# What has no handler would die of it. A data worker has inherited its trainer's handler, and is not told: the
# trainer is.


def recipients(members: list[Identity], number: int) -> list[Identity]:
    """Return the processes of a training that a signal is for; none where nothing has a handler for it.

    Args:
        members: its live processes.
        number: the signal.
    """
    by_pid = {member.pid: member for member in members}
    parents = {pid: process_details.parent_of(pid) for pid in by_pid}
    below = [pid for pid, parent in parents.items() if parent not in by_pid]
    found = []
    for pid in below:  # grows while it is walked
        children = [child for child, parent in parents.items() if parent == pid]
        if process_details.catches(pid, number):
            found.append(by_pid[pid])
            # A shell hands it on only when its foreground child has ended.
            is_shell = process_details.is_shell(pid)
            children = [child for child in children if is_shell and in_foreground(child, pid)]
        below += children
    return found
