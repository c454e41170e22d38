"""What the fold remembers of a run's ailments: not finite, out of memory, a crashed evaluation, an odd step.

Each is kept until the run has shown that it got over it. Bounded, plain JSON, pure: every function returns new
symptoms. What they mean is the abort rules' affair.
Try it: `python -m pytest tests/test_abort_rules.py`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Symptoms = dict[str, Any]

# So many of the newest are kept.
MAX_OOMS = 64
# Beyond this a loss is none, finite or not: the next step would overflow.
MAX_LOSS = 1e30
# A loss that was not finite once may be that of a batch which the trainer leaves out itself: the next telling decides.
SURE_TOLD = 2
# Tellings over which the loss is smoothed, on a scale of factors: a spike of a few steps does not move it.
SMOOTHED = 200
# Of so many tellings at least: the average begins as a mean, and a drift that comes soon must not become the best.
STEADY = 10
# So many times slower the best follows upwards: "recent best".
FORGETS = 20
# From one telling to the next a step does not get further than so many of the longest ways before, nor than so many
# steps: a log that is read late has long ways too. Before the first way, this is taken for one.
JUMP_WAYS = 100
JUMP_STEPS = 10_000
FIRST_WAY = 1000

_WORDS = frozenset({"nan", "inf", "-inf"})


def saw_loss(known: Symptoms, loss: Any, step: int, mono_s: float, *, is_beat: bool = False) -> Symptoms:
    """Take in the loss of a step; anything that is no loss changes nothing.

    Args:
        is_beat: a heartbeat tells it: beside a `step` event that is the same telling, and may be older than its step.
    """
    if is_bad(loss):
        return _told_bad(_went_bad(known, f"loss {loss}", step, mono_s, is_beat=is_beat), step, is_beat=is_beat)
    if type(loss) not in (int, float):
        return known
    result = {**known, "loss_told": known.get("loss_told", 0) + 1}
    bad = known.get("bad")
    # Once it is sure, only a later step heals it; steps may begin again in each epoch.
    if bad and (step > bad["step"] or (bad["told"] < SURE_TOLD and step != bad["last"])):
        del result["bad"]
        result["healed"] = known.get("healed", 0) + 1
    same = known.get("same")
    result["same"] = {"loss": loss, "told": same["told"] + 1 if same and same["loss"] == loss else 1, "step": step}
    if same and same["loss"] == loss:
        result["same"]["step"] = same["step"]
    if loss > 0:
        log, told = math.log(loss), result["loss_told"]
        smooth = known.get("smooth", log)
        smooth += (log - smooth) / min(told, SMOOTHED)
        # One happy batch at the beginning is no best: it would be one for thousands of steps.
        best = known.get("best", smooth) if told > STEADY else smooth
        result["smooth"], result["best"] = smooth, min(smooth, best + (smooth - best) / (SMOOTHED * FORGETS))
        if smooth <= best:
            result["best_step"] = step
    return result


def is_odd(known: Symptoms, step: int) -> bool:
    """Whether a step lies before the one that the same teller told last, or farther beyond it than any way can be."""
    way = step - known.get("told_step", step)
    return not 0 <= way <= max(JUMP_STEPS, JUMP_WAYS * known.get("longest_way", FIRST_WAY))


def saw_step(known: Symptoms, step: int) -> Symptoms:
    """Take in the step that a teller tells."""
    before = known.get("told_step", step)
    result = {**known, "told_step": step}
    if is_odd(known, step):
        times = known["odd_step"]["times"] if "odd_step" in known else 0
        result["odd_step"] = {"before": before, "step": step, "times": times + 1}
    elif step - before > known.get("longest_way", 0):
        result["longest_way"] = step - before
    return result


def without_steps(known: Symptoms) -> Symptoms:
    """Forget the step that was told last: what comes next is no way from there."""
    return {key: value for key, value in known.items() if key != "told_step"}


def saw_nonfinite(known: Symptoms, event: Mapping[str, Any], step: int, mono_s: float) -> Symptoms:
    """Take in a `nonfinite` event: the trainer says it itself, and that is sure."""
    what = event.get("what")
    result = _went_bad(known, f"{what[:80]} not finite" if isinstance(what, str) else "not finite", step, mono_s)
    return {**result, "bad": {**result["bad"], "told": SURE_TOLD}}


def saw_save(known: Symptoms, event: Mapping[str, Any], step: int, mono_s: float) -> Symptoms:
    """Take in a `checkpoint` event, for its size and whether all in it was finite."""
    result = dict(known)
    size = event.get("size")
    if type(size) is int and 0 <= size < 1 << 53:
        result["save_bytes"] = size
    if event.get("finite") is True:
        result["sound_step"] = step
        result.pop("bad_save", None)
    elif event.get("finite") is False and "bad_save" not in known:
        result["bad_save"] = {"step": step, "after": known.get("sound_step"), "mono_s": mono_s}
    return result


def saw_oom(known: Symptoms, mono_s: float) -> Symptoms:
    """Take in an `oom` event."""
    return {**known, "ooms": [*known.get("ooms", []), mono_s][-MAX_OOMS:]}


def saw_eval_crash(known: Symptoms, event: Mapping[str, Any], step: int | None, mono_s: float) -> Symptoms:
    """Take in an `eval_crashed` event."""
    kind, message = (event.get(key) for key in ("kind", "message"))
    crash = {
        "kind": kind[:20] if isinstance(kind, str) else None,
        "message": message[:200] if isinstance(message, str) else None,
        "step": step,
        "mono_s": mono_s,
    }
    return {**known, "eval_crash": crash}


def saw_eval(known: Symptoms) -> Symptoms:
    """Take in that an evaluation came to its end: an earlier crash is over."""
    return {key: value for key, value in known.items() if key != "eval_crash"}


def not_finite(known: Symptoms, *, is_last: bool = False) -> list[tuple[str, float, int]]:
    """Return (what, since when in seconds of the run's clock, first bad step) of each thing that is not finite now.

    Args:
        is_last: whether a loss that was not finite in one telling counts: no other telling is waited for.
    """
    found = []
    bad = known.get("bad")
    if bad and (is_last or bad["told"] >= SURE_TOLD):
        found.append((f"{bad['what']} in step {bad['step']}", bad["mono_s"], bad["step"]))
    if bad := known.get("bad_save"):
        first = bad["step"] if bad["after"] is None else bad["after"] + 1
        after = "" if bad["after"] is None else f", all was finite at step {bad['after']}"
        what = f"weights or loss not finite in the checkpoint of step {bad['step']}{after}"
        found.append((what, bad["mono_s"], min(first, bad["step"])))
    return found


def is_bad(loss: Any) -> bool:
    """Whether a journal's value says that a loss is not finite (there it is a word), or as good as not."""
    if isinstance(loss, str):
        return loss.strip().lower() in _WORDS
    return type(loss) in (int, float) and not abs(loss) < MAX_LOSS


def is_sound(known: object) -> bool:
    """Whether symptoms that were read from a file have the types that are given to them here."""
    return isinstance(known, dict) and all(key in _TYPES and _TYPES[key](value) for key, value in known.items())


def _went_bad(known: Symptoms, what: str, step: int, mono_s: float, *, is_beat: bool = False) -> Symptoms:
    if "bad" in known:
        return known  # the first one counts: from before it a recovery has to start
    bad = {"what": what[:100], "step": step, "mono_s": mono_s, "told": 1, "last": step, "is_beat": is_beat}
    return {**known, "bad": bad}


def _told_bad(known: Symptoms, step: int, *, is_beat: bool) -> Symptoms:
    """Count the tellings of what is not finite: the same step again is the same one."""
    bad = known["bad"]
    if step == bad["last"] or (is_beat and not bad["is_beat"]):
        return known
    return {**known, "bad": {**bad, "told": min(bad["told"] + 1, SURE_TOLD), "last": step}}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e40


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _or_none(check: Any) -> Any:
    return lambda value: value is None or check(value)


def _fields(**checks: Any) -> Any:
    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == checks.keys()
            and all(of(value[name]) for name, of in checks.items())
        )

    return check


_TYPES: dict[str, Any] = {
    **dict.fromkeys(("loss_told", "healed", "save_bytes", "sound_step", "best_step"), _is_count),
    **dict.fromkeys(("told_step", "longest_way"), _is_count),
    **dict.fromkeys(("smooth", "best"), _is_number),
    "bad": _fields(what=_is_text, step=_is_count, mono_s=_is_time, told=_is_count, last=_is_count, is_beat=_is_flag),
    "bad_save": _fields(step=_is_count, after=_or_none(_is_count), mono_s=_is_time),
    "same": _fields(loss=_is_number, told=_is_count, step=_is_count),
    "odd_step": _fields(before=_is_count, step=_is_count, times=_is_count),
    "ooms": lambda value: isinstance(value, list) and len(value) <= MAX_OOMS and all(map(_is_time, value)),
    "eval_crash": _fields(
        kind=_or_none(_is_text), message=_or_none(_is_text), step=_or_none(_is_count), mono_s=_is_time
    ),
}
