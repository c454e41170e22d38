"""Two runs or two checkpoints: equal bit for bit, or what differs first, in which component, by how much."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from resumekit.base.errors import InvalidFile, UsageError
from resumekit.checkpoint.layout import open_checkpoint
from resumekit.checks.comparison import Difference
from resumekit.trainer.checkpoint_values import pieces_of
from resumekit.trainer.comparison import compare, compare_values, main
from support.checkpoint_tools import save_steps
from support.places import ROOT

pytestmark = [
    pytest.mark.usefixtures("in_a_new_process"),
    pytest.mark.filterwarnings("ignore:torch.distributed is"),  # of torch, as nothing is distributed
]

FOREIGN = ROOT / "tests" / "recorded" / "foreign"
NAN, INF = float("nan"), float("inf")
ONES = torch.ones(3)
CHECKPOINT: dict[str, Any] = {
    "model_state_dict": {"head.weight": torch.arange(6.0).reshape(2, 3), "mask": torch.tensor([NAN, -INF, -0.0])},
    "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2, 3), "step": torch.tensor(3.0)}}},
    "global_step": 3, "best_val_loss": NAN, "rng_state": {"python": [3, list(range(625)), None]}, "lr_scale": 1.0,
    "carry": [{"tokens": torch.tensor([1, 2])}], "versions": {"threads": 1},
}  # fmt: skip


def near(size: float | None) -> Any:
    return None if size is None else pytest.approx(size, rel=1e-2)


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """Return CHECKPOINT with one value, which the keys lead to, in the place of its own."""

    def put(tree: Any, keys: tuple[Any, ...]) -> Any:
        if not keys:
            return to
        items = dict(tree) if isinstance(tree, dict) else dict(enumerate(tree))
        items[keys[0]] = put(items.get(keys[0]), keys[1:])
        return items if isinstance(tree, dict) else list(items.values())

    made: dict[str, Any] = put(CHECKPOINT, path)
    return made


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (changed("versions", "threads", to=2), None),
        (
            changed("model_state_dict", "head.weight", to=torch.tensor([[0.0, 1, 2], [3, 4, 4]])),
            ("model_state_dict.head.weight", "weights", "1 of 6 numbers differ", 1.0, 0.2),
        ),
        (
            changed("model_state_dict", "mask", to=torch.tensor([0.0, -INF, -0.0])),
            ("model_state_dict.mask", "weights", "1 of 3 numbers differ, 1 of them NaN in one of the two", None, None),
        ),
        (
            changed("model_state_dict", "mask", to=torch.tensor([NAN, -INF, 0.0])),
            ("model_state_dict.mask", "weights", "1 of 3 numbers differ: equal as numbers, their bits differ", 0, 0),
        ),
        (
            changed("model_state_dict", "mask", to=torch.tensor([NAN, INF, -0.0])),
            ("model_state_dict.mask", "weights", "1 of 3 numbers differ", INF, INF),
        ),
        (
            changed("optimizer_state_dict", "state", 0, "exp_avg", to=torch.ones(3, 2)),
            ("optimizer_state_dict.state.0.exp_avg", "optimizer", "float32 (2, 3) and float32 (3, 2)", None, None),
        ),
        (
            changed("optimizer_state_dict", "state", 0, "step", to=torch.tensor(3.0, dtype=torch.float64)),
            ("optimizer_state_dict.state.0.step", "optimizer", "float32 () and float64 ()", None, None),
        ),
        (changed("global_step", to=4), ("global_step", "counters", "3 and 4", 1.0, 0.25)),
        (
            changed("global_step", to=3.0),
            ("global_step", "counters", "equal as numbers, their bits or types differ", 0, 0),
        ),
        (changed("best_val_loss", to=0.5), ("best_val_loss", "counters", "nan and 0.5", None, None)),
        (
            changed("rng_state", "python", 1, 7, to=99),
            ("rng_state.python[1]", "rng", "1 of 625 numbers differ", None, None),
        ),
        (changed("lr_scale", to=0.8), ("lr_scale", "lr", "1.0 and 0.8", 0.2, 0.2)),
        (
            changed("carry", 0, "tokens", to=torch.tensor([1, 3])),
            ("carry[0].tokens", "other", "1 of 2 numbers differ", 1.0, 1 / 3),
        ),
        (changed("carry", to=None), ("carry", "other", "a list of 1 and None", None, None)),
        (changed("ema_state_dict", to={}), ("ema_state_dict", "ema", "in the second alone", None, None)),
        (changed("data_state", to={"step": 3}), ("data_state", "data_position", "in the second alone", None, None)),
    ],
)
def test_the_first_difference_has_its_name_component_and_size(
    other: dict[str, Any], first: Any, tmp_path: Path
) -> None:
    paths = [tmp_path / "one.pt", tmp_path / "other.pt"]
    for path, content in zip(paths, (CHECKPOINT, other), strict=True):
        torch.save(content, path)
    found = compare(*paths)
    assert found.is_equal == (first is None) and found.tensors == 5 - (first is not None and "None" in first[2])
    if first:
        where, component, what, absolute, relative = first
        [difference] = found.differences
        assert (difference.where, difference.component) == (where, component) and what in difference.what
        assert [difference.absolute, difference.relative] == [near(absolute), near(relative)]
        assert found.sentence().startswith(f"different, first in {where}: ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64])
def test_every_kind_of_number_is_compared(dtype: torch.dtype) -> None:
    one, other = torch.tensor([1, 0, 1]).to(dtype), torch.tensor([1, 0, 0]).to(dtype)
    assert compare_values([one, one[::2]], [one, one[::2]]).is_equal
    [difference] = compare_values(one, other).differences
    assert (difference.what, difference.absolute) == ("1 of 3 numbers differ", 1.0)


# Folders, as the frameworks write them.


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        own = bytes(tensor.reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": [*tensor.shape], "data_offsets": [len(data), len(data) + len(own)]}
        data += own
    write_header(path, json.dumps(header | {"__metadata__": {"format": "pt"}}).encode(), data)


def write_header(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def hf(folder: Path, *, bias: float = 1.0, loss: float = 0.5) -> None:
    folder.mkdir()
    tensors = {
        "w": torch.ones(2, 2),
        "step_bias": torch.full((3,), bias, dtype=torch.bfloat16),
        "none": torch.ones(0, 2),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}}, folder / "optimizer.pt")
    numpy = pytest.importorskip("numpy")
    torch.save(
        {"python": [3, [1], None], "numpy": ("MT19937", numpy.arange(5, dtype="u4"), 1)}, folder / "rng_state.pth"
    )
    state = {"global_step": 3, "log_history": [{"loss": loss, "train_runtime": id(folder)}]}
    state["best_model_checkpoint"] = str(folder.parent / f"run{id(folder)}" / "checkpoint-3")
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "training_args.bin").write_bytes(os.urandom(8))
    (folder / "merges.txt").write_text("a b")


def distributed(folder: Path, *, bias: float = 1.0, loss: float = 0.5) -> None:
    state = {"model": {"w": torch.ones(2, 2), "b": torch.full((3,), bias)}, "loss": loss, "optim": {"lr": 0.1}}
    dcp.save(state, checkpoint_id=folder, no_dist=True)


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (hf, {"bias": ("model.safetensors:step_bias", "weights"), "loss": ("log_history[0].loss", "loss")}),
        (distributed, {"bias": ("model.b", "weights"), "loss": ("loss", "loss")}),
    ],
)
def test_a_folder_is_compared_file_by_file_by_what_the_files_are(
    write: Callable[..., None], names: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    write(tmp_path / "one")
    write(tmp_path / "again")
    found = compare(tmp_path / "one", tmp_path / "again")
    assert found.differences == [] and found.tensors >= 2
    for number, (what, (where, component)) in enumerate(names.items()):
        write(tmp_path / f"other{number}", **{what: 1.5})
        [difference] = compare(tmp_path / "one", tmp_path / f"other{number}").differences
        assert difference.where.endswith(where) and difference.component == component


@pytest.mark.parametrize(
    "name", ["accelerate/checkpoints/checkpoint_1", "dcp/step-4", "dcp/alone-4", "hf/checkpoint-4", "hf/sharded"]
)
def test_what_the_frameworks_themselves_wrote_is_read(name: str) -> None:
    found = compare(FOREIGN / name, FOREIGN / name)
    assert found.is_equal and found.tensors > 1


def test_a_tensor_that_ranks_wrote_in_parts_is_what_torch_itself_makes_of_it(tmp_path: Path) -> None:
    folder = FOREIGN / "dcp" / "step-4"
    dcp_to_torch_save(folder, tmp_path / "whole.pt")
    with open_checkpoint(folder) as opened:
        parts = {name: read() for name, read in pieces_of(opened).items()}
    whole = flat(torch.load(tmp_path / "whole.pt", weights_only=True))
    tensors = [{name: value for name, value in one.items() if torch.is_tensor(value)} for one in (parts, whole)]
    assert tensors[0] and compare_values(*tensors).differences == []


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, (dict, list)):
        return {name[1:]: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {inner: value for key, item in items for inner, value in flat(item, f"{name}.{key}").items()}


def test_a_file_too_many_and_other_text_are_differences(tmp_path: Path) -> None:
    for name in ("one", "other"):
        hf(tmp_path / name)
    (tmp_path / "other" / "merges.txt").write_text("a c")
    (tmp_path / "other" / "scheduler.pt").write_bytes(b"")
    found = compare(tmp_path / "one", tmp_path / "other")
    assert sorted(found.differences) == [
        Difference("merges.txt", "other", "other bytes"),
        Difference("scheduler.pt", "scheduler", "in the second alone"),
    ]
    assert found.notes == ["not compared: training_args.bin (the framework's own arguments)"]


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_what_would_run_is_neither_run_nor_taken_for_equal(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        torch.save({"w": ONES, "c": Canary(canary), "name": name}, tmp_path / name / "model.bin")
    assert compare(tmp_path / "one", tmp_path / "one").is_equal
    [difference] = compare(tmp_path / "one", tmp_path / "other").differences
    assert difference.what.startswith("other bytes (torch does not load it with weights_only=True: ")
    with pytest.raises(InvalidFile, match="bin' cannot be compared: torch does not load it"):
        compare(tmp_path / "one" / "model.bin", tmp_path / "other" / "model.bin")
    distributed(tmp_path / "dcp")
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InvalidFile, match=r"its \.metadata holds '(posix|os)\.mkdir'"):
        compare(tmp_path / "dcp", tmp_path / "dcp")
    distributed(tmp_path / "object")
    metadata = pickle.loads((tmp_path / "object" / ".metadata").read_bytes())
    [info] = [info for index, info in metadata.storage_data.items() if index.fqn == "loss"]
    shard = tmp_path / "object" / info.relative_path
    torch.save(Canary(canary), tmp_path / "c")
    info.offset, info.length = shard.stat().st_size, (tmp_path / "c").stat().st_size
    shard.write_bytes(shard.read_bytes() + (tmp_path / "c").read_bytes())
    (tmp_path / "object" / ".metadata").write_bytes(pickle.dumps(metadata))
    assert compare(tmp_path / "object", tmp_path / "object").is_equal and not canary.exists()


def with_file(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return what makes a folder with one file."""

    def made(folder: Path) -> None:
        folder.mkdir()
        make(folder / name)

    return made


