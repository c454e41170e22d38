"""What a resumed run will look like: its learning rates as a function of the step, its totals, and what is worth a
warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..base.imports import Any, NamedTuple
from ..base.terminal import duration
from ..base.terms import LOAD, REFIT, RESET
from ..base.values import count, finite
from ..config import config
from ..config.rules import SCHEDULES, base_rates
from ..config.schema import Schema
from ..policy.lr_scale import LrScale
from ..run import status
from .choice import Choice
from .plan_rules import Component


def schedule_factor(name: str, step: int, *, warmup_steps: int, max_steps: int, min_lr_ratio: float) -> float:
    """Return the share of the base learning rate, 0 to 1.

    Args:
        name: one of SCHEDULES.
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


def schedule_of_config(resolved: dict[str, Any]) -> Callable[[int], float] | None:
    """Return the function that a config describes.

    None where it cannot be known: the trainer does not take its learning rate from here
    (`trainer.schedule_with_kit` is not set), or the schedule is one of its own.
    """
    name = config.get(resolved, "schedule.name")
    if not config.get(resolved, "trainer.schedule_with_kit") or name not in SCHEDULES or _has_cycle(resolved):
        return None
    warmup, ratio = config.get(resolved, "schedule.warmup_steps", 0), config.get(resolved, "schedule.min_lr_ratio", 0.0)
    max_steps = config.get(resolved, "training.max_steps")
    if count(max_steps) is None:
        return None
    return lambda step: schedule_factor(name, step, warmup_steps=warmup, max_steps=max_steps, min_lr_ratio=ratio)


def phase_of(resolved: dict[str, Any], step: int) -> str | None:
    """Return the phase of the schedule in the step that follows `step` completed ones; None where it cannot be known.

    'warmup', then the schedule's name; 'floor' where it has come to its end.
    """
    if schedule_of_config(resolved) is None:
        return None
    if step < config.get(resolved, "schedule.warmup_steps", 0):
        return "warmup"
    name = config.get(resolved, "schedule.name")
    return "floor" if name != "constant" and step >= config.get(resolved, "training.max_steps") else name


def optimizer_of(key: str, schema: Schema) -> str | None:
    """Return the name of the optimizer whose rate a key is: `x-base-lr` says it; None for that of `optimizer.name`."""
    name = schema.leaves[key]["x-base-lr"]
    return name if isinstance(name, str) else None


def _has_cycle(resolved: dict[str, Any]) -> bool:
    """SWA's small cycle begins where the evaluations say, which only the trainer knows."""
    return bool(config.get(resolved, "swa.enabled")) or config.get(resolved, "schedule.tail") is not None


# What a resumed run will look like: its next learning rates, its totals, and what is worth a warning beforehand.
#
# Computed from the two configs, the checkpoint's manifest and the parent's status. Pure but for that status. Try
# it: `bin/resume.sh EXP-01 --set training.batch_size=16 --dry-run`

STEPS_SHOWN = 3
# A last evaluation older than this many of its own intervals says little about the checkpoint.
OLD_EVAL_INTERVALS = 2
# The best so far this many full evaluations back: training has not got better for long.
FAR_BEST_INTERVALS = 5


class Rate(NamedTuple):
    """One base learning rate in the next steps.

    Args:
        key: of the config, 'optimizer.lr'.
        first_step: the number of the first of these steps.
        base: its value from here on, before the schedule.
        before: as the run of the checkpoint would have gone on; None where it cannot be known.
        after: as the plan goes on; None where it cannot be known.
        optimizer: the name of the optimizer whose rate it is, of several; None for that of `optimizer.name`.
    """

    key: str
    first_step: int
    base: float
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None
    optimizer: str | None = None


class Forecast(NamedTuple):
    """Where the schedule stands (None: only the trainer knows), learning rates; totals and warnings as sentences."""

    place: int | None
    rates: tuple[Rate, ...]
    totals: tuple[str, ...]
    warnings: tuple[str, ...]


def of(
    choice: Choice, schema: Schema, inherited: LrScale, scale: LrScale, components: Sequence[Component] = ()
) -> Forecast:
    """Return the forecast of a resume.

    Args:
        schema: says which keys are base learning rates.
        inherited: what the rates were multiplied by in the checkpoint.
        scale: what they are multiplied by from here on.
        components: what is done with each; a schedule that is reset begins anew.
    """
    parent, base = (run.config if run and run.config else choice.config for run in (choice.parent, choice.base))
    seen = status.current(choice.parent) if choice.parent and choice.parent.is_ours else {}
    actions = {one.name: one.action for one in components}
    place = _place(choice, actions)
    return Forecast(
        place,
        _rates(choice, base, schema, inherited, scale, actions, place),
        _totals(choice, base, _speed(parent, seen.get("steps_per_sec"))),
        tuple(_warnings(choice, seen)),
    )


