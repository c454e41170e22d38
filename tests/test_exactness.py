"""A run that was cut anywhere and resumed is bit for bit the run that was never cut; without any item of its state not.

Each cut is a real trainer under the launcher that signals itself at a named place (tests/cut_trainer.py), and each
resume a new process started by the commands. `make campaign` does all cuts, a normal run the nastiest one of each kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compare_runs
import cut_trainer
import example_runs
import pytest
from conftest import ROOT, Kit, events

EVERY = 3  # optimizer steps between two checkpoints; a new best (steps 4, 8, 12) saves too
CONFIG: dict[str, dict[str, Any]] = {
    "data": {"max_grid": 5},
    "model": {
        "seq_len": 25, "hidden_size": 16, "layers": 1, "heads": 2, "puzzle_emb_dim": 16, "dropout": 0.1,
        "halt_max_steps": 3, "halt_exploration": 0.5,
    },
    "training": {
        "max_steps": 12, "batch_size": 4, "grad_accum_steps": 2, "amp": "off", "device": "cpu", "threads": 1,
        "log_every": 1,
    },
    "optimizer": {"lr": 1e-3},
    "schedule": {"warmup_steps": 4},
    "ema": {"decay": 0.9},
    "validation": {
        "fast_eval_every": 2, "full_eval_every": 4, "gate_full_eval_on_fast_improvement": False,
        "best_metric": "loss", "best_mode": "min",
    },
    "checkpoint": {"every": EVERY, "keep_last": 2},
    "recover": {"enabled": False},
}  # fmt: skip
BF16 = {"training": CONFIG["training"] | {"amp": "bf16"}}
TRAINER = {
    "command": [
        "{python}", "-u", str(Path(cut_trainer.__file__)).replace("{", "{{").replace("}", "}}"), "--run_id", "{run_id}",
        "--config", "{config_json}", "--checkpoint_dir", "{checkpoints_dir}", "--status_json_path", "{heartbeat_json}",
        "--logdir", "{logs_dir}",
    ],
    "resume_args": ["--resume", "{checkpoint}"],
    "loads_with_kit": True,
    "log_patterns": {},
}  # fmt: skip

# <signal>:<stage>:<k>: the k-th passage, of this process, through a stage. Two in a row: the resumed run is cut again.
SAMPLE = (
    "KILL:optimizer:5",  # AdamW has moved its weights, the puzzles' optimizer has not
    "KILL:save.write:2",
    "KILL:save.manifest:3",  # the data has its final name, the manifest has not
    "INT:save.rename:2",
    "TERM:eval:4",
    "INT:backward:13",
    "TERM:micro:11 KILL:load.rng:1",  # stopped, resumed, killed with all but the random numbers loaded
)
CAMPAIGN = (
    # an optimizer step, in its order; `forward`, `micro` and `backward` pass twice in each
    "KILL:start:1", "TERM:start:1", "KILL:between:1", "KILL:between:2", "KILL:between:4", "KILL:between:12",
    "TERM:between:1", "TERM:between:7", "INT:between:12", "KILL:forward:8", "KILL:forward:21", "TERM:forward:5",
    "KILL:micro:7", "KILL:micro:16", "KILL:micro:24", "TERM:micro:2", "INT:micro:23", "KILL:backward:10",
    "KILL:backward:19", "TERM:backward:20", "KILL:clip:5", "INT:clip:9", "KILL:optimizer:1", "KILL:optimizer:11",
    "TERM:optimizer:6", "INT:optimizer:8", "KILL:schedule:7", "TERM:schedule:3", "KILL:ema:6", "KILL:ema:12",
    "INT:ema:4", "KILL:counted:8", "TERM:counted:9", "KILL:journal.step:7", "KILL:journal.step:12", "TERM:journal.step:5",
    # an evaluation: fast after every second step, full after every fourth, raw and EMA weights each
    "KILL:eval:1", "KILL:eval:5", "KILL:eval:8", "KILL:eval:20", "TERM:eval:1", "TERM:eval:9", "INT:eval:2",
    "INT:eval:19", "KILL:journal.eval:4", "TERM:journal.eval:4", "KILL:journal.best:2", "INT:journal.best:1",
    # a save: the first is of step 3, then 4, 6, 8, 9, 12; pruning has something to do from the third on
    "KILL:save.collect:1", "TERM:save.collect:2", "KILL:save.write:1", "KILL:save.write:6", "TERM:save.write:3",
    "INT:save.write:4", "INT2:save.write:3", "TERM2:save.write:2", "KILL:save.fsync:2", "TERM:save.fsync:6",
    "KILL:save.rename:1", "KILL:save.rename:4", "TERM:save.rename:5", "KILL:save.renamed:3", "KILL:save.manifest:1",
    "KILL:save.manifest:2", "TERM:save.manifest:4", "KILL:save.best:2", "KILL:save.best.linked:1",
    "KILL:save.best.linked:2", "KILL:save.best.manifest:1", "KILL:save.best.manifest:3", "INT:save.best.manifest:2",
    "KILL:save.synced:3", "KILL:save.synced:6", "TERM:save.synced:2", "KILL:save.prune:2", "KILL:save.prune:5",
    "KILL:save.pruned:1", "TERM:save.pruned:1", "KILL:end:1", "TERM:end:1",
    # the resumed run is cut again, while it loads or later
    "KILL:between:8 KILL:start:1", "KILL:between:8 KILL:load:1", "TERM:between:8 KILL:loaded:1",
    "TERM:between:8 TERM:load:1", "INT:eval:5 KILL:eval:1", "TERM:eval:5 INT:eval:1", "KILL:optimizer:5 KILL:optimizer:2",
    "KILL:save.manifest:3 KILL:save.manifest:1", "INT:save.pruned:1 KILL:save.best:1", "KILL:ema:4 INT:micro:3",
)  # fmt: skip
# In these the checkpoint that is being saved is whole already, though its event is not in the journal yet.
WHOLE_AT = ("save.best", "save.best.linked", "save.best.manifest", "save.synced")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from whole_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def uninterrupted_bf16(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from whole_run(tmp_path_factory.mktemp("whole_bf16"), **BF16)


def whole_run(folder: Path, **sections: Any) -> Iterator[Path]:
    kit = Kit(folder)
    kit.config(trainer=TRAINER, **CONFIG | sections)
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    assert [e["step"] for e in events(run, "step")] == list(range(1, 13))
    assert saved_steps(run) == [3, 4, 6, 8, 9, 12], "the cuts below count saves in this order"
    yield run
    kit.clean_up()


@pytest.mark.parametrize("cut", SAMPLE)
def test_a_run_that_was_cut_and_resumed_equals_the_uninterrupted_one(cut: str, kit: Kit, uninterrupted: Path) -> None:
    kit.config(trainer=TRAINER, **CONFIG)
    cut_and_resume(kit, cut.split(), uninterrupted)


@pytest.mark.campaign
@pytest.mark.parametrize("cut", CAMPAIGN)
def test_wherever_it_is_cut_the_resumed_run_equals_the_uninterrupted_one(
    cut: str, kit: Kit, uninterrupted: Path
) -> None:
    kit.config(trainer=TRAINER, **CONFIG)
    cut_and_resume(kit, cut.split(), uninterrupted)


@pytest.mark.campaign
@pytest.mark.parametrize("cut", ["KILL:micro:15", "TERM:eval:4"])
def test_under_bf16_autocast_too(cut: str, kit: Kit, uninterrupted_bf16: Path, uninterrupted: Path) -> None:
    kit.config(trainer=TRAINER, **CONFIG | BF16)
    cut_and_resume(kit, cut.split(), uninterrupted_bf16)
    assert compare_runs.compare(uninterrupted_bf16, uninterrupted)[0], "bf16 was on"


def cut_and_resume(kit: Kit, cuts: list[str], whole: Path) -> None:
    """Run, cut as often as `cuts` says, and resume to the end; every promise about it is asserted on the way."""
    for cut in cuts:
        runs_before = kit.run_dirs()
        result = kit(start_command(runs_before), "T-1", code=None, env={"CUT": cut})
        (run,) = set(kit.run_dirs()) - set(runs_before)
        name, stage, _ = cut.split(":")
        assert result.returncode == expected_code(name, stage), f"{result.stdout}{result.stderr}"
        assert_where_it_stands(run, name, stage, whole)
    command = start_command(kit.run_dirs())
    parent = kit.run_dirs()[-1]
    result = kit(command, "T-1")
    run = kit.run_dirs()[-1]
    assert kit.status(run)["state"] == "finished"
    if command == "resume":
        record = json.loads((run / "run.json").read_bytes())
        assert record["parent_run_id"] == parent.name
        assert record["parent_step"] == resumable_step(parent)
        assert f"[resume] step={record['parent_step']} " in result.stdout
    assert compare_runs.compare(run, whole)[0] == []


def start_command(runs: list[Path]) -> str:
    """Before the first checkpoint there is nothing to resume: the same command starts anew."""
    return "resume" if runs and resumable_step(runs[-1]) is not None else "run"


def expected_code(name: str, stage: str) -> int:
    if stage == "end" and name == "TERM":  # every step is done and saved: there is nothing left to stop
        return 0
    return 128 + signal.Signals[f"SIG{name.rstrip('2')}"]


def assert_where_it_stands(run: Path, name: str, stage: str, whole: Path) -> None:
    """A stop loses no step, a kill at most one interval; what is on disk is exactly what the stage implies."""
    journalled = [e["step"] for e in events(run, "step")]
    first = json.loads((run / "run.json").read_bytes())["parent_step"] or 0
    last, saved = (journalled or [first])[-1], max([first, *saved_steps(run)])
    if name in ("TERM", "INT"):
        assert (resumable_step(run) or 0) == last, "0 steps lost"
        return
    if stage in WHOLE_AT:
        saved = min(step for step in saved_steps(whole) if step > saved)
    assert (resumable_step(run) or 0) == saved
    assert last - saved <= EVERY


def saved_steps(run: Path) -> list[int]:
    return [e["step"] for e in events(run, "checkpoint")]


def resumable_step(run: Path) -> int | None:
    """Return the step of the newest checkpoint, the history's included, whose digest is its manifest's."""
    for manifest in sorted(run.glob("checkpoints/hrm_arc_step_*.pt.json"), key=step_of, reverse=True):
        data = manifest.with_suffix("")
        if data.exists() and hashlib.sha256(data.read_bytes()).hexdigest() == json.loads(manifest.read_bytes())["sha256"]:
            return step_of(manifest)
    return json.loads((run / "run.json").read_bytes())["parent_step"]


def step_of(path: Path) -> int:
    return int(re.fullmatch(r"hrm_arc_step_([0-9]+)\.pt(\.json)?", path.name)[1])
