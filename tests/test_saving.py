"""Saving a checkpoint: what is in it, and that no fault at any point leaves half of one under its name."""

from __future__ import annotations

import argparse
import errno
import hashlib
import itertools
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from reliability.save_crashes import die_at_call, in_child, kill_during_saves
from resumekit.base.errors import KitError
from resumekit.checkpoint import manifest, pruning
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.trainer import save_file, saving
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import (
    IO_ERROR,
    NO_SPACE,
    QUOTA,
    TOO_BIG,
    failing,
    leftovers,
    os_calls,
    quiet,
    save_plain,
    save_steps,
    small_model,
)

pytestmark = pytest.mark.usefixtures("in_a_new_process")

KILLS = 30


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as the launcher leaves it for a trainer."""
    folder = tmp_path / "T-1_x_resume@5_20260101-0000"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "claims").mkdir()
    (folder / "run.json").write_text(
        json.dumps({"parent_run_id": "T-1_x", "parent_step": 5, "host": os.uname().nodename})
    )
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(folder))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", folder.name)
    monkeypatch.setenv("RESUMEKIT_CONFIG_HASH", "ab" * 32)
    return folder


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("_")[2]) for path in folder.glob("hrm_arc_step_*.pt"))


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "journal.jsonl").read_text().split("\n")
    return [value for value in map(json.loads, filter(None, lines)) if value["event"] == kind]


def save(folder: Path, step: int, **more: Any) -> Path | None:
    model, optimizer = small_model()
    usual = {"model": model, "optimizer": optimizer, "data_state": {"at": step}, "log_fn": quiet}
    return save_checkpoint(folder, step, **{**usual, **more})


def test_the_file_has_the_protocols_keys_and_loads_with_weights_only(tmp_path: Path) -> None:
    model, optimizer = small_model()
    average = torch.optim.swa_utils.AveragedModel(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    path = save_checkpoint(
        tmp_path, 7, model=model, optimizer=optimizer, scheduler=schedule, ema=average, epoch=2, best_val_loss=0.5,
        data_state={"seed": 1}, extra={"carry": torch.ones(2)}, lr_scale=0.8, log_fn=quiet,
    )  # fmt: skip
    content = torch.load(path, weights_only=True)
    assert set(content) == {
        "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "global_step", "epoch",
        "best_val_loss", "optimizer_name", "ema_state_dict", "swa_state_dict", "rng_state", "data_state",
        "parameter_names", "lr_scale", "lr_ramp", "versions", "carry",
    }  # fmt: skip
    assert (content["global_step"], content["epoch"], content["best_val_loss"], content["lr_scale"]) == (7, 2, 0.5, 0.8)
    assert content["optimizer_name"] == "AdamW" and content["data_state"] == {"seed": 1}
    assert content["parameter_names"] == [["0.weight", "0.bias", "2.weight", "2.bias"]]
    assert content["scaler_state_dict"] is None and content["swa_state_dict"] is None
    assert content["versions"]["torch"] == torch.__version__ and content["versions"]["threads"] == 1
    assert {"python", "torch"} <= set(content["rng_state"])


def test_a_trainer_without_a_position_in_its_data_is_told_once_at_its_first_save(run_dir: Path) -> None:
    lines: list[str] = []
    for step in (1, 2):
        save(run_dir / "checkpoints", step, data_state=None, extra={"sampler": {"at": step}}, log_fn=lines.append)
    (warning,) = events(run_dir, "warning")
    assert warning["kind"] == "no_data_state" and "will not be exact" in warning["message"]
    assert lines[1] == f"[warn] {warning['message']}" and len(lines) == 3


def test_a_trainer_with_a_position_in_its_data_is_told_nothing(run_dir: Path) -> None:
    save(run_dir / "checkpoints", 1)
    assert events(run_dir, "warning") == []


def test_several_optimizers_are_a_dict_by_name_and_a_parameter_of_none_of_ours_has_no_name(tmp_path: Path) -> None:
    model, optimizer = small_model()
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    path = save(tmp_path, 1, model=model, optimizer={"puzzle": other, "model": optimizer})
    content = torch.load(path, weights_only=True)
    assert content["optimizer_name"] == "model=AdamW,puzzle=SGD"
    assert set(content["optimizer_state_dict"]) == {"model", "puzzle"}
    assert content["parameter_names"]["puzzle"] == [[None]]


def test_the_manifest_says_size_digest_step_lineage_and_what_is_inside(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    path = save(folder, 7, last_fast_eval={"step": 6, "accuracy": 0.25})
    assert path is not None
    known = manifest.read(path)
    assert known.size == path.stat().st_size
    assert known.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (known.writer, known.step, known.finite, known.step_completed) == ("save_checkpoint", 7, True, True)
    assert (known.run_id, known.parent_run_id, known.parent_step) == (run_dir.name, "T-1_x", 5)
    assert (known.config_hash, known.optimizer_name, known.weights) == ("ab" * 32, "AdamW", ("raw",))
    assert known.last_fast_eval == {"step": 6, "accuracy": 0.25}
    (event,) = events(run_dir, "checkpoint")
    assert (event["step"], event["path"], event["sha256"]) == (7, "checkpoints/hrm_arc_step_7.pt", known.sha256)
    assert event["size"] == known.size and event["seconds"] > 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (argparse.Namespace(a=1), "'args.deep' is a 'argparse.Namespace'"),
        (Path("x"), "'args.deep' is a 'pathlib.PosixPath'"),
        (time, "'args.deep' is a 'builtins.module'"),
        ({Path("x"): 3}, "'a key of args.deep' is a 'pathlib.PosixPath'"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_at_the_save_by_its_name(
    tmp_path: Path, value: Any, named: str
) -> None:
    with pytest.raises(KitError, match=named):
        save(tmp_path, 1, extra={"args": {"deep": value}})
    assert list(tmp_path.iterdir()) == []


def test_numpy_values_are_refused_at_the_save(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(KitError, match=r"'best' is a 'numpy\.float64'"):
        save(tmp_path, 1, extra={"best": numpy.float64(1)})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"extra": {"epoch": 1}}, "'epoch' of save_checkpoint has a name of the kit's own"),
        ({"best": {"score": float("nan")}}, "must have a finite 'score'"),
        ({"best": {"score": 1.0, "weights": "good"}}, "'weights' raw, ema or swa"),
        ({"last_fast_eval": {"step": 1, "accuracy": float("inf")}}, "last_fast_eval="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(KitError, match=said):
        save(tmp_path, 1, **arguments)


@pytest.mark.parametrize("step", [-1, 10**15, 1.5, True, "1"])
def test_a_step_that_is_no_whole_number_of_12_digits_is_refused(tmp_path: Path, step: Any) -> None:
    with pytest.raises(KitError, match="is not a whole number"):
        save(tmp_path, step)


@pytest.mark.fault("D3", by="checkpoint_content.py: every tensor is looked at; the manifest says finite: false")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["weights", "optimizer", "ema", "loss"])
def test_d3_values_that_are_not_finite_are_found_named_and_kept_as_evidence(
    run_dir: Path, where: str, value: float
) -> None:
    model, optimizer = small_model()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        if where == "weights":
            model[0].weight[1, 1] = value
        elif where == "ema":
            average.module[0].weight[1, 1] = value
        elif where == "optimizer":
            optimizer.state[model[2].bias]["exp_avg"][0] = value
    loss = torch.tensor(value) if where == "loss" else 1.0
    names = {"weights": "model_state_dict.0.weight", "ema": "ema_state_dict.module.0.weight", "loss": "loss",
             "optimizer": "optimizer_state_dict.state.3.exp_avg"}  # fmt: skip
    path = save(
        run_dir / "checkpoints", 3, model=model, optimizer=optimizer, ema=average, loss=loss, best={"score": 1.0}
    )
    assert path is not None
    known = manifest.read(path)
    assert (known.finite, known.nonfinite) == (False, (names[where],))
    assert not (run_dir / "checkpoints" / "hrm_arc_best.pt").exists()
    assert [event["kind"] for event in events(run_dir, "warning")] == ["checkpoint_not_finite"]


def test_finite_values_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    model, optimizer = small_model()
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    path = save(tmp_path, 1, model=model, optimizer=optimizer)
    assert path is not None and manifest.read(path).finite is True


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"best": 0.5}, "best=0.5 must have a finite 'score'"),
        ({"best": {"weights": "raw"}}, "best={'weights': 'raw'} must have a finite 'score'"),
        ({"best": {"score": "high"}}, "best={'score': 'high'} must have a finite 'score'"),
        ({"last_fast_eval": {"step": 1, "accuracy": "high"}}, "must have a 'step' and a finite score"),
        ({"extra": [1]}, "extra is a list, not a dict"),
        ({"epoch": "first"}, "epoch is 'first', not a number"),
        ({"best_val_loss": "low"}, "best_val_loss is 'low', not a number"),
        ({"keep_last": "3"}, "keep_last is '3', not a whole number"),
        ({"keep_every": 2.5}, "keep_every is 2.5, not a whole number"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_sentence_before_anything_is_written(
    tmp_path: Path, argument: dict[str, Any], words: str
) -> None:
    with pytest.raises(KitError) as raised:
        save(tmp_path, 1, **argument)
    assert str(raised.value).startswith("save_checkpoint: ") and words in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_this_process_saved_stays_and_gets_the_newer_manifest(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    assert path is not None
    before = (path.stat().st_ino, path.read_bytes())
    assert save(tmp_path, 5, last_fast_eval={"step": 5, "accuracy": 0.5}, best={"score": 0.5}) == path
    assert (path.stat().st_ino, path.read_bytes()) == before
    assert manifest.read(path).last_fast_eval == {"step": 5, "accuracy": 0.5}
    assert manifest.read(tmp_path / "hrm_arc_best.pt").best_score == 0.5


@pytest.mark.fault("B17", by="save_file.py: a hard link is the exclusive form of a rename")
def test_b17_of_two_writers_of_one_step_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    """Two processes reach the final name at once: both have their file ready, then both go on."""
    ready, go = os.pipe(), os.pipe()

    def one(seed: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        said: list[str] = []

        def act(_k: int, name: str, _arguments: object) -> None:
            if name == "link":
                os.write(ready[1], b".")
                if (tmp_path / "hrm_arc_step_5.pt.json").exists():
                    os._exit(3)  # the manifest comes last
                os.read(go[0], 1)

        model, optimizer = small_model(seed)
        with os_calls(act, ("link", "read")[:1]):
            path = save_checkpoint(tmp_path, 5, model=model, optimizer=optimizer, log_fn=said.append)
        os._exit(0 if path else 9 if "is there already, saved by another process" in said[0] else 1)

    pids = [one(1), one(2)]
    for _ in pids:
        os.read(ready[0], 1)
    os.write(go[1], b"..")
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(codes) == [0, 9]
    winner = small_model(codes.index(0) + 1)[0].state_dict()
    content = torch.load(tmp_path / "hrm_arc_step_5.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(content[name], value) for name, value in winner.items())
    chosen = select([CheckpointFolder(tmp_path)]).chosen
    assert chosen is not None and chosen.grade == "proven" and leftovers(tmp_path) == []


def test_a_file_of_another_writer_under_the_name_is_never_overwritten(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 5)
    before = path.read_bytes()
    said: list[str] = []
    assert save(tmp_path, 5, log_fn=said.append) is None
    assert path.read_bytes() == before and leftovers(tmp_path) == []
    assert "give this run a folder of its own" in said[0]


# The journal is opened and written first (`saving`); what fails is the checkpoint.
FAULTS = [
    ("B3 disk full at once", NO_SPACE, "write", 2, "no space: need 0.0 MB, have "),
    ("B3 disk full in the middle", NO_SPACE, "write", 20, "no space: need 0.0 MB, have "),
    ("B4 no inodes", NO_SPACE, "open", 2, "no space"),
    ("B5 quota", QUOTA, "write", 5, r"\(the quota is used up\)"),
    ("B6 EIO on write", IO_ERROR, "write", 3, "Input/output error"),
    ("B7 EIO on fsync", IO_ERROR, "fsync", 1, "Input/output error"),
    ("B8 file too large", TOO_BIG, "write", 9, r"file too large: a limit of this process \(ulimit -f\)"),
    ("B10 rename refused", errno.EACCES, "link", 1, "Permission denied"),
    ("B10 read-only disk", errno.EROFS, "open", 2, "Read-only file system"),
    ("B11 another file system", errno.EXDEV, "link", 1, "Invalid cross-device link"),
    ("no space for the manifest", NO_SPACE, "open", 3, "no space"),
    ("manifest can't be renamed", errno.EACCES, "replace", 1, "Permission denied"),
    ("folder can't be synced", IO_ERROR, "fsync", 3, "Input/output error"),
    ("folder can't be synced again", IO_ERROR, "fsync", 4, "Input/output error"),
]


@pytest.mark.fault("B3", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B4", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B5", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B6", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B7", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B8", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B10", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.fault("B11", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
@pytest.mark.parametrize(("number", "call", "at", "said"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_save_that_fails_is_said_leaves_nothing_and_training_goes_on(
    run_dir: Path, number: int, call: str, at: int, said: str
) -> None:
    folder = run_dir / "checkpoints"
    save(folder, 1)
    save(folder, 2)
    lines: list[str] = []
    with os_calls(failing(number, call, at, once=True)):
        assert save(folder, 3, log_fn=lines.append) is None
    assert steps_in(folder) == [1, 2] and leftovers(folder) == []
    assert not (folder / "hrm_arc_step_3.pt.json").exists()
    assert re.search(said, lines[0]) and "step 3 was not saved to" in lines[0]
    (warning,) = events(run_dir, "warning")
    assert warning["kind"] == "save_failed"
    assert select([CheckpointFolder(folder)]).candidates[0].grade == "proven"
    assert save(folder, 4) is not None  # the next one is made anew, and good
    chosen = select([CheckpointFolder(folder)]).chosen
    assert chosen is not None and (chosen.step, chosen.grade) == (4, "proven")


@pytest.mark.fault("B6", by="saving.py: MAX_IO_ERRORS in a row end it")
def test_b6_two_input_output_errors_in_a_row_stop_the_training_and_a_good_save_between_counts_anew(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1)
    for step in (2, 4):
        with os_calls(failing(IO_ERROR, "write")):
            assert save(tmp_path, step) is None
        save(tmp_path, step + 1)
    with os_calls(failing(IO_ERROR, "fsync")):
        assert save(tmp_path, 6) is None
        with pytest.raises(KitError, match="that is 2 in a row, the disk is failing"):
            save(tmp_path, 7)


@pytest.mark.fault("B7", by="save_file.py: a failed fsync is final, the next save is a new file")
def test_b7_a_failed_fsync_is_not_tried_again_on_that_file(tmp_path: Path) -> None:
    synced = []

    def act(_k: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            synced.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if len(synced) == 1:
                raise OSError(IO_ERROR, "x")

    save(tmp_path, 1)  # the first one in a folder also makes the folder's own name durable
    with os_calls(act):
        assert save(tmp_path, 2) is None
        assert save(tmp_path, 3) is not None
    assert ".tmp-" in synced[0] and synced.count(synced[0]) == 1 and ".tmp-" in synced[1]


@pytest.mark.fault("B8", by="errors.py: EFBIG out of what torch.save hides")
def test_b8_a_real_file_size_limit_is_named(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        said: list[str] = []
        assert save(tmp_path, 1, log_fn=said.append) is None
        assert "ulimit -f" in said[0]

    assert in_child(work) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("B3", by="saving.py: an OSError is said by its cause, the temp file goes, training goes on")
def test_b3_a_disk_that_stays_full_hurts_neither_the_training_nor_the_older_checkpoints(run_dir: Path) -> None:
    """Nothing can be written, not even the journal; later there is room again."""
    folder = run_dir / "checkpoints"
    save(folder, 1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with os_calls(failing(NO_SPACE, "write")):
        for step in range(2, 6):
            assert save(folder, step) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert save(folder, 6) is not None


@pytest.mark.fault("B9", by="files.py, save_file.py: a short write is continued")
def test_b9_short_writes_are_completed(tmp_path: Path) -> None:
    original = os.write

    def short(descriptor: int, data: Any) -> int:
        return original(descriptor, data[: max(1, len(data) // 3)])

    os.write = short
    try:
        path = save(tmp_path, 1)
    finally:
        os.write = original
    assert path is not None and path.stat().st_size == manifest.read(path).size
    chosen = select([CheckpointFolder(tmp_path)]).chosen
    assert chosen is not None and chosen.grade == "proven"


@pytest.mark.fault("B1", by="save_file.py: temp, fsync, link, folder fsync; manifest last")
@pytest.mark.fault("B12", by="selection.py: data without its manifest is not proven")
@pytest.mark.fault("B14", by="pruning.py: never below two proven")
def test_b1_b12_b14_death_before_any_call_leaves_the_newest_or_the_one_before_proven(tmp_path: Path) -> None:
    """Killed before each call that changes the disk, pruning and best link included; of the writes every twelfth."""
    arguments = {"keep_last": 2, "best": {"score": 1.0}}
    calls: list[str] = []
    save_steps(tmp_path / "0", 1, 2, 3, 4)
    with os_calls(lambda _k, name, _arguments: calls.append(name)):
        save(tmp_path / "0", 5, **arguments)
    assert {"open", "write", "fsync", "link", "replace", "unlink"} <= set(calls)
    for at in [k for k, name in enumerate(calls, 1) if name != "write" or k % 12 == 0]:
        folder = tmp_path / str(at)
        save_steps(folder, 1, 2, 3, 4)
        assert die_at_call(at, lambda folder=folder: save(folder, 5, **arguments))
        found = select([CheckpointFolder(folder)])
        assert found.chosen is not None and found.chosen.grade == "proven"
        assert found.chosen.step in (4, 5), at
        passed = [one for one in found.candidates if one.verdict == "passed"]
        assert all("no manifest" in one.reason for one in passed), at
        assert len([s for s in steps_in(folder) if (folder / f"hrm_arc_step_{s}.pt.json").exists()]) >= 2
        saving._swept.clear()  # the next process
        assert save(folder, 6) is not None and leftovers(folder) == []  # it sweeps what the dead writer left


@pytest.mark.fault("B2", by="save_file.py: a final name is only ever given to what is whole")
@pytest.mark.fault("B18", by="pruning.py: sweep of our own temp files whose writer is dead")
def test_b2_b18_random_kills_tear_nothing_and_leave_nothing_that_is_not_swept(tmp_path: Path) -> None:
    found = kill_during_saves(tmp_path / "checkpoints", KILLS, seed=1)
    assert (found["torn"], found["lost"], found["left"]) == (0, 0, 0), found
    assert found["temp"] == found["swept"] and found["saves"] > 0


@pytest.mark.fault("B18", by="pruning.py: full name, pid and start time; never another host's")
def test_b18_sweeping_removes_only_our_own_temp_files_of_dead_writers(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    own_start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    dead = [".hrm_arc_step_5.pt.tmp-999999999-1-0123abcd", f".hrm_arc_step_5.pt.tmp-{os.getpid()}-1-0123abcd"]
    kept = [f".hrm_arc_step_5.pt.tmp-{os.getpid()}-{own_start}-0123abcd", ".x.tmp",
            "hrm_arc_step_5.pt.tmp-9-9-0123abcd", "hrm_arc_step_5.pt", ".x.tmp-999999999-1-0123abcg"]  # fmt: skip
    for name in dead + kept:
        (folder / name).touch()
    cut, foreign = ".step-5.tmp-999999999-1-0123abcd", ".y.tmp-999999999-1-0123abcd"
    for name, inside in ((cut, "__1_0.distcp"), (cut, ".metadata.tmp"), (cut, "resumekit.pt"), (foreign, "mine.txt")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / inside).touch()
    assert sorted(path.name for path in pruning.sweep(folder)) == sorted([*dead, cut])
    assert not (folder / cut).exists() and (folder / foreign / "mine.txt").exists()
    (folder / dead[0]).touch()
    (tmp_path / "run.json").write_text('{"host": "another-host"}')
    assert pruning.sweep(folder) == []


@pytest.mark.fault("B19", by="save_file.py: O_EXCL and O_NOFOLLOW")
@pytest.mark.fault("K4", by="save_file: exclusive create, no link followed")
def test_b19_a_planted_link_under_the_temp_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resumekit.base import files

    victim, planted = tmp_path / "victim", tmp_path / ".planted"
    victim.write_text("safe")
    planted.symlink_to(victim)
    monkeypatch.setattr(files, "temp_path", lambda _target: planted)
    assert save(tmp_path, 1) is None
    assert victim.read_text() == "safe" and planted.is_symlink() and steps_in(tmp_path) == []


@pytest.mark.fault("B19", by="saving.py: a taken name is never written through; best: rename over the link")
@pytest.mark.fault("K4", by="saving.py: a taken name is never written through; best: rename over the link")
def test_a_link_planted_under_the_final_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    (tmp_path / "hrm_arc_step_1.pt").symlink_to(victim)
    (tmp_path / "hrm_arc_best.pt").symlink_to(victim)
    assert save(tmp_path, 1) is None
    assert save(tmp_path, 2, best={"score": 1.0}) is not None
    assert victim.read_text() == "safe" and not (tmp_path / "hrm_arc_best.pt").is_symlink()


@pytest.mark.fault("A3", by="save_file.py: held back until the save is done")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a3_a_signal_in_a_save_is_handed_on_after_it(tmp_path: Path, number: int) -> None:
    got = []
    before = signal.signal(number, lambda n, _f: got.append((n, steps_in(tmp_path))))
    try:
        with os_calls(lambda k, _n, _a: os.kill(os.getpid(), number) if k == 15 else None):
            path = save(tmp_path, 1)
        assert path is not None and got == [(number, [1])]
        assert manifest.read(path).size == path.stat().st_size
    finally:
        signal.signal(number, before)


@pytest.mark.fault("B20", by="save_file.py, saving.py: what is dropped never gets its name")
def test_b20_a_person_s_second_int_is_handed_on_at_once_and_the_half_saved_file_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_file, "MOMENT_S", 0.0)
    save(tmp_path, 1)

    writes = itertools.count(1)

    def act(_k: int, name: str, _arguments: object) -> None:
        if name == "write" and next(writes) in (3, 6):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), os_calls(act):
        save(tmp_path, 2)
    assert next(writes) > 6 and steps_in(tmp_path) == [1] and leftovers(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("sent", ["TERM TERM TERM", "TERM INT", "INT INT", "INT TERM INT"])
def test_a_stop_that_comes_more_than_once_in_a_save_is_handed_on_once_when_it_is_done(
    tmp_path: Path, sent: str
) -> None:
    """A scheduler sends it to the whole job and again; a trainer may take a second one for "now"."""
    numbers = [signal.Signals[f"SIG{name}"] for name in sent.split()]
    got: list[tuple[int, list[int]]] = []
    before = {number: signal.signal(number, lambda n, _f: got.append((n, steps_in(tmp_path)))) for number in numbers}
    left = list(numbers)
    try:
        with os_calls(lambda k, _n, _a: os.kill(os.getpid(), left.pop(0)) if k > 9 and left else None):
            assert save(tmp_path, 1) is not None
        assert got == [(numbers[0], [1])] and not left
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.fault("B20", by="saving.py: only a save that came to its end is published")
def test_b20_an_exception_anywhere_in_torch_save_never_reaches_the_final_name(tmp_path: Path) -> None:
    for at in range(1, 40, 3):

        def act(_k: int, name: str, _arguments: object, at: int = at, seen: list[int] = []) -> None:  # noqa: B006
            seen.append(at) if name == "write" else None
            if name == "write" and seen.count(at) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), os_calls(act):
            save(tmp_path, 2)
        assert steps_in(tmp_path) == [] and leftovers(tmp_path) == []


def test_saving_in_a_thread_leaves_signals_alone_and_works(tmp_path: Path) -> None:
    saved: list[Any] = []
    thread = threading.Thread(target=lambda: saved.append(save(tmp_path, 1)))
    thread.start()
    thread.join()
    assert saved[0] is not None


@pytest.mark.fault("K12", by="pruning: own regular files only, by their manifest")
def test_pruning_keeps_the_newest_the_round_the_pinned_the_best_and_whatever_is_not_ours(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    (run_dir / "claims" / "pin_3_T-1_child.json").write_text("{}")
    (run_dir / "claims" / "pin_77_T-1_child.json").write_text("{}")
    for step in range(1, 13):
        more = {"keep_last": 3, "keep_every": 5, "best": {"score": 1.0} if step == 4 else None}
        if step == 6:
            save_plain(folder, 6)
        elif step == 7:
            bad, optimizer = small_model()
            torch.nn.init.constant_(bad[0].weight, float("nan"))
            save(folder, 7, model=bad, optimizer=optimizer, **more)
        else:
            assert save(folder, step, **more) is not None
    assert steps_in(folder) == [3, 4, 5, 6, 7, 10, 11, 12]
    assert {path.name for path in folder.glob("*.json")} == {
        *(f"hrm_arc_step_{step}.pt.json" for step in (3, 4, 5, 7, 10, 11, 12)), "hrm_arc_best.pt.json"
    }  # fmt: skip


@pytest.mark.parametrize("keep_last", [0, 1])
def test_two_proven_ones_always_stay(tmp_path: Path, keep_last: int) -> None:
    for step in range(1, 5):
        save(tmp_path, step, keep_last=keep_last)
    assert steps_in(tmp_path) == [3, 4]


def test_without_keep_last_nothing_is_ever_removed(tmp_path: Path) -> None:
    save_steps(tmp_path, *range(1, 8))
    assert steps_in(tmp_path) == list(range(1, 8))


@pytest.mark.fault("K12", by="pruning.py: lstat, own manifest, own run; nothing else goes")
def test_k12_pruning_removes_nothing_through_links_and_nothing_of_another_run(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    outside = run_dir / "outside.pt"
    for step in (1, 2):
        save(folder, step)
    (folder / "hrm_arc_step_1.pt").rename(outside)
    (folder / "hrm_arc_step_1.pt").symlink_to(outside)
    beside = folder / "hrm_arc_step_2.pt.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "run_id": "T-9_y"}))
    for step in range(3, 8):
        save(folder, step, keep_last=2)
    assert steps_in(folder) == [1, 2, 6, 7] and outside.exists()


def test_the_best_is_a_hard_link_whose_manifest_names_score_and_weights(tmp_path: Path) -> None:
    model, optimizer = small_model()
    average = torch.optim.swa_utils.AveragedModel(model)
    for step, score in ((1, 0.5), (2, None), (3, 0.75)):
        best = None if score is None else {"score": score, "weights": "ema"}
        save_checkpoint(tmp_path, step, model=model, optimizer=optimizer, ema=average, best=best, log_fn=quiet)
    best_path = tmp_path / "hrm_arc_best.pt"
    assert best_path.stat().st_ino == (tmp_path / "hrm_arc_step_3.pt").stat().st_ino
    known = manifest.read(best_path)
    assert (known.step, known.best_score, known.best_weights, known.weights) == (3, 0.75, "ema", ("raw", "ema"))


def test_a_file_system_without_hard_links_gets_a_rename_and_a_copy(tmp_path: Path) -> None:
    with os_calls(failing(errno.EOPNOTSUPP, "link")):
        path = save(tmp_path, 1, best={"score": 1.0})
    assert path is not None and leftovers(tmp_path) == []
    for how in ({}, {"best": True}):
        chosen = select([CheckpointFolder(tmp_path)], **how).chosen
        assert chosen is not None and chosen.grade == "proven"


def test_a_best_that_can_not_be_linked_does_not_unsay_the_save(run_dir: Path) -> None:
    with os_calls(failing(errno.EACCES, "link", 2)):
        path = save(run_dir / "checkpoints", 1, best={"score": 1.0})
    assert path is not None and manifest.read(path).step == 1
    assert [event["kind"] for event in events(run_dir, "warning")] == ["best_failed"]


def test_the_module_is_imported_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.path.append(sys.argv[1]); "
        "import resumekit.trainer.saving, resumekit.trainer.loading"
    )
    lib = Path(saving.__file__).parents[2]
    assert in_child(lambda: os.execv(sys.executable, [sys.executable, "-I", "-c", program, str(lib)])) == 0


def test_under_the_kit_the_files_get_the_names_that_the_launcher_looks_for(run_dir: Path) -> None:
    """A trainer that says no pattern saves under the config's, else its checkpoints would never be found again."""
    from resumekit.trainer import trainer_env

    trainer_env._form.cache_clear()
    names = {"pattern": "model_{step}.pt", "best_pattern": "model_best.pt"}
    (run_dir / "resolved_config.json").write_text(json.dumps({"checkpoint": names}))
    (path,) = save_steps(run_dir / "checkpoints", 7, best={"score": 0.5, "weights": "raw"})
    assert path.name == "model_7.pt"
    assert sorted(p.name for p in path.parent.glob("*.pt")) == ["model_7.pt", "model_best.pt"]
    trainer_env._form.cache_clear()


