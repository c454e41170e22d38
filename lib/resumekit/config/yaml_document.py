"""Reads a config: YAML with one meaning, every key with its line; and writes a resolved one so that every reader
takes it alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from ..base import imports
from ..base.errors import InvalidFile
from ..base.imports import Any, NamedTuple
from . import yaml_scalars
from .yaml_scalars import MAX_DEPTH, Fault, Refusal, show

Lines = dict[tuple[str, ...], int]


class Document(NamedTuple):
    """A config as read.

    Args:
        data: nested dicts, lists, texts, numbers, true, false and None.
        lines: the path of each key -> the line it stands in, counted from 1; keys inside lists are left out.
        source: the file's name, for messages.
    """

    data: dict[str, Any]
    lines: Lines
    source: str


def load(
    text: bytes | str, source: str, *, reader: str = "auto", refused: Callable[[Fault], str | None] | None = None
) -> Document:
    """Read a config.

    Args:
        text: its content; bytes must be UTF-8 (a byte order mark and CRLF are fine).
        source: the file's name, for messages.
        reader: 'pyyaml', 'subset', or 'auto': the subset reader, and PyYAML for what that refuses. The two never
            differ on what both accept, and importing PyYAML costs every launch 15 ms.
        refused: given the Fault of a word that readers disagree about, returns a sentence that says what its key takes;
            None where it knows no better.

    Raises:
        InvalidFile: it is not a config; the sentence has the value, the file, the line and what to do.
    """
    lines: Lines = {}
    try:
        data = _read(yaml_scalars.decode(text), lines, reader)
        if data is None:
            raise Refusal("it is empty", 1, "see the kit's own config.yaml")
        if not isinstance(data, dict):
            raise Refusal(
                f"it holds {_kind(data)} instead of sections", 1, "begin with 'experiment:' or another section"
            )
    except Refusal as refusal:
        if refused and refusal.fault.path and (said := refused(refusal.fault)):
            raise InvalidFile(f"{said} ({show(source, 400)}, line {refusal.fault.line})") from None
        raise InvalidFile(sentence(refusal, source)) from None
    return Document(data, lines, source)


def load_value(text: str, *, reader: str = "auto") -> Any:
    """Read one value, as it stands behind `KEY=` on the command line; Refusal if it cannot be read."""
    return _read(yaml_scalars.decode(text), {}, reader)


def sentence(refusal: Refusal, source: str) -> str:
    """Return what a Refusal says, with the file and the line."""
    fault = refusal.fault
    what = f"the config {fault.what[3:]}" if fault.what.startswith("it ") else fault.what
    return f"{what} ({show(source, 400)}, line {fault.line}); {fault.advice}"


def _read(text: str, lines: Lines, reader: str) -> Any:
    if reader == "pyyaml":
        return _read_pyyaml(text, lines)
    from . import yaml_subset  # only when a config is read

    try:
        return yaml_subset.parse(text, lines)
    except Refusal:
        if reader == "subset" or not _has_pyyaml():
            raise
        lines.clear()
    return _read_pyyaml(text, lines)


def _read_pyyaml(text: str, lines: Lines) -> Any:
    imports.find_packages()
    import yaml  # 15 ms: only for a config that the subset reader does not take

    try:
        return _Builder(_parser(yaml)(text), yaml, lines).document()
    except yaml.YAMLError as error:
        raise _from_pyyaml(error, text) from None


def _has_pyyaml() -> bool:
    imports.find_packages()
    try:
        import yaml  # noqa: F401
    except ImportError:
        return False
    return True


def _parser(yaml: Any) -> Any:
    """Return the class that turns a text into events: libyaml's where PyYAML has it, ten times as fast."""
    return yaml.cyaml.CParser if yaml.__with_libyaml__ else yaml.SafeLoader


