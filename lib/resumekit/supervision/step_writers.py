"""Which process of a training shows the steps: the one that has written what the run's log holds.

A TensorBoard or a sleeping helper beside the training inherits its output, its token and its lock, and writes next to
nothing. Reads /proc/PID/io and the size of logs/output.log; a kernel that keeps no such account says nothing.
Try it: `grep wchar /proc/self/io`
"""

from __future__ import annotations

import os

from ..run_folder.runs import Run

# So much is enough whatever the log holds: a wrapper may have started its training more than once.
ENOUGH_BYTES = 16 * 1024
# Of a shorter log.
SHARE = 0.5


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
