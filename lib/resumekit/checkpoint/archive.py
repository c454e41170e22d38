"""What a checkpoint file holds, told from its zip directory and `data.pkl`: no torch, no tensor read, nothing run.

Reads the end of the file, its directory and one small record, whatever the file's size. Writes nothing.
A file that torch.save did not finish, or that claims more than it holds, is refused in a few words.
Try it: `python lib/resume_helper.py --ckpt_dir checkpoints --dry-run`
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any
from ..base.values import count
from . import layout
from .form import Keys
from .pickled import read_pickle
from .torch_names import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from .layout import Opened

MAX_RECORDS = 300_000
MAX_DIRECTORY_BYTES = 64 << 20
MAX_PICKLE_BYTES = 32 << 20
_MAX_VALUES = 2_000_000
# A file that is read whole: trainer_state.json, an index, .metadata.
MAX_SMALL_BYTES = 32 << 20
# Reading with buffers of 16 MiB halves the speed (they leave the processor's cache).
BUFFER_BYTES = 1 << 20

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL32, _FOLDER = 0xFFFFFFFF, 0x10
# The records that torch.save writes, beside `data/<number>` for each storage. With others torch may take the file for
# a program: it knows a TorchScript archive by a record's name, cut at a NUL, and finds records whatever their case.
_NAMES = frozenset({"data.pkl", "version", "byteorder", ".data/serialization_id", ".format_version",
                    ".storage_alignment"})  # fmt: skip


class OtherFormat(UnreadableFile):
    """It is no archive, and may be whole all the same: a bare pickle, a tar, any other program's file."""


class Record:
    """One stored record: where its local header lies, its size and its checksum.

    Args:
        begin: the byte of the file at which its own bytes begin; None: its local header says.
    """

    __slots__ = ("begin", "crc", "name", "offset", "size")

    def __init__(self, name: str, offset: int, size: int, crc: int, begin: int | None = None) -> None:
        self.name, self.offset, self.size, self.crc, self.begin = name, offset, size, crc, begin


# The names under which trainers keep their state; the protocol's (§6) first, then Lightning's and nanoGPT's.
WEIGHT_KEYS = ("model_state_dict", "state_dict", "model", "module")
OPTIMIZER_KEYS = ("optimizer_state_dict", "optimizer_states", "optimizer", "optimizers")
# Averages of the weights, by whichever method.
AVERAGE_KEYS = ("ema_state_dict", "swa_state_dict", "ema", "swa", "model_ema")
STEP_KEYS = ("global_step", "step")
_OTHER_NAMES = {
    WEIGHT_KEYS[0]: WEIGHT_KEYS[1:], OPTIMIZER_KEYS[0]: (*OPTIMIZER_KEYS[1:], "optim"),
    "scheduler_state_dict": ("lr_schedulers", "lr_scheduler", "scheduler"),
    "scaler_state_dict": ("scaler", "grad_scaler"), "rng_state": ("random_states_0", "rng_state_0"),
}  # fmt: skip
# Asked only where nothing else says the step: nanoGPT counts like this, others count micro-batches.
_LAST_STEP_KEYS = ("iter_num", "iteration")


class Summary:
    """What a checkpoint holds.

    Args:
        step, epoch: the counters inside, `global_step` or else `step`; None where they are absent.
        keys: the names at the top level.
        tensors: of the weights, name -> (shape, dtype).
        optimizers: name -> (number of parameter groups, number of parameters); the name is "" for a single one.
        counters: the plain numbers, strings and None at the top level.
        lr_ramp: the ramp of the learning rate after a swap, as it was saved; None without one.
        total_bytes: the size of the file.
        unsafe: names of data types in it that loading with weights_only=True refuses.
        best: the name of the best checkpoint beside it, as its framework has noted it; None where it notes none.
        world_size: ranks that have written it; None where nothing says.
        known_as: the protocol's names of what it keeps under others (`model_state_dict` for `state_dict`).
    """

    def __init__(
        self,
        *,
        step: int | None,
        epoch: int | None,
        keys: tuple[str, ...],
        tensors: dict[str, tuple[tuple[int, ...], str]],
        optimizers: dict[str, tuple[int, int]],
        counters: dict[str, Any],
        lr_ramp: Any,
        total_bytes: int,
        unsafe: tuple[str, ...],
        best: str | None = None,
        world_size: int | None = None,
        known_as: tuple[str, ...] = (),
    ) -> None:
        self.step, self.epoch, self.keys, self.tensors = step, epoch, keys, tensors
        self.best, self.world_size, self.known_as = best, world_size, known_as
        self.optimizers, self.counters, self.lr_ramp = optimizers, counters, lr_ramp
        self.total_bytes, self.unsafe = total_bytes, unsafe


