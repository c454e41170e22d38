"""The learning rate: lr(step) = base x factor(step) x lr_scale(step), a pure function; nothing of it is remembered.

Reads and writes nothing. Try it: `python -m pytest tests/test_example_model.py -k lr`
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from resume_helper import SwaCycle


def unscaled(step: int, optimizer: str | None = None) -> float:
    """The lr_scale of a run whose learning rate was never cut: 1 at every step, for every optimizer."""
    return 1.0


class LearningRate:
    """Warm-up to 1, then a cosine down to `min_ratio` at `max_steps`; in an SWA tail its cycle; times lr_scale(step).

    Args:
        warmup_steps: steps of linear warm-up; the first step already moves (1 / warmup_steps).
        max_steps: where the cosine ends; beyond it the factor stays at min_ratio.
        min_ratio: the end, relative to the base rate, 0 to 1; 1 is a constant rate.
        cycle: what an SWA tail does; None for a run without one.

    `cycle_from` is the step at which the tail began (None: not yet), `scale_at` gives lr_scale by step
    and optimizer. Both count the
    run's steps; the schedule has its own, `behind` by as many as the run had done when it alone began anew.
    """

    def __init__(self, warmup_steps: int, max_steps: int, min_ratio: float, cycle: SwaCycle | None = None) -> None:
        self.warmup_steps, self.max_steps, self.min_ratio = warmup_steps, max_steps, min_ratio
        self.cycle, self.cycle_from, self.behind = cycle, None, 0
        self.scale_at: Callable[[int, str | None], float] = unscaled

    def __call__(self, step: int, optimizer: str | None = None) -> float:
        """Return the factor of the step that follows `step` completed ones of the schedule.

        Args:
            step: completed steps of the schedule.
            optimizer: whose rate it is: the lr_scale after a swap is that of the swapped one alone, which None is.
        """
        factor = self._shape(step)
        step += self.behind
        if self.cycle is not None and self.cycle_from is not None and step >= self.cycle_from:
            factor = self.cycle(step - self.cycle_from, factor)
        return self.scale_at(step, optimizer) * factor

    def phase(self, step: int) -> str:
        """Return the phase of the step that follows `step` completed ones of the schedule.

        Returns:
            'warmup', 'cosine', 'floor' or 'tail'.
        """
        if self.cycle is not None and self.cycle_from is not None and step + self.behind >= self.cycle_from:
            return "tail"
        if step < self.warmup_steps:
            return "warmup"
        return "floor" if step >= self.max_steps else "cosine"

    def _shape(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


class Schedule:
    """One LambdaLR per optimizer, saved and loaded as one. Its base rates are those that the optimizers come with."""

    def __init__(self, optimizers: dict[str, Optimizer], rate: LearningRate) -> None:
        self.rate = rate
        self._bases = {name: [group["lr"] for group in one.param_groups] for name, one in optimizers.items()}
        # A plain function: of an object LambdaLR would save the attributes, and load old ones over the config's.
        self._parts = {
            name: LambdaLR(one, lambda step, name=name: rate(step, name)) for name, one in optimizers.items()
        }

    @property
    def place(self) -> int:
        """How many steps the schedule has done: the run's, unless one of the two began anew without the other."""
        return next(iter(self._parts.values())).last_epoch

    def step(self) -> None:
        """Set every rate for the next step."""
        for part in self._parts.values():
            part.step()

    def refit(self, step: int) -> None:
        """Set every rate to what the config says at `step`, whatever was loaded; without a change that is a no-op."""
        for name, part in self._parts.items():
            part.last_epoch, part.base_lrs = step, list(self._bases[name])
            for group, base in zip(part.optimizer.param_groups, self._bases[name], strict=True):
                group["initial_lr"], group["lr"] = base, base * self.rate(step, name)
            part._last_lr = [group["lr"] for group in part.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Return the rate of the next step, the model's first."""
        return [rate for part in self._parts.values() for rate in part.get_last_lr()]

    def state_dict(self) -> dict[str, dict]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
