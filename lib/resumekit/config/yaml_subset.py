"""Reads the simple form of YAML that the kit's own config has, where PyYAML is not installed.

Accepted: sections by indentation, lists of single values (one per line with `- `, or `[a, b]`), `{a: b}` on one line,
words, single and double quotes, comments. Everything else is refused with its line, and what is accepted means
exactly what PyYAML makes of it (a fuzz test holds the two together).
Try it: `PYTHONPATH=lib python -c "from resumekit.config.yaml_subset import parse; print(parse('a: [x]', {}))"`
"""

from __future__ import annotations

import re

from ..base.imports import Any
from . import yaml_scalars
from .yaml_scalars import MAX_DEPTH, Refusal, show

# Deliberately narrower than YAML in every place: whatever does not match is refused, never guessed.
_KEY = re.compile(r"""([A-Za-z_][A-Za-z0-9_.-]*|"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'):(?= |$)""")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SINGLE = re.compile(r"'((?:[^']|'')*)'")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S)
_ESCAPES = {"\\": "\\", '"': '"', "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
# What YAML knows beside these.
_OTHER_ESCAPES = (*"0ave /N_LP\n\t", None)
# A word in a line of its own ends at ' #' and holds no ': '; in brackets it holds no punctuation of YAML's at all.
_WORD = re.compile(r"(?:[A-Za-z0-9_./~+]|-(?=[^ ])|[^\x00-\xa0])(?:[^:# ]|:(?=[^ ])|(?<=[^ ])#| +(?=[^ #]))*")
_FLOW_WORD = re.compile(r"(?:[A-Za-z0-9_./~+]|-(?=[A-Za-z0-9_.]))(?:[A-Za-z0-9_./~+-]| +(?=[A-Za-z0-9_./~+-]))*")
_FLOW_KEY = re.compile(r"""([A-Za-z_][A-Za-z0-9_.-]*|"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'): """)
_COMMENT = re.compile(r" *(?:(?<= )#.*)?")
_BLANK = re.compile(r" *(?:#.*)?")
# YAML ends the search for a key's colon after 1,024 characters, quotes and escapes counted.
_MAX_KEY_SOURCE = 1000
_Path = tuple[str, ...] | None
_SIMPLER = "PyYAML is not installed, and without it only the simple form of the kit's own config.yaml is read"


def parse(text: str, lines: dict[tuple[str, ...], int]) -> Any:
    """Read a text that `yaml_scalars.decode` has passed.

    Args:
        text: the document.
        lines: filled with the path of each key -> its line.

    Returns:
        A dict; for a text of one line without a key the value that stands there; None for an empty one.

    Raises:
        Refusal: it is not of the simple form.
    """
    rows = [
        (number, row)
        for number, row in enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
        if not _BLANK.fullmatch(row)
    ]
    for number, row in rows:
        if "\t" in row:
            raise _refusal("a tab", number)
    if not rows:
        return None
    reader = _Rows(rows, lines)
    number, row = rows[0]
    if len(rows) == 1 and not _KEY.match(row):
        if row.lstrip(" ").startswith(("---", "...")):
            raise _refusal(show(row), number)  # the marks of a document's begin and end
        return reader.single(row.strip(" "), number, (), 0)
    if row.startswith(" "):
        raise _refusal("an indented first line", number)
    value = reader.section((), 0, 0)
    if reader.at < len(rows):
        raise _refusal(f"the indentation of {show(rows[reader.at][1])}", rows[reader.at][0])
    return value


class _Rows:
    """Walks the lines that are neither blank nor comments, by their indentation."""

    def __init__(self, rows: list[tuple[int, str]], lines: dict[tuple[str, ...], int]) -> None:
        self.rows = rows
        self.lines = lines
        self.at = 0

    def indent(self) -> int:
        """Return the indentation of the current line, -1 behind the last one."""
        if self.at == len(self.rows):
            return -1
        row = self.rows[self.at][1]
        return len(row) - len(row.lstrip(" "))

    def section(self, path: tuple[str, ...], indent: int, depth: int) -> dict[str, Any]:
        if depth >= MAX_DEPTH:
            raise _too_deep(self.rows[self.at][0])
        found: dict[str, Any] = {}
        while self.indent() == indent:
            number, row = self.rows[self.at]
            match = _KEY.match(row, indent)
            if not match:
                raise _refusal(show(row.strip(" ")), number)
            name = _key(match[1], number)
            inner = (*path, name)
            if name in found:
                raise yaml_scalars.duplicate(name, self.lines[inner], number)
            self.lines[inner] = number
            self.at += 1
            rest = row[match.end() :]
            if _COMMENT.fullmatch(rest):
                found[name] = self.below(inner, indent, depth)
            else:
                found[name] = self.single(rest.lstrip(" "), number, inner, depth + 1)
        if self.indent() > indent:
            raise _refusal(f"the indentation of {show(self.rows[self.at][1])}", self.rows[self.at][0])
        return found

    def below(self, path: tuple[str, ...], indent: int, depth: int) -> Any:
        """Return what stands below a key without a value on its line: a section, a list, or nothing."""
        deeper = self.indent()
        if deeper >= indent and self.rows[self.at][1].startswith("- ", deeper):
            return self.items(deeper, depth + 1)
        return self.section(path, deeper, depth + 1) if deeper > indent else None

    def items(self, indent: int, depth: int) -> list[Any]:
        if depth >= MAX_DEPTH:
            raise _too_deep(self.rows[self.at][0])
        found = []
        while self.indent() == indent and self.rows[self.at][1].startswith("- ", indent):
            number, row = self.rows[self.at]
            self.at += 1
            rest = row[indent + 2 :].lstrip(" ")
            if _KEY.match(rest) or _BLANK.fullmatch(rest):
                raise _refusal(show(row.strip(" ")), number)
            found.append(self.single(rest, number, None, depth + 1))
        if self.indent() > indent:
            raise _refusal(f"the indentation of {show(self.rows[self.at][1])}", self.rows[self.at][0])
        return found

    def single(self, text: str, line: int, path: _Path, depth: int) -> Any:
        """Return the value of one line, a comment behind it left out."""
        if text[0] in "[{":
            value, end = _Flow(text, line, self.lines).value(0, path, depth)
        elif text[0] in "\"'":
            value, end = _quotes(text, 0, line)
        else:
            match = _WORD.match(text)
            if not match:
                raise _refusal(show(text), line)
            value, end = yaml_scalars.plain(match[0], line, path), match.end()
        if not _COMMENT.fullmatch(text, end):
            raise _refusal(show(text), line)
        return value


class _Flow:
    """Reads `[a, b]` and `{a: b}`; every method takes where it begins and returns where it ends."""

    def __init__(self, text: str, line: int, lines: dict[tuple[str, ...], int]) -> None:
        self.text = text
        self.line = line
        self.lines = lines

    def value(self, at: int, path: _Path, depth: int) -> tuple[Any, int]:
        first = self.text[at : at + 1]
        if first and first in "[{":
            if depth >= MAX_DEPTH:
                raise _too_deep(self.line)
            return self.items(at + 1, depth + 1) if first == "[" else self.entries(at + 1, path, depth + 1)
        if first and first in "\"'":
            return _quotes(self.text, at, self.line)
        match = _FLOW_WORD.match(self.text, at)
        if not match:
            raise _refusal(show(self.text), self.line)
        return yaml_scalars.plain(match[0], self.line, path), match.end()

    def items(self, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        at = _blanks(self.text, at)
        while self.text[at : at + 1] != "]":
            value, at = self.value(at, None, depth)
            found.append(value)
            at = self.separator(at, "]")
        return found, at + 1

    def entries(self, at: int, path: _Path, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        at = _blanks(self.text, at)
        while self.text[at : at + 1] != "}":
            match = _FLOW_KEY.match(self.text, at)
            if not match:
                raise _refusal(show(self.text), self.line)
            name = _key(match[1], self.line)
            if name in found:
                raise yaml_scalars.duplicate(name, self.line, self.line)
            inner = None if path is None else (*path, name)
            if inner is not None:
                self.lines[inner] = self.line
            found[name], at = self.value(_blanks(self.text, match.end()), inner, depth)
            at = self.separator(at, "}")
        return found, at + 1

    def separator(self, at: int, closing: str) -> int:
        """Return where the next value begins, or where the closing bracket stands."""
        at = _blanks(self.text, at)
        if self.text[at : at + 1] == closing:
            return at
        following = _blanks(self.text, at + 1)
        # `a,b` and a comma before the bracket are YAML too; we need neither.
        if self.text[at : at + 1] != "," or following == at + 1 or self.text[following : following + 1] == closing:
            raise _refusal(show(self.text), self.line)
        return following


def _blanks(text: str, at: int) -> int:
    while text[at : at + 1] == " ":
        at += 1
    return at


def _quotes(text: str, at: int, line: int) -> tuple[str, int]:
    match = (_DOUBLE if text[at] == '"' else _SINGLE).match(text, at)
    if not match:
        raise _refusal(show(text), line)
    if text[at] == "'":
        return match[1].replace("''", "'"), match.end()
    return yaml_scalars.quoted(_ESCAPE.sub(lambda escape: _unescape(escape, line), match[1]), line), match.end()


def _unescape(escape: re.Match[str], line: int) -> str:
    digits = escape[1] or escape[2] or escape[3]
    if digits is None and escape[4] in _ESCAPES:
        return _ESCAPES[escape[4]]
    if digits is None or int(digits, 16) > 0x10FFFF:
        if escape[4] not in _OTHER_ESCAPES:
            raise yaml_scalars.unknown_escape(line)
        raise _refusal(f"the escape {show(escape[0])}", line)
    return chr(int(digits, 16))


def _key(text: str, line: int) -> str:
    if len(text) > _MAX_KEY_SOURCE:
        raise _refusal(f"the key {show(text)}", line)
    value = _quotes(text, 0, line)[0] if text[0] in "\"'" else yaml_scalars.plain(text, line)
    return yaml_scalars.key(value, line)


def _refusal(what: str, line: int) -> Refusal:
    return Refusal(f"{what} cannot be read: {_SIMPLER}", line, "pip install pyyaml, or write it more simply")


def _too_deep(line: int) -> Refusal:
    return Refusal(f"it is nested deeper than {MAX_DEPTH} levels", line, "a config has about four")
