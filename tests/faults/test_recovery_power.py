"""A recovery survives a power cut and a kill anywhere in it: the next passes finish it, or do it once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reliability import syscalls
from reliability.save_rows import assert_good, campaign, needs_compiler
from resumekit.base import claims, journal, processes
from resumekit.base.files import write_atomic
from resumekit.base.paths import RunPaths
from resumekit.run import live_marker, status
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable
from resumekit.watch import acting, escalation, inspection
from resumekit.watch.incident import Incident
from support.processes import wait_until

RUN_ID = "T-1_20261123-0405"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of ours that has no trainer yet."""
    run = tmp_path / RUN_ID
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"run_id": RUN_ID, "host": processes.host_name()}))
    return run


@needs_compiler
@pytest.mark.fault(
    "B15", by="make_folder.py, claims.py, live_marker.py, shim.py: all is durable before a trainer is there"
)
@pytest.mark.fault("D11", by="plan.py: the rate of a child is its parent's scale times the factor, worked out anew")
@pytest.mark.fault("G2", by="recovering.py: each step can be repeated; the claim and the abort event are there once")
def test_a_recovery_may_be_killed_and_the_power_cut_anywhere_in_it() -> None:
    """A sample: some disks of three recordings, some kills in one scene, and one of the mistakes; all: long."""
    rows = campaign("--only", "recovery", "--sample", "6", "--seed", "1")
    assert_good(rows)
    kinds = [name.split(",")[0] for name in rows]
    assert (kinds.count("power cut"), kinds.count("kill"), kinds.count("mistake")) == (3, 1, 1)


@needs_compiler
@pytest.mark.long
@pytest.mark.fault(
    "B15", by="make_folder.py, claims.py, live_marker.py, shim.py: all is durable before a trainer is there"
)
@pytest.mark.fault("G2", by="recovering.py: each step can be repeated; the claim and the abort event are there once")
def test_every_disk_and_every_kill_of_a_recovery() -> None:
    rows = campaign("--only", "recovery", "--seed", "1")
    assert_good(rows)
    assert sum(name.startswith("mistake") for name in rows) == 14


def test_half_a_launched_event_is_no_start_and_an_end_alone_is_none(run_dir: Path) -> None:
    table = RunTable(run_dir.parent)
    journal.append(run_dir / "journal.jsonl", "launched", RUN_ID, trainer=None)
    whole = (run_dir / "journal.jsonl").read_bytes()
    assert table.has_started(RUN_ID)
    for half in (whole[: len(whole) // 2], whole[:50].ljust(len(whole), b"\0"), whole[:50] + b"\n{}\n"):
        (run_dir / "journal.jsonl").write_bytes(half)
        assert not table.has_started(RUN_ID)
    (run_dir / "exit.json").write_text("{}")
    assert not table.has_started(RUN_ID), "its shim could not start one; its parent is what is taken up"


def test_an_account_of_a_journal_that_lost_its_end_is_not_believed(run_dir: Path) -> None:
    """The lost lines are followed by others, and the journal is longer than ever: they are read, all of them."""
    run = open_run(run_dir)
    journal.append(run.paths.journal, "step", RUN_ID, step=1)
    kept = run.paths.journal.stat().st_size
    journal.append(run.paths.journal, "step", RUN_ID, step=2)
    offset = run.paths.journal.stat().st_size
    account = {"run_id": RUN_ID, "journal_offset": offset, "journal_tail": journal.tail(run.paths.journal, offset)}
    write_atomic(run.paths.sidecar_state, json.dumps({**account, "state": {"events": 2, "phase": "train"}}).encode())
    assert status.saved_state(run)[1] == offset
    os.truncate(run.paths.journal, kept)
    journal.append(run.paths.journal, "abort", RUN_ID, cause="nonfinite", evidence="e" * offset)
    assert status.saved_state(run) == ({}, 0) and "aborted" in status.read_state(run)


def test_a_folder_that_was_made_since_the_look_keeps_its_marker(run_dir: Path) -> None:
    """A marker without a folder is left over; but a launch may take its name before it is removed."""
    run = open_run(run_dir)
    live_marker.make(run.paths.live_marker)
    look = inspection.Report(
        RUN_ID, inspection.UNKNOWN, inspection.ENDED, note="its folder is gone, the marker was left behind"
    )
    assert acting.act(run_dir.parent, [look]) == [] and run.paths.live_marker.exists()


def test_a_person_who_is_being_told_is_not_told_by_the_next_pass_too(run_dir: Path, tmp_path: Path) -> None:
    notes = tmp_path / "told"
    slow = ["sh", "-c", 'cat >> "$0"; until [ -e "$0.go" ]; do sleep 0.01; done', str(notes)]
    (run_dir / "resolved_config.json").write_text(json.dumps({"notify": {"command": slow}}))
    run = open_run(run_dir)
    live_marker.make(run.paths.live_marker)
    first = threading.Thread(target=escalation.call_a_person, args=(run, Incident("died", "signal 9"), "no more"))
    first.start()
    wait_until(lambda: notes.exists() and notes.read_text(), "the first one tells it")
    escalation.renotify(open_run(run_dir))
    (tmp_path / "told.go").touch()
    first.join()
    escalation.renotify(open_run(run_dir))
    (told,) = map(json.loads, notes.read_text().splitlines())
    assert (told["reason"], told["outcome"]) == ("no more", "needs_attention")
    live_marker.make(run.paths.live_marker)  # as if the process that told it had been killed before it took the marker
    escalation.renotify(open_run(run_dir))
    again = json.loads(notes.read_text().splitlines()[1])
    assert again == told and not run.paths.live_marker.exists()


@needs_compiler
def test_a_claim_is_whole_before_it_has_its_name(run_dir: Path) -> None:
    """An empty claim counts for nothing, though its child may be training."""
    log = run_dir.parent / "calls"
    code = (
        "import os, sys; from pathlib import Path; from resumekit.base import claims, processes;"
        "claims.claim_continuation(claims.RunPaths(Path(sys.argv[1])), 'child', processes.identify(os.getpid()), bool)"
    )
    own = syscalls.environment(
        FAULTS_ROOT=str(run_dir), FAULTS_LOG=str(log), PYTHONPATH=str(Path(claims.__file__).parents[2])
    )
    subprocess.run([sys.executable, "-c", code, str(run_dir)], env=own, check=True)
    calls = [(call.name, Path(call.to or call.path).name.split(".tmp")[0]) for call in syscalls.read_log(log)]
    order = [call for call in calls if call[0] in ("write", "fsync", "link")]
    assert [name for name, _ in order] == ["write", "fsync", "link", "fsync", "fsync"]
    assert [where for _, where in order[3:]] == ["claims", RUN_ID]
    assert claims.continuation_of(RunPaths(run_dir))["run_id"] == "child"
