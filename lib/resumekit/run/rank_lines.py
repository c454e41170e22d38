"""Lines of several ranks in one log: which rank makes the curve, and whose loss is not finite.

torchrun's `--tee` puts `[default1]:` before each line, with trainer.launcher so does the kit. Pure.
Try it: `python -m pytest tests/test_rank_lines.py`
"""

from __future__ import annotations

import math
import re

from ..base.imports import Any
from ..base.values import count, mapping, strings
from .log_patterns import MAX_LINE_BYTES, Patterns, found_steps, read_values

# Ranks of which an account is kept.
MAX_RANKS = 64
# Two tellings that are not finite, without a step: the same as `health.SURE_TOLD`.
SURE_TOLD = 2
_NAME_BYTES = 120
# A word of torch's own: `[epoch 3]:` and `12:` begin lines of many a lone trainer.
_RANK = re.compile(rb"((?:\[(?:default|rank)[0-9]{1,7}\]: ?){1,3})(.*)", re.DOTALL)
_ANY_RANK = re.compile(rb"^\[(?:default|rank)[0-9]", re.MULTILINE)


class RankLosses:
    """The ranks that do not make the curve, and whose last loss was not finite.

    Args:
        saved: the account of the one before this one; values out of a file.
    """

    def __init__(self, saved: Any) -> None:
        # Of each such rank how many losses were told, and since which step.
        self._bad: dict[bytes, tuple[int, int | None]] = {as_rank(one): (1, None) for one in strings(saved)[:MAX_RANKS]}

    def __bool__(self) -> bool:
        return bool(self._bad)

    @property
    def account(self) -> list[str]:
        """Return the ranks, as plain values."""
        return [one.decode("ascii", "replace") for one in sorted(self._bad)[:MAX_RANKS]]

    def take(self, rank: bytes, loss: float | None, step: int | None) -> dict[str, Any] | None:
        """Take a rank's loss; two in a row that are not finite are told at once, as the fields of `nonfinite`.

        Args:
            rank: what its lines begin with.
            loss: None where a line tells none.
            step: the one that it is of, as far as that is known.
        """
        if loss is None:
            return None
        if math.isfinite(loss):
            self._bad.pop(rank, None)
            return None
        if rank not in self._bad and len(self._bad) >= MAX_RANKS:
            return None
        told, first = self._bad.get(rank, (0, step))
        first = step if first is None else first
        self._bad[rank] = (told + 1, first)
        if told + 1 != SURE_TOLD or first is None:
            return None
        return {"step": first, "what": f"loss of {rank.decode('ascii', 'replace').strip()}"}


class RankLines:
    """Takes lines of several ranks apart, for patterns that know of none.

    Args:
        saved: the account of the one before this one; values out of a file.
    """

    def __init__(self, saved: Any) -> None:
        known = mapping(saved)
        self._rank = as_rank(next(iter(strings([known.get("rank")])), "")) or None
        self._losses = RankLosses(known.get("bad_ranks"))
        self._step = count(known.get("step"))

    @property
    def account(self) -> dict[str, Any]:
        """Return what a successor goes on from, as plain values; nothing of a log without ranks."""
        if self._rank is None:
            return {}
        return {"rank": self._rank.decode("ascii", "replace"), "bad_ranks": self._losses.account}

    def of_curve(self, lines: bytes, patterns: Patterns) -> tuple[bytes, list[dict[str, Any]]]:
        """Return the lines that make the curve, without their rank, and what the other ranks' tell.

        The first rank that tells a step makes it. Lines without a rank are left as they are, and so are those that
        the patterns fit only with it.

        Args:
            lines: clean lines, each with its newline.
            patterns: by name.
        """
        if _ANY_RANK.search(lines) is None or "step" not in patterns:
            return lines, []
        kept, told = [], []
        for line in lines.splitlines(keepends=True):
            match = _RANK.match(line)
            rank, bare = (match[1], match[2]) if match else (b"", line)
            steps = found_steps(bare[:MAX_LINE_BYTES], patterns) if rank else []
            if rank and not steps and patterns["step"].number.search(line[:MAX_LINE_BYTES]):
                kept.append(line)
                continue
            if steps and self._rank is None:
                self._rank = rank
            if not rank or self._rank in (None, rank):
                self._step = steps[0]["step"] if steps else self._step
                kept.append(bare)
                continue
            loss = read_values(bare[:MAX_LINE_BYTES], patterns, ("loss",)).get("loss")
            bad = self._losses.take(rank, loss, steps[0]["step"] if steps else self._step)
            told += [{**bad, "event": "nonfinite"}] if bad else []
        return b"".join(kept), told

    def with_others(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a step of the curve; its loss is none while another rank's is not finite."""
        return {**fields, "loss": math.nan} if self._losses and "loss" in fields else fields


def as_rank(saved: str) -> bytes:
    """Return what a rank's lines begin with, out of an account."""
    return saved.encode("ascii", "replace")[:_NAME_BYTES]


def without_rank(line: bytes) -> bytes:
    """Return a line without the rank that torch or torchrun has put before it."""
    match = _RANK.match(line)
    return match[2] if match else line
