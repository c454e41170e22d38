"""What a folded state may hold: its keys, each with the type that a fold gives it.

A saved state comes from a file, and that may be another user's: it is taken whole, or not at all.
Try it: `python -m pytest tests/test_journal_fold.py`
"""

from __future__ import annotations

from ..base import terms
from ..base.imports import Any
from ..base.processes import identity_from
from ..base.values import (
    Reader,
    at,
    count,
    fields,
    flag,
    integer,
    listed,
    number,
    one_of,
    seconds,
    short_text,
    some_of,
    speed,
    text,
)
from . import health, steps, throughput

# Phases in which no step is expected; their time is left out of the speed.
WAITING_PHASES = frozenset({"startup", "compile", "fast_eval", "full_eval", "checkpoint"})
PHASES = frozenset({"warmup", "train"}) | WAITING_PHASES
# Who may tell a learning rate or a best score, the one that is believed first: the trainer's event of that very step,
# its heartbeat, a number in its log.
TELLERS = ("event", "heartbeat", "log")
# So many kinds of warnings are remembered.
MAX_KINDS = 30


def process(value: Any) -> dict[str, Any] | None:
    """Read a process's identity; a field that this kit does not know is left out."""
    found = identity_from(value)
    return found.as_fields() if found else None


def is_sound(state: Any) -> bool:
    """Whether a state that was read from a file has the types that `fold` gives it."""
    if _read(state) is None:
        return False
    measured = ("step", "step_mono_s", "first_step", "first_step_mono_s", "waited_s")
    return len({key in state for key in measured}) == 1  # all of them or none: one without the others cannot be used


# Of a `recovery` event; its texts are cut.
RECOVERY: dict[str, Reader] = {
    "outcome": text, "cause": text, "parent_run_id": text, "child_run_id": text, "step": count, "attempt": count,
    "lr_factor": number, "reason": text, "at": at,
}  # fmt: skip
# Every key of a state, with the type that a fold gives it.
_TYPES: dict[str, Reader] = {
    **dict.fromkeys(("loss", "lr", "lr_scale", "best_eval_acc", "waited_s", "saved_s", "longest_save_s"), number),
    "steps_per_sec": speed,
    **dict.fromkeys(("step_mono_s", "first_step_mono_s", "waiting_since_s", "saving_since_s", "active_mono_s",
                     "suspended_since_s",
                     "longest_stand_s"), seconds),
    **dict.fromkeys(("events", "step", "first_step", "resumed_step", "epoch", "last_fast_eval_step", "warnings",
                     "last_full_eval_step", "best_step", "last_checkpoint_step", "swap_from_step",
                     "max_steps"), count),
    "phase": one_of(PHASES),
    **dict.fromkeys(("optimizer", "scheduler_phase", "last_warning", "recovery_waits", "stop_asked_by", "best_metric",
                     "log_format"), short_text),
    "last_progress_at": at,
    "warned_of": listed(short_text, MAX_KINDS),
    "tellers": some_of(dict.fromkeys(("lr", "best_eval_acc"), one_of(TELLERS))),
    "tells_steps": flag,
    "tells_phases": flag,
    "has_stepped": flag,
    "has_step_events": flag,
    "pace": throughput.saved,
    "counters": steps.saved,
    "symptoms": health.saved,
    "launched": fields({"trainer": process, "shim": process, "launcher": process, "at": at, "mono_s": seconds}),
    "checks": some_of(dict.fromkeys(terms.NAMES, terms.verdict_of)),
    **dict.fromkeys(
        ("aborted", "died"),
        fields({"cause": short_text, "evidence": short_text, "at": at, "mono_s": seconds, "first_bad_step": count}),
    ),
    "recovery": fields({key: short_text if of is text else of for key, of in RECOVERY.items()}),
    "stopped": fields({"by": short_text, "at": at, "has_handler": flag}),
    "job_ends": fields({"cause": one_of(terms.JOB_CAUSES), "reason": short_text}),
    "taken_over": fields({
        **dict.fromkeys(("by", "host", "child_run_id", "session_lock"), short_text), "at": at, "last_sign_s": number,
    }),
    "exited": fields({"code": integer, "signal": integer, "at": at}),
}  # fmt: skip
_read = some_of(_TYPES)
