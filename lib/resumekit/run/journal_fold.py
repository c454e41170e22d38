"""What a journal adds up to: `fold(state, events)`, pure and incremental.

The state is a plain dict that goes to disk as JSON, so that a reader goes on from a saved byte offset and a journal of
a million events costs nothing per beat. Values come from files: each is taken only if it has the right type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..base import terms
from ..base.imports import Any
from ..base.values import at, count, flag, integer, number, seconds, speed, text
from . import health, steps, throughput
from .state_types import MAX_KINDS, PHASES, RECOVERY, TELLERS, WAITING_PHASES, process
from .throughput import LATE_S
from .throughput import Event as Event
from .throughput import State as State

# A shorter time says nothing about the speed (a sidecar that comes late reads many steps at once).
MIN_MEASURED_S = 0.2
# The warning with which the sidecar says that nothing ran for a while, itself included: the machine slept.
CLOCK_GAP = "clock_gap"
# The one with which it says that the trainer is suspended (state T); the next gap says that it goes on.
TRAINER_SUSPENDED = "trainer_suspended"
# The one with which it says that it takes no pattern from records that are not as the launcher wrote them.
RECORDS_EDITED = "records_edited"
# The one with which a recovery says that it waits for what may pass by itself; its `code` says for what.
RECOVERY_WAITS = "recovery_waits"

# A step of a trainer that journals its steps: they are the training's.
TRAINING = steps.Counted({}, True)


def fold(state: State, events: Iterable[Event]) -> State:
    """Return the state after `events`; the given state is not changed.

    Args:
        state: {} for the beginning of a run, {"resumed_step": N} for that of a resumed one, or what an earlier fold
            returned.
        events: journal events in the order of the file; unknown kinds only count.
    """
    result = steps.own_state(state)
    number_of_events = 0
    for number_of_events, event in enumerate(events, 1):  # noqa: B007 (the last one is how many there were)
        kind = event.get("event")
        if kind == "step" and steps.take_steady_step(result, event):
            continue
        apply = _FOLDS.get(text(kind) or "")
        if apply:
            apply(result, event)
    if number_of_events:
        result["events"] = result.get("events", 0) + number_of_events
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
        throughput.on_save_denied(state)
    if not state.get("has_step_events"):
        state.pop("pace", None)  # from a heartbeat to the first event is no time between two steps
    is_in_order = event.get("source") != "log" or not state.get("tells_steps")
    counted = _counted(state, step, mono_s, event) if event.get("source") == "log" and is_in_order else TRAINING
    _advance(state, step, mono_s, event, is_in_order=is_in_order, counted=counted)
    state["symptoms"] = health.on_loss(state["symptoms"], event.get("loss"), step, mono_s)
    state.update(has_stepped=True, has_step_events=True)
    for key in ("loss", "lr_scale"):
        _take(state, event, key, number)
    _tell(state, event, "lr", "log" if event.get("source") == "log" else "event")
    _take(state, event, "steps_per_sec", speed)
    for key in ("epoch", "max_steps"):
        _take(state, event, key, count)


def _counted(state: State, step: int, mono_s: float, event: Event) -> steps.Counted:
    """Take in whose step a line of the log tells: the training's, or that of an evaluation with steps of its own."""
    telling = steps.StepReport(step, count(event.get("step_total")), event.get("loss") is not None)
    since_s = max(0.0, mono_s - state.get("step_mono_s", mono_s))
    result = steps.count_step(state.get("counters"), telling, since_s)
    state["counters"] = result.counters
    if result.is_new:
        state["pace"] = throughput.before_first_step(step)
    return result


