"""The config's schema: which keys there are, what may stand there, what a change of each costs a resumed run.

Reads schemas/config.schema.json and the overlays, which add keys and never change ours: those that it names under
`x-overlays` (the example's), where their files are there, and a lab's (schemas/lab.schema.json).
Try it: `PYTHONPATH=lib python -c "from resumekit.config import schema; print(*schema.load().leaves)"`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from ..base import paths
from ..base.errors import InvalidFile, KitIncomplete
from ..base.files import UnreadableFile, read_bounded
from ..base.imports import Any
from . import validate
from .validate import Finding, Node, child, follow, types_of
from .yaml_scalars import show

CONFIG_SCHEMA = paths.SCHEMAS / "config.schema.json"
LAB_SCHEMA = paths.SCHEMAS / "lab.schema.json"
SCHEMA_BYTES = 1 << 20
EXPERIMENTS = "experiments"
# An overlay of these alone, with no property, lays nothing over: the shipped schemas/lab.schema.json is one.
_SAYS_NOTHING = frozenset({"$schema", "$id", "$comment", "title", "description", "type", "properties"})


class Schema:
    """The config's schema with the overlays merged into it."""

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

    def named(self, name: str) -> list[str]:
        """Return the dotted keys that a bare name means: those that end with it, or have it as an alias.

        Of those the ones in the fewest sections: `optimizer` is resume.optimizer, not checkpoint.keys.optimizer.
        """
        found = [
            key
            for key, node in self.leaves.items()
            if key.rpartition(".")[2] == name or name in node.get("x-aliases", ())
        ]
        fewest = min((key.count(".") for key in found), default=0)
        return [key for key in found if key.count(".") == fewest]

    def hashed(self, key: str) -> bool:
        """Return whether a key is part of the config hash; an undeclared one is, unless its section is not."""
        while key:
            node = self.leaves.get(key) or self.sections.get(key) or {}
            if "x-hash" in node:
                return bool(node["x-hash"])
            key = key.rpartition(".")[0]
        return True

    def findings(self, data: Any, lines: Mapping[tuple[str, ...], int] | None = None) -> list[Finding]:
        """Return what is wrong with a config or a part of one, as `validate.findings`.

        Args:
            data: plain JSON values.
            lines: the path of each key -> its line; None where `data` was not read from a file.

        Raises:
            InvalidFile: a lab's overlay has a rule that cannot be used.
        """
        return validate.findings(data, self.tree, meant=self._meant, lines=lines)

    def _meant(self, name: str, siblings: list[str]) -> str:
        """Return what an unknown key may have meant: the key of that name in another section, or the nearest one."""
        if elsewhere := self.named(name):
            return f"; {show(name)} is the key {' or '.join(map(show, elsewhere))}"
        close = None if near(name, siblings) else near(name, list(self.leaves))
        return f"; the nearest known is {show(close)}" if close else nearest(name, siblings)


def load(lab_schema: Path | None = None) -> Schema:
    """Read the schema, the kit's overlays that are here, and the lab's.

    A config of before may have keys of an overlay that is not here: they are taken, with their type and no more.

    Args:
        lab_schema: the lab's overlay; None for schemas/lab.schema.json, which may be missing.

    Raises:
        InvalidFile: one of them is no schema, or an overlay changes a key of ours or of the overlay before it.
    """
    tree = _read(CONFIG_SCHEMA)
    own = [path for name in tree.get("x-overlays", {}) if (path := paths.KIT_ROOT / name).exists()]
    labs = [lab_schema or LAB_SCHEMA] if lab_schema or LAB_SCHEMA.exists() else []
    for path in (*own, *labs):
        overlay = _read(path, is_labs=path in labs)
        if overlay.get("properties") != {} or not overlay.keys() <= _SAYS_NOTHING or overlay.get("type") != "object":
            from . import schema_overlay  # only where there is something in one

            schema_overlay.merge(tree, overlay, str(path))
    _add_absent_keys(tree)
    return Schema(tree)


def _add_absent_keys(tree: Node) -> None:
    """Add the keys of the kit's overlays that no file declares, marked with the overlay that would (`x-absent`)."""
    for name, keys in tree.get("x-overlays", {}).items():
        why = f"its schema '{name}' is not in this copy of the kit"
        for key, types in keys.items():
            section, _, own = key.partition(".")
            node = {"type": types, "x-absent": name, "x-on-resume": {"consent": why}}
            tree["properties"][section]["properties"].setdefault(own, node)


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


def nearest(name: str, known: list[str]) -> str:
    """Return ', nearest known: ...' or the known keys if there are few, for a message about an unknown one."""
    section, _, own = name.rpartition(".")
    # In a section that there is only its own part is wrong: compared whole, everything in the section would be near.
    siblings = [key for key in known if section and key.rpartition(".")[0] == section]
    elsewhere = [key for key in known if siblings and key.rpartition(".")[2] == own]
    if close := near(own, siblings) or next(iter(elsewhere), None) or (None if siblings else near(name, known)):
        return f"; the nearest known is {show(close)}"
    shown = siblings or known
    return f"; known are {', '.join(shown)}" if 0 < len(shown) <= 14 else ""


def near(name: str, known: list[str]) -> str | None:
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


def _read(path: Path, *, is_labs: bool = False) -> Node:
    try:
        tree = json.loads(read_bounded(path, SCHEMA_BYTES))
    except (UnreadableFile, ValueError, RecursionError) as error:
        what = f"the schema {show(str(path), 400)} cannot be read: {show(str(error), 200)}"
        if is_labs:
            raise InvalidFile(what) from None
        raise KitIncomplete(f"{what}; is the kit copied whole?") from None
    if not isinstance(tree, dict):
        raise InvalidFile(f"the schema {show(str(path), 400)} is not a JSON object")
    return tree
