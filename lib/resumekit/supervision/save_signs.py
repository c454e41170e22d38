"""What shows from outside that a training has begun to write a checkpoint, one that tells the kit nothing as well.

A file in the checkpoints folder that is new or has changed (a temp file that grows), or more bytes written by a process
than lines of a log are. Reads the folder and /proc/PID/io.
Try it: `python -m pytest tests/test_shell_stops.py`
"""

from __future__ import annotations

import os

from ..basics import process_details, processes
from ..run_folder.runs import Run

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
