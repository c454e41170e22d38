"""What a resumed run is expected to do: from its plan, and from the journal of the run that its checkpoint comes from.

Reads resume_plan.json and, of that journal, only the steps around the checkpoint, whatever its length.
Try it: `bin/resume.sh EXP-01 --detach`, then the `check` events in the new run's journal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..basics import journal, lr_scale
from ..basics.files import UnreadableFile, read_json
from ..run_folder.event_values import number, seconds, text
from ..run_folder.runs import Run, open_run
from ..run_folder.state_types import WAITING_PHASES

MAX_PLAN_BYTES = 4 << 20
# Steps of the parent that are looked at on either side of the checkpoint.
STEPS_AROUND = 64
# A step's event is some 200 bytes; evaluations and heartbeats stand between them.
BYTES_AROUND = 256 * 1024
HEAD_BYTES = 256 * 1024
# A change of these moves the speed, so that it can't be compared.
_SPEED_KEYS = ("training.", "model.", "data.", "optimizer.name", "ema.", "swa.", "trainer.", "world_size")

# A change of these, and of no other key, leaves every number of the next steps as it was.
_NEUTRAL_KEYS = (
    "experiment.", "checkpoint.", "status.", "abort.", "recover.", "notify.", "paths.", "resume.",
    "trainer.log_patterns.", "trainer.describe_args", "trainer.schedule_with_kit", "training.log_every",
)  # fmt: skip


class Expected(NamedTuple):
    """What is expected.

    Args:
        step: optimizer steps done in the checkpoint; 0 where the counters begin anew.
        phase: of the schedule in the next step; None where it cannot be known.
        rates: per base learning rate the values in the next steps.
        losses: step -> loss in the parent, around the checkpoint.
        seconds: of each of the parent's steps before the checkpoint.
        fingerprint: of the parent's data.
        is_replay: the next steps do what the parent's did, number for number: nothing that matters was changed.
        speed_differs: why the speed can't be compared; '' where it can.
        data_differs: the plan has a change of the data.
        unscaled: `rates` as the schedule gives them, where the plan scales them behind it.
        checkpoint: the planned file, resolved; None where the plan does not say.
        loads_with_kit: the trainer loads it with the kit's helpers.
        is_exact: a replay is one bit for bit: the same machine, without a GPU, and nothing changed on it.
    """

    step: int
    phase: str | None = None
    rates: tuple[tuple[float, ...], ...] = ()
    losses: dict[int, float] = {}  # noqa: RUF012 (never changed)
    seconds: tuple[float, ...] = ()
    fingerprint: str | None = None
    is_replay: bool = False
    speed_differs: str = ""
    data_differs: bool = False
    unscaled: tuple[tuple[float, ...], ...] = ()
    checkpoint: str | None = None
    loads_with_kit: bool = False
    is_exact: bool = False


def read(run: Run) -> Expected | None:
    """Return what is expected of a run; None for one that was not resumed, or whose plan can't be read."""
    try:
        plan = read_json(run.paths.resume_plan, MAX_PLAN_BYTES)
    except UnreadableFile:
        return None
    if not isinstance(plan, dict) or type(plan.get("step")) is not int:
        return None
    components = _mapping(plan.get("components"))
    changes = [one for one in _list(plan.get("changes")) if isinstance(one, dict)]
    keys = [str(one.get("key")) for one in changes]
    is_anew = _mapping(components.get("counters")).get("action") == "reset"
    parent = _holder(run, plan)
    losses, seconds = _around(parent.paths.journal, plan["step"]) if parent else ({}, ())
    rates = tuple(tuple(one["after"]) for one in _list(plan.get("learning_rates")) if _is_rate(one))
    path = _mapping(plan.get("checkpoint")).get("path")
    slower = next((key for key in keys if key.startswith(_SPEED_KEYS)), "")
    return Expected(
        0 if is_anew else plan["step"],
        plan.get("phase") if isinstance(plan.get("phase"), str) else None,
        rates,
        losses,
        seconds,
        _fingerprint(parent.paths.journal) if parent else None,
        _is_replay(components, changes),
        f"{slower} changed" if slower else "" if parent and _same_host(parent, run) else "another host or no parent",
        any(key.startswith("data.") for key in keys),
        _unscaled(rates, plan),
        _resolved(path),
        run.setting("trainer", "loads_with_kit") is True,
        parent is not None and _same_host(parent, run) and _driver(run) is None and _driver(parent) is None,
    )


