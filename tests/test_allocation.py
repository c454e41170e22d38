"""What a scheduler's job has started is taken up in that job alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.paths import RunPaths
from resumekit.run.run_folder import Run
from resumekit.watch import allocation, recovering
from support.nights import Night
from support.places import LIVE
from support.processes import wait_until
from support.runs import events

SEVEN = {"name": "slurm", "job": "7", "restarts": 0, "cluster": "c"}
OF_SEVEN = "it belongs to job 7 of slurm"


@pytest.fixture
def night(weird_tmp_path: Path) -> Iterator[Night]:
    night = Night(weird_tmp_path)
    night.config("--delay", "0.02", "--save-every", "5", training={"max_steps": 100_000})
    try:
        yield night
    finally:
        night.clean_up()


@pytest.mark.parametrize(
    ("record", "here", "reason"),
    [
        ({"scheduler": None}, {}, None),
        ({"scheduler": SEVEN}, {"SLURM_JOB_ID": "7"}, None),
        ({"scheduler": SEVEN}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, None),
        ({"scheduler": SEVEN}, {"SLURM_JOB_ID": "8"}, f"{OF_SEVEN}, and this process to job 8 of slurm"),
        ({"scheduler": SEVEN}, {"PBS_JOBID": "7"}, f"{OF_SEVEN}, and this process to job 7 of pbs"),
        ({"scheduler": SEVEN}, {}, f"{OF_SEVEN}, and this process to no job"),
        ({"scheduler": {"name": "pbs", "job": "7.head"}}, {"PBS_JOBID": "7.head"}, None),
        ({"scheduler": None}, {"SLURM_JOB_ID": "8"}, "it was started outside of job 8 of slurm"),
        ({"scheduler": {"name": "kubernetes", "job": None}}, {}, None),
        ({}, {"SLURM_JOB_ID": "8"}, None),
        ({"environment": {"values": {"SLURM_JOB_ID": "7"}}}, {}, f"{OF_SEVEN}, and this process to no job"),
        ({"environment": {"values": {"SLURM_JOB_ID": "7"}}}, {"SLURM_JOB_ID": "7"}, None),
        ({"scheduler": {"name": 3, "job": ["x"]}}, {}, None),
    ],
)
def test_a_run_is_the_caller_s_where_both_are_of_one_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], here: dict[str, str], reason: str | None
) -> None:
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    told = allocation.why_not_callers(Run(RunPaths(tmp_path), {"experiment": "T-1", **record}))
    assert (told is None) if reason is None else told is not None and told.startswith(reason), told
    assert told is None or "bin/run.sh T-1 goes on from it" in told


@pytest.mark.parametrize("own", [None, "8"], ids=["cron's", "another job's"])
def test_a_watcher_outside_of_the_job_leaves_its_dead_run_alone_and_says_so(
    night: Night, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    run = died_in_job_7(night)
    before = (run / "journal.jsonl").read_bytes()
    here = {} if own is None else {"SLURM_JOB_ID": own}
    for _ in range(2):
        said = night.watch("--json", code=0, env=here).stdout
        assert f"left alone: {OF_SEVEN}" in said and '"verdict": "warning"' in said
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    assert recovering.recover(run, 1) == recovering.NOTHING, "nor where it is asked of that run alone"
    assert night.run_dirs() == [run] and (night.runs / LIVE / run.name).exists()
    assert "abort" not in (run / "journal.jsonl").read_bytes().removeprefix(before).decode()


def test_a_watcher_in_the_job_takes_its_dead_run_up_in_that_job(night: Night) -> None:
    run = died_in_job_7(night)
    night.watch(env={"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"})
    child = night.next_of(run)
    trainer = Path(f"/proc/{night.who(child, 'trainer')}/environ").read_bytes().split(b"\0")
    assert {b"SLURM_JOB_ID=7", b"SLURM_NTASKS=2"} <= set(trainer)


def test_a_run_of_no_job_is_left_alone_by_a_watcher_in_a_job(night: Night) -> None:
    run = night.start(steps=12)
    night.kill_all_of(run)
    assert "it was started outside of job 8 of slurm" in night.watch("--json", env={"SLURM_JOB_ID": "8"}).stdout
    assert night.run_dirs() == [run]
    night.watch()
    assert not [line for line in environment_of(night, night.next_of(run)) if line.startswith(b"SLURM")]


def environment_of(night: Night, run: Path) -> list[bytes]:
    return Path(f"/proc/{night.who(run, 'trainer')}/environ").read_bytes().split(b"\0")


def test_a_sick_run_of_a_job_is_stopped_from_outside_and_not_taken_up(night: Night) -> None:
    night.config("--delay", "0.02", "--at", "25", "hang", abort={"hang_minutes": 0.05, "grace_s": 2},
                 training={"max_steps": 60})  # fmt: skip
    process = night.popen("run", "T-1", env={"SLURM_JOB_ID": "7"})
    run = night.started()
    night.watched(lambda: events(run, "abort"), "it is stopped")
    child = night.next_of(run)  # by its launcher, which is in the job
    assert events(child, "launched")
    process.kill()


def died_in_job_7(night: Night) -> Path:
    process = night.popen("run", "T-1", env={"SLURM_JOB_ID": "7"})
    run = night.started()
    wait_until(lambda: len(events(run, "step")) >= 12, "some steps")
    night.kill_all_of(run)
    process.communicate(timeout=60)
    return run
