"""A stop that a shell puts off: `trap cleanup TERM` around a Python in the foreground, which the shell tells nothing.

A shell acts on its trap when its foreground child has ended, so that child is told from here, once. A child in the
background may have been told by the trap already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ..basics import process_details, processes
from ..basics.processes import Identity
from ..run_folder.runs import Run
from ..run_folder.save_wait import is_saving
from .save_signs import SaveSigns
from .survivors import Progress, Survivors, tell

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
