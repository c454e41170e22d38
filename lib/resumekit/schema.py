"""The config's schema: which keys there are, what may stand there, what a change of each costs a resumed run.

Reads schemas/config.schema.json and a lab's overlay (schemas/lab.schema.json), which adds keys and never changes ours.
Unknown keys and wrong types are found by a walk of our own, ranges and the like by jsonschema where it is installed.
Try it: `python -c "import sys; sys.path.append('lib'); from resumekit import schema; print(*schema.load().leaves)"`
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import paths
from .errors import InvalidFile
from .files import UnreadableFile, read_bounded
from .yaml_scalars import show

CONFIG_SCHEMA = paths.SCHEMAS / "config.schema.json"
LAB_SCHEMA = paths.SCHEMAS / "lab.schema.json"
SCHEMA_BYTES = 1 << 20
EXPERIMENTS = "experiments"
_MOST_PROBLEMS = 20

Node = dict[str, Any]
Problem = tuple[tuple[str, ...], str]  # path of the key, what is wrong with what to do


@dataclass(frozen=True)
class Schema:
    """The config's schema with a lab's overlay merged into it."""

    tree: Node

    @cached_property
    def leaves(self) -> dict[str, Node]:
        """Every key that holds a value, dotted -> its node, in the schema's order; experiments left out."""
        return dict(_leaves(self.tree, ()))

    @cached_property
    def sections(self) -> dict[str, Node]:
        """Every section, dotted -> its node, outer ones first; experiments left out."""
        return dict(_sections(self.tree, ()))

    def hashed(self, key: str) -> bool:
        """Return whether a key is part of the config hash; an undeclared one is, unless its section is not."""
        while key:
            node = self.leaves.get(key) or self.sections.get(key) or {}
            if "x-hash" in node:
                return bool(node["x-hash"])
            key = key.rpartition(".")[0]
        return True


def load(lab_schema: Path | None = None) -> Schema:
    """Read the schema and the overlay.

    Args:
        lab_schema: the lab's overlay; None for schemas/lab.schema.json, which may be missing.

    Raises:
        InvalidFile: one of them is no schema, or the overlay changes a key of ours.
    """
    tree = _read(CONFIG_SCHEMA)
    overlay_path = lab_schema or LAB_SCHEMA
    schema = Schema(tree)
    if (lab_schema or overlay_path.exists()) and (overlay := _read(overlay_path)).get("properties") != {}:
        from . import schema_overlay  # only where there is something in one

        schema_overlay.merge(tree, overlay, str(overlay_path))
        for _, what in _walk(defaults(schema), tree, tree, ()):
            raise InvalidFile(f"the lab's schema {show(str(overlay_path), 400)} gives a default that it refuses: {what}")
    return schema


def defaults(schema: Schema) -> dict[str, Any]:
    """Return the values that the schema itself gives: every section, and each key of the kit's own."""
    found: dict[str, Any] = {}
    for name in schema.sections:
        _put(found, name, {})
    for name, node in schema.leaves.items():
        if "default" in node:
            _put(found, name, json.loads(json.dumps(node["default"])) if node["default"] else node["default"])
    return found


def normalise(value: Any, node: Node, tree: Node) -> Any:
    """Return `value` with its numbers as their schema type has them: 1e5 for an integer is 100000, 1 for a number 1.0."""
    node = _follow(node, tree)
    types = _types(node)
    if isinstance(value, bool) or not types:
        return value
    if value is None and ("properties" in node or "patternProperties" in node):
        return {}  # `training:` with nothing below it
    if isinstance(value, int) and "number" in types and "integer" not in types:
        return float(value)
    if isinstance(value, float) and "integer" in types and "number" not in types and value.is_integer():
        return int(value)
    if isinstance(value, list) and isinstance(node.get("items"), dict):
        return [normalise(item, node["items"], tree) for item in value]
    if isinstance(value, dict):
        return {name: normalise(item, child(name, node) or {}, tree) for name, item in value.items()}
    return value


def problems(data: Any, schema: Schema) -> list[Problem]:
    """Return what is wrong with a config or a part of one: unknown keys and types, then the finer checks.

    A key that is missing is no problem here: an experiment names only what it changes.
    """
    # The first ones will do: a file of 100,000 unknown keys must not take minutes of looking for near names.
    found = list(itertools.islice(_walk(data, schema.tree, schema.tree, ()), _MOST_PROBLEMS))
    return found or list(itertools.islice(_fine_checks(data, schema), _MOST_PROBLEMS))


def child(name: str, node: Node) -> Node | None:
    """Return the schema of a key inside a section: None where the section does not know it, {} behind an x- door."""
    if name in node.get("properties", {}):
        return node["properties"][name]
    for pattern, inner in node.get("patternProperties", {}).items():
        if re.search(pattern, name):
            return inner
    extra = node.get("additionalProperties", True)
    return None if extra is False else extra if isinstance(extra, dict) else {}


def nearest(name: str, known: list[str]) -> str:
    """Return ', nearest known: ...' or the known keys if there are few, for a message about an unknown one."""
    import difflib  # only for a message

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not close and len(known) > 12:
        return ""
    return f"; the nearest known is {show(close[0])}" if close else f"; known are {', '.join(known)}"


