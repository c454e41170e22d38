"""Which old checkpoints may go, and which leftovers of dead writers are swept.

Only files that this run's save_checkpoint wrote, and copies that its sidecar kept, are ever removed: never below two
that count, never a pinned one, the best one, or one that the kit did not write. Reads manifests and the run's claims;
removes files.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from ..base.claims import locked
from ..base.errors import KitError
from ..base.files import UnreadableFile, parse_temp_name, read_json
from ..base.paths import MANIFEST_SUFFIX, STEP_DIGITS, RunPaths, checkpoint_name, manifest_path, step_of_name
from ..base.process_details import start_ticks
from ..base.values import mapping
from . import layout, manifest

MIN_PROVEN = 2
# What `save_sharded` and torch's own writer put into a temp folder.
_OF_SHARDED_SAVE = re.compile(r"__[0-9]+_[0-9]+\.distcp|\.metadata(\.tmp)?|(\.resumekit\.pt\.tmp-.+|resumekit\.pt)")
_PIN = re.compile(rf"pin_(?P<step>[0-9]{{1,{STEP_DIGITS}}})(?![0-9]).*\.json", re.DOTALL)


@dataclass(frozen=True)
class Keep:
    """What stays: the newest `last`, and every step that `every` divides; None switches one off."""

    last: int | None
    every: int | None


def prune(
    folder: Path,
    keep: Keep,
    *,
    run_id: str | None,
    claims: Path | None,
    pattern: str,
    best_name: str,
    writer: str = manifest.SAVE_CHECKPOINT,
) -> list[Path]:
    """Remove this run's old checkpoints; call it after the newest one is durable.

    Args:
        folder: the checkpoints.
        run_id: whose may go; a manifest that names another run protects its file.
        claims: the run's claims folder, where a branch pins the step that it starts from.
        pattern, best_name: `checkpoint.pattern` and `checkpoint.best_pattern`.
        writer: who has made those that may go.

    Returns:
        The files removed. One that can't be removed is left.
    """
    names = _names(folder)
    _sweep_manifests(folder, names, run_id=run_id, pattern=pattern)
    if keep.last is None:
        return []
    steps = sorted({step for name in names if (step := step_of_name(name, pattern)) is not None}, reverse=True)
    kept, removed = 0, []
    for step in steps:
        path = folder / checkpoint_name(pattern, step)
        if path.name + MANIFEST_SUFFIX not in names or not _is_own(path, step, run_id, writer):
            continue
        kept += 1
        if kept <= max(keep.last, MIN_PROVEN) or (keep.every and step % keep.every == 0):
            continue
        with contextlib.suppress(OSError):
            if layout.is_same(path, folder / best_name) or step in pinned_steps(claims):
                continue
            # The data first: a manifest without data is nothing, data without a manifest would be a riddle.
            layout.remove(path)
            removed.append(path)
            manifest_path(path).unlink()
    return removed


def prune_own(
    folder: Path,
    keep: Keep,
    run_dir: Path | None,
    *,
    run_id: str | None,
    pattern: str,
    best_name: str,
    writer: str = manifest.SAVE_CHECKPOINT,
) -> None:
    """Prune under the run's lock, so that no branch pins a step in between; not now if it is held.

    Args:
        run_dir: the run folder; None without the kit, where nothing is pinned.
        run_id, pattern, best_name, writer: as for `prune`.
    """
    if run_dir is None:
        prune(folder, keep, run_id=run_id, claims=None, pattern=pattern, best_name=best_name, writer=writer)
        return
    own = RunPaths(run_dir)
    with contextlib.suppress(OSError, KitError), locked(own.lock, wait_s=1.0):
        prune(folder, keep, run_id=run_id, claims=own.claims, pattern=pattern, best_name=best_name, writer=writer)


def pinned_steps(claims: Path | None) -> frozenset[int]:
    """Return the steps that `claims/pin_<step>*.json` protect; OSError where that cannot be read: then none may go."""
    names: list[str] = []
    if claims is not None:
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(claims)
    matches = map(_PIN.fullmatch, names)
    return frozenset(int(match["step"]) for match in matches if match)


def sweep(folder: Path) -> list[Path]:
    """Remove our own temp files and temp folders whose writer is dead; nothing else, and nothing of another host's run.

    Returns:
        What was removed.
    """
    if _of_another_host(folder.parent):
        return []
    removed = []
    for name in _names(folder):
        temp = parse_temp_name(name)
        path = folder / name
        if temp is None or start_ticks(temp.pid) == temp.start_ticks:
            continue
        with contextlib.suppress(OSError):
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                path.unlink()
            elif not stat.S_ISDIR(mode) or not _remove_cut_save(path):
                continue
            removed.append(path)
    return removed


def _remove_cut_save(folder: Path) -> bool:
    """Remove the temp folder of a sharded save that was cut; not one that holds what no such save writes."""
    names = os.listdir(folder)
    if not all(map(_OF_SHARDED_SAVE.fullmatch, names)):
        return False
    for name in names:
        (folder / name).unlink()
    folder.rmdir()
    return True


def _sweep_manifests(folder: Path, names: set[str], *, run_id: str | None, pattern: str) -> None:
    """Remove the manifests of this run whose checkpoint is gone: pruned by another hand, or by a save cut in two.

    Only what the kit wrote: named like a step's manifest, valid, and of this run.
    """
    for name in names:
        data = name.removesuffix(MANIFEST_SUFFIX)
        if data == name or data in names or step_of_name(data, pattern) is None:
            continue
        with contextlib.suppress(OSError, UnreadableFile):
            known = manifest.read(folder / data)
            is_gone = not os.path.lexists(folder / data)  # the listing may be older than a save of this moment
            if is_gone and known.run_id == run_id and stat.S_ISREG(os.lstat(folder / name).st_mode):
                (folder / name).unlink()


def _is_own(path: Path, step: int, run_id: str | None, writer: str) -> bool:
    seen = layout.own_identity(path)
    try:
        known = manifest.read(path)
    except UnreadableFile:
        return False
    return (
        seen is not None
        and seen.size == known.size
        and known.writer == writer
        and known.step == step
        and known.run_id == run_id
        and known.finite is not False
        and (writer != manifest.SAVE_CHECKPOINT or (known.finite is True and known.step_completed is True))
    )


def _of_another_host(run_folder: Path) -> bool:
    """A process id says nothing about a writer on another machine that shares the disk."""
    try:
        run = mapping(read_json(run_folder / "run.json", 1 << 20))
    except UnreadableFile:
        return False
    return run.get("host") not in (None, os.uname().nodename)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
