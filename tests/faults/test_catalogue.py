"""The catalogue is whole: every fault has a case or a reason, and the table says what came of each."""

from __future__ import annotations

import re

import pytest

from faults.catalogue import PENDING, TITLES
from faults.left_out import LEFT_OUT
from support.fault_table import Case, lines, mark_of, marks_in, rows
from support.places import ROOT

pytest_plugins = ["pytester"]


def test_every_fault_has_a_case_or_a_reason() -> None:
    cases = {fault for _, fault, _ in marks_in(ROOT / "tests")}
    missing = set(TITLES) - cases - set(LEFT_OUT)
    assert {fault for fault in missing if fault[0] not in PENDING} == set()
    assert {fault[0] for fault in missing} == set(PENDING), "a section that is done is no longer pending"


def test_a_fault_that_has_a_case_is_not_left_out() -> None:
    cases = {fault: path.name for path, fault, _ in marks_in(ROOT / "tests")}
    assert {fault: cases[fault] for fault in LEFT_OUT if fault in cases} == {}
    assert set(LEFT_OUT) <= set(TITLES) and all(reason.strip() for reason in LEFT_OUT.values())


def test_what_makes_a_case_pass_is_a_file_that_is_there() -> None:
    """The protection that a mark names first, where it names one by a single word."""
    files = {path.stem for part in ("lib", "bin", "examples", "tests/support") for path in (ROOT / part).rglob("*.*")}
    for path, _, by in marks_in(ROOT / "tests"):
        named = re.match(r"(\w+)(?:\.\w+)?:", by)
        assert not named or named[1] in files | {"resumekit", "Makefile", "torchrun", "trainer"}, f"{path.name}: {by}"


def test_the_catalogue_has_every_number_of_every_section() -> None:
    counts = {"A": 18, "B": 20, "C": 24, "D": 11, "E": 12, "F": 10, "G": 17, "H": 22, "I": 16, "J": 12, "K": 14}
    expected = {f"{section}{number}" for section, count in counts.items() for number in range(1, count + 1)}
    assert set(TITLES) == expected - {"B13"}
    assert all(re.fullmatch("[^\n]{5,90}", title) for title in TITLES.values())


@pytest.mark.parametrize(
    "args, kwargs",
    [((), {"by": "x"}), (("Z1",), {"by": "x"}), (("C1",), {}), (("C1",), {"by": " "}), (("C1", "C2"), {"by": "x"})],
)
def test_a_mark_that_names_no_fault_or_no_protection_is_an_error(args: tuple, kwargs: dict) -> None:
    with pytest.raises(pytest.UsageError, match="test_x"):
        mark_of(args, kwargs, "test_x")


def test_one_failed_case_fails_its_fault_and_a_skipped_one_alone_is_left_out() -> None:
    cases = {
        "C1": [Case("archive: directory", "passed"), Case("manifest: size", "passed")],
        "C2": [Case("archive: directory", "passed"), Case("manifest: digest", "failed")],
        "C3": [Case("archive: checksum", "skipped: no room")],
    }
    table = {row.fault: row for row in rows(cases)}
    assert (table["C1"].outcome, table["C1"].cases, table["C1"].text) == (
        "passed",
        2,
        "archive: directory; manifest: size",
    )
    assert table["C2"].outcome == "failed"
    assert (table["C3"].outcome, table["C3"].text) == ("left out", "skipped: no room")
    assert table["K5"].outcome == "left out" and table["C4"].outcome == "missing"
    assert re.search(r"^1/\d+ faults survived, \d+ left out, \d+ with neither case nor reason$", lines(rows(cases))[-1])


def test_a_run_with_the_table_prints_it_and_is_red_while_a_fault_has_neither(pytester: pytest.Pytester) -> None:
    """The alarm rings, through a worker too: one case of 175 is there, the others make the run red."""
    pytester.makeini(f"[pytest]\nmarkers = fault: x\npythonpath = {ROOT / 'tests'}")
    pytester.makeconftest("pytest_plugins = ['support.fault_table']")
    pytester.makepyfile(
        "import pytest\n@pytest.mark.fault('C1', by='archive: directory')\ndef test_cut(): pass\n"
        "@pytest.mark.fault('C2', by='archive: zeros')\ndef test_zeros(): assert 0"
    )
    done = pytester.runpytest_subprocess("--fault-table", "-m", "fault", "-k", "cut", "-n", "1")
    done.stdout.fnmatch_lines(["C1 *1 passed*archive: directory", "C2 *missing*", "1/*faults survived,*with neither*"])
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert pytester.runpytest_inprocess("-k", "cut").ret == 0, "without the table it is a test like any other"
    pytester.makepyfile("import pytest\n@pytest.mark.fault('C99', by='x')\ndef test_cut(): pass")
    pytester.runpytest_inprocess().stderr.fnmatch_lines(["*fault('C99') is not in tests/faults/catalogue.py"])
