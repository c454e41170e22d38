"""The names of runs, made and read."""

from __future__ import annotations

import re

import pytest

from resumekit.basics.errors import UsageError
from resumekit.run_folder.lineage import RunName, check_experiment, check_name, make_run_id, parse_run_name

STAMP = "[0-9]{8}-[0-9]{4}"


@pytest.mark.parametrize(
    "args, expected",
    [
        (("EXP-01",), f"EXP-01_{STAMP}"),
        (("EXP-03_droppath_base",), f"EXP-03_droppath_base_{STAMP}"),
        (("EXP-03", "EXP-03_droppath_base_20261122-1735", 40000), f"EXP-03_droppath_base_resume@40000_{STAMP}"),
        (("EXP-05", "EXP-03_droppath_base_20261122-1735", 7), f"EXP-05_droppath_base_resume@7_{STAMP}"),
        (("EXP-03", "EXP-03_a_resume@5_20261122-1735-2", 9), f"EXP-03_a_resume@9_{STAMP}"),
        (("EXP-03_own", "EXP-03_a_resume@5_20261122-1735", 9), f"EXP-03_own_resume@9_{STAMP}"),
        (("EXP-03", None, 0), f"EXP-03_resume@0_{STAMP}"),
    ],
)
def test_run_ids_have_the_protocol_s_form(args: tuple, expected: str):
    assert re.fullmatch(expected, make_run_id(*args))


@pytest.mark.parametrize("args", [("a/b",), ("EXP-01", "EXP-01_x"), ("EXP-01", "EXP-01_x", -1), ("",), ("_x",)])
def test_what_could_be_no_folder_of_ours_is_refused(args: tuple):
    with pytest.raises(UsageError):
        make_run_id(*args)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("EXP-03", RunName("EXP-03")),
        ("EXP-03_droppath_base", RunName("EXP-03", "droppath_base")),
        ("EXP-03_droppath_base_resume@40000", RunName("EXP-03", "droppath_base", 40000)),
        ("EXP-01_20261122-1735", RunName("EXP-01", None, None, "20261122-1735")),
        ("EXP-01_20261122-1735-12", RunName("EXP-01", None, None, "20261122-1735-12")),
        ("EXP-01_a_b_resume@3_20261122-1735", RunName("EXP-01", "a_b", 3, "20261122-1735")),
        ("EXP-01_resume@3", RunName("EXP-01", None, 3)),
    ],
)
def test_names_are_read_back(text: str, expected: RunName):
    assert parse_run_name(text) == expected and str(expected) == text


@pytest.mark.parametrize(
    "text", ["", ".live", "-x", "a b", "EXP\n", "EXP-01_x\n", "EXP-٣@", "a/b", "..", "x" * 5 + "$(y)"]
)
def test_other_folders_are_no_runs(text: str):
    assert parse_run_name(text) is None


@pytest.mark.parametrize("check", [check_experiment, check_name])
@pytest.mark.parametrize(
    "text", ["", "-rf", ".", "..", "a/b", "a b", "a\n", "\x1b[31m", "ä", "x" * 81, "$(x)", "resume@5"]
)
def test_names_that_could_leave_the_folder_or_be_taken_for_a_flag_are_refused_printably(check, text: str):
    with pytest.raises(UsageError) as refused:
        check(text)
    assert str(refused.value).isprintable()


def test_a_name_s_longest_form_is_a_folder_name():
    made = make_run_id("E" * 80 + "_" + "n" * 80, "x_" + "n" * 80, 10**12 - 1)
    assert len(f".pin_{10**12 - 1}_{made}-9999.json") <= 255
