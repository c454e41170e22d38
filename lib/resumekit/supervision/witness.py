"""Manifests for checkpoints of a trainer that writes none: given when a file is at rest and structurally sound."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from ..basics import journal
from ..basics.errors import KitError
from ..basics.paths import manifest_path, step_of_name
from ..run_folder.runs import Run

# A file that has not changed for this long is at rest; a slow writer pauses for less.
REST_S = 5.0


class Witness:
    """Looks at one run's checkpoint folder; its owner calls `look` every second or so."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._done: set[Path] = set()
        self._folder_mtime_ns = -1

    def look(self) -> None:
        """Give a manifest to each checkpoint without one that has been at rest for REST_S seconds."""
        for step, path in self._unwitnessed():
            now, shape = time.monotonic(), _shape(path)
            if shape is None:
                continue
            seen, since = self._seen.get(path, (None, now))
            if seen != shape:
                self._seen[path] = (shape, now)
            elif now - since >= REST_S:
                self._give(step, path)

    def look_last(self) -> None:
        """The trainer is gone, so every file is at rest: witness what is left."""
        for step, path in self._unwitnessed():
            self._give(step, path)

    def _unwitnessed(self) -> list[tuple[int, Path]]:
        """List the folder, unless nothing was made in it since the last look and nothing is being waited for."""
        try:
            mtime_ns = os.stat(self._run.paths.checkpoints).st_mtime_ns
        except OSError:
            return []
        if mtime_ns == self._folder_mtime_ns and not self._seen:
            return []
        self._folder_mtime_ns = mtime_ns
        pattern, folder, found = self._run.step_pattern, self._run.paths.checkpoints, []
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                step = step_of_name(entry.name, pattern)
                path = folder / entry.name
                if step is not None and path not in self._done and not os.path.lexists(manifest_path(path)):
                    found.append((step, path))
        return sorted(found)

    def _give(self, step: int, path: Path) -> None:
        from ..proving.grades import witness  # costs 15 ms; most runs write manifests of their own

        self._done.add(path)
        self._seen.pop(path, None)
        record = self._run.record
        with contextlib.suppress(OSError, KitError, ValueError):
            manifest = witness(
                path,
                step,
                run_id=self._run.run_id,
                parent_run_id=record.get("parent_run_id"),
                parent_step=record.get("parent_step"),
                config_hash=record.get("config_hash"),
            )
            journal.append(
                self._run.paths.journal, "checkpoint", self._run.run_id, step=manifest.step, path=path.name,
                sha256=manifest.sha256, size=manifest.size, writer="sidecar",
            )  # fmt: skip


def _shape(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return found.st_size, found.st_mtime_ns
    return None
