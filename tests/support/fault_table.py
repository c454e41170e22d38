"""The table of the fault catalogue, as a pytest plugin: `pytest -m fault --fault-table tests`.

Holds every `@pytest.mark.fault(id, by=...)` against tests/faults/catalogue.py, and prints at the end, for each id, how
many cases there were, what came of them and which protection makes them pass. An id with neither a case nor a reason
(tests/faults/left_out.py) makes the run red.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from faults.catalogue import TITLES
from faults.left_out import LEFT_OUT

PROPERTY = "fault"


class Case(NamedTuple):
    """One test of one fault: what makes it pass, and what came of it ('passed', 'failed', 'skipped: why')."""

    by: str
    outcome: str


class Row(NamedTuple):
    """One fault in the table; `outcome` is 'passed', 'failed', 'left out' or 'missing'."""

    fault: str
    cases: int
    outcome: str
    text: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", action="store_true", help="print the fault catalogue with what came of each")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fault-table") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(), "fault-table")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand each mark on with the test's report, which reaches the table from a worker too."""
    for item in items:
        for mark in item.iter_markers("fault"):
            fault, by = mark_of(mark.args, mark.kwargs, item.nodeid)
            item.user_properties.append((PROPERTY, [fault, by]))


def mark_of(args: tuple[object, ...], kwargs: dict[str, object], where: str) -> tuple[str, str]:
    """Return a mark's (id, protection).

    Raises:
        pytest.UsageError: the id is none of the catalogue's, or it is not said what makes the test pass.
    """
    if len(args) != 1 or args[0] not in TITLES:
        raise pytest.UsageError(f"{where}: fault({', '.join(map(repr, args))}) is not in tests/faults/catalogue.py")
    by = kwargs.get("by")
    if not isinstance(by, str) or not by.strip() or set(kwargs) != {"by"}:
        raise pytest.UsageError(f"{where}: fault({args[0]!r}) must say by what it passes: by='module: mechanism'")
    return str(args[0]), by


class FaultTable:
    """Gathers the reports of a run and prints the table at its end."""

    def __init__(self) -> None:
        self.cases: dict[str, list[Case]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                self.cases.setdefault(value[0], []).append(Case(value[1], _outcome(report)))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == 0 and any(row.outcome == "missing" for row in rows(self.cases)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("faults")
        for line in lines(rows(self.cases)):
            terminalreporter.write_line(line)


def rows(cases: dict[str, list[Case]]) -> list[Row]:
    """Return one row for every id of the catalogue, in its order."""
    return [_row(fault, cases.get(fault, [])) for fault in TITLES]


def lines(table: list[Row]) -> list[str]:
    """Return the table as text, the sum last."""
    widest = max(len(title) for title in TITLES.values())
    shown = [
        f"{row.fault:4} {TITLES[row.fault]:{widest}} {row.cases or '-':>4} {row.outcome:8} {row.text}" for row in table
    ]
    counts = {outcome: sum(row.outcome == outcome for row in table) for outcome in ("passed", "failed", "missing")}
    left_out = len(table) - sum(counts.values())
    ran = counts["passed"] + counts["failed"] + counts["missing"]
    missing = f", {counts['missing']} with neither case nor reason" if counts["missing"] else ""
    return [*shown, f"{counts['passed']}/{ran} faults survived, {left_out} left out{missing}"]


def marks_in(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, id, protection) of every mark written in a folder's test files, without running any of them."""
    for path in sorted(folder.rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "mark.fault" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                args = tuple(ast.literal_eval(arg) for arg in node.args)
                kwargs = {word.arg or "**": ast.literal_eval(word.value) for word in node.keywords}
                yield path, *mark_of(args, kwargs, f"{path.name}:{node.lineno}")


def _outcome(report: pytest.TestReport) -> str:
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return f"skipped: {reason.removeprefix('Skipped: ')}"
    return report.outcome


def _row(fault: str, cases: list[Case]) -> Row:
    outcomes = {case.outcome for case in cases}
    protections = "; ".join(dict.fromkeys(case.by for case in cases))
    if "failed" in outcomes:
        return Row(fault, len(cases), "failed", protections)
    if "passed" in outcomes:
        return Row(fault, len(cases), "passed", protections)
    if cases:
        return Row(fault, len(cases), "left out", "; ".join(sorted(outcomes)))
    if fault in LEFT_OUT:
        return Row(fault, 0, "left out", LEFT_OUT[fault])
    return Row(fault, 0, "missing", "neither a case nor a reason")