def test_a_step_that_was_trained_again_after_going_back_is_saved_with_its_new_content(tmp_path: Path) -> None:
    model, optimizer = small_model()
    for step in (10, 20, 10):  # back to 10, with other weights
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        path = save_checkpoint(tmp_path, step, model=model, optimizer=optimizer, log_fn=quiet)
    found = torch.load(path, weights_only=True)["model_state_dict"]
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    assert manifest.read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_step_saved_finite_replaces_the_same_step_saved_with_a_nan(tmp_path: Path) -> None:
    model, optimizer = small_model()
    save_checkpoint(tmp_path, 10, model=model, optimizer=optimizer, loss=float("nan"), log_fn=quiet)
    path = save_checkpoint(tmp_path, 10, model=model, optimizer=optimizer, loss=0.5, log_fn=quiet)
    assert manifest.read(path).finite is True


def test_a_step_that_a_branch_stands_on_is_kept_when_it_is_trained_again(run_dir: Path) -> None:
    model, optimizer = small_model()
    folder = run_dir / "checkpoints"
    paths = [save_checkpoint(folder, step, model=model, optimizer=optimizer, log_fn=quiet) for step in (10, 20)]
    before = paths[0].read_bytes()
    (run_dir / "claims" / "pin_10_T-1_branch.json").write_text("{}")
    assert save_checkpoint(folder, 10, model=model, optimizer=optimizer, log_fn=quiet) is None
    assert paths[0].read_bytes() == before
