"""What moves the weights: one optimizer for the model, of a kind that the config names, and one for the puzzles.

Their keys are their roles, MODEL and PUZZLES, whatever their kind: a checkpoint names both, and a swap changes the
kind alone. Reads and writes nothing. Try it: `python -m pytest tests/test_example_model.py -k optimizer`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from arc_settings import SettingsError
from hrm_model import Hrm

MODEL, PUZZLES = "model", "puzzles"


class SignSgd(Optimizer):
    """Move the rows that a step touched by lr in the direction of their gradient's sign; the others stay.

    Weight decay is decoupled and also touches those rows alone: a puzzle that is not seen does not fade.
    Expects sparse gradients (`nn.Embedding(sparse=True)`).
    Source: arXiv 2506.21734's code trains its puzzle embeddings so.
    """

    def __init__(self, params: Iterable[Tensor] | list[dict[str, Any]], lr: float, weight_decay: float) -> None:
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


def chosen_kind(cfg: SimpleNamespace, begins_at: int) -> str:
    """Return which optimizer moves the model: 'adamw', 'lion' or 'sgd'.

    A planned swap happens where a run begins, never in the middle of one: a process keeps what it began with.

    Args:
        cfg: the config's `optimizer` section.
        begins_at: completed steps that the run begins with; 0 for a fresh one.

    Source: protocol §6 and §7.
    """
    return cfg.swap_to if cfg.swap_at is not None and begins_at >= cfg.swap_at else cfg.name


def parameter_groups(model: Hrm, cfg: SimpleNamespace) -> dict[str, list[dict[str, Any]]]:
    """Return, by role, the groups of an optimizer: each with its parameters and its base learning rate.

    Args:
        cfg: the config's `optimizer` section.
    """
    dense = [weight for name, weight in model.named_parameters() if not name.startswith("puzzles.")]
    return {
        MODEL: [{"params": dense, "lr": cfg.lr}],
        PUZZLES: [{"params": [model.puzzles.weight], "lr": cfg.puzzle_lr}],
    }


def make_optimizers(model: Hrm, cfg: SimpleNamespace, begins_at: int = 0) -> dict[str, Optimizer]:
    """Return the two optimizers by role.

    Args:
        cfg: the config's `optimizer` section.
        begins_at: completed steps that the run begins with.

    Raises:
        SettingsError: see `optimizer_class`.
    """
    kind, groups = chosen_kind(cfg, begins_at), parameter_groups(model, cfg)
    averaging = {"momentum": cfg.betas[0]} if kind == "sgd" else {"betas": tuple(cfg.betas)}
    return {
        MODEL: optimizer_class(kind, cfg.lr)(groups[MODEL], lr=cfg.lr, weight_decay=cfg.weight_decay, **averaging),
        PUZZLES: SignSgd(groups[PUZZLES], lr=cfg.puzzle_lr, weight_decay=cfg.puzzle_weight_decay),
    }


def optimizer_class(kind: str, lr: float) -> type[Optimizer]:
    """Return the class of an optimizer for the model.

    Raises:
        SettingsError: its package is missing, or it cannot work with this learning rate.
    """
    if kind != "lion":
        return {"adamw": AdamW, "sgd": SGD}[kind]
    try:
        from lion_pytorch import Lion  # late: a run that does not use it needs no package
    except ImportError as error:
        raise SettingsError(
            f"optimizer 'lion' needs the package lion-pytorch ({error}); `pip install lion-pytorch`, or set "
            "optimizer.name or optimizer.swap_to to 'adamw' or 'sgd'"
        ) from error
    if not lr > 0:
        raise SettingsError(f"optimizer.lr is '{lr}', and Lion wants one above 0; take a very small one")
    return Lion


def kind_of(optimizers: dict[str, Optimizer]) -> str:
    """Return the kind of the model's optimizer, as the config writes it: its class in lower case."""
    return type(optimizers[MODEL]).__name__.lower()


def set_hyperparameters(optimizers: dict[str, Optimizer], cfg: SimpleNamespace, *, swapped: bool = False) -> None:
    """Put the config's betas and weight decay into loaded optimizers: a state dict brings its old ones along.

    Args:
        cfg: the config's `optimizer` section.
        swapped: whether the model's optimizer took over from another one; it has a weight decay of its own then
            (protocol §7).
    """
    for group in optimizers[MODEL].param_groups:
        group["weight_decay"] = cfg.swap_weight_decay if swapped else cfg.weight_decay
        if "betas" in group:
            group["betas"] = tuple(cfg.betas)
        else:
            group["momentum"] = cfg.betas[0]
    for group in optimizers[PUZZLES].param_groups:
        group["weight_decay"] = cfg.puzzle_weight_decay


def dense_parameters(optimizers: dict[str, Optimizer]) -> list[Tensor]:
    """Return what the model's optimizer trains: the parameters whose gradients are clipped."""
    return [weight for group in optimizers[MODEL].param_groups for weight in group["params"]]
