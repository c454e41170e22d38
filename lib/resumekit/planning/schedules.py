"""The learning rate as a pure function of the step: what the plan predicts, and what a trainer may use as it is.

factor(step) is the share of the base rate in the step that follows `step` completed ones. No torch, no state.
Try it: `PYTHONPATH=lib python -c "from resumekit.planning import schedules; help(schedules)"`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..configuration import config
from ..configuration.schema import Schema

NAMES = ("cosine", "linear", "constant")


def factor(name: str, step: int, *, warmup_steps: int, max_steps: int, min_lr_ratio: float) -> float:
    """Return the share of the base learning rate, 0 to 1.

    Args:
        name: one of NAMES.
        step: optimizer steps done.
        warmup_steps: steps of linear warm-up; the first one already moves, by 1 / warmup_steps.
        max_steps: where the fall ends; beyond it the share stays at min_lr_ratio.
        min_lr_ratio: the share at the end; 'constant' never falls.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    left = 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1 - done
    return min_lr_ratio + (1 - min_lr_ratio) * left


def of_config(resolved: dict[str, Any]) -> Callable[[int], float] | None:
    """Return the function that a config describes.

    None where it cannot be known: the trainer does not take its learning rate from here
    (`trainer.schedule_with_kit` is not set), or the schedule is one of its own.
    """
    name = config.get(resolved, "schedule.name")
    if not config.get(resolved, "trainer.schedule_with_kit") or name not in NAMES or _has_cycle(resolved):
        return None
    warmup, ratio = config.get(resolved, "schedule.warmup_steps", 0), config.get(resolved, "schedule.min_lr_ratio", 0.0)
    max_steps = config.get(resolved, "training.max_steps")
    if type(max_steps) is not int:
        return None
    return lambda step: factor(name, step, warmup_steps=warmup, max_steps=max_steps, min_lr_ratio=ratio)


def phase_of(resolved: dict[str, Any], step: int) -> str | None:
    """Return the phase of the schedule in the step that follows `step` completed ones; None where it cannot be known.

    'warmup', then the schedule's name; 'floor' where it has come to its end.
    """
    if of_config(resolved) is None:
        return None
    if step < config.get(resolved, "schedule.warmup_steps", 0):
        return "warmup"
    name = config.get(resolved, "schedule.name")
    return "floor" if name != "constant" and step >= config.get(resolved, "training.max_steps") else name


def base_rates(resolved: dict[str, Any], schema: Schema) -> dict[str, float]:
    """Return the base learning rates of a config: every number whose key the schema marks with `x-base-lr`."""
    keys = (key for key, node in schema.leaves.items() if node.get("x-base-lr"))
    values = {key: config.get(resolved, key) for key in keys}
    return {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}


def _has_cycle(resolved: dict[str, Any]) -> bool:
    """SWA's small cycle begins where the evaluations say, which only the trainer knows."""
    return bool(config.get(resolved, "swa.enabled")) or config.get(resolved, "schedule.tail") is not None
