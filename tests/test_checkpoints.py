"""Choosing a checkpoint: order, grades, reasons, and every kind of file that must not be taken."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from reliability.checkpoint_mutants import KINDS, Nursery
from resumekit.base.errors import NoStableCheckpoint
from resumekit.checkpoint import form, manifest
from resumekit.checkpoint.grades import attest
from resumekit.checkpoint.selection import Candidate, CheckpointFolder, Selection, require, select
from resumekit.trainer.saving import save_checkpoint
from support.checkpoint_tools import Payload, pickle_zip, pickled, quiet, save_plain, save_steps, small_model
from support.toy_trainer import write_checkpoint

MUTANTS = 550


pytestmark = pytest.mark.usefixtures("one_thread")


def rows(selection: Selection) -> list[tuple[int | None, str, str]]:
    return [(one.step, one.verdict, one.reason) for one in selection.candidates]


def chosen(folder: Path, **how: Any) -> Candidate:
    """Select in one folder; the choice must not be empty."""
    found = select([CheckpointFolder(folder)], **how).chosen
    assert found is not None
    return found


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a checkpoint's manifest."""
    beside = path.with_name(f"{path.name}.json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **changes}))


@pytest.mark.fault("C22", by="selection: full match, [0-9] only, numbers")
def test_lists_newest_first_in_numeric_order_and_by_the_whole_name_only(tmp_path: Path) -> None:
    names = ["hrm_arc_step_9000.pt", "hrm_arc_step_10000.pt", "hrm_arc_step_00070.pt"]
    odd = ["hrm_arc_step_-1.pt", "hrm_arc_step_1e5.pt", "hrm_arc_step_٣.pt", "hrm_arc_step_5.pt\n",
           "hrm_arc_step_6.pt.tmp", "hrm_arc_step_12345678901234567890.pt", "hrm_arc_step_.pt",
           ".hrm_arc_step_8.pt.tmp-1-2-abcdef01", "xhrm_arc_step_5.pt", "hrm_arc_step_$(touch canary).pt",
           "hrm_arc_step_5.PT"]  # fmt: skip
    for name in names + odd:
        (tmp_path / name).touch()
    listed = [(10000, "hrm_arc_step_10000.pt"), (9000, "hrm_arc_step_9000.pt"), (70, "hrm_arc_step_00070.pt")]
    chosen = select([CheckpointFolder(tmp_path)], prove=False)
    assert [(one.step, one.name) for one in chosen.candidates if one.step is not None] == listed
    assert select([CheckpointFolder(tmp_path / "nothing")]).candidates == ()
    said = {one.path.name for one in select([CheckpointFolder(tmp_path)]).candidates if one.step is None}
    assert said == {odd[0], odd[1], odd[2], odd[3], odd[5], odd[6], odd[9]}


def test_takes_the_newest_proven_and_opens_no_older_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 9, 10, 100)
    (tmp_path / "hrm_arc_step_9.pt").write_bytes(b"never opened")
    assert rows(select([CheckpointFolder(tmp_path)])) == [
        (100, "chosen", "newest stable"),
        (10, "older", "older than the chosen one"),
        (9, "older", "older than the chosen one"),
    ]


@pytest.mark.fault("C1", by="manifest: the size")
@pytest.mark.fault("C19", by="selection: the next older one")
def test_c19_newest_bad_next_good_third_bad_takes_the_good_one_and_says_so(tmp_path: Path) -> None:
    for path in save_steps(tmp_path, 10, 20, 30)[::2]:
        path.write_bytes(path.read_bytes()[:-100])
    found = rows(select([CheckpointFolder(tmp_path)]))
    assert found[0][:2] == (30, "passed") and found[0][2].startswith("truncated: ")
    assert found[1:] == [(20, "chosen", "newest stable"), (10, "older", "older than the chosen one")]


@pytest.mark.fault("C20", by="selection: nothing is taken, nothing deleted")
def test_c20_all_bad_or_none_at_all_are_two_sentences_and_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(NoStableCheckpoint, match="no checkpoint found in 'x'") as none:
        require(select([CheckpointFolder(tmp_path)]), "in 'x'")
    for path in save_steps(tmp_path, 10, 20):
        path.write_bytes(b"")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        NoStableCheckpoint, match="no stable checkpoint in 'x': 2 found, none usable; the newest"
    ) as bad:
        require(select([CheckpointFolder(tmp_path)]), "in 'x'")
    assert none.value.exit_code == bad.value.exit_code == 3
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.fault("C23", by="selection: order by step")
def test_c23_a_newer_mtime_on_an_older_step_changes_nothing(tmp_path: Path) -> None:
    old, _ = save_steps(tmp_path, 10, 20)
    os.utime(old, (time.time() + 10**6,) * 2)
    assert chosen(tmp_path).step == 20