class _Builder:
    """Builds values from PyYAML's events: no tag is ever looked up, so nothing in a text can choose a constructor."""

    def __init__(self, parser: Any, yaml: Any, lines: Lines) -> None:
        self.next = parser.get_event
        self.yaml = yaml
        self.lines = lines

    def document(self) -> Any:
        yaml = self.yaml
        self.next()  # the stream's start
        start = self.next()
        if isinstance(start, yaml.StreamEndEvent):
            return None
        if start.version or start.tags:
            raise Refusal("it has a '%' directive", _line(start), "take it out")
        value = self.value(self.next(), (), 0)
        self.next()  # the document's end
        end = self.next()
        if not isinstance(end, yaml.StreamEndEvent):
            raise Refusal("it holds more than one document", _line(end), "keep one, take out '---'")
        return value

    def value(self, event: Any, path: tuple[str, ...] | None, depth: int) -> Any:
        yaml, line = self.yaml, _line(event)
        if isinstance(event, yaml.AliasEvent):
            raise Refusal(
                f"the alias {show('*' + event.anchor)} is used", line, "write the value out; aliases are not read"
            )
        if event.anchor is not None:
            raise Refusal(f"the anchor {show('&' + event.anchor)} is set", line, "take it out; anchors are not read")
        if event.tag is not None:
            raise Refusal(
                f"the tag {show(event.tag)} is used", line, "take it out; tags are not read, quotes make a text"
            )
        if isinstance(event, yaml.ScalarEvent):
            # Style is '' or None for a word without quotes, else its quote or '|' or '>'.
            if event.style:
                return yaml_scalars.quoted(event.value, line)
            return yaml_scalars.plain(event.value, line, path)
        if depth >= MAX_DEPTH:
            raise _too_deep(line)
        return self.mapping(path, depth) if isinstance(event, yaml.MappingStartEvent) else self.sequence(depth)

    def mapping(self, path: tuple[str, ...] | None, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own_lines: dict[str, int] = {}
        while not isinstance(event := self.next(), self.yaml.MappingEndEvent):
            line = _line(event)
            if isinstance(event, (self.yaml.MappingStartEvent, self.yaml.SequenceStartEvent)):
                raise Refusal(
                    "a list or section is used as a key", line, "keys are texts; a value in braces needs quotes"
                )
            name = yaml_scalars.key(self.value(event, None, depth + 1), line)
            if name in own_lines:
                raise yaml_scalars.duplicate(name, own_lines[name], line)
            own_lines[name] = line
            inner = None if path is None else (*path, name)
            if inner is not None:
                self.lines[inner] = line
            found[name] = self.value(self.next(), inner, depth + 1)
        return found

    def sequence(self, depth: int) -> list[Any]:
        found = []
        while not isinstance(event := self.next(), self.yaml.SequenceEndEvent):
            found.append(self.value(event, None, depth + 1))
        return found


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line + 1


def _from_pyyaml(error: Any, text: str) -> Refusal:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", None) or 0) + 1
    rows = text.split("\n")
    row = rows[line - 1] if line <= len(rows) else ""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read").replace(
        "\n", " "
    )
    if "\t" in row[: len(row) - len(row.lstrip())]:
        return Refusal("a line begins with a tab", line, "indent with spaces")
    if "escape" in problem or "hexdecimal" in problem:
        return yaml_scalars.unknown_escape(line)
    if "nesting depth" in problem:  # libyaml has a limit of its own, and scans ahead
        return _too_deep(line)
    return Refusal(
        f"it is not YAML: {problem}", line, "look at that line and the one before; quotes help with ': ' and '#'"
    )


def _too_deep(line: int) -> Refusal:
    return Refusal(f"it is nested deeper than {MAX_DEPTH} levels", line, "a config has about four")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {show(value)}"


# Writes a resolved config as YAML that every reader takes alike: ours, PyYAML's own loader, YAML 1.2.
#
# Every text is in double quotes, every float has a point, nothing is an alias. Needs no PyYAML. Try it: `python
# lib/config_resolver.py --config config.yaml --logdir /tmp/look && cat /tmp/look/resolved_config.yaml`

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]+")
_KEY_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "nan", "inf", "infinity"})
# JSON leaves these as they are; YAML readers do not take them raw. Compiled at first use: that takes 0.3 ms.
_RAW = "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]|[\U0001fffe-\U0010ffff]"


def dump(data: dict[str, Any]) -> str:
    """Return nested dicts, lists and single values as YAML text, in the order of the dicts."""
    return "".join(_section(data, 0)) or "{}\n"


def _section(data: dict[str, Any], indent: int) -> list[str]:
    rows = []
    for name, value in data.items():
        head = f"{' ' * indent}{_key(name)}:"
        if isinstance(value, dict) and value:
            rows += [f"{head}\n", *_section(value, indent + 2)]
        else:
            rows.append(f"{head} {_flow(value)}\n")
    return rows


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)}: {_flow(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return _float(value)
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _float(value: float) -> str:
    text = json.dumps(value, allow_nan=False)
    # `1e-05` is a text to PyYAML's own loader, `1.0e-05` is a number to everybody.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _key(name: str) -> str:
    return name if _PLAIN_KEY.fullmatch(name) and name.lower() not in _KEY_WORDS else _text(name)


def _text(value: str) -> str:
    quoted = json.dumps(value, ensure_ascii=False)
    is_plain = quoted.isascii() and "\x7f" not in quoted
    return quoted if is_plain else re.sub(_RAW, lambda raw: f"\\U{ord(raw[0]):08x}", quoted)
