"""The names of runs, made and read."""

from __future__ import annotations

import re

import pytest

from resumekit.base.errors import UsageError
from resumekit.config import schema
from resumekit.run.run_names import RunName, check_experiment, check_name, make_run_id, parse_run_name

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
    "text, expected",
    [
        ("big_model_v2_20261122-1735", RunName("big_model", "v2", None, "20261122-1735")),
        ("big_model_20261122-1735", RunName("big_model", None, None, "20261122-1735")),
        ("big_models_20261122-1735", RunName("big", "models", None, "20261122-1735")),
        ("big_model_x_resume@3_20261122-1735", RunName("big_model_x", None, 3, "20261122-1735")),
        ("other_one_20261122-1735", RunName("other", "one", None, "20261122-1735")),
    ],
)
def test_the_longest_known_experiment_that_a_name_begins_with_is_its_experiment(text: str, expected: RunName):
    assert parse_run_name(text, ("big", "big_model", "big_model_x")) == expected and str(expected) == text


@pytest.mark.parametrize("text", ["big_model", "a_b_c", "a.b_c-d", "EXP-01"])
def test_an_experiment_may_have_underscores(text: str):
    assert check_experiment(text) == text
    assert schema.load().findings({"experiments": {text: {}}, "experiment": {"name": text}}) == []
    assert parse_run_name(make_run_id(text), (text,)).experiment == text


@pytest.mark.parametrize("text", ["_a", "a_", "a__b", "a_-b", "a_.b"])
def test_an_underscore_of_an_experiment_stands_between_letters_or_digits(text: str):
    with pytest.raises(UsageError, match="behind the first '_'"):
        check_experiment(text)
    (finding,) = schema.load().findings({"experiments": {text: {}}})
    assert "behind the first '_'" in finding.sentence


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
    made = make_run_id("E" * 80 + "_" + "n" * 80, "x_" + "n" * 80, 10**15 - 1)
    assert len(f".pin_{10**15 - 1}_{made}-9999.json") <= 255
