"""The formats of frameworks: each is found by its own log and by no other, and reads its own lines."""

from __future__ import annotations

import re
from typing import Any

import pytest

from resumekit.config import schema
from resumekit.process.train_log import _ESCAPES
from resumekit.run import log_formats
from resumekit.run.log_formats import FORMATS
from resumekit.run.log_reader import LogReader
from support.places import ROOT

LOGS = ROOT / "tests" / "recorded" / "logs"
RECORDED = {path.stem: path.read_bytes() for path in sorted(LOGS.glob("*.log"))}
# The format of each recorded log is in its name.
OWN = {name: "nanogpt" if name == "ranks" else name.partition("_")[0] for name in RECORDED}
# Logs of no framework in the table, and what may come before a training in any of them.
FOREIGN = {
    "a plain loop": "".join(f"step {n} loss 0.{n} lr 3e-4\n" for n in range(1, 30)),
    "a loop with a bar": "".join(f"\r {n}%|##   | {n}/100 [00:01<00:02, 40it/s, loss=0.{n}]" for n in range(1, 90)),
    "a bar named by its epoch": "".join(f"\rEpoch 0: {n:3}%|# | {n}/100 [00:01<00:02, 9.9it/s]" for n in range(1, 90)),
    "preparing data": "Map:  45%|####5     | 450/1000 [00:01<00:01, 350.00 examples/s]\n"
    "Generating train split: 100 examples\n"
    "Loading weights: 100%|##########| 290/290 [00:00<00:00]\nDownloading shards:  50%|#####     | 1/2 [00:10<00:10]\n",
    "an evaluation": "Evaluating:  12%|#2        | 12/100 [00:01<00:08]\n{'accuracy': 0.91, 'loss': 0.3}\n",
    "a dict": "{'step': 12, 'loss': '3.251', 'learning_rate': '8.1e-07'}\n{'loss': 0.5, 'epoch': 3}\n"
    "{'epoch': 3, 'loss': nan}\n",
    "the example": "[train] step=40 epoch=1 loss=0.81 lr=3.0e-04 steps_per_sec=2.4\n[checkpoint] step=40 saved\n",
    "nanochat": "step 00010/21400 (0.05%) | loss: 6.123456 | lrm: 1.00 | dt: 512.31ms | tok/sec: 1,023 | mfu: 43.1\n",
    "keras": "Epoch 1/5\n469/469 [==============================] - 2s 4ms/step - loss: 0.3 - val_loss: nan\n",
    "words of others": "iteration 3 of 5: loss scale 1.0\nvalidation loss at iteration\nstep: 10 loss: nan\n"
    "iter 3: loss nan\n",
}  # fmt: skip


def told(log: bytes, name: str = "auto", size: int = 1 << 18) -> list[tuple[str, dict[str, Any]]]:
    reader, found = LogReader(name, {}, _ESCAPES), []
    for at in range(0, len(log), size):
        found += reader.feed(log[at : at + size]) + reader.rest()
    return found + reader.rest(is_last=True)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("size", [97, 1 << 18])
def test_the_format_of_a_log_is_found_by_itself_and_said_once(name: str, size: int) -> None:
    said = [fields["format"] for kind, fields in told(RECORDED[name], size=size) if kind == "format"]
    assert said == [OWN[name]]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_log_of_no_framework_is_taken_for_none(name: str) -> None:
    assert told(FOREIGN[name].encode()) == []


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("log", RECORDED)
def test_a_format_that_is_given_reads_nothing_out_of_the_log_of_another(name: str, log: str) -> None:
    """But for the bars of tqdm, which Trainer and the loops of Accelerate draw in the same form."""
    if OWN[log] != name and {OWN[log], name} != {"hf", "accelerate"}:
        assert told(RECORDED[log], name) == []


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("log", ["preparing data", "an evaluation", "a plain loop", "the example", "keras"])
def test_what_comes_before_a_training_is_no_step_and_no_nan_in_any_format(name: str, log: str) -> None:
    assert told(FOREIGN[log].encode(), name) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reads_its_examples(name: str) -> None:
    own, reader = FORMATS[name], LogReader(name, {}, _ESCAPES)
    for line in own.examples:
        reader.feed(line.encode() + b"\n")
        is_mark_alone = re.search(own.mark, line, re.MULTILINE) and not re.search(own.begins, line)
        assert reader.lines or is_mark_alone or "train_runtime" in line, line


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_a_source_and_an_example_of_its_mark_or_loss(name: str) -> None:
    own = FORMATS[name]
    assert own.source and own.framework and own.name == name
    for part in ("mark", "loss"):
        assert any(re.search(getattr(own, part), line) for line in own.examples), part


def test_the_schema_names_the_formats() -> None:
    named = schema.load().leaves["trainer.log_format"]["enum"]
    assert named == [log_formats.AUTO, log_formats.NONE, *FORMATS]
