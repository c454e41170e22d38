"""Weights and their averages (EMA, SWA) as they are loaded into a model, and compared with it afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..base.imports import Any
from ..base.terms import FAILED, PASSED, Check
from ..checkpoint import parameters
from ..checkpoint.parameters import WeightFit, pair_paths, plain_path
from . import sharded_state


def fit_weights(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> WeightFit:
    """Compare two state dicts; reads no tensor's values."""
    return parameters.compare_weights(_shapes(saved), _shapes(wanted))


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return a tensor's shape; None for what a module has saved beside its tensors."""
    return tuple(value.shape) if hasattr(value, "shape") else None


def load_weights(model: Any, saved: Mapping[str, Any], found: WeightFit) -> None:
    """Load into the model what fits; everything else in it stays as it is."""
    if found.is_whole and all(name == old for name, old in found.pairs.items()):
        model.load_state_dict(saved)
        return
    state: Any = type(saved)() if hasattr(saved, "_metadata") else {}
    state.update((name, saved[old]) for name, old in found.pairs.items())
    _carry_versions(saved, model.state_dict(), state)
    model.load_state_dict(state, strict=found.is_whole)


def initialise_weights(model: Any, found: WeightFit) -> tuple[str, ...]:
    """Give new parameters the protocol's initialisation; draws from torch's random numbers.

    Returns:
        The names of the parameters that got it: floating point, two or more dimensions (it is not defined for others).

    Source: protocol §6, `kaiming_uniform_(a=√5)`.
    """
    from torch.nn.init import kaiming_uniform_  # the trainer has torch already

    new = {*found.missing, *found.reshaped}
    done = []
    for name, parameter in model.named_parameters():  # a tied one comes once
        if name in new and parameter.is_floating_point() and parameter.dim() >= 2 and parameter.numel():
            kaiming_uniform_(parameter, a=math.sqrt(5))
            done.append(name)
    return tuple(done)


def _carry_versions(saved: Any, wanted: Any, state: Any) -> None:
    """Keep the versions that modules have written beside their tensors: they load old forms by them."""
    versions = getattr(saved, "_metadata", None)
    if versions is None:
        return
    by_path = {plain_path(name): version for name, version in versions.items()}
    names = getattr(wanted, "_metadata", None) or {}
    state._metadata = {name: by_path[plain_path(name)] for name in names if plain_path(name) in by_path}


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {name: shape_of(value) for name, value in state.items()}


# EMA and SWA: averages of the weights, continued from a checkpoint or begun at the current weights.
#
# Works on state dicts, so on torch's AveragedModel as well as on a class of the lab's own that has state_dict() and
# load_state_dict(). Reads and writes no file. Source: protocol §1, §9.

# How other classes call the number of updates that an average has seen; torch's own is 'n_averaged'.
COUNTS = frozenset({"n_averaged", "num_updates", "updates", "n_updates", "step", "steps", "optimization_step"})


def load_average(average: Any, saved: Any, model: Any) -> None:
    """Load an average's saved state; what is new in the model joins with its current weights."""
    own = average.state_dict() if hasattr(average, "state_dict") else None
    if isinstance(own, Mapping) and isinstance(saved, Mapping) and not _is_alike(own, saved):
        saved = merged_average(saved, average, model)
    average.load_state_dict(saved)


def merged_average(saved: Mapping[str, Any], average: Any, model: Any) -> dict[str, Any]:
    """Return a state for the average: what the checkpoint has of it by name and shape, else the model's weights.

    Args:
        saved: the average's state in the checkpoint.
        average: the trainer's; it is not changed.
        model: with the weights just loaded.
    """
    own = average.state_dict()
    same = pair_paths(own, saved)
    weights = _weights(model)
    state = {}
    for name, value in own.items():
        old = saved.get(same.get(name, name))
        current: Any = weights.get(plain_path(name))
        if old is not None and shape_of(old) == shape_of(value):
            state[name] = old
        else:
            state[name] = current.clone() if _fits(current, value) else value
    return state


