"""What a resumed run will look like: its next learning rates, its totals, and what is worth a warning beforehand.

Computed from the two configs, the checkpoint's manifest and the parent's status. Pure but for that status.
Try it: `bin/resume.sh EXP-01 --set training.batch_size=16 --dry-run`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..basics.actions import LOAD, REFIT, RESET
from ..basics.lr_scale import LrScale
from ..basics.terminal import duration
from ..configuration import config
from ..configuration.schema import Schema
from ..run_folder import status
from . import schedules
from .choice import Choice
from .components import Component
from .heads import holder_of

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
    """

    key: str
    first_step: int
    base: float
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None


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
    before, after = schedules.of_config(base), schedules.of_config(choice.config)
    if _has_a_place_of_its_own(choice):
        before = None
    if place is None:
        place, after = start, None
    was, now = schedules.base_rates(base, schema), schedules.base_rates(choice.config, schema)

    def ahead(peak: float | None, shape: Any, factor: LrScale, at: int, step: int) -> tuple[float, ...] | None:
        if peak is None or shape is None:
            return None
        return tuple(peak * shape(at + more) * factor(step + more) for more in range(STEPS_SHOWN))

    return tuple(
        Rate(
            key, start + 1, now[key], ahead(was.get(key), before, inherited, first, first),
            ahead(now[key], after, scale, place, start),
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
    if choice.parent is None:
        return False
    history = choice.table.history(holder_of(choice.candidate, choice.parent, choice.table))
    policies = [config.get(run.config or {}, "resume", {}) for run, _ in history]
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
    return batch * accumulation if type(batch) is int and type(accumulation) is int else None


def _warnings(choice: Choice, seen: dict[str, Any]) -> list[str]:
    resolved, step = choice.config, choice.step or 0
    said = []
    max_steps, ratio = config.get(resolved, "training.max_steps"), config.get(resolved, "schedule.min_lr_ratio")
    if type(max_steps) is int and step >= max_steps:
        said.append(f"the schedule is exhausted: step {step} of {max_steps}; --set training.max_steps=N goes on")
    elif (shape := schedules.of_config(resolved)) and isinstance(ratio, (int, float)) and shape(step) <= ratio * 1.01:
        said.append(f"the learning rate is at its floor already: {shape(step):.3g} of its peak")
    if config.get(resolved, "trainer.extra_args") and schedules.of_config(resolved):
        said.append("the trainer has arguments of its own (trainer.extra_args): they may change what is foretold here")
    known = choice.candidate.known
    every = config.get(resolved, "validation.fast_eval_every")
    last = known.last_fast_eval["step"] if known and known.last_fast_eval else None
    if type(every) is int and last is not None and step - last > OLD_EVAL_INTERVALS * every:
        said.append(f"the last fast eval is {step - last:,} steps old (step {last})")
    full, best = config.get(resolved, "validation.full_eval_every"), seen.get("best_step")
    if type(full) is int and type(best) is int and step - best > FAR_BEST_INTERVALS * full:
        said.append(f"the best so far lies {step - best:,} steps back (step {best})")
    return said
