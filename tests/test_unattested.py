"""What a dead run left without a manifest: attested first by who goes on from it, a user's command as a recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resumekit.base import claims, processes
from resumekit.base.paths import manifest_path
from resumekit.process import attest
from resumekit.run import unattested
from resumekit.run.run_folder import open_run
from support.commands import Kit, killed
from support.places import ROOT
from support.processes import wait_until
from support.runs import events, reseal, tree
from support.watched_runs import kill_all_of, start

WORDS = "no manifest yet: it would be attested first"
DOOR = ROOT / "lib" / "resume_helper.py"


@pytest.fixture
def left(kit: Kit) -> Path:
    """A run that was killed at once with its sidecar: steps 5 to 20, the newest without a manifest."""
    run = killed(kit, at=22, steps=40)
    (run / "checkpoints/hrm_arc_step_20.pt.json").unlink()
    return run


@pytest.fixture
def dead_run(left: Path) -> Path:
    assert unattested.may_be_attested(open_run(left))
    return left


def shown(kit: Kit, command: str) -> dict:
    return json.loads(kit(command, "T-1", "--dry-run", "--json").stdout)


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_user_s_command_attests_the_newest_save_of_a_dead_run_and_goes_on_from_it(
    kit: Kit, left: Path, command: str
) -> None:
    said = kit(command, "T-1").stderr
    assert f"continuing '{left.name}' at step 20 (attested: newest stable)" in said
    assert json.loads((left / "checkpoints/hrm_arc_step_20.pt.json").read_text())["writer"] == "sidecar"
    assert [event["step"] for event in events(left, "checkpoint")][-1] == 20


def test_a_kill_of_everything_at_once_loses_no_whole_save(kit: Kit) -> None:
    kit.config("--save-every", "2", training={"max_steps": 40})
    run = start(kit, "--at 7 hang")
    newest = run / "checkpoints/hrm_arc_step_6.pt"
    wait_until(newest.is_file, "its last save")
    kill_all_of(run)
    manifest_path(newest).unlink(missing_ok=True)  # of a machine so slow that the file lay still for five seconds
    assert shown(kit, "resume")["checkpoint"]["step"] == 6
    assert f"continuing '{run.name}' at step 6 (attested: newest stable)" in kit("resume", "T-1").stderr


def test_a_dry_run_and_the_helper_choose_the_same_and_write_nothing(kit: Kit, left: Path) -> None:
    before = tree(kit.folder)
    for command in ("run", "resume"):
        chosen = shown(kit, command)["checkpoint"]
        assert (chosen["step"], chosen["grade"]) == (20, "attested") and WORDS in chosen["reason"]
    page = kit("resume", "T-1", "--dry-run").stdout
    assert f"attested: newest stable; {WORDS}" in " ".join(page.split())
    argv = [sys.executable, str(DOOR), "--ckpt_dir", str(left / "checkpoints"), "--dry-run"]
    done = subprocess.run(argv, capture_output=True, text=True, env=kit.env, check=True)
    assert done.stdout.strip().endswith("hrm_arc_step_20.pt") and WORDS in done.stderr
    assert tree(kit.folder) == before


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_torn_save_is_passed_over_for_the_newest_whole_one(kit: Kit, left: Path, command: str) -> None:
    (left / "checkpoints/hrm_arc_step_15.pt.json").unlink()
    path = left / "checkpoints/hrm_arc_step_20.pt"
    path.write_bytes(path.read_bytes()[:-40])
    chosen = shown(kit, command)["checkpoint"]
    assert (chosen["step"], chosen["grade"]) == (15, "attested") and WORDS in chosen["reason"]
    assert f"continuing '{left.name}' at step 15 (attested: newest stable)" in kit(command, "T-1").stderr


def test_half_a_manifest_counts_as_none(kit: Kit, left: Path) -> None:
    (left / "checkpoints/hrm_arc_step_20.pt.json").write_text('{"writer": "side')
    assert shown(kit, "resume")["checkpoint"]["step"] == 20
    assert "at step 20 (attested: newest stable)" in kit("resume", "T-1").stderr


def test_a_branch_from_a_dead_run_attests_too_and_a_step_that_is_named_is_taken_as_it_is(kit: Kit, left: Path) -> None:
    assert "at step 20 (plausible: the step asked for" in kit("resume", "T-1", "--step", "20", "--name", "a").stderr
    assert not (left / "checkpoints/hrm_arc_step_20.pt.json").exists()
    said = kit("resume", "T-1", "--from", left.name, "--name", "b").stderr
    assert f"branching from '{left.name}' at step 20 (attested: newest stable)" in said


@pytest.mark.parametrize("verdict", [processes.ALIVE, processes.UNKNOWN])
def test_of_a_run_that_is_not_certainly_dead_nothing_is_attested(
    dead_run: Path, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unattested.status, "look", lambda *_, **__: SimpleNamespace(trainer=verdict))
    assert not unattested.may_be_attested(open_run(dead_run))


def test_what_its_trainer_left_running_keeps_a_run_from_being_dead(
    dead_run: Path, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = json.loads((dead_run / "run.json").read_text())["token"]
    program = [sys.executable, "-c", "print(flush=True); input()"]
    env = {**kit.env, processes.TOKEN_VARIABLE: token, "RESUMEKIT_RUN_DIR": str(dead_run)}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as helper:
        assert helper.stdout is not None and helper.stdout.readline()
        assert not unattested.may_be_attested(open_run(dead_run))
        helper.communicate(b"\n")
    assert unattested.may_be_attested(open_run(dead_run))


def test_of_a_run_whose_records_are_not_the_caller_s_nothing_is_attested(dead_run: Path) -> None:
    path = dead_run / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "notes": "of another user"}))
    assert not unattested.may_be_attested(open_run(dead_run))
    reseal(dead_run)
    assert unattested.may_be_attested(open_run(dead_run))
    moved = dead_run.rename(dead_run.with_name("moved"))
    os.symlink(moved, dead_run)
    assert not unattested.may_be_attested(open_run(dead_run)), "its folder is a link"


def test_a_sidecar_that_is_at_work_attests_by_itself(dead_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(dead_run)
    with claims.locked(run.paths.status_lock, 1.0):
        attest.attest_what_is_left(run)
        assert not (dead_run / "checkpoints/hrm_arc_step_20.pt.json").exists()
    attest.attest_what_is_left(run)
    assert (dead_run / "checkpoints/hrm_arc_step_20.pt.json").exists()


def test_a_folder_of_no_run_is_left_as_it_is(tmp_path: Path) -> None:
    assert not unattested.may_be_attested_in(tmp_path)
