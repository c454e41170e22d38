"""Manifests for checkpoints of a trainer that writes none: when one is given, renewed, and left alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.base import file_systems
from resumekit.base.files import TempFile
from resumekit.base.paths import RunPaths, manifest_path
from resumekit.checkpoint import form, one_pass
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.process import attest, kept_copies
from resumekit.run.run_folder import Run
from support.runs import events
from support.toy_trainer import write_checkpoint


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An attester of a run in tmp_path, and `rest()`: two looks, as far apart as a file at rest needs."""
    clock = [100.0]
    monkeypatch.setattr(attest.time, "monotonic", lambda: clock[0])
    run = Run(RunPaths(tmp_path), {"run_id": tmp_path.name})
    looker = attest.Attester(run)

    def rest() -> None:
        for _ in range(3):
            clock[0] += attest.ALL_S + attest.REST_S
            looker.look()
            looker.settle()

    return SimpleNamespace(folder=run.paths.checkpoints, look_last=looker.look_last, rest=rest)


def said_of(path: Path) -> dict[str, Any]:
    return json.loads(manifest_path(path).read_text())


def test_a_file_whose_writer_paused_in_the_middle_is_attested_when_it_is_whole(looked: Any) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    looked.rest()
    assert not manifest_path(path).exists(), "half a file is none"
    with open(path, "ab") as file:
        file.write(whole[-40:])
    looked.rest()
    assert said_of(path)["size"] == len(whole)


@pytest.mark.parametrize("how", ["in place", "moved there"])
def test_a_file_that_is_written_again_gets_a_new_manifest(looked: Any, how: str, tmp_path: Path) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    looked.rest()
    before = said_of(path)
    write_checkpoint(tmp_path / "other", 2, best_val_loss=0.25)
    if how == "in place":
        path.write_bytes((tmp_path / "other").read_bytes())
    else:
        (tmp_path / "other").replace(path)
    looked.rest()
    assert said_of(path)["sha256"] != before["sha256"]
    assert [event["sha256"] for event in events(tmp_path, "checkpoint")] == [before["sha256"], said_of(path)["sha256"]]


def test_at_the_end_of_a_run_every_file_is_looked_at_once_more(looked: Any, tmp_path: Path) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    looked.rest()
    before = said_of(path)["sha256"]
    write_checkpoint(tmp_path / "other", 2, best_val_loss=0.25)
    path.write_bytes((tmp_path / "other").read_bytes())
    looked.look_last()
    assert said_of(path)["sha256"] != before
    assert select([CheckpointFolder(looked.folder)]).chosen.grade == "attested"


def test_a_manifest_of_the_trainer_s_is_never_renewed(looked: Any) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    looked.rest()
    its = {**said_of(path), "writer": "save_checkpoint", "finite": True, "step_completed": True}
    manifest_path(path).write_text(json.dumps(its))
    with open(path, "ab") as file:
        file.write(b"more")
    looked.rest()
    looked.look_last()
    assert said_of(path) == its
    assert "4 bytes longer than its manifest says" in select([CheckpointFolder(looked.folder)]).candidates[0].reason


@pytest.mark.parametrize("torn", [b"", b'{"writer": "side'], ids=["empty", "half"])
def test_a_torn_manifest_is_made_again_and_until_then_the_file_is_judged_as_one_without(
    looked: Any, torn: bytes
) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    manifest_path(path).write_bytes(torn)
    found = select([CheckpointFolder(looked.folder)])
    assert found.chosen.grade == "plausible" and "its manifest is torn" in found.chosen.reason
    looked.rest()
    assert said_of(path)["step"] == 2
    assert select([CheckpointFolder(looked.folder)]).chosen.grade == "attested"