def average_can_hold(average: Any, model: Any) -> bool:
    """Whether its state holds every parameter of the model by its name; else it cannot be told what to put where."""
    found: set[str] = set()
    state = average.state_dict()
    if not isinstance(state, Mapping):
        return False
    _with_weights(state, _weights(model), found)
    return {plain_path(name) for name, _ in model.named_parameters()} <= found


def current_average(average: Any, model: Any) -> dict[str, Any]:
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


# Whether a live value is the one that was saved, bit for bit; of a large tensor, at 256 places spread all over it.
#
# Works on tensors without importing torch. Reads and writes nothing.

PLACES = 256
MAX_NAMED = 3
# Its multiples, modulo 1, fill an interval evenly and fall in with no row's length: a fixed stride through a matrix
# of 1024 columns would look at its first column alone.
_GOLDEN = 0.6180339887498949


def comparison_outcome(name: str, pairs: list[tuple[str, Any, Any]], expected: str) -> Check:
    """Return the check of (what it is, saved value, live value), one for each thing that was loaded."""
    wrong = [key for key, saved, live in pairs if not is_alike(saved, live)]
    found = f"{len(pairs) - len(wrong)} of {len(pairs)}"
    return Check(name, FAILED if wrong else PASSED, f"{len(pairs)} {expected}", found, ", ".join(wrong[:MAX_NAMED]))


class Sample:
    """What is kept of a loaded tensor for a later comparison: its shape, and of this rank's part the values at some
    places.
    """

    def __init__(self, tensor: Any) -> None:
        own = sharded_state.local(tensor)
        self.shape = tuple(tensor.shape)
        self._values = None if own is None else _sample(own).clone()
        self._own_shape = None if own is None else tuple(own.shape)

    def is_alike(self, live: Any) -> bool:
        """Whether a live tensor that is spread alike still has these values."""
        own = sharded_state.local(live)
        if own is None or self._values is None:
            return own is None and self._values is None
        return self._own_shape == tuple(own.shape) and _are_equal(self._values, _sample(own))


def is_alike(saved: Any, live: Any) -> bool:
    """Whether a live value is the saved one; of tensors that are spread over ranks this rank's part counts."""
    if isinstance(saved, Sample):
        return hasattr(live, "reshape") and saved.is_alike(live)
    if not hasattr(saved, "reshape") or not hasattr(live, "reshape"):
        return bool(plain_value(saved) == plain_value(live))
    if tuple(saved.shape) != tuple(live.shape):
        return False
    return _are_equal(_sample(saved), _sample(live))


def is_same_state(saved: Any, now: Any) -> bool:
    """Whether two nested values of dicts, lists, tuples, tensors and numbers are alike."""
    if isinstance(saved, dict):
        has_keys = isinstance(now, dict) and saved.keys() == now.keys()
        return has_keys and all(is_same_state(saved[key], now[key]) for key in saved)
    if isinstance(saved, (list, tuple)):
        is_sequence = isinstance(now, (list, tuple)) and len(saved) == len(now)
        return is_sequence and all(is_same_state(*pair) for pair in zip(saved, now, strict=True))
    return is_alike(saved, now)


def plain_value(value: Any) -> Any:
    """Return the number that a tensor of one element holds; any other value as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "numel", lambda: 1)() == 1 else value


def first_line(error: Exception) -> str:
    """Return an error's first line, or its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _are_equal(mine: Any, theirs: Any) -> bool:
    mine = mine.to(theirs.dtype)  # a model in another precision took the weights over in its own
    return bool(((mine == theirs) | ((mine != mine) & (theirs != theirs))).all())


def _sample(tensor: Any) -> Any:
    flat = tensor.detach().reshape(-1)
    count = flat.numel()
    places = [int(number * _GOLDEN % 1.0 * count) for number in range(PLACES)] if count > 2 * PLACES else slice(None)
    return flat[places].cpu()