def summarize(source: Path | str | int) -> Summary:
    """Say what the checkpoint `source` (a path, or an open descriptor) holds.

    Costs one read at the file's end, one of its directory and one of data.pkl.

    Raises:
        UnreadableFile: not a regular file, not a whole archive of torch.save, or one that claims what it does not hold.
    """
    if isinstance(source, int):
        value, unsafe, _ = content(source)
        return summary_of(value, os.fstat(source).st_size, unsafe)
    descriptor = layout.open_one(Path(source))
    try:
        return summarize(descriptor)
    finally:
        os.close(descriptor)


def content(descriptor: int) -> tuple[dict[Any, Any], tuple[str, ...], dict[str, Record]]:
    """Return (what an open checkpoint holds, names of unsafe types in it, its records by their names inside).

    Tensors are `torch_names.Tensor`, plain values themselves, the rest is opaque. Raises UnreadableFile as `summarize`.
    """
    _refuse_other_formats(descriptor, os.fstat(descriptor).st_size)
    inside = {record.name.partition("/")[2]: record for record in records(descriptor)}
    value, unsafe = value_of(descriptor, inside)
    if not isinstance(value, dict):
        raise UnreadableFile("it does not hold a dict at its top")
    return value, unsafe, inside


def value_of(descriptor: int, inside: Mapping[str, Record]) -> tuple[Any, tuple[str, ...]]:
    """Return (the value that an archive holds, names of unsafe types in it); see `content`.

    Args:
        descriptor: of the file.
        inside: the archive's records by their names inside.

    Raises:
        UnreadableFile: its data.pkl is missing, damaged, or has what torch.save does not write.
    """
    pickle = inside.get("data.pkl")
    if pickle is None or "version" not in inside:
        raise UnreadableFile("records are missing: the save was cut short")
    if pickle.size > MAX_PICKLE_BYTES:
        raise UnreadableFile(f"its data.pkl has {pickle.size:,} bytes, more than {MAX_PICKLE_BYTES:,}")
    data = read_at(descriptor, pickle.size, data_offset(descriptor, pickle))
    if pickle.crc and zlib.crc32(data) != pickle.crc:
        raise UnreadableFile("record 'data.pkl' differs from its checksum")
    return read_pickle(data, {name[5:]: record.size for name, record in inside.items() if name.startswith("data/")})


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, tensor) of nested dicts, lists and tuples; what is in several places is found once."""
    waiting, seen = [(value, name)], set()
    for _ in range(_MAX_VALUES):
        if not waiting:
            return
        one, place = waiting.pop()
        if isinstance(one, Tensor):
            yield place, one
        elif isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            items = one.items() if isinstance(one, dict) else enumerate(one)
            waiting += reversed([(item, f"{place}.{str(key)[:200]}") for key, item in items])


def is_big_endian(descriptor: int, inside: Mapping[str, Record]) -> bool:
    """Whether an open checkpoint's numbers begin with their highest byte, as those of few machines do.

    Args:
        descriptor: of the file.
        inside: its records by their names inside, as `content` returns them.
    """
    known = inside.get("byteorder")
    return known is not None and read_at(descriptor, min(known.size, 4), data_offset(descriptor, known)) == b"big"


def records(descriptor: int, begin: int = 0, end: int | None = None) -> list[Record]:
    """Return an archive's records in the order of the file.

    Args:
        descriptor: of the file.
        begin, end: the bytes of the file that are the archive; its whole size where no end is given.

    Raises:
        UnreadableFile: the directory is damaged, or records overlap, are compressed, or claim more than the file holds.
    """
    end = os.fstat(descriptor).st_size if end is None else end
    start, length, count = _directory(descriptor, begin, end - begin)
    data = read_at(descriptor, length, begin + start)
    found = sorted(_entries(data, count, begin), key=lambda record: record.offset)
    end_of_last = begin
    for record in found:
        if record.offset < end_of_last:
            raise UnreadableFile(f"record '{record.name}' overlaps another one")
        end_of_last = record.offset + _LOCAL.size + len(record.name.encode()) + record.size
    if end_of_last > begin + start:
        raise UnreadableFile("its records claim more bytes than the file has")
    # torch finds a record whatever its case, below the folder of the first one; here it must be the same one.
    if len({record.name.casefold() for record in found}) != len(found):
        raise UnreadableFile("two records have the same name")
    if len({record.name.partition("/")[0] for record in found}) > 1:
        raise UnreadableFile("its records lie in two folders: two archives in one file")
    return found


def data_offset(descriptor: int, record: Record) -> int:
    """Return the byte of the file at which a record's own bytes begin. Raises UnreadableFile."""
    if record.begin is not None:
        return record.begin
    name = record.name.encode()
    header = read_at(descriptor, _LOCAL.size + len(name), record.offset)
    fields = _LOCAL.unpack_from(header)
    if fields[0] != b"PK\x03\x04" or fields[9] != len(name) or header[_LOCAL.size :] != name:
        raise UnreadableFile(f"record '{record.name}' is not where the directory says")
    begin: int = record.offset + _LOCAL.size + fields[9] + fields[10]
    return begin


