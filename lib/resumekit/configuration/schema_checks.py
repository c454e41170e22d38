"""What is wrong with a config: unknown keys and types by a walk of our own, the finer rules by jsonschema.

Reads nothing. Every problem is one sentence: the key, its value, what it must be, the nearest known one.
Try it: `python lib/config_resolver.py --logdir /tmp/look --set training.sede=1`
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from ..basics import third_party
from ..basics.errors import InvalidFile
from ..basics.terminal import say
from .schema import Node, Schema, child, follow, nearest, types_of
from .schema_glance import is_surely_valid, is_type
from .yaml_scalars import Fault, show

Problem = tuple[tuple[str, ...], str]  # path of the key, what is wrong with what to do
_MOST_PROBLEMS = 20


def problems(data: Any, schema: Schema) -> list[Problem]:
    """Return what is wrong with a config or a part of one: unknown keys and types, then the finer checks.

    A key that is missing is no problem here: an experiment names only what it changes.
    """
    # The first ones will do: a file of 100,000 unknown keys must not take minutes of looking for near names.
    found = list(itertools.islice(key_and_type_problems(data, schema), _MOST_PROBLEMS))
    return found or list(itertools.islice(_fine_checks(data, schema), _MOST_PROBLEMS))


def key_and_type_problems(data: Any, schema: Schema) -> Iterator[Problem]:
    """Yield unknown keys and wrong types, in the order in which they stand."""
    return _walk(data, schema.tree, schema.tree, ())


def refused_word(path: tuple[str, ...], fault: Fault, schema: Schema) -> str | None:
    """Say of a word that YAML readers disagree about what its key takes, if that is none of what it may mean.

    Args:
        path: the key's.
        fault: with the word.
        schema: what it takes.
    """
    node: Node | None = schema.tree
    for part in path:
        node = child(part, follow(node, schema.tree))
        if node is None:
            return None
    node = follow(node, schema.tree)
    types = types_of(node)
    if not types or not set(types) <= {"boolean", "integer", "number", "null"}:
        return None
    why = f" ({fault.why})" if fault.why else ""
    switch = "; write null to switch it off" if "null" in types and fault.word.lower() in ("off", "no", "n") else ""
    return f"{_dotted(path)} is {show(fault.word)}{why} and must be {_takes(node)}{switch}"


def empty_value(path: tuple[str, ...], schema: Schema) -> str | None:
    """Say of a key that is given no value at all what it takes; None where nothing is a value of it."""
    node = schema.leaves.get(".".join(path), {})
    types = types_of(node)
    if not types or {"null", "string"} & set(types):
        return None
    return f"{_dotted(path)} is empty and must be {_takes(node)}"


def _walk(value: Any, node: Node, tree: Node, path: tuple[str, ...]) -> Iterator[Problem]:
    node = follow(node, tree)
    types = types_of(node)
    if types and not any(is_type(value, kind) for kind in types):
        what = "null" if value is None else f"{show(value)}, {_kind(value)},"
        yield path, f"{_dotted(path)} is {what} and must be {_takes(node)}{_type_hint(value, types)}"
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


def _is_surely_valid(data: Any, schema: Schema) -> bool:
    try:
        return is_surely_valid(data, schema.tree, schema.tree)
    except Exception:  # a lab's schema may hold anything; jsonschema says what is wrong with it
        return False


def _fine_checks(data: Any, schema: Schema) -> Iterator[Problem]:
    if _is_surely_valid(data, schema):
        return
    third_party.find()
    try:
        # 50 ms, more than all the rest of reading a config: only where something is off.
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
    rule, limit, value = error.validator, error.validator_value, _number_as_typed(error.instance)
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


_KINDS = {
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "a section",
}


def _kind(value: Any) -> str:
    for kind in ("null", "boolean", "integer", "number", "string", "array", "object"):
        if is_type(value, kind):
            return _KINDS[kind]
    return "of no known kind"


_LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
# A limit as far away as that is one of the machine and says nothing to a person.
_ENDLESS = 2**53


def _takes(node: Node) -> str:
    """Return what a key takes: 'a number above 0 and below 1 or null'."""
    kinds = []
    for kind in types_of(node):
        limits = [f"{word} {node[rule]}" for rule, word in _LIMITS.items() if _is_near(node.get(rule))]
        of = " of" if limits and limits[0].startswith("at ") else ""
        is_limited = limits and kind in ("integer", "number")
        kinds.append(f"{_KINDS[kind]}{of} {' and '.join(limits)}" if is_limited else _KINDS[kind])
    return " or ".join(kinds)


def _is_near(limit: Any) -> bool:
    return type(limit) in (int, float) and abs(limit) < _ENDLESS


def _number_as_typed(value: Any) -> str:
    """Return a value for a message; a number of the schema is a float by now, and was typed as 50."""
    return show(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value)


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


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say("resumekit", f"{text}; pip install jsonschema")
