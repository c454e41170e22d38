"""Links planted in a run folder that others may write to: nothing is written through them (K4)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.commands import Kit, killed
from support.places import LIVE

# What the kit writes or reads in a run, and may find a link under.
PLANTED = ("run.json", "journal.jsonl", "status.json", ".sidecar.json", ".status.lock", "lock", "exit.json",
           "claims", "quarantine.json", "heartbeat.json", "logs/train.log", "logs/output.log", "artifacts",
           "checkpoint_proof.json", "checkpoints/hrm_arc_step_10.pt.json", "resume_plan.json",
           "command.sh")  # fmt: skip

KINDS = ("dangling", "to a folder")
SAMPLE = ("journal.jsonl", "quarantine.json", "claims")
EACH = [pytest.param(name, marks=[] if name in SAMPLE else [pytest.mark.long]) for name in PLANTED]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault("K4", by="files, journal, claims: O_NOFOLLOW, O_EXCL, rename over the link")
@pytest.mark.parametrize("kind", ["to a file", *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS)])
@pytest.mark.parametrize("name", EACH)
def test_k4_a_link_in_a_parent_s_folder_is_never_written_through(kit: Kit, name: str, kind: str) -> None:
    run = killed(kit)
    victims = kit.folder / "victims"
    victims.mkdir()
    (victims / "file").write_bytes(b'{"precious": 1}\n')
    (victims / "folder").mkdir()
    path = run / name
    if path.is_dir():
        for inside in path.iterdir():
            inside.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)
    target = {"to a file": "file", "dangling": "none", "to a folder": "folder"}[kind]
    path.symlink_to(victims / target)
    before = contents(victims)
    (kit.runs / LIVE / run.name).touch()
    for command in (["runs"], ["abort-watch"], ["run", "T-1"], ["resume", run.name, "--step", "5", "--name", "side"]):
        done = kit(*command, code=None)
        assert "Traceback" not in done.stderr, (command, done.stderr)
    assert contents(victims) == before
    assert sorted(os.listdir(victims)) == ["file", "folder"] and os.listdir(victims / "folder") == []


@pytest.mark.fault("K4", by="files: rename over the link")
def test_k4_a_link_that_appears_under_a_live_run_s_status_is_replaced(kit: Kit) -> None:
    victim = kit.folder / "victim"
    victim.write_text("precious")
    kit.config("--delay", "0.3", training={"max_steps": 8}, status={"interval_s": 1})
    process = kit.popen("run", "T-1")
    run = kit.started()
    for name in ("status.json", ".sidecar.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    process.communicate(timeout=60)
    assert victim.read_text() == "precious" and process.returncode == 0
    assert not (run / "status.json").is_symlink()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