def _advance(
    state: State, step: int, mono_s: float, event: Event, *, is_in_order: bool, counted: steps.Counted = TRAINING
) -> None:
    """Take in how far the trainer is; of two who tell it only one is in order."""
    known, saved_s = state.get("symptoms", {}), state.pop("saved_s", 0.0)
    is_first = "first_step" not in state or state["step"] < state.get("resumed_step", 0) <= step
    has_total = count(event.get("step_total")) is not None
    if is_first or (counted.is_other and (has_total or step >= known.get("told_step", step))):
        known = health.without_steps(known)
    is_odd = is_in_order and health.is_odd(known, step)
    state["symptoms"] = health.on_step(known, step) if is_in_order else known
    if is_first or is_odd or counted.is_other:
        # What was told before the load (a heartbeat's step 0) is no beginning to measure from: the next step would seem
        # to be 40,000 of them (huggingface/transformers#40560).
        state.update(first_step=step, first_step_mono_s=mono_s, waited_s=0.0)
    else:
        state["waited_s"] += saved_s
    if state.get("phase") in WAITING_PHASES and "waiting_since_s" not in state:
        state["phase"] = "train"  # a trainer that names no phases trains when it steps
    known = state.get("pace") or throughput.before_first_step(step)
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
        state["pace"] = throughput.on_step(known, step, mono_s, counts=counts)
    _take(state, event, "at", at, "last_progress_at")


def _phase(state: State, event: Event) -> None:
    phase, mono_s = text(event.get("phase")), seconds(event.get("mono_s"))
    if phase not in PHASES or mono_s is None:
        return
    if "saving_since_s" in state and phase != state.get("phase"):
        throughput.on_save_over(state, event)  # it was broken off, and nothing was said
    since = state.pop("waiting_since_s", None)
    if since is not None and "first_step" in state:
        state["waited_s"] += max(0.0, mono_s - since)
    if phase in WAITING_PHASES:
        state["waiting_since_s"] = mono_s
    if "pace" in state:
        take_in = throughput.paused if phase in WAITING_PHASES else throughput.taken_up
        state["pace"] = take_in(state["pace"], mono_s)
    if phase != state.get("phase"):
        state["active_mono_s"] = mono_s
    state.update(phase=phase, tells_phases=True)


def _eval(state: State, event: Event) -> None:
    if event.get("kind") in ("fast", "full"):
        _take(state, event, "step", count, f"last_{event['kind']}_eval_step")
    if "symptoms" in state:
        state["symptoms"] = health.on_eval(state["symptoms"])


def _fault(state: State, event: Event) -> None:
    """Take in what the symptoms are made of: `nonfinite`, `oom`, `eval_crashed`."""
    known, step, mono_s = state.get("symptoms", {}), count(event.get("step")), seconds(event.get("mono_s"))
    if mono_s is None:
        return
    if event["event"] == "oom":
        state["symptoms"] = health.on_oom(known, mono_s)
    elif event["event"] == "eval_crashed":
        state["symptoms"] = health.on_eval_crash(known, event, step, mono_s)
    elif step is not None:
        state["symptoms"] = health.on_nonfinite(known, event, step, mono_s)


def _best(state: State, event: Event) -> None:
    is_of_log = event.get("source") == "log"
    if is_of_log and state.get("tellers", {}).get("best_eval_acc", "log") != "log":
        return
    _take(state, event, "step", count, "best_step")
    _tell(state, event, "best_eval_acc", "log" if is_of_log else "event", "score")
    _take(state, event, "metric", text, "best_metric")


def _log_format(state: State, event: Event) -> None:
    _take(state, event, "format", text, "log_format")


def _checkpoint(state: State, event: Event) -> None:
    step, mono_s = count(event.get("step")), seconds(event.get("mono_s"))
    is_newer = step is not None and step > state.get("last_checkpoint_step", -1)
    if is_newer and mono_s is not None and "active_mono_s" in state:  # where no step can be seen, this is progress
        state["active_mono_s"] = max(mono_s, state["active_mono_s"])
    _take(state, event, "step", count, "last_checkpoint_step")
    if step is not None and mono_s is not None:
        state["symptoms"] = health.on_save(state.get("symptoms", {}), event, step, mono_s)
    taken_s = number(event.get("seconds"))
    if taken_s is not None and taken_s > state.get("longest_save_s", 0.0):
        state["longest_save_s"] = taken_s
    if event.get("writer") is None:  # the sidecar's attester tells of files that it finds
        throughput.on_save_over(state, event)