def test_a_child_comes_before_its_parent_and_the_parent_counts_only_up_to_the_branch(tmp_path: Path) -> None:
    save_steps(tmp_path / "parent", 10, 20, 30, 40)
    save_steps(tmp_path / "child", 20, 25)
    history = [CheckpointFolder(tmp_path / "child"), CheckpointFolder(tmp_path / "parent", max_step=20)]
    found = select(history)
    assert [(one.step, one.path.parent.name) for one in found.candidates] == [
        (25, "child"), (20, "child"), (20, "parent"), (10, "parent"),
    ]  # fmt: skip
    assert found.chosen == found.candidates[0]
    (tmp_path / "child" / "hrm_arc_step_25.pt").write_bytes(b"")
    (tmp_path / "child" / "hrm_arc_step_20.pt").write_bytes(b"")
    taken = select(history).chosen
    assert taken is not None and (taken.step, taken.path.parent.name) == (20, "parent")


def test_without_any_manifest_the_newest_sound_file_is_taken_as_plausible_and_said_so(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_plain(tmp_path, step)
    torn = tmp_path / "hrm_arc_step_30.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    found = select([CheckpointFolder(tmp_path)])
    assert found.chosen is not None and (found.chosen.step, found.chosen.grade) == (20, "plausible")
    assert found.chosen.reason == "newest stable; no manifest: its archive is sound, no digest proves it"
    assert found.candidates[0].reason == "no zip directory at its end: truncated, or bytes were appended"
    assert select([CheckpointFolder(tmp_path)], minimum="attested").chosen is None


@pytest.mark.fault("C18", by="selection: without a manifest only where nothing better is, and said")
def test_a_plausible_one_is_taken_over_a_proven_one_only_when_asked_for_by_step(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    save_plain(tmp_path, 20)
    found = select([CheckpointFolder(tmp_path)])
    assert rows(found)[0] == (20, "passed", "plausible only (no manifest): nothing says that its save was completed")
    assert found.chosen is not None and found.chosen.step == 10
    named = chosen(tmp_path, step=20)
    assert (named.step, named.grade) == (20, "plausible")
    assert select([CheckpointFolder(tmp_path)], step=15) == Selection(None, ())


def test_a_flipped_bit_in_a_plausible_file_is_found_by_the_archives_checksums(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 10)
    data = bytearray(path.read_bytes())
    data[data.index(b"data/0") + 70] ^= 1
    path.write_bytes(data)
    found = select([CheckpointFolder(tmp_path)])
    assert found.chosen is None and "differs from its checksum" in found.candidates[0].reason


@pytest.mark.fault("C3", by="manifest: the digest, by the sidecar's attester")
def test_attesting_makes_it_attested_and_a_later_change_is_found(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 10)
    known = attest(path, 10, run_id="T-1_x", config_hash="a" * 64)
    assert (known.writer, known.step, known.finite, known.weights) == ("sidecar", 10, True, ("raw",))
    assert manifest.read(path) == known
    assert chosen(tmp_path).grade == "attested"
    with pytest.raises(FileExistsError):
        attest(path, 10)
    written_at = os.stat(path).st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"little", b"LITTLE"))
    os.utime(path, ns=(written_at, written_at))  # a disk that loses a bit tells no one
    assert rows(select([CheckpointFolder(tmp_path)])) == [(10, "passed", "digest differs from its manifest")]
    os.utime(path)  # written to since it was attested: judged as a file without a manifest
    reason = f"record '{path.stem}/byteorder' differs from its checksum"
    assert rows(select([CheckpointFolder(tmp_path)])) == [(10, "passed", reason)]


def test_no_file_that_is_not_sound_is_attested(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 10)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="no zip directory"):
        attest(path, 10)
    other = save_plain(tmp_path, 11, global_step=12)
    with pytest.raises(ValueError, match="step 11 in the name, 12 inside"):
        attest(other, 11)
    assert not list(tmp_path.glob("*.json"))


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))


