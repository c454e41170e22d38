"""Is this config surely valid? A quick look by the schema's everyday keywords; jsonschema decides the rest.

Importing jsonschema costs a launch 50 ms, most of its planning. A valid config needs no message, so it is only asked
when this look is not sure: something is off, or the schema uses a keyword that is not known here. A test holds the two
together on thousands of values. Source: docs/decisions/0007.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .schema import Node, types_of

# What says nothing about a value; everything that begins with x- says nothing either.
_ANNOTATIONS = frozenset({"$schema", "$id", "$comment", "$defs", "title", "description", "default", "examples"})


def is_surely_valid(value: Any, node: Node, tree: Node) -> bool:
    """Return True only if `value` is valid; False means that jsonschema has to look.

    Args:
        value: plain JSON values.
        node: the schema that it is held against.
        tree: the whole schema, for `$ref`.
    """
    types = types_of(node)
    if types and not any(is_type(value, kind) for kind in types):
        return False
    return all(
        _RULES[keyword](value, limit, node, tree) if keyword in _RULES else _is_annotation(keyword)
        for keyword, limit in node.items()
    )


def is_type(value: Any, kind: str) -> bool:
    """Return whether a value has a JSON type; true and false are no numbers, 2.0 is an integer."""
    if kind == "null":
        return value is None
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, {"number": (int, float), "string": str, "array": list, "object": dict}.get(kind, ()))


def _is_annotation(keyword: str) -> bool:
    return keyword in _ANNOTATIONS or keyword.startswith("x-")


def _refers(value: Any, target: Any, node: Node, tree: Node) -> bool:
    if not target.startswith("#/"):
        return False
    found: Any = tree
    for part in target[2:].split("/"):
        found = found[part]
    return is_surely_valid(value, found, tree)


def _members(value: Any, _: Any, node: Node, tree: Node) -> bool:
    """All that applies to the keys of an object: properties, patternProperties, additionalProperties."""
    if not isinstance(value, dict):
        return True
    named, patterns = node.get("properties", {}), node.get("patternProperties", {})
    for name, item in value.items():
        inner = [named[name]] if name in named else []
        inner += [schema for pattern, schema in patterns.items() if re.search(pattern, name)]
        if not inner:
            extra = node.get("additionalProperties", True)
            if extra is False:
                return False
            inner = [extra]
        if not all(schema is True or is_surely_valid(item, schema, tree) for schema in inner):
            return False
    return True


def _items(value: Any, inner: Any, node: Node, tree: Node) -> bool:
    return not isinstance(value, list) or all(is_surely_valid(item, inner, tree) for item in value)


def _names(value: Any, inner: Any, node: Node, tree: Node) -> bool:
    return not isinstance(value, dict) or all(is_surely_valid(name, inner, tree) for name in value)


def _one_of(value: Any, options: Any, node: Node, tree: Node) -> bool:
    return any(value == option and isinstance(value, bool) == isinstance(option, bool) for option in options)


def _number(holds: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    return lambda value, limit, node, tree: not is_type(value, "number") or holds(value, limit)


def _length(kind: type, holds: Callable[[int, int], bool]) -> Callable[..., bool]:
    return lambda value, limit, node, tree: not isinstance(value, kind) or holds(len(value), limit)


_RULES: dict[str, Callable[..., bool]] = {
    "type": lambda *_: True,  # looked at first
    "$ref": _refers,
    "properties": _members,
    "patternProperties": lambda value, limit, node, tree: "properties" in node or _members(value, limit, node, tree),
    "additionalProperties": lambda value, limit, node, tree: (
        "properties" in node or "patternProperties" in node or _members(value, limit, node, tree)
    ),
    "propertyNames": _names,
    "items": _items,
    "enum": _one_of,
    "minimum": _number(lambda value, limit: value >= limit),
    "maximum": _number(lambda value, limit: value <= limit),
    "exclusiveMinimum": _number(lambda value, limit: value > limit),
    "exclusiveMaximum": _number(lambda value, limit: value < limit),
    "pattern": lambda value, limit, *_: not isinstance(value, str) or re.search(limit, value) is not None,
    "minLength": _length(str, lambda length, limit: length >= limit),
    "maxLength": _length(str, lambda length, limit: length <= limit),
    "minItems": _length(list, lambda length, limit: length >= limit),
    "maxItems": _length(list, lambda length, limit: length <= limit),
}
