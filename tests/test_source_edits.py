"""Edits of a function's source: each kind finds its one place, and none that is not there, or there twice."""

from __future__ import annotations

import ast

import pytest

from reliability.source_edits import Edit, NoSuchPlace, condition, edited, left_out, returns, text, value, without

SOURCE = """
import os, time

LIMIT_S = 4

class Log:
    def write(self, path, line):
        \"\"\"Write it.\"\"\"
        end = time.monotonic() + (limit_s := LIMIT_S)
        while not self.lock("ä", path) and time.monotonic() < end: time.sleep(0.1)
        if os.path.islink(path): return f"{'a' if path else 'no'} link"
        elif not (line or self.rest): raise ValueError("nothing")
        with open(path, os.O_APPEND | os.O_NOFOLLOW, 0o600) as file:
            for part in line: file.write(part)
            os.fsync(file.fileno())
        self.end(path, timeout=LIMIT_S, wait=False)
        return [x for x in line if x.isprintable() or x == "tab"]
"""


@pytest.mark.parametrize(
    ("edit", "old", "new"),
    [
        (left_out("fsync()"), "os.fsync(file.fileno())", "pass"),
        (left_out("for_each"), None, None),
        (left_out("part"), "file.write(part)", "pass"),
        (left_out("LIMIT_S"), None, None),
        (condition("islink()", False), "os.path.islink(path)", "False"),
        (condition("rest", False), "not (line or self.rest)", "False"),
        (condition("lock() <", True), 'not self.lock("ä", path) and time.monotonic() < end', "True"),
        (condition("tab", True), 'x.isprintable() or x == "tab"', "True"),
        (condition("path", True), None, None),
        (without("lock()"), 'not self.lock("ä", path) and', "True and"),
        (without("rest"), "or self.rest", "or False"),
        (without("monotonic() <"), "time.monotonic() < end", "True"),
        (value("O_NOFOLLOW", 0), "os.O_NOFOLLOW", "0"),
        (value("0o600", "0o666"), "0o600", "0o666"),
        (value("timeout=", None), "timeout=LIMIT_S", "timeout=None"),
        (value("end= LIMIT_S", 5), "time.monotonic() + (limit_s := LIMIT_S)", "5"),
        (value("end= NONE", 5), None, None),
        (value("lock()", "self.rest"), 'self.lock("ä", path)', "self.rest"),
        (value("lock", "self.rest"), "self.lock", "self.rest"),
        (value("tab", "'blank'"), '"tab"', "'blank'"),
        (value("path", "''"), None, None),
        (value("lock()", "of_another_module()"), None, None),
        (value("lock()", "lambda own: own"), 'self.lock("ä", path)', "(lambda own: own)"),
    ],
    ids=str,
)
def test_an_edit_changes_the_one_place_that_it_means_or_is_refused(
    edit: Edit, old: str | None, new: str | None
) -> None:
    if old is None or new is None:
        with pytest.raises(NoSuchPlace):
            edited(SOURCE, "Log.write", (edit,))
        return
    assert SOURCE.count(old) == 1
    wanted = ast.unparse(ast.parse(SOURCE.replace(old, new)))
    assert ast.unparse(ast.parse(edited(SOURCE, "Log.write", (edit,)))) == wanted


def test_a_rename_of_variables_and_another_layout_leave_an_edit_as_it_is() -> None:
    edit = condition("lock() <", False)
    other = SOURCE.replace("end", "deadline").replace(
        'while not self.lock("ä", path) and', "while not (\n  self.lock()) and"
    )
    assert ast.parse(other)
    assert "while (False)" in edited(SOURCE, "Log.write", (edit,))
    assert "while (False)" in edited(other, "Log.write", (edit,))


def test_a_function_returns_at_once_and_keeps_its_docstring() -> None:
    assert edited("def f(x):\n    'Say it.'\n    y = x\n    return y\n", "f", (returns("x"),)) == (
        "def f(x):\n    'Say it.'\n    return x\n"
    )


def test_the_top_of_a_module_has_no_function() -> None:
    assert "LIMIT_S = (5)" in edited(SOURCE, "", (value("LIMIT_S=", 5),))


def test_two_edits_of_one_function_are_both_made() -> None:
    both = edited(SOURCE, "Log.write", (value("O_NOFOLLOW", 0), left_out("fsync()")))
    assert "O_NOFOLLOW" not in both
    assert "fsync" not in both


@pytest.mark.parametrize("function", ["Log.read", "write.inner", "Log.write.write"])
def test_a_function_that_is_not_there_is_refused(function: str) -> None:
    with pytest.raises(NoSuchPlace, match="is defined 0 times"):
        edited(SOURCE, function, (returns(1),))


SHELL = """
first() { # <word>
  trap stop TERM
}

second() {
  trap stop TERM
  trap stop TERM # again
}
"""


def test_text_is_replaced_within_its_own_shell_function_alone() -> None:
    edit = text("  trap stop TERM\n", "")
    begin, old, end = SHELL.rpartition(edit.mention)
    assert old
    assert edited(SHELL, "first", (edit,), is_python=False) == SHELL.replace(edit.mention, "", 1)
    assert edited(SHELL, "second", (edit,), is_python=False) == begin + end


@pytest.mark.parametrize(
    ("function", "says"), [("", "stands there 2 times"), ("third", "is defined 0 times")], ids=["top", "third"]
)
def test_text_that_is_not_there_once_is_refused(function: str, says: str) -> None:
    with pytest.raises(NoSuchPlace, match=says):
        edited(SHELL, function, (text("  trap stop TERM\n", ""),), is_python=False)
