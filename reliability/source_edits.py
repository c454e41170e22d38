"""Edits of one function's source, named by what happens in it.

They survive a new layout, and a rename of variables where they name functions, attributes and constants alone.

A place is `file:function`, `file:Class.method`, or `file` alone for what stands at the top of a module. In it an edit
looks for a mention: one or more words, all of which the place has to hold. A word is

    name        a name, an attribute or a text of exactly these letters: `st_uid`, `O_EXCL`, `paused`
    name()      a call of it
    name=       what it is set to, by an assignment or as an argument
    <  !=  not  an operator

The innermost place that holds all words is meant, and there has to be exactly one.
Try it: `python -m reliability.source_edits lib/resumekit/base/claims.py:try_lock`
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_OPERATORS: dict[type[ast.AST], str] = {
    ast.Gt: ">", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=", ast.Not: "not",
}  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class NoSuchPlace(Exception):
    """An edit means no place of a source, or more than one."""


class Edit(NamedTuple):
    """What becomes of one place in a function; made by the functions below.

    Args:
        kind: which of them.
        mention: the words that the place holds; for `text` the text itself.
        new: what takes its place, as source.
    """

    kind: str
    mention: str
    new: str


def returns(new: object) -> Edit:
    """The function returns this at once."""
    return Edit("returns", "", f"return {new}")


def left_out(mention: str) -> Edit:
    """The statement is not executed."""
    return Edit("left_out", mention, "pass")


def condition(mention: str, new: object) -> Edit:
    """The whole condition of an `if`, `elif`, `while`, or of an `if` within an expression, has this value."""
    return Edit("condition", mention, f"({new})")


def without(mention: str) -> Edit:
    """One operand of an `and` or `or` counts for nothing."""
    return Edit("without", mention, "")


def value(mention: str, new: object) -> Edit:
    """A name, a call, or what something is set to (the first word) has this value; it holds the other words too."""
    return Edit("value", mention, f"({new})")


def text(old: str, new: str) -> Edit:
    """This text within a function is another one: of Bash, which has no syntax tree here."""
    return Edit("text", old, new)


def edited(source: str, function: str, edits: tuple[Edit, ...], *, is_python: bool = True) -> str:
    """Return a source with all edits made in one function ('' for the top of the file).

    Raises:
        NoSuchPlace: there is no such function, an edit does not mean exactly one place in it, or what takes the place
            names what is not known there.
    """
    if not is_python:
        start, end = _shell_function(source, function)
        spans = [_text_span(source, start, end, edit) for edit in edits]
    else:
        scope = _scope(ast.parse(source), function)
        for edit in edits:
            _refuse_unknown_names(source, scope, edit)
        spans = [_span(source, scope, edit) for edit in edits]
    for start, end, new in sorted(spans, reverse=True):
        source = source[:start] + new + source[end:]
    return source


def _scope(tree: ast.Module, function: str) -> ast.AST:
    """Return the function or class of a dotted name, wherever in the body of the one before it stands."""
    scope: ast.AST = tree
    for name in filter(None, function.split(".")):
        inside = (node for node in ast.walk(scope) if node is not scope)
        found = [node for node in inside if isinstance(node, _FUNCTIONS) and node.name == name]
        if len(found) != 1:
            raise NoSuchPlace(f"'{name}' of '{function}' is defined {len(found)} times")
        scope = found[0]
    return scope


def _span(text: str, scope: ast.AST, edit: Edit) -> tuple[int, int, str]:
    """Return where the text that an edit replaces begins and ends, and what takes its place."""
    first: ast.expr | ast.stmt
    last: ast.expr | ast.stmt
    if edit.kind == "returns":
        assert isinstance(scope, ast.FunctionDef)
        statements = scope.body[1:] if ast.get_docstring(scope) and len(scope.body) > 1 else scope.body
        first, last, new = statements[0], statements[-1], edit.new
    else:
        first, neutral = _place(scope, edit)
        last, new = first, edit.new or neutral
    return _offset(text, first.lineno, first.col_offset), _offset(text, last.end_lineno, last.end_col_offset), new


def _place(scope: ast.AST, edit: Edit) -> tuple[ast.expr | ast.stmt, str]:
    """Return the one node that an edit means, and what stands for nothing there."""
    words = edit.mention.split()
    places = [(node, neutral) for node, neutral in _candidates(scope, edit.kind, words[0]) if _has_all(node, words)]
    found = {id(node) for node, _ in places}
    places = [one for one in places if sum(id(inner) in found for inner in ast.walk(one[0])) == 1]
    if len(places) != 1:
        lines = ", ".join(str(node.lineno) for node, _ in places) or "none"
        raise NoSuchPlace(f"{edit.kind}({edit.mention!r}) means {len(places)} places instead of one: lines {lines}")
    return places[0]


def _candidates(scope: ast.AST, kind: str, word: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Yield the nodes that an edit of this kind may mean."""
    for node in _walk(scope):
        if kind == "left_out" and isinstance(node, ast.stmt) and node is not scope:
            yield node, ""
        elif kind == "condition" and isinstance(node, (ast.If, ast.While, ast.IfExp)):
            yield node.test, ""
        elif kind == "condition" and isinstance(node, ast.comprehension):
            yield from ((test, "") for test in node.ifs)
        elif kind == "without" and isinstance(node, ast.BoolOp):
            yield from ((operand, str(isinstance(node.op, ast.And))) for operand in node.values)
        elif kind == "value":
            yield from ((inner, "") for inner in _values(node, word))


