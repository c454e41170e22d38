"""Manifests for checkpoints of a trainer that writes none: given when a file is at rest and structurally sound.

A file that is written again under its name is looked at again: its manifest is renewed, where it is one of ours.
Writes manifests and `checkpoint` events.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from ..basics import journal
from ..basics.errors import KitError
from ..basics.files import UnreadableFile
from ..basics.paths import manifest_path, step_of_name
from ..run_folder.runs import Run

# A file that has not changed for this long is taken for at rest; one that goes on after that is looked at again.
REST_S = 5.0
# How often every file is looked at, beside the moments in which the folder changes: writing a file again in place
# changes nothing in its folder.
ALL_S = 10.0
# What could not be read or written down (a full disk, a drive that does not answer) is tried again after so long.
AGAIN_S = 60.0

Shape = tuple[int, int, int]


class Witness:
    """Looks at one run's checkpoint folder; its owner calls `look` every second or so."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: dict[Path, tuple[Shape, float]] = {}
        self._done: dict[Path, Shape] = {}
        self._folder_mtime_ns = -1
        self._looked_s = float("-inf")

    def look(self) -> None:
        """Give a manifest to each checkpoint without a good one that has been at rest for REST_S seconds."""
        now = time.monotonic()
        for step, path, shape in self._unwitnessed(now):
            seen, since = self._seen.get(path, (None, now))
            if seen != shape:
                self._seen[path] = (shape, now)
            elif now - since >= REST_S:
                self._give(step, path, shape)

    def look_last(self) -> None:
        """The trainer is gone, so every file is at rest: witness what is left, and what was written again."""
        self._looked_s = float("-inf")
        for step, path, shape in self._unwitnessed(time.monotonic()):
            self._give(step, path, shape)

    def _unwitnessed(self, now: float) -> list[tuple[int, Path, Shape]]:
        """List what is not done yet; nothing is read while nothing is new, waited for or due."""
        folder = self._run.paths.checkpoints
        try:
            mtime_ns = os.stat(folder).st_mtime_ns
        except OSError:
            return []
        if mtime_ns == self._folder_mtime_ns and not self._seen and now - self._looked_s < ALL_S:
            return []
        self._folder_mtime_ns, self._looked_s = mtime_ns, now
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
            return sorted(filter(None, (self._waits(folder / name) for name in names)))
        return []

    def _waits(self, path: Path) -> tuple[int, Path, Shape] | None:
        """Return (step, path, shape) of a checkpoint that has no manifest of what it holds now; None for any other."""
        step = step_of_name(path.name, self._run.step_pattern)
        shape = None if step is None else _shape(path)
        if step is None or shape is None or self._done.get(path) == shape:
            return None
        if not _is_outdated(path, shape, is_seen=path in self._done):
            self._done[path] = shape
            self._seen.pop(path, None)
            return None
        return step, path, shape

    def _give(self, step: int, path: Path, shape: Shape) -> None:
        from ..proving.grades import witness  # costs 15 ms; most runs write manifests of their own

        self._done[path] = shape
        self._seen.pop(path, None)
        record = self._run.record
        try:
            with contextlib.suppress(KitError, ValueError, FileExistsError):
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
        except OSError:
            del self._done[path]
            self._seen[path] = (shape, time.monotonic() + AGAIN_S - REST_S)


def _is_outdated(path: Path, shape: Shape, *, is_seen: bool) -> bool:
    """Whether a checkpoint has no manifest, a torn one, or one of ours that it has been written again behind.

    Args:
        is_seen: it had another shape before, so that its manifest is about that one.
    """
    try:
        beside = os.lstat(manifest_path(path))
    except OSError:
        return True
    from ..proving import manifest  # as above

    try:
        known = manifest.read(path)
    except UnreadableFile as error:
        return manifest.is_torn(error)
    return known.writer == manifest.SIDECAR and (known.size != shape[0] or beside.st_mtime_ns < shape[1] or is_seen)


def _shape(path: Path) -> Shape | None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return found.st_size, found.st_mtime_ns, found.st_ino
    return None
