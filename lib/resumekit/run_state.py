"""What a journal adds up to: `fold(state, events)`, pure and incremental.

The state is a plain dict that goes to disk as JSON, so that a reader goes on from a saved byte offset and a journal of
a million events costs nothing per beat. Values come from files: each is taken only if it has the right type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

# Phases in which no step is expected; their time is left out of the speed.
WAITING_PHASES = frozenset({"startup", "compile", "fast_eval", "full_eval", "checkpoint"})
PHASES = frozenset({"warmup", "train"}) | WAITING_PHASES

State = dict[str, Any]
Event = dict[str, Any]


def fold(state: State, events: Iterable[Event]) -> State:
    """Return the state after `events`; the given state is not changed.

    Args:
        state: {} for the beginning of a run, or what an earlier fold returned.
        events: journal events in the order of the file; unknown kinds only count.
    """
    result = dict(state)
    for event in events:
        result["events"] = result.get("events", 0) + 1
        kind = event["event"]
        if kind in _FOLDS:
            _FOLDS[kind](result, event)
    return result


def measured_speed(state: State) -> float | None:
    """Return optimizer steps per second since the resume point, evals and saves left out; None before two steps."""
    steps = state.get("step", 0) - state.get("first_step", 0)
    seconds = state.get("step_mono_s", 0.0) - state.get("first_step_mono_s", 0.0) - state.get("waited_s", 0.0)
    return steps / seconds if steps > 0 and seconds > 0 else None


def _launched(state: State, event: Event) -> None:
    state["launched"] = {key: event.get(key) for key in ("trainer", "shim", "launcher", "at", "mono_s")}
    state.setdefault("phase", "startup")


def _resumed(state: State, event: Event) -> None:
    _take(state, event, "step", _count, "resumed_step")
    _take(state, event, "lr_scale", _number)


def _step(state: State, event: Event) -> None:
    step, mono_s = _count(event.get("step")), _number(event.get("mono_s"))
    if step is None or mono_s is None:
        return
    if "first_step" not in state:
        state.update(first_step=step, first_step_mono_s=mono_s, waited_s=0.0)
    if state.get("phase") in WAITING_PHASES and "waiting_since_s" not in state:
        state["phase"] = "train"  # a trainer that names no phases trains when it steps
    state.update(step=step, step_mono_s=mono_s, last_progress_at=_text(event.get("at")))
    for key in ("loss", "lr", "steps_per_sec"):
        _take(state, event, key, _number)
    _take(state, event, "epoch", _count)


def _phase(state: State, event: Event) -> None:
    phase, mono_s = event.get("phase"), _number(event.get("mono_s"))
    if phase not in PHASES or mono_s is None:
        return
    since = state.pop("waiting_since_s", None)
    if since is not None and "first_step" in state:
        state["waited_s"] += max(0.0, mono_s - since)
    if phase in WAITING_PHASES:
        state["waiting_since_s"] = mono_s
    state["phase"] = phase


def _eval(state: State, event: Event) -> None:
    if event.get("kind") in ("fast", "full"):
        _take(state, event, "step", _count, f"last_{event['kind']}_eval_step")


def _best(state: State, event: Event) -> None:
    _take(state, event, "step", _count, "best_step")
    _take(state, event, "score", _number, "best_eval_acc")


def _checkpoint(state: State, event: Event) -> None:
    _take(state, event, "step", _count, "last_checkpoint_step")


def _heartbeat(state: State, event: Event) -> None:
    """Take from the trainer's own payload what only it knows, where no event has said it."""
    for key in ("best_eval_acc", "lr_scale", "loss", "lr"):
        _take(state, event, key, _number)
    for key in ("last_fast_eval_step", "last_full_eval_step", "best_step", "swap_from_step", "epoch"):
        _take(state, event, key, _count)
    for key in ("optimizer", "scheduler_phase"):
        _take(state, event, key, _text)
    if "step" not in state:
        _take(state, event, "global_step", _count, "step")


def _swap(state: State, event: Event) -> None:
    _take(state, event, "step", _count, "swap_from_step")
    _take(state, event, "optimizer", _text)


def _warning(state: State, event: Event) -> None:
    state["warnings"] = state.get("warnings", 0) + 1
    state["last_warning"] = _text(event.get("message")) or _text(event.get("kind"))


def _stopped(state: State, event: Event) -> None:
    state["stopped"] = {"by": _text(event.get("by")), "at": _text(event.get("at"))}


def _exited(state: State, event: Event) -> None:
    state["exited"] = {"code": _integer(event.get("code")), "signal": _integer(event.get("signal")),
                       "at": _text(event.get("at"))}  # fmt: skip


_FOLDS: dict[str, Callable[[State, Event], None]] = {
    "launched": _launched, "resumed": _resumed, "step": _step, "phase": _phase, "eval": _eval, "best": _best,
    "checkpoint": _checkpoint, "heartbeat": _heartbeat, "swap": _swap, "warning": _warning, "stopped": _stopped,
    "exited": _exited,
}  # fmt: skip


def _take(state: State, event: Event, key: str, typed: Callable[[Any], Any], name: str | None = None) -> None:
    value = typed(event.get(key))
    if value is not None:
        state[name or key] = value


def _integer(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 10**12 else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**12 else None


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return value[:500] if isinstance(value, str) else None
