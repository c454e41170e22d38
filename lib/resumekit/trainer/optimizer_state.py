"""The optimizers that a checkpoint holds, their state by parameter name, bit for bit, and a Lion in a trainer's
place for one.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass

from ..base.errors import KitError
from ..base.imports import Any
from ..base.terms import LOAD, PARTIAL, RESET
from ..checkpoint import parameters
from ..checkpoint.parameters import pair_paths
from .sharded_state import class_name

Names = list[list[str | None]]
LION = "lion"


@dataclass(frozen=True)
class SavedOptimizer:
    """One optimizer's state in a checkpoint.

    Args:
        key: its name among several; '' for the only one.
        kind: its class, 'AdamW'; None where the checkpoint does not say.
        state: its state dict.
        names: one list of parameter names per group, None for a parameter that was none of the model's; None where the
            checkpoint does not say.
    """

    key: str
    kind: str | None
    state: dict[str, Any]
    names: Names | None

    @property
    def family(self) -> str | None:
        """'adam', 'lion', ...: by its class, else by what it keeps for a parameter; None where neither tells."""
        if self.kind is not None:
            return parameters.family_of_class(self.kind)
        kept: Any = next(iter(self.state["state"].values()), {}) if is_state(self.state) else {}
        return parameters.family_of_entries(map(str, kept)) if isinstance(kept, dict) and kept else None


def named_optimizers(optimizer: Any) -> dict[str, Any]:
    """Return the trainer's optimizers by name; the name is '' for a single one, and nothing where there is none."""
    if optimizer is None:
        return {}
    return dict(optimizer) if isinstance(optimizer, dict) else {"": optimizer}


def held_optimizers(content: dict[str, Any]) -> dict[str, SavedOptimizer]:
    """Return the optimizers in a checkpoint by name."""
    states = content.get("optimizer_state_dict")
    if not states or not isinstance(states, dict):
        return {}
    several = all(isinstance(one, dict) and "param_groups" in one for one in states.values())
    names = content.get("parameter_names")
    kinds = parameters.read_optimizer_names(content.get("optimizer_name"), map(str, states) if several else [""])
    if not several:
        return {"": SavedOptimizer("", kinds[""], states, _names(names, states))}
    by_key = names if isinstance(names, dict) else {}
    return {
        str(key): SavedOptimizer(str(key), kinds[str(key)], state, _names(by_key.get(key), state))
        for key, state in states.items()
    }


def match_optimizers(content: dict[str, Any], optimizer: Any) -> dict[str, SavedOptimizer | None]:
    """Return for each of the trainer's optimizers the one in the checkpoint that it continues.

    The one of the same name; else, where names were changed, the only one of its class that is left, and at last the
    only one that is left at all (an optimizer that takes over from another one).
    """
    saved, own = held_optimizers(content), named_optimizers(optimizer)
    found: dict[str, SavedOptimizer | None] = {key: saved.get(key) for key in own}
    left = [one for key, one in saved.items() if key not in own]
    for key in [key for key, one in found.items() if one is None]:
        kind = class_name(own[key])
        alike = [one for one in left if one.kind == kind]
        rivals = [other for other in found if found[other] is None and class_name(own[other]) == kind]
        if len(alike) == len(rivals) == 1:
            found[key] = alike[0]
            left.remove(alike[0])
    alone = [key for key, one in found.items() if one is None]
    if len(alone) == len(left) == 1:
        found[alone[0]] = left[0]
    return found


def unwrapped(component: Any) -> Any:
    """Return the optimizers or schedulers that accelerate.prepare has put a wrapper around; anything else as it is."""
    if isinstance(component, dict):
        inner = {name: unwrapped(one) for name, one in component.items()}
        return component if all(inner[name] is one for name, one in component.items()) else inner
    if type(component).__module__.partition(".")[0] != "accelerate":
        return component
    return next((own for name in ("scheduler", "optimizer") if (own := vars(component).get(name))), component)


def is_lion(optimizer: Any) -> bool:
    """Whether it is a Lion, of whatever package."""
    return any("lion" in kind.__name__.lower() for kind in type(optimizer).__mro__)


def is_state(state: Any) -> bool:
    """Whether it has the form of an optimizer's state dict."""
    groups = state.get("param_groups") if isinstance(state, dict) else None
    return (
        isinstance(groups, list)
        and isinstance(state.get("state"), dict)
        and all(isinstance(group, dict) and isinstance(group.get("params"), (list, tuple)) for group in groups)
        and all(isinstance(one, (int, str)) for group in groups for one in group["params"])
        and all(isinstance(one, dict) for key, one in state["state"].items() if isinstance(key, int))
    )