def _walk(value: Any, node: Node, tree: Node, path: tuple[str, ...]) -> Iterator[Problem]:
    node = _follow(node, tree)
    types = _types(node)
    if types and not any(_is(value, kind) for kind in types):
        yield (
            path,
            f"{_dotted(path)} is {show(value)}, {_kind(value)}, and must be {_either(types)}{_type_hint(value, types)}",
        )
    elif isinstance(value, dict) and ("properties" in node or "patternProperties" in node):
        for name, item in value.items():
            inner = child(name, node)
            if inner is None:
                yield (*path, name), _unknown(name, node, path)
            else:
                yield from _walk(item, inner, tree, (*path, name))
    elif isinstance(value, list) and isinstance(node.get("items"), dict):
        for index, item in enumerate(value, start=1):
            for _, what in _walk(item, node["items"], tree, (*path, f"item {index}")):
                yield path, what


def _unknown(name: str, node: Node, path: tuple[str, ...]) -> str:
    if "x-pattern-says" in node:
        return f"the name {show(name)} under '{'.'.join(path)}' is refused: it must be {node['x-pattern-says']}"
    where = f"in section '{'.'.join(path)}'" if path else "at the top"
    return f"there is no key {show(name)} {where}{nearest(name, list(node.get('properties', {})))}"


def _fine_checks(data: Any, schema: Schema) -> Iterator[Problem]:
    try:
        # 75 ms, most of what reading a config costs: only when there is one to check.
        from jsonschema import Draft202012Validator
    except ImportError:
        _say_once(
            "jsonschema is not installed: ranges, allowed words, patterns and lengths of config values are not checked"
        )
        return
    try:
        for error in Draft202012Validator(schema.tree).iter_errors(data):
            path = tuple(part for part in error.absolute_path if isinstance(part, str))
            items = [f"item {part + 1}" for part in error.absolute_path if isinstance(part, int)]
            yield path, _constraint(error, (*path, *items))
    except Exception as error:  # a lab's schema may hold anything, and jsonschema trips over it in many ways
        raise InvalidFile(
            f"the config schema cannot be used: {show(str(error), 200)}; look at the lab's overlay"
        ) from None


def _constraint(error: Any, path: tuple[str, ...]) -> str:
    rule, limit, value = error.validator, error.validator_value, show(error.instance)
    says = {
        "enum": lambda: f"one of {', '.join(map(_word, limit))}",
        "const": lambda: _word(limit),
        "minimum": lambda: f"at least {limit}",
        "maximum": lambda: f"at most {limit}",
        "exclusiveMinimum": lambda: f"above {limit}",
        "exclusiveMaximum": lambda: f"below {limit}",
        "multipleOf": lambda: f"a multiple of {limit}",
        "pattern": lambda: error.schema.get("x-pattern-says") or f"of the form {limit}",
        "minLength": lambda: f"at least {limit} characters long",
        "maxLength": lambda: f"at most {limit} characters long",
        "minItems": lambda: f"a list of at least {limit}",
        "maxItems": lambda: f"a list of at most {limit}",
    }.get(rule)
    if says is None:
        return f"{_dotted(path)} is {value} and breaks the schema's rule {show(rule)}"
    return f"{_dotted(path)} is {value} and must be {says()}"


def _leaves(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, Node]]:
    for name, inner in node["properties"].items():
        if not path and name == EXPERIMENTS:
            continue
        if "properties" in inner:
            yield from _leaves(inner, (*path, name))
        else:
            yield ".".join((*path, name)), inner


def _sections(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, Node]]:
    for name, inner in node["properties"].items():
        if "properties" in inner and not (not path and name == EXPERIMENTS):
            yield ".".join((*path, name)), inner
            yield from _sections(inner, (*path, name))


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data.setdefault(name, value)


def _follow(node: Node, tree: Node) -> Node:
    while "$ref" in node:  # ours are all '#/...'; the overlay's are checked when it is merged
        target: Any = tree
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def _types(node: Node) -> tuple[str, ...]:
    kind = node.get("type", ())
    return (kind,) if isinstance(kind, str) else tuple(kind)


def _is(value: Any, kind: str) -> bool:
    if kind == "null":
        return value is None
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, {"number": (int, float), "string": str, "array": list, "object": dict}.get(kind, ()))


_KINDS = {"null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number",
          "string": "a text", "array": "a list", "object": "a section"}  # fmt: skip


def _kind(value: Any) -> str:
    for kind in ("null", "boolean", "integer", "number", "string", "array", "object"):
        if _is(value, kind):
            return _KINDS[kind]
    return "of no known kind"


def _either(types: tuple[str, ...]) -> str:
    return " or ".join(_KINDS[kind] for kind in types)


def _type_hint(value: Any, types: tuple[str, ...]) -> str:
    if "string" in types and isinstance(value, (bool, int, float)):
        return "; put it in quotes"
    if "array" in types and not isinstance(value, (dict, list)):
        return "; write [a, b]"
    return ""


def _word(value: Any) -> str:
    return show(value) if isinstance(value, str) else str(value)


def _dotted(path: tuple[str, ...]) -> str:
    if path and path[-1].startswith("item "):
        return f"{path[-1]} of {_dotted(path[:-1])}"
    return show(".".join(path), 200) if path else "the config"


def _read(path: Path) -> Node:
    try:
        tree = json.loads(read_bounded(path, SCHEMA_BYTES))
    except (UnreadableFile, ValueError, RecursionError) as error:
        raise InvalidFile(f"the schema {show(str(path), 400)} cannot be read: {show(str(error), 200)}") from None
    if not isinstance(tree, dict):
        raise InvalidFile(f"the schema {show(str(path), 400)} is not a JSON object")
    return tree


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(f"resumekit: {text}; pip install jsonschema", file=sys.stderr)
