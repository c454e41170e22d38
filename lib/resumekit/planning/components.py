"""What a resume does with each component of a checkpoint, and why: the policy of protocol §1, applied to one case.

Three voices, the later one wins: what the checkpoint holds, what the changed keys cost (the schema's `x-on-resume`),
and what the person wrote under `resume:`. Pure: reads nothing.
Try it: `bin/resume.sh EXP-01 --set optimizer.lr=5e-4 --dry-run`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..basics.actions import ABSENT, FRESH, KEEPS_LESS, KEYS, LOAD, PARTIAL, REFIT, SWAP
from ..configuration import config
from ..configuration.changes import Change
from ..proving import optimizer_names
from ..proving.optimizer_names import plain_name

_NOT_HELD = "not in the checkpoint: as newly made, where it is used"
_NOT_OURS = "under a name of the trainer's own, if at all: not the kit's to load"


class Component(NamedTuple):
    """What is done with one component.

    Args:
        name: a name of KEYS; with several optimizers 'optimizer.<name>' for each.
        action: one of basics/actions.
        why: in a few words; empty where it is simply loaded.
    """

    name: str
    action: str
    why: str


class Held(NamedTuple):
    """What a checkpoint holds, as far as the plan needs it.

    Args:
        components: the names of KEYS that are in it with a value.
        optimizers: name -> class in lower case, None where it does not say; the name is '' for a single one.
    """

    components: frozenset[str]
    optimizers: dict[str, str | None]


class Optimizers(NamedTuple):
    """Names as `optimizer.name` spells them: the one that the checkpoint's own run trained with, and the one wanted."""

    before: str | None
    wanted: str | None


def held_by(keys: Iterable[str], counters: dict[str, Any], optimizers: Iterable[str]) -> Held:
    """Return what a checkpoint holds.

    Args:
        keys: the names at its top level.
        counters: its plain values, None among them: a component that is None is absent.
        optimizers: the names of its optimizers, '' for a single one.
    """
    there = {key for key in keys if key not in counters or counters[key] is not None}
    present = frozenset(name for name, own in KEYS.items() if not there.isdisjoint(own))
    kinds = optimizer_names.read(counters.get("optimizer_name"), optimizers)
    return Held(present, {name: kind and plain_name(kind) for name, kind in kinds.items()})


def optimizer_at(resolved: dict[str, Any], start_step: int) -> str | None:
    """Return the optimizer of a run that starts at `start_step`: past `optimizer.swap_at` it is `swap_to`.

    A swap happens at a resume only: a run that trains past swap_at keeps what it started with.

    Source: protocol §6.
    """
    swap_at = config.get(resolved, "optimizer.swap_at")
    is_past = swap_at is not None and start_step >= swap_at
    return config.get(resolved, "optimizer.swap_to" if is_past else "optimizer.name")


def decide(
    held: Held, changed: Sequence[Change], optimizers: Optimizers, policies: dict[str, Any]
) -> tuple[Component, ...]:
    """Decide for every component.

    Args:
        held: what the checkpoint holds.
        changed: what differs from the parent, in config and environment.
        optimizers: the one that it was trained with, and the wanted one.
        policies: the `resume` section of the new config: component -> 'auto' or an action.

    Returns:
        One per component, in the order of KEYS; one per optimizer where there are several.

    Source: protocol §1, §2.
    """
    found: list[Component] = []
    for name in KEYS:
        if name == "optimizer" and "" not in held.optimizers and held.optimizers:
            found += [
                _decide(f"{name}.{own}", held, changed, policies, _swap(held.optimizers[own], optimizers, False))
                for own in held.optimizers
            ]
        else:
            swap = _swap(held.optimizers.get(""), optimizers, True) if name == "optimizer" else ""
            found.append(_decide(name, held, changed, policies, swap))
    return tuple(_follow(one, found) for one in found)


def of_its_own(found: Sequence[Component]) -> tuple[Component, ...]:
    """Return what was decided about a checkpoint whose trainer loads by itself, with the weights under its own name."""
    return tuple(one._replace(why=_NOT_OURS) if one.why == _NOT_HELD else one for one in found)


def _decide(name: str, held: Held, changed: Sequence[Change], policies: dict[str, Any], swap: str) -> Component:
    kind = name.partition(".")[0]
    action, why = LOAD, ""
    if kind not in held.components:
        action, why = ABSENT, _NOT_HELD
    for change in changed:
        wanted = change.actions.get(kind, LOAD)
        if wanted == SWAP:
            continue  # whether there is one, the checkpoint says
        if wanted == FRESH or (action != ABSENT and KEEPS_LESS.index(wanted) > KEEPS_LESS.index(action)):
            action, why = wanted, _because(change)
        elif wanted == action != LOAD and wanted != ABSENT:
            why = f"{why}; {_because(change)}"
    if swap and action != ABSENT:
        action, why = SWAP, swap
    policy = policies.get(kind, "auto")
    if policy == "auto" or (action == ABSENT and policy == LOAD):
        return Component(name, action, why)
    if policy == action:
        return Component(name, action, why or f"resume.{kind} is '{policy}'")
    instead = f" (without it: {action})" if action != LOAD else ""
    return Component(name, policy, f"resume.{kind} is '{policy}'{instead}")


def _follow(one: Component, found: Sequence[Component]) -> Component:
    """Return a loaded component as what it depends on asks for it: a schedule on its optimizer, averages on weights."""
    if one.action != LOAD or one.why:
        return one
    if one.name == "scheduler" and any(other.action == SWAP for other in found):
        # The old schedule's state has nothing to stand on: it is evaluated anew at the kept step.
        return Component(one.name, REFIT, "the optimizer is swapped; the schedule keeps its phase")
    if one.name in ("ema", "swa") and found[0].action == PARTIAL:
        return Component(one.name, PARTIAL, "as the weights; what is new in them starts from them")
    return one


def _swap(held: str | None, optimizers: Optimizers, is_only: bool) -> str:
    """Return why this optimizer is swapped, '' if it is not.

    Of several optimizers only the one is swapped that `optimizer.name` was about. What the checkpoint holds decides,
    so that a swap happens once: a later resume finds the new optimizer's state in it.
    """
    wanted = optimizers.wanted
    before = optimizers.before or held
    if wanted is None or before is None or held == plain_name(wanted) or plain_name(before) == plain_name(wanted):
        return ""
    if not is_only and held != plain_name(before):
        return ""
    return f"the checkpoint holds {before}, whose state is left out; {wanted} starts anew"


def _because(change: Change) -> str:
    return f"{change.key}: {show(change.old)} -> {show(change.new)}"


def show(value: Any) -> str:
    """Return a config value in the form of a config file, short enough for a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value) or '""'
    return text if len(text) <= 40 else f"{text[:37]}..."