ODD_FILES = {
    "text": (lambda p: p.write_text("hello"), "not a file of torch.save"),
    "html": (lambda p: p.write_text("<html>" * 1000), "not a file of torch.save"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x" * 9999)), "a gzip file, not a checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), "empty: 0 bytes"),
    "zeros": (lambda p: p.write_bytes(bytes(10**6)), "it begins with zeros: its bytes never reached the disk"),
    "directory": (make_directory, "not a regular file (directory)"),
    "fifo": (os.mkfifo, "not a regular file (fifo)"),
    "socket": (make_socket, "not a regular file (socket)"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "a link that leads out of its folder, to '/dev/zero'"),
    "dangling link": (lambda p: p.symlink_to("nothing"), "a link to nothing"),
    "link to outside": (lambda p: p.symlink_to("../outside.pt"), "a link that leads out of its folder"),
    "link to itself": (lambda p: p.symlink_to(p.name), "cannot be read: Too many levels of symbolic links"),
    "canary": (lambda p: p.write_bytes(pickle_zip(pickled({"a": Payload(p.parent / "canary")}))), "not plain data"),
}  # fmt: skip


@pytest.mark.fault("C5", by="selection: regular files inside their folder only")
@pytest.mark.fault("C13", by="pickled: a name is never called")
@pytest.mark.parametrize("with_manifest", [False, True], ids=["bare", "with a manifest"])
@pytest.mark.parametrize("name", sorted(ODD_FILES))
def test_c5_c13_the_wrong_thing_under_the_right_name_is_passed_over_with_its_reason(
    tmp_path: Path, name: str, with_manifest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    good, bad = save_steps(folder, 10, 20)
    (tmp_path / "outside.pt").write_bytes(bad.read_bytes())
    monkeypatch.chdir(folder)
    bad.unlink()
    if not with_manifest:
        for path in folder.glob("*.json"):
            path.unlink()
    make, reason = ODD_FILES[name]
    make(bad)
    started = time.monotonic()
    found = select([CheckpointFolder(folder)])
    assert time.monotonic() - started < 2
    assert found.chosen is not None and found.chosen.path == good
    if with_manifest and bad.is_file() and not bad.is_symlink():
        reason = "truncated: " if bad.stat().st_size < good.stat().st_size else "bytes longer"
    assert reason in found.candidates[0].reason
    assert not (folder / "canary").exists()


@pytest.mark.fault("C7", by="grades: a manifest that says so is refused")
def test_c7_a_checkpoint_with_a_nan_is_kept_and_never_taken(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    model, optimizer = small_model()
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    save_checkpoint(tmp_path, 20, model=model, optimizer=optimizer, log_fn=quiet)
    assert rows(select([CheckpointFolder(tmp_path)]))[:2] == [
        (20, "passed", "not finite: model_state_dict.2.bias"),
        (10, "chosen", "newest stable"),
    ]


@pytest.mark.fault("C12", by="selection: one step in name, manifest and content")
def test_c12_steps_that_disagree_are_refused(tmp_path: Path) -> None:
    save_plain(tmp_path, 40, global_step=30)
    assert rows(select([CheckpointFolder(tmp_path)])) == [(40, "passed", "step 40 in the name, 30 inside")]
    (path,) = save_steps(tmp_path / "b", 50)
    rewrite(path, step=51)
    assert rows(select([CheckpointFolder(tmp_path / "b")]))[0][2] == "step 50 in the name, 51 in its manifest"
    rewrite(path, step=50)
    moved = path.rename(path.with_name("hrm_arc_step_60.pt"))
    path.with_name(f"{path.name}.json").rename(f"{moved}.json")
    rewrite(moved, file=moved.name, step=60)
    assert rows(select([CheckpointFolder(tmp_path / "b")]))[0][2] == "step 60 in the manifest, 50 inside"


@pytest.mark.fault("C12", by="selection: a step is a whole number")
@pytest.mark.parametrize("step", [1.0, "40", True, -1, None, [40], torch.tensor(40)])
def test_c12_a_step_inside_that_is_no_whole_number_is_no_step(tmp_path: Path, step: Any) -> None:
    save_plain(tmp_path, 40, global_step=step)
    assert rows(select([CheckpointFolder(tmp_path)]))[0][2] == "its global_step is not a whole number"


def test_an_absent_step_is_taken_from_the_name_and_said(tmp_path: Path) -> None:
    model, _ = small_model()
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "hrm_arc_step_40.pt")
    assert chosen(tmp_path).step == 40
    assert chosen(tmp_path).reason.endswith("no step inside: 40 taken from its name")


def test_what_the_resume_needs_must_be_inside(tmp_path: Path) -> None:
    model, _ = small_model()
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "hrm_arc_step_40.pt")
    torch.save({"weights": model.state_dict()}, tmp_path / "hrm_arc_step_50.pt")
    found = select([CheckpointFolder(tmp_path)], needs=frozenset({"model_state_dict", "optimizer_state_dict"}))
    assert [reason for _, _, reason in rows(found)] == [
        "it has no 'model_state_dict' (it has: weights): the trainer must save its weights under that name",
        "it has no 'optimizer_state_dict' (it has: model_state_dict): "
        "the trainer must save its optimizer's state under that name",
    ]


