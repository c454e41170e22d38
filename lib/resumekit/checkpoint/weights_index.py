"""Which files the weights of a model lie in, by the index that the packages of Hugging Face write beside them.

`model.safetensors.index.json` and `pytorch_model.bin.index.json` name for each tensor a file of their own folder. A
name that leads out of it is refused. Reads no file itself, writes nothing.
"""

from __future__ import annotations

from ..base import values
from ..base.files import UnreadableFile
from ..base.imports import NamedTuple
from . import bounded_json

SUFFIX = ".index.json"
MAX_BYTES = bounded_json.MAX_BYTES
_MAX_FILE_NAME = 255


class WeightsIndex(NamedTuple):
    """What an index says.

    Args:
        files: the names of the files, sorted.
        tensors: by the name of each tensor, its file.
        total_bytes: of all tensors, as the index has it; None where it has none. The files' headers come on top.
    """

    files: tuple[str, ...]
    tensors: dict[str, str]
    total_bytes: int | None


def read(data: bytes) -> WeightsIndex:
    """Read the whole content of an index. Raises UnreadableFile: it is none, or names what is no file of its folder."""
    index = bounded_json.parse(data, "index")
    tensors = index.get("weight_map")
    if type(tensors) is not dict or not tensors:
        raise UnreadableFile("its index has no weight_map")
    for file in tensors.values():
        if type(file) is not str:
            raise UnreadableFile("its index has what is no name of a file")
        if "/" in file or "\0" in file or file in ("", ".", "..") or len(file) > _MAX_FILE_NAME:
            raise UnreadableFile(f"its index names '{file[:120]}', which is no name of a file in its folder")
    total = values.total(values.mapping(index.get("metadata")).get("total_size"))
    return WeightsIndex(tuple(sorted(set(tensors.values()))), tensors, total)
