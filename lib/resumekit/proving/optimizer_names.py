"""A checkpoint's optimizers in one line, its `optimizer_name`: 'AdamW', or 'model=AdamW,puzzles=SignSGD'.

Written by the trainer's side, read by both; the names that the checkpoint's states have are known to a reader, so a
name may hold commas and equals signs of its own. Pure functions on texts.
Try it: `PYTHONPATH=lib python -c "from resumekit.proving import optimizer_names as o; print(o.read('a=AdamW', ['a']))"`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TYPE_CHECKING = False  # see archive
if TYPE_CHECKING:
    from typing import Any


def write(kinds: Mapping[str, str] | str) -> str:
    """Return the line for one optimizer's class, or for the classes of several by name."""
    return kinds if isinstance(kinds, str) else ",".join(f"{name}={kinds[name]}" for name in sorted(kinds))


def read(text: Any, names: Iterable[str]) -> dict[str, str | None]:
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


def plain_name(name: str) -> str:
    """Return an optimizer's name as classes and configs have it alike: 'AdamW', 'adam_w' and 'adamw' are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


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
