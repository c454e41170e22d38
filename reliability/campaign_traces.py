"""The abort rules on many made-up runs: how often they would stop a healthy one, how often they miss a sick one.

A watcher comes by every minute of the trace's time and looks as the real one does. Prints what was found, and ends with
1 if a healthy run was called sick or a sick one was missed.
Try it: `python -m reliability.campaign_traces --healthy 1000 --sick 200 --seed 4`
"""

from __future__ import annotations

import argparse
import collections
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from reliability import log_traces, traces
from resumekit.run import throughput
from resumekit.run.journal_fold import CLOCK_GAP, fold
from resumekit.run.state_types import WAITING_PHASES
from resumekit.watch import rules
from resumekit.watch.rules import Finding, Limits, Observation

PASS_S = 60.0
# One trace in five is of a trainer that is known by its output alone.
LOGS = 5
# An observer that has not read so long is behind.
BEHIND_S = 30.0
# Once nothing more happens it does not matter how often the rules are asked.
MAX_PASSES = 100_000


class Verdict(NamedTuple):
    """What came of a trace: the first sick finding, when, the number of the life, and when there was no training.

    `idle` are pairs (clock, seconds so far in which the machine slept, seconds so far of evaluations and saves that the
    trainer told of), one for each pass of the last life.
    """

    finding: Finding | None
    at_s: float
    life: int
    idle: list[tuple[float, float, float]]


class Idle:
    """Adds up when a life did not train: the rules count neither, and it is not the rules that are late."""

    def __init__(self) -> None:
        self.slept_s = self.waited_s = 0.0
        self.since_s: float | None = None
        self.told: list[tuple[float, float, float]] = []

    def take(self, event: dict) -> None:
        if event.get("kind") == CLOCK_GAP:
            self.slept_s += event["seconds"]
            self.look(event["mono_s"])  # a fault may begin at this moment: the sleep was before it
        elif event["event"] == "phase":
            if self.since_s is not None:
                self.waited_s += event["mono_s"] - self.since_s
            self.since_s = event["mono_s"] if event["phase"] in WAITING_PHASES else None

    def look(self, now_s: float) -> None:
        waits_s = 0.0 if self.since_s is None else max(0.0, now_s - self.since_s)
        self.told.append((now_s, self.slept_s, self.waited_s + waits_s))


def watched(trace: traces.Trace) -> Verdict:
    """Let a watcher look at a trace once a minute; return its first sick finding, or that there was none."""
    limits = Limits(divergence=trace.divergence)
    lineage_speed: float | None = None
    lineage_whole: float | None = None
    has_stepped = False
    fruitless = 0
    idle = Idle()
    state: dict = {}
    for number, life in enumerate(trace.lives):
        # A resumed run's record says where it began.
        begun = {"resumed_step": state["step"]} if "step" in state else {}
        idle = Idle()
        for state, now_s, seen in _looks(life, begun, idle):
            idle.look(now_s)
            is_dead = bool(life.is_dead_at) and now_s >= life.is_dead_at[0]
            name = "lost" if is_dead else "running" if "step" in state else "starting"
            dead = fruitless + ("step" not in state)
            fields = {
                "lineage_speed": lineage_speed, "lineage_whole": lineage_whole, "parent_stepped": has_stepped,
                "fruitless": dead if is_dead else 0, **_observed(seen, now_s),
            }  # fmt: skip
            sight = Observation(now_s, name, **{key: fields[key] for key in fields if key in Observation._fields})
            found = [one for one in rules.findings(state, limits, sight) if one.verdict == rules.SICK]
            is_on_the_way = trace.kind == "no step" and number < len(trace.lives) - 1  # restarted each time
            if found and not is_on_the_way:
                return Verdict(found[0], now_s, number, idle.told)
        fruitless = fruitless + 1 if "step" not in state else 0
        has_stepped = has_stepped or "has_stepped" in state
        if (own := throughput.baseline(state.get("pace"))) is not None:
            lineage_speed = max(own, lineage_speed or 0.0)
            lineage_whole = max(throughput.whole_speed(state["pace"]) or 0.0, lineage_whole or 0.0)
    return Verdict(None, 0.0, len(trace.lives) - 1, idle.told)


def _observed(seen: dict, now_s: float) -> dict:
    """Return what a watcher knows of the observer, as fields of a Sight."""
    since_s = seen.get("caught_up_s")
    is_behind = since_s is not None and now_s - since_s > BEHIND_S
    saved_s = [seen.get("saved_s"), None if seen.get("reads_steps", True) else seen.get("text_s")]
    return {
        "behind": "the sidecar is suspended" if is_behind else "",
        "progress_s": max((one for one in saved_s if one is not None), default=None),
    }


def _looks(life: traces.Life, state: dict, idle: Idle) -> Iterator[tuple[dict, float, dict]]:
    """Yield (state, clock, what the observer has seen) at every pass of the watcher, while the trace wants it to."""
    due_s, waiting, seen = life.begins_s + PASS_S, [], {}
    for event in life.events:
        count = 0
        if event.get("kind") == CLOCK_GAP:  # the observer was asleep too, and looks the moment it wakes up
            due_s = max(due_s, event["mono_s"] - 0.1)
        while event["mono_s"] > due_s:
            if waiting:
                state, waiting = fold(state, waiting), []
            # Woken up together with the run, the watcher's second look two seconds later is the one that counts.
            if event.get("kind") != CLOCK_GAP or event["mono_s"] > due_s + 2.0:
                yield state, due_s, seen
            due_s += PASS_S
            count += 1
            if count > MAX_PASSES:
                raise AssertionError("a gap of more than two months")
        idle.take(event)
        if event["event"] == log_traces.SEEN:
            seen = event
        else:
            waiting.append(event)
    state = fold(state, waiting)
    while due_s < life.lasts_until[0]:
        yield state, due_s, seen
        due_s += PASS_S


