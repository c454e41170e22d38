"""Whether the learning rates and losses that a resumed run tells are those that were planned.

Pure; a part of `journal_rules`. Source: protocol §4. Try it: `python -m pytest tests/test_acceptance.py`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from ..base.imports import Any
from ..base.terms import BAND, EXACT, FAILED, NOT_TOLD, PASSED, STEPWISE, WARNED, Check
from ..base.values import amount, real
from .expectations import Expected, ToldRate

# A log shows some digits of a rate.
LOGGED_TOLERANCE = 2e-3
TOLD_TOLERANCE = 1e-6
# A replayed step on another kernel or device: rounding, up to here; beyond the second, another batch.
ROUNDING_TOLERANCE = 1e-3
REPLAY_TOLERANCE = 0.01
REPLAYED = 3
_TOO_FEW_DIGITS = "the log shows too few digits to tell the cut rate (recover.lr_args) from the one before"
# A median is taken of so many losses, or of none.
MIN_STEPS = 12
# Scaled median absolute deviations that a loss may lie above the parent's.
SPREADS = 6.0


def judge_rates(steps: Sequence[Mapping[str, Any]], expected: Expected, *, is_verified: bool) -> Check:
    """Judge the rates told of the first steps by the plan's.

    Args:
        steps: the `step` events.
        is_verified: the kit's helpers have looked at every group in the first step. Then the rate told may be any
            group's, and only its course is judged: a schedule that goes twice as fast.
    """
    if expected.replayed_rates:
        return _judge_replayed_rates(steps, expected)
    if not expected.rates:
        return _judge_own_rates(steps, expected)
    length = len(expected.rates[0])
    told = {index: rate for step, rate in _told(steps).items() if 0 <= (index := step - expected.step - 1) < length}
    if not told:
        return Check("lr", NOT_TOLD, why="the trainer tells no rate of the steps that the plan foresees")
    tolerance = LOGGED_TOLERANCE if any(one.get("source") == "log" for one in steps) else TOLD_TOLERANCE
    # Some tell the schedule's rate, which the kit scales behind it; some the next step's, their schedule being ahead.
    curves = [(curve, shift) for curve in (*expected.rates, *expected.unscaled) for shift in (0, 1)]
    follows = any(_follows(told, curve, shift, tolerance, is_verified) for curve, shift in curves)
    first = min(told)
    said = "; ".join(", ".join(f"{value:.6g}" for value in values[first:]) for values in expected.rates)
    found = ", ".join(f"{told[index].value:.6g}" for index in sorted(told))
    want = f"{said} from step {first + 1 + expected.step} on"
    before = [[value / expected.handed_factor for value in curve] for curve in expected.rates]
    if follows and expected.handed_factor != 1.0 and any(
        _follows(told, curve, shift, tolerance, is_relative=False) for curve in before for shift in (0, 1)
    ):  # fmt: skip
        return Check("lr", NOT_TOLD, want, found, _TOO_FEW_DIGITS)
    return Check("lr", PASSED if follows else FAILED, want, found)


def _told(steps: Sequence[Mapping[str, Any]]) -> dict[int, ToldRate]:
    """Return step -> rate, of the `step` events that tell one."""
    rates = {one["step"]: one for one in steps if real(one.get("lr")) is not None}
    return {step: ToldRate(float(one["lr"]), amount(one.get("lr_within")) or 0.0) for step, one in rates.items()}


def _is_close(one: ToldRate, other: ToldRate, tolerance: float = LOGGED_TOLERANCE) -> bool:
    """Whether two rates may be the same one, as far as their printed digits tell."""
    within = (one.within + other.within) * (1 + TOLD_TOLERANCE)
    return math.isclose(one.value, other.value, rel_tol=tolerance, abs_tol=within)


def _judge_own_rates(steps: Sequence[Mapping[str, Any]], expected: Expected) -> Check:
    """Judge the rates of a trainer's own schedule: none is foreseen, but a change that it has not taken is seen."""
    told = _told(steps)
    both = [(step, told[step].value, rate.value) for step, rate in expected.rates_before.items() if step in told]
    if both and all(math.isclose(found, before, rel_tol=LOGGED_TOLERANCE) for _, found, before in both):
        step, found, _ = both[0]
        why = "optimizer.lr was changed, and the trainer goes on with the rate from before: it has loaded its old one"
        return Check("lr", WARNED, "another rate", f"{found:.6g} in step {step}", why)
    return Check("lr", NOT_TOLD, why="the trainer's own schedule decides")


def _judge_replayed_rates(steps: Sequence[Mapping[str, Any]], expected: Expected) -> Check:
    """Judge by the parent's rates of the same steps whether the trainer took the cut one that it was handed."""
    told = _told(steps)
    both = [(step, told[step], rate) for step, rate in expected.replayed_rates.items() if step in told]
    if not both:
        return Check("lr", NOT_TOLD, why="the trainer tells no rate of a step that the parent told it of")
    wrong = [one for one in both if not _is_close(one[1], one[2])]
    step, found, want = next(iter(wrong or both))
    said = (f"{want.value:.6g} in step {step}", f"{found.value:.6g}")
    if wrong:
        why = "the rate that the trainer was handed (recover.lr_args) is not the one it trains with"
        return Check("lr", FAILED, *said, why)
    # Without the cut each step would show what it showed in the parent.
    before = [(rate.value, want.value / expected.handed_factor) for _, rate, want in both]
    is_cut = expected.handed_factor != 1.0
    if is_cut and all(math.isclose(rate, old, rel_tol=LOGGED_TOLERANCE) for rate, old in before):
        return Check("lr", NOT_TOLD, *said, _TOO_FEW_DIGITS)
    return Check("lr", PASSED, *said)