def _values(node: ast.AST, word: str) -> Iterator[ast.expr]:
    """Yield what has a value at a node, where the word names it."""
    if _is_set(word):
        named: list[ast.AST] = [node] if isinstance(node, ast.keyword) else []
        named += node.targets if isinstance(node, ast.Assign) else []
        named += [node.target] if isinstance(node, ast.AnnAssign) else []
        held = getattr(node, "value", None)
        yield from (held for one in named if _name(one) == word[:-1] and isinstance(held, ast.expr))
    elif isinstance(node, (ast.Call, ast.Name, ast.Attribute, ast.Constant)):
        is_stored = isinstance(getattr(node, "ctx", None), ast.Store)
        yield from [node] if _is(node, word) and not is_stored else []


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it, but what stands within an f-string: Python 3.10 does not say where that is."""
    yield node
    if not isinstance(node, ast.JoinedStr):
        for inner in ast.iter_child_nodes(node):
            yield from _walk(inner)


def _has_all(node: ast.AST, words: list[str]) -> bool:
    return all(_is_set(word) or any(_is(inner, word) for inner in ast.walk(node)) for word in words)


def _is_set(word: str) -> bool:
    """Whether a word means what a name is set to."""
    return word.endswith("=") and word[:-1].isidentifier()


def _is(node: ast.AST, word: str) -> bool:
    if word.endswith("()"):
        return isinstance(node, ast.Call) and _name(node.func) == word[:-2]
    return word in (_name(node), _OPERATORS.get(type(node)))


def _name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        # A mode is written as one: 0o600.
        return oct(node.value) if type(node.value) is int and node.value > 9 else str(node.value)
    name = next((getattr(node, field) for field in ("id", "attr", "arg") if hasattr(node, field)), None)
    return name if isinstance(name, str) else None


def _refuse_unknown_names(source: str, scope: ast.AST, edit: Edit) -> None:
    """Raise where a new text names what the function does not know: it would fail for that, and not as it should."""
    if edit.kind == "without":
        return
    names = {node.id for node in ast.walk(ast.parse(edit.new)) if isinstance(node, ast.Name)}
    known = {name for node in ast.walk(scope) if (name := _name(node))} | set(dir(builtins))
    own = {node.arg for node in ast.walk(ast.parse(edit.new)) if isinstance(node, ast.arg)}
    for node in ast.parse(source).body:
        known |= {node.name} if isinstance(node, _FUNCTIONS) else set()
        known |= {(one.asname or one.name).split(".")[0] for one in getattr(node, "names", ()) if hasattr(one, "name")}
        known |= {one.id for one in getattr(node, "targets", ()) if isinstance(one, ast.Name)}
    if unknown := names - known - own:
        raise NoSuchPlace(f"{edit.kind}({edit.mention!r}) sets '{edit.new}', and '{min(unknown)}' is no name there")


def _offset(source: str, line: int | None, column: int | None) -> int:
    """Return where a position of the syntax tree, whose columns count bytes, lies in a text."""
    assert line is not None and column is not None
    lines = source.splitlines(keepends=True)
    return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())


def _shell_function(source: str, function: str) -> tuple[int, int]:
    if not function:
        return 0, len(source)
    found = list(re.finditer(rf"^{re.escape(function)}\(\) \{{.*?^\}}", source, re.MULTILINE | re.DOTALL))
    if len(found) != 1:
        raise NoSuchPlace(f"'{function}' is defined {len(found)} times")
    return found[0].span()


def _text_span(source: str, start: int, end: int, edit: Edit) -> tuple[int, int, str]:
    if (count := source[start:end].count(edit.mention)) != 1:
        raise NoSuchPlace(f"{edit.mention!r} stands there {count} times")
    at = source.index(edit.mention, start, end)
    return at, at + len(edit.mention), edit.new


if __name__ == "__main__":
    file, _, function = sys.argv[1].partition(":")
    print(ast.unparse(_scope(ast.parse(Path(file).read_text(encoding="utf-8")), function)))
