"""The fold of step events: which of a log's numbers are the training's steps, and the quick way for a step that
goes on as those before it did.
"""

from __future__ import annotations

import math

from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import MAX_STEP
from ..base.values import MAX_S, amount, at, boolean, count, fields, listed, number, row, speed
from . import health, throughput
from .throughput import Event, State

if TYPE_CHECKING:
    from typing import TypedDict

    class Counter(TypedDict):
        """What is known of one counter."""

        total: int | None
        step: int
        way: int
        told: int
        told_s: float
        has_loss: bool
        went_on: bool
        begins_anew: bool


Counters = dict[str, Any]

# So many others are remembered, by their totals.
MAX_STOOD = 8
# Another counter is the training's only after so many tellings in a row: the bar of the epochs goes on too, by one.
SURE_TOLD = 3
# Without any other sign, one that has gone on for so long, and twice as long as the first one, is no evaluation.
LONG_S = 3600.0
# Of two tellings of which only one names a total, the second goes on from the first if it is so many usual ways on.
NEAR_WAYS = 4


class StepReport(NamedTuple):
    """A step as a line tells it: with its total, or None, and whether the line has a loss."""

    step: int
    total: int | None = None
    has_loss: bool = False


class Counted(NamedTuple):
    """What a telling means.

    Args:
        counters: what is known now.
        is_training: whether the step is the training's.
        is_other: whether the step before it was another counter's.
        is_new: whether the training's counter is another one than was taken for it before.
    """

    counters: Counters
    is_training: bool
    is_other: bool = False
    is_new: bool = False


def count_step(known: Counters | None, telling: StepReport, since_s: float) -> Counted:
    """Take in a step.

    Args:
        known: what is known so far; None before the first step.
        telling: the step.
        since_s: seconds since the telling before it.
    """
    if known is None:
        return Counted({"training": _begun(telling), "other": None, "stood": []}, True)
    training, other = known["training"], known["other"]
    if other is None:
        if _goes_on(training, telling):
            return Counted({**known, "training": _advanced(training, telling, since_s)}, True)
        return Counted({**known, "other": _other(known["stood"], telling)}, False, True)
    if _is_back(training, other, telling):
        return Counted(_back(known, telling), True, True)
    is_same = telling.total == other["total"] and (telling.total is not None or telling.step >= other["step"])
    other = _advanced(other, telling, since_s) if is_same else _other(known["stood"], telling)
    result = {
        **known,
        "other": other,
        "stood": known["stood"] if is_same else _with_stood(known["stood"], known["other"]),
    }
    if not _is_the_training(other, training):
        return Counted(result, False, not is_same)
    return Counted(
        {"training": other, "other": None, "stood": _with_stood(result["stood"], training)}, True, True, True
    )


def _begun(telling: StepReport) -> Counter:
    return {
        "total": telling.total, "step": telling.step, "way": 0, "told": 1, "told_s": 0.0,
        "has_loss": telling.has_loss, "went_on": False, "begins_anew": False,
    }  # fmt: skip


def _other(stood: list[list[int]], telling: StepReport) -> Counter:
    """Return a counter that begins, or goes on from where it stood when another one came between."""
    before = next((step for total, step in stood if total == telling.total), None)
    return {**_begun(telling), "went_on": before is not None and before < telling.step}


def _advanced(counter: Counter, telling: StepReport, since_s: float) -> Counter:
    way = telling.step - counter["step"]
    return {
        **counter, "total": counter["total"] if telling.total is None else telling.total, "step": telling.step,
        "way": max(way, counter["way"]), "told": min(counter["told"] + 1, SURE_TOLD),
        "told_s": min(counter["told_s"] + since_s, 1e9), "has_loss": counter["has_loss"] or telling.has_loss,
    }  # fmt: skip


