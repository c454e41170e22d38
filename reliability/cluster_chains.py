"""Whole lives of runs on a Slurm: a chain of five allocations, and an array of eight names.

Try it: `python -m reliability.cluster --scenario five_allocations`
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from reliability.cluster_scenarios import URGENT
from reliability.cluster_stage import STARTS_S, Stage
from support.nights import record
from support.places import ROOT
from support.processes import wait_until

NAMES = tuple(f"n{number}" for number in range(8))


def five_allocations(stage: Stage) -> None:
    """Preemption, a warning, a node without power, a requeue: equal bit for bit to an undisturbed one."""
    stage.trains_really(140)
    job = stage.submit("--name", "chain")
    stage.reaches(15, name="chain")
    stage.sbatch(*URGENT)
    stage.reaches(40, count=2, name="chain")
    stage.signal(job, "USR1")
    third = stage.reaches(65, count=3, name="chain")
    node = record(third)["host"]
    stage.cluster.cut(node)
    stage.reaches(90, count=4, name="chain")
    stage.cluster.give_back(node)
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=5, name="chain")
    assert stage.cluster.job(job)["Restarts"] == "4", stage.said(job)
    stage.trains_really(140, delay_s=0.0)
    (whole,) = stage.finishes(stage.submit("--name", "whole"), runs=1, name="whole")
    assert_equal(whole, lineage[-1])


def array(stage: Stage) -> None:
    """An array of eight names, requeued twice: eight lineages, none mixed."""
    stage.config(training={"max_steps": 120})
    command = shlex.join(stage.argv("run", "T-1", "--name", "NAME"))
    body = f"exec {command.replace('NAME', 'n$SLURM_ARRAY_TASK_ID')}"
    job = stage.submit(sbatch=("--array=0-7",), body=body)
    for count in (1, 2):
        for name in NAMES:
            stage.reaches(10, count=count, name=name)
        for number in range(len(NAMES)):
            stage.cluster.ask("scontrol", "requeue", f"{job}_{number}")
    wait_until(lambda: not stage.cluster.queue(), f"the array is over; {stage.cluster.queue()}", STARTS_S)
    for name in NAMES:
        lineage = stage.lineage(name)
        assert len(lineage) == 3, f"{name}: {[run.name for run in lineage]}"
        assert record(lineage[0])["parent_run_id"] is None and stage.state(lineage[-1]) == "finished", name
        stage.goes_on(lineage)


def assert_equal(one: Path, other: Path) -> None:
    """Hold that two runs are equal bit for bit: every journaled step, and the last checkpoint."""
    words = [sys.executable, str(ROOT / "lib" / "resume_helper.py"), "--compare", str(one), str(other)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


CHAINS: dict[str, Callable[[Stage], None]] = {one.__name__: one for one in (five_allocations, array)}
