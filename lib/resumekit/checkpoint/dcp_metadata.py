"""What torch.distributed.checkpoint wrote into a folder, told from its `.metadata`: no torch, no shard, nothing run.

`.metadata` is a pickle (torch itself unpickles it, with nothing held back). Here a class is only a name from a list,
with the state that torch gives it; any other name is refused, and so is a part whose name leads out of the folder.
It names each tensor with its chunks and, for each chunk and each pickled value, a file of the folder and the bytes in
it. Bounded as `pickle_machine`: 32 MiB, 10 million opcodes, which is some 130,000 chunks.
Opens and writes nothing.
"""

from __future__ import annotations

import re

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from .pickle_machine import PLAIN_ACTIONS, Machine
from .torch_names import MAX_DIMENSIONS, SIZE, Name, is_dtype, need

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = ".metadata"
MAX_BYTES = 32 << 20
MAX_COUNTED = 3_000_000
_MAX_COUNT = 1 << 63
_MAX_FILE_NAME, _MAX_WORDS = 255, 1024

_MODULE = "torch.distributed.checkpoint.metadata"
# Of torch before 2.3.
_MODULE_BEFORE = "torch.distributed._shard.sharded_tensor.metadata"
_TOP, _TENSOR, _VALUE, _CHUNK, _INDEX, _META = (
    f"{_MODULE} {name}"
    for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
                 "StorageMeta")
)  # fmt: skip
_PROPERTIES = frozenset({f"{_MODULE} TensorProperties", f"{_MODULE_BEFORE} TensorProperties"})
_FORMATS = frozenset({f"{_MODULE} _MEM_FORMAT_ENCODING", f"{_MODULE_BEFORE} MEM_FORMAT_ENCODING"})
_PLACE = "torch.distributed.checkpoint.filesystem _StorageInfo"
_PATHS = frozenset({"pathlib PosixPath", "pathlib._local PosixPath"})
_LAYOUT = "torch.serialization _get_layout"
_CLASSES = frozenset({_TOP, _TENSOR, _VALUE, _CHUNK, _INDEX, _META, _PLACE}) | _PROPERTIES
_KNOWN = _CLASSES | _FORMATS | _PATHS | {SIZE, _LAYOUT}

_RANK = re.compile(r"__([0-9]{1,9})_[0-9]{1,9}\.distcp", re.ASCII)
_GROUPS, _STATE = "param_groups", "state"


class Place(NamedTuple):
    """Where a chunk of a tensor, or a pickled value, lies.

    Args:
        part: the file, a plain name in the folder.
        begin, end: its bytes there, an archive of torch.save unless an extension transformed it; `end` is behind them.
        offsets, sizes: of the chunk in the tensor, by dimension; () of a single number and of a value.
    """

    part: str
    begin: int
    end: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Kept(NamedTuple):
    """What an optimizer keeps, by the names of the entries; its class stands nowhere in `.metadata`.

    Args:
        parameters: for how many.
        entries: 'exp_avg', 'step', ...; `parameters.family_of_entries` tells the family by them.
    """

    parameters: int
    entries: frozenset[str]


class Metadata(NamedTuple):
    """What `.metadata` says. The names are those of the flattened state dict: 'optim.state.0.weight.exp_avg'.

    Args:
        tensors: name -> (shape, dtype).
        values: names of what is no tensor, and was pickled.
        parts: file -> the least number of bytes that it must have.
        places: name -> where its chunks lie, but for empty ones; a value has one.
        paths: name -> the keys that lead to it in the state dict; where none were saved, the name's own words.
    """

    tensors: dict[str, tuple[tuple[int, ...], str]]
    values: tuple[str, ...]
    parts: dict[str, int]
    places: dict[str, tuple[Place, ...]]
    paths: dict[str, tuple[str | int, ...]]

    @property
    def keys(self) -> tuple[str, ...]:
        """The names at the top of the state dict, in its order."""
        return tuple(dict.fromkeys(str(path[0]) for path in self.paths.values()))

    @property
    def writers(self) -> int:
        """How many ranks wrote a file of their own: no more than there were."""
        return len({match[1] if (match := _RANK.fullmatch(part)) else part for part in self.parts})

    @property
    def optimizers(self) -> dict[str, Kept]:
        """By the name that their state has in the state dict ('optim'; '' at its top), what optimizers keep."""
        kept: dict[str, tuple[set[str], set[str]]] = {}
        for name in self.paths:
            before, groups, _ = f".{name}.".partition(f".{_GROUPS}.")
            if groups:
                kept.setdefault(before, (set(), set()))
        for name in self.paths:
            before, state, entry = f".{name}".partition(f".{_STATE}.")
            parameter, _, entry = entry.rpartition(".")
            if state and parameter and before in kept:
                kept[before][0].add(parameter)
                kept[before][1].add(entry)
        return {before[1:]: Kept(len(names), frozenset(entries)) for before, (names, entries) in kept.items()}


