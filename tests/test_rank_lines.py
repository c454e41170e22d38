"""Lines of several ranks in one log, read by patterns that know of none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.paths import RunPaths
from resumekit.process.log_numbers import LogNumbers
from resumekit.run import log_patterns, rank_lines
from resumekit.run.run_folder import Run

PATTERNS = log_patterns.compiled({"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)"})


def read(
    *lines: str, patterns: Any = PATTERNS, reader: rank_lines.RankLines | None = None
) -> tuple[list[Any], list[Any]]:
    """Return ((step, loss) of each step of the curve, what the other ranks tell)."""
    reader = reader or rank_lines.RankLines(None)
    kept, told = reader.of_curve("".join(f"{line}\n" for line in lines).encode(), patterns)
    steps = [reader.with_others(one) for one in log_patterns.found_steps(kept, patterns)]
    return [(one["step"], one.get("loss")) for one in steps], told


@pytest.mark.parametrize("form", ["[default{}]:", "[rank{}]: ", "[default{0}]:[rank{0}]: "])
def test_one_rank_makes_the_curve(form: str) -> None:
    lines = [f"{form.format(rank)}step {step} loss {step}.{rank}" for step in (1, 2) for rank in (1, 0)]
    assert read(*lines) == ([(1, 1.1), (2, 2.1)], [])


def test_two_losses_of_another_rank_that_are_not_finite_are_told_with_that_rank() -> None:
    reader = rank_lines.RankLines(None)
    assert read("[default0]:step 1 loss 0.5", "[default3]:step 1 loss nan", reader=reader)[1] == []
    again = rank_lines.RankLines({**reader.account, "step": 1})
    steps, told = read("[default0]:step 2 loss 0.5", "[default3]:step 2 loss nan", reader=again)
    assert told == [{"event": "nonfinite", "step": 2, "what": "loss of [default3]:"}]
    assert [step for step, _ in steps] == [2] and math.isnan(steps[0][1]), "the curve is no better than its worst rank"
    assert read("[default3]:step 3 loss 0.4", "[default0]:step 3 loss 0.5", reader=again) == ([(3, 0.5)], [])


@pytest.mark.parametrize(
    ("lines", "step"),
    [
        (["step 1 loss 0.5", "step 2 loss 0.4"], "^step ([0-9]+)"),
        (["[epoch 3]: step 1 loss 0.5", "[epoch 4]: step 2 loss 0.4"], "step ([0-9]+)"),
        (["1: step 1 loss 0.5", "2: step 2 loss 0.4"], "step ([0-9]+)"),
        (
            ["[default1]:step 1 loss 0.5", "[default1]:step 2 loss 0.4", "[default0]:nothing"],
            r"^\[default1\]:step ([0-9]+)",
        ),
    ],
)
def test_lines_without_a_rank_and_patterns_that_have_it_are_read_as_before(lines: list[str], step: str) -> None:
    patterns = log_patterns.compiled({"step": step, "loss": "loss ([0-9.]+)"})
    assert read(*lines, patterns=patterns) == ([(1, 0.5), (2, 0.4)], [])


@pytest.mark.parametrize(
    "saved", [None, 3, {}, {"rank": 3, "bad_ranks": "x", "step": "y"}, {"bad_ranks": [1, "[rank1]:"]}]
)
def test_an_account_of_any_content_is_taken(saved: Any) -> None:
    assert read("[rank0]: step 1 loss 0.5", reader=rank_lines.RankLines(saved))[0][0][0] == 1


def test_a_log_without_ranks_leaves_no_account() -> None:
    reader = rank_lines.RankLines(None)
    read("step 1 loss 0.5", reader=reader)
    assert reader.account == {}


def test_the_reader_of_a_log_tells_the_rank_s_nan_and_its_successor_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    run = Run(RunPaths(tmp_path), {})
    run.config = {"trainer": {"log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)"}}}

    def step(number: int, loss: str) -> bytes:
        return b"[default1]:step %d loss %s\n[default0]:step %d loss 0.5\n" % (number, loss.encode(), number)

    def told(numbers: LogNumbers, lines: bytes) -> list[Any]:
        found = numbers.read(lines, lines, is_new=True)
        return [(one.get("event", "step"), one["step"], one.get("what")) for one in found]

    first = b"[default0]:step 1 loss 0.5\n"
    begun = LogNumbers(run, {}, re.compile(rb"\x1b"))
    assert told(begun, first + step(2, "nan")) == [("step", 1, None), ("step", 2, None)]
    successor = LogNumbers(run, json.loads(json.dumps(begun.account)), re.compile(rb"\x1b"))
    bad = ("nonfinite", 3, "loss of [default1]:")
    assert told(successor, step(3, "nan")) == [("step", 3, None), bad]
    assert told(successor, step(4, "0.4")) == [("step", 4, None)]
