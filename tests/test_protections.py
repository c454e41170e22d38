"""The campaign that takes out protections finds each of them: its texts and tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from campaign_protections import PATCHES, ROOT, Patch, run_tests


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_what_a_patch_takes_out_stands_once_in_its_file(patch: Patch) -> None:
    assert patch.new != patch.old
    assert (ROOT / "lib" / patch.file).read_text(encoding="utf-8").count(patch.old) == 1


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_the_tests_that_shall_see_it_are_there(patch: Patch) -> None:
    for test in patch.tests:
        file, _, name = test.partition("::")
        text = Path(ROOT, file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {re.escape(name.partition('[')[0])}\(", text, re.MULTILINE), test


def test_no_two_patches_have_one_name() -> None:
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)


def test_what_is_red_without_a_patch_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_two.py").write_text("def test_good(): pass\n\ndef test_bad(): assert False\n")
    assert run_tests(tmp_path, ["test_two.py"], 60) == (1, ["test_two.py::test_bad"])
    assert run_tests(tmp_path, ["--deselect=test_two.py::test_bad", "test_two.py"], 60) == (0, [])


ENDLESS = """
import pathlib, pytest, time

@pytest.fixture
def started():
    yield
    pathlib.Path("cleaned").touch()

def test_it(started):
    time.sleep(60)
"""


def test_tests_that_do_not_end_are_ended_and_show_nothing(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_one.py").write_text(ENDLESS)
    assert run_tests(tmp_path, ["test_one.py"], 2) == (None, ["did not end"])
    assert (tmp_path / "cleaned").exists(), "what the test has started is ended by its fixtures"
