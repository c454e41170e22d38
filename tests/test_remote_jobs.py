"""Runs in jobs of Slurm, seen and ended from a login node: one question for all, `scancel` of the caller's alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import slurm
from resumekit.base.paths import RunPaths
from resumekit.process import job_stop, stopping
from resumekit.run import listing, live_marker
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from support.commands import Kit, killed, said_by
from support.fake_slurm import FakeSlurm
from support.runs import age, events, record, reseal

JOBS = ("71", "72", "73")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm that is asked from outside of any job; it counts what it is asked."""
    made = FakeSlurm(tmp_path / "slurm")
    script = made.folder / "bin" / "scontrol"
    script.write_text(script.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho "$*" >>"{made.folder}/asked"\n'))
    monkeypatch.setenv("PATH", made.environment()["PATH"])
    monkeypatch.setattr(slurm, "_together", None)
    return made


def says(fake: FakeSlurm, job: str, **of_job: Any) -> None:
    """Let a job be the caller's own."""
    fake.says(job, **of_job)
    path = fake.folder / "jobs" / job
    path.write_text(path.read_text().replace("(1001)", f"({os.geteuid()})"))


def asked(fake: FakeSlurm) -> list[str]:
    path = fake.folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def remote(kit: Kit, fake: FakeSlurm) -> list[Path]:
    """Three runs that were started on another host, each in a job of its own, and of whose end nothing is known."""
    first = killed(kit, "--fresh")
    runs = []
    for job in JOBS:
        run = first.with_name(f"T-1_{job}_20261122-1735")
        shutil.copytree(first, run, symlinks=True)
        elsewhere(run, job)
        runs.append(run)
    shutil.rmtree(first)
    return runs


def elsewhere(run: Path, job: str, **more: Any) -> None:
    """Let a run be one of another host, in a job, that is not known to have ended."""
    scheduler = {"name": "slurm", "job": job, "restarts": 0, "cluster": "fake"}
    place = {"host": "n1", "boot_id": "00000000-0000-4000-8000-000000000000", "machine_id": "ab" * 16}
    fields = {**record(run), "run_id": run.name, "name": job, "scheduler": scheduler, **place, **more}
    (run / "run.json").write_text(json.dumps(fields))
    lines = [event for event in events(run) if event["event"] != "exited"]
    for event in lines:
        event["run_id"] = run.name
        if event["event"] == "launched":
            for process in ("trainer", "shim", "launcher"):
                event[process] |= {"host": "n1", "boot_id": place["boot_id"]}
    (run / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    for name in ("exit.json", ".sidecar.json", "status.json"):
        (run / name).unlink(missing_ok=True)
    age(run)
    reseal(run)


def states(kit_runs: Path) -> dict[str, str]:
    rows = listing.choose(RunTable(kit_runs), None)
    return {run.run_id.split("_")[1]: seen["state"] for run, seen in rows}


def test_all_runs_of_a_list_are_asked_about_at_once(remote: list[Path], fake: FakeSlurm) -> None:
    says(fake, "71")
    says(fake, "72", state="FAILED")
    found = states(remote[0].parent)
    assert found["71"] == "running"
    assert found["72"] == found["73"], "ended, or no more known: both are over"
    assert found["72"] not in ("running", "unknown")
    assert asked(fake) == ["show config", *(f"show job -o {job}" for job in JOBS)]


def test_a_live_run_of_another_host_is_shown_with_host_job_and_last_sign_of_life(
    remote: list[Path], fake: FakeSlurm
) -> None:
    for job in JOBS:
        says(fake, job)
    shown = said_by(["runs", f"--runs={remote[0].parent}", "--experiment=T-1"])
    assert "alive or dead? last heard of " in shown
    assert " UTC on host n1, slurm job 71" in shown
    for run in remote:
        os.utime(run / "logs" / "output.log")
    shown = said_by(["runs", f"--runs={remote[0].parent}", "--experiment=T-1"])
    assert " on host n1, last heard of " in shown
    assert " UTC, slurm job 72" in shown


def test_without_a_slurm_or_with_one_that_does_not_answer_nothing_is_dead(
    remote: list[Path], fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.is_down()
    assert set(states(remote[0].parent).values()) == {"running"}
    monkeypatch.setattr(slurm, "_together", None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert set(states(remote[0].parent).values()) == {"running"}


def test_a_slurm_that_hangs_is_waited_for_once_for_the_whole_list(fake: FakeSlurm) -> None:
    (fake.folder / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$*" >>"{fake.folder}/asked"\nexec sleep 30\n')
    begun = time.monotonic()
    slurm.ask_together(JOBS, timeout_s=0.2)
    assert [slurm.ask(job) for job in JOBS] == [None, None, None]
    assert asked(fake) == ["show config"]
    assert time.monotonic() - begun < 30, "it is not waited for until it ends"


def test_what_was_said_of_a_job_counts_for_a_while_and_is_asked_anew_behind_that(
    fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(fake, "71")
    slurm.ask_together(["71"])
    says(fake, "71", state="FAILED")
    slurm.ask_together(["71"])
    assert (known := slurm.ask("71")) is not None and known.state == "RUNNING"
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + slurm.KEPT_S)
    assert (known := slurm.ask("71")) is not None and known.state == "FAILED"


def test_a_stop_from_a_login_node_is_written_down_and_then_scancel(remote: list[Path], fake: FakeSlurm) -> None:
    says(fake, "71")
    assert stopping.stop(remote[0], "TERM") == stopping.ASKED
    assert (fake.folder / "told").read_text() == "scancel 71\n"
    assert events(remote[0], "stopped")[-1]["by"] == "SCANCEL"
    assert not (remote[0] / "stop_request.json").exists()


@pytest.mark.parametrize("whose", ["another user's job", "another cluster's", "an edited record", "over"])
def test_only_a_job_that_is_the_callers_own_and_goes_on_is_cancelled(
    remote: list[Path], fake: FakeSlurm, whose: str
) -> None:
    run = remote[0]
    says(fake, "71", state="FAILED" if whose == "over" else "RUNNING")
    if whose == "another user's job":
        path = fake.folder / "jobs" / "71"
        path.write_text(path.read_text().replace(f"({os.geteuid()})", f"({os.geteuid() + 1})"))
    elif whose == "another cluster's":
        elsewhere(run, "71", scheduler={"name": "slurm", "job": "71", "restarts": 0, "cluster": "other"})
    elif whose == "an edited record":
        (run / "run.json").write_text((run / "run.json").read_text().replace('"T-1"', '"T-2"'))
        (run / "run.json").chmod(0o666)
        run.chmod(0o777)
    assert job_stop.cancel(open_run(run)) is None
    assert not (fake.folder / "told").exists()
    assert not events(run, "stopped")


def test_a_requeued_job_that_waits_and_the_links_of_a_chain_are_cancelled_too(
    remote: list[Path], fake: FakeSlurm, kit: Kit
) -> None:
    run = remote[0]
    folder = run.parent / ".jobs" / "T-1_71"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"jobs": ["71", "74", "75"], "tasks": []}))
    elsewhere(run, "71", job_folder="../.jobs/T-1_71")
    with open(run / "journal.jsonl", "a") as journal:
        head = {"at": "2026-11-22T17:40:00.000000Z", "mono_s": 1.0, "run_id": run.name}
        for event in (
            {"event": "stopped", **head, "by": "TERM", "now": False},
            {"event": "job_ends", **head, "scheduler": "slurm", "job": "71", "cause": "requeued", "reason": ""},
            {"event": "exited", **head, "code": 143, "signal": None, "wall_s": 1.0},
        ):
            journal.write(json.dumps(event) + "\n")
    assert listing.state_of(open_run(run))["state"] == "preempted"
    says(fake, "71", state="FAILED")
    says(fake, "74", state="PENDING")
    says(fake, "75", state="PENDING")
    env = {"PATH": os.environ["PATH"]}
    done = kit("abort-watch", "--stop", run.name, env=env)
    assert "scancel 74 (pending), 75 (pending)" in done.stderr
    assert (fake.folder / "told").read_text() == "scancel 74\nscancel 75\n"
    seen = listing.state_of(open_run(run))
    assert (seen["state"], seen["stopped_by"]) == ("stopped", "SCANCEL")


def test_the_job_of_a_run_whose_node_has_died_is_cancelled_while_it_waits(
    remote: list[Path], fake: FakeSlurm, kit: Kit
) -> None:
    """It has a marker, and no process: its job begins again by itself."""
    run = remote[0]
    live_marker.make(RunPaths(run).live_marker)
    says(fake, "71", state="PENDING", restarts=1)
    done = kit("abort-watch", "--stop", run.name, env={"PATH": os.environ["PATH"]})
    assert "scancel 71 (pending)" in done.stderr
    assert (fake.folder / "told").read_text() == "scancel 71\n"


def test_the_one_id_of_a_sweep_is_not_cancelled_for_one_of_its_tasks(remote: list[Path], fake: FakeSlurm) -> None:
    run = remote[0]
    folder = run.parent / ".jobs" / "T-1_sweep"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"jobs": ["70"], "tasks": [{"name": "a", "setting": "b.c=1"}]}))
    elsewhere(run, "71", job_folder="../.jobs/T-1_sweep")
    says(fake, "70")
    says(fake, "71")
    assert [job.job for job in job_stop.open_jobs(open_run(run))] == ["71"]
