"""A checkpoint's parameters and optimizers by name: paths without wrappers, their fit to a model, an optimizer's
name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ..base.imports import Any, NamedTuple

# DistributedDataParallel and AveragedModel name what they wrap `module`, torch.compile names it `_orig_mod`.
WRAPPERS = frozenset({"module", "_orig_mod"})


def plain_path(name: str) -> str:
    """Return a parameter's name without the wrappers in it: 'layers.0.weight'."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def pair_paths(wanted: Iterable[str], saved: Iterable[str]) -> dict[str, str]:
    """Return wanted name -> saved name for all that are the same parameter.

    Args:
        wanted: the names in the trainer's model.
        saved: the names in the checkpoint.

    Returns:
        Exact names where there are any; without wrappers for the others, but only where that is unambiguous: in a model
        that has a part of its own called `module`, two parameters may have one plain path.
    """
    wanted, saved = list(wanted), [name for name in saved if isinstance(name, str)]
    there = set(saved)
    pairs = {name: name for name in wanted if name in there}
    if len(pairs) == len(wanted):
        return pairs
    left = _unique([name for name in saved if name not in pairs])
    for plain, name in _unique([name for name in wanted if name not in pairs]).items():
        other = left.get(plain)
        if name is not None and other is not None:
            pairs[name] = other
    return pairs


def _unique(names: list[str]) -> dict[str, str | None]:
    """Return plain path -> name; None where several names have it."""
    found: dict[str, str | None] = {}
    for name in names:
        plain = plain_path(name)
        found[plain] = None if plain in found else name
    return found


# How the tensors of a checkpoint fit those of a model: by name, what wraps a model left out, and by shape.
#
# The launcher asks it of the trainer's description, the trainer of its own objects. Pure functions on names and
# shapes. Try it: `compare_weights({"module.weight": (4, 2)}, {"weight": (4, 2), "bias": (4,)}).counts()`

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


def compare_weights(saved: Shapes, wanted: Shapes) -> WeightFit:
    """Compare a checkpoint's shapes with a model's."""
    same = pair_paths(wanted, saved)
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


# A checkpoint's optimizers in one line, its `optimizer_name`: 'AdamW', or 'model=AdamW,puzzles=SignSGD'.
#
# Written by the trainer's side, read by both; the names that the checkpoint's states have are known to a reader, so
# a name may hold commas and equals signs of its own. Pure functions on texts. Try it: `PYTHONPATH=lib python -c
# "from resumekit.checkpoint.parameters import read_optimizer_names as read; print(read('a=AdamW', ['a']))"`


def write_optimizer_names(kinds: Mapping[str, str] | str) -> str:
    """Return the line for one optimizer's class, or for the classes of several by name."""
    return kinds if isinstance(kinds, str) else ",".join(f"{name}={kinds[name]}" for name in sorted(kinds))


def read_optimizer_names(text: Any, names: Iterable[str]) -> dict[str, str | None]:
    """Return name -> class, None where the line does not say.

    Args:
        text: the checkpoint's `optimizer_name`, whatever it is.
        names: those of the states in the checkpoint; '' for a single optimizer.
    """
    names = list(names)
    if not isinstance(text, str):
        return dict.fromkeys(names)
    kinds = _as_written(text, sorted(names))
    if kinds is None:  # not by these names: what can be told apart without them
        pairs = (pair.rpartition("=") for pair in text.split(","))
        kinds = {name: kind for name, _, kind in pairs}
    return {name: kinds.get(name) or None for name in names}


def plain_optimizer_name(name: str) -> str:
    """Return an optimizer's name as classes and configs have it alike: 'AdamW', 'adam_w' and 'adamw' are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


# What an optimizer keeps for each parameter tells its family, where a file does not name its class.
_FAMILIES = {
    "adam": frozenset({"exp_avg", "exp_avg_sq"}),
    "lion": frozenset({"exp_avg"}),
    "sgd": frozenset({"momentum_buffer"}),
    "rmsprop": frozenset({"square_avg"}),
    "adagrad": frozenset({"sum"}),
}
_MEMBERS = {"adamw": "adam", "nadam": "adam", "radam": "adam"}
# Beside them: how many steps were done, and what an option adds.
_BESIDE = frozenset({"step", "max_exp_avg_sq", "mu_product", "momentum_buffer", "grad_avg"})


def family_of_entries(entries: Iterable[str]) -> str | None:
    """Return an optimizer's family by what it keeps for a parameter ('exp_avg', ...); None where they do not tell."""
    kept = frozenset(entries)
    return next((name for name, own in _FAMILIES.items() if own <= kept and kept - own <= _BESIDE), None)


def family_of_class(name: str | None) -> str | None:
    """Return the family of a class by its name; None of one that the kit does not know."""
    plain = plain_optimizer_name(name or "")
    plain = _MEMBERS.get(plain, plain)
    return plain if plain in _FAMILIES else None


def _as_written(text: str, names: list[str]) -> dict[str, str] | None:
    """Return the classes if the line is of exactly these names; a class has no comma and no equals sign in it."""
    kinds, at = {}, 0
    for name in names:
        end = text.find(",", at + len(name))
        end = len(text) if end < 0 else end
        kind = text[at + len(name) + 1 : end]
        if not text.startswith(f"{name}=", at) or "=" in kind:
            return None
        kinds[name], at = kind, end + 1
    return kinds if at == len(text) + 1 else None
