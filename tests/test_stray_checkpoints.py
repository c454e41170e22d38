"""A recovery does not begin at 0 where what was trained lies there under a name that no pattern matches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from conftest import Kit, events, wait_until
from resumekit.basics.errors import NoStableCheckpoint, Refused
from resumekit.basics.paths import RunPaths
from resumekit.planning import choice
from resumekit.recovery import replay
from resumekit.run_folder import status, stray_checkpoints
from resumekit.run_folder.runs import Run
from test_recovery import configure
from toy_trainer import write_checkpoint


@pytest.mark.parametrize(
    ("name", "words"),
    [("ckpt.pt", "its name has no step"), ("model_010.pth", "checkpoint.pattern 'model_{step}.pth' would fit it")],
)
def test_a_file_that_matches_no_pattern_is_named_and_nothing_begins_at_0(kit: Kit, name: str, words: str) -> None:
    configure(kit, "--save-every", "0", "--at", "12", f"wait={kit.folder}/go", "--at", "12", "exit=5")
    launcher = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: events(run, "step"), "a step")
    write_checkpoint(run / "checkpoints" / name, 10)
    (kit.folder / "go").touch()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 5 and kit.run_dirs() == [run]
    reason = events(run, "recovery")[-1]["reason"]
    assert f"'checkpoints/{name}' looks like a checkpoint" in reason and words in reason


def test_what_died_before_its_first_save_begins_anew(kit: Kit) -> None:
    configure(kit, "--save-every", "0", "--at", "3", "exit=5", recover={"max_attempts": 2})
    kit("run", "T-1", code=5)
    assert len(kit.run_dirs()) > 1


def test_a_file_where_the_command_says_that_it_saves_is_found_and_an_older_one_is_not(tmp_path: Path) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    run_dir = runs / "T-1_x"
    out.mkdir()
    run_dir.mkdir(parents=True)
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    record = {"argv": ["python", "train.py", "--out=out", "."], "cwd": str(tmp_path), "created_at": created}
    run = Run(RunPaths(run_dir), record)
    write_checkpoint(out / "model_7.pt", 7)
    write_checkpoint(tmp_path / "elsewhere.pt", 7)
    assert stray_checkpoints.newest(run) == stray_checkpoints.Stray(str(out / "model_7.pt"), "model_{step}.pt")
    os.utime(out / "model_7.pt", (1e9, 1e9))
    assert stray_checkpoints.newest(run) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model_20.pt", "checkpoint.pattern 'model_{step}.pt' would fit it"),
        ("step-10/__0_0.distcp", "it is a part of a folder 'step-{step}'"),
        ("step-10/.metadata", "it is a part of a folder 'step-{step}'"),
        ("weights_4.h5", "checkpoint.pattern 'weights_{step}.h5' would fit it"),
    ],
)
def test_a_person_does_not_begin_at_0_over_such_a_file_without_fresh(kit: Kit, name: str, words: str) -> None:
    kit("run", "T-1", code=143, env={"TOY_ARGS": "--at 4 term"})
    (run,) = kit.run_dirs()
    path = run / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    said = kit("run", "T-1", code=6).stderr
    assert f"'checkpoints/{name}' looks like a checkpoint" in said and words in said and "--fresh" in said
    assert kit.run_dirs() == [run]
    kit("run", "T-1", "--name", "other")
    kit("run", "T-1", "--fresh")


def test_what_trained_for_hours_without_a_checkpoint_is_a_person_s(tmp_path: Path) -> None:
    run = Run(RunPaths(tmp_path), {})
    state = {"step": 900, "first_step_mono_s": 100.0, "step_mono_s": 100.0 + stray_checkpoints.MAX_LOST_S + 1}
    with pytest.raises(NoStableCheckpoint, match=r"it has trained for .* h, to step 900"):
        replay._refuse_to_lose_steps(run, state)
    replay._refuse_to_lose_steps(run, {"step": 9, "first_step_mono_s": 100.0, "step_mono_s": 160.0})


def left_with(kit: Kit, names: list[str]) -> Path:
    """Leave a run that was stopped at its checkpoint of step 2, with other files written after that one."""
    kit("run", "T-1", code=143, env={"TOY_ARGS": "--save-every 2 --at 3 term"})
    (run,) = kit.run_dirs()
    (newest,) = (run / "checkpoints").glob("*_2.pt")
    os.utime(newest, (time.time() - 60, time.time() - 60))
    for name in names:
        path = run / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    return run


def test_a_resume_says_that_a_later_file_fits_no_pattern(kit: Kit) -> None:
    left_with(kit, ["epoch=1-step=6.ckpt", "last.ckpt", "optimizer_2.pt"])
    said = " ".join(kit("run", "T-1", "--dry-run").stdout.split())
    assert "'checkpoints/epoch=1-step=6.ckpt' looks like a checkpoint" in said
    assert (
        "checkpoint.pattern 'epoch=1-step={step}.ckpt' would fit it, and others only where their other numbers" in said
    )
    assert "this goes on from the older step 2" in said


@pytest.mark.parametrize("name", ["last.ckpt", "optimizer_2.pt", "samples_9.png", "model_1.ckpt"])
def test_what_is_no_later_checkpoint_is_not_spoken_of(kit: Kit, name: str) -> None:
    left_with(kit, [name])
    assert "looks like a checkpoint" not in kit("run", "T-1", "--dry-run").stdout


def test_a_recovery_says_that_it_goes_on_from_an_older_step_than_there_is(kit: Kit) -> None:
    go = kit.folder / "go"
    configure(kit, "--save-every", "4", "--at", "12", f"wait={go}", "--at", "12", "exit=5")
    launcher = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: list((run / "checkpoints").glob("*_12.pt*")) or len(events(run, "step")) >= 11, "its steps")
    wait_until(lambda: list((run / "checkpoints").glob("*_8.pt")), "a checkpoint")
    (run / "checkpoints" / "checkpoint-11").mkdir()
    go.touch()
    _, err = launcher.communicate(timeout=60)
    assert b"'checkpoints/checkpoint-11' looks like a checkpoint" in err or b"part of a folder" in err, err.decode()
    assert b"the recovery goes on from the older step 8" in err


def test_a_person_does_not_begin_at_0_over_hours_of_training_without_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer saves where its own config says, which the kit does not read."""
    run = Run(RunPaths(tmp_path), {"created_at": "2026-01-01T00:00:00.000000Z"})
    state = {"step": 900, "first_step_mono_s": 100.0, "step_mono_s": 100.0 + stray_checkpoints.MAX_LOST_S + 1}
    monkeypatch.setattr(status, "read_state", lambda _run: state)
    with pytest.raises(Refused, match=r"it has trained for 1.0 h, to step 900.*--fresh begins anew all the same"):
        choice._refuse_to_lose_steps(run)
    state["step_mono_s"] = 160.0
    choice._refuse_to_lose_steps(run)
