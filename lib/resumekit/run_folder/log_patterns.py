"""Steps, losses and their kin, read out of a trainer's lines with `trainer.log_patterns`.

For a trainer that tells us nothing else. Pure: clean lines in, fields of `step` events out.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, NamedTuple

# A pattern with `.*` in front costs the square of a line's length: the rest of a longer line is not looked at.
MAX_LINE_BYTES = 4096
# More digits than this are no step.
MAX_STEP = 10**12

# What stands in place of a number that is none, as C, Python and JavaScript print it; a longer word is no such.
NOT_FINITE = r"([+-]?(?i:nan|inf(?:inity)?))\b"
# An escaped sign, a class, a group that captures nothing ("(?:" and its kin, but not the named "(?P<"), or any sign.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?!P<)|.", re.DOTALL)


class Pattern(NamedTuple):
    """A pattern ready for use.

    Args:
        number: as it was written; its first group is the number.
        not_finite: the same up to that group, then a NaN or an infinity; tried where no number is found.
    """

    number: re.Pattern[bytes]
    not_finite: re.Pattern[bytes] | None = None

    def read(self, line: bytes) -> float | None:
        """Return what stands in a line, None if nothing does."""
        found = _number(self.number.search(line))
        if found is None and self.not_finite:
            return _number(self.not_finite.search(line))
        return found


Patterns = dict[str, Pattern]


def compiled(patterns: Any) -> Patterns:
    """Return the patterns ready for use; those that are not regular expressions are left out (the schema says so).

    A loss of NaN is seen by `loss ([0-9.]+)` too: who writes a pattern thinks of the numbers that are there.
    """
    result: Patterns = {}
    for name, text in patterns.items() if isinstance(patterns, dict) else ():
        with contextlib.suppress(re.error, TypeError, AttributeError):
            number = re.compile(text.encode(), re.MULTILINE)
            result[str(name)] = Pattern(number, _not_finite(text) if name == "loss" else None)
    return result


def found_steps(lines: bytes, patterns: Patterns) -> list[dict[str, Any]]:
    """Return the steps that the patterns find: a `step` is needed, the other values come from its line.

    Args:
        lines: clean lines, each with its newline.
        patterns: by name; the first group is the number.

    Returns:
        One dict per line with a step: {"step": 12, "loss": 0.5}; a NaN stays one.
    """
    if "step" not in patterns or not lines:
        return []
    split = lines.split(b"\n")
    if max(map(len, split)) > MAX_LINE_BYTES:
        lines = b"\n".join(line[:MAX_LINE_BYTES] for line in split)
    result, done = [], 0
    # One search through the whole chunk: line by line it would cost more than all the rest of the sidecar.
    for match in patterns["step"].number.finditer(lines):
        step = _number(match)
        if match.start() < done or step is None or not 0 <= step < MAX_STEP:
            continue
        start, end = lines.rfind(b"\n", 0, match.start()) + 1, lines.find(b"\n", match.end())
        line, done = lines[start : end if end >= 0 else len(lines)], max(end, match.end())
        fields = {name: pattern.read(line) for name, pattern in patterns.items()}
        result.append({name: value for name, value in fields.items() if value is not None} | {"step": int(step)})
    return result


def _not_finite(text: str) -> re.Pattern[bytes] | None:
    """Return the pattern of a number that is none, in the place of the first group.

    None where what stands before that group may be nothing (any "nan" would do), or is no pattern by itself.
    """
    ahead = ""
    for part in _PART.findall(text):
        if part == "(":
            break
        ahead += part
    try:
        says_where = not re.compile(ahead.encode(), re.MULTILINE).search(b"")
        return re.compile((ahead + NOT_FINITE).encode(), re.MULTILINE) if says_where else None
    except re.error:
        return None


def _number(match: re.Match[bytes] | None) -> float | None:
    if match:
        with contextlib.suppress(ValueError, IndexError, TypeError):
            return float(match[1].replace(b",", b""))
    return None
