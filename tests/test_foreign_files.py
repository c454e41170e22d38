"""The files of tests/recorded/foreign, which the real packages wrote, read without them; and such files gone wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import (
    archive,
    dcp_metadata,
    safetensors_header,
    trainer_state,
    weights_index,
)
from resumekit.checkpoint.trainer_state import TrainerState
from support.places import ROOT
from support.small_memory import read_in_small_memory

FOREIGN = ROOT / "tests" / "recorded" / "foreign"
STATE = FOREIGN / "hf" / "checkpoint-4" / "trainer_state.json"
INDEX = FOREIGN / "hf" / "sharded" / "model.safetensors.index.json"
NUMPYS_OWN = ("numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray")


def opened(path: Path, read: Callable[[int], Any]) -> Any:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read(descriptor)
    finally:
        os.close(descriptor)


# Of each torch zip: what in it tells a step; which types torch.load(weights_only=True) refuses.
ZIPS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "hf/checkpoint-2/optimizer.pt": ({}, ()),
    "hf/checkpoint-2/scheduler.pt": ({"last_epoch": 2}, ()),
    "hf/checkpoint-4/scheduler.pt": ({"last_epoch": 4}, ()),
    "hf/checkpoint-4/rng_state.pth": ({}, NUMPYS_OWN),
    "accelerate/checkpoints/checkpoint_1/optimizer.bin": ({}, ()),
    "accelerate/step_4/scheduler.bin": ({"last_epoch": 4}, ()),
    "accelerate/step_4/pytorch_model.bin": ({}, ()),
    "accelerate/step_4/random_states_0.pkl": ({"step": 0}, NUMPYS_OWN),
    "lightning/epoch=0-step=4.ckpt": ({"global_step": 4, "epoch": 0}, ()),
    "lightning/last.ckpt": ({"global_step": 4, "epoch": 0}, ()),
    "nanogpt/ckpt.pt": ({"iter_num": 4}, ()),
    "pair/optim_4.pt": ({}, ()),
    "hrm/step_4": ({}, ()),
}


@pytest.mark.parametrize("name", ZIPS)
def test_the_torch_zips_of_the_packages_are_read(name: str) -> None:
    content, unsafe, _ = opened(FOREIGN / name, archive.content)
    steps = ("step", "global_step", "iter_num", "last_epoch", "epoch")
    assert ({key: content[key] for key in steps if key in content}, unsafe) == ZIPS[name]


def test_the_arguments_of_hugging_faces_trainer_are_no_plain_data() -> None:
    path = FOREIGN / "hf" / "checkpoint-4" / "training_args.bin"
    with pytest.raises(UnreadableFile, match=r"holds 'transformers\.training_args\.TrainingArguments'"):
        opened(path, archive.content)
    assert {record.name for record in opened(path, archive.records)} >= {"training_args/data.pkl"}, "its zip is whole"


@pytest.mark.parametrize(
    ("name", "metadata", "shapes"),
    [
        ("pair/model_4.safetensors", {"step": "4"}, {"weight": (5, 3)}),
        ("accelerate/checkpoints/checkpoint_1/model.safetensors", {"format": "pt"}, {"weight": (5, 3)}),
        ("hf/sharded/model-00001-of-00002.safetensors", {"format": "pt"}, {"first.weight": (5, 3)}),
    ],
)
def test_the_safetensors_files_of_the_packages_are_read(
    name: str, metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> None:
    header = opened(FOREIGN / name, safetensors_header.read)
    assert header.metadata == metadata
    assert {key: region.shape for key, region in header.tensors.items()} == shapes
    assert {region.dtype for region in header.tensors.values()} == {"float32"}


@pytest.mark.parametrize("name", ["alone-4", "step-4"])
def test_the_metadata_of_torchs_distributed_checkpoints_tells_the_size_of_each_part(name: str) -> None:
    folder = FOREIGN / "dcp" / name
    found = dcp_metadata.read((folder / dcp_metadata.NAME).read_bytes())
    assert found.parts == {path.name: path.stat().st_size for path in folder.glob("*.distcp")}
    assert found.tensors["model.weight"] == ((5, 3), "float32")
    assert found.keys[0] == "model"


def test_a_trainer_state_is_read() -> None:
    found = trainer_state.read(STATE.read_bytes())
    assert found == TrainerState(
        step=4, epoch=2.0, best_metric=found.best_metric, best_step=4, best_checkpoint="checkpoint-4", loss=found.loss,
        loss_step=4,
    )  # fmt: skip
    assert 3 < (found.best_metric or 0) < 4 and 6 < (found.loss or 0) < 7
    assert trainer_state.read((STATE.parents[1] / "checkpoint-2" / STATE.name).read_bytes()).step == 2


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"epoch": None}, "epoch", None),
        ({"best_metric": None, "best_model_checkpoint": None}, "best_checkpoint", None),
        ({"best_model_checkpoint": "C:\\runs\\checkpoint-2"}, "best_checkpoint", "checkpoint-2"),
        ({"best_model_checkpoint": "/etc/.."}, "best_checkpoint", None),
        ({"best_model_checkpoint": ["x"]}, "best_checkpoint", None),
        ({"log_history": []}, "loss", None),
        ({"log_history": [{"loss": 0.5, "step": 3}, {"eval_loss": 1.0}]}, "loss_step", 3),
        ({"log_history": [{"loss": float("inf"), "step": 3}]}, "loss", float("inf")),
        ({"log_history": {"loss": 1}}, "loss", None),
        ({"best_metric": float("nan")}, "best_metric", None),
    ],
)
def test_what_a_trainer_state_may_lack_or_have_odd_is_none(change: dict[str, Any], field: str, value: Any) -> None:
    """NaN and Infinity too, which the package writes as JSON does not have them."""
    state = {**json.loads(STATE.read_bytes()), **change}
    assert getattr(trainer_state.read(json.dumps(state).encode()), field) == value


def test_an_index_is_read() -> None:
    found = weights_index.read(INDEX.read_bytes())
    assert set(found.files) == {path.name for path in INDEX.parent.glob("*.safetensors")}
    assert found.tensors.keys() == {"first.weight", "first.bias", "last.weight", "last.bias"}
    assert found.total_bytes == 104


def index_of(file: Any) -> bytes:
    return json.dumps({"weight_map": {"a": "ok.bin", "b": file}}).encode()


REFUSED: dict[str, tuple[Callable[[bytes], Any], bytes, str]] = {
    "a state that is cut short": (trainer_state.read, STATE.read_bytes()[:900], "is not JSON"),
    "an empty state": (trainer_state.read, b"", "is not JSON"),
    "a state of zeros": (trainer_state.read, bytes(900), "is not JSON"),
    "a state that is a list": (trainer_state.read, b"[]", "no JSON object"),
    "a state without a step": (trainer_state.read, b"{}", "no global_step"),
    "a step that is a text": (trainer_state.read, b'{"global_step": "4"}', "no global_step"),
    "a step that is true": (trainer_state.read, b'{"global_step": true}', "no global_step"),
    "a step below zero": (trainer_state.read, b'{"global_step": -4}', "no global_step"),
    "half a character": (trainer_state.read, b'{"global_step": 4, "x": "\\ud800"}', "is not JSON"),
    "an index without a map": (weights_index.read, b'{"metadata": {}}', "no weight_map"),
    "an index with an empty map": (weights_index.read, b'{"weight_map": {}}', "no weight_map"),
    "an index of numbers": (weights_index.read, index_of(5), "no name of a file"),
    **{
        f"an index that names {name!r}": (weights_index.read, index_of(name), "no name of a file in its folder")
        for name in ("/etc/passwd", "../x.bin", "..", "a/b.bin", "", ".", "a\0b", "x" * 256)
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_file_of_theirs_is_refused_with_the_reason(name: str) -> None:
    read, content, reason = REFUSED[name]
    with pytest.raises(UnreadableFile, match=reason):
        read(content)


BOMBS = {
    "40 MB": (lambda: b'{"x":"' + b"x" * 40_000_000 + b'"}', "more than 33,554,432"),
    "lists in lists": (lambda: b'{"global_step": 4, "x":' + b"[" * 500_000, "not JSON"),
    "two million objects": (lambda: b'{"x":[' + b"{}," * 2_000_000 + b"1]}", "more than 4,000,000 values"),
    "a number of a million digits": (lambda: b'{"global_step":' + b"9" * 1_000_000 + b"}", "not JSON"),
    "as many as are read": (lambda: b'{"weight_map":1,"x":[' + b'{"a":1},' * 900_000 + b"1]}", "no "),
}


@pytest.mark.parametrize("module", ["trainer_state", "weights_index"])
@pytest.mark.parametrize("name", BOMBS)
def test_json_made_to_exhaust_is_refused_in_bounded_memory(tmp_path: Path, module: str, name: str) -> None:
    make, reason = BOMBS[name]
    path = tmp_path / "x.json"
    path.write_bytes(make())
    assert reason in read_in_small_memory(f"{module}.read(Path(sys.argv[1]).read_bytes())", path)


def test_the_recorded_files_are_few_and_small() -> None:
    assert sum(path.stat().st_size for path in FOREIGN.rglob("*") if path.is_file()) < 150_000


def test_a_scaler_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scaler.pt"
    torch.save(torch.amp.GradScaler("cpu").state_dict(), path)
    content, unsafe, _ = opened(path, archive.content)
    assert content["scale"] == 65536.0 and unsafe == ()
