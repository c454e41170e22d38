"""What a framework may remove from its run is held by hard links in the folder of the run that goes on from it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.files import UnreadableFile
from resumekit.base.paths import RunPaths
from resumekit.checkpoint import form, grades, manifest, transfer
from resumekit.checkpoint.selection import select
from resumekit.run import held
from resumekit.run.quarantine import put_in_quarantine
from resumekit.run.run_folder import Run, open_run
from resumekit.start import holding
from support.commands import Kit
from support.folder_trainer import PATTERN, save
from support.places import ROOT
from support.processes import wait_until
from support.runs import record

TRAINER = str(ROOT / "tests" / "support" / "folder_trainer.py")
FORM = form.of({"pattern": PATTERN})
PARENT, CHILD = "T-1_a_20261122-1000", "T-1_a_resume@4_20261122-1100"


def with_folders(kit: Kit, steps: int = 8, **trainer: Any) -> None:
    command = ["{python}", TRAINER, "--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}"]
    kit.config(
        trainer={"command": command, **trainer}, training={"max_steps": steps}, checkpoint={"pattern": PATTERN}
    )  # fmt: skip


def made(runs: Path, run_id: str, **fields: Any) -> Run:
    """Make a run of the kit's with a config that names folders."""
    run = runs / run_id
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"run_id": run_id, "experiment": "T-1", **fields}))
    (run / "resolved_config.json").write_text(json.dumps({"checkpoint": {"pattern": PATTERN}}))
    return open_run(run)


def attested(path: Path, run: Run) -> manifest.Manifest:
    return grades.attest(path, FORM.step_of(path.name), named=FORM, run_id=run.run_id)


@pytest.fixture
def family(tmp_path: Path) -> tuple[Run, Run]:
    """A parent with an attested checkpoint of step 4, and a child that holds it."""
    parent = made(tmp_path, PARENT)
    path = save(parent.paths.checkpoints, 4)
    known = attested(path, parent)
    child = made(
        tmp_path, CHILD, parent_run_id=PARENT, parent_step=4, checkpoint=f"../{PARENT}/checkpoints/checkpoint-4"
    )  # fmt: skip
    held.hold(path, (), known, child.paths)
    return parent, child


def chosen(*history: tuple[Run, int | None]) -> Path | None:
    found = select(held.folders_along(history), needs=frozenset(), weights_only=False, minimum="attested").chosen
    return found and found.path


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_a_branch_outlives_the_rotation_of_its_live_parent(kit: Kit) -> None:
    with_folders(kit, steps=20)
    parents, childs = kit.folder / "parents", kit.folder / "childs"
    parent_job = kit.popen("run", "T-1", env={"TOY_ARGS": f"--wait {shlex.quote(f'8:{parents}')}"})
    parent = kit.started()
    first = parent / "checkpoints/checkpoint-4"
    wait_until((parent / "manifests/checkpoint-4.json").exists, "an attested checkpoint of step 4")
    child_job = kit.popen("resume", "T-1", "--step", "4", env={"TOY_ARGS": f"--wait {shlex.quote(f'5:{childs}')}"})
    child = kit.started(2)
    own = child / "held/checkpoint-4"
    assert inodes(own) == inodes(first), "links, no copies"
    assert record(child)["argv"][-1] == str(own), "the live parent may remove its own before it is loaded"
    assert record(child)["checkpoint"] == f"../{parent.name}/checkpoints/checkpoint-4"
    assert "holds 'checkpoint-4' of its parent (0.0 MB)" in kit("runs", child.name).stdout
    parents.touch()
    assert parent_job.wait(60) == 0 and not first.exists()
    child_job.terminate()
    _, said = child_job.communicate(timeout=60)
    assert b"the checkpoint is held by links (0.0 MB), until the new run has one of its own" in said
    page = json.loads(kit("resume", child.name, "--dry-run", "--json").stdout)
    assert page["checkpoint"]["path"] == str(own) and page["checkpoint"]["run_id"] == parent.name
    assert page["checkpoint"]["grade"] == "attested"
    kit("resume", child.name)
    last = kit.run_dirs()[-1]
    assert record(last)["checkpoint"] == record(child)["checkpoint"], "where it lay first"
    assert not (last / "held").exists(), "it has an attested one of its own"
    assert "holds 'checkpoint-4' of its parent (0.0 MB) no longer" in (last / "logs/train.log").read_text()
    assert own.is_dir(), "what another run holds is its own"


def test_a_parent_that_has_ended_is_loaded_from_where_it_is(kit: Kit) -> None:
    with_folders(kit)
    kit("run", "T-1")
    kit("resume", "T-1", "--step", "4", env={"TOY_ARGS": "--save-every 99"})
    parent, child = kit.run_dirs()
    assert record(child)["argv"][-1] == str(parent / "checkpoints/checkpoint-4")
    assert (child / "held/checkpoint-4").is_dir()


