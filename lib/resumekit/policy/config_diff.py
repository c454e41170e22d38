"""What differs between two resolved configs, and what each difference costs a resumed run.

The cost is the schema's: `x-on-resume` of the key. A key without one needs a person's consent, never nothing.
Reads nothing. Try it: `PYTHONPATH=lib python -c "from resumekit.policy import config_diff; help(config_diff)"`
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base.imports import Any, NamedTuple
from ..base.terms import DIRECTIONS
from ..config import schema as schemas
from ..config.schema import Schema
from ..config.validate import Node

# A switch is off when it has one of these values.
_OFF: tuple[Any, ...] = (None, False, 0, "", "0", [], {})


class Change(NamedTuple):
    """One key that differs.

    Args:
        key: dotted.
        old, new: its values; None also where it is absent.
        actions: component -> action, of base/terms; empty where nothing is lost.
        consent: why a person must agree, or None.
        refuse: why it is impossible, or None.
    """

    key: str
    old: Any
    new: Any
    actions: dict[str, str]
    consent: str | None
    refuse: str | None


def changes(old: dict[str, Any], new: dict[str, Any], schema: Schema | None = None) -> list[Change]:
    """Return what differs between two resolved configs, sorted by key.

    Args:
        old, new: resolved configs; a key that one of them lacks has the schema's default there.
        schema: None for the kit's own with the lab's overlay.

    Source: protocol §1, §2.
    """
    schema = schema or schemas.load()
    before, after = (dict(_values(schemas.normalise(one, schema.tree, schema.tree), schema, "")) for one in (old, new))
    found = []
    for key in sorted({*before, *after}):
        default = schema.leaves.get(key, {}).get("default")
        was, now = before.get(key, default), after.get(key, default)
        if not _same(was, now):
            found.append(_change(key, was, now, schema.leaves.get(key, {})))
    return found


def _change(key: str, old: Any, new: Any, node: Node) -> Change:
    effect = _effect(node.get("x-on-resume"), old, new)
    if effect is None:
        why = "the schema does not say what a change of it does to a resumed run"
        return Change(key=key, old=old, new=new, actions={}, consent=why, refuse=None)
    actions = {name: action for name, action in effect.items() if name not in ("consent", "refuse", "within")}
    return Change(
        key=key, old=old, new=new, actions=actions, consent=effect.get("consent"), refuse=effect.get("refuse")
    )


def _effect(declared: Any, old: Any, new: Any) -> dict[str, Any] | None:
    """Return the effect that holds in this direction, None where none is declared."""
    if not isinstance(declared, dict):
        return None
    if "within" in declared:
        return {} if _near(old, new, declared["within"]) else declared
    if not any(direction in declared for direction in DIRECTIONS):
        return declared
    for direction in _directions(old, new):
        if isinstance(declared.get(direction), dict):
            return _effect(declared[direction], old, new)
    return None


def _directions(old: Any, new: Any) -> Iterator[str]:
    """Yield the words that describe a change, the most telling one first."""
    if _is_off(old) and not _is_off(new):
        yield "enable"
    if _is_off(new) and not _is_off(old):
        yield "disable"
    if _is_number(old) and _is_number(new):
        yield "increase" if new > old else "decrease"
    yield "otherwise"


def _near(old: Any, new: Any, factor: float) -> bool:
    if not (_is_number(old) and _is_number(new)) or old * new <= 0:
        return False
    # A tiny allowance: 0.1 -> 0.2 is a factor of two, whatever binary fractions make of it.
    ratio: float = max(old / new, new / old)
    return ratio <= factor * (1 + 1e-9)


def _is_off(value: Any) -> bool:
    return any(_same(value, off) for off in _OFF) or _same(value, 0.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of one type: 1, 1.0 and true are three."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def _values(data: dict[str, Any], schema: Schema, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key in schema.sections:
            yield from _values(value, schema, f"{key}.")
        else:
            yield key, value
