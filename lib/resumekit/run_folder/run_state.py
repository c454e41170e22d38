"""What a journal adds up to: `fold(state, events)`, pure and incremental.

The state is a plain dict that goes to disk as JSON, so that a reader goes on from a saved byte offset and a journal of
a million events costs nothing per beat. Values come from files: each is taken only if it has the right type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..basics import causes, check
from . import pace, save_wait, step_counters, symptoms
from .event_values import at, count, flag, integer, number, process, seconds, speed, text
from .save_wait import LATE_S
from .state_types import MAX_KINDS, PHASES, RECOVERY, WAITING_PHASES

# A shorter time says nothing about the speed (a sidecar that comes late reads many steps at once).
MIN_MEASURED_S = 0.2
# The warning with which the sidecar says that nothing ran for a while, itself included: the machine slept.
CLOCK_GAP = "clock_gap"
# The one with which it says that the trainer is suspended (state T); the next gap says that it goes on.
TRAINER_SUSPENDED = "trainer_suspended"
# The one with which it says that it takes no pattern from records that are not as the launcher wrote them.
RECORDS_EDITED = "records_edited"

# A step of a trainer that journals its steps: they are the training's.
TRAINING = step_counters.Told({}, True)

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
        apply = _FOLDS.get(text(event.get("event")) or "")
        if apply:
            apply(result, event)
    return result


def measured_speed(state: State) -> float | None:
    """Return optimizer steps per second since the resume point, evals and saves left out; None before two steps."""
    steps = state.get("step", 0) - state.get("first_step", 0)
    seconds = state.get("step_mono_s", 0.0) - state.get("first_step_mono_s", 0.0) - state.get("waited_s", 0.0)
    return steps / seconds if steps > 0 and seconds >= MIN_MEASURED_S else None


def is_waiting(state: State) -> bool:
    """Whether the trainer is at something in which no step is expected, and no step has come since to deny it."""
    since_s = state.get("waiting_since_s")
    return since_s is not None and state.get("step_mono_s", 0.0) < since_s + LATE_S


def _launched(state: State, event: Event) -> None:
    who = {key: process(event.get(key)) for key in ("trainer", "shim", "launcher")}
    state["launched"] = {**who, "at": at(event.get("at")), "mono_s": seconds(event.get("mono_s"))}
    state.setdefault("phase", "startup")
    _take(state, event, "mono_s", seconds, "active_mono_s")


def _resumed(state: State, event: Event) -> None:
    _take(state, event, "step", count, "resumed_step")
    _take(state, event, "mono_s", seconds, "active_mono_s")
    _take(state, event, "lr_scale", number)


def _step(state: State, event: Event) -> None:
    step, mono_s = count(event.get("step")), seconds(event.get("mono_s"))
    if step is None or mono_s is None:
        return
    if event.get("source") != "log":
        state["tells_steps"] = True  # the trainer journals its steps: none need be read out of its log
        save_wait.denied(state)
    if not state.get("has_step_events"):
        state.pop("pace", None)  # from a heartbeat to the first event is no time between two steps
    is_in_order = event.get("source") != "log" or not state.get("tells_steps")
    counted = _counted(state, step, mono_s, event) if event.get("source") == "log" and is_in_order else TRAINING
    _advance(state, step, mono_s, event, is_in_order=is_in_order, counted=counted)
    state["symptoms"] = symptoms.saw_loss(state["symptoms"], event.get("loss"), step, mono_s)
    state.update(has_stepped=True, has_step_events=True)
    for key in ("loss", "lr"):
        _take(state, event, key, number)
    _take(state, event, "steps_per_sec", speed)
    _take(state, event, "epoch", count)


def _counted(state: State, step: int, mono_s: float, event: Event) -> step_counters.Told:
    """Take in whose step a line of the log tells: the training's, or that of an evaluation with steps of its own."""
    telling = step_counters.Telling(step, count(event.get("step_total")), event.get("loss") is not None)
    since_s = max(0.0, mono_s - state.get("step_mono_s", mono_s))
    result = step_counters.told(state.get("counters"), telling, since_s)
    state["counters"] = result.counters
    if result.is_new:
        state["pace"] = pace.begun(step)
    return result