def _follows(
    told: Mapping[int, ToldRate], curve: Sequence[float], shift: int, tolerance: float, is_relative: bool
) -> bool:
    """Whether the told rates are those of a curve; with `is_relative` whether they are a multiple of it."""
    pairs = [
        (rate, ToldRate(curve[index + shift])) for index, rate in sorted(told.items()) if index + shift < len(curve)
    ]
    if is_relative:
        (rate, value), *pairs = pairs or [(ToldRate(0.0), ToldRate(0.0))]
        return all(_is_close(one.times(value.value), rate.times(other.value), tolerance) for one, other in pairs)
    return bool(pairs) and all(_is_close(one, other, tolerance) for one, other in pairs)


def judge_replay(both: Sequence[tuple[int, float, float]], *, is_logged: bool, is_exact: bool) -> Check:
    """Judge steps that the parent had done too, from the same state on the same data.

    Args:
        both: (step, the parent's loss, this run's loss).
        is_logged: read out of a log, which shows some digits.
        is_exact: nothing on this machine would round otherwise.
    """
    equal, count = sum(want == found for _, want, found in both), in_steps(len(both))
    step, want, found = next((one for one in both if one[1] != one[2]), both[0])
    if equal == len(both):
        how = "to the last digit that the log shows" if is_logged else EXACT
        return Check(
            name="loss", verdict=PASSED, expected=want, found=found, why=f"losses equal {how} in {count}",
            compared=STEPWISE if is_logged else EXACT,
        )  # fmt: skip
    digits = max(len(repr(loss).partition(".")[2]) for _, *losses in both for loss in losses) if is_logged else 0
    last_digit = 1.01 * 10.0**-digits if digits else 0.0
    worst = max(max(0.0, abs(found - want) - last_digit) / (abs(want) or 1.0) for _, want, found in both[:REPLAYED])
    differ = f"losses differ from the parent's in {len(both) - equal} of {count}"
    why = f"{differ}, first in step {step}: other data, other random numbers or other weights"
    if not worst <= REPLAY_TOLERANCE:
        return Check(name="loss", verdict=FAILED, expected=want, found=found, why=why, compared=STEPWISE)
    if worst > ROUNDING_TOLERANCE:
        return Check(name="loss", verdict=WARNED, expected=want, found=found, why=why, compared=STEPWISE)
    if is_exact:
        why = f"{differ}, first in step {step}: near the parent's, and could be equal bit for bit"
        return Check(name="loss", verdict=WARNED, expected=want, found=found, why=why, compared=STEPWISE)
    why = f"losses equal but for rounding in {count}, not bit for bit"
    return Check(name="loss", verdict=PASSED, expected=want, found=found, why=why, compared=STEPWISE)


def judge_inexact(replay: Check, window: Check, unrestored: str, *, has_band: bool) -> Check:
    """Judge steps that the parent had done too, where the checkpoint does not hold all that makes their numbers.

    Losses that are equal show that the trainer restored it by itself. Others show that it did not: that is no fault of
    this resume, and worth a word.

    Args:
        replay: of the steps, one by one.
        window: by the median, where a band of the lab's allows for such a difference.
        unrestored: what the checkpoint does not hold.
        has_band: there is such a band, and there are enough steps for it.
    """
    if replay.verdict == PASSED:
        return replay
    why = f"{replay.why.partition(':')[0]}; {unrestored}: the resume is not exact"
    return window._replace(why=f"{window.why}; {why}") if has_band else replay._replace(verdict=WARNED, why=why)


def judge_window(before: Sequence[float], after: Sequence[float], band: float | None, incomparable: str) -> Check:
    """Judge the first losses by the parent's last ones, where they can't be compared step by step.

    Args:
        band: share that their medians may differ by. None only warns of losses above all of the parent's: below that,
            too little is seen to say that they are right.
        incomparable: why they can't be compared step by step.
    """
    why = f"not comparable step by step, because {incomparable}"
    if min(len(before), len(after)) < MIN_STEPS:
        return Check("loss", NOT_TOLD, why=f"{why}; too few steps to compare by their median")
    want, found = median(before), median(after)
    if band is not None:
        verdict = PASSED if want and abs(found / want - 1) <= band else FAILED
        return Check(
            name="loss", verdict=verdict, expected=f"{want:.6g}, within {band:.0%}", found=found, why=why, compared=BAND
        )
    spread = 1.4826 * median([abs(loss - want) for loss in before])
    limit = max(max(before), want + SPREADS * spread)
    verdict = NOT_TOLD if found <= limit else WARNED
    return Check(
        name="loss", verdict=verdict, expected=f"{want:.6g}, at most {limit:.6g}", found=found, why=why, compared=BAND
    )


def in_steps(count: int) -> str:
    """Return '1 step', '2 steps'."""
    return f"{count} step" if count == 1 else f"{count} steps"


def comparison(loss: Check, has_weights: bool) -> str:
    """Return what a resume was compared by, in words: the strongest comparison that was made.

    Args:
        loss: the check of the losses.
        has_weights: the weights were held against the checkpoint's, and are the same.
    """
    if loss.compared in (EXACT, STEPWISE):
        return loss.why
    weights = ["weights as in the checkpoint"] if has_weights else []
    if loss.compared == BAND:
        where = "within" if loss.verdict in (PASSED, NOT_TOLD) else "outside"
        return ", ".join([*weights, f"losses {where} the band of the parent ({loss.why})"])
    why = loss.why or "the losses were not judged"
    return f"{weights[0]}; losses not compared: {why}" if weights else f"nothing compared: {why}"
