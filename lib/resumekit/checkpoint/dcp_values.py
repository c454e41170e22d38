"""Where torch.distributed.checkpoint's shards have the values that must be finite, told as a pass comes to them.

In a shard (`*.distcp`) each chunk of a tensor and each pickled value lies where `.metadata` says, an archive of
torch.save for itself. What a storage extension has compressed, or another writer has put there (safetensors), and a
value of a class that is no plain data cannot be told: its name is kept, and nothing is unpickled. A shard's items are
gone through one after the other, whatever their number, and are never all in memory. Writes nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import NamedTuple
from . import archive, dcp_metadata, layout, one_pass
from .archive import AVERAGE_KEYS, OPTIMIZER_KEYS, WEIGHT_KEYS, Record
from .dcp_metadata import Metadata
from .form import Keys
from .layout import Opened
from .one_pass import Span
from .torch_names import Tensor

# What an archive begins with, and what a drive has that never got the bytes.
_ARCHIVE, _NOTHING = b"PK\x03\x04", bytes(4)
# The pickles of one shard together: those of 200,000 chunks.
_MAX_PICKLES_BYTES = archive.MAX_PICKLE_BYTES
_STATE = ".state."


class Item(NamedTuple):
    """A chunk of a tensor, or a pickled value.

    Args:
        begin, end: its bytes in the shard; `end` is behind them.
        name: in the flattened state dict: 'model.layer.weight'.
        form: the chunk's shape and dtype; None of a value.
        counts: its tensors must be finite.
    """

    begin: int
    end: int
    name: str
    form: tuple[tuple[int, ...], str] | None
    counts: bool


class Shards:
    """What `.metadata` says of the values of all shards of a folder.

    Args:
        metadata: what was read of it.
        keys: `checkpoint.keys`.
        key: which `.metadata` it was, and in which state.
    """

    def __init__(self, metadata: Metadata, keys: Keys, key: str) -> None:
        self.metadata, self._keys, self._key = metadata, keys, f"{key} {keys.weights} {keys.optimizer}"
        self._weights = frozenset({*WEIGHT_KEYS, keys.weights})
        self._optimizers = frozenset({*OPTIMIZER_KEYS, "optim", keys.optimizer})
        self._usual = self._weights | self._optimizers | frozenset(AVERAGE_KEYS)
        self._is_one = len(metadata.keys) == 1 and metadata.keys[0] not in self._usual

    def shard(self, name: str) -> Shard | None:
        """Return what lies in one shard; None for a file that is none."""
        return Shard(self._key, self._items.get(name, ())) if name in self.metadata.parts else None

    def judged(self, nonfinite: Mapping[str, str], older: Iterable[Path]) -> tuple[list[str], list[str]]:
        """Return the names of the values that forbid to go on from a checkpoint, and of those that may be a mask.

        Args:
            nonfinite: name -> `one_pass.NAN` or INFINITE, of the tensors that are not finite.
            older: checkpoints of the same run, the newest first; they are asked what an infinite tensor was before.
        """
        bad: list[str] = []
        unsure: list[str] = []
        for name, kind in nonfinite.items():
            is_sure = kind == one_pass.NAN or self._is_moment(name) or self._is_parameter(name)
            (bad if is_sure else unsure).append(name)
        if unsure and not bad:
            bad = self._finite_before(unsure, older)
            unsure = [name for name in unsure if name not in bad]
        return bad, unsure

    def _finite_before(self, names: list[str], older: Iterable[Path]) -> list[str]:
        """Return which of some tensors the newest older checkpoint that can be read has finite numbers in."""
        for path in older:
            try:
                return self._finite_in(path, names)
            except (UnreadableFile, OSError):
                continue
        return []

    def _finite_in(self, path: Path, names: list[str]) -> list[str]:
        forms = self.metadata.tensors
        with layout.open_checkpoint(path) as opened:
            before = shards_of(opened, self._keys)
            found = [name for name in names if before.metadata.tensors.get(name) == forms[name]]
            for part, shard in before._of(found).items():
                bad = _nonfinite(opened, part, shard)
                found = [name for name in found if name not in bad]
            return found

    def _is_moment(self, name: str) -> bool:
        return self._part(name) in self._optimizers or any(
            name.startswith(f"{kept}{_STATE}" if kept else _STATE[1:]) for kept in self._kept
        )

    def _is_parameter(self, name: str) -> bool:
        """Whether an optimizer has a state for a tensor by its name: it is no mask."""
        inner = name.removeprefix(f"{self.metadata.keys[0]}.") if self._is_one else name
        return inner in self._parameters or inner.removeprefix(f"{self._part(name)}.") in self._parameters

    def _of(self, names: Iterable[str]) -> dict[str, Shard]:
        """Return by shard where some tensors lie, and nothing else of it."""
        wanted, found = frozenset(names), {}
        for part, items in self._items.items():
            if own := [item for item in items if item.name in wanted]:
                found[part] = Shard(self._key, own)
        return found

    @functools.cached_property
    def _items(self) -> dict[str, list[Item]]:
        """By shard its items, in the order of the file."""
        tensors, places = self.metadata.tensors, self.metadata.places
        parts = {name: self._part(name) for name in places}
        has_usual = any(parts[name] in self._weights for name in tensors)
        found: dict[str, list[Item]] = {}
        for name, held in places.items():
            known = tensors.get(name)
            # Where weights lie under none of the usual names every tensor counts; a value is none.
            counts = parts[name] in self._usual or (known is not None and not has_usual)
            for place in held:
                form = None if known is None else (place.sizes, known[1])
                found.setdefault(place.part, []).append(Item(place.begin, place.end, name, form, counts))
        for items in found.values():
            items.sort(key=lambda item: item[:2])
        return found

    @functools.cached_property
    def _kept(self) -> tuple[str, ...]:
        return tuple(self.metadata.optimizers)

    @functools.cached_property
    def _parameters(self) -> frozenset[str]:
        """The names that optimizers have states for: 'layer.weight' of 'optim.state.layer.weight.exp_avg'."""
        states = (name.partition(_STATE)[2] for name in self.metadata.tensors if self._is_moment(name))
        return frozenset(state.rpartition(".")[0] for state in states)

    def _part(self, name: str) -> str:
        """Return the name of the part of the state dict that an entry is in: 'model', 'optim'."""
        path = self.metadata.paths[name]
        return str(path[1 if self._is_one and len(path) > 1 else 0])


class Shard:
    """What lies in one shard, as `one_pass.read` asks for it.

    Args:
        key: which `.metadata` has told it, and in which state.
        items: in the order of the file.

    Attributes:
        untold: the first item that counts and cannot be told; '' for none, when all spans were gone through.
    """

    def __init__(self, key: str, items: Iterable[Item]) -> None:
        self.key, self.untold = key, ""
        self._items, self._left_bytes = items, _MAX_PICKLES_BYTES

    def spans(self, descriptor: int) -> Iterator[Span]:
        """Yield the records of all archives in an open shard, in the order of the file.

        Raises:
            UnreadableFile: an archive is damaged, or its bytes never reached the disk.
        """
        end_of_last = 0
        for item in self._items:
            if item.begin < end_of_last:  # as a writer of safetensors says it; nothing is read twice
                self._cannot_tell(item)
                continue
            end_of_last = item.end
            try:
                yield from self._spans_of(descriptor, item)
            except UnreadableFile as error:
                raise UnreadableFile(f"'{item.name[:200]}' in it: {error}") from error

    def _cannot_tell(self, item: Item) -> None:
        if item.counts and not self.untold:
            self.untold = item.name

    def _spans_of(self, descriptor: int, item: Item) -> Iterator[Span]:
        head = archive.read_at(descriptor, min(len(_ARCHIVE), item.end - item.begin), item.begin)
        if head == _NOTHING:
            raise UnreadableFile("it begins with zeros: its bytes never reached the disk")
        if head != _ARCHIVE:
            self._cannot_tell(item)
            return
        records = archive.records(descriptor, item.begin, item.end)
        inside = {record.name.partition("/")[2]: record for record in records}
        held = self._tensors(descriptor, item, inside) if item.counts else {}
        has_sum = any(record.crc for record in records)
        for name, record in inside.items():
            begin = archive.data_offset(descriptor, record)
            if begin + record.size > item.end:
                raise UnreadableFile(f"record '{record.name}' is not where the directory says")
            yield one_pass.span_of(f"{item.name[:200]}/{name}", record, begin, held.get(name, ()), has_sum=has_sum)

    def _tensors(
        self, descriptor: int, item: Item, inside: Mapping[str, Record]
    ) -> dict[str, list[tuple[str, Tensor]]]:
        """Return by record the tensors that an item which counts holds, all by the item's name."""
        pickle = inside.get("data.pkl")
        self._left_bytes -= pickle.size if pickle else 0
        held: dict[str, list[tuple[str, Tensor]]] = {}
        try:
            if self._left_bytes < 0 or archive.is_big_endian(descriptor, inside):
                raise UnreadableFile("not looked into")
            value, _ = archive.value_of(descriptor, inside)
        except UnreadableFile:
            self._cannot_tell(item)
            return {}
        for _, tensor in archive.tensors_in(value, ""):
            held.setdefault(f"data/{tensor.storage.key}", []).append((item.name, tensor))
        is_it = type(value) is Tensor and item.form == (value.shape, value.dtype)
        if (item.form is not None and not is_it) or any(name[:5] == "data/" and name not in held for name in inside):
            self._cannot_tell(item)
        return held


def shards_of(opened: Opened, keys: Keys) -> Shards:
    """Return what the `.metadata` of an open folder says of its shards.

    Args:
        keys: `checkpoint.keys`.

    Raises:
        UnreadableFile: it is not there, or not as torch writes it.
    """
    seen = opened.files.get(dcp_metadata.NAME)
    if seen is None:
        raise UnreadableFile(f"no {dcp_metadata.NAME}, which is written last: its save was not completed")
    known = dcp_metadata.read(archive.read_small(opened, dcp_metadata.NAME))
    return Shards(known, keys, f"{seen.file} {seen.version}")


def _nonfinite(opened: Opened, part: str, shard: Shard) -> set[str]:
    """Return which tensors of an older shard are not finite. Raises UnreadableFile where that of one cannot be told."""
    descriptor = opened.open_file(part)
    try:
        found = {
            name
            for span in shard.spans(descriptor)
            for name, tensor in span.tensors
            if one_pass.kinds_in(descriptor, tensor, span.record)
        }
    finally:
        os.close(descriptor)
    if shard.untold:
        raise UnreadableFile(f"'{shard.untold[:200]}' in it cannot be told")
    return found