def _advance(
    state: State, step: int, mono_s: float, event: Event, *, is_in_order: bool, counted: step_counters.Told = TRAINING
) -> None:
    """Take in how far the trainer is; of two who tell it only one is in order."""
    known, saved_s = state.get("symptoms", {}), state.pop("saved_s", 0.0)
    is_first = "first_step" not in state or state["step"] < state.get("resumed_step", 0) <= step
    has_total = count(event.get("step_total")) is not None
    if is_first or (counted.is_other and (has_total or step >= known.get("told_step", step))):
        known = symptoms.without_steps(known)
    is_odd = is_in_order and symptoms.is_odd(known, step)
    state["symptoms"] = symptoms.saw_step(known, step) if is_in_order else known
    if is_first or is_odd or counted.is_other:
        # What was told before the load (a heartbeat's step 0) is no beginning to measure from: the next step would seem
        # to be 40,000 of them (huggingface/transformers#40560).
        state.update(first_step=step, first_step_mono_s=mono_s, waited_s=0.0)
    else:
        state["waited_s"] += saved_s
    if state.get("phase") in WAITING_PHASES and "waiting_since_s" not in state:
        state["phase"] = "train"  # a trainer that names no phases trains when it steps
    known = state.get("pace") or pace.begun(step)
    # The same step told again is no progress. A smaller one is: some count anew in each epoch.
    if "pace" not in state or step != state.get("step"):
        if "step" in state and not state.get("tells_phases") and "suspended_since_s" not in state:
            stood_s = mono_s - state.get("active_mono_s", mono_s)
            state["longest_stand_s"] = max(stood_s, state.get("longest_stand_s", 0.0))
        state["active_mono_s"] = max(mono_s, state.get("active_mono_s", 0.0))
    state.update(step=step, step_mono_s=mono_s)
    if event.get("event") == "step" or not state.get("has_step_events"):
        # Two that tell steps, each at its own beat, would show a speed that neither of them has.
        counts = state.get("phase") != "warmup" and not is_waiting(state) and not is_odd and counted.is_training
        counts = counts and "suspended_since_s" not in state
        state["pace"] = pace.told(known, step, mono_s, counts=counts)
    _take(state, event, "at", at, "last_progress_at")


def _phase(state: State, event: Event) -> None:
    phase, mono_s = text(event.get("phase")), seconds(event.get("mono_s"))
    if phase not in PHASES or mono_s is None:
        return
    if "saving_since_s" in state and phase != state.get("phase"):
        save_wait.over(state, event)  # it was broken off, and nothing was said
    since = state.pop("waiting_since_s", None)
    if since is not None and "first_step" in state:
        state["waited_s"] += max(0.0, mono_s - since)
    if phase in WAITING_PHASES:
        state["waiting_since_s"] = mono_s
    if "pace" in state:
        take_in = pace.paused if phase in WAITING_PHASES else pace.taken_up
        state["pace"] = take_in(state["pace"], mono_s)
    if phase != state.get("phase"):
        state["active_mono_s"] = mono_s
    state.update(phase=phase, tells_phases=True)


def _eval(state: State, event: Event) -> None:
    if event.get("kind") in ("fast", "full"):
        _take(state, event, "step", count, f"last_{event['kind']}_eval_step")
    if "symptoms" in state:
        state["symptoms"] = symptoms.saw_eval(state["symptoms"])


def _ailment(state: State, event: Event) -> None:
    """Take in what the symptoms are made of: `nonfinite`, `oom`, `eval_crashed`."""
    known, step, mono_s = state.get("symptoms", {}), count(event.get("step")), seconds(event.get("mono_s"))
    if mono_s is None:
        return
    if event["event"] == "oom":
        state["symptoms"] = symptoms.saw_oom(known, mono_s)
    elif event["event"] == "eval_crashed":
        state["symptoms"] = symptoms.saw_eval_crash(known, event, step, mono_s)
    elif step is not None:
        state["symptoms"] = symptoms.saw_nonfinite(known, event, step, mono_s)


def _best(state: State, event: Event) -> None:
    _take(state, event, "step", count, "best_step")
    _take(state, event, "score", number, "best_eval_acc")


def _checkpoint(state: State, event: Event) -> None:
    step, mono_s = count(event.get("step")), seconds(event.get("mono_s"))
    is_newer = step is not None and step > state.get("last_checkpoint_step", -1)
    if is_newer and mono_s is not None and "active_mono_s" in state:  # where no step can be seen, this is progress
        state["active_mono_s"] = max(mono_s, state["active_mono_s"])
    _take(state, event, "step", count, "last_checkpoint_step")
    if step is not None and mono_s is not None:
        state["symptoms"] = symptoms.saw_save(state.get("symptoms", {}), event, step, mono_s)
    if event.get("writer") is None:  # the sidecar's witness tells of files that it finds
        save_wait.over(state, event)


