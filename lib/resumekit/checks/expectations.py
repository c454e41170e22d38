"""What a resumed run is expected to do: from its plan, and from the journal of the run that its checkpoint comes from.

Reads resume_plan.json and, of that journal, only the steps around the checkpoint, whatever its length.
Try it: `bin/resume.sh EXP-01 --detach`, then the `check` events in the new run's journal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from ..base import journal
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from ..base.terms import ABSENT, LOAD, RESET
from ..base.values import amount, count, mapping, number, seconds, text
from ..policy import plan_file
from ..policy.lr_scale import LrScale
from ..policy.plan_file import CONFIG, RECOVERY, PlanFile, PlannedRate
from ..run.run_folder import Run, open_run
from ..run.run_table import RunTable
from ..run.state_types import WAITING_PHASES

# Steps that the parent told, and that are looked at, on either side of the checkpoint.
STEPS_AROUND = 64
# A step's event is some 200 bytes; evaluations and heartbeats stand between them.
BYTES_AROUND = 256 * 1024
# So many tellings later at most a checkpoint is seen that was written meanwhile, or as many as the run has made.
SEEN_LATER = 20
HEAD_BYTES = 256 * 1024
# A change of these moves the speed, so that it can't be compared.
_SPEED_KEYS = ("training.", "model.", "data.", "optimizer.name", "ema.", "swa.", "trainer.", "world_size")

# A change of these, and of no other key, leaves every number of the next steps as it was.
_NEUTRAL_KEYS = (
    "experiment.", "checkpoint.", "status.", "abort.", "recover.", "notify.", "paths.", "resume.",
    "trainer.log_patterns.", "trainer.log_format", "trainer.metrics_file", "trainer.describe_args",
    "trainer.schedule_with_kit", "training.log_every",
)  # fmt: skip

# Components without which the next steps draw other data or other random numbers, in words.
MAKES_THE_NUMBERS = {"data_position": "data position (data_state)", "rng": "random number generators (rng_state)"}


# The key that a user changes the rate by.
_BASE_LR = "optimizer.lr"


class ToldRate(NamedTuple):
    """A learning rate as a run told it, and by how much its printed digits may be off; 0.0 where that is no matter."""

    value: float
    within: float = 0.0

    def times(self, factor: float) -> ToldRate:
        return ToldRate(self.value * factor, self.within * factor)


class Expected(NamedTuple):
    """What is expected.

    Args:
        step: optimizer steps done in the checkpoint; 0 where the counters begin anew.
        phase: of the schedule in the next step; None where it cannot be known.
        rates: per base learning rate the values in the next steps.
        losses: step -> loss in the parent: of the steps told last before the checkpoint, and first after it.
        seconds: of each of the parent's steps before the checkpoint.
        fingerprint: of the parent's data.
        incomparable: why the next steps can't do what the parent's did: what was changed; '' where nothing was.
        unrestored: what of the next steps' numbers the checkpoint does not hold, as far as the kit can see; '' where
            it holds all of it, and each loss is to be the parent's.
        speed_differs: why the speed can't be compared; '' where it can.
        data_differs: the plan has a change of the data.
        unscaled: `rates` as the schedule gives them, where the plan scales them behind it.
        checkpoint: the planned file; None where the plan does not say.
        loads_with_kit: the trainer loads it with the kit's helpers.
        is_exact: a replay is one bit for bit: the same machine, without a GPU, and nothing changed on it.
        counts_from_0: the root run's trainer called its first step 0; None where that is not known.
        is_counted: the parent counts its steps as its checkpoints do; None where that is not known. One that counts
            anew in each epoch does not.
        widest: how far apart the steps are at most that the parent told.
        scale: what the plan multiplies the schedule's rate by in the next step; None where it does not say.
        actions: component -> what the plan does with it.
        replayed_rates: step -> rate, of steps that the parent told after the checkpoint, cut as the argument is; where
            the schedule is the trainer's own, and nothing that shapes it has changed.
        rates_before: step -> rate, of steps that the parent told after the checkpoint, where a user has changed the
            base rate of a trainer that goes by its own schedule; none otherwise.
        handed_factor: what the rate that the trainer is handed as an argument was multiplied by since the parent.
    """

    step: int
    phase: str | None = None
    rates: tuple[tuple[float, ...], ...] = ()
    losses: dict[int, float] = {}  # noqa: RUF012 (never changed)
    seconds: tuple[float, ...] = ()
    fingerprint: str | None = None
    incomparable: str = ""
    unrestored: str = ""
    speed_differs: str = ""
    data_differs: bool = False
    unscaled: tuple[tuple[float, ...], ...] = ()
    checkpoint: str | None = None
    loads_with_kit: bool = False
    is_exact: bool = False
    counts_from_0: bool | None = None
    is_counted: bool | None = None
    widest: int = 1
    scale: float | None = None
    actions: dict[str, str] = {}  # noqa: RUF012 (never changed)
    replayed_rates: dict[int, ToldRate] = {}  # noqa: RUF012 (never changed)
    rates_before: dict[int, ToldRate] = {}  # noqa: RUF012 (never changed)
    handed_factor: float = 1.0


def read(run: Run) -> Expected | None:
    """Return what is expected of a run; None for one that was not resumed, or whose plan can't be read."""
    try:
        plan = plan_file.read(run.paths.resume_plan)
    except (UnreadableFile, ValueError):
        return None
    if plan.step is None:
        return None
    is_anew = plan.action("counters") == RESET
    parent = _holder(run, plan)
    around = _around(parent.paths.journal, plan.step, parent.parent_step or 0) if parent else _Around()
    planned = [one for one in plan.rates if one.after]
    # What a recovery leaves out itself is no change of the data.
    of_config = [one.key for one in plan.changes if one.origin != RECOVERY]
    slower = next((key for key in of_config if key.startswith(_SPEED_KEYS)), "")
    loads_with_kit = run.setting("trainer", "loads_with_kit") is True
    is_same_host = parent is not None and _same_host(parent, run)
    scale = plan.lr_scale or LrScale()
    return Expected(
        step=0 if is_anew else plan.step,
        phase=plan.phase,
        rates=tuple(one.after for one in planned),
        losses=around.losses,
        seconds=around.seconds,
        fingerprint=_fingerprint(parent.paths.journal) if parent else None,
        incomparable=_incomparable(plan),
        unrestored=_unrestored(plan, loads_with_kit=loads_with_kit),
        speed_differs=f"{slower} changed" if slower else "" if is_same_host else "another host or no parent",
        data_differs=any(key.startswith("data.") for key in of_config),
        unscaled=() if plan.handed else _unscaled(planned, plan.step, scale),
        checkpoint=plan.checkpoint,
        loads_with_kit=loads_with_kit,
        is_exact=parent is not None and is_same_host and _driver(run) is None and _driver(parent) is None,
        counts_from_0=_counts_from_0(run),
        is_counted=around.is_counted,
        widest=around.widest,
        scale=None if is_anew or plan.lr_scale is None else scale(plan.step),
        actions={name: one.action for name, one in plan.components.items()},
        replayed_rates={} if planned else _replayed_rates(plan, around.rates),
        rates_before={} if planned or plan.handed or _BASE_LR not in of_config else around.rates,
        handed_factor=_handed_factor(plan) or 1.0,
    )


