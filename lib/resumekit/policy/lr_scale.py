"""What a learning rate is multiplied by on top of its schedule: cuts that stay, and the ramp after an optimizer swap.

lr(step) = schedule(step) x lr_scale(step). It stands in plan, checkpoint and status, and every later resume inherits
it; only a person takes it back. A cut holds for every optimizer, a ramp for those that were swapped. No torch, reads
nothing. Source: protocol §7, §12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..base.imports import Any, NamedTuple
from ..base.values import count, listed, real, string

# Protocol §7: 80 % of the prior rate for the first 1,000 to 2,000 steps after a swap, where no config says otherwise.
SWAP_FACTOR, SWAP_STEPS = 0.8, 1000
# No rate is meant to grow by more.
MAX_FACTOR = 1e6


class Ramp(NamedTuple):
    """The first steps after a swap.

    Args:
        from_step: the optimizer step at which the swap happened.
        steps: how many steps the ramp lasts.
        factor: what the rate is multiplied by in them (protocol §7: 0.8).
        warm_restart: rise from 0 to the whole rate instead.
        optimizers: names of those that were swapped, of several; None where there is one, or where all are meant.
    """

    from_step: int
    steps: int
    factor: float
    warm_restart: bool = False
    optimizers: tuple[str, ...] | None = None

    def is_of(self, optimizer: str | None) -> bool:
        """Whether the ramp holds for an optimizer; a single one has no name (None or '')."""
        return not optimizer or self.optimizers is None or optimizer in self.optimizers

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

    def __call__(self, step: int, optimizer: str | None = None) -> float:
        """Return what the schedule's rate is multiplied by in the step that follows `step` completed ones.

        Args:
            step: optimizer steps done.
            optimizer: the name of one of several; None for the one that was swapped.
        """
        return self.factor * (self.ramp(step) if self.ramp and self.ramp.is_of(optimizer) else 1.0)

    def as_fields(self) -> dict[str, Any]:
        """Return it as plan and checkpoint keep it; a ramp for all optimizers names none."""
        if self.ramp is None:
            return {"factor": self.factor, "ramp": None}
        ramp = self.ramp._asdict() | {"optimizers": list(self.ramp.optimizers or ())}
        return {"factor": self.factor, "ramp": {key: value for key, value in ramp.items() if value != []}}


def swapped(names: Iterable[str]) -> tuple[str, ...] | None:
    """Return the `optimizers` of a ramp: the names of the swapped ones; None where the only one, without a name, is."""
    known = tuple(names)
    return known if known and all(known) else None


def from_fields(factor: Any, ramp: Any) -> LrScale:
    """Read both back; what is absent (None) is 1.0 and no ramp.

    Raises:
        ValueError: one of them is not what it must be; the message says which.
    """
    if factor is None:
        factor = 1.0
    if not _is_factor(factor):
        raise ValueError(f"lr_scale is '{factor}', not a number above 0")
    return LrScale(float(factor), None if ramp is None else _ramp(ramp))


def _is_factor(value: Any) -> bool:
    factor = real(value)
    return factor is not None and 0 < factor <= MAX_FACTOR


def _ramp(fields: Any) -> Ramp:
    if not isinstance(fields, Mapping) or {*fields, "optimizers"} != set(Ramp._fields):
        needed = ", ".join(name for name in Ramp._fields if name != "optimizers")
        raise ValueError(f"the ramp of lr_scale needs exactly {needed}, and optimizers where it names some")
    start, steps = count(fields["from_step"]), count(fields["steps"])
    factor, names = fields["factor"], fields.get("optimizers")
    if start is None or steps is None:
        raise ValueError("the ramp of lr_scale does not say from which step and for how many")
    if not _is_factor(factor):
        raise ValueError(f"the ramp of lr_scale has the factor '{factor}'")
    if names is not None and not listed(string)(names):
        raise ValueError("the ramp of lr_scale has optimizers that are not a list of names")
    return Ramp(
        from_step=start,
        steps=steps,
        factor=float(factor),
        warm_restart=fields["warm_restart"] is True,
        optimizers=None if names is None else tuple(names),
    )
