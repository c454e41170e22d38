"""Numbers as trainers print them, under the patterns that the pages show: resumekit.run.log_patterns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumekit.base.paths import RunPaths
from resumekit.config import yaml_document
from resumekit.process.log_numbers import LogNumbers
from resumekit.process.train_log import clean
from resumekit.run import log_patterns
from resumekit.run.run_folder import Run
from support.places import ROOT


def wide_patterns() -> dict[str, str]:
    """Return the patterns that docs/adopting.md shows, for whatever a trainer prints."""
    page = (ROOT / "docs" / "adopting.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ *(log_patterns: .*)$", page, re.MULTILINE)
    return yaml_document.load(line, "adopting.md").data["log_patterns"]


def read(line: str, **patterns: str) -> list[dict[str, Any]]:
    return log_patterns.found_steps(clean(line.encode() + b"\n"), log_patterns.compiled(patterns))


@pytest.mark.parametrize(
    ("printed", "value"),
    [
        ("8.1e-07", 8.1e-07),
        ("1.0E+00", 1.0),
        ("3e-4", 3e-4),
        ("12,000", 12000.0),
        ("12_000.5", 12000.5),
        ("1.2k", 1200.0),
        ("3M", 3e6),
        ("0.5,", 0.5),
        ("0.5.", 0.5),
        ("0.5)", 0.5),
        ("0.5'", 0.5),
        ("5|", 5.0),
        # What cannot be read as a whole is not read in part.
        ("0,345", None),
        ("3.2.1", None),
        ("1,2", None),
        ("3.2ms", None),
        ("3.2e", None),
        ("7x", None),
        ("1.2kB", None),
    ],
)
def test_a_number_is_read_as_a_whole_or_not_at_all(printed: str, value: float | None) -> None:
    (found,) = read(f"step 7 loss {printed} lr 1", step="step ([0-9]+)", loss="loss ([0-9.]+)")
    assert found.get("loss") == value


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("step 12,000", 12000),
        ("step 12_000: loss", 12000),
        ("step 12.", 12),
        ("step 12/2000", 12),
        ("step 12e", None),
        ("step 1.2k", None),
        ("step 12k", None),
        ("step 1.5", None),
        ("step 1,2", None),
        ("step 4 of 5, step 1.2k", 4),
        ("step 1.2k, global step 1234", 1234),
    ],
)
def test_a_step_is_counted_never_rounded(line: str, step: int | None) -> None:
    assert [one["step"] for one in read(line, step="step ([0-9]+)")] == ([] if step is None else [step])


@pytest.mark.parametrize(
    ("pattern", "line", "value"),
    [
        # A pattern that names what follows has the last word on it.
        ("([0-9.]+)it/s", "step 5, 1.67it/s", 1.67),
        (r"\(([0-9]+),", "step 5 (3,400)", 3.0),
        (r"\[ *([0-9,]+)/", "step 5 [  1,234/20,000]", 1234.0),
        ("speed ([0-9.]+) ?(.*)", "step 5 speed 8.1e-07 it/s", 8.1e-07),
        # One that names anything, or only an end, has not.
        ("speed ([0-9.]+).*", "step 5 speed 8.1e-07", 8.1e-07),
        (r"speed ([0-9.]+)\b", "step 5 speed 8.1e-07", 8.1e-07),
        ("speed ((?:[0-9]+)(?:[.][0-9]+)?)", "step 5 speed 1.67it/s", None),
        (".*([0-9]+)", "step 5 speed 1234", None),  # the last digit of a number
        ("speed (.+)", "step 5 speed 1e3", 1000.0),
        ("speed (fast)", "step 5 speed fast", None),
    ],
)
def test_what_a_pattern_says_of_what_follows_counts(pattern: str, line: str, value: float | None) -> None:
    (found,) = read(line, step="step ([0-9]+)", steps_per_sec=pattern)
    assert found.get("steps_per_sec") == value


BAR = "\r  3%|▎         | 60/2000 [00:36<19:24,  1.67it/s, loss=8.1e-07]"
LINES = {
    "a plain loop": ("step 12,000 loss 8.1e-07 lr 3e-4", 12000, 8.1e-07),
    "nanoGPT": ("iter 100: loss 2.3412, time 12.31ms, mfu 3.02%", 100, 2.3412),
    "torchtitan": ("\x1b[31m[titan] 2026 - root - INFO - step: 10  loss:  7.1234  grad_norm: 1.2\x1b[0m", 10, 7.1234),
    "Megatron": (" iteration      100/     500 | consumed samples: 800 | lm loss: 1.0E+00 |", 100, 1.0),
    "a dict": ("{'step': 12, 'loss': '3.251', 'learning_rate': '8.1e-07'}", 12, 3.251),
    "a blank inside": ("[ 1234/2000] loss=0.5", 1234, 0.5),
    "a progress bar": (BAR, 60, 8.1e-07),
}


@pytest.mark.parametrize("name", LINES)
def test_the_patterns_of_the_page_read_what_trainers_print(name: str) -> None:
    line, step, loss = LINES[name]
    (found,) = read(line, **wide_patterns())
    assert (found["step"], found["loss"]) == (step, loss)


@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-inf"])
@pytest.mark.parametrize("form", ["step 5 loss: {}", "{{'step': 5, 'loss': '{}'}}", "| 5/20 [00:01, loss={}]"])
def test_the_wide_patterns_see_a_loss_that_is_none(form: str, word: str) -> None:
    (found,) = read(form.format(word), **wide_patterns())
    assert str(found["loss"]).lower() == word.lower()


@pytest.mark.parametrize(
    ("line", "loss"),
    [
        ("iter 7 | lr 3e-4 | best val loss: inf", None),
        ("step 40 | val loss: nan", None),
        ("step 40 | validation_loss: nan", None),
        ("{'step': 40, 'eval_loss': nan}", None),
        ("step 40 test/lm_loss=nan", None),
        ("step 40 Best Loss: inf", None),
        ("step 40 | val loss: 0.7 | train loss: nan", "nan"),
        ("step 40 | train loss: nan | val loss: 0.7", "nan"),
        ("step 40 | val acc 0.9 loss: nan", "nan"),
        ("step 40 | best_val_loss: inf, loss: 0.5", "0.5"),
        ("step 40 | interval loss: nan", "nan"),
        ("step 40 | latest loss: nan", "nan"),
        ("[test-run] step 40 | loss: nan", "nan"),
    ],
)
@pytest.mark.parametrize("pattern", ["the page's", "loss[^0-9a-z]{1,4}([0-9.]+)", "(?:[a-z_]*)loss\\W{1,4}([0-9.]+)"])
def test_a_loss_of_another_kind_is_not_the_trainings(line: str, loss: str | None, pattern: str) -> None:
    wide = wide_patterns()
    patterns = wide if pattern == "the page's" else {**wide, "loss": "(?i)" + pattern}
    (found,) = read(line, **patterns)
    assert (str(found["loss"]) if "loss" in found else None) == loss


def test_a_pattern_that_names_another_loss_itself_takes_it() -> None:
    (found,) = read("step 40 | val loss: inf", step="step ([0-9]+)", loss="val loss: ([0-9.]+)")
    assert found["loss"] == float("inf")
    (found,) = read("step 40 | val loss: 0.5", step="step ([0-9]+)", loss="(?:train|val) loss: ([0-9.]+)")
    assert found["loss"] == 0.5


FORMS = st.sampled_from(["{!r}", "{:.4f}", "{:.3e}", "{:.3E}", "{:,.2f}", "{:_.2f}", "{:g}"])


@settings(deadline=None)
@given(st.floats(min_value=0.0, max_value=1e30), FORMS, st.sampled_from(["", " ", ",", ")", "|", "'", "."]))
def test_whatever_python_prints_is_read_as_python_would(value: float, form: str, behind: str) -> None:
    printed = form.format(value)
    (found,) = read(f"step 5 loss {printed}{behind}", step="step ([0-9]+)", loss="loss ([0-9.]+)")
    assert found["loss"] == float(printed.replace(",", ""))


@pytest.mark.parametrize(
    "line", ["[2026-11-29 12:00:01] loading", "epoch 3/90 begins", "time per step: 0.35", "steps per second: 3"]
)
def test_the_wide_patterns_take_no_other_number_for_a_step(line: str) -> None:
    assert read(line, **wide_patterns()) == []


@pytest.mark.parametrize(
    ("line", "total"),
    [
        ("step 15/600", 600),
        ("step 15/600it", None),
        ("step [15 / 600]:", 600),
        ("step 15 of 600, loss 1", 600),
        ("step 1,500/12,000 ", 12_000),
        ("step 15", None),
        ("step 15/5", None),
        ("step 15 / 24.5 s", None),
        ("step 15/s", None),
        (" 3%|█▏    | 15/600 [00:10<06:30,  1.50it/s]", 600),
    ],
)
def test_the_number_of_all_steps_is_read_where_it_stands_behind_a_step(line: str, total: int | None) -> None:
    (found,) = read(line, **wide_patterns())
    assert (found["step"], found.get("step_total")) == (1500 if "1,5" in line else 15, total)


def test_of_a_bar_by_patterns_the_last_drawing_of_a_step_has_its_loss(tmp_path: Path) -> None:
    """tqdm draws a step with the loss of the one before it, then with its own."""
    patterns = {"step": r"([0-9]+)/9 \[", "loss": "loss=([0-9.]+)"}
    (tmp_path / "resolved_config.json").write_text(json.dumps({"trainer": {"log_patterns": patterns}}))
    numbers = LogNumbers(Run(RunPaths(tmp_path), {"run_id": tmp_path.name}), {}, re.compile(rb"\x1b\[[0-9;]*m"))
    found = []
    for step in (1, 2, 3):
        for loss in (step - 1, step):
            found += (
                numbers.of_bar(f" {step}/9 [00:0{step}<00:09, loss=0.{loss}]\n".encode(), is_new=True) + numbers.rest()
            )
    found += numbers.rest(is_last=True)
    assert [(one["step"], one["loss"]) for one in found] == [(1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.parametrize(
    ("line", "within"),
    [
        ("step 3 lr=0.000167", 5e-7),
        ("step 3 lr=1.67e-4", 5e-7),
        ("step 3 lr=0.001", 5e-4),
        ("step 3 lr=0.0010", 5e-5),
        ("step 3 lr=1e-05", 5e-6),
        ("step 3 lr=0.000", 5e-4),
        ("step 3 lr=0.0008667", None),
        ("step 3 lr=1.000000E-04", None),
        ("step 3", None),
    ],
)
def test_of_a_rate_with_few_digits_it_is_kept_how_far_it_may_be_off(line: str, within: float | None) -> None:
    (found,) = read(line, step="step ([0-9]+)", lr=r"lr=([0-9.]+)")
    assert found.get("lr_within") == within


def test_a_step_that_is_read_off_an_unfinished_line_is_one_of_a_bar() -> None:
    config = {"trainer": {"log_patterns": {"step": r"([0-9]+)/200", "loss": r"loss=([0-9.]+)"}}}
    run = Run(RunPaths(Path("runs/X")), {})
    run.config = config
    numbers = LogNumbers(run, {}, re.compile(rb"\x1b"))
    bar = b" 12%%|#  | %d/200 [00:01<00:09, loss=2.1]"
    found = [one for at in (25, 26, 27) for one in numbers.of_bar(bar % at, is_new=True)]
    assert [(one["step"], one.get("bar")) for one in found] == [(25, True), (26, True)]
    line = b"28/200 loss=2.0\n"
    assert numbers.read(line, line, is_new=True)[-1] == {"step": 28, "step_total": 200, "loss": 2.0}
