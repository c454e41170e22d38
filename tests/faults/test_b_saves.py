"""Section B of the catalogue, call by call: whatever call of a save goes wrong, and wherever the power is cut."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reliability import power_loss, power_protocols, syscalls
from reliability.save_crashes import kill_during_saves
from reliability.save_rows import CAMPAIGN, assert_good, campaign, needs_compiler
from support.commands import Kit, killed
from support.places import ROOT

POINTS = 12
EVERY_LAUNCH_STATE = 8


@needs_compiler
@pytest.mark.fault("B1", by="save_file.py: temp, fsync, link, folder fsync; manifest last")
@pytest.mark.fault("B5", by="saving.py: an OSError is said, the temp file goes, training goes on")
@pytest.mark.fault("B6", by="saving.py: an OSError is said, the temp file goes, training goes on")
@pytest.mark.fault("B7", by="save_file.py: a failed fsync is final")
@pytest.mark.fault("B9", by="files.py, save_file.py: a short write is continued")
@pytest.mark.fault("B12", by="selection.py: data without its manifest is not proven")
@pytest.mark.fault("B14", by="pruning.py: data before manifest, never below two, unreadable pins protect all")
@pytest.mark.fault("B15", by="save_file.py, saving.py: fsync of data, manifest and folders in order; prune last")
def test_any_call_of_a_save_may_go_wrong_and_the_power_may_be_cut_anywhere() -> None:
    """A sample of the calls x {SIGKILL, EIO, ENOSPC once and for good, EDQUOT, short write}; some disks that a power
    cut could leave; and every second of the mistakes that are made on purpose is seen. All of them: long.
    """
    rows = campaign("--sample", str(POINTS), "--seed", "1")
    assert_good(rows)
    assert rows["calls x faults"]["looked_at"] >= POINTS - 4  # what a thread reads varies
    assert sum(name.startswith("power cut") for name in rows) == 4
    assert sum(name.startswith("mistake") for name in rows) == 7


@needs_compiler
@pytest.mark.fault("B15", by="make_folder.py, claims.py: run.json is durable, a claim is whole or counts for nothing")
def test_b15_a_power_cut_in_a_launch_needs_no_hand(kit: Kit, tmp_path: Path) -> None:
    """Some of the disks that it could leave, from its first call to its last; all of them: long."""
    killed(kit)
    recording = power_protocols.launch(kit.runs, kit.config_file, "T-1", tmp_path)
    assert {"mkdir", "fsync", "link", "rename", "write"} <= {call.name for call in recording.calls}
    found = power_protocols.replay(recording, tmp_path / "disk", is_thin=True, stride=EVERY_LAUNCH_STATE)
    assert found.bad == 0 and found.states > 50, found.examples


@needs_compiler
@pytest.mark.long
@pytest.mark.fault("B1", by="save_file.py: temp, fsync, link, folder fsync; manifest last")
@pytest.mark.fault("B15", by="save_file.py, saving.py: fsync of data, manifest and folders in order; prune last")
def test_every_call_and_every_disk() -> None:
    assert_good(campaign("--seed", "1"))


@pytest.mark.long
@pytest.mark.fault("B2", by="save_file.py: a final name is only ever given to what is whole")
@pytest.mark.fault("B18", by="pruning.py: sweep of our own temp files whose writer is dead")
def test_b18_a_hundred_kills_leave_nothing(tmp_path: Path, in_a_new_process: None) -> None:
    found = kill_during_saves(tmp_path / "checkpoints", 100, seed=2)
    assert (found["torn"], found["lost"], found["left"]) == (0, 0, 0) and found["temp"] == found["swept"] > 10, found


@needs_compiler
@pytest.mark.skipif(not syscalls.strace(), reason="there is no strace here, or it may not trace")
@pytest.mark.long
@pytest.mark.fault("B1", by="the recorder of these cases sees what strace sees")
def test_the_recorder_sees_every_call_that_strace_sees(tmp_path: Path) -> None:
    log, stage = tmp_path / "strace", tmp_path / "stage"
    tracer = [str(syscalls.strace()), "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={syscalls.STRACED}"]
    subprocess.run(
        [*tracer, *CAMPAIGN, "--only", "list", "--stage", str(stage)], check=True, cwd=ROOT, capture_output=True
    )
    folders = sorted(stage.glob("runs-*"))
    assert len(folders) == 4
    for folder in folders:
        recorded = syscalls.read_log(folder / "calls")
        own = [(call.name, call.path) for call in recorded if call.name in syscalls.CHANGING]
        [run_dir] = [path for path in folder.iterdir() if path.is_dir()]
        assert len(own) > 20 and syscalls.read_strace(log, run_dir, folder / "calls") == own


def test_the_replay_knows_what_a_power_cut_can_do(tmp_path: Path) -> None:
    """By hand: one file, written, synced, renamed; at the end nothing but the folder's fsync makes its name sure."""
    root = str(tmp_path)

    def call(name: str, path: str = "", to: str = "", descriptor: int = -1, **more: Any) -> syscalls.Call:
        values = {"result": 0, "error": 0, "offset": 0, "flags": 0, "data": b"", **more}
        return syscalls.Call(name, 1, descriptor, f"{root}/{path}", f"{root}/{to}" if to else "", **values)

    begun = [
        call("open", "a", descriptor=3, flags=os.O_CREAT | os.O_WRONLY),
        call("write", "a", descriptor=3, data=b"1234", result=4),
    ]

    def ends(*calls: syscalls.Call) -> set[tuple[tuple[str, object], ...]]:
        """Return the trees that can be found after the last of these calls."""
        states = power_loss.Replay(tmp_path, {}).states([*begun, *calls, call("mark")])
        return {tuple(sorted(state.tree.items())) for state in states if state.marks}

    nothing: tuple[Any, ...] = ()
    forms = {b"1234", b"", b"12", bytes(4), b"12\0\0"}
    assert ends() == {nothing, *((("a", form),) for form in forms)}
    synced = call("fsync", "a", descriptor=3)
    assert ends(synced) == {nothing, (("a", b"1234"),)}
    moved = call("rename", "a", "b")
    assert ends(synced, moved) == {nothing, (("a", b"1234"),), (("b", b"1234"),)}
    folder = [call("openr", ".", descriptor=4), call("fsync", ".", descriptor=4)]
    assert ends(synced, moved, *folder) == {(("b", b"1234"),)}
    assert (("b", b""),) in ends(moved, *folder), "a name is made sure before its content: what naive code does"
