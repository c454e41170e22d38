"""run.sh never begins beside a trainer that lives, nor over what was trained: journals lost, folders moved, copies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from resumekit.base import claims
from resumekit.base.paths import RunPaths
from resumekit.run import live_marker
from resumekit.run.run_folder import open_run
from resumekit.run.run_names import RunName
from resumekit.watch import acting, inspection
from support.commands import Kit
from support.processes import wait_until
from support.runs import events

# Long enough for every command that is asked beside it.
STEPS = {"max_steps": 100000}


def live(kit: Kit, *toy_args: str) -> Path:
    """Start a run that lives and has a checkpoint; return its folder."""
    kit.config("--delay", "0.05", *(toy_args or ("--save-every", "5")), training=STEPS)
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: len(events(run, "step")) > 6, "steps")
    return run


# a journal that was lost


@pytest.mark.parametrize("is_removed", [True, False])
@pytest.mark.parametrize("has_launcher", [True, False])
def test_without_its_journal_a_live_run_is_a_head_all_the_same(kit: Kit, is_removed: bool, has_launcher: bool) -> None:
    run = live(kit)
    launched = events(run, "launched")[0]
    if not has_launcher:
        os.kill(launched["launcher"]["pid"], signal.SIGKILL)
    (run / "journal.jsonl").unlink() if is_removed else os.truncate(run / "journal.jsonl", 0)
    assert open_run(run).has_started
    assert f"'{run.name}'" in kit("run", "T-1", code=6).stderr
    assert kit.run_dirs() == [run]


def test_what_only_a_trainer_leaves_says_that_it_started(kit: Kit) -> None:
    kit("run", "T-1", code=0, env={"TOY_ARGS": "--save-every 2"})
    (run,) = kit.run_dirs()
    (run / "journal.jsonl").unlink()
    assert open_run(run).has_started  # the pid in status.json
    (run / "status.json").unlink()
    assert open_run(run).has_started  # a checkpoint
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert not open_run(run).has_started and (run / "exit.json").exists()
    with claims.locked(run / "trainer.lock"):
        assert open_run(run).has_started
    with claims.locked(run / ".status.lock"):
        assert not open_run(run).has_started  # a shim that could not start it has written its end
        (run / "exit.json").unlink()
        assert open_run(run).has_started
    assert not open_run(run).has_started


def test_the_checkpoint_that_was_put_there_for_a_trainer_to_resume_from_is_no_sign_of_one(kit: Kit) -> None:
    kit("run", "T-1", env={"TOY_ARGS": "--save-every 2"})
    (run,) = kit.run_dirs()
    for name in ("journal.jsonl", "status.json"):
        (run / name).unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "parent_step": 4}))
    assert not open_run(run).has_started


# a folder that was moved


@pytest.mark.parametrize("way", ["renamed", "moved", "removed", "without its record"])
def test_a_live_run_whose_folder_is_not_there_is_refused_with_its_pid(kit: Kit, way: str) -> None:
    # A trainer that saves makes its folder anew, without a record.
    run = live(kit, "--save-every", "5" if way == "renamed" else "0")
    pid = events(run, "launched")[0]["trainer"]["pid"]
    (kit.runs / "arch").mkdir()
    if way == "without its record":
        (run / "run.json").unlink()
    elif way == "removed":
        wait_until(lambda: shutil.rmtree(run, ignore_errors=True) or not run.exists(), "no folder")
    else:
        run.rename(kit.runs / (f"{run.name}_good" if way == "renamed" else f"arch/{run.name}"))
    kit("abort-watch")  # a pass of the watcher leaves the marker
    for command in ("run", "resume"):
        said = kit(command, "T-1", code=6).stderr
        assert f"'{run.name}' is alive (pid " in said and str(pid) in said
    made = kit("run", "T-1", "--fresh", "--detach").stderr
    assert f"run {run.name}\n" not in made
    assert live_marker.carriers(kit.folder / run.name) == []  # the same id in another runs folder


def test_no_run_gets_the_id_of_a_live_marker(kit: Kit) -> None:
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    shutil.rmtree(run)
    stamps = [time.strftime("%Y%m%d-%H%M", time.localtime(time.time() + later_s)) for later_s in (0, 60)]
    names = [str(RunName("T-1", "toy", None, stamp)) for stamp in stamps]
    for name in names:
        live_marker.make(RunPaths(kit.runs / name).live_marker)
    kit("run", "T-1")
    assert kit.run_dirs()[0].name in [f"{name}-2" for name in names]


# a copy by hard links


def test_a_run_that_was_copied_by_hard_links_is_taken_up_in_neither_folder(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "SECOND_LOOK_S", 0.2)
    run = live(kit)
    kit.clean_up()  # as a power cut does
    copy = kit.folder / "bak"
    shutil.copytree(kit.runs, copy, copy_function=os.link, symlinks=True)
    for folder in (copy, kit.runs):
        (deed,) = acting.act(folder, inspection.one_pass(folder, ()))
        assert "left alone" in deed.words and "hard links" in deed.words
    assert kit.run_dirs() == [run]
    shutil.rmtree(copy)
    assert live_marker.was_made_here(RunPaths(run).live_marker)
