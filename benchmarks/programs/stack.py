"""A model of any size for the benchmarks: a stack of square layers, and its checkpoint with AdamW's state."""

from __future__ import annotations

import math
from typing import Any

import torch

# Two tensors a layer, and three more each in the optimizer: 784 in all, like a real model of 27 million parameters.
LAYERS = 98
BYTES_PER_WEIGHT = 12  # float32: the weight and AdamW's two moments


def width_for(megabytes: float, layers: int = LAYERS) -> int:
    """Return the width at which a checkpoint of the stack has about this size."""
    return max(1, int(math.sqrt(megabytes * 1e6 / (BYTES_PER_WEIGHT * layers))))


def make_stack(width: int, layers: int = LAYERS) -> torch.nn.Module:
    """Return the stack; its weights are small constants, so that making it takes no time of note."""
    stack = torch.nn.Sequential(*(torch.nn.utils.skip_init(torch.nn.Linear, width, width) for _ in range(layers)))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(0.01)
    return stack


def make_optimizer(stack: torch.nn.Module, *, has_stepped: bool) -> torch.optim.Optimizer:
    """Return an AdamW for it; with `has_stepped` its state is there, as after a first step."""
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-4)
    if has_stepped:
        for parameter in stack.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer


def plain_content(stack: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """Return what a trainer without the kit puts into its checkpoint."""
    return {
        "global_step": step, "epoch": 0, "best_val_loss": 1.0, "model_state_dict": stack.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }  # fmt: skip
