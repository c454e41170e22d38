"""The thresholds of the abort rules, read from a run's own config. Try it: `grep -A16 '^abort:' config.yaml`"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """The thresholds, from the run's own config: `abort.*` and `recover.max_attempts`; minutes are minutes."""

    throughput_drop: float = 0.5
    throughput_minutes: float = 10.0
    hang_minutes: float = 30.0
    eval_minutes: float = 60.0
    save_minutes: float = 30.0
    divergence: float | None = None
    free_mb: int = 256
    free_inodes: int = 1000
    oom_count: int = 3
    oom_minutes: float = 30.0
    max_attempts: int = 3


def limits_of(setting: Callable[[str, str], Any]) -> Limits:
    """Return the limits of a run; a value that is no number above 0 counts as the default.

    Args:
        setting: `setting(section, key)`, from its resolved config, which may be anybody's.
    """
    values: dict[str, Any] = {}
    for name, default in Limits._field_defaults.items():
        value = setting("recover" if name == "max_attempts" else "abort", name)
        is_number = type(value) in (int, float) and 0 < value < 1e9
        values[name] = default if not is_number else max(1, int(value)) if type(default) is int else value
    values["throughput_drop"] = min(values["throughput_drop"], 1.0)
    return Limits(**values)
