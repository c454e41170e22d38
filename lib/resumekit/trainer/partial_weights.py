"""How those of a checkpoint's weights that fit a model are loaded into it.

A model that got a head, or lost one, takes what it still has; what is new keeps the initialisation of its module, or
gets the protocol's. Reads and writes no file.
Try it: `fit(old_model.state_dict(), new_model.state_dict()).counts()`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..proving import weight_fit
from ..proving.parameter_paths import plain_path
from ..proving.weight_fit import WeightFit

NEW_PARAMS = ("module", "kaiming")


def fit(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> WeightFit:
    """Compare two state dicts; reads no tensor's values."""
    return weight_fit.compare(_shapes(saved), _shapes(wanted))


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return a tensor's shape; None for what a module has saved beside its tensors."""
    return tuple(value.shape) if hasattr(value, "shape") else None


def load(model: Any, saved: Mapping[str, Any], found: WeightFit) -> None:
    """Load into the model what fits; everything else in it stays as it is."""
    if found.is_whole and all(name == old for name, old in found.pairs.items()):
        model.load_state_dict(saved)
        return
    state = type(saved)() if hasattr(saved, "_metadata") else {}
    state.update((name, saved[old]) for name, old in found.pairs.items())
    _carry_versions(saved, model.state_dict(), state)
    model.load_state_dict(state, strict=found.is_whole)


def initialise(model: Any, found: WeightFit) -> tuple[str, ...]:
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