def _handed_factor(plan: PlanFile) -> float | None:
    """Return what the rate that is handed over is multiplied by; None where none is, or the one before is not known."""
    return plan.handed.lr / plan.handed.before if plan.handed and plan.handed.before else None


def _replayed_rates(plan: PlanFile, told: dict[int, ToldRate]) -> dict[int, ToldRate]:
    """Return the parent's rates of the steps that are done again, multiplied as the rate that is handed over."""
    factor = _handed_factor(plan)
    if factor is None or any(one.origin == CONFIG and _is_telling(one.key) for one in plan.changes):
        return {}
    return {step: rate.times(factor) for step, rate in told.items()}


def _is_telling(key: str) -> bool:
    return not key.startswith(_NEUTRAL_KEYS)


def _unscaled(planned: list[PlannedRate], step: int, scale: LrScale) -> tuple[tuple[float, ...], ...]:
    """Return the rates without the plan's scale, but for those that it leaves as they are."""
    result = []
    for one in planned:
        factors = [scale(step + index, one.optimizer) for index in range(len(one.after))]
        if all(factors) and any(factor != 1.0 for factor in factors):
            result.append(tuple(rate / factor for rate, factor in zip(one.after, factors, strict=True)))
    return tuple(result)


def _incomparable(plan: PlanFile) -> str:
    """Return what was changed that could touch a number of the next steps; '' where nothing was."""
    for one in plan.changes:
        if _is_telling(one.key):
            return f"{one.key} was changed"
    other = next((name for name, one in plan.components.items() if one.action not in (LOAD, ABSENT)), None)
    return "" if other is None else f"the plan says {other}: {plan.action(other)}"


def _unrestored(plan: PlanFile, *, loads_with_kit: bool) -> str:
    """Return what the checkpoint does not hold of what makes the next steps' numbers; '' where it holds that."""
    missing = [words for name, words in MAKES_THE_NUMBERS.items() if plan.action(name) != LOAD]
    if not missing:
        return ""
    where = "" if loads_with_kit else " under a name that the kit knows"
    return f"the checkpoint holds no {' and no '.join(missing)}{where}"


def _holder(run: Run, plan: PlanFile) -> Run | None:
    """Return the run that the checkpoint lies in, beside this one."""
    folder = run.paths.run_dir.parent / plan.holder if plan.holder and "/" not in plan.holder else None
    return open_run(folder) if folder and folder.is_dir() else None


def _same_host(parent: Run, run: Run) -> bool:
    return parent.record.get("host") is not None and parent.record.get("host") == run.record.get("host")