def test_a_full_disk_leaves_no_half_manifest_and_it_is_tried_again(
    looked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    real = TempFile.write

    def full(temp: TempFile, data: bytes) -> int:
        real(temp, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TempFile, "write", full)
    looked.rest()
    assert [one.name for one in looked.folder.iterdir()] == [path.name]
    monkeypatch.setattr(TempFile, "write", real)
    for _ in range(5):
        looked.rest()
    assert said_of(path)["step"] == 2


def test_a_file_that_is_still_written_to_while_it_is_read_gets_no_manifest(
    looked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = looked.folder / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    real = one_pass.read

    def read(descriptor: int, *arguments: Any, **more: Any) -> one_pass.Found:
        with open(path, "ab") as file:
            file.write(b"x")
        return real(descriptor, *arguments, **more)

    monkeypatch.setattr(one_pass, "read", read)
    looked.rest()
    assert not manifest_path(path).exists()


def test_a_whole_file_that_was_written_again_is_not_called_truncated(looked: Any, tmp_path: Path) -> None:
    for step in (2, 4):
        write_checkpoint(looked.folder / f"hrm_arc_step_{step}.pt", step)
    looked.rest()
    write_checkpoint(tmp_path / "other", 4, more=list(range(50)))
    (looked.folder / "hrm_arc_step_4.pt").write_bytes((tmp_path / "other").read_bytes())
    found = select([CheckpointFolder(looked.folder)])
    assert found.chosen.step == 2
    assert found.candidates[0].reason == "it was written again since it was attested"


@pytest.fixture
def fixed(looked: Any, tmp_path: Path) -> Any:
    """As `looked`, of a run whose checkpoints all have one name; `step(n)` writes the next and comes to rest."""
    section = {"pattern": "ckpt.pt", "keep_last": 2}
    (tmp_path / "resolved_config.json").write_text(json.dumps({"checkpoint": section}))

    def step(number: int) -> None:
        write_checkpoint(looked.folder / "ckpt.pt", number)
        looked.rest()

    return SimpleNamespace(**vars(looked), step=step)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_of_a_checkpoint_that_is_written_over_the_last_states_are_kept(fixed: Any) -> None:
    for number in (10, 20, 30):
        fixed.step(number)
    copies = {"ckpt@20.pt", "ckpt@20.pt.json", "ckpt@30.pt", "ckpt@30.pt.json"}
    assert names(fixed.folder) == {"ckpt.pt", "ckpt.pt.json", *copies}
    assert said_of(fixed.folder / "ckpt@30.pt")["sha256"] == said_of(fixed.folder / "ckpt.pt")["sha256"]
    (fixed.folder / "ckpt.pt").write_bytes(b"PK\3\4 half of the next")
    found = select([CheckpointFolder(fixed.folder, form=form.of({"pattern": "ckpt.pt"}))])
    assert (found.chosen.name, found.chosen.grade) == ("ckpt@30.pt", "attested")


def test_of_the_last_state_of_all_no_copy_is_made(fixed: Any) -> None:
    write_checkpoint(fixed.folder / "ckpt.pt", 10)
    fixed.look_last()
    assert names(fixed.folder) == {"ckpt.pt", "ckpt.pt.json"}


@pytest.mark.parametrize("why", ["no room", "written again"])
def test_a_copy_that_cannot_be_made_is_said_once_and_nothing_of_it_is_left(
    fixed: Any, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "no room":
        monkeypatch.setattr(kept_copies, "_ROOM", 1 << 60)
    else:
        real = kept_copies._copy

        def written_again(*args: Any) -> str:
            digest = real(*args)
            write_checkpoint(tmp_path / "other", 99)
            (fixed.folder / "ckpt.pt").write_bytes((tmp_path / "other").read_bytes())
            return digest

        monkeypatch.setattr(kept_copies, "_copy", written_again)
    for number in (10, 20):
        fixed.step(number)
    assert names(fixed.folder) == {"ckpt.pt", "ckpt.pt.json"}
    (warning,) = events(tmp_path, "warning")
    assert warning["kind"] == "not_kept" and "no copy of 'ckpt.pt' of step 10 is kept" in warning["message"]
    assert ("no room" if why == "no room" else "written again") in warning["message"]


@pytest.mark.parametrize(
    ("size", "kind", "is_asked_for", "is_kept"),
    [
        ("large", "nfs4", False, False),
        ("large", "nfs4", True, True),
        ("large", None, False, True),
        ("small", "nfs4", False, True),
    ],
)
def test_a_large_copy_over_a_network_is_kept_only_where_it_is_asked_for(
    fixed: Any, size: str, kind: str | None, is_asked_for: bool, is_kept: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "resolved_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"checkpoint": {**config["checkpoint"], "copy_large": is_asked_for}}))
    monkeypatch.setattr(kept_copies, "LARGE_BYTES", 0 if size == "large" else 5_000_000_000)
    monkeypatch.setattr(file_systems, "network_type", lambda folder: kind)
    for number in (10, 20):
        fixed.step(number)
    assert ("ckpt@10.pt" in names(fixed.folder)) is is_kept
    if not is_kept:
        (warning,) = events(tmp_path, "warning")
        assert "of step 10 is kept: it has 0.0 GB and lies on a network file system (nfs4)" in warning["message"]
        assert warning["message"].endswith(": checkpoint.copy_large: true has one kept all the same")
