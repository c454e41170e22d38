"""Checkpoints as frameworks write them: recognised, whole or refused with the reason, attested, chosen. No torch.

recorded/foreign/ was written by the packages themselves (tools/make_foreign_fixtures.py).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from resumekit.base.files import UnreadableFile
from resumekit.base.paths import manifest_path, step_of_name
from resumekit.checkpoint import dcp_metadata, form, grades, kinds, layout, manifest, transfer
from resumekit.checkpoint.selection import CheckpointFolder, Selection, select
from support.places import ROOT
from support.toy_trainer import write_checkpoint

FOREIGN = ROOT / "tests" / "recorded" / "foreign"
DEFAULT = form.of(None)
HF, ACCELERATE, DCP, LIGHTNING = "hf/checkpoint-4", "accelerate/step_4", "dcp/step-4", "lightning/epoch=0-step=4.ckpt"
FOLDERS = (HF, ACCELERATE, DCP)


def copied(name: str, folder: Path, as_name: str | None = None) -> Path:
    """Copy a recorded checkpoint into a folder of checkpoints."""
    source, target = FOREIGN / name, folder / (as_name or Path(name).name)
    folder.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    return target


def chosen(folder: Path, section: dict | None = None, **how: object) -> Selection:
    folders = [CheckpointFolder(folder, form=form.of(section))]
    return select(folders, needs=frozenset(), weights_only=False, **how)


def reasons(selection: Selection) -> dict[str, str]:
    return {one.name: one.reason for one in selection.candidates if one.verdict == "passed"}


@pytest.mark.parametrize(
    ("name", "kind", "step", "best", "ranks"),
    [
        (HF, form.HF, 4, "checkpoint-4", 1),
        (ACCELERATE, form.ACCELERATE, None, None, 1),
        ("accelerate/checkpoints/checkpoint_1", form.ACCELERATE, None, None, 1),
        (DCP, form.DCP, None, None, 2),
        ("dcp/alone-4", form.DCP, None, None, 1),
        (LIGHTNING, form.FILE, 4, "epoch=0-step=4.ckpt", None),
        ("nanogpt/ckpt.pt", form.FILE, 4, None, None),
        ("hrm/step_4", form.FILE, None, None, None),
        ("pair/model_4.safetensors", form.SAFETENSORS, 4, None, None),
    ],
)
def test_what_a_framework_writes_is_known_for_what_it_is(
    name: str, kind: str, step: int | None, best: str | None, ranks: int | None
) -> None:
    found = kinds.look_inside(FOREIGN / name, DEFAULT)
    summary = found.summary
    assert (found.kind, summary.step, summary.best, summary.world_size) == (kind, step, best, ranks)
    assert summary.tensors
    known = {*summary.keys, *summary.known_as}
    assert "model_state_dict" in known or name == "hrm/step_4"
    assert "optimizer_state_dict" in known or name in ("hrm/step_4", "pair/model_4.safetensors", "dcp/alone-4")


def test_a_number_of_thousands_of_digits_in_a_files_metadata_is_a_text(tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"step": "9" * 5000}}).encode()
    (tmp_path / "m_7.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert kinds.look_inside(tmp_path / "m_7.safetensors", DEFAULT).summary.step is None


def test_one_object_around_all_else_is_looked_into() -> None:
    summary = kinds.look_inside(FOREIGN / "dcp/alone-4", DEFAULT).summary
    assert summary.keys == ("model", "train")
    wrapped = dcp_metadata.read((FOREIGN / "dcp/step-4/.metadata").read_bytes())
    wrapped = wrapped._replace(
        tensors={f"app.{name}": one for name, one in wrapped.tensors.items()},
        paths={f"app.{name}": ("app", *path) for name, path in wrapped.paths.items()},
    )
    with layout.open_checkpoint(FOREIGN / "dcp/step-4") as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcp_metadata, "read", lambda data: wrapped)
        found = kinds.inspect(opened, DEFAULT, has_step=True).summary
    assert found.keys == ("app",) and found.known_as == ("model_state_dict", "optimizer_state_dict")
    assert list(found.tensors) == ["weight"]


# Files without which a folder is whole as far as anything in it tells.
UNNOTICED = {HF: {"config.json", "training_args.bin"}, ACCELERATE: {"scheduler.bin"}}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_one_of_its_files_or_with_half_of_one_is_refused(name: str, tmp_path: Path) -> None:
    whole = copied(name, tmp_path / "whole")
    for file in sorted(os.listdir(whole)):
        torn = copied(name, tmp_path / "torn", file)
        (torn / file).unlink()
        if file in UNNOTICED.get(name, ()):
            kinds.look_inside(torn, DEFAULT)
        else:
            with pytest.raises(UnreadableFile):
                kinds.look_inside(torn, DEFAULT)
        cut = copied(name, tmp_path / "cut", file)
        data = (cut / file).read_bytes()
        for size in {0, len(data) // 2, len(data.rstrip()) - 1}:
            (cut / file).write_bytes(data[:size])
            with pytest.raises(UnreadableFile):
                kinds.look_inside(cut, DEFAULT)


@pytest.mark.parametrize(
    ("name", "gone", "says"),
    [
        (HF, "trainer_state.json", "no trainer_state.json, which is written last: its save was not completed"),
        (HF, "model.safetensors", "no weights in it"),
        (HF, "optimizer.pt", "no optimizer in it (optimizer.pt, optimizer.bin): weights alone do not go on training"),
        (HF, "scheduler.pt", "no scheduler in it, which the Trainer saves with its optimizer"),
        (ACCELERATE, "random_states_0.pkl", "no random_states_*.pkl, which is written last"),
        (DCP, ".metadata", "no .metadata, which is written last: its save was not completed"),
        (DCP, "__1_0.distcp", "'__1_0.distcp', which its .metadata names, is not there"),
    ],
)
def test_the_reason_says_what_is_missing(name: str, gone: str, says: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    (folder / gone).unlink()
    with pytest.raises(UnreadableFile) as caught:
        kinds.look_inside(folder, DEFAULT)
    assert says in str(caught.value)


@pytest.mark.parametrize(("name", "file"), [(ACCELERATE, "random_states_{}.pkl"), (HF, "rng_state_{}.pth")])
def test_what_a_rank_has_not_saved_is_missed(name: str, file: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    only = next(path for path in folder.iterdir() if path.name.startswith(file.partition("{")[0].rstrip("_")))
    for rank in (0, 1, 2):
        shutil.copy(only, folder / "copy")
        (folder / "copy").rename(folder / file.format(rank))
    assert kinds.look_inside(folder, DEFAULT).summary.world_size == 3
    (folder / file.format(1)).unlink()
    with pytest.raises(UnreadableFile, match=f"what rank 1 saves like '{file.format(2)}' is not there"):
        kinds.look_inside(folder, DEFAULT)


def test_a_save_that_says_itself_that_it_is_not_done_is_believed(tmp_path: Path) -> None:
    folder = copied(HF, tmp_path)
    (folder / "checkpoint-is-incomplete.txt").touch()
    assert (
        "checkpoint-is-incomplete.txt is in it"
        in reasons(chosen(tmp_path, {"pattern": "checkpoint-{step}"}))[folder.name]
    )


def test_a_file_that_older_ones_have_and_the_newest_lacks_is_missed(tmp_path: Path) -> None:
    copied("accelerate/checkpoints/checkpoint_1", tmp_path)
    (copied("accelerate/checkpoints/checkpoint_1", tmp_path, "checkpoint_2") / "scheduler.bin").unlink()
    found = chosen(tmp_path, {"pattern": "checkpoint_{step}"})
    assert found.chosen.step == 1
    assert reasons(found)["checkpoint_2"] == "no scheduler.bin, which 'checkpoint_1' has: its save was not completed"


def test_what_another_run_or_a_person_has_put_beside_it_is_not_missed(tmp_path: Path) -> None:
    section = {"pattern": "checkpoint_{step}"}
    first = copied("accelerate/checkpoints/checkpoint_1", tmp_path / "own")
    copied("accelerate/checkpoints/checkpoint_1", tmp_path / "own", "checkpoint_2")
    (first / "NOTES.md").write_text("a person's")
    assert chosen(tmp_path / "own", section).chosen.step == 2
    child = copied("accelerate/checkpoints/checkpoint_1", tmp_path / "child", "checkpoint_3")
    (child / "scheduler.bin").unlink()  # of a run whose config has none any more
    history = [CheckpointFolder(one.parent, form=form.of(section)) for one in (child, first)]
    assert select(history, needs=frozenset(), weights_only=False).chosen.step == 3


def test_a_file_of_words_is_missed_where_two_before_it_have_it(tmp_path: Path) -> None:
    folders = [copied("accelerate/checkpoints/checkpoint_1", tmp_path, f"checkpoint_{step}") for step in (1, 2, 3)]
    for folder in folders[:2]:
        (folder / "config.json").write_text("{}")
    found = chosen(tmp_path, {"pattern": "checkpoint_{step}"})
    assert found.chosen.step == 2
    assert reasons(found)["checkpoint_3"] == "no config.json, which 'checkpoint_2' has: its save was not completed"


@pytest.mark.parametrize(("section", "name"), [
    ({"pattern": "checkpoint-{step}"}, HF), ({"pattern": "step_{step}"}, ACCELERATE), ({"pattern": "step-{step}"}, DCP),
    ({"pattern": "epoch={*}-step={step}.ckpt"}, LIGHTNING),
    ({"pattern": "model_{step}.safetensors", "with": ["optim_{step}.pt"]}, "pair/model_4.safetensors"),
])  # fmt: skip
def test_an_attested_one_is_known_by_every_byte_of_its_files_and_by_no_later_one(
    section: dict, name: str, tmp_path: Path
) -> None:
    place = copied(name, tmp_path / "checkpoints")
    if "with" in section:
        copied("pair/optim_4.pt", tmp_path / "checkpoints")
    known = grades.attest(place, 4, named=form.of(section))
    assert manifest.read(place) == known
    assert manifest_path(place).parent.name == ("manifests" if place.is_dir() else "checkpoints")
    assert chosen(place.parent, section).chosen.grade == "attested"
    assert len(known.files) == (0 if name == LIGHTNING else len(known.files)) and known.finite in (True, None)
    if place.is_dir():
        (place / "README.md").write_text("made later\n")
        assert chosen(place.parent, section).chosen.grade == "attested"
    files = [place / one.name if place.is_dir() else place.parent / one.name for one in known.files] or [place]
    for file in files:
        data = file.read_bytes()
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        file.write_bytes(changed)
        os.utime(file, ns=(1, 1))  # not written again by its trainer, as far as its time tells
        assert chosen(place.parent, section).chosen is None, file
        said = reasons(chosen(place.parent, section))[place.name]
        assert "from its manifest" in said, said
        file.write_bytes(data)
        os.utime(file, ns=(1, 1))
    assert chosen(place.parent, section).chosen is not None


def test_what_is_odd_in_a_folder_is_refused_before_it_is_read(tmp_path: Path) -> None:
    def link(place: Path) -> None:
        (place / "extra").symlink_to("/etc/passwd")

    def deep(place: Path) -> None:
        (place / "a/b/c/d/e").mkdir(parents=True)

    said = {"link": "a link", "fifo": "not a regular file (fifo)", "deep": "a folder too deep inside"}
    for name, make in {"link": link, "fifo": lambda place: os.mkfifo(place / "pipe"), "deep": deep}.items():
        place = copied(HF, tmp_path / name)
        make(place)
        with pytest.raises(UnreadableFile, match="in it is") as caught:
            layout.open_checkpoint(place)
        assert said[name] in str(caught.value)


def test_a_metadata_that_names_what_lies_outside_opens_nothing(tmp_path: Path) -> None:
    place = copied(DCP, tmp_path)
    data = (place / ".metadata").read_bytes()
    (place / ".metadata").write_bytes(data.replace(b"__1_0.distcp", b"/etc/passwd\0"))
    with pytest.raises(UnreadableFile):
        kinds.look_inside(place, DEFAULT)


def test_the_best_is_the_one_that_the_framework_has_noted(tmp_path: Path) -> None:
    copied("hf/checkpoint-2", tmp_path)
    newest = copied(HF, tmp_path)
    state = json.loads((newest / "trainer_state.json").read_text())
    (newest / "trainer_state.json").write_text(
        json.dumps({**state, "best_model_checkpoint": "/elsewhere/checkpoint-2"})
    )
    assert chosen(tmp_path, {"pattern": "checkpoint-{step}"}, best=True).chosen.name == "checkpoint-2"
    copied("lightning/last.ckpt", tmp_path / "l", "epoch=1-step=8.ckpt")
    copied(LIGHTNING, tmp_path / "l")
    assert chosen(tmp_path / "l", {"pattern": "epoch={*}-step={step}.ckpt"}, best=True).chosen.step == 4


def test_files_that_belong_together_are_taken_together_or_not_at_all(tmp_path: Path) -> None:
    section = {"pattern": "model_{step}.safetensors", "with": ["optim_{step}.pt"]}
    copied("pair/model_4.safetensors", tmp_path)
    assert (
        "'optim_4.pt', which belongs to it (checkpoint.with)"
        in reasons(chosen(tmp_path, section))["model_4.safetensors"]
    )
    companion = copied("pair/optim_4.pt", tmp_path)
    assert "optimizer_state_dict" in chosen(tmp_path, section).chosen.inside.keys
    companion.write_bytes(companion.read_bytes()[:-9])
    assert "'optim_4.pt', which belongs to it" in reasons(chosen(tmp_path, section))["model_4.safetensors"]


def test_one_name_for_all_steps_has_the_step_inside(tmp_path: Path) -> None:
    copied("nanogpt/ckpt.pt", tmp_path)
    assert chosen(tmp_path, {"pattern": "ckpt.pt"}).chosen.step == 4
    write_checkpoint(tmp_path / "ckpt@2.pt", 2)  # a copy that the sidecar has kept
    found = chosen(tmp_path, {"pattern": "ckpt.pt"})
    assert [(one.step, one.name) for one in found.candidates] == [(4, "ckpt.pt"), (2, "ckpt@2.pt")]
    copied("nanogpt/ckpt.pt", tmp_path / "c", "ckpt@4.pt")
    assert "taken from its name" not in chosen(tmp_path / "c", {"pattern": "ckpt.pt"}).chosen.reason
    assert chosen(tmp_path, {"pattern": "ckpt.pt"}, step=2).chosen.name == "ckpt@2.pt"
    (tmp_path / "ckpt.pt").write_bytes(b"PK\3\4 half of a save")
    found = chosen(tmp_path, {"pattern": "ckpt.pt"})
    assert found.chosen.step == 2 and "truncated" in reasons(found)["ckpt.pt"]
    copied("hrm/step_4", tmp_path / "w", "ckpt.pt")
    assert (
        "checkpoint.keys.step names it (it has: weight)"
        in reasons(chosen(tmp_path / "w", {"pattern": "ckpt.pt"}))["ckpt.pt"]
    )


def test_any_other_file_or_folder_is_taken_by_what_the_config_says(tmp_path: Path) -> None:
    (tmp_path / "state_5.npz").write_bytes(b"anything")
    assert chosen(tmp_path, {"pattern": "state_{step}.npz"}).chosen is None
    assert chosen(tmp_path, {"pattern": "state_{step}.npz", "kind": "other"}).chosen.grade == "plausible"
    folder = tmp_path / "global_step7"
    folder.mkdir()
    (folder / "mp_rank_00_model_states.npz").write_bytes(b"anything")
    section = {"pattern": "global_step{step}", "complete_when": "latest"}
    assert "no 'latest' (checkpoint.complete_when)" in reasons(chosen(tmp_path, section))["global_step7"]
    (folder / "latest").touch()
    assert chosen(tmp_path, section).chosen.step == 7
    assert (
        "checkpoint.complete_when names the file"
        in reasons(chosen(tmp_path, {"pattern": "global_step{step}"}))["global_step7"]
    )


@pytest.mark.parametrize(("pattern", "name", "step"), [
    ("epoch={*}-step={step}.ckpt", "epoch=3-step=400.ckpt", 400),
    ("epoch={*}-step={step}.ckpt", "epoch=3-step=400-v1.ckpt", None),
    ("step={step}-val_loss={*}.ckpt", "step=00100-val_loss=0.25.ckpt", 100),
    ("{*}_{step}", "a_b_7", 7), ("{*}_{step}", "a/b_7", None),
    ("m+{step}{*}", "m+7", 7), ("m+{step}{*}", "mm7", None),
])  # fmt: skip
def test_a_pattern_may_leave_out_what_changes(pattern: str, name: str, step: int | None) -> None:
    assert step_of_name(name, pattern) == step


@pytest.mark.parametrize(("name", "unsafe"), [
    ("dcp/step-4", ("optim.param_groups.0.lr",)),  # a pickled value
    ("hf/checkpoint-4", ("numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "training_args.bin")),
    ("pair/model_4.safetensors", ()), ("nanogpt/ckpt.pt", ()),
])  # fmt: skip
def test_what_a_loader_may_unpickle_is_named(name: str, unsafe: tuple[str, ...], tmp_path: Path) -> None:
    assert kinds.look_inside(FOREIGN / name, DEFAULT).summary.unsafe == unsafe
    (tmp_path / "x_1").mkdir()
    for file in ("x_1/latest", "x_1/state.npz", "y_1"):
        (tmp_path / file).write_bytes(b"anything")
    assert kinds.look_inside(tmp_path / "x_1", form.of({"complete_when": "latest"})).summary.unsafe == (
        "latest",
        "state.npz",
    )
    assert kinds.look_inside(tmp_path / "y_1", form.of({"kind": "other"})).summary.unsafe == ("y_1",)


def test_a_trainer_that_loads_with_the_kit_is_offered_files_of_torch_alone(tmp_path: Path) -> None:
    copied(HF, tmp_path)
    copied("pair/model_4.safetensors", tmp_path)
    for pattern, says in (("checkpoint-{step}", "(directory)"), ("model_{step}.safetensors", "load_resume_bundle")):
        found = select([CheckpointFolder(tmp_path, form=form.of({"pattern": pattern}))])
        assert found.chosen is None and says in next(iter(reasons(found).values()))


@pytest.mark.parametrize(("name", "pattern"), [
    ("checkpoint-25", "checkpoint-{step}"), ("step_25", "step_{step}"), ("model_25.pt", "model_{step}.pt"),
    ("epoch=0-step=25.ckpt", "epoch={*}-step={step}.ckpt"), ("hrm_v2_step_10.pt", "hrm_v2_step_{step}.pt"),
    ("step=7-val_loss=0.25.ckpt", "step={step}-val_loss={*}.ckpt"), ("iter_0000500", "iter_{step}"),
    ("epoch_3.pt", "epoch_{step}.pt"), ("ckpt.pt", None), ("m_1234567890123456.pt", None), ("a_0.25.pt", None),
])  # fmt: skip
def test_the_pattern_that_would_fit_a_name_is_known(name: str, pattern: str | None) -> None:
    assert form.likely_pattern(name) == pattern
    assert pattern is None or step_of_name(name, pattern) is not None


@pytest.mark.parametrize("name", [HF, DCP, LIGHTNING, "pair/model_4.safetensors"])
def test_a_copy_for_a_trainer_that_reads_a_fixed_name_is_whole(name: str, tmp_path: Path) -> None:
    source = copied(name, tmp_path / "from")
    if source.is_dir():
        (source / "inner" / "more").mkdir(parents=True)
        (source / "inner" / "more" / "file").write_bytes(b"1")
    companions = (copied("pair/optim_4.pt", tmp_path / "from").name,) if name.startswith("pair") else ()
    target = tmp_path / "to"
    target.mkdir()
    folder = os.open(target, os.O_RDONLY)
    transfer.copy_whole(source, folder, "latest", companions)
    os.close(folder)
    if source.is_dir():
        copies = {
            path.relative_to(target / "latest"): path.read_bytes() for path in target.rglob("*") if path.is_file()
        }
        assert copies == {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    else:
        assert (target / "latest").read_bytes() == source.read_bytes()
        assert {path.name for path in target.iterdir()} == {"latest", *companions}
