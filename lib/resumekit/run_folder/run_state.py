"""What a journal adds up to: `fold(state, events)`, pure and incremental.

The state is a plain dict that goes to disk as JSON, so that a reader goes on from a saved byte offset and a journal of
a million events costs nothing per beat. Values come from files: each is taken only if it has the right type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from ..basics import check
from ..basics.processes import identity_from

# Phases in which no step is expected; their time is left out of the speed.
WAITING_PHASES = frozenset({"startup", "compile", "fast_eval", "full_eval", "checkpoint"})
PHASES = frozenset({"warmup", "train"}) | WAITING_PHASES
# A shorter time says nothing about the speed (a sidecar that comes late reads many steps at once).
MIN_MEASURED_S = 0.2

_AT = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z")

State = dict[str, Any]
Event = dict[str, Any]


def fold(state: State, events: Iterable[Event]) -> State:
    """Return the state after `events`; the given state is not changed.

    Args:
        state: {} for the beginning of a run, {"resumed_step": N} for that of a resumed one, or what an earlier fold
            returned.
        events: journal events in the order of the file; unknown kinds only count.
    """
    result = dict(state)
    for event in events:
        result["events"] = result.get("events", 0) + 1
        apply = _FOLDS.get(_text(event.get("event")) or "")
        if apply:
            apply(result, event)
    return result


def measured_speed(state: State) -> float | None:
    """Return optimizer steps per second since the resume point, evals and saves left out; None before two steps."""
    steps = state.get("step", 0) - state.get("first_step", 0)
    seconds = state.get("step_mono_s", 0.0) - state.get("first_step_mono_s", 0.0) - state.get("waited_s", 0.0)
    return steps / seconds if steps > 0 and seconds >= MIN_MEASURED_S else None


def is_sound(state: object) -> bool:
    """Whether a state that was read from a file has the types that `fold` gives it."""
    if not isinstance(state, dict):
        return False
    if any(key not in _TYPES or _TYPES[key](value) is None for key, value in state.items()):
        return False
    measured = ("step", "step_mono_s", "first_step", "first_step_mono_s", "waited_s")
    return len({key in state for key in measured}) == 1  # all of them or none: one without the others cannot be used


def _launched(state: State, event: Event) -> None:
    who = {key: _process(event.get(key)) for key in ("trainer", "shim", "launcher")}
    state["launched"] = {**who, "at": _at(event.get("at")), "mono_s": _seconds(event.get("mono_s"))}
    state.setdefault("phase", "startup")


def _resumed(state: State, event: Event) -> None:
    _take(state, event, "step", _count, "resumed_step")
    _take(state, event, "lr_scale", _number)


def _step(state: State, event: Event) -> None:
    step, mono_s = _count(event.get("step")), _seconds(event.get("mono_s"))
    if step is None or mono_s is None:
        return
    _advance(state, step, mono_s, event)
    if event.get("source") != "log":
        state["tells_steps"] = True  # the trainer journals its steps: none need be read out of its log
    for key in ("loss", "lr", "steps_per_sec"):
        _take(state, event, key, _number)
    _take(state, event, "epoch", _count)


def _advance(state: State, step: int, mono_s: float, event: Event) -> None:
    if "first_step" not in state or state["step"] < state.get("resumed_step", 0) <= step:
        # What was told before the load (a heartbeat's step 0) is no beginning to measure from: the next step would seem
        # to be 40,000 of them (huggingface/transformers#40560).
        state.update(first_step=step, first_step_mono_s=mono_s, waited_s=0.0)
    if state.get("phase") in WAITING_PHASES and "waiting_since_s" not in state:
        state["phase"] = "train"  # a trainer that names no phases trains when it steps
    state.update(step=step, step_mono_s=mono_s)
    _take(state, event, "at", _at, "last_progress_at")


def _phase(state: State, event: Event) -> None:
    phase, mono_s = _text(event.get("phase")), _seconds(event.get("mono_s"))
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
    step, mono_s = _count(event.get("global_step")), _seconds(event.get("mono_s"))
    if step is not None and mono_s is not None and step > state.get("step", -1):
        _advance(state, step, mono_s, event)  # all that a trainer with the heartbeat alone tells of its steps
        _take(state, event, "steps_per_sec", _number)


def _warning(state: State, event: Event) -> None:
    state["warnings"] = state.get("warnings", 0) + 1
    _take(state, event, "kind", _text, "last_warning")
    _take(state, event, "message", _text, "last_warning")


def _swap(state: State, event: Event) -> None:
    _take(state, event, "step", _count, "swap_from_step")
    if new := _text(event.get("new")):
        state["optimizer"] = new.lower()


def _check(state: State, event: Event) -> None:
    name, verdict = event.get("name"), event.get("verdict")
    if name in check.NAMES and verdict in check.VERDICTS:
        state["checks"] = {**state.get("checks", {}), name: verdict}
        if verdict in (check.WARNED, check.FAILED):
            state["last_warning"] = f"check {name} {verdict}"


def _abort(state: State, event: Event) -> None:
    state["aborted"] = {"cause": _text(event.get("cause")), "at": _at(event.get("at"))}


def _stopped(state: State, event: Event) -> None:
    state["stopped"] = {"by": _text(event.get("by")), "at": _at(event.get("at"))}


def _exited(state: State, event: Event) -> None:
    state["exited"] = {"code": _integer(event.get("code")), "signal": _integer(event.get("signal")),
                       "at": _at(event.get("at"))}  # fmt: skip


_FOLDS: dict[str, Callable[[State, Event], None]] = {
    "launched": _launched, "resumed": _resumed, "step": _step, "phase": _phase, "eval": _eval, "best": _best,
    "checkpoint": _checkpoint, "heartbeat": _heartbeat, "warning": _warning, "stopped": _stopped,
    "exited": _exited, "check": _check, "swap": _swap, "abort": _abort,
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
    is_number = (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53)
    return value if is_number else None


def _seconds(value: Any) -> float | None:
    """A time of the monotonic clock; bounded, so that no sum of them is infinite."""
    return value if _number(value) is not None and 0 <= value < 1e12 else None


def _text(value: Any) -> str | None:
    return value[:500] if isinstance(value, str) else None


def _at(value: Any) -> str | None:
    return value if isinstance(value, str) and _AT.fullmatch(value) else None


def _flag(value: Any) -> bool | None:
    return value if value is True else None


def _verdicts(value: Any) -> dict[str, str] | None:
    is_sound = isinstance(value, dict) and all(
        name in check.NAMES and verdict in check.VERDICTS for name, verdict in value.items()
    )
    return value if is_sound else None


def _process(value: Any) -> dict[str, Any] | None:
    found = identity_from(value)
    return found.as_fields() if found else None


def _fields(**typed: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the check of an object whose every field has its type or is None."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != typed.keys():
            return None
        return value if all(value[k] is None or of(value[k]) is not None for k, of in typed.items()) else None

    return check


# Every key of a state, with the type that a fold gives it.
_TYPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("loss", "lr", "lr_scale", "steps_per_sec", "best_eval_acc", "waited_s"), _number),
    **dict.fromkeys(("step_mono_s", "first_step_mono_s", "waiting_since_s"), _seconds),
    **dict.fromkeys(("events", "step", "first_step", "resumed_step", "epoch", "last_fast_eval_step", "warnings",
                     "last_full_eval_step", "best_step", "last_checkpoint_step", "swap_from_step"), _count),
    "phase": lambda value: value if _text(value) in PHASES else None,
    **dict.fromkeys(("optimizer", "scheduler_phase", "last_warning"), _text),
    "last_progress_at": _at,
    "tells_steps": _flag,
    "launched": _fields(trainer=_process, shim=_process, launcher=_process, at=_at, mono_s=_seconds),
    "checks": _verdicts,
    "aborted": _fields(cause=_text, at=_at),
    "stopped": _fields(by=_text, at=_at),
    "exited": _fields(code=_integer, signal=_integer, at=_at),
}  # fmt: skip