@pytest.mark.fault("C10", by="manifest: the run id")
def test_c10_a_checkpoint_of_another_run_is_passed_over_unless_it_is_named(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 40)
    rewrite(path, run_id="T-9_x")
    found = select([CheckpointFolder(tmp_path, "T-1_x")])
    assert rows(found) == [(40, "passed", "its manifest names another run, 'T-9_x'")]
    named = select([CheckpointFolder(tmp_path, "T-1_x")], path=path).chosen
    assert named is not None and named.grade == "proven" and named.reason == "the file asked for"


def test_a_quarantined_checkpoint_is_not_opened_again(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    folder = CheckpointFolder(tmp_path, quarantined=frozenset({"hrm_arc_step_20.pt"}))
    assert rows(select([folder])) == [
        (20, "passed", "quarantined: it failed before"),
        (10, "chosen", "newest stable"),
    ]


def test_a_file_is_taken_by_path_whatever_its_name_also_through_a_link(tmp_path: Path) -> None:
    plain = save_plain(tmp_path, 40).rename(tmp_path / "my model.pt")
    found = chosen(tmp_path / "elsewhere", path=plain)
    assert (found.step, found.grade, found.path) == (40, "plausible", plain)
    (tmp_path / "link.pt").symlink_to(plain)
    assert chosen(tmp_path, path=tmp_path / "link.pt").path == plain
    missing = select([], path=tmp_path / "nothing.pt")
    assert missing.chosen is None and rows(missing) == [(None, "passed", "not there")]


def test_the_best_one_is_looked_for_along_the_history_and_says_its_score(tmp_path: Path) -> None:
    model, optimizer = small_model()
    best = {"score": 0.75, "weights": "raw"}
    for step in (10, 20):
        save_checkpoint(
            tmp_path / "parent", step, model=model, optimizer=optimizer, log_fn=quiet, best=best if step == 10 else None
        )
    save_steps(tmp_path / "child", 30)
    history = [CheckpointFolder(tmp_path / "child"), CheckpointFolder(tmp_path / "parent", max_step=20)]
    found = select(history, best=True).chosen
    assert found is not None and (found.step, found.grade) == (10, "proven")
    assert found.reason == "the best one; score 0.75 of its raw weights"
    early = [history[0], CheckpointFolder(tmp_path / "parent", max_step=5)]
    assert rows(select(early, best=True))[0][2] == "step 10 lies after the step 5 where the history left this run"
    assert select([history[0]], best=True) == Selection(None, ())


def test_the_best_one_of_a_foreign_tree_may_be_a_link_to_its_step(tmp_path: Path) -> None:
    path = save_plain(tmp_path, 40)
    (tmp_path / "hrm_arc_best.pt").symlink_to(path.name)
    assert chosen(tmp_path, best=True).step == 40


def test_without_proving_everything_but_the_digest_is_checked_and_that_is_said(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 10)
    data = bytearray(path.read_bytes())
    data[data.index(b"data/0") + 70] ^= 1
    path.write_bytes(data)
    assert chosen(tmp_path, prove=False).reason == "newest stable; digest not read yet"
    assert select([CheckpointFolder(tmp_path)]).chosen is None


def test_data_that_weights_only_refuses_is_taken_only_for_a_trainer_that_loads_otherwise(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    save_plain(tmp_path, 10, best_val_loss=numpy.float64(0.5))
    (_, _, reason), *_ = rows(select([CheckpointFolder(tmp_path)]))
    assert reason.startswith("it holds 'numpy") and reason.endswith("which loading with weights_only=True refuses")
    assert chosen(tmp_path, weights_only=False).step == 10


def test_a_trainer_that_loads_by_itself_may_call_its_weights_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "hrm_arc_step_7.pt"
    torch.save({"net": {"w": torch.ones(3)}, "opt": {}, "iteration": 7}, path)
    home = CheckpointFolder(tmp_path)
    assert select([home]).chosen is None
    reason = select([home]).candidates[0].reason
    assert reason == (
        "it has no 'model_state_dict' (it has: net, opt, iteration): the trainer must save its weights under that name"
    )
    taken = select([home], needs=frozenset(), weights_only=False).chosen
    assert taken is not None and taken.step == 7
    torch.save({f"{number}" + "x" * 99: 0 for number in range(20)}, tmp_path / "hrm_arc_step_8.pt")
    reason = select([home]).candidates[0].reason
    assert reason.count("xxx...") == 8 and " and 12 more): " in reason


@pytest.mark.fault("C1", by="manifest: size, digest and step")
@pytest.mark.fault("C2", by="manifest: size, digest and step")
@pytest.mark.fault("C3", by="manifest: size, digest and step")
@pytest.mark.fault("C4", by="manifest: size, digest and step")
@pytest.mark.fault("C12", by="manifest: size, digest and step")
@pytest.mark.fault("C18", by="manifest: size, digest and step")
@pytest.mark.fault("C19", by="manifest: size, digest and step")
def test_mutants_are_never_taken_as_proven_and_the_older_one_is_for_the_right_reason(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path / "checkpoints")
    seen = set()
    for mutant in nursery.mutants(MUTANTS, seed=1):
        assert nursery.judge(mutant) is None, mutant.kind
        seen.add(mutant.kind)
    assert seen == set(KINDS)


def test_choosing_among_a_thousand_with_ten_broken_ones_reads_eleven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = save_steps(tmp_path, 0)
    beside = json.loads(first.with_name(f"{first.name}.json").read_text())
    for step in range(1, 1001):
        name = f"hrm_arc_step_{step}.pt"
        (tmp_path / name).write_bytes(b"x" if step > 990 else b"")
        (tmp_path / f"{name}.json").write_text(json.dumps({**beside, "file": name, "step": step}))
    save_steps(tmp_path / "b", 990)
    for name in ("hrm_arc_step_990.pt", "hrm_arc_step_990.pt.json"):
        (tmp_path / "b" / name).replace(tmp_path / name)
    opened = []
    monkeypatch.setattr(manifest, "read_json", lambda path, **_: opened.append(path) or json.loads(path.read_text()))
    found = select([CheckpointFolder(tmp_path)])
    assert found.chosen is not None and found.chosen.step == 990
    assert len(opened) == 11 and len(found.candidates) == 1001


def test_what_a_recovery_passes_over_has_its_true_reason(tmp_path: Path) -> None:
    """The same words as in a plan: a folder, half a file, a sound file that nothing attests."""
    save_plain(tmp_path, 10)
    (tmp_path / "hrm_arc_step_20.pt").write_bytes((tmp_path / "hrm_arc_step_10.pt").read_bytes()[:-50])
    (tmp_path / "hrm_arc_step_30.pt").mkdir()
    found = rows(select([CheckpointFolder(tmp_path)], minimum="attested"))
    in_a_plan = rows(select([CheckpointFolder(tmp_path)]))
    assert found[:2] == in_a_plan[:2] and found[0] == (30, "passed", "not a regular file (directory)")
    assert "save was not completed" not in found[1][2]
    advice = "a recovery takes what is attested or proven; resume.sh takes it"
    assert found[2] == (10, "passed", f"plausible only (no manifest): {advice}")


@pytest.mark.parametrize("later", ["model_100.pt", "model_00100.pt"])
@pytest.mark.parametrize("step", [None, 100])
def test_of_two_files_of_one_step_the_later_whole_one_is_taken_and_the_other_named(
    tmp_path: Path, later: str, step: int | None
) -> None:
    names = ["model_100.pt", "model_00100.pt"]
    for name in names:
        write_checkpoint(tmp_path / name, 100)
        os.utime(tmp_path / name, (1e9 + (name == later), 1e9 + (name == later)))
    write_checkpoint(tmp_path / "model_50.pt", 50)
    home = CheckpointFolder(tmp_path, None, form.of({"pattern": "model_{step}.pt"}))
    selection = select([home], step=step, needs=frozenset())
    assert selection.chosen and selection.chosen.name == later
    (other,) = [one for one in selection.candidates if one.name in names and one.name != later]
    assert (other.verdict, other.reason) == ("passed", f"it is of step 100 too, and was written before '{later}'")
    (tmp_path / later).write_bytes(b"torn")
    assert select([home], step=step, needs=frozenset()).chosen.name == other.name


def test_a_time_in_milliseconds_is_a_step_and_what_has_more_digits_is_passed_over_with_a_reason(tmp_path: Path) -> None:
    for step in (370, 1_732_300_000_000, 10**15):
        write_checkpoint(tmp_path / f"model_{step}.pt", step)
    selection = select([CheckpointFolder(tmp_path, None, form.of({"pattern": "model_{step}.pt"}))], needs=frozenset())
    assert selection.chosen and selection.chosen.step == 1_732_300_000_000
    passed = {one.name: one.reason for one in selection.candidates if one.verdict == "passed"}
    assert (
        list(passed) == [f"model_{10**15}.pt"] and "its name is not 'model_{step}.pt'" in passed[f"model_{10**15}.pt"]
    )
