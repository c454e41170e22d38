"""Whether a resumed run does what was planned: the checks of its first two minutes that its journal shows.

Pure: takes events as they come and a clock, hands out verdicts. What only the trainer can see (weights, moments, random
numbers, a dry batch) it checks itself and journals; the last verdict here is on all of them together.
Source: protocol §4. Try it: `python -m pytest tests/test_acceptance.py`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from ..basics.check import FAILED, PASSED, UNKNOWN, WARNED, WHOLE, Check, overall
from ..run_folder.event_values import count, seconds, text
from ..run_folder.state_types import WAITING_PHASES
from .expectations import Expected
from .rate_rules import judge_rates, judge_replay, judge_window

WINDOW_S = 120.0
# Steps whose losses and rates are looked at.
LOSSES = 20
# The first steps warm up caches and allocators.
SLOW_STEPS = 3
MIN_STEPS = 12
# Steps of which the plan foresees the rate, and one more.
RATES = 4


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
        self._loads: list[tuple[int, bool]] = []
        self._has_loaded_optimizer = False
        self._has_judged_course = "step" in known
        self._phase: tuple[str, int | None] | None = None
        self._not_finite: str | None = None
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
        kind, mono_s = event.get("event"), seconds(event.get("mono_s"))
        if kind == "check" and isinstance(event.get("name"), str):
            self._verdicts[event["name"]] = str(event.get("verdict"))
        elif kind == "resumed" and type(event.get("step")) is int:
            self._see_load(event, event["step"])
        elif kind == "data" and isinstance(event.get("fingerprint"), str):
            self._fingerprint = event["fingerprint"]
        elif kind == "heartbeat" and isinstance(event.get("scheduler_phase"), str) and self._phase is None:
            step = event.get("global_step")
            if type(step) is not int or step >= self._expected.step:  # one before the load tells of a fresh model
                self._phase = event["scheduler_phase"], step if type(step) is int else None
        elif kind == "nonfinite" and len(self._steps) < LOSSES:
            self._not_finite = f"{event.get('what')} of step {event.get('step')}"
        elif kind == "phase" and text(event.get("phase")) in WAITING_PHASES:
            self._last = None
        elif kind == "step" and count(event.get("step")) is not None and mono_s is not None:
            self._see_step(event, event["step"], float(mono_s))

    def _see_load(self, event: Mapping[str, Any], step: int) -> None:
        """A trainer may load a teacher's checkpoint besides; who says `is_planned` knows the plan's."""
        is_planned = event.get("is_planned") is not False
        self._loads.append((step, is_planned))
        report = event.get("report") if isinstance(event.get("report"), dict) else {}
        loaded = [name for name, done in report.items() if name.startswith("optimizer") and _is_loaded(done)]
        self._has_loaded_optimizer = self._has_loaded_optimizer or (is_planned and bool(loaded))

    def _see_step(self, event: Mapping[str, Any], step: int, mono_s: float) -> None:
        if self._began_s is None:
            self._began_s = mono_s
        if len(self._steps) < LOSSES:
            self._steps.append(dict(event))
            if event.get("loss") in ("nan", "inf", "-inf"):  # as a journal writes them
                self._not_finite = f"loss of step {step}"
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
        foreseen = len(self._steps) >= RATES or is_late
        for name, is_due, judge in (
            ("step", told, self._judge_step), ("lr", foreseen, self._judge_rates),
            ("data", told, self._judge_data), ("phase", enough, self._judge_phase),
            ("loss", enough, self._judge_loss), ("throughput", is_late, self._judge_speed),
        ):  # fmt: skip
            if is_due and name not in self._verdicts:
                yield self._gives(judge())
        if foreseen and not self._has_judged_course:
            self._has_judged_course = True
            if self._verdicts.get("lr") == PASSED and (check := self._judge_rates(is_verified=True)).verdict == FAILED:
                yield self._gives(check)
        if is_late and self._was_never_verified():
            why = "what was loaded was never looked at: was the optimizer made anew behind the load?"
            yield self._gives(Check("optimizer", WARNED, "a step of the loaded optimizer", "none", why))
        if is_late and not self.is_over:
            yield self.conclude()

    def conclude(self) -> Check:
        """Return the verdict on all checks together; nothing more is judged behind it."""
        parts = {name: verdict for name, verdict in self._verdicts.items() if name != WHOLE}
        wrong = [name for name, one in parts.items() if one in (FAILED, WARNED)]
        passed = sum(one == PASSED for one in parts.values())
        unknown = sum(one == UNKNOWN for one in parts.values())
        found = f"{passed} of {len(parts)} passed" + (f", {unknown} could not be told" if unknown else "")
        if not self._steps and not self._loads:
            why = "the trainer ended before it loaded or trained anything"
            return self._gives(Check(WHOLE, UNKNOWN, "as planned", "nothing", why))
        return self._gives(Check(WHOLE, overall(parts.values()), "as planned", found, ", ".join(wrong)))

    def _gives(self, check: Check) -> Check:
        self._verdicts[check.name] = check.verdict
        return check

    def _was_never_verified(self) -> bool:
        """Whether the trainer's helpers wait still for the first step of the optimizer that they have loaded."""
        is_checked = self._verdicts.keys() & {"weights", "optimizer"}
        return self._has_loaded_optimizer and not is_checked and len(self._steps) >= MIN_STEPS

    def _judge_step(self) -> Check:
        want = self._expected.step
        loads = [step for step, is_planned in self._loads if is_planned]
        if self._loads and not loads and self._expected.loads_with_kit:
            why = "another checkpoint than the planned one was loaded"
            return Check("step", FAILED, want, self._loads[-1][0], why)
        if loads and loads[-1] != want:
            return Check("step", FAILED, want, loads[-1], "the trainer loaded another step")
        if not self._steps:
            return Check("step", PASSED if loads else UNKNOWN, want, loads[-1] if loads else None, "no step was seen")
        first = self._steps[0]["step"]
        if first == want and not loads:
            return Check("step", WARNED, want + 1, first, "the trainer counts from 0, or does its last step again")
        if first <= want and not loads:
            return Check("step", FAILED, f"steps after {want}", first, "the trainer counts from another step")
        # Who tells every tenth step tells its first one up to ten later.
        gap = self._steps[1]["step"] - first if len(self._steps) > 1 else first
        if want < first <= want + max(1, gap):
            return Check("step", PASSED, want + 1, first)
        # A log's line may have gone unread; a trainer that tells its steps itself tells all of them.
        verdict = WARNED if self._steps[0].get("source") == "log" else FAILED
        return Check("step", verdict, want + 1, first, "the trainer counts from another step")

    def _judge_rates(self, *, is_verified: bool = False) -> Check:
        return judge_rates(self._steps, self._expected, is_verified=is_verified)

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
        told, at = self._phase or (None, None)
        if want is None:
            return Check("phase", UNKNOWN, found=told, why="the trainer's own schedule decides")
        if told is not None and told != want and at is not None and at > self._expected.step:
            return Check("phase", UNKNOWN, want, told, f"told at step {at} only")
        if told is not None:
            return Check("phase", PASSED if told == want else FAILED, want, told)
        rates = [event["lr"] for event in self._steps if type(event.get("lr")) in (int, float)]
        if len(rates) < 2:
            return Check("phase", UNKNOWN, want, None, "the trainer tells neither phase nor rate")
        found = "rising" if rates[1] > rates[0] else "falling" if rates[1] < rates[0] else "level"
        # Of a log's few digits a slow curve looks level.
        fits = {"warmup": ("rising", "level"), "constant": ("level",), "floor": ("level",)}
        return Check("phase", PASSED if found in fits.get(want, ("falling", "level")) else WARNED, want, found)

    def _judge_loss(self) -> Check:
        if self._not_finite is not None:
            return Check("loss", FAILED, "a number", "none", f"the {self._not_finite} is not finite")
        mine = {event["step"]: float(event["loss"]) for event in self._steps if type(event.get("loss")) in (int, float)}
        theirs, at = self._expected.losses, self._expected.step
        both = sorted(step for step in mine if step > at and step in theirs)
        if self._expected.is_replay and both:
            is_logged = any(event.get("source") == "log" for event in self._steps)
            compared = [(step, theirs[step], mine[step]) for step in both]
            return judge_replay(compared, is_logged=is_logged, is_exact=self._expected.is_exact)
        before = [theirs[step] for step in theirs if step <= at]
        if len(mine) < MIN_STEPS or len(before) < MIN_STEPS:
            return Check("loss", UNKNOWN, why="too few steps to compare")
        return judge_window(before, list(mine.values()), self._loss_band)

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


def _is_loaded(done: Any) -> bool:
    return isinstance(done, str) and done.startswith(("load", "partial"))
