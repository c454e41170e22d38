"""A file of weights, as torch.save would write it, taken out of an open checkpoint without torch.

Writes an archive of one dict, name -> tensor, in a stored zip whose records are aligned like torch's, so that it can be
mapped. The numbers are copied, never looked at. Of a record that a tensor fills only in part, that part is copied where
its elements lie side by side, else the whole; tensors that share their numbers go on sharing them.
Try it: `python -m zipfile -l runs/<run_id>/artifacts/best@400/weights.pt`
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING
from . import archive
from .torch_names import ITEM_BYTES, STORAGE_KINDS, Tensor

if TYPE_CHECKING:
    from typing import IO

ALIGNMENT = 64
# The header of a record in front of its name, that of the padding, and the field of its sizes.
_HEADER_BYTES, _FIELD, _SIZES_BYTES = 30, struct.Struct("<2H"), 20
_PADDING_ID = 0x4246  # 'FB', as torch marks its own
_WIDE_FROM = 1 << 31

# Which bytes of which record: (its key, first byte, byte behind the last).
_Span = tuple[str, int, int]


def write(out: Path, weights: Mapping[str, Tensor], source: int, records: Mapping[str, archive.Record]) -> None:
    """Write the new file `out`, durably.

    Args:
        out: there must be none of this name.
        weights: of the checkpoint, by the names that they are to have.
        source: the descriptor of the checkpoint.
        records: its records by their names inside.

    Raises:
        UnreadableFile: a tensor is of a kind that can't be written, or they claim more than the checkpoint has.
        OSError: the file could not be written.
    """
    spans: dict[_Span, str] = {}
    pickle = _pickled(weights, spans)
    if sum(end - start for _, start, end in spans) > os.fstat(source).st_size:
        raise UnreadableFile("its weights claim more bytes than it has")
    with open(out, "xb") as file:
        with zipfile.ZipFile(file, "w") as target:
            _add(target, "data.pkl", pickle)
            _add(target, "byteorder", b"big" if archive.is_big_endian(source, records) else b"little")
            for (key, start, end), number in spans.items():
                begin = archive.data_offset(source, records[f"data/{key}"])
                _copy(target, f"data/{number}", source, begin + start, end - start)
            _add(target, "version", b"3\n")
        file.flush()
        os.fsync(file.fileno())


def _pickled(weights: Mapping[str, Tensor], spans: dict[_Span, str]) -> bytes:
    """Return data.pkl, in the opcodes that torch.save writes; fill `spans` with what goes into which record."""
    parts, size = [b"\x80\x02}("], 0
    for name, tensor in weights.items():
        if tensor.dtype not in ITEM_BYTES or any(tensor.bits):
            kind = "negated or conjugated view" if any(tensor.bits) else tensor.dtype
            raise UnreadableFile(f"its weight '{name[:200]}' is a {kind}, which can't be written without torch")
        span = _span(tensor)
        parts += (_text(name), _rebuilt(tensor, span, spans.setdefault(span, str(len(spans)))))
        size += len(parts[-1]) + len(parts[-2])
        if size > archive.MAX_PICKLE_BYTES:
            raise UnreadableFile("its weights have too many names and dimensions")
    return b"".join([*parts, b"u."])


def _span(tensor: Tensor) -> _Span:
    """Return the bytes that its elements lie in: side by side in whatever order, or else its whole record."""
    width = ITEM_BYTES[tensor.dtype]
    elements, last = 1, 0
    for length, step in zip(tensor.shape, tensor.stride, strict=True):
        elements *= length
        last += (length - 1) * step
    if elements and last + 1 != elements:
        return tensor.storage.key, 0, tensor.storage.size_bytes
    return tensor.storage.key, tensor.offset * width, (tensor.offset + elements) * width


def _rebuilt(tensor: Tensor, span: _Span, key: str) -> bytes:
    """Return the call that makes a tensor of its record."""
    width, (_, start, end) = ITEM_BYTES[tensor.dtype], span
    kind = STORAGE_KINDS.get(tensor.dtype)
    storage = f"ctorch\n{kind}Storage\n" if kind else "ctorch.storage\nUntypedStorage\n"
    count = (end - start) // (width if kind else 1)
    reference = b"(" + _text("storage") + storage.encode() + _text(key) + _text("cpu") + _number(count) + b"tQ"
    place = _number(tensor.offset - start // width) + _numbers(tensor.shape) + _numbers(tensor.stride)
    own_type = b"" if kind else f"ctorch\n{tensor.dtype}\n".encode()
    function = b"ctorch._utils\n_rebuild_tensor_v2\n(" if kind else b"ctorch._utils\n_rebuild_tensor_v3\n("
    return function + reference + place + b"\x89ccollections\nOrderedDict\n)R" + own_type + b"tR"


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < _WIDE_FROM else b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _add(target: zipfile.ZipFile, name: str, data: bytes) -> None:
    with _record(target, name) as record:
        record.write(data)


def _copy(target: zipfile.ZipFile, name: str, source: int, start: int, size: int) -> None:
    buffer = memoryview(bytearray(min(size, archive.BUFFER_BYTES)))
    with _record(target, name) as record:
        while size:
            count = os.preadv(source, [buffer[:size]], start)
            if not count:
                raise UnreadableFile("truncated")
            record.write(buffer[:count])
            start, size = start + count, size - count


def _record(target: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Begin a record, padded so that its bytes begin at a multiple of 64."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    head = target.start_dir + _HEADER_BYTES + len(entry.filename) + _FIELD.size + _SIZES_BYTES
    padding = -head % ALIGNMENT
    entry.extra = _FIELD.pack(_PADDING_ID, padding) + bytes(padding)
    return target.open(entry, "w", force_zip64=True)  # always: the header is of one length
