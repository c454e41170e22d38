"""Continuing is exclusive: one trainer per head, whichever process comes first and however often it is killed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resumekit.base import claims, processes
from resumekit.base.errors import Refused
from resumekit.base.paths import RunPaths
from support.commands import Kit, killed
from support.places import LIB
from support.processes import wait_until
from support.runs import events, record
from support.toy_trainer import write_checkpoint


def race(kit: Kit, racers: int) -> None:
    run, gate = killed(kit), kit.folder / "gate"
    hold = f"--at 13 {shlex.quote(f'wait={gate}')}"
    started = [kit.popen("resume", "T-1", env={"TOY_ARGS": hold}) for _ in range(racers)]
    child = kit.started(2)
    wait_until(lambda: sum(p.poll() is not None for p in started) == racers - 1, "all but one have ended")
    [winner] = [p for p in started if p.poll() is None]
    losers = [p for p in started if p is not winner]
    said = [p.communicate()[1].decode() for p in losers]
    gate.touch()
    winner.communicate(timeout=60)
    assert winner.returncode == 0 and {p.returncode for p in losers} == {6}
    assert all(f"'{child.name}'" in text and ("is continued already by" in text or "is alive" in text) for text in said)
    assert len(kit.run_dirs()) == 2, "no loser leaves a folder"
    assert len(list((run / "claims").iterdir())) == 2, "one claim, one pin"
    assert sum(len(events(r, "launched")) for r in kit.run_dirs()) == 2


@pytest.mark.fault("H1", by="claims.py: exclusive create under the parent's lock")
@pytest.mark.fault("J11", by="claims: exclusive create under the parent's lock")
def test_twelve_racers_of_one_continuation_start_one_trainer(kit: Kit):
    race(kit, 12)


@pytest.mark.fault("H1", by="claims.py: exclusive create under the parent's lock")
@pytest.mark.campaign
def test_fifty_racers_of_one_continuation_start_one_trainer(kit: Kit):
    race(kit, 50)


# The planning Python, killed with SIGKILL right behind one call of its own.
DIES_BEHIND = f"""
import importlib, os, sys
module, name, *argv = sys.argv[1:]
sys.path.append({str(LIB)!r})
module = importlib.import_module("resumekit." + module)
owner, _, name = name.rpartition(".")
owner = getattr(module, owner) if owner else module
real = getattr(owner, name)
def dying(*args, **more):
    real(*args, **more)
    os.kill(os.getpid(), 9)
