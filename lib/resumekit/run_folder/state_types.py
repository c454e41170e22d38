"""What a folded state may hold: its keys, each with the type that a fold gives it.

A saved state comes from a file, and that may be anybody's: it is taken whole, or not at all.
Try it: `python -m pytest tests/test_run_state.py`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..basics import check
from . import pace, step_counters, symptoms
from .event_values import at, count, fields, flag, integer, number, process, seconds, speed, text

# Phases in which no step is expected; their time is left out of the speed.
WAITING_PHASES = frozenset({"startup", "compile", "fast_eval", "full_eval", "checkpoint"})
PHASES = frozenset({"warmup", "train"}) | WAITING_PHASES
# So many kinds of warnings are remembered.
MAX_KINDS = 30


def is_sound(state: object) -> bool:
    """Whether a state that was read from a file has the types that `fold` gives it."""
    if not isinstance(state, dict):
        return False
    if any(key not in _TYPES or _TYPES[key](value) is None for key, value in state.items()):
        return False
    measured = ("step", "step_mono_s", "first_step", "first_step_mono_s", "waited_s")
    return len({key in state for key in measured}) == 1  # all of them or none: one without the others cannot be used


def _texts(value: Any) -> list[str] | None:
    return value if isinstance(value, list) and len(value) <= MAX_KINDS and all(map(text, value)) else None


def _verdicts(value: Any) -> dict[str, str] | None:
    is_sound = isinstance(value, dict) and all(
        name in check.NAMES and verdict in check.VERDICTS for name, verdict in value.items()
    )
    return value if is_sound else None


RECOVERY: dict[str, Callable[[Any], Any]] = {
    "outcome": text, "cause": text, "parent_run_id": text, "child_run_id": text, "step": count, "attempt": count,
    "lr_factor": number, "reason": text, "at": at,
}  # fmt: skip
# Every key of a state, with the type that a fold gives it.
_TYPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("loss", "lr", "lr_scale", "best_eval_acc", "waited_s", "saved_s"), number),
    "steps_per_sec": speed,
    **dict.fromkeys(("step_mono_s", "first_step_mono_s", "waiting_since_s", "saving_since_s", "active_mono_s",
                     "suspended_since_s",
                     "longest_stand_s"), seconds),
    **dict.fromkeys(("events", "step", "first_step", "resumed_step", "epoch", "last_fast_eval_step", "warnings",
                     "last_full_eval_step", "best_step", "last_checkpoint_step", "swap_from_step"), count),
    "phase": lambda value: value if text(value) in PHASES else None,
    **dict.fromkeys(("optimizer", "scheduler_phase", "last_warning", "stop_asked_by"), text),
    "last_progress_at": at,
    "warned_of": _texts,
    "tells_steps": flag,
    "tells_phases": flag,
    "has_stepped": flag,
    "has_step_events": flag,
    "pace": lambda value: value if pace.is_sound(value) else None,
    "counters": lambda value: value if step_counters.is_sound(value) else None,
    "symptoms": lambda value: value if symptoms.is_sound(value) else None,
    "launched": fields(trainer=process, shim=process, launcher=process, at=at, mono_s=seconds),
    "checks": _verdicts,
    **dict.fromkeys(
        ("aborted", "died"), fields(cause=text, evidence=text, at=at, mono_s=seconds, first_bad_step=count)
    ),
    "recovery": fields(**RECOVERY),
    "stopped": fields(by=text, at=at, has_handler=flag),
    "taken_over": fields(by=text, host=text, child_run_id=text, at=at, last_sign_s=number, session_lock=text),
    "exited": fields(code=integer, signal=integer, at=at),
}  # fmt: skip
