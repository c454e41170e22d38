"""The campaign that takes out protections finds each of them: its place in the code and its tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from reliability import campaign_protections
from reliability.campaign_protections import ROOT, run_tests
from reliability.protections import PATCHES, Patch, taken_out
from reliability.source_edits import left_out
from support.processes import marked_pids


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_what_a_patch_takes_out_is_one_place_of_its_function(patch: Patch) -> None:
    file, without_it = taken_out(patch, ROOT)
    before = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        assert ast.dump(ast.parse(without_it)) != ast.dump(ast.parse(before))
    else:
        assert without_it != before


def test_no_protection_has_gone() -> None:
    assert len(PATCHES) >= 166


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


def test_tests_that_do_not_end_are_ended(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_one.py").write_text(ENDLESS)
    assert run_tests(tmp_path, ["test_one.py"], 2) == (None, ["did not end"])
    assert (tmp_path / "cleaned").exists(), "what the test has started is ended by its fixtures"


DEAF = """
import signal, subprocess, time

def test_it():
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(300)
"""


def test_tests_that_do_not_hear_and_what_they_have_started_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_protections, "CLEANING_S", 0.5)
    monkeypatch.setattr(campaign_protections.secrets, "token_hex", lambda _: tmp_path.name)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_one.py").write_text(DEAF)
    assert run_tests(tmp_path, ["test_one.py"], 2) == (None, ["did not end"])
    assert not list(marked_pids(f"{campaign_protections.MARK}={tmp_path.name}"))


@pytest.mark.parametrize(("code", "is_seen"), [(1, True), (None, True), (0, False), (5, False)])
def test_a_protection_is_missed_where_a_test_fails_or_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, is_seen: bool
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/module.py").write_text("guard()\n")
    monkeypatch.setattr(campaign_protections, "ROOT", tmp_path)
    monkeypatch.setattr(campaign_protections, "run_tests", lambda *_: (code, []))
    patch = Patch("guard", "module.py", (left_out("guard()"),), ("tests/test_module.py",))
    assert campaign_protections.is_seen(patch, []) is is_seen


def test_a_protection_that_is_not_found_is_not_taken_for_one_that_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/module.py").write_text("guard()\nguard()\n")
    monkeypatch.setattr(campaign_protections, "ROOT", tmp_path)
    patch = Patch("guard", "module.py", (left_out("guard()"),), ("tests/test_module.py",))
    assert not campaign_protections.is_seen(patch, [])
    assert "means 2 places instead of one: lines 1, 2" in capsys.readouterr().out
