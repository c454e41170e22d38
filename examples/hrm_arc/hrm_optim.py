"""What moves the weights: AdamW for the model, signed descent for the puzzle embeddings, and the learning rate.

The learning rate is a pure function, lr(step) = base x factor(step) x lr_scale: nothing of it is remembered.
Reads and writes nothing. Try it: `python -m pytest tests/test_example_model.py -k lr`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hrm_model import Hrm

ADAMW, SIGN_SGD = "adamw", "sign_sgd"


class SignSgd(Optimizer):
    """Move the rows that a step touched by lr in the direction of their gradient's sign; the others stay.

    Weight decay is decoupled and also touches those rows alone: a puzzle that is not seen does not fade.
    Expects sparse gradients (`nn.Embedding(sparse=True)`).
    Source: arXiv 2506.21734's code trains its puzzle embeddings so.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Apply one step to every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad.coalesce(), group["lr"], group["weight_decay"])

    @staticmethod
    def _move(weight: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        rows = gradient.indices()[0]
        moved = weight[rows] * (1 - lr * weight_decay) - lr * gradient.values().sign()
        weight.index_copy_(0, rows, moved.to(weight.dtype))


class LearningRate:
    """Warm-up to 1, then a cosine down to `min_ratio` at `max_steps`, times `lr_scale`.

    Args:
        warmup_steps: steps of linear warm-up; the first step already moves (1 / warmup_steps).
        max_steps: where the cosine ends; beyond it the factor stays at min_ratio.
        min_ratio: the end, relative to the base rate, 0 to 1; 1 is a constant rate.
    """

    def __init__(self, warmup_steps: int, max_steps: int, min_ratio: float) -> None:
        self.warmup_steps, self.max_steps, self.min_ratio = warmup_steps, max_steps, min_ratio
        self.lr_scale = 1.0

    def __call__(self, step: int) -> float:
        """Return the factor of the step that follows `step` completed ones."""
        return self.lr_scale * self._shape(step)

    def _shape(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


class Schedule:
    """One LambdaLR per optimizer, saved and loaded as one."""

    def __init__(self, optimizers: dict[str, Optimizer], rate: LearningRate) -> None:
        self.rate = rate
        # A plain function: of an object LambdaLR would save the attributes, and load old ones over the config's.
        self._parts = {name: LambdaLR(optimizer, lambda step: rate(step)) for name, optimizer in optimizers.items()}

    def step(self) -> None:
        """Set every rate for the next step."""
        for part in self._parts.values():
            part.step()

    def place(self, step: int, base_rates: dict[str, float]) -> None:
        """Set every rate to what the config says at `step`, whatever was loaded (a refit; without change a no-op)."""
        for name, part in self._parts.items():
            part.last_epoch, part.base_lrs = step, [base_rates[name]]
            for group in part.optimizer.param_groups:
                group["initial_lr"], group["lr"] = base_rates[name], base_rates[name] * self.rate(step)
            part._last_lr = [group["lr"] for group in part.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Return the rate of the next step, AdamW's first."""
        return [rate for part in self._parts.values() for rate in part.get_last_lr()]

    def state_dict(self) -> dict[str, dict]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def make_optimizers(model: Hrm, cfg: SimpleNamespace) -> dict[str, Optimizer]:
    """Return the two optimizers by name; `cfg` is the config's `optimizer` section."""
    dense = [weight for name, weight in model.named_parameters() if not name.startswith("puzzles.")]
    return {
        ADAMW: AdamW(dense, lr=cfg.lr, betas=tuple(cfg.betas), weight_decay=cfg.weight_decay),
        SIGN_SGD: SignSgd([model.puzzles.weight], lr=cfg.puzzle_lr, weight_decay=cfg.puzzle_weight_decay),
    }


def set_hyperparameters(optimizers: dict[str, Optimizer], cfg: SimpleNamespace) -> None:
    """Put the config's betas and weight decay into loaded optimizers: a state dict brings its old ones along."""
    for group in optimizers[ADAMW].param_groups:
        group["betas"], group["weight_decay"] = tuple(cfg.betas), cfg.weight_decay
    for group in optimizers[SIGN_SGD].param_groups:
        group["weight_decay"] = cfg.puzzle_weight_decay


def dense_parameters(optimizers: dict[str, Optimizer]) -> list[Tensor]:
    """Return what AdamW trains: the parameters whose gradients are clipped."""
    return [weight for group in optimizers[ADAMW].param_groups for weight in group["params"]]
