"""What the launcher told this trainer: its run folder, run id, lineage and config hash; and the way into the journal.

Reads the RESUMEKIT_* environment and the run folder's run.json once. Without the kit everything is None and nothing is
written, so that a trainer with these helpers also runs by hand.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..basics import journal
from ..basics.files import UnreadableFile, read_json
from ..basics.paths import BEST_PATTERN, STEP_PATTERN, RunPaths
from ..run_folder.runs import open_run
from . import left_out


def run_dir() -> Path | None:
    """Return the run folder, None without the kit."""
    name = os.environ.get("RESUMEKIT_RUN_DIR")
    return Path(name) if name else None


def lineage() -> dict[str, Any]:
    """Return run_id, parent_run_id, parent_step and config_hash of this run; None for what is unknown."""
    folder = run_dir()
    parent_run_id, parent_step = _parent(str(folder)) if folder else (None, None)
    config_hash = os.environ.get("RESUMEKIT_CONFIG_HASH", "")
    return {
        "run_id": os.environ.get("RESUMEKIT_RUN_ID") or None,
        "parent_run_id": parent_run_id,
        "parent_step": parent_step,
        "config_hash": config_hash if re.fullmatch("[0-9a-f]{12,64}", config_hash) else None,
    }


def journal_event(event: str, /, **fields: Any) -> None:
    """Append an event to the run's journal; nothing without the kit.

    A journal that can't be written must not stop a training: OSError is swallowed here.

    Args:
        event: the kind, such as 'step', 'eval' or 'phase'.
        fields: plain values; numbers keep full precision.
    """
    folder = run_dir()
    if folder is None:
        return
    run_id, path = os.environ.get("RESUMEKIT_RUN_ID"), RunPaths(folder).journal
    try:
        journal.append(path, event, run_id, **fields)
        # Here the trainer has gone on, and what a recovery told it to leave out is behind it, asked for or not.
        for sentence in left_out.not_asked(fields.get("step")) if event in ("step", "saving") else ():
            journal.append(path, "warning", run_id, kind=left_out.NOT_LEFT_OUT, message=sentence)
    except OSError:
        return


def checkpoint_patterns() -> tuple[str, str]:
    """Return `checkpoint.pattern` and `checkpoint.best_pattern` of this run's config; the kit's own without one.

    The launcher looks for checkpoints by these names: saved under others they would not be found again.
    """
    folder = run_dir()
    return _patterns(str(folder)) if folder else (STEP_PATTERN, BEST_PATTERN)


@lru_cache(maxsize=4)
def _patterns(folder: str) -> tuple[str, str]:
    run = open_run(Path(folder))
    return run.step_pattern, run.best_pattern


@lru_cache(maxsize=4)
def _parent(folder: str) -> tuple[str | None, int | None]:
    try:
        run = read_json(RunPaths(Path(folder)).run_json, 1 << 20)
    except UnreadableFile:
        return None, None
    run = run if isinstance(run, dict) else {}
    run_id, step = run.get("parent_run_id"), run.get("parent_step")
    return (run_id if isinstance(run_id, str) else None), (step if type(step) is int else None)
