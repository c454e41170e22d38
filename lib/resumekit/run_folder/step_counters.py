"""Which of the steps that a log tells are the training's: an evaluation may draw a bar of its own, `15/600`, beside it.

A counter is known by its total, where its lines name one; without a total, a step that went back begins another one.
The training's is the one that went on from where it had stood, or whose lines have a loss; before either is known, the
first one. Bounded, plain JSON, pure: every function returns new counters.
Try it: `python -m pytest tests/test_step_counters.py`
"""

from __future__ import annotations

from typing import Any, NamedTuple

Counters = dict[str, Any]
Counter = dict[str, Any]

# So many others are remembered, by their totals.
MAX_STOOD = 8
# Another counter is the training's only after so many tellings in a row: the bar of the epochs goes on too, by one.
SURE_TOLD = 3
# Without any other sign, one that has gone on for so long, and twice as long as the first one, is no evaluation.
LONG_S = 3600.0
# Of two tellings of which only one names a total, the second goes on from the first if it is so many usual ways on.
NEAR_WAYS = 4


class Telling(NamedTuple):
    """A step as a line tells it: with its total, or None, and whether the line has a loss."""

    step: int
    total: int | None = None
    has_loss: bool = False


class Told(NamedTuple):
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


def told(known: Counters | None, telling: Telling, since_s: float) -> Told:
    """Take in a step.

    Args:
        known: what is known so far; None before the first step.
        telling: the step.
        since_s: seconds since the telling before it.
    """
    if known is None:
        return Told({"training": _begun(telling), "other": None, "stood": []}, True)
    training, other = known["training"], known["other"]
    if other is None:
        if _goes_on(training, telling):
            return Told({**known, "training": _advanced(training, telling, since_s)}, True)
        return Told({**known, "other": _other(known["stood"], telling)}, False, True)
    if _is_back(training, other, telling):
        return Told(_back(known, telling), True, True)
    is_same = telling.total == other["total"] and (telling.total is not None or telling.step >= other["step"])
    other = _advanced(other, telling, since_s) if is_same else _other(known["stood"], telling)
    result = {**known, "other": other, "stood": known["stood"] if is_same else _stood(known["stood"], known["other"])}
    if not _is_the_training(other, training):
        return Told(result, False, not is_same)
    return Told({"training": other, "other": None, "stood": _stood(result["stood"], training)}, True, True, True)


def is_sound(known: object) -> bool:
    """Whether counters that were read from a file have the types that are given to them here."""
    if not isinstance(known, dict) or known.keys() != {"training", "other", "stood"}:
        return False
    stood = known["stood"]
    if not isinstance(stood, list) or len(stood) > MAX_STOOD:
        return False
    are_pairs = all(isinstance(one, list) and len(one) == 2 and all(map(_is_count, one)) for one in stood)
    return are_pairs and _is_counter(known["training"]) and (known["other"] is None or _is_counter(known["other"]))


def _begun(telling: Telling) -> Counter:
    return {
        "total": telling.total, "step": telling.step, "way": 0, "told": 1, "told_s": 0.0,
        "has_loss": telling.has_loss, "went_on": False, "begins_anew": False,
    }  # fmt: skip


def _other(stood: list[list[int]], telling: Telling) -> Counter:
    """Return a counter that begins, or goes on from where it stood when another one came between."""
    before = next((step for total, step in stood if total == telling.total), None)
    return {**_begun(telling), "went_on": before is not None and before < telling.step}


def _advanced(counter: Counter, telling: Telling, since_s: float) -> Counter:
    way = telling.step - counter["step"]
    return {
        **counter, "total": counter["total"] if telling.total is None else telling.total, "step": telling.step,
        "way": max(way, counter["way"]), "told": min(counter["told"] + 1, SURE_TOLD),
        "told_s": min(counter["told_s"] + since_s, 1e9), "has_loss": counter["has_loss"] or telling.has_loss,
    }  # fmt: skip


def _goes_on(training: Counter, telling: Telling) -> bool:
    """Whether a step is the training's next one; with the same total it is, where it begins anew too."""
    if telling.total is not None and training["total"] is not None:
        return telling.total == training["total"]
    if telling.total != training["total"]:
        return 0 <= telling.step - training["step"] <= NEAR_WAYS * max(1, training["way"])
    return telling.step >= training["step"] or training["begins_anew"]


def _is_back(training: Counter, other: Counter, telling: Telling) -> bool:
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


def _back(known: Counters, telling: Telling) -> Counters:
    training, other = known["training"], known["other"]
    begins_anew = training["total"] is None and telling.step <= training["step"]
    training = {
        **_advanced(training, telling._replace(step=training["step"]), 0.0), "step": telling.step,
        "went_on": training["went_on"] or telling.step > training["step"],
        "begins_anew": training["begins_anew"] or begins_anew,
    }  # fmt: skip
    return {"training": training, "other": None, "stood": _stood(known["stood"], other)}


def _stood(stood: list[list[int]], counter: Counter) -> list[list[int]]:
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


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_counter(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != _begun(Telling(0)).keys():
        return False
    are_counts = all(map(_is_count, (value["step"], value["way"], value["told"])))
    is_total = value["total"] is None or _is_count(value["total"])
    is_time = type(value["told_s"]) in (int, float) and 0 <= value["told_s"] <= 1e9
    flags = (value["has_loss"], value["went_on"], value["begins_anew"])
    return are_counts and is_total and is_time and all(type(one) is bool for one in flags)
