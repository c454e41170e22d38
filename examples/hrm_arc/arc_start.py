"""Which step a run begins at, known before anything is loaded: it decides which optimizer is built (a planned swap).

Reads the launcher's plan or the checkpoint's manifest. Writes nothing.
Try it: `python examples/hrm_arc/train_arc_full_nova.py --describe --resume checkpoints/hrm_arc_step_400.pt`
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from arc_settings import SettingsError

MAX_BYTES = 4 << 20  # a plan or manifest has a few KB; one that names every parameter some more


def starting_step(resume: str | None, resume_step: int | None, pattern: str) -> int | None:
    """Return how many completed steps the run begins with; None where nothing tells.

    Args:
        resume: the checkpoint it goes on from; None or '' for a fresh start, which begins at 0.
        resume_step: the step that the command line names, if any.
        pattern: file name of a step's checkpoint, with '{step}'.

    Raises:
        SettingsError: there is a plan and it cannot be read.
    """
    if not resume:
        return 0
    plan = os.environ.get("RESUMEKIT_PLAN")
    planned = _planned_step(Path(plan)) if plan else None
    if planned is not None:
        return planned
    if resume_step is not None:
        return resume_step
    path = Path(resume)
    named = step_in_name(path.name, pattern)
    return named if named is not None else _step_in_manifest(path.with_name(f"{path.name}.json"))


def step_in_name(name: str, pattern: str) -> int | None:
    """Return the step in a checkpoint's file name, which must match the pattern from start to end; else None."""
    before, _, after = pattern.partition("{step}")
    digits = name[len(before) : len(name) - len(after)]
    whole = name.startswith(before) and name.endswith(after) and digits.isascii() and digits.isdecimal()
    return int(digits) if whole and len(digits) <= 15 else None


def _planned_step(path: Path) -> int | None:
    try:
        step = _read(path).get("step")
        if step is not None and not _is_step(step):
            raise ValueError(f"its step is '{step}', not a whole number")
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"the plan '{path}' (RESUMEKIT_PLAN) cannot be used: {error}; resume again") from error
    return step


def _step_in_manifest(path: Path) -> int | None:
    try:
        step = _read(path).get("step")
    except (OSError, ValueError, RecursionError):
        return None
    return step if _is_step(step) else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise ValueError("not a regular file of at most 4 MiB")
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise ValueError("it holds no JSON object")
    return document


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**15
