"""What a checkpoint of any kind holds, as plain values and tensors, a piece at a time and nothing run.

A file is one piece; a folder has one for each file in it, and one for each entry of a folder that torch's distributed
checkpointing (DCP) wrote. Files of torch.save are mapped, not read. Reads; writes nothing.
Try it: `python lib/resume_helper.py --compare runs/A/checkpoints/model_100.pt runs/B/checkpoints/model_100.pt`
"""

from __future__ import annotations

import functools
import hashlib
import io
import mmap
import os
import pickle
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.errors import InvalidFile
from ..base.files import UnreadableFile, open_regular, parse_json, read_bounded
from ..base.imports import Any, NamedTuple
from ..base.paths import MANIFEST_SUFFIX
from ..checkpoint import archive

MOST_FILES = 10_000
MAX_JSON_BYTES = 64 << 20
# Of safetensors' own reader.
MAX_HEADER_BYTES = 100_000_000
MAX_DCP_METADATA_BYTES = 256 << 20
DCP_METADATA = ".metadata"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
_NOT_PLAIN = "torch does not load it with weights_only=True"
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
# What torch's own DCP metadata consists of. The path that a PosixPath is made of is never followed.
_DCP_NAMES = frozenset({
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size"), ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
})  # fmt: skip


class Opaque(NamedTuple):
    """A file that is not read as values: its bytes, and why.

    Args:
        sha256: of all bytes, 64 hex digits.
        why: '' where it is no file of values; else why it cannot be read.
    """

    sha256: str
    why: str


Pieces = dict[str, Callable[[], Any]]


def pieces_of(checkpoint: Path) -> Pieces:
    """Return what a checkpoint consists of: name -> a function that reads it, '' for a single file.

    Raises:
        InvalidFile: there is none, or a folder has more than MOST_FILES files.
    """
    if not os.path.isdir(checkpoint):
        return {"": functools.partial(_read_single, checkpoint)}
    pieces: Pieces = {}
    for number, path in enumerate(_files_below(checkpoint)):
        if number >= MOST_FILES:
            raise InvalidFile(
                f"the folder '{checkpoint}' has more than {MOST_FILES:,} files: name one checkpoint in it"
            )
        name = os.path.relpath(path, checkpoint)
        if path.name == DCP_METADATA:
            pieces |= _dcp_pieces(path.parent, os.path.relpath(path.parent, checkpoint))
        elif not _is_a_part(path):
            pieces[name] = functools.partial(_read_file, path)
    if not pieces:
        raise InvalidFile(f"the folder '{checkpoint}' has no file in it: there is nothing to compare")
    return pieces


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def _is_a_part(path: Path) -> bool:
    """Whether a file is told by another one: a shard, by the metadata; a manifest, by what it is of."""
    if path.suffix == ".distcp":
        return os.path.lexists(path.with_name(DCP_METADATA))
    return path.name.endswith(MANIFEST_SUFFIX) and os.path.lexists(path.with_name(path.name[: -len(MANIFEST_SUFFIX)]))


def _read_single(path: Path) -> Any:
    content = _read_file(path, follow_links=True)
    if isinstance(content, Opaque):
        why = content.why or "neither a file of torch.save nor one of safetensors"
        raise InvalidFile(f"'{path}' cannot be compared: {why}")
    return content


def _read_file(path: Path, *, follow_links: bool = False) -> Any:
    """Return the values of one file, or an Opaque. Raises InvalidFile where it is damaged or none that may be read."""
    try:
        descriptor = open_regular(path, follow_links=follow_links)
    except UnreadableFile as error:
        raise InvalidFile(f"'{path}' cannot be compared: {error}") from None
    try:
        begin = os.pread(descriptor, 4, 0)
        if path.suffix == ".safetensors":
            return read_safetensors(descriptor)
        if path.suffix == ".json":
            return parse_json(read_bounded(path, MAX_JSON_BYTES, follow_links=follow_links))
        if begin == b"PK\x03\x04":
            archive.records(descriptor)  # a torn file, or a bomb, before torch sees it
            return _load(descriptor, is_zip=True)
        if path.suffix in _TORCH_SUFFIXES:
            return _load(descriptor, is_zip=False)
        return Opaque(_sha256(descriptor), "")
    except UnreadableFile as error:
        raise InvalidFile(f"'{path}' cannot be compared: {error}") from None
    finally:
        os.close(descriptor)


