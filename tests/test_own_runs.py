"""Whose run is it: what the watcher looks at and touches, by lstat of marker, folder and records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal
from resumekit.base.errors import KitError, Refused
from resumekit.base.paths import RunPaths
from resumekit.run import live_marker, own_runs
from resumekit.watch import acting, inspection
from resumekit.watch import recover_command as recovery_command
from resumekit.watch.inspection import ENDED, FOREIGN, Report
from resumekit.watch.rules import SICK, Finding
from support import another_user
from support.commands import Kit
from support.places import LIVE
from support.watched_runs import made, own_identity

RUN_ID = "T-1_run_20261122-1735"
DIED = (Finding("died", SICK, "killed with its shim"),)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


def lost_run(runs_dir: Path, run_id: str = RUN_ID) -> Path:
    """Make a run of another boot with a marker of its own: its trainer and its launcher are dead, and it may go on."""
    run = made(runs_dir, run_id, resolved_config_json=json.dumps({"recover": {"enabled": True}}).encode())
    live_marker.make(RunPaths(run).live_marker)
    gone = {**own_identity(), "boot_id": "before"}
    journal.append(run / "journal.jsonl", "launched", run_id, trainer=gone, shim=gone, launcher=gone)
    for path in run.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)  # a file that has just changed is a sign of life
    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the watcher would have started."""
    commands: list[list[str]] = []

    def start(command: list[str], _environment: dict[str, str], log: int | None = None) -> None:
        commands.append(command)
        if log is not None:
            os.close(log)

    monkeypatch.setattr(acting, "_start", start)
    return commands


def sick(run_id: str = RUN_ID) -> Report:
    return Report(run_id, "lost", SICK, findings=DIED)


def give_away(path: Path) -> None:
    os.chown(path, another_user.UID, another_user.GID, follow_symlinks=False)


def through_a_link(path: Path) -> None:
    """Put a link in the place of a file or folder, which leads to the very thing."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


NOT_THE_CALLERS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("the folder is a link", through_a_link, "its folder is a link"),
    ("the folder is another's", give_away, f"its folder belongs to another user (uid {another_user.UID})"),
    ("run.json is another's", lambda run: give_away(run / "run.json"), "its run.json belongs to another user"),
    ("run.json is a link", lambda run: through_a_link(run / "run.json"), "its run.json is a link"),
    (
        "the config is a link",
        lambda run: through_a_link(run / "resolved_config.json"),
        "its resolved_config.json is a link",
    ),
    (
        "the config is another's",
        lambda run: give_away(run / "resolved_config.json"),
        "its resolved_config.json belongs to another user",
    ),
    ("the journal is another's", lambda run: give_away(run / "journal.jsonl"), "its journal.jsonl belongs to another"),
    ("the marker is another's", lambda run: give_away(run.parent / LIVE / run.name), "its marker belongs to another"),
    ("the marker is a link", lambda run: through_a_link(run.parent / LIVE / run.name), "its marker is a link"),
    (
        "the markers are another's",
        lambda run: give_away(run.parent / LIVE),
        f"the folder '{LIVE}' of its marker belongs to another user",
    ),
]


@needs_root
@pytest.mark.parametrize(
    ("change", "says"), [case[1:] for case in NOT_THE_CALLERS], ids=[c[0] for c in NOT_THE_CALLERS]
)
def test_a_run_that_is_not_the_callers_is_neither_judged_nor_touched_and_the_line_says_why(
    tmp_path: Path, started: list[list[str]], change: Callable[[Path], Any], says: str
) -> None:
    runs = tmp_path / "runs"
    run = lost_run(runs)
    change(run)
    (look,) = inspection.one_pass(runs)
    assert (look.verdict, look.state) == (FOREIGN, "unknown") and f"left alone: {says}" in look.note
    # And where the look came before the change.
    deeds = acting.act(runs, [sick()])
    assert [deed.words.partition(says)[1] for deed in deeds] == [says]
    # The process that takes a run up asks again, before it sets the recorded environment.
    with pytest.raises(Refused, match="is left alone"):
        recovery_command.take_up(run)
    assert started == []
    assert [event["event"] for event, _ in journal.read(run / "journal.jsonl")] == ["launched"]


def test_the_callers_own_run_is_taken_up_by_a_process_with_the_watchers_environment(
    tmp_path: Path, started: list[list[str]]
) -> None:
    """PATH, PYTHON and LD_PRELOAD of a record would decide what is executed before anything has looked at it."""
    run = lost_run(tmp_path)
    (look,) = inspection.one_pass(tmp_path)
    assert look.verdict == SICK
    (deed,) = acting.act(tmp_path, [look])
    assert deed.words.startswith("taking it up")
    take_up = [command for command in started if "take-up" in command]
    assert take_up == [[sys.executable, "-I", acting.CLI, "take-up", str(run)]]


def test_a_recorded_path_and_python_choose_no_program_for_a_run_that_is_not_the_callers(tmp_path: Path) -> None:
    run = lost_run(tmp_path / "runs")
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("bash", "python3"):
        (evil / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
        (evil / name).chmod(0o755)
    record = json.loads((run / "run.json").read_text())
    values = {"PATH": str(evil), "PYTHON": str(evil / "python3")}
    (run / "run.json").write_text(json.dumps({**record, "environment": {"values": values}}))
    through_a_link(run)
    done = subprocess.run(
        [sys.executable, "-I", acting.CLI, "take-up", str(run)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 6 and "its folder is a link" in done.stderr
    assert not (tmp_path / "pwned").exists()


@needs_root
def test_a_marker_of_the_shared_folder_that_another_user_wrote_starts_nothing(
    tmp_path: Path, started: list[list[str]]
) -> None:
    """In `.live/`, where all users had their markers, with its own inode number in it, as a launcher would make it."""
    runs = tmp_path / "runs"
    run = lost_run(runs)
    live_marker.remove(RunPaths(run))
    live_marker.make(RunPaths(run).shared_marker)
    give_away(RunPaths(run).shared_marker)
    (look,) = inspection.one_pass(runs)
    assert look.verdict == FOREIGN and "its marker belongs to another user" in look.note
    acting.act(runs, [look, sick()])
    assert started == [] and RunPaths(run).shared_marker.exists()


def test_a_run_of_the_version_before_is_taken_up_and_its_marker_in_the_shared_folder_goes(
    tmp_path: Path, started: list[list[str]]
) -> None:
    run = lost_run(tmp_path)
    live_marker.remove(RunPaths(run))
    live_marker.make(RunPaths(run).shared_marker)
    assert inspection.live_runs(tmp_path) == [run.name]
    acting.act(tmp_path, inspection.one_pass(tmp_path))
    assert any("take-up" in command for command in started)
    live_marker.remove(RunPaths(run))
    assert not RunPaths(run).shared_marker.exists() and inspection.live_runs(tmp_path) == []


def test_a_stop_by_name_does_not_go_through_a_link(tmp_path: Path) -> None:
    run = lost_run(tmp_path / "runs")
    through_a_link(run)
    (deed,) = acting.stop(tmp_path / "runs", [run.name])
    assert (deed.words, deed.is_done) == ("left alone: its folder is a link", False)
    assert [event["event"] for event, _ in journal.read(run / "journal.jsonl")] == ["launched"]


def test_a_marker_is_no_link_and_holds_its_own_inode_number(tmp_path: Path) -> None:
    marker = tmp_path / LIVE / RUN_ID
    live_marker.make(marker)
    assert live_marker.was_made_here(marker)
    # A link whose own inode number stands in the file that it leads to.
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    target.write_text(f"{os.lstat(link).st_ino}\n")
    assert not live_marker.was_made_here(link)
    copy = tmp_path / "copy"
    copy.write_bytes(marker.read_bytes())
    assert not live_marker.was_made_here(copy)
    linked = tmp_path / "linked"
    os.link(marker, linked)  # `cp -al`: one file in both folders
    assert "hard links" in (live_marker.why_not_made_here(marker) or "") and not live_marker.was_made_here(linked)
    linked.unlink()
    assert live_marker.was_made_here(marker)


def test_a_marker_can_be_locked_by_its_own_user_alone(tmp_path: Path) -> None:
    """A lock on it keeps the watcher from telling of the run, one on the watcher's from looking at any."""
    live_marker.make(tmp_path / LIVE / RUN_ID)
    with acting.one_pass_at_a_time(tmp_path) as is_ours:
        assert is_ours
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / LIVE).iterdir()}
    assert modes == {RUN_ID: 0o600, ".watch.lock": 0o600}