def summary_of(
    value: dict[Any, Any], size: int, unsafe: tuple[str, ...], keys: Keys | None = None, *, has_step: bool = True
) -> Summary:
    """Return the summary of a content.

    Args:
        size: of the file.
        keys: `checkpoint.keys`: the names that are asked instead of the usual ones.
        has_step: the step is known from elsewhere too: names that may count something else are not asked for it.
    """
    named = keys or Keys()
    plain = {key: item for key, item in value.items() if isinstance(item, (int, float, str, type(None)))}
    key = named.weights or first_of(WEIGHT_KEYS, value)
    weights = value if key is None else value.get(key)  # without any of the names: those of a model alone
    return Summary(
        step=_step_of(value, named.step, has_step=has_step),
        epoch=count(value.get("epoch")),
        keys=tuple(str(key) for key in value),
        tensors={str(name): (item.shape, item.dtype) for name, item in _mapping(weights) if isinstance(item, Tensor)},
        optimizers=_optimizers(value.get(named.optimizer or first_of(OPTIMIZER_KEYS, value))),
        counters=plain,
        lr_ramp=value.get("lr_ramp"),
        total_bytes=size,
        unsafe=unsafe,
        known_as=known_as(value, named),
    )


def known_as(there: Collection[Any], named: Keys) -> tuple[str, ...]:
    """Return the protocol's names (§6) of what a checkpoint keeps under others.

    Args:
        there: its names at the top level.
        named: `checkpoint.keys`.
    """
    told = {WEIGHT_KEYS[0]: named.weights, OPTIMIZER_KEYS[0]: named.optimizer}
    return tuple(
        name
        for name, others in _OTHER_NAMES.items()
        if name not in there and first_of([told.get(name) or "", *others], there)
    )


def first_of(keys: Sequence[str], there: Collection[Any]) -> str | None:
    """Return the first of some keys that is there; None for none."""
    return next((key for key in keys if key in there), None)


def _step_of(value: dict[Any, Any], named: str | None, *, has_step: bool) -> int | None:
    if named is not None:
        return count(value.get(named))
    return count(value.get(first_of(STEP_KEYS if has_step else (*STEP_KEYS, *_LAST_STEP_KEYS), value)))


def _optimizers(state: Any) -> dict[str, tuple[int, int]]:
    if isinstance(state, list):  # Lightning's: one state for each optimizer
        state = state[0] if len(state) == 1 else dict(enumerate(state))
    if not isinstance(state, dict):
        return {}
    several = {"": state} if "param_groups" in state else state
    shapes = {}
    for name, one in several.items():
        groups = one.get("param_groups") if isinstance(one, dict) else None
        if isinstance(groups, list):
            held = [group.get("params") for group in groups if isinstance(group, dict)]
            shapes[str(name)] = (len(groups), sum(len(own) for own in held if isinstance(own, (list, tuple))))
    return shapes


