"""The config's schema: which keys there are, what may stand there, what a change of each costs a resumed run.

Reads schemas/config.schema.json and a lab's overlay (schemas/lab.schema.json), which adds keys and never changes ours.
Try it: `PYTHONPATH=lib python -c "from resumekit.configuration import schema; print(*schema.load().leaves)"`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..basics import paths
from ..basics.errors import InvalidFile
from ..basics.files import UnreadableFile, read_bounded
from .yaml_scalars import show

CONFIG_SCHEMA = paths.SCHEMAS / "config.schema.json"
LAB_SCHEMA = paths.SCHEMAS / "lab.schema.json"
SCHEMA_BYTES = 1 << 20
EXPERIMENTS = "experiments"

Node = dict[str, Any]


class Schema:
    """The config's schema with a lab's overlay merged into it."""

    def __init__(self, tree: Node) -> None:
        self.tree = tree

    @cached_property
    def leaves(self) -> dict[str, Node]:
        """Every key that holds a value, dotted -> its node, in the schema's order; experiments left out."""
        return dict(_leaves(self.tree, ()))

    @cached_property
    def sections(self) -> dict[str, Node]:
        """Every section, dotted -> its node, outer ones first; experiments left out."""
        return dict(_sections(self.tree, ()))

    @cached_property
    def executed(self) -> tuple[str, ...]:
        """The keys whose values are executed, or decide what is (`x-executed`): a process, its place, its environment.

        So do the names of files and folders, which a command has placeholders for, and the regular expressions that the
        sidecar runs. Taken from another user's run only with a person's consent.
        """
        return tuple(key for key, node in self.leaves.items() if node.get("x-executed") is True)

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
        schema_overlay.check_defaults(schema, defaults(schema), str(overlay_path))
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
    """Return `value` with numbers as their schema type has them: 1e5 as an integer is 100000, 1 as a number 1.0."""
    node = follow(node, tree)
    types = types_of(node)
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
    section, _, own = name.rpartition(".")
    # In a section that there is only its own part is wrong: compared whole, everything in the section would be near.
    siblings = [key for key in known if section and key.rpartition(".")[0] == section]
    elsewhere = [key for key in known if siblings and key.rpartition(".")[2] == own]
    if close := _near(own, siblings) or next(iter(elsewhere), None) or (None if siblings else _near(name, known)):
        return f"; the nearest known is {show(close)}"
    shown = siblings or known
    return f"; known are {', '.join(shown)}" if len(shown) <= 14 else ""


def _near(name: str, known: list[str]) -> str | None:
    """Return the key that a misspelt or shortened name most likely means; a last part is compared with last parts."""
    import difflib  # only for a message

    parts = {key if "." in name else key.rpartition(".")[2]: key for key in reversed(known)}
    begun = [part for part in parts if len(name) > 2 and part.startswith(name)]
    close = begun or difflib.get_close_matches(name, parts, n=1, cutoff=0.6)
    return parts[close[0]] if close else None


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


def follow(node: Node, tree: Node) -> Node:
    """Return what a node refers to, or the node itself."""
    while "$ref" in node:  # ours are all '#/...'; the overlay's are checked when it is merged
        target: Any = tree
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def types_of(node: Node) -> tuple[str, ...]:
    """Return the types that a node allows, none where it does not say."""
    kind = node.get("type", ())
    return (kind,) if isinstance(kind, str) else tuple(kind)


def _read(path: Path) -> Node:
    try:
        tree = json.loads(read_bounded(path, SCHEMA_BYTES))
    except (UnreadableFile, ValueError, RecursionError) as error:
        raise InvalidFile(f"the schema {show(str(path), 400)} cannot be read: {show(str(error), 200)}") from None
    if not isinstance(tree, dict):
        raise InvalidFile(f"the schema {show(str(path), 400)} is not a JSON object")
    return tree
