"""A recovery does not begin at 0 where what was trained lies there under a name that no pattern matches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from resumekit.base.errors import NoStableCheckpoint, Refused
from resumekit.base.paths import RunPaths
from resumekit.process.sidecar_warnings import NewCheckpoints
from resumekit.run import stray_checkpoints
from resumekit.run.run_folder import Run
from resumekit.run.run_table import RunTable
from resumekit.start import search
from resumekit.watch import restart_point
from resumekit.watch.incident import Incident
from support.commands import Kit
from support.processes import wait_until
from support.recoveries import configure
from support.runs import events
from support.toy_trainer import write_checkpoint


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
    out = tmp_path / "out"
    out.mkdir()
    run = started_now(tmp_path, "python", "train.py", "--out=out", ".")
    write_checkpoint(out / "model_7.pt", 7)
    write_checkpoint(tmp_path / "elsewhere.pt", 7)
    assert stray_checkpoints.newest(run) == stray_checkpoints.Stray(str(out / "model_7.pt"), "model_{step}.pt")
    os.utime(out / "model_7.pt", (1e9, 1e9))
    assert stray_checkpoints.newest(run) is None


@pytest.mark.parametrize("words", [["out"], ["--save", "out/ckpt.pt"], ["hydra.run.dir=out"], ["--output_dir=out"]])
def test_whatever_word_of_the_command_names_the_place_it_is_looked_at(tmp_path: Path, words: list[str]) -> None:
    run = started_now(tmp_path, "python", "train.py", *words)
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out/ckpt.pt", 350)
    found = stray_checkpoints.newest(run)
    assert found and found.path == str(tmp_path / "out/ckpt.pt") and "its name has no step" in found.words


@pytest.mark.parametrize("words", [["--data", "out"], ["--verbose"], ["data"], ["--init=out"]])
def test_a_word_that_names_no_place_for_saves_is_not(tmp_path: Path, words: list[str]) -> None:
    run = started_now(tmp_path, "python", "train.py", *words)
    for folder in ("out", "data"):
        (tmp_path / folder).mkdir()
        write_checkpoint(tmp_path / folder / "ckpt.pt", 350)
    assert stray_checkpoints.newest(run) is None


def test_a_file_whose_name_fits_in_another_folder_is_said_to_lie_in_the_wrong_place(tmp_path: Path) -> None:
    run = started_now(tmp_path, "python", "train.py")
    write_checkpoint(run.paths.run_dir / "out/hrm_arc_step_7.pt", 7)
    assert "does not lie in 'checkpoints', where the kit looks for it" in stray_checkpoints.newest(run).words
    write_checkpoint(run.paths.checkpoints / "hrm_arc_step_8.pt", 8)
    (run.paths.run_dir / "out/hrm_arc_step_7.pt").unlink()
    assert stray_checkpoints.newest(run) is None, "what the pattern finds is none"


def started_now(folder: Path, *argv: str) -> Run:
    """Return a run that has just been started with a command, in `folder`."""
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    run_dir = folder / "runs" / "T-1_x"
    run_dir.mkdir(parents=True)
    return Run(RunPaths(run_dir), {"argv": list(argv), "cwd": str(folder), "created_at": created, "run_id": "T-1_x"})


def told_by(watch: NewCheckpoints, *times: float, **more: bool) -> list[str]:
    """Look at so many moments; return the warnings that came of it."""
    kept: list[str] = []

    def append(event: str, /, *, kind: str, message: str) -> bool:
        assert (event, kind) == ("warning", "stray_checkpoint")
        kept.append(message)
        return True

    for now in times:
        assert watch.look_for_strays(now, append, **more) in ("", *kept)
    return kept


def test_a_live_run_is_warned_of_once_with_the_pattern_that_would_fit(tmp_path: Path) -> None:
    run = started_now(tmp_path, "python", "train.py")
    write_checkpoint(run.paths.checkpoints / "model_10.pt", 10)
    watch = NewCheckpoints(run, {})
    assert told_by(watch, 0.0, 30.0) == [], "one look may be in the middle of a save"
    (message,) = told_by(watch, 61.0, 130.0, 200.0)
    assert "checkpoint.pattern 'model_{step}.pt' would fit it" in message and "no recovery goes on from it" in message
    write_checkpoint(run.paths.checkpoints / "model_20.pt", 20)
    assert told_by(watch, 300.0, 400.0) == []
    assert told_by(NewCheckpoints(run, watch.account), 500.0, 600.0, 700.0, has_ended=True) == []


def test_a_warning_that_could_not_be_written_down_is_tried_again(tmp_path: Path) -> None:
    run = started_now(tmp_path, "python", "train.py")
    write_checkpoint(run.paths.checkpoints / "last.ckpt", 10)
    watch = NewCheckpoints(run, {})
    assert watch.look_for_strays(0.0, lambda *_, **__: False, has_ended=True) == ""
    assert len(told_by(watch, 61.0, has_ended=True)) == 1


def test_a_file_beside_a_checkpoint_is_none_while_that_is_being_saved(tmp_path: Path) -> None:
    """The optimizer's file of step 20 is there before the model's."""
    run = started_now(tmp_path, "python", "train.py")
    write_checkpoint(run.paths.checkpoints / "hrm_arc_step_10.pt", 10)
    os.utime(run.paths.checkpoints / "hrm_arc_step_10.pt", (time.time() - 60, time.time() - 60))
    write_checkpoint(run.paths.checkpoints / "optimizer_20.pt", 20)
    watch = NewCheckpoints(run, {})
    assert told_by(watch, 0.0) == []
    write_checkpoint(run.paths.checkpoints / "hrm_arc_step_20.pt", 20)
    assert told_by(watch, 61.0, 122.0) == []
    write_checkpoint(run.paths.checkpoints / "epoch_2_step_40.ckpt", 40)
    os.utime(run.paths.checkpoints / "hrm_arc_step_20.pt", (time.time() - 60, time.time() - 60))
    assert "epoch_2_step_40.ckpt" in told_by(watch, 183.0, 244.0)[0]


def test_the_sidecar_says_it_in_journal_log_and_on_the_terminal(kit: Kit) -> None:
    kit.config("--save-every", "2", checkpoint={"pattern": "model_{step}.pt"})
    said = kit("run", "T-1").stdout
    (run,) = kit.run_dirs()
    (warning,) = [one for one in events(run, "warning") if one["kind"] == "stray_checkpoint"]
    assert "checkpoint.pattern 'hrm_arc_step_{step}.pt' would fit it" in warning["message"]
    assert warning["message"] in (run / "logs/train.log").read_text() and warning["message"] in said
    assert kit.status(run)["last_warning"] == warning["message"]


def test_a_resume_from_an_ancestor_s_step_names_the_one_file_that_the_run_has_written(kit: Kit) -> None:
    """The kit's own copy of the checkpoint that it began from is no such file, until the trainer writes there."""
    kit.config(trainer={"checkpoint_in": "checkpoints/ckpt.pt"}, training={"max_steps": 20})
    kit("run", "T-1", code=137, env={"TOY_ARGS": "--save-every 5 --at 7 kill"})
    kit("resume", "T-1", code=137, env={"TOY_ARGS": "--at 7 kill"})
    run = kit.run_dirs()[-1]
    assert not [one for one in events(run, "warning") if one["kind"] == "stray_checkpoint"]
    assert "looks like a checkpoint" not in kit("resume", "T-1", "--dry-run").stdout
    write_checkpoint(run / "checkpoints/ckpt.pt", 7)
    os.utime(run / "checkpoints/ckpt.pt", (time.time() + 60, time.time() + 60))
    said = " ".join(kit("resume", "T-1", "--dry-run").stdout.split())
    assert "'checkpoints/ckpt.pt' looks like a checkpoint" in said and "this goes on from the older step 5" in said