def _goes_on(training: Counter, telling: StepReport) -> bool:
    """Whether a step is the training's next one; with the same total it is, where it begins anew too."""
    if telling.total is not None and training["total"] is not None:
        return telling.total == training["total"]
    if telling.total != training["total"]:
        return 0 <= telling.step - training["step"] <= NEAR_WAYS * max(1, training["way"])
    return telling.step >= training["step"] or training["begins_anew"]


def _is_back(training: Counter, other: Counter, telling: StepReport) -> bool:
    """Whether a step is the training's again, after another counter's."""
    step = telling.step
    if telling.total is not None or training["total"] is not None:
        return _goes_on(training, telling)
    if step > training["step"]:  # from the end of what may have been longer, or at once beyond where it stood
        is_jump = other["step"] <= training["step"] and step - other["step"] > 2 * max(1, other["way"])
        return step < other["step"] or is_jump
    return step < other["step"] and _are_epochs(training, other)


def _are_epochs(training: Counter, other: Counter) -> bool:
    """Whether two counts without a total came to the same end: the training begins anew in each epoch."""
    return other["total"] is None and abs(other["step"] - training["step"]) <= max(training["way"], other["way"])


def _back(known: Counters, telling: StepReport) -> Counters:
    training, other = known["training"], known["other"]
    begins_anew = training["total"] is None and telling.step <= training["step"]
    training = {
        **_advanced(training, telling._replace(step=training["step"]), 0.0), "step": telling.step,
        "went_on": training["went_on"] or telling.step > training["step"],
        "begins_anew": training["begins_anew"] or begins_anew,
    }  # fmt: skip
    return {"training": training, "other": None, "stood": _with_stood(known["stood"], other)}


def _with_stood(stood: list[list[int]], counter: Counter) -> list[list[int]]:
    """Return where the other counters stood, with one more; those without a total cannot be known again."""
    if counter["total"] is None:
        return stood
    rest = [one for one in stood if one[0] != counter["total"]]
    return [*rest, [counter["total"], counter["step"]]][-MAX_STOOD:]


def _is_the_training(other: Counter, training: Counter) -> bool:
    """Whether another counter has shown that it is the training's, and the one that was taken for it is not."""
    is_long = other["told_s"] > LONG_S
    if training["total"] is None and other["total"] is None:
        return is_long  # it may have gone back by itself, to a checkpoint
    if other["told"] < SURE_TOLD or training["went_on"] or training["has_loss"]:
        return False
    return other["went_on"] or other["has_loss"] or (is_long and other["told_s"] > 2 * training["told_s"])


_counter = fields(
    {"total": count},
    **dict.fromkeys(("step", "way", "told"), count),
    **dict.fromkeys(("has_loss", "went_on", "begins_anew"), boolean),
    told_s=amount,
)
# The reader of counters that were saved: the types that are given to them here.
saved = fields({"other": _counter}, training=_counter, stood=listed(row(count, count), MAX_STOOD))


# The fold of a step that goes on as those before it did: nearly every event of a journal of millions.
#
# It comes to the very state that `journal_fold` comes to by its rules, in a third of the time: the parts of the state
# are changed in place, and what is odd in any way is left to the rules. Pure but for the state that it is given.
# Try it: `python -m pytest tests/test_fold_speed.py`

_INFINITE = math.inf
_NONE = type(None)


def own_state(state: State) -> State:
    """Return a state whose parts may be changed in place, though the given one must stay as it is."""
    result = dict(state)
    for key in ("pace", "symptoms"):
        if key in result:
            result[key] = dict(result[key])
    if "counters" in result:
        result["counters"] = {**result["counters"], "training": dict(result["counters"]["training"])}
    return result


