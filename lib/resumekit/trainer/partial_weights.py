"""Which of a checkpoint's weights fit a model, by name and shape, and how those that fit are loaded.

A model that got a head, or lost one, takes what it still has; what is new keeps the initialisation of its module, or
gets the protocol's. Too little in common is another model, and refused. Reads and writes no file.
Try it: `fit(old_model.state_dict(), new_model.state_dict()).counts()`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..proving.parameter_paths import MIN_MATCHED_SHARE, pair, plain_path

NEW_PARAMS = ("module", "kaiming")


@dataclass(frozen=True)
class Fit:
    """What two state dicts have in common.

    Args:
        pairs: name in the model -> name in the checkpoint, of what can be loaded.
        missing: names in the model that the checkpoint does not have.
        unexpected: names in the checkpoint that the model does not have.
        reshaped: names in the model that have another shape in the checkpoint -> '(3, 4) instead of (5, 4)'.
        matched_share: elements of the checkpoint's tensors that can be loaded, 0 to 1.
    """

    pairs: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: dict[str, str]
    matched_share: float

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def counts(self) -> str:
        """Say how much fits: '61 of 63 parameters, 2 new'."""
        whole = len(self.pairs) + len(self.missing) + len(self.reshaped)
        parts = [f"{len(self.pairs)} of {whole} parameters"]
        kinds = ((self.missing, "new"), (self.reshaped, "of another shape"), (self.unexpected, "left out"))
        return ", ".join([*parts, *(f"{len(names)} {kind}" for names, kind in kinds if names)])


def fit(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> Fit:
    """Compare two state dicts by name, wrappers left out, and shape; reads no tensor's values."""
    same = pair(wanted, saved)
    reshaped = {
        name: f"{_shape(saved[old])} instead of {_shape(wanted[name])}"
        for name, old in same.items()
        if _shape(saved[old]) != _shape(wanted[name])
    }
    pairs = {name: old for name, old in same.items() if name not in reshaped}
    used = set(same.values())
    whole = sum(_elements(value) for value in saved.values())
    matched = sum(_elements(saved[old]) for old in set(pairs.values()))
    return Fit(
        pairs,
        missing=tuple(name for name in wanted if name not in same),
        unexpected=tuple(str(name) for name in saved if name not in used),
        reshaped=reshaped,
        matched_share=matched / whole if whole else 0.0,
    )


def refusal(found: Fit, *, is_forced: bool = False) -> str:
    """Return why so partial a load is none, '' if it is one.

    Args:
        is_forced: a person asked for it by name: whatever fits is enough.
    """
    if not found.pairs:
        return "none of its parameters is in the model by name and shape: it is another model's"
    if found.matched_share < MIN_MATCHED_SHARE and not is_forced:
        return (
            f"only {found.matched_share:.0%} of its numbers fit the model by name and shape, and at least "
            f"{MIN_MATCHED_SHARE:.0%} must: it is another model's"
        )
    return ""


def load(model: Any, saved: Mapping[str, Any], found: Fit) -> None:
    """Load into the model what fits; everything else in it stays as it is."""
    if found.is_whole and all(name == old for name, old in found.pairs.items()):
        model.load_state_dict(saved)
        return
    state = type(saved)() if hasattr(saved, "_metadata") else {}
    state.update((name, saved[old]) for name, old in found.pairs.items())
    _carry_versions(saved, model.state_dict(), state)
    model.load_state_dict(state, strict=found.is_whole)


def initialise(model: Any, found: Fit) -> tuple[str, ...]:
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


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return a tensor's shape; None for what a module has saved beside its tensors."""
    return tuple(value.shape) if hasattr(value, "shape") else None


def _elements(value: Any) -> int:
    return value.numel() if hasattr(value, "numel") else 0