def _heartbeat(state: State, event: Event) -> None:
    """Take from the trainer's own payload what only it knows, where no event has said it."""
    for key in ("best_eval_acc", "lr_scale", "loss", "lr"):
        _take(state, event, key, number)
    for key in ("last_fast_eval_step", "last_full_eval_step", "best_step", "swap_from_step", "epoch"):
        _take(state, event, key, count)
    for key in ("optimizer", "scheduler_phase"):
        _take(state, event, key, text)
    step, mono_s = count(event.get("global_step")), seconds(event.get("mono_s"))
    is_back = step is not None and step < state.get("step", 0) and not state.get("has_step_events")
    if step is not None and mono_s is not None and (step > state.get("step", -1) or is_back):
        since_s = state.get("waiting_since_s", state.get("saving_since_s"))
        if since_s is not None and state.get("step_mono_s", 0.0) < since_s:
            mono_s = since_s  # the last step before the evaluation or save, told in the midst of it
        if "step" in state:
            state["has_stepped"] = True  # the first beat may tell where it was resumed
        # All that a trainer with the heartbeat alone tells of its steps.
        _advance(state, step, mono_s, event, is_in_order=not state.get("has_step_events"))
        state["symptoms"] = symptoms.saw_loss(state["symptoms"], event.get("loss"), step, mono_s, is_beat=True)
        _take(state, event, "steps_per_sec", speed)
    elif step is not None and mono_s is not None and symptoms.is_bad(event.get("loss")):
        known = state.get("symptoms", {})
        state["symptoms"] = symptoms.saw_loss(known, event.get("loss"), step, mono_s, is_beat=True)


def _warning(state: State, event: Event) -> None:
    state["warnings"] = state.get("warnings", 0) + 1
    mono_s, kind = seconds(event.get("mono_s")), text(event.get("kind"))
    if kind and kind not in (known := state.get("warned_of", [])):
        state["warned_of"] = [*known, kind][-MAX_KINDS:]
    if kind == save_wait.SAVE_FAILED:
        save_wait.over(state, event)
    if kind == TRAINER_SUSPENDED and mono_s is not None:
        state.setdefault("suspended_since_s", mono_s)
    if kind == CLOCK_GAP and mono_s is not None:
        state["active_mono_s"] = mono_s
        since_s = state.pop("suspended_since_s", None)
        if since_s is not None and "first_step" in state and "waiting_since_s" not in state:
            state["waited_s"] += max(0.0, mono_s - since_s)
        if "waiting_since_s" in state:  # an evaluation did not take the night
            if "first_step" in state:
                state["waited_s"] += max(0.0, mono_s - state["waiting_since_s"])
            state["waiting_since_s"] = mono_s
        if "pace" in state and state["pace"]["at_s"] is not None:
            state["pace"] = pace.taken_up(state["pace"], mono_s)
    _take(state, event, "kind", text, "last_warning")
    _take(state, event, "message", text, "last_warning")


def _swap(state: State, event: Event) -> None:
    _take(state, event, "step", count, "swap_from_step")
    if new := text(event.get("new")):
        state["optimizer"] = new.lower()


def _check(state: State, event: Event) -> None:
    name, verdict = event.get("name"), event.get("verdict")
    if name in check.NAMES and verdict in check.VERDICTS:
        state["checks"] = {**state.get("checks", {}), name: verdict}
        if verdict in (check.WARNED, check.FAILED):
            state["last_warning"] = f"check {name} {verdict}"


def _abort(state: State, event: Event) -> None:
    cause = text(event.get("cause"))
    found = {"cause": cause, "evidence": text(event.get("evidence")), "at": at(event.get("at")),
             "first_bad_step": count(event.get("first_bad_step")), "mono_s": seconds(event.get("mono_s"))}  # fmt: skip
    state["died" if cause in causes.ENDED_BY_ITSELF else "aborted"] = found


def _recovery(state: State, event: Event) -> None:
    state["recovery"] = {key: of(event.get(key)) for key, of in RECOVERY.items()}


def _stopped(state: State, event: Event) -> None:
    # The first one: a scheduler that warns with USR1 sends TERM when its patience is over.
    state.setdefault("stopped", {"by": text(event.get("by")), "at": at(event.get("at")),
                                 "has_handler": flag(event.get("has_handler"))})  # fmt: skip
    _take(state, event, "asked_by", text, "stop_asked_by")


def _taken_over(state: State, event: Event) -> None:
    typed = {"by": text, "host": text, "child_run_id": text, "at": at, "last_sign_s": number, "session_lock": text}
    state["taken_over"] = {key: of(event.get(key)) for key, of in typed.items()}


def _exited(state: State, event: Event) -> None:
    state["exited"] = {"code": integer(event.get("code")), "signal": integer(event.get("signal")),
                       "at": at(event.get("at"))}  # fmt: skip


_FOLDS: dict[str, Callable[[State, Event], None]] = {
    "launched": _launched, "resumed": _resumed, "step": _step, "phase": _phase, "eval": _eval, "best": _best,
    "checkpoint": _checkpoint, "heartbeat": _heartbeat, "warning": _warning, "stopped": _stopped,
    "exited": _exited, "check": _check, "swap": _swap, "abort": _abort, "recovery": _recovery,
    "saving": save_wait.begun, "taken_over": _taken_over,
    "nonfinite": _ailment, "oom": _ailment, "eval_crashed": _ailment,
}  # fmt: skip


def _take(state: State, event: Event, key: str, typed: Callable[[Any], Any], name: str | None = None) -> None:
    value = typed(event.get(key))
    if value is not None:
        state[name or key] = value