def _resolved(path: Any) -> str | None:
    """Return where a path from a file leads; None for what can be none."""
    try:
        return os.path.realpath(path) if isinstance(path, str) else None
    except ValueError:  # a NUL, or half of a character
        return None


def is_planned(checkpoint: Any, expected: Expected, run: Run) -> bool:
    """Whether a loaded file is the planned one, or a copy inside the run's own folder; no teacher's."""
    found, own = _resolved(checkpoint), os.path.realpath(run.paths.run_dir)
    if expected.checkpoint is None or found is None:
        return True
    return found == expected.checkpoint or found.startswith(os.path.join(own, ""))


def _unscaled(rates: tuple[tuple[float, ...], ...], plan: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Return the rates without the plan's scale; () where it is 1 or is not one."""
    fields = _mapping(plan.get("lr_scale"))
    try:
        scale = lr_scale.from_fields(fields.get("factor"), fields.get("ramp"))
    except ValueError:
        return ()
    factors = [scale(plan["step"] + index) for index in range(max(map(len, rates), default=0))]
    if all(factor == 1.0 for factor in factors) or not all(factors):
        return ()
    return tuple(tuple(rate / factor for rate, factor in zip(one, factors, strict=False)) for one in rates)


def _is_replay(components: dict[str, Any], changes: list[dict[str, Any]]) -> bool:
    """Whether every component is simply loaded and nothing was changed that could touch a number."""
    actions = [_mapping(one).get("action") for one in components.values()]
    restored = all(_mapping(components.get(name)).get("action") == "load" for name in ("rng", "data_position"))
    is_neutral = all(str(one.get("key")).startswith(_NEUTRAL_KEYS) for one in changes)
    return restored and all(action in ("load", "absent") for action in actions) and is_neutral


def _holder(run: Run, plan: dict[str, Any]) -> Run | None:
    """Return the run that the checkpoint lies in, beside this one."""
    run_id = _mapping(plan.get("checkpoint")).get("run_id")
    folder = run.paths.run_dir.parent / run_id if isinstance(run_id, str) and "/" not in run_id else None
    return open_run(folder) if folder and folder.is_dir() else None


def _same_host(parent: Run, run: Run) -> bool:
    return parent.record.get("host") is not None and parent.record.get("host") == run.record.get("host")


def _driver(run: Run) -> Any:
    return _mapping(run.record.get("versions")).get("driver")


def _around(path: Path, step: int) -> tuple[dict[int, float], tuple[float, ...]]:
    """Return (losses by step around `step`, seconds of each step up to it, waiting phases left out)."""
    losses: dict[int, float] = {}
    taken: list[float] = []
    last: tuple[int, float] | None = None
    for event in _events_around(path, step):
        at, mono_s, loss = event.get("step"), seconds(event.get("mono_s")), number(event.get("loss"))
        if event["event"] == "phase" and text(event.get("phase")) in WAITING_PHASES:
            last = None
        if event["event"] != "step" or type(at) is not int or mono_s is None:
            continue
        if abs(at - step) <= STEPS_AROUND and loss is not None:
            losses[at] = float(loss)
        if last and at > last[0] and mono_s >= last[1] and step - STEPS_AROUND < at <= step:
            taken.append((mono_s - last[1]) / (at - last[0]))
        last = (at, mono_s)
    return losses, tuple(taken)


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


def _first_step(path: Path, offset: int, until: int) -> int | None:
    for event, place in journal.read(path, offset):
        if event["event"] == "step" and type(event.get("step")) is int:
            return event["step"]
        if place > until:
            return None
    return None


def _fingerprint(path: Path) -> str | None:
    for event, offset in journal.read(path):
        if event["event"] == "data" and isinstance(event.get("fingerprint"), str):
            return event["fingerprint"]
        if offset > HEAD_BYTES:
            return None
    return None


def _is_rate(one: Any) -> bool:
    after = one.get("after") if isinstance(one, dict) else None
    return isinstance(after, list) and bool(after) and all(_is_finite(value) for value in after)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
