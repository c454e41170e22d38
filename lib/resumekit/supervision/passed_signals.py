"""Who gets a signal that is only handed on (`trainer.pass_signals`): what has a handler for it, nearest to the root.

What has no handler would die of it. A data worker has inherited its trainer's handler, and is not told: the trainer is.
"""

from __future__ import annotations

from ..basics import process_details
from ..basics.processes import Identity
from .shell_stops import in_foreground


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
