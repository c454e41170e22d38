"""Values of journal events, each taken only if it has its type: they come from files, and those may be anybody's.

Every function returns its value, or None for anything else.
Try it: `python -m pytest tests/test_run_state.py`
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

from ..basics.processes import identity_from

# Type-checked, never converted: '12' is no step, and True is no number.
_AT = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z")


def integer(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 10**12 else None


def count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**12 else None


def number(value: Any) -> float | None:
    is_number = (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53)
    return value if is_number else None


def seconds(value: Any) -> float | None:
    """A time of the monotonic clock; bounded, so that no sum of them is infinite."""
    return value if number(value) is not None and 0 <= value < 1e12 else None


def speed(value: Any) -> float | None:
    return value if number(value) is not None and value >= 0 else None


def text(value: Any) -> str | None:
    return value[:500] if isinstance(value, str) else None


def at(value: Any) -> str | None:
    return value if isinstance(value, str) and _AT.fullmatch(value) else None


def flag(value: Any) -> bool | None:
    return value if value is True else None


def process(value: Any) -> dict[str, Any] | None:
    found = identity_from(value)
    return found.as_fields() if found else None


def fields(**typed: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the check of an object whose every field has its type or is None."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != typed.keys():
            return None
        return value if all(value[k] is None or of(value[k]) is not None for k, of in typed.items()) else None

    return check


def seconds_of(created_at: str) -> float:
    """Return a time of run.json as seconds since the epoch; the beginning of time where it is none."""
    import calendar  # late: few ask, and the fold does without

    try:
        return float(calendar.timegm(time.strptime(created_at[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0