def _load(descriptor: int, *, is_zip: bool) -> Any:
    """Return what torch.save wrote; Opaque where only running what stands in the file would read it."""
    import torch  # the trainer has it already

    try:
        with torch.serialization.safe_globals(_numpys_types()):
            if is_zip:
                path = f"/proc/self/fd/{descriptor}"
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with open(os.dup(descriptor), "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it does not load
        return Opaque(_sha256(descriptor), f"{_NOT_PLAIN}: {_first_line(error)}")


def _numpys_types() -> list[Any]:
    """Return what an array of numpy is made of, which random number states are; [] without numpy."""
    try:
        import numpy
    except ImportError:
        return []
    core: Any = numpy._core if hasattr(numpy, "_core") else numpy.core
    makers = [core.multiarray._reconstruct, core.multiarray.scalar]
    old = [(maker, f"numpy.core.multiarray.{maker.__name__}") for maker in makers]
    kinds = {type(numpy.dtype(name)) for name in ("bool", "u1", "u4", "u8", "i4", "i8", "f4", "f8")}
    return [*makers, *old, numpy.ndarray, numpy.dtype, *kinds]


def _sha256(descriptor: int) -> str:
    digest, place = hashlib.sha256(), 0
    while block := os.pread(descriptor, 1 << 20, place):
        digest.update(block)
        place += len(block)
    return digest.hexdigest()


def read_safetensors(descriptor: int) -> dict[str, Any]:
    """Return a safetensors file's tensors by name, mapped; its `__metadata__` too, where it has one.

    Raises:
        UnreadableFile: the header lies about the file, or has a dtype that torch does not.
    """
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise UnreadableFile(f"truncated or no safetensors: a header of {length:,} bytes in a file of {size:,}")
    header = parse_json(os.pread(descriptor, length, 8))
    if not isinstance(header, dict):
        raise UnreadableFile("no safetensors: its header is no JSON object")
    view = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY))[8 + length :]
    metadata = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
    return metadata | {name: _tensor_of(name, entry, view) for name, entry in header.items()}


def _tensor_of(name: str, entry: Any, data: memoryview) -> Any:
    import torch  # the trainer has it already

    try:
        dtype = getattr(torch, _DTYPES[entry["dtype"]])
        shape, (begin, end) = [int(size) for size in entry["shape"]], entry["data_offsets"]
        numbers = 1
        for number in shape:
            numbers *= number
        if not 0 <= begin <= end <= len(data) or min([0, *shape]) < 0 or end - begin != numbers * dtype.itemsize:
            raise ValueError(f"bytes {begin} to {end} of {len(data):,} for {numbers} numbers")
        if not numbers:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=numbers, offset=begin).reshape(shape)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnreadableFile(f"the header says of '{name[:60]}' what cannot be: {error}") from None


# A folder of torch's distributed checkpointing: `.metadata`, a pickle, says in which file each part of a tensor lies.


class _PlainUnpickler(pickle.Unpickler):
    """Makes nothing but what torch's own metadata consists of."""

    def find_class(self, module: str, name: str) -> Any:
        import torch  # the trainer has it already

        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _DCP_NAMES:
            raise UnreadableFile(f"its {DCP_METADATA} names '{module}.{name}', which is no part of such metadata")
        return super().find_class(module, name)


def _dcp_pieces(folder: Path, prefix: str) -> Pieces:
    """Return a piece for each entry of a DCP folder; its tensors are put together whole, one at a time."""
    try:
        metadata = _dcp_metadata(folder)
        names = sorted(metadata.state_dict_metadata)
    except (UnreadableFile, AttributeError, TypeError) as error:
        raise InvalidFile(f"the DCP folder '{folder}' cannot be compared: {error}") from None
    before = "" if prefix == "." else f"{prefix}/"
    return {f"{before}{name}": functools.partial(_read_dcp, folder, metadata, name) for name in names}


def _dcp_metadata(folder: Path) -> Any:
    """Return a DCP folder's metadata. Raises UnreadableFile where it is none, or names what is not in the folder."""
    from torch.distributed.checkpoint import metadata as form

    data = read_bounded(folder / DCP_METADATA, MAX_DCP_METADATA_BYTES, follow_links=False)
    try:
        found = _PlainUnpickler(io.BytesIO(data)).load()
        if not isinstance(found, form.Metadata):
            raise UnreadableFile(f"its {DCP_METADATA} holds no metadata")
        files = {info.relative_path for info in found.storage_data.values()}
    except UnreadableFile:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        raise UnreadableFile(f"its {DCP_METADATA} is damaged: {type(error).__name__}") from None
    for name in files:
        is_inside = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
        if not is_inside or not os.path.lexists(folder / name) or not stat.S_ISREG(os.lstat(folder / name).st_mode):
            raise UnreadableFile(f"its {DCP_METADATA} names '{str(name)[:60]}', which is no regular file in the folder")
    return found


def _read_dcp(folder: Path, metadata: Any, name: str) -> Any:
    """Return one entry of a DCP folder through torch's own loader; a tensor whole, whatever ranks it was split over."""
    import dataclasses

    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entry = metadata.state_dict_metadata[name]
    alone = dataclasses.replace(metadata, state_dict_metadata={name: entry}, planner_data=None)
    state: dict[str, Any] = {name: None}
    reader = dcp.FileSystemReader(folder)
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    # Both would unpickle by running what stands there.
    reader.read_metadata = lambda **_named: alone
    planner.load_bytes = lambda _item, data: planner.state_dict.update({name: _plain_object(data.getvalue())})
    try:
        if isinstance(entry, TensorStorageMetadata):
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells that nothing is distributed
            dcp.load(state, storage_reader=reader, planner=planner, no_dist=True)
    except Exception as error:  # torch raises many kinds for a damaged folder
        why = _first_line(error.__cause__ or error)
        raise InvalidFile(f"'{name[:60]}' of the DCP folder '{folder}' cannot be compared: {why}") from None
    return state[name]


def _plain_object(data: bytes) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals(_numpys_types()):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # as in _load
        return Opaque(hashlib.sha256(data).hexdigest(), f"{_NOT_PLAIN}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
