"""What is wrong with a config: one walk along the schema, one table of the schema's rules.

`RULES` has each keyword that says something about a value: when it holds, and what a value must be. The walk goes along
the keywords that lead further in. A lab's overlay may use other keywords: those, and only those, jsonschema judges.
Reads nothing. Every finding is one sentence: the key, its value, what it must be. Source: docs/decisions/0024.
Try it: `python lib/config_resolver.py --logdir /tmp/look --set training.sede=1`
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping

from ..base import imports
from ..base.errors import InvalidFile
from ..base.imports import Any, NamedTuple
from ..base.terminal import say
from .yaml_scalars import Fault, show

Node = dict[str, Any]
Path = tuple[str, ...]
# A path with the items of lists in it, counted from 1.
_Place = tuple[Any, ...]
# The first ones will do: a file of 100,000 unknown keys must not take minutes of looking for near names.
_MOST_FINDINGS = 20
# A misspelt key or a wrong type is told before a value out of range, wherever they stand.
_TOLD_FIRST = frozenset({"type", "additionalProperties"})
# In the place of a keyword, where the schema of a value is `false`.
_NOTHING = "false"


class Finding(NamedTuple):
    """One thing that is wrong with a config.

    Args:
        path: of the key; of one below a list that of the list.
        keyword: the schema's rule that is broken; 'additionalProperties' says that the key is not known.
        value: what stands there.
        sentence: the key, its value, what it must be.
        line: where it stands in its file, counted from 1; None where it was not read from a file.
    """

    path: Path
    keyword: str
    value: Any
    sentence: str
    line: int | None = None


class Rule(NamedTuple):
    """A keyword of JSON Schema that says something about a value itself.

    Args:
        kind: the JSON type that it is about, values of others always hold; None for all.
        holds: (value, limit) -> whether the value is as the limit says.
        must_be: what a value must be, with {} for the limit.
        in_words: limit -> how it is written there.
    """

    kind: str | None
    holds: Callable[[Any, Any], bool]
    must_be: str
    in_words: Callable[[Any], str] = str

    def says(self, limit: Any) -> str:
        """Return what a value must be: 'at least 3'."""
        return self.must_be.format(self.in_words(limit))


def findings(
    data: Any,
    tree: Node,
    *,
    path: Path = (),
    meant: Callable[[str, list[str]], str] = lambda name, siblings: "",
    lines: Mapping[Path, int] | None = None,
) -> list[Finding]:
    """Return what is wrong with a config or a part of one, in its order, twenty at most; none where it is valid.

    A key that is missing is no finding: an experiment names only what it changes.

    Args:
        data: plain JSON values.
        tree: the schema that it is held against; each `$ref` leads from its root.
        path: of the key that `data` stands in.
        meant: (unknown key, known keys beside it) -> how the sentence about it ends.
        lines: the path of each key -> its line in the file; None where `data` was not read from one.

    Raises:
        InvalidFile: the schema has a rule that cannot be used.
    """
    walk = _Walk(tree, meant, lines)
    try:
        walk.value(data, tree, path)
    except Exception as error:  # a lab's schema may hold anything, in any place
        raise InvalidFile(
            f"the config schema cannot be used: {show(str(error), 200)}; look at the lab's overlay"
        ) from None
    return [finding for finding in walk.found if finding.keyword in _TOLD_FIRST] or walk.found


def refused_word(path: Path, fault: Fault, tree: Node) -> str | None:
    """Return what a key takes, for a word that YAML readers disagree about; None where it may mean what the key takes.

    Args:
        path: the key's.
        fault: with the word.
        tree: the whole schema.
    """
    if fault.word is None:
        return None
    node = tree
    for part in path:
        inner = child(part, follow(node, tree))
        if inner is None:
            return None
        node = inner
    node = follow(node, tree)
    types = types_of(node)
    if not types or not set(types) <= {"boolean", "integer", "number", "null"}:
        return None
    why = f" ({fault.why})" if fault.why else ""
    switch = "; write null to switch it off" if "null" in types and fault.word.lower() in ("off", "no", "n") else ""
    return f"{_dotted(path)} is {show(fault.word)}{why} and must be {_takes(node)}{switch}"


def empty_value(path: Path, node: Node) -> str | None:
    """Return what a key takes, for one that is given no value at all; None where nothing is a value of it."""
    types = types_of(node)
    if not types or {"null", "string"} & set(types):
        return None
    return f"{_dotted(path)} is empty and must be {_takes(node)}"


def is_type(value: Any, kind: str) -> bool:
    """Return whether a value has a JSON type; true and false are no numbers, 2.0 is an integer."""
    if kind == "null":
        return value is None
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _CLASSES.get(kind, ()))


def child(name: str, node: Node) -> Node | None:
    """Return the schema of a key inside a section: None where the section does not know it, {} behind an x- door."""
    named: dict[str, Node] = node.get("properties", {})
    if name in named:
        return named[name]
    patterns: dict[str, Node] = node.get("patternProperties", {})
    for pattern, inner in patterns.items():
        if re.search(pattern, name):
            return inner
    extra = node.get("additionalProperties", True)
    return None if extra is False else extra if isinstance(extra, dict) else {}


def follow(node: Node, tree: Node) -> Node:
    """Return what a node refers to, or the node itself."""
    while "$ref" in node:  # ours are all '#/...', and an overlay may not have any
        target: Any = tree
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def types_of(node: Node) -> tuple[str, ...]:
    """Return the types that a node allows, none where it does not say."""
    kind = node.get("type", ())
    return (kind,) if isinstance(kind, str) else tuple(kind)


class _Walk:
    """One pass over a config, along the schema.

    Args:
        tree, meant, lines: as in `findings`.
    """

    def __init__(self, tree: Node, meant: Callable[[str, list[str]], str], lines: Mapping[Path, int] | None) -> None:
        self.tree, self.meant, self.lines = tree, meant, lines
        self.found: list[Finding] = []

    def value(self, value: Any, node: Any, place: _Place) -> None:
        """Add what is wrong with a value, and with all that is in it."""
        if node is True or len(self.found) >= _MOST_FINDINGS:
            return
        if node is False:
            self._add(place, _NOTHING, value, _sentence(place, _NOTHING, value, {}))
            return
        types = types_of(node)
        if types and not any(is_type(value, kind) for kind in types):
            self._add(place, "type", value, _sentence(place, "type", value, node))
            return
        unknown = []
        for keyword, limit in node.items():
            if rule := RULES.get(keyword):
                if (rule.kind is None or is_type(value, rule.kind)) and not rule.holds(value, limit):
                    self._add(place, keyword, value, _sentence(place, keyword, value, node))
            elif keyword not in _KNOWN and not keyword.startswith("x-"):
                unknown.append(keyword)
        if unknown:
            self._other_rules(value, node, unknown, place)
        self._inside(value, node, place)

    def _inside(self, value: Any, node: Node, place: _Place) -> None:
        """Follow the keywords that lead further in."""
        if "$ref" in node:
            self.value(value, follow(node, self.tree), place)
        if isinstance(value, dict):
            if not _MEMBERS.isdisjoint(node):
                self._members(value, node, place)
            for name in value if "propertyNames" in node else ():
                self.value(name, node["propertyNames"], place)
        elif isinstance(value, list):
            first = node.get("prefixItems", ())
            for number, item in enumerate(value):
                inner = first[number] if number < len(first) else node.get("items", True)
                self.value(item, inner, (*place, number + 1))

    def _members(self, value: dict[str, Any], node: Node, place: _Place) -> None:
        named, patterns = node.get("properties", {}), node.get("patternProperties", {})
        extra = node.get("additionalProperties", True)
        for name, item in value.items():
            inner = [named[name]] if name in named else []
            inner += [schema for pattern, schema in patterns.items() if re.search(pattern, name)]
            if inner or extra is not False:
                for schema in inner or [extra]:
                    self.value(item, schema, (*place, name))
            elif len(self.found) < _MOST_FINDINGS:
                self._add((*place, name), "additionalProperties", item, self._unknown_key(name, node, place))

    def _unknown_key(self, name: str, node: Node, place: _Place) -> str:
        if "x-pattern-says" in node:
            return f"the name {show(name)} under {_dotted(place)} is refused: it must be {node['x-pattern-says']}"
        where = f"in section {_dotted(place)}" if place else "at the top"
        return f"there is no key {show(name)} {where}{self.meant(name, list(node.get('properties', {})))}"

    def _other_rules(self, value: Any, node: Node, keywords: list[str], place: _Place) -> None:
        """Let jsonschema judge the keywords that the kit has no rule for; what it says of others is found already."""
        imports.find_packages()
        try:
            from jsonschema import Draft202012Validator  # 50 ms: only for an overlay that needs it
        except ImportError:
            _say_once(
                f"jsonschema is not installed: {', '.join(map(show, keywords))} of {_dotted(place)} in the lab's "
                "schema is not checked; pip install jsonschema"
            )
            return
        for error in Draft202012Validator(self.tree).evolve(schema=node).iter_errors(value):
            rules = error.relative_schema_path  # empty for `then: false`
            if not rules or rules[0] in keywords:
                inside = (part + 1 if isinstance(part, int) else part for part in error.absolute_path)
                where, keyword, item = (*place, *inside), error.validator or _NOTHING, error.instance
                self._add(where, keyword, item, _sentence(where, keyword, item, error.schema))

    def _add(self, place: _Place, keyword: str, value: Any, sentence: str) -> None:
        at_list = next((depth for depth, part in enumerate(place) if isinstance(part, int)), len(place))
        path = place[:at_list]
        self.found.append(Finding(path, keyword, value, sentence, line_of(path, self.lines)))


def line_of(path: Path, lines: Mapping[Path, int] | None) -> int | None:
    """Return the line of a key, or of the nearest section around it that has one; None without any lines."""
    if lines is None:
        return None
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


# What a value of a JSON type is here; null, the truth values and whole numbers have rules of their own.
_CLASSES: dict[str, type | tuple[type, ...]] = {"number": (int, float), "string": str, "array": list, "object": dict}


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(item, other[name]) for name, item in one.items())
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _is_multiple(value: float, of: float) -> bool:
    """Whether a number is a multiple of another, as jsonschema has it: 0.3 is none of 0.1, as floats go."""
    if not isinstance(of, float):
        return value % of == 0
    quotient = value / of
    if abs(quotient) < float("inf"):
        return quotient.is_integer()
    from fractions import Fraction  # only where a float cannot hold the quotient

    return (Fraction(value) / Fraction(of)).denominator == 1


def _length(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, limit: holds(len(value), limit)


def _word(value: Any) -> str:
    """Return a limit as a config would have it: 'fp16' in quotes, null and true without."""
    return show(value) if isinstance(value, str) else show(value)[1:-1]


def _words(options: Iterable[Any]) -> str:
    return ", ".join(map(_word, options))


RULES: dict[str, Rule] = {
    "enum": Rule(None, lambda value, options: any(_same(value, one) for one in options), "one of {}", _words),
    "const": Rule(None, _same, "{}", _word),
    "minimum": Rule("number", operator.ge, "at least {}"),
    "maximum": Rule("number", operator.le, "at most {}"),
    "exclusiveMinimum": Rule("number", operator.gt, "above {}"),
    "exclusiveMaximum": Rule("number", operator.lt, "below {}"),
    "multipleOf": Rule("number", _is_multiple, "a multiple of {}"),
    "pattern": Rule("string", lambda text, pattern: re.search(pattern, text) is not None, "of the form {}"),
    "minLength": Rule("string", _length(operator.ge), "at least {} characters long"),
    "maxLength": Rule("string", _length(operator.le), "at most {} characters long"),
    "minItems": Rule("array", _length(operator.ge), "a list of at least {}"),
    "maxItems": Rule("array", _length(operator.le), "a list of at most {}"),
}
_MEMBERS = frozenset({"properties", "patternProperties", "additionalProperties"})
# What the walk itself goes by, and what says nothing about a value; everything that begins with x- says nothing either.
_KNOWN = _MEMBERS | {"type", "$ref", "items", "prefixItems", "propertyNames"}
_KNOWN |= {"$schema", "$id", "$comment", "$defs", "title", "description", "default", "examples"}

KINDS = {
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "a section",
}
_LIMITS = ("exclusiveMinimum", "minimum", "exclusiveMaximum", "maximum")
# A limit as far away as that is one of the machine and says nothing to a person.
_ENDLESS = 2**53


def _sentence(place: _Place, keyword: str, value: Any, node: Node) -> str:
    if keyword == "type":
        kind = next((KINDS[kind] for kind in KINDS if is_type(value, kind)), "of no known kind")
        what = "null" if value is None else f"{show(value)}, {kind},"
        return f"{_dotted(place)} is {what} and must be {_takes(node)}{_type_hint(value, types_of(node))}"
    begin = f"{_dotted(place)} is {_number_as_typed(value)} and"
    if keyword == _NOTHING:
        return f"{begin} may not be there"
    if (rule := RULES.get(keyword)) is None:
        return f"{begin} breaks the schema's rule {show(keyword)}"
    in_words = node.get("x-pattern-says") if keyword == "pattern" else None
    return f"{begin} must be {in_words or rule.says(node[keyword])}"


def _takes(node: Node) -> str:
    """Return what a key takes: 'a number above 0 and below 1 or null'."""
    limits = [RULES[keyword].says(node[keyword]) for keyword in _LIMITS if _is_near(node.get(keyword))]
    of = " of" if limits and limits[0].startswith("at ") else ""
    kinds = []
    for kind in types_of(node):
        is_limited = limits and kind in ("integer", "number")
        kinds.append(f"{KINDS[kind]}{of} {' and '.join(limits)}" if is_limited else KINDS[kind])
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


def _dotted(place: _Place) -> str:
    """Return a key for a message: 'a.b', item 2 of 'a.b', 'c' of item 2 of 'a.b'."""
    at_item = max((depth for depth, part in enumerate(place) if isinstance(part, int)), default=-1)
    outer, inner = place[: at_item + 1], place[at_item + 1 :]
    if not outer:
        return show(".".join(inner), 200) if inner else "the config"
    item = f"item {outer[-1]} of {_dotted(outer[:-1])}"
    return f"{show('.'.join(inner), 200)} of {item}" if inner else item


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say("resumekit", text)