def take_steady_step(state: State, event: Event) -> bool:
    """Take in a step that goes on as before; False, and nothing is changed, where the rules have to look at it.

    Args:
        state: as `own_state` or the fold has made it; changed in place.
        event: of the kind `step`.
    """
    step, mono_s, loss = event.get("step"), event.get("mono_s"), event.get("loss")
    if type(step) is not int or type(mono_s) is not float or not 0.0 <= mono_s < MAX_S or step >= MAX_STEP:
        return False
    if not _is_training(state, step) or not _is_loss(loss) or not _is_its_teller(state, event):
        return False
    if "max_steps" in event:
        return False
    known = state["symptoms"]
    way = step - known.get("told_step", MAX_STEP)
    if not 0 <= way <= health.JUMP_STEPS or "bad" in known:
        return False
    if event.get("source") != "log":
        if not state.get("tells_steps"):
            return False
    elif state.get("tells_steps") or not _count_on(state, event, step, mono_s, loss):
        return False
    known["told_step"] = step
    if way > known.get("longest_way", 0):
        known["longest_way"] = way
    if step != state["step"]:
        _stood(state, mono_s)
    state["step"], state["step_mono_s"] = step, mono_s
    throughput.take_in(state["pace"], step, mono_s)
    if loss is not None:
        health.take_loss(known, loss, step)
    _take_values(state, event, loss)
    return True


def _is_training(state: State, step: int) -> bool:
    """Whether the run is in the midst of its training (in no evaluation), and the step is none that came before."""
    return (
        state.get("phase") == "train"
        and "pace" in state
        and state.get("has_step_events") is True
        and state.get("resumed_step", 0) <= state["step"] <= step
        and "saving_since_s" not in state
        and "saved_s" not in state
        and "suspended_since_s" not in state
    )


def _is_loss(loss: Any) -> bool:
    """Whether an event has no loss, or one that is a finite number."""
    return loss is None or (type(loss) in (int, float) and abs(loss) < health.MAX_LOSS)


def _is_its_teller(state: State, event: Event) -> bool:
    """Whether the rate, where the event has one, is told by whom it was told before."""
    teller = "log" if event.get("source") == "log" else "event"
    return event.get("lr") is None or state.get("tellers", {}).get("lr") == teller


def _count_on(state: State, event: Event, step: int, mono_s: float, loss: Any) -> bool:
    """Take in that the training's own counter, the only one of a log, goes on; False where there may be another one."""
    counters = state.get("counters")
    if counters is None or counters["other"] is not None:
        return False
    training, total = counters["training"], event.get("step_total")
    if total != training["total"] or type(total) not in (int, _NONE) or step < training["step"]:
        return False
    way = step - training["step"]
    if way > training["way"]:
        training["way"] = way
    if training["told"] < SURE_TOLD:
        training["told"] += 1
    training["told_s"] = min(training["told_s"] + max(0.0, mono_s - state["step_mono_s"]), 1e9)
    training["step"] = step
    if loss is not None:
        training["has_loss"] = True
    return True


def _stood(state: State, mono_s: float) -> None:
    """Take in when the run last got on, and for how long it had stood."""
    active_s = state.get("active_mono_s", mono_s)
    if not state.get("tells_phases"):
        stood_s = mono_s - active_s
        if stood_s >= state.get("longest_stand_s", 0.0) or "longest_stand_s" not in state:
            state["longest_stand_s"] = max(stood_s, state.get("longest_stand_s", 0.0))
    state["active_mono_s"] = mono_s if mono_s >= active_s else active_s


def _take_values(state: State, event: Event, loss: Any) -> None:
    told_at, lr, rate, epoch = event.get("at"), event.get("lr"), event.get("steps_per_sec"), event.get("epoch")
    if told_at is not None and (told_at := at(told_at)) is not None:
        state["last_progress_at"] = told_at
    if loss is not None and (type(loss) is float or number(loss) is not None):
        state["loss"] = loss
    if lr is not None and ((type(lr) is float and -_INFINITE < lr < _INFINITE) or number(lr) is not None):
        state["lr"] = lr
    if rate is not None and speed(rate) is not None:
        state["steps_per_sec"] = rate
    if epoch is not None and count(epoch) is not None:
        state["epoch"] = epoch
