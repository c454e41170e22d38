"""What every row is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from comparison import Comparison
from harness import Samples

FULL_ROUNDS, QUICK_ROUNDS = 21, 5


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        scratch: an empty folder on the disk that is measured; the caller removes it.
        is_quick: few rounds and small sizes: shows that it works, decides nothing.
        has_peers: the peers' venv is there.
        rounds: how many pairs; 21 where a few milliseconds decide.
    """

    scratch: Path
    is_quick: bool
    has_peers: bool
    rounds: int = FULL_ROUNDS


@dataclass
class Findings:
    """What a row found: lines of the table, every sample by title, and plain lines for the reader."""

    comparisons: list[Comparison] = field(default_factory=list)
    samples: dict[str, Samples] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
