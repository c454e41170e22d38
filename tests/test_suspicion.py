"""A checkpoint that a trainer cannot go on from: the third start takes the next older one, if the ends point at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import TOY, Kit, events
from test_recovery import configure

# A trainer that loads by itself: it makes steps, saves at 5 and 10, dies at 12; from then on step 10 does not load.
TRAINER = """
import pathlib, runpy, sys
words = sys.argv[1:]
if "--resume" in words and words[words.index("--resume") + 1].endswith("_10.pt"):
    %s
sys.argv = [%r, *words]
runpy.run_path(%r, run_name="__main__")
"""


def write_trainer(kit: Kit, fails: str) -> None:
    (kit.folder / "train.py").write_text(TRAINER % (fails, str(TOY), str(TOY)))
    command = ["{python}", "train.py", "--dir", "{checkpoints_dir}", "--steps", "60", "--save-every", "5"]
    command += ["--at", "12", "exit=5"]
    configure(kit, trainer={"command": command, "loads_with_kit": False}, recover={"backoff_s": 1})


def steps_begun_at(kit: Kit) -> list[int]:
    return [json.loads((run / "run.json").read_text())["parent_step"] or 0 for run in kit.run_dirs()]


def quarantines(kit: Kit) -> list[Path]:
    return list(kit.runs.glob("*/quarantine.json"))


def test_the_third_start_tries_the_next_older_checkpoint_and_says_so(kit: Kit) -> None:
    write_trainer(kit, "raise RuntimeError('Error(s) in loading state_dict for Net: size mismatch')")
    said = kit("run", "T-1", code=5).stderr
    assert steps_begun_at(kit)[:4] == [0, 10, 10, 5]
    assert "'hrm_arc_step_10.pt' is left aside: two starts from it ended before their first step" in said
    assert events(kit.run_dirs()[3], "step"), "it trains"
    assert not quarantines(kit), "an exit code alone is no proof: a person can still name the file"


@pytest.mark.parametrize("fails", ["import torch_that_is_not_there", "raise OSError('CUDA: device busy')"])
def test_what_fails_with_every_checkpoint_blames_none(kit: Kit, fails: str) -> None:
    write_trainer(kit, fails)
    kit("run", "T-1", code=1)
    assert steps_begun_at(kit) == [0, 10, 10, 10]
    assert "3 starts in a row without a new step" in events(kit.run_dirs()[-1], "recovery")[-1]["reason"]
