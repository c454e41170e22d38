"""Values that came from a file: a reader returns its value if that has the type and is within bounds, else None.

A journal, a record, a plan or a saved state may be another user's, another version's, or edited by hand. Nothing is
converted: '12' is no step, True is no number. `fields`, `listed`, `row`, `one_of`, `between` and `matching` make a
reader of others; `mapping`, `items` and `strings` return an empty value instead of None. No reader raises.
Try it: `python -m pytest tests/test_values.py`
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping

from .imports import Any
from .paths import MAX_STEP

Reader = Callable[[Any], Any]

# The limits; that of steps, and of all that is counted, is MAX_STEP.
# Up to here every reader of JSON takes a whole number exactly.
MAX_EXACT = 1 << 53
# What the kernel gives out (an inode, a time in nanoseconds, clock ticks) has 64 bits.
MAX_KERNEL = 1 << 64
# A larger whole number does not become a float: arithmetic with it raises OverflowError.
MAX_FLOAT = sys.float_info.max
# Seconds of a clock: 30,000 years. A sum of them stays below MAX_EXACT.
MAX_S = 1e12
# A process is waited for with poll(2), which takes at most 2^31 milliseconds.
MAX_WAIT_S = 1e6
# A limit, a rate or a share of a config: as seconds 30 years, as MB a petabyte.
MAX_SETTING = 1e9
# Characters of a text that is shown (its file may hold megabytes), and of a path (PATH_MAX of Linux).
MAX_TEXT = 500
MAX_PATH = 4096

_AT = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z")
_NO_FIELDS: Mapping[str, Reader] = {}


def between(least: int, most: int) -> Callable[[Any], int | None]:
    """Return the reader of a whole number from `least` to `most`."""
    return lambda value: value if type(value) is int and least <= value <= most else None


def below(limit: float) -> Callable[[Any], float | None]:
    """Return the reader of a number that is not negative and below `limit`."""
    return lambda value: value if type(value) in (int, float) and 0 <= value < limit else None


# A step, an epoch, bytes of a file, or how many there are of something.
count = between(0, MAX_STEP - 1)
# A whole number that may be negative.
integer = between(1 - MAX_STEP, MAX_STEP - 1)
# A sum of counts.
total = between(0, MAX_EXACT - 1)
# What the kernel gives out: device, inode, nanoseconds, clock ticks.
kernel_number = between(1 - MAX_KERNEL, MAX_KERNEL - 1)
# A time of a clock, or between two of its times.
seconds = below(MAX_S)
# A sum of seconds, or a speed that is added up with others.
amount = below(MAX_EXACT)
# How long a process may be waited for; 0 is not at all.
wait_s = below(MAX_WAIT_S)


def number(value: Any) -> float | None:
    """Return a finite number; a whole one only where every reader of JSON takes it exactly."""
    if type(value) is float:
        return value if -MAX_FLOAT <= value <= MAX_FLOAT else None
    return value if type(value) is int and -MAX_EXACT < value < MAX_EXACT else None


def finite(value: Any) -> float | None:
    """Return a finite number; a whole one if a float can hold it."""
    return value if type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT else None


def real(value: Any) -> float | None:
    """Return a number of a checkpoint: numpy's floats count, infinite ones and NaN too."""
    if isinstance(value, float):
        return value
    return value if type(value) is int and -MAX_FLOAT <= value <= MAX_FLOAT else None


def speed(value: Any) -> float | None:
    """Return a number that is not negative."""
    return value if number(value) is not None and value >= 0 else None


def above_zero(value: Any) -> float | None:
    """Return a limit, a rate or a share of a config."""
    return value if type(value) in (int, float) and 0 < value < MAX_SETTING else None


def text(value: Any) -> str | None:
    """Return a text that is shown, cut at MAX_TEXT characters."""
    return value[:MAX_TEXT] if isinstance(value, str) else None


