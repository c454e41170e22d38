"""Made-up runs as journal events with times: healthy ones in all their ugliness, and sick ones with a known fault.

Written before any threshold of the abort rules and not changed for them: a rule is tuned on other seeds
than those of `campaign_traces.py`. A trace is made event by event, so that 20,000 steps cost no memory.
Try it: `python -m reliability.campaign_traces --healthy 20 --sick 20 --seed 7`
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

Event = dict[str, Any]

STEPS = 20_000
# The longest evaluation and save of a trainer that names no phases.
UNTOLD_EVAL_S, UNTOLD_SAVE_S = 1000.0, 60.0
# Causes by the name that the rule for it gives, each with the ways in which it comes.
FAULTS = {
    "nonfinite": ("loss nan", "loss inf", "event", "weights"),
    "throughput": ("slow",),
    "oom": ("oom events",),
    "eval": ("eval crashed", "eval hangs"),
    "hang": ("beats go on", "nothing comes", "save hangs", "never a step"),
    "died": ("lost",),
    "crash_loop": ("no step",),
    "diverged": ("drifts off",),
}
# What `at` says is never compared with anything: it is only there, and jumps.
_AT = "2026-11-{:02d}T{:02d}:{:02d}:{:02d}.000000Z"


class Life(NamedTuple):
    """One process of a trace's lineage.

    Args:
        events: its journal, in order; `mono_s` of each is when it was written.
        begins_s: its clock when it was launched.
        lasts_until: a list that gets, when `events` is used up, the clock until which a watcher goes on looking.
        is_dead_at: a list that gets the clock of a death that was not written down, if there is one.
    """

    events: Iterator[Event]
    begins_s: float
    lasts_until: list[float]
    is_dead_at: list[float]


class Trace(NamedTuple):
    """A lineage of one or more lives.

    Args:
        lives: in order; the last may be the sick one.
        cause: what a rule should find, or None in a healthy one.
        kind: which of the cause's ways.
        habit: how the trainer tells what it does: 'each', 'tenth', 'log', 'beats'.
        divergence: `abort.divergence` for this trace; None as by default.
        fault_s: a list that gets the clock at which the fault began.
        patience_s: how long after that it must have been found.
    """

    lives: tuple[Life, ...]
    cause: str | None
    kind: str
    habit: str
    divergence: float | None
    fault_s: list[float]
    patience_s: float


class Habits(NamedTuple):
    """How one trainer behaves, drawn once for a trace."""

    habit: str
    every: int  # steps from one telling to the next
    step_s: float
    jitter: float
    stalls: float  # share of steps that take much longer
    eval_every: int
    eval_s: float
    save_every: int
    save_s: float
    startup_s: float
    loss: float
    noise: float
    spikes: float
    digits: int
    skips: float  # share of steps whose loss is NaN, and which the trainer skips itself


def healthy(seed: int, steps: int = STEPS) -> Trace:
    """Return a trace of a run that needs no help, in one to three lives."""
    dice = random.Random(f"healthy {seed}")
    habits = _habits(dice)
    cuts = sorted(dice.randrange(1, steps) for _ in range(dice.choice((0, 0, 0, 1, 1, 2))))
    bounds = [0, *cuts, steps]
    lives = tuple(
        _Maker(dice.random(), habits, first, last).life() for first, last in itertools.pairwise(bounds) if first < last
    )
    return Trace(lives, None, "", habits.habit, None, [], 0.0)


def sick(seed: int, cause: str | None = None, steps: int = STEPS) -> Trace:
    """Return a trace with one fault at a random place; the cause is drawn where none is named."""
    dice = random.Random(f"sick {seed} {cause}")
    cause = cause or dice.choice(sorted(FAULTS))
    kind = dice.choice(FAULTS[cause])
    habits = _habits(dice)
    if kind in ("event", "weights", "oom events", "eval crashed", "eval hangs", "save hangs", "never a step"):
        habits = habits._replace(habit=dice.choice(("each", "tenth")))  # what only a trainer with the helpers tells
        habits = habits._replace(every=1 if habits.habit == "each" else 10)
    if kind == "drifts off":
        habit = dice.choice(("each", "tenth", "log"))  # one loss a minute is too few to speak of a drift
        habits = habits._replace(spikes=0.0, habit=habit, every={"each": 1, "tenth": 10}.get(habit, 5))
    if habits.habit in ("log", "beats"):  # it may have been drawn as one that names its phases
        habits = habits._replace(eval_s=min(habits.eval_s, UNTOLD_EVAL_S), save_s=min(habits.save_s, UNTOLD_SAVE_S))
        if cause == "throughput":  # of what has no event there is so little that half the speed is half of it
            habits = habits._replace(
                eval_s=min(habits.eval_s, 0.2 * habits.eval_every * habits.step_s),
                save_s=min(habits.save_s, 0.1 * habits.save_every * habits.step_s),
            )
    # A run has been well for an hour at least, and far enough from its end.
    well = int(3600 / habits.step_s) + 50 * habits.every
    soon = 2 + int(300 / habits.step_s)
    total = max(steps, 4 * well)
    at = dice.randrange(well + soon, total // 2)
    fault_s: list[float] = []
    telling_s = habits.every * habits.step_s if habits.habit != "beats" else max(60.0, habits.step_s)
    patience_s = max(2 * 3600.0, 12 * telling_s)
    if cause in ("throughput", "diverged"):
        patience_s = max(3600.0, 60 * telling_s) if cause == "throughput" else math.inf

    def life(first: int, last: int, *fault: Any) -> Life:
        return _Maker(dice.random(), habits, first, last, *fault).life()

    if kind == "no step":
        lives = (life(0, at), *(_stillborn(dice, habits, fault_s) for _ in range(3)))
    elif kind == "never a step":
        lives = (life(0, at), life(at, at + 1, kind, at, fault_s))
    elif dice.random() < 0.3:  # the fault comes soon after a restart: what was normal only the parent knows
        begun = at - dice.randrange(1, soon)
        lives = (life(0, begun), life(begun, total, kind, at, fault_s))
    else:
        lives = (life(0, total, kind, at, fault_s),)
    return Trace(lives, cause, kind, habits.habit, 3.0 if cause == "diverged" else None, fault_s, patience_s)


def _habits(dice: random.Random) -> Habits:
    habit = dice.choice(("each", "each", "tenth", "log", "log", "beats"))
    every = {"each": 1, "tenth": 10, "beats": 1}.get(habit) or dice.choice((1, 10, 20, 50))
    step_s = math.exp(dice.uniform(math.log(0.05), math.log(8.0 if every < 20 else 2.0)))
    skips = dice.choice((0.0, 0.0, 1e-3))
    if skips and every < 20:
        step_s = math.exp(dice.uniform(math.log(0.1), math.log(60.0)))
    # Who names no phases has evaluations that cannot be told from a standstill: they must be shorter.
    eval_s, save_s = (UNTOLD_EVAL_S, UNTOLD_SAVE_S) if habit in ("log", "beats") else (3000.0, 600.0)
    return Habits(
        habit, every, step_s, dice.uniform(0.02, 0.4), dice.choice((0.0, 1e-4, 1e-3)),
        dice.choice((200, 1000, 5000)), math.exp(dice.uniform(math.log(5.0), math.log(eval_s))),
        dice.choice((100, 500, 2000)), math.exp(dice.uniform(math.log(0.1), math.log(save_s))),
        math.exp(dice.uniform(math.log(1.0), math.log(1000.0))), dice.uniform(0.5, 12.0), dice.uniform(0.01, 0.3),
        dice.choice((0.0, 2e-4, 1e-3)), dice.choice((3, 4, 17)), skips,
    )  # fmt: skip


def _stillborn(dice: random.Random, habits: Habits, fault_s: list[float]) -> Life:
    """Return a life that ends before its first step."""
    begins_s = dice.uniform(10.0, 1e6)
    ends_s = begins_s + dice.uniform(1.0, 60.0)

    def events() -> Iterator[Event]:
        yield {"event": "launched", "at": _AT.format(1, 0, 0, 0), "mono_s": begins_s, "run_id": "r"}
        fault_s[:] = [ends_s]

    return Life(events(), begins_s, [ends_s + 3600.0], [ends_s])


class _Maker:
    """Makes the events of one life; `fault` strikes at step `strikes`."""

    def __init__(
        self, seed: float, habits: Habits, first: int, last: int, fault: str = "", strikes: int = -1,
        fault_s: list[float] | None = None,
    ) -> None:  # fmt: skip
        self.dice, self.habits, self.first, self.last = random.Random(seed), habits, first, last
        self.fault, self.strikes, self.fault_s = fault, strikes, [] if fault_s is None else fault_s
        self.now_s = self.begins_s = self.dice.uniform(10.0, 1e6)
        self.wall_s, self.minute, self.at = self.dice.uniform(0, 86400.0), -1, ""
        self.beat_s, self.ends, self.dead = self.now_s, [math.inf], []
        self.has_phases = habits.habit in ("each", "tenth")
        self.beats = habits.habit in ("each", "tenth", "beats")
        self.phase_now = ""

    def life(self) -> Life:
        return Life(self.events(), self.begins_s, self.ends, self.dead)

    def event(self, kind: str, /, **fields: Any) -> Event:
        minute = int((self.now_s + self.wall_s) // 60)
        if minute != self.minute:
            self.minute = minute
            self.at = _AT.format(minute // 1440 % 28 + 1, minute // 60 % 24, minute % 60, 0)
        return {"event": kind, "at": self.at, "mono_s": self.now_s, "run_id": "r", **fields}

    def phase(self, name: str) -> Iterator[Event]:
        if self.has_phases and name != self.phase_now:
            self.phase_now = name
            yield self.event("phase", phase=name)

    def spend(self, seconds: float, step: int, loss: float | str | None = None) -> Iterator[Event]:
        """Let time go by, with a heartbeat every minute."""
        until = self.now_s + seconds
        while self.beats and self.beat_s + 60.0 <= until:
            self.beat_s = max(self.beat_s + 60.0, self.now_s)
            self.now_s = self.beat_s
            yield self.event("heartbeat", global_step=step, loss=loss)
        self.now_s = until

    def events(self) -> Iterator[Event]:
        dice, habits = self.dice, self.habits
        yield self.event("launched")
        yield from self.phase("startup")
        yield from self.spend(habits.startup_s * dice.uniform(0.5, 1.5), self.first)
        if self.fault == "never a step":
            self.fault_s[:] = [self.now_s]
            yield from self.phase("startup")
            yield from self.stand_still(self.first, beats=dice.random() < 0.5)
            return
        if dice.random() < 0.3:
            yield from self.phase("compile")
            yield from self.spend(dice.uniform(5.0, 1200.0), self.first)
        steps = self.steps()
        slow_from, slow_until, slow_by = self.slow_stretch(self.now_s)
        sleep_at = dice.choice((0, 0, 1, 2)) and dice.randint(self.first, max(self.first, self.last - 1))
        spike, spike_left, drift = 1.0, 0, 1.0
        random_, gauss, every, habit = dice.random, dice.gauss, habits.every, habits.habit
        loss = habits.loss
        said: float | str = loss
        skipped = 0
        for step in steps:
            yield from self.phase("train")
            seconds = habits.step_s * math.exp(habits.jitter * gauss(0.0, 1.0))
            if random_() < habits.stalls:
                seconds *= min(dice.paretovariate(1.1) * 5.0, 240.0 / habits.step_s + 1.0)
            if slow_from <= self.now_s < slow_until:
                # It ends in the middle of a step if need be: a slow stretch is shorter than ten minutes.
                seconds = min(seconds * slow_by, slow_until - self.now_s + seconds)
            elif self.now_s >= slow_until:
                slow_from, slow_until, slow_by = self.slow_stretch(self.now_s)
            is_struck = self.fault and step >= self.strikes
            if is_struck and self.fault == "slow":
                if not self.fault_s:
                    self.fault_s[:] = [self.now_s]
                    slow_by = dice.uniform(2.4, 15.0)
                seconds = habits.step_s * math.exp(habits.jitter * gauss(0.0, 1.0)) * slow_by
                slow_from, slow_until = math.inf, math.inf
            if self.beats and self.now_s + seconds >= self.beat_s + 60.0:
                yield from self.spend(seconds, step - 1, said)
            else:
                self.now_s += seconds
            if step == sleep_at:
                yield from self.sleep()
            if spike_left:
                spike_left -= 1
            elif random_() < habits.spikes:
                spike_left, spike = dice.randrange(1, 200), dice.lognormvariate(2.0, 1.5)
            tail = gauss(0.0, 1.0) / max(0.15, random_())  # heavier than any bell
            loss = habits.loss / (1.0 + step / 4000.0) * math.exp(habits.noise * 0.3 * tail)
            if spike_left:
                loss *= 1.0 + spike * spike_left / 200.0
            if is_struck and self.fault == "drifts off":
                self.fault_s[:] = self.fault_s or [self.now_s]
                drift *= 1.01
                loss *= min(drift, 50.0)
            if is_struck and (made := self.strike(step)) is not None:
                yield from made
                return
            said = loss if habits.digits > 9 else round(loss, habits.digits)
            if habits.skips and step > skipped + 50 * habits.every + 600 / habits.step_s and random_() < habits.skips:
                said, skipped = "nan", step  # never in two tellings in a row
            if is_struck and self.fault in ("loss nan", "loss inf"):
                said = self.fault.removeprefix("loss ")
                self.fault_s[:] = self.fault_s or [self.now_s]
            if habit == "log" and step % every == 0:
                yield self.event("step", step=step, loss=said, source="log")
            elif habit != "beats" and step % every == 0:
                speed = 1 / seconds
                yield self.event("step", step=step, epoch=step // 500, loss=said, lr=3e-4, steps_per_sec=speed)
            if step % habits.eval_every == 0:
                yield from self.evaluate(step)
            if step % habits.save_every == 0:
                yield from self.save(step)
        self.ends[0] = self.now_s

    def steps(self) -> Iterator[int]:
        return iter(range(self.first + 1, self.last + 1))

    def slow_stretch(self, now_s: float) -> tuple[float, float, float]:
        """Return (begin, end, how much slower): at least as long a time of health lies between two."""
        begin = now_s + self.dice.uniform(700.0, 20_000.0)
        return begin, begin + self.dice.uniform(30.0, 9.5 * 60), self.dice.uniform(1.5, 20.0)

    def sleep(self) -> Iterator[Event]:
        """The lid is closed. The clock of some machines stands still meanwhile, that of others goes on."""
        gap_s = self.dice.uniform(120.0, 43_200.0)
        if self.dice.random() < 0.5:
            self.now_s += gap_s
            self.beat_s = self.now_s
            self.now_s += 0.2
            yield self.event("warning", kind="clock_gap", message=f"nothing ran for {gap_s:.0f} s", seconds=gap_s)
            # What wakes up is slow at first: disks, network, a device that is set up anew.
            self.now_s += self.dice.uniform(0.0, 300.0)
        else:
            self.wall_s += gap_s
        if self.dice.random() < 0.3:
            self.wall_s = max(0.0, self.wall_s + self.dice.choice((-7200.0, 7200.0)))  # the clock is set

    def evaluate(self, step: int) -> Iterator[Event]:
        kind = "full" if step % (5 * self.habits.eval_every) == 0 else "fast"
        yield from self.phase(f"{kind}_eval")
        scale = self.dice.uniform(0.3, 1.1) if kind == "full" else self.dice.uniform(0.02, 0.2)
        yield from self.spend(self.habits.eval_s * scale, step)
        if self.has_phases:
            yield self.event("eval", step=step, kind=kind, weights="ema", accuracy=0.3)

    def save(self, step: int) -> Iterator[Event]:
        yield from self.phase("checkpoint")
        slow = 1.0 if self.dice.random() < 0.98 else self.dice.uniform(1.0, 2.0)
        yield from self.spend(self.habits.save_s * slow, step)
        fields: Event = {"finite": True} if self.has_phases else {"writer": "sidecar"}
        yield self.event("checkpoint", step=step, path="p", sha256="0" * 64, size=10**8, **fields)

    def strike(self, step: int) -> Iterator[Event] | None:
        """Return the last events of this life where the fault ends it; None where it goes on (or is no such fault)."""
        kind = self.fault
        endings = {
            "beats go on": lambda: self.stand_still(step - 1, beats=True),
            "nothing comes": lambda: self.stand_still(step - 1, beats=False),
            "eval hangs": lambda: self.hang_in(f"{self.dice.choice(('fast', 'full'))}_eval", step),
            "save hangs": lambda: self.hang_in("checkpoint", step),
            "eval crashed": lambda: self.crash_eval(step),
            "event": lambda: self.say("nonfinite", step=step, what=self.dice.choice(("loss", "gradient"))),
            "weights": lambda: self.say("checkpoint", step=step, path="p", sha256="0" * 64, size=10**8, finite=False),
            "oom events": lambda: self.run_out_of_memory(step),
            "lost": self.die,
        }  # fmt: skip
        if kind not in endings:
            return None
        self.fault_s[:] = [self.now_s]
        return endings[kind]()

    def stand_still(self, step: int, *, beats: bool) -> Iterator[Event]:
        self.beats = self.beats and beats
        yield from self.spend(4 * 3600.0, step)
        self.ends[0] = self.now_s

    def hang_in(self, phase: str, step: int) -> Iterator[Event]:
        yield from self.phase(phase)
        yield from self.stand_still(step, beats=self.dice.random() < 0.5)

    def crash_eval(self, step: int) -> Iterator[Event]:
        yield from self.phase("fast_eval")
        yield from self.say("eval_crashed", step=step, kind="fast", message="CUDA error")

    def say(self, kind: str, /, **fields: Any) -> Iterator[Event]:
        yield self.event(kind, **fields)
        self.ends[0] = self.now_s + 600.0

    def run_out_of_memory(self, step: int) -> Iterator[Event]:
        for _ in range(5):
            yield self.event("oom", step=step, message="CUDA out of memory")
            yield from self.spend(self.dice.uniform(1.0, 240.0), step)
        self.ends[0] = self.now_s + 120.0

    def die(self) -> Iterator[Event]:
        self.dead[:] = [self.now_s]
        self.ends[0] = self.now_s + 600.0
        return iter(())
