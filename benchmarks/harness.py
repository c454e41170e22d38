"""Runs the variants of one row in turn, many rounds, so that whatever the machine does hits all of them alike.

The order changes from round to round, the first round only warms up. Among the variants is one that is there twice:
the null comparison, which shows what this machine calls equal. Writes progress to stderr, nothing else.
Try it: `python benchmarks/bench.py 1 --quick`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OURS, THEIRS, AGAIN = "ours", "theirs", "theirs again"


@dataclass(frozen=True)
class Sample:
    """What one run took: wall-clock seconds, and CPU seconds of it and all its children (None: not measured)."""

    wall_s: float
    cpu_s: float | None = None


@dataclass(frozen=True)
class Variant:
    """One thing that is measured.

    Args:
        name: 'ours', 'theirs', 'theirs again', or a peer's or a limit's own.
        run: does it once and returns what it took; setting up and cleaning up is not to be in there.
        every: in which rounds; 3 means every third. For slow peers, where no few milliseconds decide.
    """

    name: str
    run: Callable[[], Sample]
    every: int = 1


# name -> round -> what it took
Samples = dict[str, dict[int, Sample]]


def measure(
    variants: Sequence[Variant], rounds: int, title: str, before_each: Callable[[], None] = lambda: None
) -> Samples:
    """Run every variant once per round.

    Args:
        rounds: how many, after one that warms up and is thrown away.
        title: for the progress line.
        before_each: called before each run, outside its time.

    Returns:
        The samples by name and round; variants with `every` > 1 are absent from the other rounds.
    """
    samples: Samples = {variant.name: {} for variant in variants}
    for number in range(-1, rounds):
        _progress(f"{title}: round {number + 1} of {rounds}")
        for variant in in_order(variants, number):
            before_each()
            sample = variant.run()
            if number >= 0:
                samples[variant.name][number] = sample
    _progress("")
    return samples


def in_order(variants: Sequence[Variant], number: int) -> list[Variant]:
    """Return the variants that run in this round: rotated, and turned round in every second one.

    So each stands first and last equally often, and no variant always runs after the same other one.
    """
    due = [variant for variant in variants if number < 0 or number % variant.every == 0]
    if not due:
        return []
    start = number // 2 % len(due)
    order = due[start:] + due[:start]
    return order[::-1] if number % 2 else order


def paired(samples: Samples, one: str, other: str) -> tuple[list[float], list[float]]:
    """Return the wall-clock seconds of two variants in the rounds that have both, in order."""
    common = sorted(samples[one].keys() & samples[other].keys())
    return [samples[one][n].wall_s for n in common], [samples[other][n].wall_s for n in common]


def clocked(action: Callable[[], object]) -> Sample:
    """Do something in this process and return what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
