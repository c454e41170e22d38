"""EMA and SWA: averages of the weights, continued from a checkpoint or begun at the current weights.

Works on state dicts, so on torch's AveragedModel as well as on a class of the lab's own that has state_dict() and
load_state_dict(). Reads and writes no file. Source: protocol §1, §9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..proving.parameter_paths import pair, plain_path
from .partial_weights import shape_of

# How other classes call the number of updates that an average has seen; torch's own is 'n_averaged'.
COUNTS = frozenset({"n_averaged", "num_updates", "updates", "n_updates", "step", "steps", "optimization_step"})


def load(average: Any, saved: Any, model: Any) -> None:
    """Load an average's saved state; what is new in the model joins with its current weights."""
    own = average.state_dict() if hasattr(average, "state_dict") else None
    if isinstance(own, Mapping) and isinstance(saved, Mapping) and not _is_alike(own, saved):
        saved = merged(saved, average, model)
    average.load_state_dict(saved)


def merged(saved: Mapping[str, Any], average: Any, model: Any) -> dict[str, Any]:
    """Return a state for the average: what the checkpoint has of it by name and shape, else the model's weights.

    Args:
        saved: the average's state in the checkpoint.
        average: the trainer's; it is not changed.
        model: with the weights just loaded.
    """
    own = average.state_dict()
    same = pair(own, saved)
    weights = _weights(model)
    state = {}
    for name, value in own.items():
        old = saved.get(same.get(name, name))
        current = weights.get(plain_path(name))
        if old is not None and shape_of(old) == shape_of(value):
            state[name] = old
        else:
            state[name] = current.clone() if _fits(current, value) else value
    return state


def can_hold(average: Any, model: Any) -> bool:
    """Whether its state holds every parameter of the model by its name; else it cannot be told what to put where."""
    found: set[str] = set()
    state = average.state_dict()
    if not isinstance(state, Mapping):
        return False
    _with_weights(state, _weights(model), found)
    return {plain_path(name) for name, _ in model.named_parameters()} <= found


def current(average: Any, model: Any) -> dict[str, Any]:
    """Return a state for the average that holds the model's weights and has seen no update yet."""
    weights = {name: value.clone() if hasattr(value, "clone") else value for name, value in _weights(model).items()}
    return _with_weights(average.state_dict(), weights, set())


def _with_weights(state: Mapping[str, Any], weights: dict[str, Any], found: set[str]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for name, value in state.items():
        path = plain_path(name) if isinstance(name, str) else ""
        if isinstance(value, Mapping):
            filled[name] = _with_weights(value, weights, found)
        elif _fits(weights.get(path), value):
            found.add(path)
            filled[name] = weights[path]
        elif path in COUNTS:
            filled[name] = value * 0
        else:
            filled[name] = value
    return filled


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(shape_of(one[name]) == shape_of(other[name]) for name in one)


def _weights(model: Any) -> dict[str, Any]:
    return {plain_path(name): value for name, value in model.state_dict().items()}


def _fits(weight: Any, value: Any) -> bool:
    return weight is not None and shape_of(weight) is not None and shape_of(weight) == shape_of(value)
