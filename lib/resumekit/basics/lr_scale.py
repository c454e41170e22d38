"""What a learning rate is multiplied by on top of its schedule: cuts that stay, and the ramp after an optimizer swap.

lr(step) = schedule(step) x lr_scale(step). It stands in plan, checkpoint and status, and every later resume inherits
it; only a person takes it back. No torch, reads nothing. Source: protocol §7, §12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Ramp(NamedTuple):
    """The first steps after a swap.

    Args:
        from_step: the optimizer step at which the swap happened.
        steps: how many steps the ramp lasts.
        factor: what the rate is multiplied by in them (protocol §7: 0.8).
        warm_restart: rise from 0 to the whole rate instead.
    """

    from_step: int
    steps: int
    factor: float
    warm_restart: bool = False

    def __call__(self, step: int) -> float:
        """Return the share of the rate in the step that follows `step` completed ones."""
        done = step - self.from_step
        if not 0 <= done < self.steps:
            return 1.0
        return (done + 1) / self.steps if self.warm_restart else self.factor


class LrScale(NamedTuple):
    """A factor for good and a ramp, if there was a swap."""

    factor: float = 1.0
    ramp: Ramp | None = None

    def __call__(self, step: int) -> float:
        """Return what the schedule's rate is multiplied by in the step that follows `step` completed ones."""
        return self.factor * (self.ramp(step) if self.ramp else 1.0)

    def as_fields(self) -> dict[str, Any]:
        """Return it as plan and checkpoint keep it."""
        return {"factor": self.factor, "ramp": self.ramp._asdict() if self.ramp else None}


def from_fields(factor: Any, ramp: Any) -> LrScale:
    """Read both back; what is absent (None) is 1.0 and no ramp.

    Raises:
        ValueError: one of them is not what it must be; the message says which.
    """
    if factor is None:
        factor = 1.0
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1e6:
        raise ValueError(f"lr_scale is '{factor}', not a number above 0")
    return LrScale(float(factor), None if ramp is None else _ramp(ramp))


def _ramp(fields: Any) -> Ramp:
    if not isinstance(fields, Mapping) or set(fields) != set(Ramp._fields):
        raise ValueError(f"the ramp of lr_scale needs exactly {', '.join(Ramp._fields)}")
    start, steps, factor, restart = (fields[name] for name in Ramp._fields)
    if type(start) is not int or type(steps) is not int or start < 0 or steps < 0:
        raise ValueError("the ramp of lr_scale does not say from which step and for how many")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1e6:
        raise ValueError(f"the ramp of lr_scale has the factor '{factor}'")
    return Ramp(start, steps, float(factor), restart is True)
