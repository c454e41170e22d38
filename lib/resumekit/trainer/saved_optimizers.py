"""The optimizers that a checkpoint holds, and which of the trainer's each of them belongs to.

Reads the checkpoint's `optimizer_state_dict`, `optimizer_name` and `parameter_names`; a foreign checkpoint has only the
first. Try it: `python -m pytest tests/test_optimizer_state.py -k which`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..proving import optimizer_names

Names = list[list[str | None]]


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


def named(optimizer: Any) -> dict[str, Any]:
    """Return the trainer's optimizers by name; the name is '' for a single one, and nothing where there is none."""
    if optimizer is None:
        return {}
    return dict(optimizer) if isinstance(optimizer, dict) else {"": optimizer}


def held(content: dict[str, Any]) -> dict[str, SavedOptimizer]:
    """Return the optimizers in a checkpoint by name."""
    states = content.get("optimizer_state_dict")
    if not states or not isinstance(states, dict):
        return {}
    several = all(isinstance(one, dict) and "param_groups" in one for one in states.values())
    names = content.get("parameter_names")
    kinds = optimizer_names.read(content.get("optimizer_name"), map(str, states) if several else [""])
    if not several:
        return {"": SavedOptimizer("", kinds[""], states, _names(names, states))}
    by_key = names if isinstance(names, dict) else {}
    return {
        str(key): SavedOptimizer(str(key), kinds[str(key)], state, _names(by_key.get(key), state))
        for key, state in states.items()
    }


def match(content: dict[str, Any], optimizer: Any) -> dict[str, SavedOptimizer | None]:
    """Return for each of the trainer's optimizers the one in the checkpoint that it continues.

    The one of the same name; else, where names were changed, the only one of its class that is left, and at last the
    only one that is left at all (an optimizer that takes over from another one).
    """
    saved, own = held(content), named(optimizer)
    found: dict[str, SavedOptimizer | None] = {key: saved.get(key) for key in own}
    left = [one for key, one in saved.items() if key not in own]
    for key in [key for key, one in found.items() if one is None]:
        kind = type(own[key]).__name__
        alike = [one for one in left if one.kind == kind]
        rivals = [other for other in found if found[other] is None and type(own[other]).__name__ == kind]
        if len(alike) == len(rivals) == 1:
            found[key] = alike[0]
            left.remove(alike[0])
    alone = [key for key, one in found.items() if one is None]
    if len(alone) == len(left) == 1:
        found[alone[0]] = left[0]
    return found


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
