"""What the fold keeps of a run's faults: not finite, out of memory, a crashed evaluation, an odd step.

Each is kept until the run has shown that it got over it. Bounded, plain JSON, pure: every function returns new
symptoms. What they mean is the abort rules' affair.
Try it: `python -m pytest tests/test_abort_rules.py`
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..base.imports import Any
from ..base.values import (
    Reader,
    boolean,
    count,
    fields,
    finite,
    listed,
    number,
    seconds,
    short_text,
    some_of,
    text,
    total,
)

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


def on_loss(known: Symptoms, loss: Any, step: int, mono_s: float, *, is_beat: bool = False) -> Symptoms:
    """Take in the loss of a step; anything that is no loss changes nothing.

    Args:
        is_beat: a heartbeat tells it: beside a `step` event that is the same telling, and may be older than its step.
    """
    if is_bad(loss):
        return _told_bad(_went_bad(known, f"loss {loss}", step, mono_s, is_beat=is_beat), step, is_beat=is_beat)
    if type(loss) not in (int, float):
        return known
    result = dict(known)
    bad = known.get("bad")
    # Once it is sure, only a later step heals it; steps may begin again in each epoch.
    if bad and (step > bad["step"] or (bad["told"] < SURE_TOLD and step != bad["last"])):
        del result["bad"]
        result["healed"] = known.get("healed", 0) + 1
    take_loss(result, loss, step)
    return result


def take_loss(known: Symptoms, loss: float, step: int) -> None:
    """Take in a loss that is a finite number, in place."""
    told = known["loss_told"] = known.get("loss_told", 0) + 1
    same = known.get("same")
    if same and same["loss"] == loss:
        known["same"] = {"loss": loss, "told": same["told"] + 1, "step": same["step"]}
    else:
        known["same"] = {"loss": loss, "told": 1, "step": step}
    if loss > 0:
        log = math.log(loss)
        smooth = known.get("smooth", log)
        smooth += (log - smooth) / (told if told < SMOOTHED else SMOOTHED)
        # One happy batch at the beginning is no best: it would be one for thousands of steps.
        best = known.get("best", smooth) if told > STEADY else smooth
        followed = best + (smooth - best) / (SMOOTHED * FORGETS)
        known["smooth"], known["best"] = smooth, smooth if smooth <= followed else followed
        if smooth <= best:
            known["best_step"] = step


def is_odd(known: Symptoms, step: int) -> bool:
    """Whether a step lies before the one that the same teller told last, or farther beyond it than any way can be."""
    way = step - known.get("told_step", step)
    return not 0 <= way <= max(JUMP_STEPS, JUMP_WAYS * known.get("longest_way", FIRST_WAY))


def on_step(known: Symptoms, step: int) -> Symptoms:
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


def on_nonfinite(known: Symptoms, event: Mapping[str, Any], step: int, mono_s: float) -> Symptoms:
    """Take in a `nonfinite` event: the trainer says it itself, and that is sure.

    Where it names a rank, it is the loss of that one in one step, and sure as a loss is: when it is told again.
    """
    what = text(event.get("what"))
    result = _went_bad(known, "not finite" if what is None else f"{what[:80]} not finite", step, mono_s)
    if count(event.get("rank")) is not None:
        return _told_bad(result, step, is_beat=False)
    return {**result, "bad": {**result["bad"], "told": SURE_TOLD}}


def on_save(known: Symptoms, event: Mapping[str, Any], step: int, mono_s: float) -> Symptoms:
    """Take in a `checkpoint` event, for its size and whether all in it was finite."""
    result = dict(known)
    if (size := total(event.get("size"))) is not None:
        result["save_bytes"] = size
    if event.get("finite") is True:
        result["sound_step"] = step
        result.pop("bad_save", None)
    elif event.get("finite") is False and "bad_save" not in known:
        result["bad_save"] = {"step": step, "after": known.get("sound_step"), "mono_s": mono_s}
    return result


def on_oom(known: Symptoms, mono_s: float) -> Symptoms:
    """Take in an `oom` event."""
    return {**known, "ooms": [*known.get("ooms", []), mono_s][-MAX_OOMS:]}


def on_eval_crash(known: Symptoms, event: Mapping[str, Any], step: int | None, mono_s: float) -> Symptoms:
    """Take in an `eval_crashed` event."""
    kind, message = (text(event.get(key)) for key in ("kind", "message"))
    crash = {"kind": kind and kind[:20], "message": message and message[:200], "step": step, "mono_s": mono_s}
    return {**known, "eval_crash": crash}


def on_eval(known: Symptoms) -> Symptoms:
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


def _log(value: Any) -> float | None:
    """Read the logarithm of a loss: that of the smallest float is -745."""
    return value if number(value) is not None and abs(value) < 1000 else None


_TYPES: dict[str, Reader] = {
    **dict.fromkeys(("loss_told", "healed", "save_bytes", "sound_step", "best_step"), total),
    **dict.fromkeys(("told_step", "longest_way"), count),
    **dict.fromkeys(("smooth", "best"), _log),
    "bad": fields(what=short_text, step=count, mono_s=seconds, told=count, last=count, is_beat=boolean),
    "bad_save": fields({"after": count}, step=count, mono_s=seconds),
    "same": fields(loss=finite, told=count, step=count),
    "odd_step": fields(before=count, step=count, times=count),
    "ooms": listed(seconds, MAX_OOMS),
    "eval_crash": fields({"kind": short_text, "message": short_text, "step": count}, mono_s=seconds),
}
# The reader of symptoms that were saved: the types that are given to them here.
saved = some_of(_TYPES)
