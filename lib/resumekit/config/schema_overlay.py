"""Keys that are laid over the kit's schema, a lab's own or the example's: added, never changed.

Reads nothing; `schema.load` hands it both.
Try it: put a key into schemas/lab.schema.json, and `bin/run.sh EXP --dry-run`
"""

from __future__ import annotations

import re

from ..base.errors import InvalidFile
from ..base.imports import Any
from ..base.terms import ALLOWED, DIRECTIONS
from . import validate
from .validate import Node
from .yaml_scalars import show

# What an overlay may say about itself or about a section of ours, beside the properties that it adds.
_WORDS = {"$schema", "$id", "$comment", "title", "description", "type", "properties"}
# The words of a key that do something: one that is nearly one of them is a slip, and not a note.
_KEY_WORDS = (
    *validate.RULES, "type", "items", "prefixItems", "propertyNames", "properties", "patternProperties", "default",
    "additionalProperties", "x-on-resume", "x-hash", "x-aliases", "x-executed", "x-divides", "x-pattern-says",
)  # fmt: skip
# Rules of JSON Schema that are near to one of those by chance.
_NEAR_RULES = ("minProperties", "maxProperties")
_KEY_RULE = "letters, digits, '_' and '-', beginning with a letter, and not with 'x-'"


def merge(tree: Node, overlay: Node, source: str) -> None:
    """Add an overlay's keys to the kit's schema, in place.

    Args:
        tree: the kit's schema, with the overlays before this one.
        overlay: `properties` in the same shape; new keys in our sections, and sections of its own.
        source: the overlay's file name, for messages.

    Raises:
        InvalidFile: it changes a key that is there, is no schema, or gives a key a default that the key refuses.
    """
    if _has_ref(overlay):
        raise _error("it uses '$ref', which an overlay may not; write the schema out", source)
    entry = next(iter(tree["properties"]["experiments"]["patternProperties"].values()))["properties"]
    owners = {key: path for path, keys in tree.get("x-overlays", {}).items() for key in keys}
    _add(tree, overlay, (), source, owners)
    for name in overlay.get("properties", {}):
        # A new section is open to experiments too, where they do not have a word of that name for themselves.
        if name != "experiment" and entry.setdefault(name, {"$ref": f"#/properties/{name}"}) != {
            "$ref": f"#/properties/{name}"
        }:
            raise _error(
                f"a section {show(name)} would be taken for an experiment's own {show(name)}; rename it", source
            )


def _add(ours: Node, theirs: Any, path: tuple[str, ...], source: str, owners: dict[str, str]) -> None:
    """Add the properties of `theirs` to the section `ours`; `owners` has the overlay of keys that are not the kit's."""
    where = ".".join(path) or "the top"
    if not isinstance(theirs, dict) or not isinstance(theirs.get("properties", {}), dict):
        raise _error(f"what it says about {show(where)} is not an object with 'properties'", source)
    # A lab may have had a section before the kit had one of that name: what it says of it may be what the kit says.
    same = {"x-hash"} if "x-hash" in theirs and theirs["x-hash"] is ours.get("x-hash") else set()
    if extra := sorted(set(theirs) - _WORDS - same):
        raise _error(f"{show(extra[0])} at {show(where)} would change a section of the kit", source)
    if theirs.get("type", "object") != "object":
        raise _error(f"the type of {show(where)} cannot be changed", source)
    for name, node in theirs.get("properties", {}).items():
        known = ours["properties"].get(name)
        inner = (*path, name)
        if known is None:
            if same and isinstance(node, dict):
                node.setdefault("x-hash", theirs["x-hash"])
            _check(node, inner, source)
            ours["properties"][name] = node
        elif "properties" in known and inner != ("experiments",):
            _add(known, node, inner, source, owners)
        else:
            key = ".".join(inner)
            if key in owners:
                owner = show(owners[key])
                raise _error(f"the key {show(key)} is declared in {owner} already; leave it to one of the two", source)
            raise _error(f"the key {show(key)} is the kit's own and cannot be changed; take another name", source)


def _check(node: Any, path: tuple[str, ...], source: str, hashed: bool = True) -> None:
    """Refuse a new key that is no schema, and close a new section (its x- door stays open).

    A key without x-hash has its new section's; a section without one is hashed, whatever of ours it stands in.
    """
    name = ".".join(path)
    if not _is_key(path[-1]):
        raise _error(f"the key {show(name)} cannot be written: use {_KEY_RULE}", source)
    if not isinstance(node, dict):
        raise _error(f"the key {show(name)} has no schema but {show(node)}", source)
    _check_words(node, name, source)
    types = node.get("type", [])
    for kind in [types] if isinstance(types, str) else types if isinstance(types, list) else [None]:
        if not isinstance(kind, str) or kind not in validate.KINDS:
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
    elif "default" in node:
        for finding in validate.findings(node["default"], node, path=path):
            raise _error(f"a default is refused by its own key: {finding.sentence}", source)


def _is_key(name: str) -> bool:
    """Return whether a name can be a key by _KEY_RULE.

    A key is written with dots in `--set`, so it has none of its own; 'x-' is the door for keys that no schema knows.
    Without a regular expression: compiling one costs each start beside the example 0.3 ms.
    """
    signs = name.replace("_", "").replace("-", "")
    return name[:1] not in "-0123456789" and signs.isascii() and f"a{signs}".isalnum() and not name.startswith("x-")


def _check_words(node: Node, name: str, source: str) -> None:
    """Refuse a new key's words that are misspelt, and those that our own code reads in another shape than it expects.

    A word that is near to none of ours may be a rule for jsonschema, or a note.
    """
    for word in (word for word in node if word not in _KEY_WORDS and word not in _NEAR_RULES):
        import difflib  # late: hardly any key has such a word

        for meant in difflib.get_close_matches(word, _KEY_WORDS, n=1, cutoff=0.8):
            hint = f"the nearest known is {show(meant)}"
            raise _error(f"{show(word)} of the key {show(name)} is no word of a schema; {hint}", source)
    if not isinstance(node.get("x-hash", True), bool):
        raise _error(f"'x-hash' of the key {show(name)} is neither true nor false", source)
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
    if not isinstance(node.get("x-divides", ""), str):
        raise _error(f"'x-divides' of the key {show(name)} is not the name of a key", source)
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
    return InvalidFile(f"the overlay {show(source, 400)} of the config's schema: {what}")
