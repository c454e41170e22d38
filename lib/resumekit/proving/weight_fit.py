"""How the tensors of a checkpoint fit those of a model: by name, what wraps a model left out, and by shape.

The launcher asks it of the trainer's description, the trainer of its own objects. Pure functions on names and shapes.
Try it: `compare({"module.weight": (4, 2)}, {"weight": (4, 2), "bias": (4,)}).counts()`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from .parameter_paths import pair

# Name -> shape; None for what a module keeps beside its tensors.
Shapes = Mapping[str, tuple[int, ...] | None]
# Less than half of a checkpoint's numbers in common: not this model with a new part, but another one
# (mosaicml/composer#2216: a wrong model that a non-strict load accepted).
MIN_MATCHED_SHARE = 0.5


class WeightFit(NamedTuple):
    """What a checkpoint and a model have in common.

    Args:
        pairs: name in the model -> name in the checkpoint, of what can be loaded.
        missing: names in the model that the checkpoint does not have: they begin as their module makes them.
        unexpected: names in the checkpoint that the model does not have: they are left behind.
        reshaped: names in the model that have another shape in the checkpoint -> '(3, 4) instead of (5, 4)'.
        matched_share: numbers of the checkpoint's tensors that can be loaded, 0 to 1.
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

    def refusal(self, *, is_forced: bool = False) -> str:
        """Return why so partial a load is none, '' if it is one.

        Args:
            is_forced: a person asked for it by name: whatever fits is enough.
        """
        if not self.pairs:
            return "none of its parameters is in the model by name and shape: it is another model's"
        if self.matched_share < MIN_MATCHED_SHARE and not is_forced:
            return (
                f"only {self.matched_share:.0%} of its numbers fit the model by name and shape, and at least "
                f"{MIN_MATCHED_SHARE:.0%} must: it is another model's"
            )
        return ""


def compare(saved: Shapes, wanted: Shapes) -> WeightFit:
    """Compare a checkpoint's shapes with a model's."""
    same = pair(wanted, saved)
    reshaped = {
        name: f"{saved[old]} instead of {wanted[name]}" for name, old in same.items() if saved[old] != wanted[name]
    }
    pairs = {name: old for name, old in same.items() if name not in reshaped}
    used = set(same.values())
    whole = sum(map(_numbers, saved.values()))
    return WeightFit(
        pairs,
        missing=tuple(name for name in wanted if name not in same),
        unexpected=tuple(str(name) for name in saved if name not in used),
        reshaped=reshaped,
        matched_share=sum(_numbers(saved[old]) for old in pairs.values()) / whole if whole else 0.0,
    )


def _numbers(shape: tuple[int, ...] | None) -> int:
    return 0 if shape is None else math.prod(shape)
