"""Which process of a training shows the steps: the one that has written what the run's log holds.

A TensorBoard or a sleeping helper beside the training inherits its output, its token and its lock, and writes next to
nothing. Reads /proc/PID/io and the size of logs/output.log; a kernel that keeps no such account says nothing.
Try it: `grep wchar /proc/self/io`
"""

from __future__ import annotations

import contextlib
import os

from ..basics import journal, process_details
from ..basics.processes import Identity
from ..run_folder.runs import Run

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
