"""Steps, losses and their kin, read out of a trainer's lines with `trainer.log_patterns`.

For a trainer that tells us nothing else. Pure: clean lines in, fields of `step` events out.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

# A pattern with `.*` in front costs the square of a line's length: the rest of a longer line is not looked at.
MAX_LINE_BYTES = 4096
# More digits than this are no step.
MAX_STEP = 10**12

Patterns = dict[str, "re.Pattern[bytes]"]


def compiled(patterns: Any) -> Patterns:
    """Return the patterns ready for use; those that are not regular expressions are left out (the schema says so)."""
    result: Patterns = {}
    for name, text in patterns.items() if isinstance(patterns, dict) else ():
        with contextlib.suppress(re.error, TypeError, AttributeError):
            result[str(name)] = re.compile(text.encode(), re.MULTILINE)
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
    for match in patterns["step"].finditer(lines):
        step = _number(match)
        if match.start() < done or step is None or not 0 <= step < MAX_STEP:
            continue
        start, end = lines.rfind(b"\n", 0, match.start()) + 1, lines.find(b"\n", match.end())
        line, done = lines[start : end if end >= 0 else len(lines)], max(end, match.end())
        fields = {name: _number(pattern.search(line)) for name, pattern in patterns.items()}
        result.append({name: value for name, value in fields.items() if value is not None} | {"step": int(step)})
    return result


def _number(match: re.Match[bytes] | None) -> float | None:
    if match:
        with contextlib.suppress(ValueError, IndexError, TypeError):
            return float(match[1].replace(b",", b""))
    return None
