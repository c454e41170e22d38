"""What a checkpoint of any kind holds, as plain values and tensors, a piece at a time and nothing run.

A file is one piece; a folder has one for each file in it, and one for each entry of a folder that torch's distributed
checkpointing (DCP) wrote. What is inside is first told by the kit's own readers, which refuse what lies; files of
torch.save and safetensors are mapped, not read. Writes nothing.
Try it: `python lib/resume_helper.py --compare runs/A/checkpoints/model_100.pt runs/B/checkpoints/model_100.pt`
"""

from __future__ import annotations

import functools
import hashlib
import io
import mmap
import os
from collections.abc import Callable, Iterator

from ..base.errors import InvalidFile
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from ..base.paths import MANIFEST_SUFFIX
from ..checkpoint import archive, bounded_json, dcp_metadata, safetensors_header
from ..checkpoint.layout import Opened

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
_NOT_PLAIN = "torch does not load it with weights_only=True"


class Opaque(NamedTuple):
    """A file that is not read as values: its bytes, and why.

    Args:
        sha256: of all bytes, 64 hex digits.
        why: '' where it is no file of values; else why it cannot be read.
    """

    sha256: str
    why: str


Pieces = dict[str, Callable[[], Any]]


def pieces_of(opened: Opened) -> Pieces:
    """Return what an open checkpoint consists of: name -> a function that reads it, '' for a single file.

    A function raises InvalidFile where its file is damaged, or changes while it is read.

    Raises:
        InvalidFile: a folder is empty, or its DCP metadata cannot be used.
    """
    if not opened.is_folder:
        return {"": functools.partial(_read_single, opened)}
    pieces: Pieces = {}
    for name in opened.files:
        folder, _, last = name.rpartition("/")
        if last == dcp_metadata.NAME:
            pieces |= _dcp_pieces(opened, name, f"{folder}/" if folder else "")
        elif not _is_a_part(opened, name):
            pieces[name] = functools.partial(_read_file, opened, name)
    if not pieces:
        raise InvalidFile(f"the folder '{opened.path}' has no file in it: there is nothing to compare")
    return pieces


def _is_a_part(opened: Opened, name: str) -> bool:
    """Whether a file is told by another one: a shard, by the metadata; a manifest, by what it is of."""
    if name.endswith(".distcp"):
        folder = name.rpartition("/")[0]
        return (f"{folder}/{dcp_metadata.NAME}" if folder else dcp_metadata.NAME) in opened.files
    return name.endswith(MANIFEST_SUFFIX) and name[: -len(MANIFEST_SUFFIX)] in opened.files


def _read_single(opened: Opened) -> Any:
    content = _read_file(opened, opened.path.name)
    if isinstance(content, Opaque):
        why = content.why or "neither a file of torch.save nor one of safetensors"
        raise InvalidFile(f"'{opened.path}' cannot be compared: {why}")
    return content


def _read_file(opened: Opened, name: str) -> Any:
    try:
        descriptor = opened.open_file(name)
        try:
            return _values_of(descriptor, name)
        finally:
            os.close(descriptor)
    except UnreadableFile as error:
        path = opened.path / name if opened.is_folder else opened.path
        raise InvalidFile(f"'{path}' cannot be compared: {error}") from None


def _values_of(descriptor: int, name: str) -> Any:
    """Return the values of one file, or an Opaque. Raises UnreadableFile where it is damaged."""
    if name.endswith(".safetensors"):
        return _read_safetensors(descriptor)
    if name.endswith(".json"):
        return _read_json(descriptor)
    if os.pread(descriptor, 4, 0) == b"PK\x03\x04":
        archive.records(descriptor)  # a torn file, or a bomb, before torch sees it
        return _load(descriptor, is_zip=True)
    if name.endswith(_TORCH_SUFFIXES):
        return _load(descriptor, is_zip=False)
    return Opaque(_sha256(descriptor), "")


