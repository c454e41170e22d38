"""seal_checkpoint: what a framework wrote is proven, made durable first; what is not whole is not sealed, and said."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest

from resume_helper import seal_checkpoint
from resumekit.base.errors import KitError
from resumekit.checkpoint import form, manifest
from resumekit.checkpoint.selection import CheckpointFolder, select
from support.places import ROOT
from support.runs import events

FOREIGN = ROOT / "tests" / "recorded" / "foreign"
KINDS = {
    "hf/checkpoint-4": "checkpoint-{step}", "accelerate/step_4": "step_{step}", "dcp/step-4": "step-{step}",
    "lightning/epoch=0-step=4.ckpt": "epoch={*}-step={step}.ckpt",
    "pair/model_4.safetensors": "model_{step}.safetensors",
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_new_process: None) -> Path:
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "T-1_x")
    return tmp_path


def place_of(folder: Path, name: str) -> Path:
    source, target = FOREIGN / name, folder / "checkpoints" / Path(name).name
    target.parent.mkdir(exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    return target


def taken(folder: Path, pattern: str, **how: object) -> object:
    folders = [CheckpointFolder(folder / "checkpoints", form=form.of({"pattern": pattern}))]
    return select(folders, needs=frozenset(), weights_only=False, **how).chosen


@pytest.mark.parametrize("name", KINDS)
def test_what_a_framework_wrote_is_proven_when_it_is_on_the_disk(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, synced = place_of(tmp_path, name), set()
    monkeypatch.setattr(os, "fsync", lambda number: synced.add(os.path.realpath(f"/proc/self/fd/{number}")))
    sealed = seal_checkpoint(place, 4, loss=0.5, metric={"eval_loss": 0.25}, best=True, log_fn=pytest.fail)
    known = manifest.read(place)
    assert sealed.read_bytes() == manifest.encode(known)
    files = [path for path in place.rglob("*") if path.is_file()] or [place]
    assert synced >= {str(path) for path in (*files, place.parent, *([place] if place.is_dir() else []))}
    assert (known.writer, known.step_completed, known.best_score) == ("seal_checkpoint", True, 0.25)
    assert known.finite is True
    assert taken(tmp_path, KINDS[name]).grade == "proven"
    assert taken(tmp_path, KINDS[name], best=True).name == place.name


def test_what_is_not_whole_or_of_another_step_is_not_sealed_and_said(run_dir: Path) -> None:
    place, said = place_of(run_dir, "hf/checkpoint-4"), []
    assert seal_checkpoint(place, 5, log_fn=said.append) is None
    assert "step 5 in the name, 4 inside" in said[0]
    (place / "model.safetensors").write_bytes(b"")
    assert seal_checkpoint(place, 4, log_fn=said.append) is None
    assert "'model.safetensors': too short" in said[1] and not (run_dir / "manifests").exists()
    assert seal_checkpoint(place.with_name("nothing"), 4, log_fn=said.append) is None
    assert [event["kind"] for event in events(run_dir, "warning")] == ["not_sealed"] * 3


def test_a_loss_that_is_not_finite_is_kept_as_evidence_and_never_resumed_from(run_dir: Path) -> None:
    place, said = place_of(run_dir, "hf/checkpoint-4"), []
    assert seal_checkpoint(place, 4, loss=math.nan, log_fn=said.append) is not None
    assert "never resumed from: not finite: its loss" in said[0] and taken(run_dir, "checkpoint-{step}") is None


def test_one_rank_seals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    place = place_of(tmp_path, "hf/checkpoint-4")
    assert seal_checkpoint(place, 4) is None and not (tmp_path / "manifests").exists()


@pytest.mark.parametrize(
    ("step", "how", "says"),
    [
        (-1, {}, "step '-1' is not a whole number"),
        (1.0, {}, "step '1.0' is not"),
        (4, {"best": True}, "best=True needs one"),
        (4, {"metric": {"a": 1, "b": 2}}, "must have one finite score"),
        (4, {"metric": {"a": math.nan}}, "must have one finite score"),
        (4, {"metric": 3}, "metric=3 must have"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(step: object, how: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(KitError) as caught:
        seal_checkpoint(tmp_path, step, **how)
    assert says in str(caught.value)
