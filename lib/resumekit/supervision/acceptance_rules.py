"""Whether a resumed run does what was planned: the checks of its first two minutes that its journal shows.

Pure: takes events as they come and a clock, hands out verdicts. What only the trainer can see (weights, moments, random
numbers, a dry batch) it checks itself and journals; the last verdict here is on all of them together.
Source: protocol §4. Try it: `python -m pytest tests/test_acceptance.py`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ..basics.check import FAILED, PASSED, UNKNOWN, WARNED, WHOLE, Check, overall
from ..run_folder.run_state import WAITING_PHASES
from .expectations import Expected

WINDOW_S = 120.0
# Steps whose losses and rates are looked at.
LOSSES = 20
# The first steps warm up caches and allocators.
SLOW_STEPS = 3
MIN_STEPS = 12
# A replayed step on another kernel or device: rounding, not another batch.
REPLAY_TOLERANCE = 0.01
REPLAYED = 3
# A log shows some digits of a rate.
LOGGED_TOLERANCE = 2e-3
TOLD_TOLERANCE = 1e-6
# Scaled median absolute deviations that a loss may lie above the parent's.
SPREADS = 6.0


class Rules:
    """Collects what the checks need, and gives each verdict once.

    Args:
        expected: from the plan and the parent; None where there is nothing to accept (any more).
        throughput_band, loss_band: of `resume.`; shares.
        known: verdicts that stand in the journal already (a sidecar before this one gave them).
    """

    def __init__(
        self, expected: Expected | None, throughput_band: float, loss_band: float | None, known: Mapping[str, str]
    ) -> None:
        self._expected, self._band, self._loss_band = expected or Expected(0), throughput_band, loss_band
        self._is_idle = expected is None
        self._verdicts = dict(known)
        self._began_s: float | None = None
        self._resumed_step: int | None = None
        self._phase: str | None = None
        self._steps: list[dict[str, Any]] = []
        self._seconds: list[float] = []
        self._last: tuple[int, float] | None = None
        self._fingerprint: str | None = None

    @property
    def is_over(self) -> bool:
        return self._is_idle or WHOLE in self._verdicts

    @property
    def failed(self) -> list[str]:
        """The checks that have failed so far, the trainer's own among them."""
        return [name for name, verdict in self._verdicts.items() if verdict == FAILED and name != WHOLE]

    def see(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the run's own journal."""
        kind, mono_s = event.get("event"), event.get("mono_s")
        if kind == "check" and isinstance(event.get("name"), str):
            self._verdicts[event["name"]] = str(event.get("verdict"))
        elif kind == "resumed" and type(event.get("step")) is int:
            self._resumed_step = event["step"]
        elif kind == "data" and isinstance(event.get("fingerprint"), str):
            self._fingerprint = event["fingerprint"]
        elif kind == "heartbeat" and isinstance(event.get("scheduler_phase"), str) and self._phase is None:
            self._phase = event["scheduler_phase"]
        elif kind == "phase" and event.get("phase") in WAITING_PHASES:
            self._last = None
        elif kind == "step" and type(event.get("step")) is int and type(mono_s) in (int, float):
            self._see_step(event, event["step"], float(mono_s))

    def _see_step(self, event: Mapping[str, Any], step: int, mono_s: float) -> None:
        if self._began_s is None:
            self._began_s = mono_s
        if len(self._steps) < LOSSES:
            self._steps.append(dict(event))
        if self._last and step > self._last[0] and mono_s >= self._last[1]:
            self._seconds.append((mono_s - self._last[1]) / (step - self._last[0]))
        self._last = (step, mono_s)

    def verdicts(self, now_s: float, *, has_ended: bool = False) -> Iterator[Check]:
        """Yield the checks that can be decided by now; after WINDOW_S, or at the run's end, all that are left.

        Args:
            now_s: the monotonic clock of the journal's host.
        """
        if self._is_idle:
            return
        is_late = has_ended or (self._began_s is not None and now_s - self._began_s >= WINDOW_S)
        enough = is_late or len(self._steps) >= LOSSES
        told = len(self._steps) >= 2 or is_late
        for name, is_due, judge in (
            ("step", told, self._judge_step), ("lr", told, self._judge_rates),
            ("data", told, self._judge_data), ("phase", enough, self._judge_phase),
            ("loss", enough, self._judge_loss), ("throughput", is_late, self._judge_speed),
        ):  # fmt: skip
            if is_due and name not in self._verdicts:
                check = judge()
                self._verdicts[name] = check.verdict
                yield check
        if is_late and not self.is_over:
            parts = {name: verdict for name, verdict in self._verdicts.items() if name != WHOLE}
            verdict = overall(parts.values())
            self._verdicts[WHOLE] = verdict
            wrong = [name for name, one in parts.items() if one in (FAILED, WARNED)]
            passed = sum(one == PASSED for one in parts.values())
            yield Check(WHOLE, verdict, "as planned", f"{passed} of {len(parts)} passed", ", ".join(wrong))

    def _judge_step(self) -> Check:
        want = self._expected.step
        if self._resumed_step is not None and self._resumed_step != want:
            return Check("step", FAILED, want, self._resumed_step, "the trainer loaded another step")
        if not self._steps:
            verdict = UNKNOWN if self._resumed_step is None else PASSED
            return Check("step", verdict, want, self._resumed_step, "no step was seen")
        first = self._steps[0]["step"]
        if first <= want and self._resumed_step is None:
            return Check("step", FAILED, f"steps after {want}", first, "the trainer counts from another step")
        # Who tells every tenth step tells its first one up to ten later.
        gap = self._steps[1]["step"] - first if len(self._steps) > 1 else first
        if want < first <= want + max(1, gap):
            return Check("step", PASSED, want + 1, first)
        return Check("step", FAILED, want + 1, first, "the trainer counts from another step")

    def _judge_rates(self) -> Check:
        """Judge the rates that the trainer tells; where the kit's helpers load, they have checked every group."""
        want = self._expected.rates
        if not want:
            return Check("lr", UNKNOWN, why="the trainer's own schedule decides")
        for event in self._steps:
            index = event["step"] - self._expected.step - 1
            rate = event.get("lr")
            if not 0 <= index < len(want[0]) or type(rate) not in (int, float):
                continue
            tolerance = LOGGED_TOLERANCE if event.get("source") == "log" else TOLD_TOLERANCE
            said = ", ".join(f"{values[index]:.6g}" for values in want)
            is_planned = any(math.isclose(rate, values[index], rel_tol=tolerance) for values in want)
            return Check("lr", PASSED if is_planned else FAILED, f"{said} in step {event['step']}", rate)
        return Check("lr", UNKNOWN, why="the trainer tells no rate of the steps that the plan foresees")

    def _judge_data(self) -> Check:
        want, found = self._expected.fingerprint, self._fingerprint
        if want is None or found is None:
            return Check("data", UNKNOWN, want, found, "no fingerprint of the data to compare")
        if want == found:
            return Check("data", PASSED, want, found)
        verdict = WARNED if self._expected.data_differs else FAILED
        return Check("data", verdict, want, found, "the data is not what the checkpoint was trained on")

    def _judge_phase(self) -> Check:
        want = self._expected.phase
        if want is None:
            return Check("phase", UNKNOWN, found=self._phase, why="the trainer's own schedule decides")
        if self._phase is not None:
            return Check("phase", PASSED if self._phase == want else FAILED, want, self._phase)
        rates = [event["lr"] for event in self._steps if type(event.get("lr")) in (int, float)]
        if len(rates) < 2:
            return Check("phase", UNKNOWN, want, None, "the trainer tells neither phase nor rate")
        found = "rising" if rates[1] > rates[0] else "falling" if rates[1] < rates[0] else "level"
        # Of a log's few digits a slow curve looks level.
        fits = {"warmup": ("rising", "level"), "constant": ("level",), "floor": ("level",)}
        return Check("phase", PASSED if found in fits.get(want, ("falling", "level")) else WARNED, want, found)

    def _judge_loss(self) -> Check:
        mine = {event["step"]: float(event["loss"]) for event in self._steps if type(event.get("loss")) in (int, float)}
        theirs, at = self._expected.losses, self._expected.step
        both = sorted(step for step in mine if step > at and step in theirs)
        if self._expected.is_replay and both:
            return _judge_replay([(step, theirs[step], mine[step]) for step in both])
        before = [theirs[step] for step in theirs if step <= at]
        if len(mine) < MIN_STEPS or len(before) < MIN_STEPS:
            return Check("loss", UNKNOWN, why="too few steps to compare")
        return _judge_window(before, list(mine.values()), self._loss_band)

    def _judge_speed(self) -> Check:
        mine, theirs = self._seconds[SLOW_STEPS:], self._expected.seconds
        if self._expected.speed_differs:
            return Check("throughput", UNKNOWN, why=f"not comparable: {self._expected.speed_differs}")
        if len(mine) < MIN_STEPS or len(theirs) < MIN_STEPS:
            return Check("throughput", UNKNOWN, why="too few steps to compare")
        want, found = median(theirs), median(mine)
        if not want or not found:
            return Check("throughput", UNKNOWN, why="steps too short to be timed")
        # Sustained: in each third of the time, not in a stumble of one.
        third = len(mine) // 3
        parts = [median(mine[index * third : (index + 1) * third]) for index in range(3)]
        is_outside = all(abs(want / part - 1) > self._band if part else True for part in parts)
        expected = f"{1 / want:.4g} steps/s, within {self._band:.0%}"
        return Check("throughput", WARNED if is_outside else PASSED, expected, f"{1 / found:.4g} steps/s")


def _judge_replay(both: Sequence[tuple[int, float, float]]) -> Check:
    """Judge steps that the parent had done too, from the same state on the same data."""
    equal = sum(want == found for _, want, found in both)
    step, want, found = next((one for one in both if one[1] != one[2]), both[0])
    if equal == len(both):
        return Check("loss", PASSED, want, found, f"the parent's, bit for bit, in {equal} steps")
    worst = max(abs(found / want - 1) if want else abs(found) for _, want, found in both[:REPLAYED])
    why = f"step {step} is not the parent's step {step}: other data, other random numbers or other weights"
    if not worst <= REPLAY_TOLERANCE:
        return Check("loss", FAILED, want, found, why)
    return Check("loss", PASSED, want, found, f"within {REPLAY_TOLERANCE:.0%} of the parent's, not bit for bit")


def _judge_window(before: Sequence[float], after: Sequence[float], band: float | None) -> Check:
    """Judge the first losses by the parent's last ones."""
    want, found = median(before), median(after)
    if not math.isfinite(found):
        return Check("loss", FAILED, want, str(found))
    if band is not None:
        verdict = PASSED if want and abs(found / want - 1) <= band else FAILED
        return Check("loss", verdict, f"{want:.6g}, within {band:.0%}", found)
    spread = 1.4826 * median([abs(loss - want) for loss in before])
    limit = max(max(before), want + SPREADS * spread)
    return Check("loss", PASSED if found <= limit else WARNED, f"{want:.6g}, at most {limit:.6g}", found)
