"""Whether a resumed run does what was planned: the checks of its first two minutes that its journal shows.

Pure: takes events as they come and a clock, hands out verdicts. What only the trainer can see (weights, moments, random
numbers, a dry batch) it checks itself and journals; the last verdict here is on all of them together.
Source: protocol §4. Try it: `python -m pytest tests/test_acceptance.py`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import median

from ..base import terms as checks
from ..base.imports import Any
from ..base.terms import (
    ABSENT,
    FAILED,
    FRESH,
    KEEPS_LESS,
    LOAD,
    NOT_TOLD,
    PARTIAL,
    PASSED,
    REFIT,
    RESET,
    SWAP,
    WARNED,
    WHOLE,
    Check,
)
from ..base.values import count, mapping, number, real, seconds, text
from ..policy.decide import keeps_less, kind_of
from ..run.state_types import WAITING_PHASES
from .expectations import MAKES_THE_NUMBERS, Expected
from .rate_rules import MIN_STEPS, comparison, judge_inexact, judge_rates, judge_replay, judge_window

WINDOW_S = 120.0
# Steps whose losses and rates are looked at.
LOSSES = 20
# The first steps warm up caches and allocators.
SLOW_STEPS = 3
# What another process does to steps that last no longer than this, all together, is no speed of the training.
TIMED_S = 2.0
# A log is looked at every quarter of a second: lines that came between two looks have the time of the second one.
LOGGED_S = 0.5
UNREAD_S = 1.0
# Steps of which the plan foresees the rate, and one more.
RATES = 4
# What a plan leaves out of a checkpoint: a load that has used it has not gone by this plan. A counter that begins anew
# is the check `step`.
_LEFT_OUT = (REFIT, FRESH, RESET, SWAP)
_OWN_CHECKS = {"ema": "averages", "swa": "averages"}
_OTHER_COUNT = "the trainer counts its steps otherwise than its checkpoints"


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
        self._is_restarted = False  # a load behind that is of the run's own checkpoint, which no plan names
        self._is_to_be_looked_at = False
        self._has_judged_course = self._has_judged_load = "step" in known
        self._report: Mapping[str, Any] = {}
        self._phase: tuple[str, int | None] | None = None
        self._not_finite: str | None = None
        self._steps: list[dict[str, Any]] = []
        self._seconds: list[float] = []
        self._last: tuple[int, float] | None = None
        self._fingerprint: str | None = None
        self._replayed: dict[int, float] = {}
        self._not_restored = ""
        self._scale: float | None = None
        self._has_ended = False
        self._loss = Check("loss", NOT_TOLD)

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
            self._see_check(event, event["name"])
        elif kind == "warning" and event.get("kind") == checks.RESTARTED:
            self._is_restarted = True
        elif kind == "resumed" and not self._is_restarted and count(event.get("step")) is not None:
            self._see_load(event, event["step"])
        elif kind == "data" and isinstance(event.get("fingerprint"), str):
            self._fingerprint = event["fingerprint"]
        elif kind == "heartbeat" and isinstance(event.get("scheduler_phase"), str) and self._phase is None:
            step = count(event.get("global_step"))
            if step is None or step >= self._expected.step:  # one before the load tells of a fresh model
                self._phase = event["scheduler_phase"], step
        elif kind == "nonfinite" and len(self._steps) < LOSSES:
            self._not_finite = f"{event.get('what')} of step {event.get('step')}"
        elif kind == "phase" and text(event.get("phase")) in WAITING_PHASES:
            self._last = None
        elif kind == "step" and count(event.get("step")) is not None and mono_s is not None:
            self._see_step(event, event["step"], float(mono_s))

    def _see_check(self, event: Mapping[str, Any], name: str) -> None:
        verdict = checks.verdict_of(event.get("verdict")) or NOT_TOLD
        self._verdicts[name] = verdict
        if name == "loss":  # a sidecar before this one gave it
            self._loss = Check(
                name, verdict, why=text(event.get("why")) or "", compared=text(event.get("compared")) or ""
            )

    def _see_load(self, event: Mapping[str, Any], step: int) -> None:
        """A trainer may load a teacher's checkpoint besides; who says `is_planned` knows the plan's."""
        is_planned = event.get("is_planned") is not False
        self._scale = number(event.get("lr_scale")) if is_planned else self._scale
        self._loads.append((step, is_planned))
        report = mapping(event.get("report"))
        self._report = report if is_planned else self._report
        # Its first step is when the helpers look at it, and at the weights.
        used = {_action(done) for name, done in report.items() if kind_of(str(name)) == "optimizer"} - {ABSENT}
        has_loaded = bool((used | {_action(report.get("weights"))}) & {LOAD, PARTIAL})
        self._is_to_be_looked_at = self._is_to_be_looked_at or (is_planned and bool(used) and has_loaded)
        # The plan says what the checkpoint holds; the trainer, what it could do with it.
        done = next(
            (f"{name}: {report[name]}" for name in MAKES_THE_NUMBERS if text(report.get(name)) not in (None, LOAD)), ""
        )
        self._not_restored = done if is_planned and done else self._not_restored

    def _see_step(self, event: Mapping[str, Any], step: int, mono_s: float) -> None:
        if self._began_s is None:
            self._began_s = mono_s
        if len(self._steps) < LOSSES:
            self._steps.append(dict(event))
            if event.get("loss") in ("nan", "inf", "-inf"):  # as a journal writes them
                self._not_finite = f"loss of step {step}"
        if step in self._expected.losses and step >= self._first and real(event.get("loss")) is not None:
            self._replayed.setdefault(step, float(event["loss"]))
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
        self._has_ended = has_ended
        is_late = has_ended or (self._began_s is not None and now_s - self._began_s >= WINDOW_S)
        enough = is_late or len(self._steps) >= LOSSES
        replayed = is_late or (enough and self._has_replayed())
        told = len(self._steps) >= 2 or is_late
        foreseen = len(self._steps) >= RATES or is_late
        if told and not self._has_judged_load:
            self._has_judged_load = True
            yield from map(self._gives, self._judge_load())
        for name, is_due, judge in (
            ("step", told, self._judge_step), ("lr", foreseen, self._judge_rates),
            ("data", told, self._judge_data), ("phase", enough, self._judge_phase),
            ("loss", replayed, self._judge_loss), ("throughput", is_late, self._judge_speed),
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
        untold = ", ".join(name for name, one in parts.items() if one == NOT_TOLD)
        verdict = checks.overall_verdict(parts, is_stepwise=self._loss.compared in (checks.EXACT, checks.STEPWISE))
        compared = comparison(self._loss, parts.get("weights") == PASSED)
        if not self._steps and parts.get("weights") != PASSED:
            seen = "no step was seen after the load" if self._loads else "neither a load nor a step was seen"
            compared = f"nothing compared: {seen}"
        found = f"{compared}; {passed} of {len(parts)} passed" + (f", not told: {untold}" if untold else "")
        return self._gives(Check(WHOLE, verdict, "as planned", found, ", ".join(wrong)))

    def _gives(self, check: Check) -> Check:
        self._verdicts[check.name] = check.verdict
        self._loss = check if check.name == "loss" else self._loss
        return check

    def _was_never_verified(self) -> bool:
        """Whether the trainer's helpers wait still for the first step of the optimizer that they have loaded."""
        is_checked = self._verdicts.keys() & {"weights", "optimizer"}
        return self._is_to_be_looked_at and not is_checked and len(self._steps) >= MIN_STEPS

    def _judge_load(self) -> Iterator[Check]:
        """Yield a failure for each component of which the load has used what the plan leaves out."""
        for name, done in self._report.items():
            planned = self._expected.actions.get(name) or self._expected.actions.get(kind_of(name))
            action = _action(done)
            if planned in _LEFT_OUT and action in KEEPS_LESS and keeps_less(planned, action):
                why = "the trainer loaded otherwise than the plan says"
                own = _OWN_CHECKS.get(name, kind_of(name))
                if own in checks.NAMES:
                    yield Check(own, FAILED, f"{name}: {planned}", f"{name}: {action}", why)

    def _judge_step(self) -> Check:
        want = self._expected.step
        loads = [step for step, is_planned in self._loads if is_planned]
        if not self._loads and self._steps and self._expected.loads_with_kit:
            why = "the trainer has not loaded a checkpoint with load_resume_bundle, or its journal does not say so"
            return Check("step", FAILED, f"steps after {want}", self._steps[0]["step"], why)
        if self._loads and not loads and self._expected.loads_with_kit:
            why = "another checkpoint than the planned one was loaded"
            return Check("step", FAILED, want, self._loads[-1][0], why)
        if loads and loads[-1] != want:
            return Check("step", FAILED, want, loads[-1], "the trainer loaded another step")
        if not self._steps:
            return Check("step", PASSED if loads else NOT_TOLD, want, loads[-1] if loads else None, "no step was seen")
        first = self._steps[0]["step"]
        if first <= want:
            return self._judge_count(first, want, has_loaded=bool(loads))
        gap = self._gap(first)
        if first <= want + gap:
            return Check("step", PASSED, want + 1, first)
        if self._expected.is_counted is False:
            return Check("step", NOT_TOLD, want + 1, first, _OTHER_COUNT)
        # A trainer that tells its steps itself tells all of them. Of a log some lines may have gone unread, not many.
        is_far = self._expected.is_counted and first > want + LOSSES * max(gap, self._expected.widest)
        verdict = FAILED if is_far or self._steps[0].get("source") != "log" else WARNED
        return Check("step", verdict, want + 1, first, "the trainer counts from another step")

    def _gap(self, first: int) -> float:
        """Return how far apart the steps are told: who tells every tenth one tells its first up to ten later."""
        one = self._steps[0]
        # What a line without a step, or a second row of a metrics file, says is told of the same step again.
        next_one = next((later for later in self._steps if later["step"] != first), None)
        if next_one is None:
            return max(1, first)
        gap: int = max(1, next_one["step"] - first)
        if "step_total" not in one:
            return gap
        # Of a progress bar only what is drawn at a look is read: what comes and goes within UNREAD_S is not.
        per_step: float = (next_one["mono_s"] - one["mono_s"]) / gap
        return max(gap, self._expected.widest, UNREAD_S / per_step if per_step > 0 else math.inf)

    def _judge_count(self, first: int, want: int, *, has_loaded: bool) -> Check:
        """Judge a first step that is none after the checkpoint's, by how the trainer counted in the runs before."""
        expected = self._expected
        if first == want and expected.counts_from_0:
            return Check("step", PASSED, want, first, "the trainer counts from 0, as in the root run")
        if expected.is_counted is False:
            return Check("step", NOT_TOLD, f"steps after {want}", first, _OTHER_COUNT)
        if first == want and not (has_loaded and expected.counts_from_0 is False):
            return Check("step", WARNED, want + 1, first, "the trainer counts from 0, or does its last step again")
        # One line of a log may speak of an older step, and a trainer that crashes at once tells no other.
        told = [one["step"] for one in self._steps[:2]]
        is_told = all(step <= want for step in told) and not (len(told) < 2 and self._has_ended)
        is_sure = has_loaded or (is_told and (expected.is_counted or expected.loads_with_kit))
        why = "the trainer counts from another step"
        return Check("step", FAILED if is_sure else WARNED, f"steps after {want}", first, why)

    def _judge_rates(self, *, is_verified: bool = False) -> Check:
        want, found = self._expected.scale, self._scale
        if want is not None and found is not None and not math.isclose(want, found, rel_tol=1e-9):
            return Check("lr", FAILED, f"lr_scale {want:g}", f"{found:g}", "the trainer loaded without this plan")
        return judge_rates(self._steps, self._expected, is_verified=is_verified)

    def _judge_data(self) -> Check:
        want, found = self._expected.fingerprint, self._fingerprint
        if want is None or found is None:
            return Check("data", NOT_TOLD, want, found, "no fingerprint of the data to compare")
        if want == found:
            return Check("data", PASSED, want, found)
        verdict = WARNED if self._expected.data_differs else FAILED
        return Check("data", verdict, want, found, "the data is not what the checkpoint was trained on")

    def _judge_phase(self) -> Check:
        want = self._expected.phase
        told, at = self._phase or (None, None)
        if want is None:
            return Check("phase", NOT_TOLD, found=told, why="the trainer's own schedule decides")
        if told is not None and told != want and at is not None and at > self._expected.step:
            return Check("phase", NOT_TOLD, want, told, f"told at step {at} only")
        if told is not None:
            return Check("phase", PASSED if told == want else FAILED, want, told)
        rates = [event["lr"] for event in self._steps if real(event.get("lr")) is not None]
        if len(rates) < 2:
            return Check("phase", NOT_TOLD, want, None, "the trainer tells neither phase nor rate")
        found = "rising" if rates[1] > rates[0] else "falling" if rates[1] < rates[0] else "level"
        # Of a log's few digits a slow curve looks level.
        fits = {"warmup": ("rising", "level"), "constant": ("level",), "floor": ("level",)}
        return Check("phase", PASSED if found in fits.get(want, ("falling", "level")) else WARNED, want, found)

    def _judge_loss(self) -> Check:
        if self._not_finite is not None:
            return Check("loss", FAILED, "a number", "none", f"the {self._not_finite} is not finite")
        theirs = self._expected.losses
        mine = [float(event["loss"]) for event in self._steps if real(event.get("loss")) is not None]
        before = [loss for step, loss in theirs.items() if step < self._first]
        both = [(step, theirs[step], self._replayed[step]) for step in sorted(self._replayed)[:LOSSES]]
        incomparable = self._expected.incomparable or self._not_in_common(has_losses=bool(mine))
        window = judge_window(before, mine, self._loss_band, incomparable or "the checkpoint does not hold all of it")
        if incomparable:
            return window
        unrestored = self._expected.unrestored or self._not_restored
        is_logged = any(event.get("source") == "log" for event in self._steps)
        replay = judge_replay(both, is_logged=is_logged, is_exact=self._expected.is_exact)
        if not unrestored:
            return replay
        has_band = self._loss_band is not None and window.verdict != NOT_TOLD
        return judge_inexact(replay, window, unrestored, has_band=has_band)

    @property
    def _first(self) -> int:
        """The first step after the checkpoint, as the trainer counts."""
        return self._expected.step + (0 if self._expected.counts_from_0 else 1)

    def _has_replayed(self) -> bool:
        """Whether every step that the parent told too has been told by now, or enough of them."""
        last = max(self._expected.losses, default=0)
        return len(self._replayed) >= LOSSES or self._last is None or self._last[0] >= last

    def _not_in_common(self, *, has_losses: bool) -> str:
        """Return why there is no step of which both runs have told the loss; '' where there is one."""
        if self._replayed:
            return ""
        if not has_losses:
            return "the trainer tells no loss"
        at = self._first - 1
        if not any(step > at for step in self._expected.losses):
            return f"the parent told no loss of a step after {at}"
        return "there is no step of which both told the loss"

    def _judge_speed(self) -> Check:
        mine, theirs = self._seconds[SLOW_STEPS:], self._expected.seconds
        if self._expected.speed_differs:
            return Check("throughput", NOT_TOLD, why=f"not comparable: {self._expected.speed_differs}")
        if len(mine) < MIN_STEPS or len(theirs) < MIN_STEPS:
            return Check("throughput", NOT_TOLD, why="too few steps to compare")
        want, found = median(theirs), median(mine)
        shortest = LOGGED_S if any(event.get("source") == "log" for event in self._steps) else 0.0
        if not min(want, found) > shortest or min(sum(theirs), sum(mine)) < TIMED_S:
            return Check("throughput", NOT_TOLD, why="steps too short, or too short a time, to be compared")
        # Sustained: in each third of the time, not in a stumble of one.
        third = len(mine) // 3
        parts = [median(mine[index * third : (index + 1) * third]) for index in range(3)]
        is_outside = all(abs(want / part - 1) > self._band if part else True for part in parts)
        expected = f"{1 / want:.4g} steps/s, within {self._band:.0%}"
        return Check("throughput", WARNED if is_outside else PASSED, expected, f"{1 / found:.4g} steps/s")


def _action(done: Any) -> str:
    """Return the action of a report's line: 'partial' of 'partial: 61 of 63 parameters'."""
    return done.partition(":")[0] if isinstance(done, str) else ABSENT