def _driver(run: Run) -> Any:
    return mapping(run.record.get("versions")).get("driver")


class _Around(NamedTuple):
    """What a parent told around the checkpoint.

    Losses by step, the rates of the steps after it, seconds of each step up to it, and how it counted.
    """

    losses: dict[int, float] = {}  # noqa: RUF012 (never changed)
    seconds: tuple[float, ...] = ()
    is_counted: bool | None = None
    widest: int = 1
    rates: dict[int, ToldRate] = {}  # noqa: RUF012 (never changed)


def _around(path: Path, step: int, begun: int) -> _Around:
    """Read what a journal tells around `step`; waiting phases are left out of the seconds.

    Args:
        begun: the step that the run itself began from.
    """
    before: dict[int, float] = {}
    after: dict[int, float] = {}
    rates: dict[int, ToldRate] = {}
    taken: list[float] = []
    last: tuple[int, float] | None = None
    events = list(_events_around(path, step))
    for event in events:
        at, mono_s, loss = count(event.get("step")), seconds(event.get("mono_s")), number(event.get("loss"))
        rate = number(event.get("lr"))
        if event["event"] == "phase" and text(event.get("phase")) in WAITING_PHASES:
            last = None
        if event["event"] != "step" or at is None or mono_s is None:
            continue
        if loss is not None:
            (before if at <= step else after)[at] = float(loss)
        if rate is not None and at > step:
            rates[at] = ToldRate(float(rate), amount(event.get("lr_within")) or 0.0)
        if last and at > last[0] and mono_s >= last[1] and step - STEPS_AROUND < at <= step:
            taken.append((mono_s - last[1]) / (at - last[0]))
        last = (at, mono_s)
    near = [*sorted(before)[-STEPS_AROUND - 1 :], *sorted(after)[:STEPS_AROUND]]
    told = {at: rates[at] for at in sorted(rates)[:STEPS_AROUND]}
    return _Around({at: (before | after)[at] for at in near}, tuple(taken), *_count(events, step, begun), rates=told)


def _count(events: list[dict[str, Any]], step: int, begun: int) -> tuple[bool | None, int]:
    """Return whether a run counts its steps as its checkpoints do, and how far apart they are told at most.

    It does where the checkpoint of `step` steps appears as the steps told have come to there: a trainer may count anew
    in each epoch, or name its checkpoints by the epoch. None where the events hold no such checkpoint or too few steps.
    """
    told = _steps_of(events)
    ways = [later - earlier for earlier, later in pairwise(told)]
    widest = max([1, *ways])
    if not ways:
        return None, widest
    if min(ways) < 0 or told[0] < begun:
        return False, widest
    saved = next(
        (at for at, one in enumerate(events) if one["event"] == "checkpoint" and one.get("step") == step), None
    )
    so_far = _steps_of(events[:saved])
    if saved is None or not so_far:
        return None, widest
    # A file that a trainer writes by itself is seen a second later, or when the run has ended.
    return step - widest <= so_far[-1] <= step + max(SEEN_LATER * widest, step - begun), widest


def _events_around(path: Path, step: int) -> Iterator[dict[str, Any]]:
    """Yield the events of the part of a journal where `step` stands: found by halving, not by reading it all."""
    try:
        low, high = 0, os.stat(path).st_size
    except OSError:
        return
    end = high
    while high - low > BYTES_AROUND:
        middle = (low + high) // 2
        found = _first_step(path, middle, high)
        low, high = (middle, high) if found is not None and found < step else (low, middle)
    start = max(0, low - BYTES_AROUND)
    for event, offset in journal.read(path, start):
        yield event
        if offset > min(end, high + BYTES_AROUND):
            return


def _step_of(event: dict[str, Any]) -> int | None:
    return count(event.get("step")) if event["event"] == "step" else None


def _steps_of(events: list[dict[str, Any]]) -> list[int]:
    return [step for event in events if (step := _step_of(event)) is not None]


def _first_step(path: Path, offset: int, until: int) -> int | None:
    for event, place in journal.read(path, offset):
        if (step := _step_of(event)) is not None:
            return step
        if place > until:
            return None
    return None


def _counts_from_0(run: Run) -> bool | None:
    """Return whether the first step that the root run told is 0; None where that run, or a step of it, is not there.

    A trainer that calls its first step 0 calls the one after a checkpoint of N steps N.
    """
    root, _ = RunTable(run.paths.run_dir.parent).history(run)[-1]
    if not root.is_ours or root.record.get("checkpoint") is not None:
        return None
    first = _first_step(root.paths.journal, 0, HEAD_BYTES)
    return None if first is None else first == 0


def _fingerprint(path: Path) -> str | None:
    for event, offset in journal.read(path):
        if event["event"] == "data" and isinstance(fingerprint := event.get("fingerprint"), str):
            return fingerprint
        if offset > HEAD_BYTES:
            return None
    return None
