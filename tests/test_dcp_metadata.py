"""Reading torch.distributed.checkpoint's `.metadata` without torch: what it tells, what it refuses, nothing runs."""

from __future__ import annotations

import copy
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import dcp_metadata
from resumekit.checkpoint.dcp_metadata import Kept, Place
from resumekit.checkpoint.parameters import family_of_entries
from support.checkpoint_tools import Payload
from support.places import ROOT
from support.small_memory import read_in_small_memory

DCP = ROOT / "tests" / "recorded" / "foreign" / "dcp"
TOP = b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x94\x8c\x08Metadata\x94\x93)\x81"


def chunk(offset: int, rows: int) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size([offset, 0]), torch.Size([rows, 4]))


def whole() -> Metadata:
    """Return what torch makes of a tensor in two chunks, and of a value."""
    tensor = TensorStorageMetadata(TensorProperties(torch.bfloat16), torch.Size([3, 4]), [chunk(0, 2), chunk(2, 1)])
    return Metadata(
        {"model.w": tensor, "step": BytesStorageMetadata()},
        {"model.w": ("model", "w"), "step": ("step",)},
        {
            MetadataIndex("model.w", (0, 0), 0): _StorageInfo("__0_0.distcp", 0, 100),
            MetadataIndex("model.w", (2, 0), 1): _StorageInfo("__1_0.distcp", 50, 80),
            MetadataIndex("step"): _StorageInfo("__0_0.distcp", 100, 30),
        },
        StorageMeta(Path("/somewhere/else"), "id"),
        "1.0.0",
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_values_parts_places_and_paths_are_told(protocol: int) -> None:
    found = dcp_metadata.read(pickle.dumps(whole(), protocol))
    assert found.tensors == {"model.w": ((3, 4), "bfloat16")}
    assert found.values == ("step",)
    assert found.parts == {"__0_0.distcp": 130, "__1_0.distcp": 130}
    assert found.places == {
        "model.w": (Place("__0_0.distcp", 0, 100, (0, 0), (2, 4)), Place("__1_0.distcp", 50, 130, (2, 0), (1, 4))),
        "step": (Place("__0_0.distcp", 100, 130, (), ()),),
    }
    assert found.paths == {"model.w": ("model", "w"), "step": ("step",)}
    assert (found.keys, found.writers, found.optimizers) == (("model", "step"), 2, {})


def test_what_an_optimizer_keeps_is_told_by_the_names() -> None:
    found = dcp_metadata.read((DCP / "step-4" / ".metadata").read_bytes())
    assert found.optimizers == {"optim": Kept(1, frozenset({"step", "exp_avg", "exp_avg_sq"}))}
    assert family_of_entries(found.optimizers["optim"].entries) == "adam"
    assert found.keys == ("model", "optim", "step") and found.writers == 2


def test_names_without_saved_paths_are_split() -> None:
    metadata = whole()
    metadata.planner_data = None
    assert dcp_metadata.read(pickle.dumps(metadata)).paths == {"model.w": ("model", "w"), "step": ("step",)}


def changed(change: Callable[[Metadata], object]) -> bytes:
    metadata = copy.deepcopy(whole())
    change(metadata)
    return pickle.dumps(metadata)


def part_named(name: Any) -> bytes:
    return changed(lambda m: setattr(m.storage_data[MetadataIndex("step")], "relative_path", name))


def without_place(index: MetadataIndex) -> bytes:
    return changed(lambda m: m.storage_data.pop(index))


def with_chunks(*chunks: ChunkStorageMetadata) -> bytes:
    return changed(lambda m: setattr(m.state_dict_metadata["model.w"], "chunks", list(chunks)))


def field(name: str, value: Any) -> bytes:
    return changed(lambda m: setattr(m.storage_data[MetadataIndex("step")], name, value))


WHOLE = pickle.dumps(whole())
REFUSED = {
    "nothing": (b"", "is empty: 0 bytes"),
    "a cut": (WHOLE[:-200], "ends early|damaged"),
    "a cut inside its frame": (WHOLE[:2] + struct.pack("<BQ", 0x95, 10**9) + WHOLE[11:], "ends early"),
    "bytes behind it": (WHOLE + b"x", "1 bytes behind its end"),
    "another protocol": (b"\x80\x06" + WHOLE[2:], "unknown pickle protocol"),
    "another value": (pickle.dumps({"state_dict_metadata": {}}), "damaged"),
    "no places": (changed(lambda m: setattr(m, "storage_data", None)), "does not say where its parts lie"),
    "a value without a place": (without_place(MetadataIndex("step")), "does not say where 'step' lies"),
    "a chunk without a place": (without_place(MetadataIndex("model.w", (2, 0))), "where a chunk of 'model.w' lies"),
    "a chunk that is missing": (with_chunks(chunk(0, 2)), "has 8 of the 12 elements of 'model.w'"),
    "a chunk outside": (with_chunks(chunk(0, 2), chunk(2, 2)), "damaged"),
    **{
        f"a part named {name[:20]!r}": (part_named(name), "is no name of a file in its folder")
        for name in ("/etc/passwd", "../x.distcp", "..", ".", "", "a/b", "a\0b", "x" * 256)
    },
    "a part that is a number": (part_named(7), "damaged"),
    "an offset below zero": (field("offset", -1), "damaged"),
    "a length that is true": (field("length", True), "damaged"),
    "a length beyond all files": (field("length", 1 << 63), "damaged"),
    "a set": (changed(lambda m: setattr(m, "planner_data", {1, 2})), "opcode 0x8f, which torch"),
    "a persistent reference": (b"\x80\x04NQ.", "opcode 0x51"),
    "a class with arguments": (b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\nN\x85\x81.", "not used as"),
    "a class that is called": (b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n)R.", "not used as"),
    "a state that is given twice": (TOP + b"}b}b.", "not used as it is saved"),
    "a special attribute": (TOP + b"}\x8c\x09__class__Nsb.", "damaged"),
    "a state of slots": (TOP + b"N}\x86b.", "not used as it is saved"),
    "a state for a dict": (b"\x80\x04}}b.", "not used as it is saved"),
    "a key that is a tuple": (b"\x80\x04})Ns.", "damaged"),
    "a key that is a name": (b"\x80\x04}ctorch\nSize\nNs.", "damaged"),
    "a format with two arguments": (
        b"\x80\x04ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\nK\x01K\x02\x86R.", "not used as",
    ),
    "itself in itself": (TOP + b"\x94}\x8c\x13state_dict_metadatah\x02sb.", "does not say"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_does_not_write_is_refused_with_the_reason(name: str) -> None:
    content, reason = REFUSED[name]
    with pytest.raises(UnreadableFile, match=reason):
        dcp_metadata.read(content)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_class_that_would_run_is_refused_by_name_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    hostile = whole()
    hostile.planner_data = {"model.w": Payload(canary)}
    with pytest.raises(UnreadableFile, match=r"holds '(posix|os)\.system', which is not plain data"):
        dcp_metadata.read(pickle.dumps(hostile, protocol))
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["os system", "builtins eval", "builtins getattr", "pathlib Path", "torch load", "torch.serialization load",
     "torch.distributed.checkpoint.filesystem FileSystemReader", "torch.distributed.checkpoint.metadata os",
     "torch.distributed.checkpoint.metadata Metadata.__init__", "torch float32.x", "collections OrderedDict"],
)  # fmt: skip
def test_only_the_names_that_torch_writes_are_known(name: str) -> None:
    module, _, attribute = name.partition(" ")
    for content in (
        f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"),
        b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(attribute)])
        + attribute.encode() + b"\x93.",
    ):  # fmt: skip
        with pytest.raises(UnreadableFile, match="which is not plain data"):
            dcp_metadata.read(content)


def shared_chunks(rows: int, number: int = 20_000) -> bytes:
    """Return so many tensors that share a list of as many chunks: 400 million to go through."""
    tensor = whole().state_dict_metadata["model.w"]
    chunks, size = [chunk(0, rows)] * number, torch.Size([rows * number, 4])
    tensors = {f"w{n}": TensorStorageMetadata(tensor.properties, size, chunks) for n in range(number)}
    place = _StorageInfo("__0_0.distcp", 0, 100)
    return pickle.dumps(Metadata(tensors, None, {MetadataIndex(name, (0, 0)): place for name in tensors}))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "40 MB": (lambda: b"\x80\x04" + b"N" * 40_000_000, "more than 33,554,432"),
    "five million dicts in a memo": (lambda: b"\x80\x04" + b"}\x94" * 5_000_001 + b".", "more than 10,000,000 opcodes"),
    "a memo index of four thousand million": (lambda: b"\x80\x04Nr\xff\xff\xff\xff.", "damaged"),
    "tuples in tuples": (lambda: b"\x80\x04N" + b"\x85" * 1_000_000 + b".", "damaged"),
    "tuples of tuples": (lambda: b"\x80\x04)" + b"\x94h\x00\x86" * 60 + b".", "damaged"),
    "marks in marks": (lambda: b"\x80\x04" + b"(" * 1000 + b".", "nests deeper than 100"),
    "a text longer than the file": (lambda: b"\x80\x04X\xff\xff\xff\xffx.", "damaged"),
    "a state copied again and again": (
        lambda: b"\x80\x04}(" + b"".join(b"\x8c\x05%05dN" % n for n in range(50_000)) + b"u\x94" + TOP[2:-2]
        + b"\x94" + b"h\x03)\x81h\x00b" * 50_000 + b".",
        "more than 3,000,000 fields",
    ),
    "chunks shared by all": (lambda: shared_chunks(1), "where a chunk of 'w0' lies"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_metadata_made_to_exhaust_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    path = tmp_path / "x"
    path.write_bytes(make())
    assert reason in read_in_small_memory("dcp_metadata.read(Path(sys.argv[1]).read_bytes())", path)


def test_what_is_gone_through_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty chunks have no place of their own, and the tensors of one list would go through them without end."""
    monkeypatch.setattr(dcp_metadata, "MAX_COUNTED", 50_000)
    with pytest.raises(UnreadableFile, match="more than 50,000 fields and chunks"):
        dcp_metadata.read(shared_chunks(0, 300))


def test_damaged_ones_never_raise_anything_but_unreadable() -> None:
    """Each bit of a real one flipped in turn: read as something, or refused."""
    good = (DCP / "alone-4" / ".metadata").read_bytes()
    told = dcp_metadata.read(good)
    same = 0
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        try:
            same += dcp_metadata.read(bytes(data)) == told
        except UnreadableFile:
            continue
    assert same < 8 * len(good) / 2
    assert os.path.getsize(DCP / "alone-4" / "__0_0.distcp") == told.parts["__0_0.distcp"]
