"""What a safetensors file holds, told from its header: names, shapes, dtypes, where each tensor lies, its metadata.

The file is 8 bytes (the header's length, the lowest first), a JSON object, then the bytes of the tensors side by side:
without holes, without overlap, to the file's end. No tensor is read. Stricter than the safetensors package where the
format is: it begins with a brace, no name stands in it twice.
Source: https://huggingface.co/docs/safetensors (Format); the package takes headers up to 100 MB, this reader 32 MiB.
Writes nothing.
"""

from __future__ import annotations

import os
import struct

from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from . import bounded_json
from .archive import read_at
from .torch_names import ITEM_BYTES, MAX_DIMENSIONS

MAX_HEADER_BYTES = bounded_json.MAX_BYTES
METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_MAX_COUNT = 1 << 63
_FIELDS = {"dtype", "shape", "data_offsets"}


class Region(NamedTuple):
    """One tensor: what it is, and where its bytes lie.

    Args:
        dtype: as torch names it, without `torch.`.
        shape: () for a single number.
        begin, end: bytes of the file; `end` is behind the last one.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file says of itself.

    Args:
        metadata: the texts under `__metadata__`; {} without.
        tensors: name -> region, in the order of the header.
    """

    metadata: dict[str, str]
    tensors: dict[str, Region]


def read(descriptor: int) -> Header:
    """Read the header of an open file.

    Raises:
        UnreadableFile: it is no safetensors file, was cut short, or claims another size than it has.
    """
    size = os.fstat(descriptor).st_size
    if size < _LENGTH.size:
        raise UnreadableFile(f"too short for a safetensors file: {size} bytes")
    (length,) = _LENGTH.unpack(read_at(descriptor, _LENGTH.size, 0))
    if length > size - _LENGTH.size:
        raise UnreadableFile(f"truncated, or not a safetensors file: a header of {length:,} bytes in {size:,}")
    if length > MAX_HEADER_BYTES:
        raise UnreadableFile(f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
    if not length:
        raise UnreadableFile("its header is empty: its bytes never reached the disk, or not a safetensors file")
    text = read_at(descriptor, length, _LENGTH.size)
    if text[:1] != b"{":
        raise UnreadableFile("not a safetensors file: its header does not begin with '{'")
    entries = bounded_json.parse(text, "header", _unique)
    metadata = entries.pop(METADATA, {})
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise UnreadableFile(f"its {METADATA} is not an object of texts")
    begin = _LENGTH.size + length
    tensors = {name: _region(name, entry, begin) for name, entry in entries.items()}
    _refuse_gaps(tensors, begin, size)
    return Header(metadata, tensors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise UnreadableFile("its header has a name twice")
    return made


def _region(name: str, entry: Any, start: int) -> Region:
    """Return one tensor's region, its size checked against shape and dtype.

    Args:
        name: of the tensor.
        entry: what the header says of it.
        start: the byte of the file that its offsets count from.
    """
    if type(entry) is not dict or entry.keys() != _FIELDS:
        raise UnreadableFile(f"its header does not describe '{name[:80]}' as a tensor")
    named, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(named) if type(named) is str else None
    if dtype is None:
        shown = f"the unknown dtype '{named[:40]}'" if type(named) is str else "a dtype that is no text"
        raise UnreadableFile(f"tensor '{name[:80]}' has {shown}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise UnreadableFile(f"tensor '{name[:80]}' has an impossible shape or place")
    size = ITEM_BYTES[dtype]
    for length in shape:
        size *= length
    begin, end = offsets
    if size >= _MAX_COUNT or begin > end:
        raise UnreadableFile(f"tensor '{name[:80]}' has an impossible shape or place")
    if end - begin != size:
        raise UnreadableFile(f"tensor '{name[:80]}' has {end - begin:,} bytes, its shape and dtype need {size:,}")
    return Region(dtype, tuple(shape), start + begin, start + end)


def _are_counts(values: Any) -> bool:
    return type(values) is list and all(type(value) is int and 0 <= value < _MAX_COUNT for value in values)


def _refuse_gaps(tensors: dict[str, Region], begin: int, size: int) -> None:
    """Check that tensors follow each other from the header's end to the file's."""
    at = begin
    for name, region in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if region.begin != at:
            how = "overlaps another one" if region.begin < at else "lies behind a gap"
            raise UnreadableFile(f"tensor '{name[:80]}' {how}")
        at = region.end
    if at > size:
        raise UnreadableFile(f"truncated: its tensors need {at:,} bytes, it has {size:,}")
    if at < size:
        raise UnreadableFile(f"{size - at:,} bytes behind its last tensor: bytes were appended")