def _names(names: Any, state: dict[str, Any]) -> Names | None:
    """Return one list of names per group if they are of this state; torch itself keeps some as 'param_names'."""
    if not is_state(state):
        return None
    groups = state["param_groups"]
    own = [group.get("param_names") for group in groups]
    for known in (names, own):
        if (
            isinstance(known, list)
            and all(isinstance(one, list) for one in known)
            and [len(one) for one in known] == [len(group["params"]) for group in groups]
            and all(name is None or isinstance(name, str) for one in known for name in one)
        ):
            return known
    return None


# An optimizer's state by parameter name: what a changed model, order or grouping leaves of it, bit for bit.
#
# A state dict of torch's numbers the parameters; a new head in front moves every number. So each kept parameter's
# state is found by its name, and its groups keep the trainer's own hyper-parameters (pytorch/pytorch#156846: a
# loaded state overwrites them). Reads and writes no file.

# What a scheduler writes into an optimizer's groups: it comes with the scheduler's state, or not at all.
SCHEDULE_KEYS = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum"})
CYCLED_KEYS = frozenset({"momentum", "betas"})  # by OneCycleLR and CyclicLR, which leave a 'base_momentum' beside them
# Without names there is only the position; these have their parameter's shape in whatever optimizer.
FULL_SHAPE_KEYS = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})
# How an optimizer computes, not what: a difference is not worth a line.
SILENT_KEYS = frozenset({"foreach", "fused", "capturable", "differentiable", "maximize"})
MAX_SAID = 3


@dataclass(frozen=True)
class Refitted:
    """A state dict for the trainer's optimizer.

    Args:
        state: for its load_state_dict(); None where nothing can be kept.
        action: LOAD, PARTIAL or RESET.
        why: the counts, or the reason.
        differs: what the optimizer trains with, as it is now, and the checkpoint has otherwise.
        has_same_groups: each group is the one that it was, whatever moved between them: a schedule that has one entry
            per group can go on.
        reshaped: how many parameters have another shape than they had.
    """

    state: dict[str, Any] | None
    action: str
    why: str = ""
    differs: str = ""
    has_same_groups: bool = True
    reshaped: int = 0

    @property
    def kept(self) -> dict[str, Any]:
        """The state of one that is loaded. Raises KitError where nothing can be kept."""
        if self.state is None:
            raise KitError(f"nothing of an optimizer's state can be kept: {self.why}")
        return self.state


