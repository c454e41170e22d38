"""One line of the table: ours against theirs, with the null comparison beside it, the limit, the peers and the goal.

Pure: samples in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arithmetic import AT_MOST, Spread, ratios, spread, verdict
from harness import AGAIN, OURS, THEIRS, Samples, paired


@dataclass(frozen=True)
class Comparison:
    """What one line of the table shows.

    Args:
        row: '1', '3b': row of the table, and which of its comparisons.
        title: what is compared, "A against B".
        ours, theirs: seconds, or with unit 'per second' rates.
        ratio: ours over theirs, pair by pair.
        null: theirs over theirs again, pair by pair: what this machine calls equal.
        goal, direction: the ratio asked for, and '<=' or '>='.
        limit: what nothing can beat, by name, over theirs; None where there is none.
        peers: by name, each over theirs.
        cpu: median CPU seconds of ours and theirs, where they were measured.
        unit: of `ours` and `theirs`: 's' or 'per second'.
        null_is, null_within: the null comparison's true value (0 for shares), and how far from it it may be.
        notes: what else was seen.
    """

    row: str
    title: str
    ours: Spread
    theirs: Spread
    ratio: Spread
    null: Spread
    goal: float
    direction: str = AT_MOST
    limit: tuple[str, Spread] | None = None
    peers: tuple[tuple[str, Spread], ...] = ()
    cpu: tuple[float, float] | None = None
    unit: str = "s"
    null_is: float = 1.0
    null_within: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return verdict(self.ratio, self.goal, self.direction)

    @property
    def is_level(self) -> bool:
        """Whether the null comparison came out as it must."""
        return self.null.low - self.null_within <= self.null_is <= self.null.high + self.null_within


def compare(
    row: str,
    title: str,
    samples: Samples,
    goal: float,
    *,
    theirs: str = THEIRS,
    null: str = AGAIN,
    direction: str = AT_MOST,
    limit: str | None = None,
    peers: Sequence[str] = (),
    is_rate: bool = False,
    notes: Sequence[str] = (),
) -> Comparison:
    """Make a line of the table out of measured samples.

    Args:
        samples: from harness.measure, with 'ours' and the names below among them.
        theirs, null: what ours is measured against, and the same thing once more.
        limit, peers: names of further variants.
        is_rate: seconds per step were measured, and steps per second are compared.
    """
    values = {name: _values(samples, name, is_rate) for name in (OURS, theirs)}
    others = [name for name in peers if samples.get(name)]
    return Comparison(
        row=row,
        title=title,
        ours=spread(values[OURS]),
        theirs=spread(values[theirs]),
        ratio=_ratio(samples, OURS, theirs, is_rate),
        null=_ratio(samples, null, theirs, is_rate),
        goal=goal,
        direction=direction,
        limit=(limit, _ratio(samples, limit, theirs, is_rate)) if limit else None,
        peers=tuple((name, _ratio(samples, name, theirs, is_rate)) for name in others),
        cpu=_cpu(samples, theirs),
        unit="per second" if is_rate else "s",
        notes=tuple(notes),
    )


def _values(samples: Samples, name: str, is_rate: bool) -> list[float]:
    seconds = [sample.wall_s for sample in samples[name].values()]
    return [1 / value for value in seconds] if is_rate else seconds


def _ratio(samples: Samples, name: str, theirs: str, is_rate: bool) -> Spread:
    one, other = paired(samples, name, theirs)
    return spread(ratios(other, one) if is_rate else ratios(one, other))


def _cpu(samples: Samples, theirs: str) -> tuple[float, float] | None:
    both = [[s.cpu_s for s in samples[name].values() if s.cpu_s is not None] for name in (OURS, theirs)]
    return (spread(both[0]).median, spread(both[1]).median) if all(both) else None
