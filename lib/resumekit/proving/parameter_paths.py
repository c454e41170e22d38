"""The path of a parameter without what wraps it: DDP's `module.` and torch.compile's `_orig_mod.`, wherever they stand.

A run that was saved compiled is resumed uncompiled, on one device instead of several, or the other way round: its
parameters are the same. Pure functions on names. Try it: `plain_path("module.layers.0._orig_mod.weight")`
"""

from __future__ import annotations

from collections.abc import Iterable

# DistributedDataParallel and AveragedModel name what they wrap `module`, torch.compile names it `_orig_mod`.
WRAPPERS = frozenset({"module", "_orig_mod"})


def plain_path(name: str) -> str:
    """Return a parameter's name without the wrappers in it: 'layers.0.weight'."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def pair(wanted: Iterable[str], saved: Iterable[str]) -> dict[str, str]:
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
        if name is not None and left.get(plain) is not None:
            pairs[name] = left[plain]
    return pairs


def _unique(names: list[str]) -> dict[str, str | None]:
    """Return plain path -> name; None where several names have it."""
    found: dict[str, str | None] = {}
    for name in names:
        plain = plain_path(name)
        found[plain] = None if plain in found else name
    return found
