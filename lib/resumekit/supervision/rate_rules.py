"""Whether the learning rates and losses that a resumed run tells are those that were planned.

Pure; a part of `acceptance_rules`. Source: protocol §4. Try it: `python -m pytest tests/test_acceptance.py`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..basics.check import FAILED, PASSED, UNKNOWN, WARNED, Check
from .expectations import Expected

# A log shows some digits of a rate.
LOGGED_TOLERANCE = 2e-3
TOLD_TOLERANCE = 1e-6
# A replayed step on another kernel or device: rounding, up to here; beyond the second, another batch.
ROUNDING_TOLERANCE = 1e-3
REPLAY_TOLERANCE = 0.01
REPLAYED = 3
# Scaled median absolute deviations that a loss may lie above the parent's.
SPREADS = 6.0


def judge_rates(steps: Sequence[Mapping[str, Any]], expected: Expected, *, is_verified: bool) -> Check:
    """Judge the rates told of the first steps by the plan's.

    Args:
        steps: the `step` events.
        is_verified: the kit's helpers have looked at every group in the first step. Then the rate told may be any
            group's, and only its course is judged: a schedule that goes twice as fast.
    """
    if not expected.rates:
        return Check("lr", UNKNOWN, why="the trainer's own schedule decides")
    told = {
        one["step"] - expected.step - 1: float(one["lr"]) for one in steps
        if type(one.get("lr")) in (int, float) and 0 <= one["step"] - expected.step - 1 < len(expected.rates[0])
    }  # fmt: skip
    if not told:
        return Check("lr", UNKNOWN, why="the trainer tells no rate of the steps that the plan foresees")
    tolerance = LOGGED_TOLERANCE if any(one.get("source") == "log" for one in steps) else TOLD_TOLERANCE
    # Some tell the schedule's rate, which the kit scales behind it; some the next step's, their schedule being ahead.
    curves = [(curve, shift) for curve in (*expected.rates, *expected.unscaled) for shift in (0, 1)]
    follows = any(_follows(told, curve, shift, tolerance, is_verified) for curve, shift in curves)
    first = min(told)
    said = "; ".join(", ".join(f"{value:.6g}" for value in values[first:]) for values in expected.rates)
    found = ", ".join(f"{told[index]:.6g}" for index in sorted(told))
    return Check("lr", PASSED if follows else FAILED, f"{said} from step {first + 1 + expected.step} on", found)


def _follows(
    told: Mapping[int, float], curve: Sequence[float], shift: int, tolerance: float, is_relative: bool
) -> bool:
    pairs = [(rate, curve[index + shift]) for index, rate in sorted(told.items()) if index + shift < len(curve)]
    if is_relative:
        (rate, value), *pairs = pairs or [(0.0, 0.0)]
        return all(math.isclose(one * value, other * rate, rel_tol=tolerance) for one, other in pairs)
    return bool(pairs) and all(math.isclose(one, other, rel_tol=tolerance) for one, other in pairs)


def judge_replay(both: Sequence[tuple[int, float, float]], *, is_logged: bool, is_exact: bool) -> Check:
    """Judge steps that the parent had done too, from the same state on the same data.

    Args:
        both: (step, the parent's loss, this run's loss).
        is_logged: read out of a log, which shows some digits.
        is_exact: nothing on this machine would round otherwise.
    """
    equal = sum(want == found for _, want, found in both)
    step, want, found = next((one for one in both if one[1] != one[2]), both[0])
    if equal == len(both):
        return Check("loss", PASSED, want, found, f"the parent's, bit for bit, in {equal} steps")
    digits = max(len(repr(loss).partition(".")[2]) for _, *losses in both for loss in losses) if is_logged else 0
    last_digit = 1.01 * 10.0**-digits if digits else 0.0
    worst = max(max(0.0, abs(found - want) - last_digit) / (abs(want) or 1.0) for _, want, found in both[:REPLAYED])
    why = f"step {step} is not the parent's step {step}: other data, other random numbers or other weights"
    if not worst <= REPLAY_TOLERANCE:
        return Check("loss", FAILED, want, found, why)
    if worst > ROUNDING_TOLERANCE:
        return Check("loss", WARNED, want, found, why)
    if is_exact:
        return Check("loss", WARNED, want, found, f"step {step} is near the parent's, and could be equal bit for bit")
    return Check("loss", PASSED, want, found, "the parent's but for rounding, not bit for bit")


def judge_window(before: Sequence[float], after: Sequence[float], band: float | None) -> Check:
    """Judge the first losses by the parent's last ones.

    Args:
        band: share that their medians may differ by; None only warns of losses above all of the parent's.
    """
    want, found = median(before), median(after)
    if band is not None:
        verdict = PASSED if want and abs(found / want - 1) <= band else FAILED
        return Check("loss", verdict, f"{want:.6g}, within {band:.0%}", found)
    spread = 1.4826 * median([abs(loss - want) for loss in before])
    limit = max(max(before), want + SPREADS * spread)
    return Check("loss", PASSED if found <= limit else WARNED, f"{want:.6g}, at most {limit:.6g}", found)