@needs_root
@pytest.mark.parametrize("change", ["a link", "another user's", "a file"])
def test_a_folder_for_markers_that_is_not_the_callers_is_refused_with_its_own_name(kit: Kit, change: str) -> None:
    kit.runs.mkdir()
    folder = kit.runs / LIVE
    if change == "a link":
        (kit.folder / "elsewhere").mkdir()
        folder.symlink_to(kit.folder / "elsewhere")
    elif change == "a file":
        folder.touch()
    else:
        folder.mkdir(mode=0o777)
        give_away(folder)
    done = kit("run", "T-1", code=1)
    assert LIVE in done.stderr and "live markers of this user's runs" in done.stderr
    assert not kit.run_dirs() and not list((kit.folder / "elsewhere").glob("*"))
    with pytest.raises(KitError, match="live markers"), acting.one_pass_at_a_time(kit.runs):
        pass


@pytest.mark.parametrize("age_s", [1, 2 * acting.LEFT_ALONE_S])
def test_the_marker_of_a_run_whose_shim_may_still_start_its_trainer_stays(tmp_path: Path, age_s: float) -> None:
    run = made(tmp_path, RUN_ID, resolved_config_json=b'{"recover": {"enabled": false}}')
    live_marker.make(RunPaths(run).live_marker)
    gone = {**own_identity(), "boot_id": "before"}
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "launcher": gone}))
    os.utime(run / "run.json", (time.time() - age_s,) * 2)
    (look,) = inspection.one_pass(tmp_path)
    assert (look.state, look.verdict) == ("never_started", ENDED)
    acting.act(tmp_path, [look])
    assert RunPaths(run).live_marker.exists() == (age_s < acting.LEFT_ALONE_S)


@needs_root
def test_the_owner_of_the_folder_is_asked_of_the_folder_itself(tmp_path: Path) -> None:
    run = lost_run(tmp_path / "runs")
    assert own_runs.why_marked_run_is_not_own(RunPaths(run)) is None
    give_away(run)
    assert "another user" in str(own_runs.why_run_is_not_own(RunPaths(run)))
