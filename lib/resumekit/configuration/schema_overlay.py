"""A lab's own keys, laid over the kit's schema: added, never changed.

Reads nothing; `schema.load` hands it both.
Try it: put a key into schemas/lab.schema.json, and `bin/run.sh EXP --dry-run`
"""

from __future__ import annotations

import re
from typing import Any

from ..basics.actions import ALLOWED, DIRECTIONS
from ..basics.errors import InvalidFile
from . import schema_checks
from .schema import Schema
from .yaml_scalars import show

Node = dict[str, Any]
# What an overlay may say about itself or about a section of ours, beside the properties that it adds.
_WORDS = {"$schema", "$id", "$comment", "title", "description", "type", "properties"}
_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
# A key is written with dots in `--set`, so none of its own; 'x-' is the door for keys that no schema knows.
_KEY = re.compile(r"(?!x-)[A-Za-z_][A-Za-z0-9_-]*")
_KEY_RULE = "letters, digits, '_' and '-', beginning with a letter, and not with 'x-'"


def merge(tree: Node, overlay: Node, source: str) -> None:
    """Add an overlay's keys to the kit's schema, in place.

    Args:
        tree: the kit's schema.
        overlay: the lab's: `properties` in the same shape; new keys in our sections, and sections of its own.
        source: the overlay's file name, for messages.

    Raises:
        InvalidFile: it changes a key of ours, or is no schema.
    """
    if _has_ref(overlay):
        raise _error("it uses '$ref', which an overlay may not; write the schema out", source)
    entry = next(iter(tree["properties"]["experiments"]["patternProperties"].values()))["properties"]
    _add(tree, overlay, (), source)
    for name in overlay.get("properties", {}):
        # A new section is open to experiments too, where they do not have a word of that name for themselves.
        if name != "experiment" and entry.setdefault(name, {"$ref": f"#/properties/{name}"}) != {
            "$ref": f"#/properties/{name}"
        }:
            raise _error(
                f"a section {show(name)} would be taken for an experiment's own {show(name)}; rename it", source
            )


def check_defaults(schema: Schema, defaults: dict[str, Any], source: str) -> None:
    """Refuse an overlay that gives a key a default of another type than it allows."""
    for _, what in schema_checks.key_and_type_problems(defaults, schema):
        raise _error(f"a default is refused by its own key: {what}", source)


def _add(ours: Node, theirs: Any, path: tuple[str, ...], source: str) -> None:
    """Add the properties of `theirs` to the section `ours`."""
    where = ".".join(path) or "the top"
    if not isinstance(theirs, dict) or not isinstance(theirs.get("properties", {}), dict):
        raise _error(f"what it says about {show(where)} is not an object with 'properties'", source)
    if extra := sorted(set(theirs) - _WORDS):
        raise _error(f"{show(extra[0])} at {show(where)} would change a section of the kit", source)
    if theirs.get("type", "object") != "object":
        raise _error(f"the type of {show(where)} cannot be changed", source)
    for name, node in theirs.get("properties", {}).items():
        known = ours["properties"].get(name)
        inner = (*path, name)
        if known is None:
            _check(node, inner, source)
            ours["properties"][name] = node
        elif "properties" in known and inner != ("experiments",):
            _add(known, node, inner, source)
        else:
            raise _error(
                f"the key {show('.'.join(inner))} is the kit's own and cannot be changed; take another name", source
            )


def _check(node: Any, path: tuple[str, ...], source: str, hashed: bool = True) -> None:
    """Refuse a new key that is no schema, and close a new section (its x- door stays open).

    A key without x-hash has its new section's; a section without one is hashed, whatever of ours it stands in.
    """
    name = ".".join(path)
    if not _KEY.fullmatch(path[-1]):
        raise _error(f"the key {show(name)} cannot be written: use {_KEY_RULE}", source)
    if not isinstance(node, dict):
        raise _error(f"the key {show(name)} has no schema but {show(node)}", source)
    _check_words(node, name, source)
    types = node.get("type", [])
    for kind in [types] if isinstance(types, str) else types if isinstance(types, list) else [None]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise _error(f"the key {show(name)} has the unknown type {show(kind)}", source)
    if len(path) == 1 and not isinstance(node.get("properties"), dict):
        raise _error(f"{show(name)} at the top must be a section: an object with 'properties'", source)
    hashed = node.setdefault("x-hash", hashed)
    if "properties" in node:
        node["type"] = "object"
        node.setdefault("additionalProperties", False)
        node.setdefault("patternProperties", {"^x-": {}})
        for key, inner in node["properties"].items():
            _check(inner, (*path, key), source, hashed)


def _check_words(node: Node, name: str, source: str) -> None:
    """Refuse a new key's words that our own code reads, where they have another shape than it expects."""
    for word in ("properties", "patternProperties"):
        if not isinstance(node.get(word, {}), dict):
            raise _error(f"{show(word)} of the key {show(name)} is not an object", source)
    for pattern in node.get("patternProperties", {}):
        try:
            re.compile(pattern)
        except re.error as error:
            raise _error(f"{show(pattern)} of the key {show(name)} is no regular expression: {error}", source) from None
    aliases = node.get("x-aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise _error(f"'x-aliases' of the key {show(name)} is not a list of texts", source)
    if not isinstance(node.get("x-executed", False), bool):
        raise _error(f"'x-executed' of the key {show(name)} is neither true nor false", source)
    if "x-on-resume" in node:
        _check_effect(node["x-on-resume"], name, source)


def _check_effect(effect: Any, name: str, source: str) -> None:
    """Refuse an effect that no plan understands: a misspelt one would make a costly change look free."""
    where = f"'x-on-resume' of the key {show(name)}"
    if not isinstance(effect, dict):
        raise _error(f"{where} is {show(effect)}, not an object", source)
    by_direction = any(word in DIRECTIONS for word in effect)
    for word, action in effect.items():
        if by_direction and word in DIRECTIONS:
            _check_effect(action, name, source)
        elif by_direction:
            raise _error(
                f"{where} has {show(word)} beside a direction ({', '.join(DIRECTIONS)}); put it inside", source
            )
        elif word in ("consent", "refuse"):
            if not isinstance(action, str) or not action:
                raise _error(f"{where}: {show(word)} is {show(action)}, not a reason in words", source)
        elif word == "within":
            if type(action) not in (int, float) or not action > 1:
                raise _error(f"{where}: 'within' is {show(action)}, not a factor above 1", source)
        elif word not in ALLOWED:
            raise _error(f"{where} names {show(word)}; a component is one of {', '.join(ALLOWED)}", source)
        elif action not in ALLOWED[word]:
            can_be = ", ".join(ALLOWED[word])
            raise _error(f"{where}: {show(action)} can't be done with {word}, but {can_be}", source)


def _has_ref(node: Any) -> bool:
    # A reference could reach into the kit's own keys, or out into the network.
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "$ref" in one or "$dynamicRef" in one:
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


def _error(what: str, source: str) -> InvalidFile:
    return InvalidFile(f"the lab's schema {show(source, 400)}: {what}")