def test_a_recovery_that_finds_nothing_says_where_it_has_looked(kit: Kit) -> None:
    run = left_with(kit, [])
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    found = RunTable(kit.runs).get(run.name)
    with pytest.raises(NoStableCheckpoint, match=r"looked for 'hrm_arc_step_{step}.pt' .checkpoint.pattern. in "):
        restart_point.find(found, {"last_checkpoint_step": 2}, RunTable(kit.runs), Incident("died", "it died"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model_20.pt", "checkpoint.pattern 'model_{step}.pt' would fit it"),
        ("step-10/__0_0.distcp", "checkpoint.pattern 'step-{step}' would fit the folder that it is a part of"),
        ("step-10/.metadata", "checkpoint.pattern 'step-{step}' would fit the folder that it is a part of"),
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
        restart_point._refuse_to_lose_steps(run, state)
    restart_point._refuse_to_lose_steps(run, {"step": 9, "first_step_mono_s": 100.0, "step_mono_s": 160.0})


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
    left_with(kit, ["v2_epoch=1-step=6.ckpt", "last.ckpt", "optimizer_2.pt"])
    said = " ".join(kit("run", "T-1", "--dry-run").stdout.split())
    assert "'checkpoints/v2_epoch=1-step=6.ckpt' looks like a checkpoint" in said
    fits = "checkpoint.pattern 'v2_epoch={*}-step={step}.ckpt' would fit it"
    assert f"{fits}, and others only where their other numbers" in said
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
    assert b"'checkpoints/checkpoint-11' looks like a checkpoint" in err or b"a part of" in err, err.decode()
    assert b"the recovery goes on from the older step 8" in err


def test_a_person_does_not_begin_at_0_over_hours_of_training_without_fresh(tmp_path: Path) -> None:
    """The trainer saves where its own config says, which the kit does not read."""
    run = Run(RunPaths(tmp_path), {"created_at": "2026-01-01T00:00:00.000000Z"})
    state = {"step": 900, "first_step_mono_s": 100.0, "step_mono_s": 100.0 + stray_checkpoints.MAX_LOST_S + 1}
    with pytest.raises(Refused, match=r"it has trained for 1.0 h, to step 900.*--fresh begins anew all the same"):
        search.refuse_to_lose_steps(run, RunTable(tmp_path), state)
    state["step_mono_s"] = 160.0
    search.refuse_to_lose_steps(run, RunTable(tmp_path), state)


def test_a_later_file_whose_number_is_too_long_for_a_step_is_said(kit: Kit) -> None:
    left_with(kit, [f"hrm_arc_step_{10**15}.pt"])
    said = " ".join(kit("run", "T-1", "--dry-run").stdout.split())
    assert f"'checkpoints/hrm_arc_step_{10**15}.pt' looks like a checkpoint" in said
    assert "a number of at most 15 digits" in said and "this goes on from the older step 2" in said
