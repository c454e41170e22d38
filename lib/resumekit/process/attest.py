"""Manifests for checkpoints of a trainer that writes none: given when a file is at rest and structurally sound.

A file that is written again under its name is looked at again: its manifest is renewed, where it is one of ours. Each
is read once, in a thread, while the sidecar goes on. Writes manifests and `checkpoint` events; of a checkpoint with one
name for all steps also copies (`kept_copies`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from ..base import claims, journal
from ..base.errors import KitError
from ..base.file_identity import FileIdentity, identity_at
from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, NamedTuple
from ..base.paths import manifest_path
from ..checkpoint import catalog, layout
from ..run.run_folder import Run

if TYPE_CHECKING:
    from ..checkpoint.manifest import Manifest

# A file that has not changed for this long is taken for at rest; one that goes on after that is looked at again.
REST_S = 5.0
# How often every file is looked at, beside the moments in which the folder changes: writing a file again in place
# changes nothing in its folder.
ALL_S = 10.0
# What could not be read or written down (a full disk, a drive that does not answer) is tried again after so long.
AGAIN_S = 60.0
# The kind of the warning that a checkpoint with one name for all steps could not be copied.
NOT_KEPT = "not_kept"


class _Waiting(NamedTuple):
    """A checkpoint without a manifest: its step by its name, -1 where that stands inside; the lowest is read first."""

    step: int
    path: Path
    shape: FileIdentity


class _Job(NamedTuple):
    """A file that is being read; `found` gets the manifest, or the error, when the thread ends."""

    thread: threading.Thread
    path: Path
    shape: FileIdentity
    found: list[Manifest | Exception]


class Attester:
    """Looks at one run's checkpoint folder; its owner calls `look` every second or so."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: dict[Path, tuple[FileIdentity, float]] = {}
        self._done: dict[Path, FileIdentity] = {}
        self._folder_mtime_ns = -1
        self._looked_s = float("-inf")
        self._job: _Job | None = None
        self._keeps, self._has_warned = False, False

    def look(self) -> None:
        """Give a manifest to each checkpoint without a good one that has been at rest for REST_S seconds.

        Returns at once: one file at a time is read meanwhile.
        """
        if self._job is not None and self._job.thread.is_alive():
            return
        self.settle()
        self._keeps, now = True, time.monotonic()
        for step, path, shape in self._unattested(now):
            seen, since = self._seen.get(path, (None, now))
            if seen != shape:
                self._seen[path] = (shape, now)
            elif now - since >= REST_S:
                self._give(step, path, shape)
                return

    def look_last(self) -> None:
        """The trainer is gone, so every file is at rest: attest what is left, and what was written again."""
        self.settle()
        self._keeps = False  # no save will be written over it any more
        self._looked_s = float("-inf")
        for step, path, shape in self._unattested(time.monotonic()):
            self._give(step, path, shape)
            self.settle()

    def _unattested(self, now: float) -> list[_Waiting]:
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

    def _waits(self, path: Path) -> _Waiting | None:
        """Return a checkpoint that has no manifest of what it holds now; None for any other."""
        form = self._run.form
        is_fixed = form.is_fixed and path.name == form.pattern
        step = None if is_fixed else form.step_of(path.name)
        shape = _shape(path, form.follow_links) if is_fixed or step is not None else None
        if shape is None or self._done.get(path) == shape:
            return None
        if not _is_outdated(path, shape, is_seen=path in self._done):
            self._done[path] = shape
            self._seen.pop(path, None)
            return None
        return _Waiting(-1 if step is None else step, path, shape)

    def _give(self, step: int, path: Path, shape: FileIdentity) -> None:
        self._done[path] = shape
        self._seen.pop(path, None)
        found: list[Manifest | Exception] = []
        thread = threading.Thread(
            target=self._read, args=(step, path, found), name="resumekit-attest", daemon=True
        )  # fmt: skip
        self._job = _Job(thread, path, shape, found)
        thread.start()

    def _read(self, step: int, path: Path, found: list[Manifest | Exception]) -> None:
        from ..checkpoint.grades import attest  # costs 15 ms; most runs write manifests of their own

        record = self._run.record
        try:
            manifest = attest(
                path,
                None if step < 0 else step,
                named=self._run.form,
                run_id=self._run.run_id,
                older=self._older(step),
                mb_per_s=self._run.max_read_mb_per_s,
                parent_run_id=record.get("parent_run_id"),
                parent_step=record.get("parent_step"),
                config_hash=record.get("config_hash"),
            )
            found.append(manifest)
            if step < 0 and self._keeps:
                self._keep(path, manifest)
        except Exception as error:  # it is taken down in the thread that has begun this
            found.append(error)

    def _keep(self, path: Path, manifest: Manifest) -> None:
        """Keep a copy of what will be written over; it is said once where that cannot be."""
        from . import kept_copies  # late: few trainers write one name again and again

        try:
            kept_copies.keep(self._run, path, manifest)
        except (OSError, UnreadableFile) as error:
            if not self._has_warned:
                self._has_warned = True
                message = f"no copy of '{path.name}' of step {manifest.step} is kept: {error}"
                with contextlib.suppress(OSError):
                    journal.append(self._run.paths.journal, "warning", self._run.run_id, kind=NOT_KEPT, message=message)

    def _older(self, step: int) -> list[Path]:
        """Return the run's checkpoints of earlier steps, the newest first."""
        folder, steps = self._run.paths.checkpoints, {}
        with contextlib.suppress(OSError):
            steps = dict(catalog.steps_in(folder, self._run.form))
        return [folder / steps[one] for one in sorted(steps, reverse=True) if one < step]

    def settle(self) -> None:
        """Wait for the file that is being read, and note what came of it."""
        if self._job is None:
            return
        job, self._job = self._job, None
        job.thread.join()
        (found,) = job.found
        try:
            if isinstance(found, Exception):
                raise found
            journal.append(
                self._run.paths.journal, "checkpoint", self._run.run_id, step=found.step, path=job.path.name,
                sha256=found.sha256, size=found.size, writer="sidecar",
            )  # fmt: skip
        except (KitError, ValueError, FileExistsError):
            pass  # it is not sound, or its trainer has written a manifest by now
        except OSError:
            del self._done[job.path]
            self._seen[job.path] = (job.shape, time.monotonic() + AGAIN_S - REST_S)


