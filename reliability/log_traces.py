"""Made-up trainers that are known by what they print alone, and what happens to their output and to its observer.

Progress bars without a newline, evaluations with bars or steps of their own, steps that begin again in each epoch,
numbers in odd forms, two ranks behind a wrapper, a log without any step beside checkpoints that appear, a pipe that
holds blocks back; an observer that is suspended, a log that is cut. Written before the rules that have to cope with it,
and not changed for them. The kit's own code reads what is printed.
Try it: `python -m reliability.campaign_traces --healthy 20 --sick 20 --seed 7`
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from reliability.traces import STEPS, Event, Life, Trace
from resumekit.process.sidecar_state import StepOrder
from resumekit.process.train_log import LineCleaner
from resumekit.run import log_patterns

# How each form tells its steps; no pattern where nothing of what it prints is a step.
FORMS = {
    "bar": {"step": r"\| *([0-9]+)/[0-9]+ \[", "loss": r"loss=([0-9.]+)"},
    "epochs": {"step": r"step ([0-9]+)/", "loss": r"loss ([0-9.]+)"},
    "odd": {"step": r"^\[ *([0-9_,]+)/", "loss": r"'loss': '([0-9.]+)"},
    "ranks": {"step": r"step ([0-9]+)", "loss": r"loss ([0-9.]+)"},
    "files": {},
    "bars": {"step": r"\| *([0-9]+)/[0-9]+ \[", "loss": r"loss=([0-9.]+)"},
    "words": {"step": r"step ([0-9]+)", "loss": r"loss ([0-9.]+)"},
}
# In these the pattern of the training's steps reads those of an evaluation too, between two epochs.
EVALUATED = frozenset({"bars", "words"})
# Causes by the name that the rule for it gives, each with the ways in which it comes.
FAULTS = {
    "hang": ("bar stands", "spins", "silent", "evaluation stands"),
    "nonfinite": ("nan",),
    "throughput": ("slow",),
}
# What the sidecar reads at once.
BEAT_S = 0.25
# How long a wrapper that pipes its trainer's output holds a block back.
BLOCK_S = 600.0
# Nothing is said of text and files more often.
SEEN_S = 20.0
# Longer without a beat, and the sidecar says that nothing ran.
GAP_S = 60.0
SEEN = "@seen"


class Habits(NamedTuple):
    """How one trainer prints, drawn once for a trace."""

    form: str
    every: int  # steps from one line to the next
    newline_every: int  # writes of a bar; 0: none ever
    per_epoch: int
    step_s: float
    jitter: float
    stalls: float
    save_every: int
    save_s: float
    eval_s: float
    startup_s: float
    loss: float
    separator: str
    has_colour: bool
    block_bytes: int  # what a pipe on the way holds back, but for no longer than BLOCK_S; 0: nothing
    eval_speed: float  # of an evaluation that is seen, in its steps per second
    begins_anew: bool  # the training's bar, in each epoch
    shows_loss: bool  # the training's bar


class Write(NamedTuple):
    """What a trainer does to its folder at a moment: prints, has a new checkpoint, has its log cut."""

    at_s: float
    text: bytes = b""
    file_step: int | None = None
    is_cut: bool = False


def healthy(seed: int, steps: int = STEPS) -> Trace:
    """Return a trace of a run that needs no help, in one to three lives."""
    dice = random.Random(f"healthy log {seed}")
    habits = _habits(dice, sorted(FORMS))
    cuts = sorted({dice.randrange(1, steps) for _ in range(dice.choice((0, 0, 1, 2)))})
    bounds = [0, *cuts, steps]
    lives = tuple(_Printer(dice.random(), habits, *pair).life() for pair in itertools.pairwise(bounds))
    return Trace(lives, None, "", f"log {habits.form}", None, [], 0.0)


def sick(seed: int, cause: str, steps: int = STEPS) -> Trace:
    """Return a trace with one fault at a random place, of a cause in FAULTS."""
    dice = random.Random(f"sick log {seed} {cause}")
    kind = dice.choice(FAULTS[cause])
    forms = {"bar stands": ["bar", "bars"], "evaluation stands": sorted(EVALUATED)}
    habits = _habits(dice, forms.get(kind, sorted(set(FORMS) - {"files"})))
    if cause == "throughput" and habits.form in EVALUATED:
        habits = habits._replace(save_s=min(habits.save_s, 0.1 * habits.save_every * habits.step_s), block_bytes=0)
    elif cause == "throughput":  # of what has no event there is so little that half the speed is half of it
        habits = habits._replace(
            eval_s=min(habits.eval_s, 0.2 * habits.per_epoch * habits.step_s),
            save_s=min(habits.save_s, 0.1 * habits.save_every * habits.step_s), block_bytes=0,
        )  # fmt: skip
    telling = habits.every
    if habits.block_bytes:  # a block is a telling
        telling = max(telling, min(habits.every * habits.block_bytes // 40, int(BLOCK_S / habits.step_s)))
    well = int(3600 / habits.step_s) + 50 * telling
    total = max(steps, 4 * well)
    at = dice.randrange(well + 2 + int(300 / habits.step_s), total // 2)
    fault_s: list[float] = []
    telling_s = telling * habits.step_s
    patience_s = max(3600.0, 60 * telling_s) if cause == "throughput" else max(2 * 3600.0, 12 * telling_s)
    if cause == "throughput" and habits.form in EVALUATED:  # its evaluations are no time of training
        patience_s *= 1.0 + 1.1 * habits.eval_s / (habits.per_epoch * habits.step_s)
    life = _Printer(dice.random(), habits, 0, total, kind, at, fault_s).life()
    return Trace((life,), cause, kind, f"log {habits.form}", None, fault_s, patience_s)


def _habits(dice: random.Random, forms: list[str]) -> Habits:
    form = dice.choice(forms)
    every = 1 if form in ("bar", "bars") else dice.choice((1, 10, 50))
    step_s = math.exp(dice.uniform(math.log(0.05), math.log(4.0 if every < 20 else 2.0)))
    # An epoch of a trainer that tells no step may take most of an hour in silence.
    longest = int(2700.0 / step_s) if form == "files" else 5000
    found = Habits(
        form, every, dice.choice((0, 500, 2000)), dice.randrange(min(200, longest - 1), longest), step_s,
        dice.uniform(0.02, 0.4), dice.choice((0.0, 1e-4, 1e-3)), dice.choice((500, 2000)),
        math.exp(dice.uniform(math.log(0.1), math.log(60.0))), math.exp(dice.uniform(math.log(5.0), math.log(700.0))),
        math.exp(dice.uniform(math.log(1.0), math.log(900.0))), dice.uniform(0.5, 12.0), dice.choice(("", ",", "_")),
        dice.random() < 0.3, dice.choice((0, 0, 0, 4096)), math.exp(dice.uniform(math.log(0.05), math.log(40.0))),
        dice.random() < 0.5, dice.random() < 0.5,
    )  # fmt: skip
    if form not in EVALUATED:
        return found
    # From one minute to half an hour, between epochs of a thousand steps at least.
    eval_s = math.exp(dice.uniform(math.log(60.0), math.log(1800.0 / 1.1)))
    return found._replace(eval_s=eval_s, per_epoch=dice.randrange(1000, 5000))


class _Printer:
    """Makes the writes of one life, and has an observer read them; `fault` strikes at step `strikes`."""

    def __init__(
        self, seed: float, habits: Habits, first: int, last: int, fault: str = "", strikes: int = -1,
        fault_s: list[float] | None = None,
    ) -> None:  # fmt: skip
        self.dice, self.habits, self.first, self.last = random.Random(seed), habits, first, last
        self.fault, self.strikes, self.fault_s = fault, strikes, [] if fault_s is None else fault_s
        self.begins_s = self.now_s = self.dice.uniform(10.0, 1e6)
        self.ends: list[float] = [math.inf]

    def life(self) -> Life:
        observer = _Observer(self.habits.form, self.begins_s, self._suspensions(), self.fault_s, self.ends)
        return Life(observer.events(self._blocks()), self.begins_s, self.ends, [])

    def _suspensions(self) -> list[tuple[float, float]]:
        """Return when the observer is suspended; for a hang, often so that it covers the moment of the fault."""
        dice, lasts_s = self.dice, (self.last - self.first) * self.habits.step_s
        found, at_s = [], self.begins_s
        for _ in range(dice.choice((0, 0, 1, 2))):
            at_s += dice.uniform(0.05, 0.6) * lasts_s
            until_s = at_s + math.exp(dice.uniform(math.log(20.0), math.log(20_000.0)))
            found.append((at_s, until_s))
            at_s = until_s
        return [] if self.fault == "slow" else found

    def _blocks(self) -> Iterator[Write]:
        """Return the writes as they come through a pipe, if there is one."""
        held, since_s = b"", 0.0
        for write in self._writes():
            if not self.habits.block_bytes:
                yield write
                continue
            since_s = write.at_s if not held else since_s
            held += write.text
            if len(held) >= self.habits.block_bytes or write.at_s > since_s + BLOCK_S:
                yield Write(write.at_s, held)
                held = b""
            if not write.text:
                yield write
        if held:
            yield Write(write.at_s, held)

    def _writes(self) -> Iterator[Write]:
        dice, habits = self.dice, self.habits
        yield Write(self.now_s, b"loading\nmodel: 27 M parameters\n")
        self.now_s += habits.startup_s * dice.uniform(0.5, 1.5)
        cut_at = {dice.randint(self.first, self.last) for _ in range(dice.choice((0, 0, 1, 2)))}
        slow_by = 1.0
        for step in range(self.first + 1, self.last + 1):
            seconds = habits.step_s * math.exp(habits.jitter * dice.gauss(0.0, 1.0)) * slow_by
            if dice.random() < habits.stalls and slow_by == 1.0:
                seconds *= min(dice.paretovariate(1.1) * 5.0, 240.0 / habits.step_s + 1.0)
            self.now_s += seconds
            if self.fault and step >= self.strikes:
                if not self.fault_s:
                    self.fault_s[:] = [self.now_s]
                if self.fault == "evaluation stands":
                    yield from self._evaluate(self.habits.eval_s * dice.uniform(0.05, 0.9))
                    self.fault_s[:] = [self.now_s]
                if self.fault in ("bar stands", "spins", "silent", "evaluation stands"):
                    yield from self._stand_still(step - 1)
                    return
                slow_by = dice.uniform(3.0, 8.0) if self.fault == "slow" and slow_by == 1.0 else slow_by
            if step % habits.every == 0:
                yield Write(self.now_s, self._line(step, self._loss(step)))
            if step in cut_at:
                yield Write(self.now_s, is_cut=True)
            yield from self._around(step)
        self.ends[0] = self.now_s

    def _around(self, step: int) -> Iterator[Write]:
        """What a trainer does beside its steps: an evaluation without an event, and a save."""
        habits = self.habits
        is_epoch = step % habits.per_epoch == 0
        if is_epoch and habits.form in EVALUATED:
            yield from self._evaluate(habits.eval_s * self.dice.uniform(0.3, 1.1))
            yield Write(self.now_s, b"\nvalidation: 0.71\n")
        elif is_epoch:
            self.now_s += habits.eval_s * self.dice.uniform(0.3, 1.1)
            yield Write(self.now_s, b"\n" if habits.form == "bar" else b"validation: 0.71\n")
        if is_epoch if habits.form in ("files", "epochs") else step % habits.save_every == 0:
            self.now_s += habits.save_s
            number = step // habits.per_epoch if habits.form in ("files", "epochs") else step
            yield Write(self.now_s, file_step=number)

    def _evaluate(self, seconds: float) -> Iterator[Write]:
        """An evaluation with steps of its own: they begin at 1, and nothing says that they are none of the training."""
        speed = self.habits.eval_speed
        total, begins_s = max(2, int(self.habits.eval_s * speed)), self.now_s
        each_s, until_s = max(1.0, 1 / speed), self.now_s + seconds
        while self.now_s + each_s < until_s:
            self.now_s += each_s
            done = min(total, max(1, round((self.now_s - begins_s) * speed)))
            if self.habits.form == "words":
                text = f"evaluation step {done}\n"
            else:
                shown = f"{done}/{total} [{int(self.now_s - begins_s) // 60:02d}:00<10:00, {speed:.2f}it/s]"
                text = f"\r{100 * done // total:3d}%|{int(50 * done / total) * '█':50}| {shown}"
            yield Write(self.now_s, text.encode())
        self.now_s = until_s

    def _stand_still(self, step: int) -> Iterator[Write]:
        """Four hours in which a trainer lives, and does nothing; with words or without."""
        until_s, number = self.now_s + 4 * 3600.0, 0
        while self.now_s < until_s:
            self.now_s += 10.0
            number += 1
            if self.fault == "bar stands":
                yield Write(self.now_s, self._line(step, 0.5))
            elif self.fault == "spins":
                yield Write(self.now_s, b"\r" + b"|/-\\"[number % 4 :][:1] + b" waiting for data, %d\n" % number)
        self.ends[0] = self.now_s
        yield Write(self.now_s)

    def _loss(self, step: int) -> float:
        if self.fault == "nan" and step >= self.strikes:
            return math.nan
        return self.habits.loss / (1.0 + step / 4000.0) * math.exp(0.1 * self.dice.gauss(0.0, 1.0))

    def _line(self, step: int, loss: float) -> bytes:
        habits, total = self.habits, self.last
        if habits.form in ("bar", "bars"):
            ends = "\n" if habits.newline_every and step % habits.newline_every == 0 else ""
            if habits.form == "bars" and habits.begins_anew:
                step, total = (step - 1) % habits.per_epoch + 1, habits.per_epoch
            share = int(50 * step / total) * "█"
            clock = f"{int(self.now_s - self.begins_s) // 60:02d}:{int(self.now_s) % 60:02d}"
            said = f", loss={loss:.3g}" if habits.form == "bar" or habits.shows_loss or self.fault == "nan" else ""
            shown = f"{step}/{total} [{clock}<19:24, 1.67it/s{said}]"
            text = f"\r{100 * step // total:3d}%|{share:50}| {shown}{ends}"
        elif habits.form == "epochs":
            per = habits.per_epoch
            text = f"epoch {step // per} step {step % per}/{per} loss {loss:.4f}\n"
        elif habits.form == "odd":
            shown = f"{step:{habits.separator}}" if habits.separator else str(step)
            text = f"[{shown:>7}/{total}] {{'loss': '{loss * 1e-7:.4e}', 'lr': '8.1e-07'}}\n"
        elif habits.form == "words":
            text = f"step {step} loss {loss:.4f}\n"
        elif habits.form == "ranks":
            text = f"[rank0]: step {step} loss {loss:.4f}\n[rank1]: step {step} loss {loss:.4f}\nwrapper: alive\n"
        else:
            text = f"loss so far {loss:.4f}, on the way\n" if step % (20 * habits.every) == 0 else ""
        return f"\x1b[32m{text}\x1b[0m".encode() if habits.has_colour and habits.form != "bar" else text.encode()


class _Observer:
    """The sidecar's reading, on bytes instead of files: what it journals of a trainer's writes, and when.

    Args:
        form: of FORMS, for its patterns.
        begins_s: its clock.
        suspensions: (from, until) in which it stands still.
        fault_s: the moment of the fault; from one that is over it can be seen.
        ends: until when the rules are asked; that is later, where a fault is still to be seen.
    """

    def __init__(
        self, form: str, begins_s: float, suspensions: list[tuple[float, float]], fault_s: list[float],
        ends: list[float],
    ) -> None:  # fmt: skip
        self.fault_s, self.ends = fault_s, ends
        self.patterns, self.suspensions = log_patterns.compiled(FORMS[form]), suspensions
        self.cleaner, self.order, self.bar = LineCleaner(), StepOrder(0), b""
        self.begins_s, self.last, self.offset, self.hidden = begins_s, -1, 0, 0
        self.seen: Event = {"reads_steps": bool(FORMS[form])}
        self.seen_at_s = -math.inf
        self.looks_until_s = 0.0

    def events(self, writes: Iterator[Write]) -> Iterator[Event]:
        yield self._event("launched", self.begins_s)
        waiting, since_s, suspended = [], self.begins_s, None
        for write in writes:
            if suspended is None and self.suspensions and write.at_s >= self.suspensions[0][0]:
                yield from self._read(waiting, self.suspensions[0][0])
                waiting, suspended = [], self.suspensions.pop(0)
                yield self._seen(suspended[0], caught_up_s=suspended[0])
            if suspended is not None and write.at_s >= suspended[1]:
                yield from self._wake(waiting, suspended)
                waiting, suspended = [], None
            if suspended is None and waiting and write.at_s > since_s + BEAT_S:
                yield from self._read(waiting, since_s + BEAT_S)
                waiting = []
            since_s = write.at_s if not waiting else since_s
            waiting.append(write)
        if suspended is not None and self.fault_s:
            yield from self._wake(waiting, suspended)
        else:
            yield from self._read(waiting, max(since_s, waiting[-1].at_s) if waiting else since_s)
        self.ends[0] = max(self.ends[0], self.looks_until_s)

    def _wake(self, waiting: list[Write], suspended: tuple[float, float]) -> Iterator[Event]:
        gap_s = suspended[1] - suspended[0]
        if self.fault_s:
            self.fault_s[:] = [max(self.fault_s[0], suspended[1])]
            self.looks_until_s = suspended[1] + 4 * 3600.0
        if gap_s > GAP_S:
            yield self._event("warning", suspended[1], kind="clock_gap", message="nothing ran", seconds=gap_s)
        yield from self._read(waiting, suspended[1])
        yield self._seen(suspended[1], caught_up_s=None)

    def _read(self, writes: list[Write], at_s: float) -> Iterator[Event]:
        text, is_saved = b"", False
        for write in writes:
            if write.is_cut:
                yield from self._told(text, at_s)
                # What came before is gone; the reader goes on from the beginning.
                text, self.hidden = b"", 0
            elif write.file_step is not None:
                is_saved = True
                yield self._event("checkpoint", at_s, step=write.file_step, path="p", writer="sidecar", size=1 << 20)
            else:
                text += write.text
        yield from self._told(text, at_s)
        if at_s >= self.seen_at_s + SEEN_S or is_saved:
            yield self._seen(at_s, text_s=at_s if text else None, saved_s=at_s if is_saved else None)

    def _told(self, text: bytes, at_s: float) -> Iterator[Event]:
        shown = text[self.hidden :]
        self.hidden = max(0, self.hidden - len(text))
        self.offset += len(shown)
        if not shown:
            return
        found = log_patterns.found_steps(self.cleaner.feed(shown), self.patterns)
        if (bar := self.cleaner.shown()) != self.bar:
            self.bar = bar
            found += log_patterns.found_steps(bar, self.patterns)
        for fields in self.order.new(found, self.last, self.offset):
            self.last = fields["step"]
            loss = fields.get("loss")
            if loss is not None and not math.isfinite(loss):
                fields = {**fields, "loss": str(loss)}
            yield self._event("step", at_s, **fields, source="log")

    def _seen(self, at_s: float, **fields: Any) -> Event:
        self.seen_at_s = at_s
        known = {key: value for key, value in fields.items() if value is not None or key == "caught_up_s"}
        self.seen = {**self.seen, **known}
        return {"event": SEEN, "mono_s": at_s, **self.seen}

    def _event(self, kind: str, at_s: float, /, **fields: Any) -> Event:
        return {"event": kind, "at": "2026-11-22T17:35:51.123456Z", "mono_s": at_s, "run_id": "r", **fields}