def fit_state(
    saved: SavedOptimizer, optimizer: Any, names: Names, shapes: dict[str, Any], *, schedule_is_loaded: bool
) -> Refitted:
    """Put a saved state into the order and grouping that the trainer's optimizer has.

    Args:
        saved: the state in the checkpoint.
        optimizer: the trainer's, as newly made, or at its first step; it is not changed.
        names: of its parameters, one list per group.
        shapes: name in the checkpoint -> shape of that weight.
        schedule_is_loaded: take the learning rate and what else a scheduler sets from the checkpoint.
    """
    groups = saved.state["param_groups"]
    before = [number for group in groups for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if saved.names is None:
        if reason := _position_refusal(saved.state, before, optimizer):
            same = len(groups) == len(optimizer.param_groups)
            return Refitted(None, RESET, f"the checkpoint does not name its parameters, and {reason}", "", same)
        numbers: list[Any] = before
    else:
        old_names = [name for group in saved.names for name in group]
        new_names = [name for group in names for name in group]
        numbers = _numbers(old_names, new_names, before)
        old_shapes = {number: shapes.get(name) for number, name in zip(before, old_names, strict=True) if name}
        numbers = [
            number if _has_shape(saved.state, number, old_shapes.get(number), parameter) else _RESHAPED
            for number, parameter in zip(numbers, parameters, strict=True)
        ]
    kept = {new: old for new, old in enumerate(numbers) if old is not None and old is not _RESHAPED}
    moments: dict[Any, Any] = saved.state.get("state", {})
    state = {new: moments[old] for new, old in kept.items() if old in moments}
    # What belongs to no parameter is kept as it is, as torch does.
    foreign: dict[Any, Any] = {key: one for key, one in moments.items() if type(key) is str and key not in before}
    homes = _homes(groups, optimizer, kept)
    new_groups, said = _groups(groups, optimizer, homes, schedule_is_loaded)
    whole = {**saved.state, "state": {**foreign, **state}, "param_groups": new_groups}
    action, why = _outcome(before, numbers, [len(group["params"]) for group in groups], new_groups)
    same, reshaped = homes == list(range(len(groups))), numbers.count(_RESHAPED)
    return Refitted(state=whole, action=action, why=why, differs=said, has_same_groups=same, reshaped=reshaped)


def keep_rates(state: dict[str, Any], optimizer: Any) -> None:
    """Put what a schedule has set in the optimizer meanwhile into a state dict that is about to be loaded into it."""
    for group, live in zip(state["param_groups"], optimizer.param_groups, strict=True):
        group.update({key: live[key] for key in (SCHEDULE_KEYS | CYCLED_KEYS) & live.keys()})


def take_rates(state: dict[str, Any], optimizer: Any) -> None:
    """Put the learning rates of a saved state, and nothing else of it, into an optimizer that has as many groups.

    For one that starts anew under a schedule that goes on: many schedules work from the rate that they find.
    """
    if len(optimizer.param_groups) == len(state["param_groups"]):
        for group, old in zip(optimizer.param_groups, state["param_groups"], strict=True):
            group.update({key: old[key] for key in SCHEDULE_KEYS & old.keys()})


_RESHAPED = object()


def _numbers(old: list[str | None], new: list[str | None], before: list[Any]) -> list[Any]:
    """Return for each of the new names the saved parameter's number, or None; nameless ones go by their order."""
    same = pair_paths([name for name in new if name], [name for name in old if name])
    by_name = {name: number for name, number in zip(old, before, strict=True) if name}
    nameless = [number for name, number in zip(old, before, strict=True) if name is None]
    rest = iter(nameless if len(nameless) == new.count(None) else [])
    return [next(rest, None) if name is None else by_name.get(same.get(name, "")) for name in new]


def _has_shape(state: dict[str, Any], number: Any, shape: Any, parameter: Any) -> bool:
    if number is None:
        return True
    if shape is not None:
        return tuple(shape) == tuple(parameter.shape)
    return _moments_have_shape(state, number, parameter)


def _moments_have_shape(state: dict[str, Any], number: Any, parameter: Any) -> bool:
    own = state.get("state", {}).get(number, {})
    shapes = [getattr(own[key], "shape", None) for key in FULL_SHAPE_KEYS if own.get(key) is not None]
    return all(tuple(shape) == tuple(parameter.shape) for shape in shapes if shape is not None)


def _position_refusal(state: dict[str, Any], before: list[Any], optimizer: Any) -> str:
    """Return why a state without names can't be loaded by position, '' if it can."""
    then = [len(group["params"]) for group in state["param_groups"]]
    now = [len(group["params"]) for group in optimizer.param_groups]
    if then != now:
        return f"has {then} of them per group where the trainer has {now}"
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    wrong = sum(not _moments_have_shape(state, number, one) for number, one in zip(before, parameters, strict=True))
    return f"{wrong} of its moments have another shape than the parameter at their place" if wrong else ""


def _outcome(before: list[Any], numbers: list[Any], old_sizes: list[int], groups: list[Any]) -> tuple[str, str]:
    """Return the action and its counts."""
    kept = [number for number in numbers if number is not None and number is not _RESHAPED]
    if len(kept) == len(numbers) == len(before):
        same = kept == before and old_sizes == [len(group["params"]) for group in groups]
        return LOAD, "" if same else "by name, the parameters are in another order or grouping"
    reshaped = sum(number is _RESHAPED for number in numbers)
    counts = (
        (len(numbers) - len(kept) - reshaped, "new"),
        (reshaped, "of another shape"),
        (len(before) - len(kept) - reshaped, "left out"),
    )
    parts = [f"{len(kept)} of {len(numbers)} parameters", *(f"{count} {kind}" for count, kind in counts if count)]
    return PARTIAL, ", ".join(parts)


def _homes(saved: list[dict[str, Any]], optimizer: Any, kept: dict[int, Any]) -> list[int | None]:
    """Return for each group the place of the saved group that most of its parameters come from; None for a new one."""
    home = {number: index for index, group in enumerate(saved) for number in group["params"]}
    homes, first = [], 0
    for group in optimizer.param_groups:
        numbers = range(first, first + len(group["params"]))
        first += len(group["params"])
        counts = Counter(home[kept[number]] for number in numbers if number in kept)
        homes.append(counts.most_common(1)[0][0] if counts else None)
    return homes


def _groups(
    saved: list[dict[str, Any]], optimizer: Any, homes: list[int | None], schedule_is_loaded: bool
) -> tuple[list[dict[str, Any]], str]:
    """Return the new groups, and which of the optimizer's values differ from the checkpoint's."""
    own_keys = hyper_parameters(optimizer)
    defaults = getattr(optimizer, "defaults", {})
    differences: dict[str, str] = {}
    groups, first = [], 0
    for fresh, home in zip(optimizer.param_groups, homes, strict=True):
        numbers = range(first, first + len(fresh["params"]))
        first += len(fresh["params"])
        old = {} if home is None else saved[home]
        taken = {
            key: value for key, value in old.items()
            if _is_the_checkpoints(key, old, fresh, own_keys, defaults, schedule_is_loaded)
        }  # fmt: skip
        groups.append({**fresh, **taken, "params": list(numbers)})
        for key in fresh.keys() & old.keys() - taken.keys() - {"params", "param_names"} - SILENT_KEYS:
            if not _is_a_schedules(key, old, fresh) and not _is_equal(fresh[key], old[key]):
                differences.setdefault(key, f"{key} {_shown(fresh[key])}, in the checkpoint {_shown(old[key])}")
    more = f" and {len(differences) - MAX_SAID} more" if len(differences) > MAX_SAID else ""
    listed = ", ".join(differences[key] for key in sorted(differences)[:MAX_SAID])
    return groups, f"trains with {listed}{more}" if listed else ""


def _is_the_checkpoints(
    key: str, old: dict[str, Any], fresh: dict[str, Any], own: frozenset[str], defaults: Any, schedule_is_loaded: bool
) -> bool:
    """Say whose value a group's entry takes: the checkpoint's, or the trainer's own."""
    if key in ("params", "param_names"):
        return False
    if key in SCHEDULE_KEYS:
        return schedule_is_loaded
    if key in CYCLED_KEYS and "base_momentum" in old:
        return schedule_is_loaded
    # Some optimizers keep what they have learned in their groups (Prodigy's `d`): among the defaults, but no argument.
    return key not in own and (key in defaults or key not in fresh)


def _is_a_schedules(key: str, old: dict[str, Any], fresh: dict[str, Any]) -> bool:
    """Whether a value moves with the schedule, so that a difference says nothing."""
    if key == "lr":
        return "initial_lr" in fresh
    return key in SCHEDULE_KEYS or (key in CYCLED_KEYS and "base_momentum" in old)


def hyper_parameters(optimizer: Any) -> frozenset[str]:
    """Return the names that the optimizer's class, or one that it inherits from, takes as arguments."""
    names: set[str] = set()
    kinds: tuple[Any, ...] = type(optimizer).__mro__
    for kind in kinds:
        if "__init__" in vars(kind):
            try:
                names |= inspect.signature(kind.__init__).parameters.keys()
            except (ValueError, TypeError):  # written in C
                continue
    return frozenset(names - {"self", "params", "defaults"})


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # tensors of several elements
        return False


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


# A Lion in the place of a trainer's optimizer, for `optimizer_policy="swap_to_lion"` of a trainer that passes no
# Lion.
#
# Only where lion_pytorch is installed. The trainer's loop must go on with `bundle.optimizer`; the old optimizer
# refuses to step from then on, because a swap that goes unnoticed is none. Source: protocol §7, §13.

WEIGHT_DECAY = 0.01  # protocol §7: at first; reduce it on underfitting


def lion_stand_in(optimizer: Any, scheduler: Any) -> Any | None:
    """Return a Lion with the optimizer's parameters, groups and learning rates.

    None where none is needed (it is a Lion), or none can be made: several optimizers, a scheduler that does not say
    which optimizer it drives, or no lion_pytorch.
    """
    if optimizer is None or isinstance(optimizer, dict) or is_lion(optimizer):
        return None
    if scheduler is not None and not _drives(scheduler, optimizer):
        return None
    try:
        from lion_pytorch import Lion  # only here: a trainer that swaps nothing does without it
    except ImportError:
        return None
    groups = [
        {**{key: group[key] for key in SCHEDULE_KEYS & group.keys()}, "params": group["params"]}
        for group in optimizer.param_groups
    ]
    return Lion(groups, weight_decay=WEIGHT_DECAY)


def take_over_as_lion(lion: Any, optimizer: Any, scheduler: Any) -> None:
    """Put the Lion under the scheduler, and make the old optimizer refuse to step."""
    for one in _schedulers(scheduler):
        one.optimizer = lion

    def refuse(*_: Any) -> None:
        raise KitError(
            f"this {type(optimizer).__name__} was swapped for a Lion: write 'optimizer = bundle.optimizer' behind "
            f"load_resume_bundle, or pass a lion_pytorch.Lion to it"
        )

    optimizer.register_step_pre_hook(refuse)


def _drives(scheduler: Any, optimizer: Any) -> bool:
    return all(getattr(one, "optimizer", None) is optimizer for one in _schedulers(scheduler))


def _schedulers(scheduler: Any) -> list[Any]:
    """Return a scheduler and those inside it (SequentialLR, ChainedScheduler)."""
    if scheduler is None:
        return []
    return [scheduler, *(inner for one in getattr(scheduler, "_schedulers", ()) for inner in _schedulers(one))]