def attest_what_is_left(run: Run, wait_s: float = 0.0) -> None:
    """Give a manifest to each checkpoint that a dead run left without one: its sidecar may have died with the rest.

    For a recovery, and for a user's command that goes on from the run.

    Args:
        wait_s: how long to wait for a sidecar that is at work: it attests them itself. One that is not done by then is
            left alone.
    """
    give_up_s = time.monotonic() + wait_s
    while claims.is_held(run.paths.status_lock):
        if time.monotonic() >= give_up_s:
            return
        time.sleep(0.1)
    Attester(run).look_last()


def _is_outdated(path: Path, shape: FileIdentity, *, is_seen: bool) -> bool:
    """Whether a checkpoint has no manifest, a torn one, or one of ours that it has been written again behind.

    Args:
        is_seen: it had another shape before, so that its manifest is about that one.
    """
    beside = identity_at(manifest_path(path), os.lstat)
    if beside is None:
        return True
    from ..checkpoint import manifest  # as above

    try:
        known = manifest.read(path)
    except UnreadableFile as error:
        return manifest.is_torn(error)
    return known.writer == manifest.SIDECAR and (
        known.size != shape.size or beside.mtime_ns < shape.mtime_ns or is_seen
    )


def _shape(path: Path, follow_links: bool) -> FileIdentity | None:
    with contextlib.suppress(OSError):
        return layout.identity(path, follow_links=follow_links).lasting
    return None