def without_its_shard(folder: Path) -> None:
    distributed(folder)
    (folder / "__0_0.distcp").unlink()


SELF: list[Any] = []
SELF.append(SELF)
WIDE: Any = 1
for _ in range(9):
    WIDE = [WIDE] * 20


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (with_file(".metadata", lambda path: path.write_bytes(b"\x80\x04garbage")), ".metadata has opcode"),
        (without_its_shard, "its part '__0_0.distcp' is not there"),
        (with_file("a.pt", os.mkfifo), r"'a.pt' in it is not a regular file \(fifo\)"),
        (with_file("a.pt", lambda path: path.symlink_to("/etc/passwd")), "'a.pt' in it is a link"),
        (with_file("a.pt", lambda path: path.write_bytes(b"PK\x03\x04cut")), "truncated|not a zip|end of"),
        (with_file("a.pt", lambda path: torch.save({"a": SELF}, path)), "nested too deeply"),
        (with_file("a.pt", lambda path: torch.save({"a": WIDE}, path)), "more than 1,000 values"),
        (with_file("a.safetensors", lambda path: write_header(path, b"{}", length=1 << 60)), "a header of 1,1"),
        (lambda folder: folder.mkdir(), "no file in it"),
    ],
)
def test_what_is_damaged_or_hostile_is_one_sentence(
    make: Callable[[Path], None], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resumekit.checks.comparison.MOST_VALUES", 1000)
    make(tmp_path / "folder")
    with pytest.raises(InvalidFile, match=why) as raised:
        compare(tmp_path / "folder", tmp_path / "folder")
    assert "\n" not in str(raised.value)


def test_json_that_is_no_object_is_compared_by_its_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocabulary.json").write_text("[" * 100_000)
    assert compare(tmp_path / "one", tmp_path / "other").is_equal
    (tmp_path / "other" / "vocabulary.json").write_text("[]")
    assert not compare(tmp_path / "one", tmp_path / "other").is_equal


# Runs.


def run_with(folder: Path, losses: dict[int, Any], parent: tuple[str, int] | None = None, seed: int = 0) -> Path:
    """Make a run folder: a step event for each loss, an evaluation of its last step, the checkpoint of that step."""
    last = max(losses)
    record = {"run_id": folder.name} | ({"parent_run_id": parent[0], "parent_step": parent[1]} if parent else {})
    clock: dict[str, Any] = {"mono_s": id(folder), "at": folder.name}
    told = [{"event": "step", "step": step, "loss": loss, "lr": 0.1, **clock} for step, loss in losses.items()]
    told.append({"event": "eval", "step": last, "kind": "fast", "weights": "ema", "accuracy": 0.5, **clock})
    save_steps(folder / "checkpoints", last, extra={"seed": seed})
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "journal.jsonl").write_text("".join(f"\n{json.dumps(event)}\n" for event in told))
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return run_with(tmp_path / "EXP-01_whole", {1: 0.5, 2: 0.25, 3: 0.125, 4: "nan"})


def test_a_resumed_run_counts_with_what_its_parent_did(whole: Path, tmp_path: Path) -> None:
    run_with(tmp_path / "EXP-01_killed", {1: 0.5, 2: 0.25, 3: 99.0})
    child = run_with(tmp_path / "EXP-01_child", {3: 0.125, 4: "nan"}, ("EXP-01_killed", 2))
    found = compare(child, whole)
    assert found.differences == [] and found.values > 9 and found.tensors > 9
    (tmp_path / "EXP-01_killed").rename(tmp_path / "gone")
    found = compare(child, whole)
    assert found.differences == []
    assert found.notes == ["compared from step 3 on: the folder of a parent that went there is gone"]


@pytest.mark.parametrize(
    ("losses", "seed", "first"),
    [
        ({1: 0.5, 2: 0.26, 3: 0.125, 4: "nan"}, 0, Difference("step 2, loss", "loss", "0.25 and 0.26", 0.01, 0.0385)),
        ({1: 0.5, 2: 0.25, 3: 0.125, 4: 0.1}, 0, Difference("step 4, loss", "loss", "nan and 0.1")),
        ({1: 0.5, 2: 0.25, 4: "nan"}, 0, Difference("step 3, step", "other", "in the first alone")),
        ({1: 0.5, 2: 0.25, 3: 0.125, 4: "nan"}, 1, Difference("seed", "other", "0 and 1", 1.0, 1.0)),
        (
            {1: 0.5, 2: 0.25, 3: 0.125, 4: "nan", 5: 0.1}, 0,
            Difference("step 4, eval fast ema", "evaluation", "in the first alone"),
        ),
    ],
)  # fmt: skip
def test_the_first_difference_of_two_runs(
    losses: dict[int, Any], seed: int, first: Difference, whole: Path, tmp_path: Path
) -> None:
    found = compare(whole, run_with(tmp_path / "EXP-01_other", losses, seed=seed)).differences[0]
    assert found._replace(absolute=None, relative=None) == first._replace(absolute=None, relative=None)
    assert [found.absolute, found.relative] == [near(first.absolute), near(first.relative)]


def test_a_step_told_twice_and_another_last_checkpoint_are_differences(whole: Path, tmp_path: Path) -> None:
    other = run_with(tmp_path / "EXP-01_other", {1: 0.5, 2: 0.25, 3: 0.125, 4: "nan"})
    with open(other / "journal.jsonl", "a") as journal:
        journal.write('\n{"event": "step", "step": 2, "loss": 0.25, "lr": 0.1}\n')
    [path] = (other / "checkpoints").glob("*.pt")
    path.rename(path.with_name("hrm_arc_step_3.pt"))
    assert [one.sentence() for one in compare(whole, other).differences] == [
        "step 2, told once more (1) step: in the second alone",
        "the last checkpoint: of step 4 and of step 3; not compared",
    ]


def tell(folder: Path, *told: dict[str, Any]) -> Path:
    """Let a run's journal have these step events alone."""
    lines = [json.dumps({"event": "step", "source": "log", "step_total": 9, **one}) for one in told]
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("other", "first"),
    [
        ([{"step": 2, "loss": 0.25, "bar": True}, {"step": 4, "loss": 0.125, "bar": True}], None),
        ([{"step": 2, "loss": 0.26, "bar": True}, {"step": 3, "bar": True}], "step 2, loss"),
        # The last one was read off the line that stays, and has its total beside a step that the bar did not show.
        ([{"step": 2, "loss": 0.25}, {"step": 3, "loss": 0.2, "bar": True, "max_steps": 9}], None),
        # A step is told by a bar, and then by a line of its own: as much as by that line alone.
        ([{"step": 2, "bar": True}, {"step": 2, "loss": 0.25}, {"step": 3, "loss": 0.2, "bar": True}], None),
        # A line with values is printed once: that one of the two lacks it is a difference.
        ([{"step": 2, "loss": 0.25, "bar": True}, {"step": 5, "loss": 0.1}], "step 5, step"),
    ],
)
def test_of_steps_that_a_bar_shows_those_that_both_runs_saw_are_compared(
    other: list[dict[str, Any]], first: str | None, whole: Path, tmp_path: Path
) -> None:
    mine = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}, {"step": 3, "loss": 0.2}]
    one = tell(whole, *({**told, "bar": True} for told in mine))
    two = tell(run_with(tmp_path / "EXP-01_other", {4: 0.0}), *other)
    found = compare(one, two)
    assert [difference.where for difference in found.differences] == ([] if first is None else [first])
    seen = {told["step"] for told in [*mine, *other]}
    both = {told["step"] for told in mine} & {told["step"] for told in other}
    assert f"of {len(seen)} steps seen the {len(both)} that both runs saw" in found.sentence()


def test_the_command_ends_with_0_1_or_one_sentence(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run_with(tmp_path / "EXP-01_other", {1: 0.5, 2: 0.26, 3: 0.125, 4: "nan"})
    checkpoint = next((whole / "checkpoints").glob("*.pt"))

    def said(*words: Any, code: int) -> str:
        assert main(["--compare", *map(str, words)]) == code
        out, err = capfd.readouterr()
        assert (err == "") == (code < 2) and err.count("\n") <= 1
        return out + err

    assert said(whole, whole, code=0).startswith("equal bit for bit in ")
    assert said(whole, other, code=1).splitlines()[0] == (
        "different, first in step 2, loss: 0.25 and 0.26 (absolute 0.01, relative 0.0385), component loss"
    )
    told = json.loads(said(whole, other, "--json", code=1))
    assert (
        told["equal"] is False and told["counts"] == {"loss": 1} and told["differences"][0]["where"] == "step 2, loss"
    )
    assert "is a run and" in said(whole, checkpoint, code=2)
    assert "there is no '/nowhere\\x1b' to compare" in said(whole, "/nowhere\x1b", code=4)
    with pytest.raises(UsageError):
        compare(checkpoint, whole)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert "--compare needs torch" in said(whole, whole, code=127)