def _rates(
    choice: Choice, base: dict[str, Any], schema: Schema, inherited: LrScale, scale: LrScale,
    actions: dict[str, str], place: int | None,
) -> tuple[Rate, ...]:  # fmt: skip
    first = choice.step or 0
    start = _first_step(choice, actions)
    before, after = schedule_of_config(base), schedule_of_config(choice.config)
    if _has_a_place_of_its_own(choice):
        before = None
    if place is None:
        place, after = start, None
    was, now = base_rates(base, schema), base_rates(choice.config, schema)

    owner = {key: optimizer_of(key, schema) for key in now}

    def ahead(key: str, peak: float | None, shape: Any, factor: LrScale, at: int, step: int) -> Any:
        if peak is None or shape is None:
            return None
        return tuple(peak * shape(at + more) * factor(step + more, owner[key]) for more in range(STEPS_SHOWN))

    return tuple(
        Rate(
            key=key, first_step=start + 1, base=now[key],
            before=ahead(key, was.get(key), before, inherited, first, first),
            after=ahead(key, now[key], after, scale, place, start), optimizer=owner[key],
        )
        for key in now
    )  # fmt: skip


def _first_step(choice: Choice, actions: dict[str, str]) -> int:
    """Return how many steps the run will have done at its beginning."""
    return 0 if actions.get("counters") == RESET else choice.step or 0


def _place(choice: Choice, actions: dict[str, str]) -> int | None:
    """Return how many steps the schedule will have done: as many, unless one of the two begins anew."""
    action = actions.get("scheduler", LOAD)
    if action in (RESET, REFIT):
        return 0 if action == RESET else _first_step(choice, actions)
    return None if _has_a_place_of_its_own(choice) else choice.step or 0


def _has_a_place_of_its_own(choice: Choice) -> bool:
    """Whether schedule and step began anew one without the other, in the run of the checkpoint or before it.

    Then only the trainer knows where the schedule stands. A policy holds for the one resume that it was given for.
    """
    if (holder := choice.holder) is None:
        return False
    policies = [config.get(run.config or {}, "resume", {}) for run, _ in choice.table.history(holder)]
    return any("reset" in (own.get("scheduler"), own.get("counters")) for own in policies)


def _speed(parent: dict[str, Any], steps_per_sec: float | None) -> float | None:
    """Return the examples per second of the run that goes on; None where that is not known."""
    examples = _examples(parent)
    return steps_per_sec * examples if steps_per_sec and examples else None


def _totals(choice: Choice, base: dict[str, Any], speed: float | None) -> tuple[str, ...]:
    keys = ("training.max_steps", "training.batch_size", "training.grad_accum_steps")
    if not any(change.key in keys for change in choice.changed):
        return ()
    step, max_steps = choice.step or 0, config.get(choice.config, "training.max_steps")
    was, now = _examples(base), _examples(choice.config)
    said = []
    if was and now and was != now:
        said.append(f"{now:,} examples in a step instead of {was:,}; {step * was:,} seen so far")
    if max_steps:
        left = max(0, max_steps - step)
        seen = f", {step * was + left * now:,} examples in all" if was and now else ""
        said.append(f"{left:,} steps left to {max_steps:,}{seen}")
        if speed and now:
            said.append(f"about {duration(left * now / speed)} at the parent's {speed:.3g} examples/s")
    return tuple(said)


def _examples(resolved: dict[str, Any]) -> int | None:
    batch = config.get(resolved, "training.batch_size")
    accumulation = config.get(resolved, "training.grad_accum_steps", 1)
    return None if count(batch) is None or count(accumulation) is None else batch * accumulation


def _warnings(choice: Choice, seen: dict[str, Any]) -> list[str]:
    resolved, step = choice.config, choice.step or 0
    said = []
    max_steps, ratio = config.get(resolved, "training.max_steps"), config.get(resolved, "schedule.min_lr_ratio")
    if count(max_steps) is not None and step >= max_steps:
        said.append(f"the schedule is exhausted: step {step} of {max_steps}; --set training.max_steps=N goes on")
    elif (shape := schedule_of_config(resolved)) and finite(ratio) is not None and shape(step) <= ratio * 1.01:
        said.append(f"the learning rate is at its floor already: {shape(step):.3g} of its peak")
    if config.get(resolved, "trainer.extra_args") and schedule_of_config(resolved):
        said.append("the trainer has arguments of its own (trainer.extra_args): they may change what is foretold here")
    known = choice.chosen.known
    every = config.get(resolved, "validation.fast_eval_every")
    last = known.last_fast_eval["step"] if known and known.last_fast_eval else None
    if count(every) is not None and last is not None and step - last > OLD_EVAL_INTERVALS * every:
        said.append(f"the last fast eval is {step - last:,} steps old (step {last})")
    full, best = count(config.get(resolved, "validation.full_eval_every")), count(seen.get("best_step"))
    if full is not None and best is not None and step - best > FAR_BEST_INTERVALS * full:
        said.append(f"the best so far lies {step - best:,} steps back (step {best})")
    return said
