"""Reads a config: YAML with one meaning, every key with its line.

It takes the part of YAML that all readers understand alike and refuses the rest in one sentence: duplicate keys,
tags, anchors and aliases (so no alias bomb can be written), merge keys, words like `yes` or `012`. PyYAML does the
parsing; without it `yaml_subset` reads the simple form that the kit's own config has.
Try it: `python lib/config_resolver.py --config config.yaml --logdir /tmp/look`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..basics import third_party
from ..basics.errors import InvalidFile
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
    return f"{fault.what} ({show(source, 400)}, line {fault.line}); {fault.advice}"


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
    third_party.find()
    import yaml  # 15 ms: only for a config that the subset reader does not take

    try:
        return _Builder(_parser(yaml)(text), yaml, lines).document()
    except yaml.YAMLError as error:
        raise _from_pyyaml(error, text) from None


def _has_pyyaml() -> bool:
    third_party.find()
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
            raise Refusal(f"it is nested deeper than {MAX_DEPTH} levels", line, "a config has about four")
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
    return event.start_mark.line + 1


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
    return Refusal(
        f"it is not YAML: {problem}", line, "look at that line and the one before; quotes help with ': ' and '#'"
    )


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {show(value)}"
