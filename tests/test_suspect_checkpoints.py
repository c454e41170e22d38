"""A checkpoint that a trainer cannot go on from: the third start takes the next older one, if the ends point at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resumekit.run.run_table import RunTable
from resumekit.watch import restart_point
from support.commands import Kit
from support.long_tests import long
from support.places import TOY
from support.recoveries import configure
from support.runs import events

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


@pytest.mark.parametrize("fails", ["import torch_that_is_not_there", long("raise OSError('CUDA: device busy')")])
def test_what_fails_with_every_checkpoint_blames_none(kit: Kit, fails: str) -> None:
    write_trainer(kit, fails)
    kit("run", "T-1", code=1)
    assert steps_begun_at(kit) == [0, 10, 10, 10]
    assert "3 starts in a row without a new step" in events(kit.run_dirs()[-1], "recovery")[-1]["reason"]


@pytest.mark.parametrize(("told", "elapsed_s"), [(False, 300.0), (True, 3600.0), (False, 3600.0)])
def test_a_kill_long_after_the_load_or_of_a_trainer_that_prints_no_steps_blames_no_checkpoint(
    tmp_path: Path, told: bool, elapsed_s: float
) -> None:
    runs = lineage(tmp_path, told=told, elapsed_s=elapsed_s)
    assert restart_point.quarantine_suspect(runs.get("C"), runs) is None


def test_two_kills_soon_after_the_load_of_a_trainer_whose_steps_are_seen_do(tmp_path: Path) -> None:
    runs = lineage(tmp_path, told=True, elapsed_s=300.0)
    assert restart_point.quarantine_suspect(runs.get("C"), runs) == "m_5.pt"


def lineage(folder: Path, *, told: bool, elapsed_s: float) -> RunTable:
    """Return runs P, A and C: A and C went on from P's step 5, and were killed without a new step; P's were seen."""
    runs, parent = RunTable(folder), None
    for name in "PAC":
        run_dir = folder / name
        (run_dir / "checkpoints").mkdir(parents=True)
        (folder / "P" / "checkpoints" / "m_5.pt").write_bytes(b"weights")
        config = {"trainer": {"loads_with_kit": False, "log_patterns": {"step": "step ([0-9]+)"}}}
        (run_dir / "resolved_config.json").write_text(json.dumps(config))
        record = {"run_id": name, "experiment": "T-1", "created_at": f"2026-01-0{len(runs._runs) + 1}T00:00:00.000000Z"}
        if parent:
            record |= {"parent_run_id": parent, "parent_step": 5, "checkpoint": "../P/checkpoints/m_5.pt"}
        (run_dir / "run.json").write_text(json.dumps(record))
        end = {"code": 137, "signal": 9, "pid": 9, "at": "2026-01-01T00:00:00.000000Z", "elapsed_s": elapsed_s}
        (run_dir / "exit.json").write_text(json.dumps(end))
        lines = [{"event": "launched", "run_id": name, "mono_s": 0.5}]
        lines += (
            [{"event": "step", "run_id": "P", "mono_s": 1.0, "step": 5, "source": "log"}]
            if told and name == "P"
            else []
        )
        (run_dir / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        parent = name
        runs.get(name)
    return runs