def _heartbeat(state: State, event: Event) -> None:
    """Take from the trainer's own payload what only it knows, where no event has said it."""
    for key in ("lr_scale", "loss"):
        _take(state, event, key, number)
    for key in ("lr", "best_eval_acc"):
        _tell(state, event, key, "log" if event.get("source") == "log" else "heartbeat")
    keys = ("last_fast_eval_step", "last_full_eval_step", "swap_from_step", "epoch")
    is_known = state.get("tellers", {}).get("best_eval_acc") == "event"
    for key in keys if is_known else (*keys, "best_step"):
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
        state["symptoms"] = health.on_loss(state["symptoms"], event.get("loss"), step, mono_s, is_beat=True)
        _take(state, event, "steps_per_sec", speed)
    elif step is not None and mono_s is not None and health.is_bad(event.get("loss")):
        known = state.get("symptoms", {})
        state["symptoms"] = health.on_loss(known, event.get("loss"), step, mono_s, is_beat=True)


def _warning(state: State, event: Event) -> None:
    state["warnings"] = state.get("warnings", 0) + 1
    mono_s, kind = seconds(event.get("mono_s")), text(event.get("kind"))
    if kind and kind not in (known := state.get("warned_of", [])):
        state["warned_of"] = [*known, kind][-MAX_KINDS:]
    if kind == throughput.SAVE_FAILED:
        throughput.on_save_over(state, event)
    if kind == RECOVERY_WAITS:
        _take(state, event, "code", text, "recovery_waits")
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
            state["pace"] = throughput.taken_up(state["pace"], mono_s)
    _take(state, event, "kind", text, "last_warning")
    _take(state, event, "message", text, "last_warning")


def _swap(state: State, event: Event) -> None:
    _take(state, event, "step", count, "swap_from_step")
    if new := text(event.get("new")):
        state["optimizer"] = text(new.lower())  # which may have more letters


def _check(state: State, event: Event) -> None:
    name, verdict = event.get("name"), terms.verdict_of(event.get("verdict"))
    if name in terms.NAMES and verdict is not None:
        state["checks"] = {**state.get("checks", {}), name: verdict}
        if verdict in (terms.WARNED, terms.FAILED):
            state["last_warning"] = f"check {name} {verdict}"


def _abort(state: State, event: Event) -> None:
    cause = text(event.get("cause"))
    found = {"cause": cause, "evidence": text(event.get("evidence")), "at": at(event.get("at")),
             "first_bad_step": count(event.get("first_bad_step")), "mono_s": seconds(event.get("mono_s"))}  # fmt: skip
    state["died" if cause in terms.ENDED_BY_ITSELF else "aborted"] = found


def _recovery(state: State, event: Event) -> None:
    state["recovery"] = {key: of(event.get(key)) for key, of in RECOVERY.items()}


def _stopped(state: State, event: Event) -> None:
    if event.get("by") == terms.SCANCEL:  # a user's word, also about a job that waits for its next start
        state.pop("stopped", None)
        state.pop("job_ends", None)
    # The first one: a scheduler that warns with USR1 sends TERM when its patience is over.
    state.setdefault("stopped", {"by": text(event.get("by")), "at": at(event.get("at")),
                                 "has_handler": flag(event.get("has_handler"))})  # fmt: skip
    _take(state, event, "asked_by", text, "stop_asked_by")


def _job_ends(state: State, event: Event) -> None:
    cause = event.get("cause")
    if cause in terms.JOB_CAUSES:  # the last one: what Slurm did not say at the signal it may have said at the end
        state["job_ends"] = {"cause": cause, "reason": text(event.get("reason"))}


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
    "saving": throughput.on_save_begun, "taken_over": _taken_over, "job_ends": _job_ends,
    "log_format": _log_format, "nonfinite": _fault, "oom": _fault, "eval_crashed": _fault,
}  # fmt: skip


def _tell(state: State, event: Event, key: str, teller: str, name: str = "") -> None:
    """Take a number that several tell, each in its own way, from the best of them alone: else it would jump to and fro.

    Args:
        teller: one of TELLERS.
        name: of the event's field, where it is another one than the key.
    """
    value, known = number(event.get(name or key)), state.get("tellers", {})
    if value is not None and TELLERS.index(teller) <= TELLERS.index(known.get(key, teller)):
        state[key], state["tellers"] = value, {**known, key: teller}


def _take(state: State, event: Event, key: str, typed: Callable[[Any], Any], name: str | None = None) -> None:
    value = typed(event.get(key))
    if value is not None:
        state[name or key] = value