def read(data: bytes) -> Metadata:
    """Read the whole content of a `.metadata`.

    Raises:
        UnreadableFile: it has what torch does not write, names what is no file of its folder, or is not whole.
    """
    if len(data) > MAX_BYTES:
        raise UnreadableFile(f"its {NAME} has {len(data):,} bytes, more than {MAX_BYTES:,}")
    if not data:
        raise UnreadableFile(f"its {NAME} is empty: 0 bytes")
    machine = _MetadataFile(data)
    top = machine.read()
    if machine.at != len(data):
        raise UnreadableFile(f"its {NAME} has {len(data) - machine.at:,} bytes behind its end")
    try:
        return _Content(machine).of(top)
    except UnreadableFile:
        raise
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise machine.damaged() from error


class _Made:
    """An object of a class in the list: its state is given once, and does not change any more."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = None


class _MetadataFile(Machine):
    """What torch.distributed.checkpoint writes, which pickles as Python does by itself."""

    what, writer, max_opcodes = NAME, "torch.distributed.checkpoint", 10_000_000

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.counted = 0

    def count(self, number: int) -> None:
        """Count what is gone through: what is used again and again must not take for ever."""
        self.counted += number
        if self.counted > MAX_COUNTED:
            raise UnreadableFile(f"its {NAME} has more than {MAX_COUNTED:,} fields and chunks")

    def protocol(self) -> None:
        if self.take(1)[0] not in range(2, 6):
            raise UnreadableFile(f"its {NAME} is of an unknown pickle protocol")

    def frame(self) -> None:
        if self.number("<Q") > len(self.data) - self.at:
            raise UnreadableFile(f"truncated: its {NAME} ends early")

    def short_text(self) -> None:
        self.stack.append(self.take(self.number("<B")).decode("utf-8", "surrogatepass"))

    def name(self, module: Any, name: Any) -> None:
        need(type(module) is type(name) is str)
        text = f"{module} {name}"
        if text not in _KNOWN and not is_dtype(text):
            raise UnreadableFile(f"its {NAME} holds '{module[:200]}.{name[:200]}', which is not plain data")
        self.stack.append(Name(text))

    def new_object(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or function.text not in _CLASSES or arguments != ():
            raise self.made_by_hand(function)
        self.stack.append(_Made(function.text))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise self.made_by_hand(function)
        if function.text == SIZE:
            (lengths,) = arguments
            need(_are_counts(lengths))
            self.stack.append(lengths)
            return
        is_one = len(arguments) == 1 and function.text in _FORMATS | {_LAYOUT}
        wanted = int if function.text in _FORMATS else str
        is_called = is_one or (function.text in _PATHS and len(arguments) <= _MAX_WORDS)
        if not is_called or not all(type(one) is wanted for one in arguments):
            raise self.made_by_hand(function)
        self.stack.append(None)  # none of them tells anything

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        wanted = tuple if type(made) is _Made and made.kind in _PROPERTIES else dict
        if type(made) is not _Made or made.state is not None or type(state) is not wanted:
            raise self.made_by_hand(made)
        self.count(len(state))
        if wanted is dict:
            need(all(type(key) is str and key[:2] != "__" for key in state))
            state = dict(state)
        made.state = state

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        need(type(target) is dict and len(items) % 2 == 0)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # What takes long to hash, or may be chosen to collide, is no key (as in `pickled`); an object's is its id.
            need(type(key) is str or (type(key) is int and abs(key) < 1 << 53) or type(key) is _Made)
            target[key] = value

    def made_by_hand(self, what: Any) -> UnreadableFile:
        text = what.text if type(what) is Name else what.kind if type(what) is _Made else None
        name = f"'{text.replace(' ', '.')}'" if text else "a value"
        return UnreadableFile(f"its {NAME} is damaged or made by hand: {name} is not used as it is saved")


_MetadataFile.actions = {
    **PLAIN_ACTIONS,
    0x80: _MetadataFile.protocol,
    0x95: _MetadataFile.frame,
    0x94: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    0x8C: _MetadataFile.short_text,
    0x93: lambda m: m.name(m.stack.pop(-2), m.stack.pop()),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    ord("R"): _MetadataFile.reduce,
    0x81: _MetadataFile.new_object,
    ord("b"): _MetadataFile.build,
}


class _Content:
    """Goes through what was read, and checks that it is whole in itself."""

    def __init__(self, machine: _MetadataFile) -> None:
        self.count: Callable[[int], None] = machine.count
        self.parts: dict[str, int] = {}

    def of(self, top: Any) -> Metadata:
        fields = _state(top, _TOP)
        described, stored = fields["state_dict_metadata"], fields.get("storage_data")
        if type(described) is not dict or type(stored) is not dict:
            raise UnreadableFile(f"its {NAME} does not say where its parts lie")
        held = dict(self._held(index, place) for index, place in stored.items())
        tensors: dict[str, tuple[tuple[int, ...], str]] = {}
        places: dict[str, tuple[Place, ...]] = {}
        for name, entry in described.items():
            need(type(name) is str and type(entry) is _Made)
            if entry.kind == _VALUE:
                places[name] = (_found(held, name, None),)
            else:
                shape, dtype, chunks = self._tensor(name, _state(entry, _TENSOR))
                tensors[name] = shape, dtype
                places[name] = tuple(
                    _found(held, name, offsets)._replace(offsets=offsets, sizes=sizes)
                    for offsets, sizes in chunks
                    if _product(sizes)
                )
        values = tuple(name for name in described if name not in tensors)
        return Metadata(tensors, values, self.parts, places, self._paths(described, fields.get("planner_data")))

    def _held(self, index: Any, place: Any) -> tuple[str, Place]:
        """Return (the key of a name and a chunk's offsets, where it lies)."""
        which, where = _state(index, _INDEX), _state(place, _PLACE)
        name, offsets, part = which["fqn"], which.get("offset"), where["relative_path"]
        begin, length = where["offset"], where["length"]
        need(type(name) is str and type(part) is str and (offsets is None or _are_counts(offsets)))
        need(_are_counts((begin, length)) and begin + length < _MAX_COUNT)
        if "/" in part or "\0" in part or part in ("", ".", "..") or len(part) > _MAX_FILE_NAME:
            raise UnreadableFile(f"its {NAME} names the part '{part[:120]}', which is no name of a file in its folder")
        self.parts[part] = max(self.parts.get(part, 0), begin + length)
        return _key(name, offsets), Place(part, begin, begin + length, (), ())

    def _tensor(
        self, name: str, fields: dict[str, Any]
    ) -> tuple[tuple[int, ...], str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """Return (shape, dtype, (offsets, sizes) of each chunk); the chunks must fill the tensor."""
        shape, chunks, properties = fields["size"], fields["chunks"], fields["properties"]
        need(type(properties) is _Made and properties.kind in _PROPERTIES and len(properties.state) == 5)
        dtype = properties.state[0]
        need(type(dtype) is Name and is_dtype(dtype.text) and _are_counts(shape) and type(chunks) is list)
        self.count(len(chunks))
        found, volume = [], 0
        for chunk in chunks:
            state = _state(chunk, _CHUNK)
            offsets, sizes = state["offsets"], state["sizes"]
            need(_are_counts(offsets) and _are_counts(sizes) and len(offsets) == len(sizes) == len(shape))
            need(all(at + size <= most for at, size, most in zip(offsets, sizes, shape, strict=True)))
            volume += _product(sizes)
            found.append((offsets, sizes))
        if volume != _product(shape):
            raise UnreadableFile(f"its {NAME} has {volume:,} of the {_product(shape):,} elements of '{name[:80]}'")
        return shape, dtype.text.removeprefix("torch "), found

    def _paths(self, described: dict[str, Any], planned: Any) -> dict[str, tuple[str | int, ...]]:
        paths: dict[str, tuple[str | int, ...]] = {}
        for name in described:
            path = planned.get(name) if type(planned) is dict else None
            if type(path) is tuple and path:
                self.count(len(path))
                need(all(type(key) in (str, int) for key in path))
                paths[name] = path
            else:
                paths[name] = tuple(name.split("."))
        return paths


def _state(made: Any, kind: str) -> dict[str, Any]:
    need(type(made) is _Made and made.kind == kind)
    state: dict[str, Any] = made.state
    return state


def _key(name: str, offsets: tuple[int, ...] | None) -> str:
    """Return one text: whole numbers in a tuple may be chosen so that all of them have one hash."""
    return f"{offsets} {name}"


def _found(held: dict[str, Place], name: str, chunk: tuple[int, ...] | None) -> Place:
    """Return the place of a chunk, or of a value, and take it out: a chunk that is listed twice has none."""
    place = held.pop(_key(name, chunk), None)
    if place is None:
        raise UnreadableFile(f"its {NAME} does not say where {'a chunk of ' if chunk else ''}'{name[:80]}' lies")
    return place


def _are_counts(values: Any) -> bool:
    return (
        type(values) is tuple
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < _MAX_COUNT for value in values)
    )


def _product(lengths: tuple[int, ...]) -> int:
    product = 1
    for length in lengths:
        product *= length
    return product
