"""What the tests of a changed resume share: a model that grows, its optimizers, a Lion, and a plan for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resumekit.base.terms import KEYS
from resumekit.trainer.comparison import compare_values


class Net(nn.Module):
    """Two layers; `rule_head` and `gate` are what an architecture edit adds, in front and behind."""

    def __init__(self, *, grown: bool = False, seed: int = 0, hidden: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        if grown:
            self.gate = nn.Linear(4, 4)
        self.body = nn.Linear(4, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.head = nn.Linear(hidden, 2)
        if grown:
            self.rule_head = nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "gate"):
            x = x + self.gate(x)
        thought = self.norm(self.body(x))
        answer = self.head(thought).square().mean()
        return answer + self.rule_head(thought).square().mean() if hasattr(self, "rule_head") else answer


class Lion(torch.optim.Optimizer):
    """Lion as lion_pytorch has it: one moment per parameter, steps by its sign (arXiv 2302.06675)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                moment = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((moment * group["betas"][0] + p.grad * (1 - group["betas"][0])).sign(), alpha=-group["lr"])
                moment.mul_(group["betas"][1]).add_(p.grad, alpha=1 - group["betas"][1])


OPTIMIZERS = {
    "adamw": lambda params, **more: torch.optim.AdamW(params, **{"lr": 0.01, **more}),
    "sgd": lambda params, **more: torch.optim.SGD(params, **{"lr": 0.01, "momentum": 0.9, **more}),
    "lion": lambda params, **more: Lion(params, **{"lr": 0.001, **more}),
}


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, schedule: Any = None, steps: int = 1) -> list[float]:
    """Do optimizer steps on random numbers; return the losses."""
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(6, 4))
        for one in optimizers:
            one.zero_grad()
        loss.backward()
        for one in optimizers:
            one.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return losses


def moments(model: nn.Module, *optimizers: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return a copy of every parameter's optimizer state by name."""
    states: dict[Any, Any] = {}
    for one in optimizers:
        states |= dict(one.state)
    return {
        name: {key: value.clone() for key, value in states[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in model.named_parameters()
        if parameter in states
    }


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    return compare_values(one, other).is_equal


def write_plan(folder: Path, checkpoint: Path | None, step: int | None = 4, **fields: Any) -> Path:
    """Write a plan that loads everything, with other decisions in the place of some.

    Args:
        fields: a component's name (dots as two underscores) -> action, or a field of the plan -> value.
    """
    named = {key.replace("__", "."): value for key, value in fields.items()}
    components = {name: {"action": "load", "why": ""} for name in KEYS}
    for name in ("scheduler", "scaler", "ema", "swa", "data_position"):
        components[name] = {"action": "absent", "why": "not in the checkpoint"}
    for name in [key for key in named if key.partition(".")[0] in KEYS]:
        components[name] = {"action": named.pop(name), "why": "the plan's reason"}
    plan = {
        "version": 1, "step": step, "checkpoint": {"path": str(checkpoint)} if checkpoint else None,
        "components": components, "new_params": "module", "lr_scale": {"factor": 1.0, "ramp": None}, **named,
    }  # fmt: skip
    path = folder / "resume_plan.json"
    path.write_text(json.dumps(plan))
    return path