def test_a_file_and_what_belongs_to_it_are_held(tmp_path: Path) -> None:
    for name in ("model_4.safetensors", "optim_4.pt"):
        (tmp_path / name).write_bytes(name.encode())
    paths = RunPaths(tmp_path / "run")
    paths.run_dir.mkdir()
    held.hold(tmp_path / "model_4.safetensors", ("optim_4.pt",), None, paths)
    assert inodes(paths.held).items() <= inodes(tmp_path).items() and len(inodes(paths.held)) == 2
    transfer.remove_links("model_4.safetensors", paths.held, ("optim_4.pt",))
    assert inodes(paths.held) == {} and (tmp_path / "optim_4.pt").exists()


def test_where_no_link_can_be_made_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = save(tmp_path, 4), made(tmp_path, CHILD)
    link, made_links = os.link, []

    def third_fails(source: Any, target: Any) -> None:
        made_links.append(target)
        if len(made_links) == 3:
            raise OSError(errno.EMLINK, "Too many links")
        link(source, target)

    monkeypatch.setattr(os, "link", third_fails)
    with pytest.raises(OSError, match="Too many links"):
        held.hold(path, (), None, run.paths)
    assert not run.paths.held.exists() and len(list(path.iterdir())) == 7


def test_a_file_that_is_exchanged_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run, link = save(tmp_path, 4), made(tmp_path, CHILD), os.link

    def exchanged(source: Any, target: Any) -> None:
        if str(source).endswith("optimizer.pt"):
            os.unlink(source)
            Path(source).write_bytes(b"another")
        link(source, target)

    monkeypatch.setattr(os, "link", exchanged)
    with pytest.raises(UnreadableFile, match=r"'optimizer\.pt' changed while it was linked"):
        held.hold(path, (), None, run.paths)
    assert not run.paths.held.exists()


def test_what_is_held_counts_with_its_manifest_when_its_first_place_is_empty(family: tuple[Run, Run]) -> None:
    parent, child = family
    first = parent.paths.checkpoints / "checkpoint-4"
    assert chosen((child, None), (parent, 4)) == first, "as long as it is there"
    assert len(held.folders_along([(child, None), (parent, 4)])) == 2, "it is one checkpoint, and listed once"
    shutil.rmtree(first)
    assert chosen((child, None), (parent, 4)) == child.paths.held / "checkpoint-4"
    assert chosen((child, None), (parent, 3)) is None, "the history has left its writer before it"
    assert chosen((child, None)) is None, "its writer is here, and no part of what was asked for"
    put_in_quarantine(parent.paths, "checkpoint-4", "it failed")
    assert chosen((child, None), (parent, 4)) is None


def test_half_a_removal_of_the_first_place_does_no_harm(family: tuple[Run, Run]) -> None:
    parent, child = family
    (parent.paths.checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    assert chosen((child, None), (parent, 4)) == child.paths.held / "checkpoint-4"


def test_what_is_held_of_a_run_whose_folder_is_gone_counts(family: tuple[Run, Run]) -> None:
    parent, child = family
    shutil.rmtree(parent.paths.run_dir)
    assert chosen((child, None)) == child.paths.held / "checkpoint-4"


def test_it_is_let_go_for_an_attested_one_and_for_nothing_less(family: tuple[Run, Run]) -> None:
    parent, child = family
    assert held.let_go(child) is None
    own = save(child.paths.checkpoints, 8)
    assert held.let_go(child) is None and held.of(child), "it is plausible, and a recovery would not take it"
    attested(own, child)
    assert held.let_go(child) == (
        "holds 'checkpoint-4' of its parent (0.0 MB) no longer: 'checkpoint-8' of its own is attested"
    )
    assert not child.paths.held.exists() and own.exists()
    assert len(list((parent.paths.checkpoints / "checkpoint-4").iterdir())) == 7, "the parent's own stays"


def test_a_link_in_the_place_of_held_is_not_followed(family: tuple[Run, Run], tmp_path: Path) -> None:
    _, child = family
    elsewhere = tmp_path / "elsewhere"
    child.paths.held.rename(elsewhere)
    child.paths.held.symlink_to(elsewhere)
    attested(save(child.paths.checkpoints, 8), child)
    assert held.let_go(child) is None and (elsewhere / "checkpoint-4").is_dir()
    with pytest.raises(NotADirectoryError):
        transfer.remove_links("checkpoint-4", child.paths.held)


def test_what_cannot_be_held_is_said_with_its_reason(family: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    parent, _ = family
    path, runs = parent.paths.checkpoints / "checkpoint-4", parent.paths.run_dir.parent
    assert holding._why_not(path, (), parent, runs) is None
    assert holding._why_not(path, (), parent, Path("/proc")) == "it lies on another file system"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert holding._why_not(path, (), parent, runs) == "it belongs to another user"
    parent.record.clear()
    reason = holding._why_not(path, (), parent, runs)
    assert reason == "the kit did not make that folder, and changes nothing in it"


def test_a_folder_that_the_kit_did_not_make_is_told_to_be_unheld_once(kit: Kit) -> None:
    with_folders(kit)
    save(kit.runs / "T-1_theirs/checkpoints", 4)
    said = kit("resume", "T-1").stderr
    assert said.count("'checkpoint-4' is not held (the kit did not make that folder, and changes nothing in it)") == 1
    assert not (kit.run_dirs()[-1] / "held").exists()