def judge_healthy(steps: int, seed: int) -> str:
    """Return '' where nothing was found, else what was."""
    trace = (log_traces if seed % LOGS == 1 else traces).healthy(seed, steps)
    verdict = watched(trace)
    return f"{trace.habit}: {verdict.finding}, life {verdict.life}" if verdict.finding else ""


class Judged(NamedTuple):
    """What came of a sick trace.

    Args:
        name: cause, kind and habit.
        said: '' if it was found in time and by its name, else what came instead.
        share: of its patience that was needed; infinite where it was not found by its name.
    """

    name: str
    said: str
    share: float = math.inf


def judge_sick(steps: int, item: tuple[int, str | None]) -> Judged:
    """Let a watcher look at a sick trace, and judge what it found."""
    seed, cause = item
    if seed % LOGS == 1:
        causes = sorted(log_traces.FAULTS)
        trace = log_traces.sick(seed, causes[seed // LOGS % len(causes)], steps)
    else:
        trace = traces.sick(seed, cause, steps)
    verdict = watched(trace)
    name = f"{trace.cause}: {trace.kind} ({trace.habit})"
    if verdict.finding is None:
        return Judged(name, "missed")
    if not trace.fault_s or verdict.life < len(trace.lives) - 1:
        return Judged(name, f"called sick before its fault: {verdict.finding}")
    if verdict.finding.cause != trace.cause:
        return Judged(name, f"called {verdict.finding}")
    late_s = _awake_s(verdict, trace.fault_s[0], is_training=trace.cause == "throughput")
    said = f"late, after {late_s:.0f} s" if late_s > trace.patience_s else ""
    return Judged(name, said, late_s / trace.patience_s)


def _awake_s(verdict: Verdict, fault_s: float, *, is_training: bool) -> float:
    """Return how long after the fault it was found, sleep left out; for a slowness in seconds of training."""
    before = next((one for one in reversed(verdict.idle) if one[0] <= fault_s), (0.0, 0.0, 0.0))
    _, slept_s, waited_s = verdict.idle[-1]
    waited_s = waited_s - before[2] if is_training else 0.0
    return verdict.at_s - fault_s - (slept_s - before[1]) - waited_s


def interval(wrong: int, tried: int) -> str:
    """Return the 95 % interval of a rate by Clopper and Pearson: exact, and wide where little is known."""

    def bound(is_upper: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            rate = (low + high) / 2
            fewer = _at_most(wrong if is_upper else wrong - 1, tried, rate)
            is_beyond = fewer < 0.025 if is_upper else fewer < 0.975
            low, high = (low, rate) if is_beyond else (rate, high)
        return low

    lower, upper = (0.0 if wrong == 0 else bound(False)), (1.0 if wrong == tried else bound(True))
    return f"{wrong / tried:.3%} (95 %: {lower:.3%} to {upper:.3%})"


def _at_most(count: int, tried: int, rate: float) -> float:
    """Return the probability of at most `count` among `tried`."""
    term = total = math.exp(tried * math.log1p(-rate)) if rate < 1.0 else 0.0
    for number in range(count):
        term *= (tried - number) / (number + 1) * rate / (1.0 - rate)
        total += term
    return total if count >= 0 else 0.0


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=1000, help="healthy traces (default: %(default)s)")
    parser.add_argument("--sick", type=int, default=200, help="sick traces (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=traces.STEPS, help="steps of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    first, started = options.seed * 1_000_000, time.monotonic()
    with ProcessPoolExecutor(2) as pool:
        healthy = range(first, first + options.healthy)
        wrong = [
            (seed, said)
            for seed, said in zip(
                healthy, pool.map(partial(judge_healthy, options.steps), healthy, chunksize=5), strict=True
            )
            if said
        ]
        print(
            f"{options.healthy} healthy traces of {options.steps} steps, seed {options.seed}: {len(wrong)} "
            f"false aborts, {interval(len(wrong), options.healthy)} ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
        for seed, said in wrong[:20]:
            print(f"  {seed}: {said}")
        started, causes = time.monotonic(), sorted(traces.FAULTS)
        items = [(first + number, causes[number % len(causes)]) for number in range(options.sick)]
        judged = list(pool.map(partial(judge_sick, options.steps), items, chunksize=2))
    missed = [(item, one) for item, one in zip(items, judged, strict=True) if one.said]
    latest = max((one.share for one in judged if one.share < math.inf), default=0.0)
    print(
        f"{options.sick} sick traces, seed {options.seed}: {len(missed)} missed, late or misnamed, "
        f"{interval(len(missed), options.sick)}; the latest after {latest:.2f} of its limit "
        f"({time.monotonic() - started:.0f} s)"
    )
    for item, one in missed[:20]:
        print(f"  {item[0]} {one.name}: {one.said}")
    kinds = collections.Counter(one.name for one in judged)
    print("  " + ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())))
    return int(bool(wrong or missed))


if __name__ == "__main__":
    raise SystemExit(main())