setattr(owner, name, dying)
from resumekit.commands import main
main([*argv, f"--answer-to={{os.getpid()}}"])
"""

CRASHES = [
    ("run.new_folder", "make"),
    ("base.claims", "TempFile.sync"),
    ("base.claims", "os.link"),
    ("start.make_folder", "_claim_parent"),
    ("start.run_record", "record_of"),
    ("start.make_folder", "write_atomic"),
    ("config.config", "write_resolved"),
    ("start.make_folder", "_fill"),
]


@pytest.mark.fault(
    "H20", by="make_folder.py: listed as never_started; claims.py: a dead claimer's claim counts for nothing"
)
@pytest.mark.parametrize("module, name", CRASHES, ids=[name for _, name in CRASHES])
def test_a_launch_that_is_killed_at_any_point_needs_no_hand(kit: Kit, module: str, name: str, killed_run: Path):
    head = killed_run
    argv = [sys.executable, "-c", DIES_BEHIND, module, name, "resume", "--experiment=T-1"]
    places = [f"--config={kit.config_file}", f"--runs={kit.runs}"]
    assert subprocess.run([*argv, *places], env=kit.env, capture_output=True).returncode == -9
    [left] = [p for p in kit.runs.glob("T-1*") if p != head]
    states = {s["run_id"]: s["state"] for s in json.loads(kit("runs", "--json").stdout)}
    assert states == {head.name: "failed", left.name: "never_started"}
    said = kit("resume", "T-1").stderr
    assert f"continuing '{head.name}' at step 10" in said
    child = next(r for r in kit.run_dirs() if r not in (head, left))
    assert json.loads((head / "claims/continued.json").read_text())["run_id"] == child.name
    assert record(child)["relation"] == "continue" and left.is_dir(), "what was left stays to be looked at"


@pytest.mark.fault("H20", by="runs.py: a folder without a trainer is no head")
def test_a_fresh_start_that_is_killed_is_no_head(kit: Kit):
    argv = [sys.executable, "-c", DIES_BEHIND, "run.new_folder", "make", "start", "--experiment=T-1"]
    subprocess.run([*argv, f"--config={kit.config_file}", f"--runs={kit.runs}"], env=kit.env, capture_output=True)
    assert len(list(kit.runs.glob("T-1*"))) == 1
    assert "starting T-1 anew" in kit("run", "T-1").stderr
    assert "there is no run of 'T-2'" in kit("resume", "T-2", code=2).stderr


def own_identity() -> processes.Identity:
    return processes.identify(os.getpid())


def dead_identity() -> processes.Identity:
    process = subprocess.Popen(["true"])
    found = processes.identify(process.pid)
    process.wait()
    return found


@pytest.fixture
def head(tmp_path: Path) -> RunPaths:
    (tmp_path / "T-1").mkdir()
    return RunPaths(tmp_path / "T-1")


def test_a_claim_of_a_dead_launcher_whose_child_never_started_counts_for_nothing(head: RunPaths):
    claims.claim_continuation(head, "a", dead_identity(), lambda _: False)
    claims.claim_continuation(head, "b", own_identity(), lambda _: False)
    assert claims.still_continues(head, "b") and not claims.still_continues(head, "a")


@pytest.mark.parametrize("owner, started", [(own_identity, False), (dead_identity, True)])
def test_a_claim_of_a_live_launcher_or_a_started_child_holds(head: RunPaths, owner, started: bool):
    claims.claim_continuation(head, "a", owner(), lambda _: False)
    with pytest.raises(Refused, match="'T-1' is continued already by 'a'"):
        claims.claim_continuation(head, "b", own_identity(), lambda _: started)
    assert claims.still_continues(head, "a")


def test_a_claimer_on_another_host_is_unknown_and_never_taken_for_dead(head: RunPaths):
    other = processes.Identity("elsewhere", "boot", 4711, 1)
    claims.claim_continuation(head, "a", other, lambda _: False)
    with pytest.raises(Refused, match="pid 4711 on elsewhere"):
        claims.claim_continuation(head, "b", own_identity(), lambda _: False)


@pytest.mark.fault("B15", by="claims.py: a claim that cannot be read counts for nothing")
@pytest.mark.parametrize("content", [b"", b'{"run_id": "a"', b"[]", b"\xff\xfe"])
def test_a_torn_claim_counts_for_nothing(head: RunPaths, content: bytes):
    head.claims.mkdir()
    (head.claims / "continued.json").write_bytes(content)
    claims.claim_continuation(head, "b", own_identity(), lambda _: False)
    assert claims.still_continues(head, "b")


@pytest.mark.fault("K4", by="claims.py: lstat of the folder, O_NOFOLLOW of the file")
def test_a_claims_folder_that_is_a_link_is_not_followed(head: RunPaths, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.mkdir()
    head.claims.symlink_to(victim)
    with pytest.raises(OSError):
        claims.claim_continuation(head, "b", own_identity(), lambda _: False)
    with pytest.raises(OSError):
        claims.pin_step(head, 5, "b")
    assert not list(victim.iterdir())


@pytest.mark.fault("K4", by="claims.py: O_NOFOLLOW of the lock")
def test_a_lock_that_is_a_link_is_not_followed(head: RunPaths, tmp_path: Path):
    head.lock.symlink_to(tmp_path / "made")
    with pytest.raises(OSError), claims.locked(head.lock):
        pass
    assert not (tmp_path / "made").exists()


@pytest.mark.fault("G3", by="claims.py: O_CLOEXEC of the lock")
def test_the_lock_is_not_inherited_by_a_child_and_is_waited_for(head: RunPaths):
    with claims.locked(head.lock):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        with pytest.raises(Refused, match="holds the lock"), claims.locked(head.lock, wait_s=0.05):
            pass
    try:
        with claims.locked(head.lock, wait_s=0.0):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_head_that_cannot_be_written_to_can_be_branched_from(kit: Kit):
    run = kit.runs / "T-1_theirs"
    write_checkpoint(run / "checkpoints/hrm_arc_step_5.pt", 5)
    (run / "claims").write_text("in the way")
    kit("resume", "T-1", "--step", "5", "--set", "max_steps=9")
    assert record(kit.run_dirs()[-1])["parent_run_id"] == "T-1_theirs"
