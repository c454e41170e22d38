"""Whether a trainer goes on saving: a new checkpoint, or an old one renewed, is progress though no step be told.

Looks at names, sizes and times of the files that `checkpoint.pattern` and `checkpoint.best_pattern` mean; reads none of
them. A file that is whole gets its manifest by `witness`; this one counts, whatever is in it.
Try it: `python -m pytest tests/test_progress.py -k checkpoint`
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ..basics.paths import step_of_name
from ..run_folder.runs import Run

# One directory listing and a stat for each checkpoint; a hang is a matter of minutes.
LOOK_S = 5.0


class NewCheckpoints:
    """Looks at one run's checkpoint folder; its owner calls `look` every second or so.

    Args:
        run: the run.
        saved: the account of the sidecar before this one.
    """

    def __init__(self, run: Run, saved: dict[str, Any]) -> None:
        self._run = run
        self._shapes: dict[str, tuple[int, int]] | None = None
        self._looked_s = float("-inf")
        self._saved_s = saved.get("saved_s")

    @property
    def account(self) -> dict[str, Any]:
        """Return when the last change was seen, on the monotonic clock: what a successor goes on from."""
        return {"saved_s": self._saved_s}

    def look(self, now: float) -> None:
        """Note whether a checkpoint has come, or has changed, since the last look. What was there before is none."""
        if now - self._looked_s < LOOK_S:
            return
        self._looked_s = now
        shapes = self._listed()
        if self._shapes is not None and any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._saved_s = now
        self._shapes = shapes

    def _listed(self) -> dict[str, tuple[int, int]]:
        pattern, best = self._run.step_pattern, self._run.best_pattern
        found = {}
        with contextlib.suppress(OSError), os.scandir(self._run.paths.checkpoints) as entries:
            for entry in entries:
                if entry.name == best or step_of_name(entry.name, pattern) is not None:
                    with contextlib.suppress(OSError):
                        shape = entry.stat(follow_symlinks=False)
                        found[entry.name] = (shape.st_size, shape.st_mtime_ns)
        return found