def short_text(value: Any) -> str | None:
    """Return a text that is not longer than `text` makes it."""
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def path_text(value: Any) -> str | None:
    """Return a name, or another text that is no longer than a path may be."""
    return value if isinstance(value, str) and len(value) <= MAX_PATH else None


def string(value: Any) -> str | None:
    """Return a text of any length: that of its file is bounded."""
    return value if isinstance(value, str) else None


def at(value: Any) -> str | None:
    """Return a time stamp as files.utc_now writes it."""
    return value if isinstance(value, str) and _AT.fullmatch(value) else None


def flag(value: Any) -> bool | None:
    """Return True; a flag that is not set is None, as one that is not there."""
    return value if value is True else None


def boolean(value: Any) -> bool | None:
    """Return True or False."""
    return value if type(value) is bool else None


def mapping(value: Any) -> dict[str, Any]:
    """Return an object; {} for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """Return an array; [] for anything else."""
    return value if isinstance(value, list) else []


def strings(value: Any) -> list[str]:
    """Return the texts in an array; [] for anything else."""
    return [item for item in items(value) if isinstance(item, str)]


def one_of(words: Collection[str]) -> Callable[[Any], str | None]:
    """Return the reader of a text that is one of `words`."""
    return lambda value: value if isinstance(value, str) and value in words else None


def matching(pattern: str) -> Callable[[Any], str | None]:
    """Return the reader of a text that a regular expression matches from start to end."""
    return lambda value: value if isinstance(value, str) and re.fullmatch(pattern, value) else None


# The hash of a config, or its first characters.
config_hash = matching("[0-9a-f]{12,64}")


def listed(of: Reader, most: int = MAX_EXACT) -> Callable[[Any], list[Any] | None]:
    """Return the reader of an array of at most `most` values, each of which `of` reads."""

    def read(value: Any) -> list[Any] | None:
        is_one = isinstance(value, list) and len(value) <= most and all(of(item) is not None for item in value)
        return value if is_one else None

    return read


def row(*of: Reader) -> Callable[[Any], list[Any] | None]:
    """Return the reader of an array with one value for each reader."""

    def read(value: Any) -> list[Any] | None:
        if not isinstance(value, list) or len(value) != len(of):
            return None
        return value if all(each(item) is not None for each, item in zip(of, value, strict=True)) else None

    return read


def fields(or_none: Mapping[str, Reader] = _NO_FIELDS, /, **needed: Reader) -> Callable[[Any], dict[str, Any] | None]:
    """Return the reader of an object with exactly these fields.

    Args:
        or_none: those that may be None.
        needed: those that may not.
    """
    names = or_none.keys() | needed.keys()

    def read(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict) or value.keys() != names:
            return None
        is_whole = all(of(value[key]) is not None for key, of in needed.items())
        is_one = is_whole and all(value[key] is None or of(value[key]) is not None for key, of in or_none.items())
        return value if is_one else None

    return read


def some_of(readers: Mapping[str, Reader]) -> Callable[[Any], dict[str, Any] | None]:
    """Return the reader of an object with any of these fields and no other, none of them None."""

    def read(value: Any) -> dict[str, Any] | None:
        is_one = isinstance(value, dict) and all(
            key in readers and readers[key](item) is not None for key, item in value.items()
        )
        return value if is_one else None

    return read


def epoch_s(created_at: str) -> float:
    """Return a time of run.json as seconds since the epoch; the beginning of time where it is none.

    Worked out here: time.strptime and calendar cost the sidecar of each short run 3 ms.
    """
    match = re.match(r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})", created_at, re.ASCII)
    if match is None:
        return 0.0
    year, month, day, hour, minute, second = map(int, match.groups())
    # Years that begin in March: a leap day is the last one (Howard Hinnant, days_from_civil).
    year -= month <= 2
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - 719_468
    return float(86_400 * days + 3600 * hour + 60 * minute + second)
