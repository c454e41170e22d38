"""Mistakes that a save could make, put into it on purpose: a check that finds nothing wrong with them sees nothing.

Each is a function that patches the kit in the process that is about to save, and will end after that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability.save_judge import RUN_ID
from resumekit.base import files
from resumekit.base.paths import default_patterns
from resumekit.checkpoint import manifest, pruning
from resumekit.trainer import save_file, saving
from resumekit.trainer.save_file import DurableFile


def _no_file_sync() -> None:
    DurableFile._sync = lambda self: None


def _no_folder_sync() -> None:
    for module in (files, save_file, saving):
        module.fsync_directory = lambda folder: None


def _no_manifest_sync() -> None:
    def write_temp(checkpoint: Path, known: manifest.Manifest) -> files.TempFile:
        temp = files.TempFile(manifest.manifest_path(checkpoint))
        temp.write(manifest.encode(known))
        temp.close()
        return temp

    manifest.write_temp = write_temp


def _no_rename() -> None:
    """Data and manifest are written straight under their names."""

    def publish(self: Any) -> None:
        self.temp = self.target.with_name(".none")
        files.fsync_directory(self.target.parent)

    files.temp_path = lambda path: path
    DurableFile.publish = publish


def _no_manifest() -> None:
    saving._publish = lambda file, known: file.publish()


def _prunes_first() -> None:
    """Before the new one has its name, it is counted as kept already."""
    real, names = saving._publish, {"run_id": RUN_ID, "pattern": default_patterns()[0], "best_name": ""}

    def publish(file: Any, known: Any) -> None:
        pruning.MIN_PROVEN, kept = 1, pruning.MIN_PROVEN
        pruning.prune(file.target.parent, pruning.Keep(1, None), claims=None, **names)
        pruning.MIN_PROVEN = kept
        real(file, known)

    saving._publish = publish


def _keeps_one_unordered() -> None:
    """Only the newest stays, and no fsync orders the removals behind the names that were given before."""
    _no_folder_sync()
    pruning.MIN_PROVEN = 1
    prune = pruning.prune
    pruning.prune = lambda folder, keep, **names: prune(folder, pruning.Keep(1, None), **{**names, "claims": None})


def _failed_sync_is_ignored() -> None:
    def sync(self: Any) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self.descriptor)

    DurableFile._sync = sync


def _short_write_counts_as_whole() -> None:
    def write(self: Any, data: Any) -> int:
        os.write(self.descriptor, data)
        with self._grown:
            self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    DurableFile.write = write


def _temp_file_stays() -> None:
    real = DurableFile.discard

    def discard(self: Any) -> None:
        self.temp = self.target.with_name(".none")
        real(self)

    DurableFile.discard = discard


def _unreadable_pins_are_none() -> None:
    real = pruning.pinned_steps

    def pinned_steps(claims: Path | None) -> frozenset[int]:
        try:
            return real(claims)
        except OSError:
            return frozenset()

    pruning.pinned_steps = pinned_steps


def _best_before_its_manifest() -> None:
    def link_best(target: Path, best_path: Path, known: manifest.Manifest, best: dict[str, Any]) -> OSError | None:
        temp = files.temp_path(best_path)
        try:
            os.link(target, temp)
            os.replace(temp, best_path)
            manifest.write(best_path, known._replace(file=best_path.name, best_score=float(best["score"])))
        except OSError as error:
            return error
        return None

    saving._link_best = link_best


def _no_parents_sync() -> None:
    saving.fsync_parents = lambda folder: None


# What a power cut shows: the mistake, and in which recording.
AT_POWER_LOSS: dict[str, tuple[Callable[[], None], str]] = {
    "no fsync of the file": (_no_file_sync, "save"),
    "no fsync of the folder": (_no_folder_sync, "save"),
    "no fsync of the folder's own name": (_no_parents_sync, "first save"),
    "no fsync of the manifest": (_no_manifest_sync, "save"),
    "no rename": (_no_rename, "save"),
    "no manifest": (_no_manifest, "save"),
    "prunes before the new one is durable": (_prunes_first, "save"),
    "keeps one, removal not ordered": (_keeps_one_unordered, "save"),
}
# What a fault shows: the mistake, and the calls at which one shows it.
IN_CALLS: dict[str, tuple[Callable[[], None], str]] = {
    "a failed fsync is ignored": (_failed_sync_is_ignored, "fsync"),
    "a short write counts as whole": (_short_write_counts_as_whole, "write"),
    "the temp file stays": (_temp_file_stays, "write"),
    "pins that can't be read are none": (_unreadable_pins_are_none, "opendir"),
    "the best before its manifest": (_best_before_its_manifest, "open"),
}
