"""What the readers of other packages' checkpoints are fed: what those wrote (tests/recorded/foreign), gone wrong.

Used by `fuzz_targets`. Each reader returns what its records say it does, or refuses; nothing in a file runs.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from hypothesis import strategies as st

from reliability import fuzz_values as values
from resumekit.base.errors import KitError
from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import dcp_metadata, form, grades, safetensors_header, trainer_state, weights_index
from support.places import ROOT

_FOREIGN = ROOT / "tests" / "recorded" / "foreign"
CANARY = "run-by-a-metadata"
_METADATA = [path.read_bytes() for path in sorted((_FOREIGN / "dcp").glob("*/.metadata"))]
_FOLDERS = [
    {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for folder in sorted((_FOREIGN / "dcp").iterdir())
]
_STATE = json.loads((_FOREIGN / "hf" / "checkpoint-4" / "trainer_state.json").read_bytes())
_INDEX = json.loads((_FOREIGN / "hf" / "sharded" / "model.safetensors.index.json").read_bytes())
_HEADER = {
    "__metadata__": {"step": "4"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "c": {"dtype": "F8_E4M3", "shape": [0, 9], "data_offsets": [26, 26]},
}
_BODY_BYTES = 26
# Opcodes with arguments, names, and calls that would run something.
_SNIPPETS = [
    b"\x80\x04", b"\x95" + bytes(8), b"\x95" + b"\xff" * 8, b"\x94", b"\x8c\x05torch", b"\x8c\x04Size", b"\x93", b")",
    b"(", b"t", b"u", b"s", b"}", b"]", b"a", b"e", b"b", b"R", b"\x81", b"N", b"K\x01", b"M\x00\x01", b"\x85", b"\x86",
    b"\x87", b"h\x00", b"h\x03", b"j\x00\x01\x00\x00", b"r\xff\xff\xff\xff", b"J\xff\xff\xff\xff",
    b"\x8a\x09" + b"\xff" * 8 + b"\x00",
    b"X\xff\xff\xff\xff", b"\x8c\x0b/etc/passwd", b"\x8c\x02..", b"\x8f", b"\x90", b"\x92", b"Q", b"0", b"2", b".",
    b"cpathlib\nPosixPath\n", b"ctorch\nSize\n", b"ctorch\nfloat32\n", b"cbuiltins\neval\n", b"cos\nsystem\n",
    b"cos\nsystem\n\x8c\x17touch " + CANARY.encode() + b"\x85R",
    *(f"ctorch.distributed.checkpoint.metadata\n{name}\n)\x81".encode("latin-1") for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
        "TensorProperties")),
    b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n)\x81",
]  # fmt: skip


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """Files: a header of JSON gone wrong, mostly with its own length; else a whole file with bytes changed."""
    if draw(st.integers(0, 3)) == 0:
        header = json.dumps(_HEADER).encode()
        return draw(_changed([struct.pack("<Q", len(header)) + header + bytes(_BODY_BYTES)], [b"{", b"}", b'"', b"9"]))
    header = draw(values.json_texts(_HEADER))
    how = draw(st.integers(0, 9))
    length = draw(st.integers(0, (1 << 64) - 1) | st.integers(0, 300)) if how == 0 else len(header)
    return struct.pack("<Q", length) + header + bytes(draw(st.integers(0, 60)) if how == 1 else _BODY_BYTES)


def metadata_files() -> st.SearchStrategy[bytes]:
    """`.metadata` files: real ones with bytes and opcodes changed, put in or taken out; else opcodes in any order."""
    soup = st.lists(st.sampled_from(_SNIPPETS) | st.binary(max_size=4), max_size=40).map(b"".join)
    return st.one_of(_changed(_METADATA, _SNIPPETS), _changed(_METADATA, _SNIPPETS), soup)


@st.composite
def _changed(draw: st.DrawFn, wholes: list[bytes], snippets: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.integers(0, 5))
        if how < 2:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == 2:
            data[at:at] = draw(st.sampled_from(snippets))
        elif how == 3:
            piece = draw(st.sampled_from(snippets))
            data[at : at + len(piece)] = piece
        elif how == 4:
            del data[at : at + draw(st.integers(1, 12))]
        else:
            start = draw(st.integers(0, max(0, len(data) - 1)))
            data[at:at] = data[start : start + draw(st.integers(1, 60))]
    return bytes(data)


# What stands in the archives of a shard: marks of zip's records, sizes, a pickle that would run something, a NaN.
_IN_SHARDS = [
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\xff" * 4, b"\xff" * 8, bytes(4),
    bytes(64), b"data/0", b"data.pkl", b"data/1", b"byteorder", b"big", b"\x00\x00\xc0\x7f" * 4, b"(", b"\x85R.",
    b"cos\nsystem\nX\x17\x00\x00\x00touch " + CANARY.encode() + b"\x85R.",
]  # fmt: skip


@st.composite
def shard_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """Folders of torch.distributed.checkpoint: one shard, or `.metadata`, or both gone wrong."""
    files = dict(draw(st.sampled_from(_FOLDERS)))
    names = draw(st.sets(st.sampled_from(sorted(files)), min_size=1, max_size=2))
    for name in sorted(names):
        snippets = _SNIPPETS if name == dcp_metadata.NAME else _IN_SHARDS
        files[name] = draw(_changed([files[name]], snippets))
    return files


def states() -> st.SearchStrategy[bytes]:
    """`trainer_state.json` files gone wrong."""
    return values.json_texts(_STATE)


def indexes() -> st.SearchStrategy[bytes]:
    """Indexes of weights gone wrong."""
    return values.json_texts(_INDEX)


def read_safetensors(content: bytes, folder: Path) -> None:
    """Each tensor that is told lies inside the file, and the last one ends it."""
    path = folder / "x.safetensors"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        header = safetensors_header.read(descriptor)
    except UnreadableFile as error:
        raise _refused(error) from error
    finally:
        os.close(descriptor)
    assert all(type(text) is str for text in header.metadata.values())
    end = max((region.end for region in header.tensors.values()), default=len(content))
    assert end == len(content) and all(8 < one.begin <= one.end for one in header.tensors.values())


def read_metadata(content: bytes, _folder: Path) -> None:
    """Each part is a plain name, each place lies in one of them, and nothing ran."""
    try:
        found = dcp_metadata.read(content)
    except UnreadableFile as error:
        raise _refused(error) from error
    finally:
        assert not os.path.lexists(CANARY)
    assert all("/" not in part and part not in ("", ".", "..") for part in found.parts)
    for places in found.places.values():
        assert all(place.begin <= place.end <= found.parts[place.part] for place in places)
    assert found.paths.keys() == {*found.tensors, *found.values} and len(found.keys) <= len(found.paths)
    assert found.writers <= len(found.parts) and all(kept.parameters >= 0 for kept in found.optimizers.values())


def read_shards(files: dict[str, bytes], folder: Path) -> None:
    """What is said of the values of a folder is that they are finite, not finite, or that it is not told."""
    place = folder / "step-4"
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    try:
        found = grades.measured(place, 4, named=form.of({"pattern": "step-{step}"}))
    except UnreadableFile as error:
        raise _refused(error) from error
    finally:
        assert not os.path.lexists(CANARY)
    assert (found.finite is False) == bool(found.nonfinite) and len(found.files) == len(files)


def read_state(content: bytes, _folder: Path) -> None:
    """The step is a count, the best one a plain name."""
    try:
        found = trainer_state.read(content)
    except UnreadableFile as error:
        raise _refused(error) from error
    assert type(found.step) is int and found.step >= 0 and "/" not in (found.best_checkpoint or "")


def read_index(content: bytes, _folder: Path) -> None:
    """Each file is a plain name."""
    try:
        found = weights_index.read(content)
    except UnreadableFile as error:
        raise _refused(error) from error
    assert all("/" not in file and file not in ("", ".", "..") for file in found.files)
    assert set(found.files) == set(found.tensors.values())


def _refused(error: UnreadableFile) -> KitError:
    assert len(str(error)) < 500, str(error)
    return KitError(str(error))