def _read_json(descriptor: int) -> Any:
    data = os.pread(descriptor, bounded_json.MAX_BYTES + 1, 0)
    try:
        return bounded_json.parse(data, "content")
    except UnreadableFile as error:
        return Opaque(_sha256(descriptor), str(error))


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _read_safetensors(descriptor: int) -> dict[str, Any]:
    """Return a file's tensors by name, mapped, and its metadata. Raises UnreadableFile."""
    import torch  # the trainer has it already

    header = safetensors_header.read(descriptor)
    found: dict[str, Any] = {safetensors_header.METADATA: header.metadata} if header.metadata else {}
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    for name, region in header.tensors.items():
        dtype = getattr(torch, region.dtype)
        if region.begin == region.end:
            found[name] = torch.empty(region.shape, dtype=dtype)
        else:
            numbers = (region.end - region.begin) // dtype.itemsize
            found[name] = torch.frombuffer(mapped, dtype=dtype, count=numbers, offset=region.begin).reshape(
                region.shape
            )
    return found


# A folder of torch's distributed checkpointing: `.metadata` says in which bytes of which file a part of a tensor lies.
# (torch's own loader unpickles it, and what is no tensor, with nothing held back.)


def _dcp_pieces(opened: Opened, name: str, prefix: str) -> Pieces:
    """Return a piece for each entry, whose tensor is put together whole; `prefix` is that of the folder's files."""
    try:
        descriptor = opened.open_file(name)
        try:
            metadata = dcp_metadata.read(os.pread(descriptor, dcp_metadata.MAX_BYTES + 1, 0))
        finally:
            os.close(descriptor)
        missing = next((part for part in metadata.parts if prefix + part not in opened.files), None)
        if missing is not None:
            raise UnreadableFile(f"its part '{missing}' is not there")
    except UnreadableFile as error:
        raise InvalidFile(f"the DCP folder '{opened.path}' cannot be compared: {error}") from None
    names = sorted(metadata.places)
    return {f"{prefix}{one}": functools.partial(_read_entry, opened, prefix, metadata, one) for one in names}


def _read_entry(opened: Opened, prefix: str, metadata: dcp_metadata.Metadata, name: str) -> Any:
    import torch  # the trainer has it already

    try:
        if name not in metadata.tensors:
            [(data, _)] = _parts(opened, prefix, metadata, name)
            return _load_part(data)
        shape, dtype = metadata.tensors[name]
        whole = torch.empty(shape, dtype=getattr(torch, dtype))
        for data, place in _parts(opened, prefix, metadata, name):
            part = _load_part(data)
            if not isinstance(part, torch.Tensor) or part.shape != place.sizes or part.dtype != whole.dtype:
                raise UnreadableFile(f"a part of it in '{place.part}' is not what {dcp_metadata.NAME} says")
            ends = zip(place.offsets, place.sizes, strict=True)
            whole[tuple(slice(begin, begin + size) for begin, size in ends)] = part
        return whole
    except (UnreadableFile, RuntimeError, ValueError) as error:
        why = _first_line(error)
        raise InvalidFile(f"'{name[:60]}' of the DCP folder '{opened.path}' cannot be compared: {why}") from None


def _parts(
    opened: Opened, prefix: str, metadata: dcp_metadata.Metadata, name: str
) -> Iterator[tuple[bytes, dcp_metadata.Place]]:
    for place in metadata.places[name]:
        descriptor = opened.open_file(prefix + place.part)
        try:
            yield archive.read_at(descriptor, place.end - place.begin, place.begin), place
        finally:
            os.close(descriptor)


def _load_part(data: bytes) -> Any:
    import torch  # the trainer has it already

    try:
        with torch.serialization.safe_globals(_numpys_types()):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # as in _load
        return Opaque(hashlib.sha256(data).hexdigest(), f"{_NOT_PLAIN}: {_first_line(error)}")
