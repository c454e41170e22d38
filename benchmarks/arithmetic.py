"""The arithmetic of a comparison: medians, quartiles, ratios of pairs, and what may be said of them.

Pure: numbers in, numbers out. Ratios are taken pair by pair, within one round, so that a machine that slows down in
the middle slows both sides; the median of those ratios is what is judged.
Try it: `python -m pytest tests/test_benchmarks.py`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

AT_MOST, AT_LEAST = "<=", ">="
# Below this many pairs no two order statistics enclose the median with 95 %.
MIN_FOR_INTERVAL = 6


@dataclass(frozen=True)
class Spread:
    """A sample in five numbers.

    Args:
        median, lower, upper: the middle, and the quartiles around it.
        low, high: what encloses the true median with at least 95 %; the whole range where there are few values.
        count: how many values.
    """

    median: float
    lower: float
    upper: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("no values to take the spread of")
    ordered = sorted(values)
    low, high = median_interval(ordered)
    return Spread(quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75), low, high, len(ordered))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the ordered values lie, interpolated between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median_interval(ordered: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the two order statistics that enclose the true median with at least `level`.

    Assumes nothing of the distribution: each value is above the median with probability one half.
    """
    count = len(ordered)
    if count < MIN_FOR_INTERVAL:
        return ordered[0], ordered[-1]
    tail, rank = 0.0, 0
    while True:
        tail += math.comb(count, rank) / 2**count
        if 2 * tail > 1 - level:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs, pair by pair.

    Raises:
        ValueError: they are not pairs, or a time is not positive.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values against {len(theirs)}: not pairs")
    if any(value <= 0 for value in theirs):
        raise ValueError("a value to divide by is not positive")
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def verdict(ratio: Spread, goal: float, direction: str) -> str:
    """Say whether the median keeps the goal: 'met' or 'missed', with a '?' where the interval lies on both sides."""
    if direction == AT_MOST:
        met, all_met, none_met = ratio.median <= goal, ratio.high <= goal, ratio.low > goal
    else:
        met, all_met, none_met = ratio.median >= goal, ratio.low >= goal, ratio.high < goal
    return ("met" if met else "missed") + ("" if all_met or none_met else "?")


def growth(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the slope of times over sizes, both as logarithms: 0 costs nothing more, 1 grows in proportion.

    Raises:
        ValueError: fewer than two different sizes.
    """
    xs, ys = [math.log(size) for size in sizes], [math.log(time) for time in times]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    width = sum((x - mean_x) ** 2 for x in xs)
    if width == 0:
        raise ValueError("the growth needs two different sizes")
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / width