def _mapping(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _refuse_other_formats(descriptor: int, size: int) -> None:
    head = read_at(descriptor, min(size, 512), 0)
    if not head:
        raise UnreadableFile("empty: 0 bytes")
    if head[:4] == b"PK\x03\x04":
        return
    if head[257:262] == b"ustar" or head[:2] == b"\x80\x02" or head[:1] == b"\x80":
        raise OtherFormat("an old torch format (tar or bare pickle); save it anew with torch.save of torch >= 1.6")
    if head[:2] == b"\x1f\x8b":
        raise OtherFormat("a gzip file, not a checkpoint")
    if not any(head):
        raise UnreadableFile("it begins with zeros: its bytes never reached the disk")
    raise OtherFormat("not a file of torch.save")


def _directory(descriptor: int, begin: int, size: int) -> tuple[int, int, int]:
    """Return (offset, length, number of entries) of the zip directory, which must end the archive; from its begin."""
    if size < _END.size:
        raise UnreadableFile(f"truncated: only {size:,} bytes")
    tail_size = min(size, _END.size + _LOCATOR.size + _END64.size)
    tail = read_at(descriptor, tail_size, begin + size - tail_size)
    mark, _, _, _, count, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise UnreadableFile("no zip directory at its end: truncated, or bytes were appended")
    end = size - _END.size
    if tail[-_END.size - _LOCATOR.size :][:4] == b"PK\x06\x07" and len(tail) == _END.size + _LOCATOR.size + _END64.size:
        end -= _LOCATOR.size + _END64.size
        where = _LOCATOR.unpack(tail[_END64.size : -_END.size])[2]
        mark, _, _, _, _, _, _, count, length, start = _END64.unpack(tail[: _END64.size])
        if mark != b"PK\x06\x06" or where != end:
            raise UnreadableFile("its zip directory is damaged")
    if count > MAX_RECORDS:
        raise UnreadableFile(f"it claims {count:,} records, more than {MAX_RECORDS:,}")
    if start + length != end or count * _ENTRY.size > length or length > MAX_DIRECTORY_BYTES:
        raise UnreadableFile("its zip directory is damaged")
    return start, length, count


def _entries(data: bytes, count: int, begin: int) -> Iterator[Record]:
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > len(data):
            raise UnreadableFile("its zip directory is damaged")
        fields = _ENTRY.unpack_from(data, position)
        mark, method, crc, packed, size = fields[0], fields[4], fields[7], fields[8], fields[9]
        name_size, extra_size, comment_size, offset = fields[10], fields[11], fields[12], fields[16]
        position += _ENTRY.size
        name = data[position : position + name_size].decode("utf-8", "replace")
        extra = data[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if mark != b"PK\x01\x02" or position > len(data):
            raise UnreadableFile("its zip directory is damaged")
        size, packed, offset = _widened(extra, size, packed, offset)
        if method or size != packed:
            raise UnreadableFile(f"record '{name}' is compressed; torch.save never does that")
        if fields[15] & _FOLDER:
            raise UnreadableFile(f"record '{name}' is marked as a folder: torch would not read it, and not say so")
        _refuse_odd_name(name)
        yield Record(name, begin + offset, size, crc)
    if position != len(data):
        raise UnreadableFile("its zip directory is damaged")


def _refuse_odd_name(name: str) -> None:
    folder, _, inside = name.partition("/")
    if inside == "constants.pkl":
        raise UnreadableFile("a TorchScript archive, not a checkpoint of torch.save")
    is_storage = inside.startswith("data/") and inside[5:].isascii() and inside[5:].isdigit()
    if not (is_storage or inside in _NAMES) or "\0" in folder:
        raise UnreadableFile(f"record {name[:80]!r} is none that torch.save writes")


def _widened(extra: bytes, *values: int) -> list[int]:
    """Replace the 32-bit values that are full by their 64-bit ones in the zip64 extra field.

    That field is there exactly once where a value is full, with as many values as are full, and else not at all: of two
    fields torch takes the first and another reader the last, and each would find another data.pkl.
    """
    fields: list[bytes] = []
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            fields.append(extra[position + 4 : position + 4 + length])
        position += 4 + length
    full = values.count(_FULL32)
    if position != len(extra) or [len(field) for field in fields] != ([8 * full] if full else []):
        raise UnreadableFile("its zip directory is damaged: the extra fields of a record are not as torch writes them")
    wide = iter(struct.unpack(f"<{full}Q", fields[0]) if full else ())
    return [next(wide) if value == _FULL32 else value for value in values]


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return `length` bytes of an open file from `offset` on; UnreadableFile where it has fewer or cannot be read."""
    try:
        data = os.pread(descriptor, length, offset)
    except (OSError, OverflowError) as error:
        raise UnreadableFile(f"cannot be read: {error}") from error
    if len(data) != length:
        raise UnreadableFile("truncated")
    return data


def read_small(opened: Opened, name: str) -> bytes:
    """Return the bytes of a small file of an open checkpoint. Raises UnreadableFile where it is not small."""
    size = opened.files[name].size
    if size > MAX_SMALL_BYTES:
        raise UnreadableFile(f"'{name}' has {size:,} bytes, more than {MAX_SMALL_BYTES:,}")
    descriptor = opened.open_file(name)
    try:
        return read_at(descriptor, size, 0)
    finally:
        os.close(descriptor)
