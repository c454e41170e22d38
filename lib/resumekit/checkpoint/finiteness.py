"""Whether a checkpoint's bytes are sound and its values finite, as far as a run may go on from it.

A NaN in the weights, the averages or the optimizer's state is never right. An infinity is wrong in a parameter, its
average or a moment, and where an older checkpoint of the run has finite numbers in the same place. Elsewhere it may be
a mask that a model keeps (`-inf` above the diagonal), and is healthy. What else a trainer saves is not looked at.
Reads the bytes once (one_pass), and of older checkpoints what is to be compared. Writes nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from . import archive, layout, one_pass
from .archive import AVERAGE_KEYS, OPTIMIZER_KEYS, WEIGHT_KEYS, Record
from .layout import Opened
from .manifest import FileDigest, digest_of
from .torch_names import Tensor

if TYPE_CHECKING:
    from .dcp_values import Shards

# Of older checkpoints so many are looked into; one is enough where it can be read.
_OLDER = 3
# So many names are kept, and so many of them said; of a tensor's name in a shard so much.
_NAMES, _NAMED, _NAME_CHARS = 8, 3, 200
_MAX_VALUES = 2_000_000

# Files of a folder that hold no weights and no moments.
_WITHOUT_VALUES = (".json", ".txt", "training_args.bin")

# What `archive.content` returns.
Content = tuple[dict[Any, Any], tuple[str, ...], dict[str, Record]]


class Looked(NamedTuple):
    """What a look into a checkpoint found.

    Args:
        sha256: of its bytes; None where it was not asked for.
        fault: a record that differs from its checksum, in a few words; '' for none.
        bad: the names of the first few values that forbid to go on from it; none where it is finite.
        unsure: those that are infinite and may be a mask: nothing tells.
        has_values: its values were looked at, all that count.
        files: name, size and digest of each file of several; none of a single one.
        untold: the first value of a shard that counts and cannot be looked at; '' for none.
    """

    sha256: str | None
    fault: str
    bad: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    has_values: bool = False
    files: tuple[FileDigest, ...] = ()
    untold: str = ""

    @property
    def reason(self) -> str:
        """Why no run may go on from it, in a few words; '' where it may."""
        return self.fault or (not_finite(self.bad) if self.bad else "")


def look_at(
    opened: Opened, contents: Mapping[str, Content | Shards | None] | None, older: Iterable[Path] = (),
    names: Collection[str] | None = None, *, checksums: bool = False, **asked: Any,
) -> Looked:  # fmt: skip
    """Read the bytes of each file of an open checkpoint once.

    Args:
        opened: the checkpoint.
        contents: as `kinds.Inside` has it; None where its values need not be looked at.
        older: checkpoints of the same run, the newest first.
        names: of its files those that count; None for all.
        checksums, asked: as for `look`, whose errors it raises.

    Returns:
        What was found in all of them together: the digest is that of `manifest.digest_of` where there are several.
    """
    one_file = not opened.is_folder and len(opened.files) == 1
    older = list(older) if not one_file else older
    found: dict[str, Looked] = {}
    shards: Shards | None = None
    nonfinite: dict[str, str] = {}
    for name in opened.files if names is None else names:
        content = None if contents is None else contents.get(name)
        has_sums = checksums and content is not None
        # An infinite value is looked up in the same file of an older one.
        before = older if name == opened.path.name else [path / name for path in older] if opened.is_folder else ()
        descriptor = opened.open_file(name)
        try:
            if content is None or isinstance(content, tuple):
                found[name] = look(descriptor, name, _as_optimizer(content), before, checksums=has_sums, **asked)
            else:
                shards = content
                found[name] = _look_into(descriptor, name, shards, nonfinite, checksums=has_sums, **asked)
        except UnreadableFile as error:
            raise error if one_file else UnreadableFile(f"'{name}': {error}") from error
        finally:
            os.close(descriptor)
    if one_file:
        return found[opened.path.name]
    return _together(opened, found) if shards is None else _of_shards(opened, found, shards, nonfinite, older)


def _look_into(descriptor: int, name: str, shards: Shards, nonfinite: dict[str, str], **asked: Any) -> Looked:
    """Read an open shard's bytes once; what is not finite is added to what was found in others."""
    found = one_pass.read(descriptor, name, shard=shards.shard(name), **asked)
    one_pass.add(nonfinite, found.nonfinite or {})
    return Looked(found.sha256, found.fault or "", untold=found.untold or "")


def _as_optimizer(content: Content | None) -> Content | None:
    """Return the content of an optimizer's bare state under the name by which it is known as one."""
    if content is None or "param_groups" not in content[0]:
        return content
    return {OPTIMIZER_KEYS[0]: content[0]}, content[1], content[2]


def _together(opened: Opened, found: Mapping[str, Looked]) -> Looked:
    files = tuple(
        FileDigest(name, opened.files[name].size, one.sha256) for name, one in found.items() if one.sha256 is not None
    )
    return Looked(
        digest_of(files) if files else None,
        next((f"'{name}': {one.fault}" for name, one in found.items() if one.fault), ""),
        tuple(f"{name}: {bad}" for name, one in found.items() for bad in one.bad)[:_NAMES],
        tuple(f"{name}: {bad}" for name, one in found.items() for bad in one.unsure)[:_NAMES],
        all(one.has_values or name.endswith(_WITHOUT_VALUES) for name, one in found.items()),
        files,
    )


def _of_shards(
    opened: Opened, found: Mapping[str, Looked], shards: Shards, nonfinite: Mapping[str, str], older: Iterable[Path]
) -> Looked:
    """Judge tensors as wholes, wherever their chunks lie: `nonfinite` is of all shards. No other file has any."""
    untold = next((one.untold for one in found.values() if one.untold), "")
    bad, unsure = shards.judged(nonfinite, itertools.islice(older, _OLDER))
    return _together(opened, found)._replace(
        bad=tuple(name[:_NAME_CHARS] for name in bad[:_NAMES]),
        unsure=tuple(name[:_NAME_CHARS] for name in unsure[:_NAMES]),
        has_values=not untold and shards.metadata.parts.keys() <= found.keys(),
        untold=untold[:_NAME_CHARS],
    )


def look(descriptor: int, name: str, content: Content | None, older: Iterable[Path] = (), **asked: Any) -> Looked:
    """Read an open checkpoint's bytes once.

    Args:
        descriptor, name: of the file.
        content: what `archive.content` returned of it; None where its values need not be looked at.
        older: checkpoints of the same run, the newest first; they are asked what an infinite value was before.
        asked: digest, checksums, mb_per_s, keeps: as for `one_pass.read`, whose errors it raises.
    """
    value, _, inside = content or ({}, (), None)
    # What is told of the numbers of a machine of the other kind would be wrong: nothing is.
    tensors = None if inside is None or archive.is_big_endian(descriptor, inside) else tensors_of(value)
    records = None if inside is None else inside.values()
    found = one_pass.read(descriptor, name, records=records, tensors=tensors, **asked)
    bad, unsure = _judged(value, tensors or {}, found.nonfinite or {}, older)
    return Looked(found.sha256, found.fault or "", tuple(bad[:_NAMES]), tuple(unsure[:_NAMES]), tensors is not None)


def not_finite(names: Sequence[str]) -> str:
    """Say of a checkpoint that values in it are not finite."""
    return f"not finite: {', '.join(names[:_NAMED]) or 'a value in it'}"


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return by dotted name the tensors that must be finite.

    Args:
        content: what a checkpoint holds. Where weights lie under none of the usual names, every tensor counts.
    """
    has_usual = any(isinstance(content.get(name), dict) for name in WEIGHT_KEYS)
    parts = (*WEIGHT_KEYS, *AVERAGE_KEYS, *OPTIMIZER_KEYS) if has_usual else tuple(content)
    found: dict[str, Tensor] = {}
    for part in parts:
        for name, tensor in archive.tensors_in(content.get(part), str(part)):
            while name in found:  # `a.b` may be one key or two, and long ones are cut: none is left out for its name
                name += "'"
            found[name] = tensor
    return found


def _judged(
    content: Mapping[Any, Any], tensors: Mapping[str, Tensor], nonfinite: Mapping[str, str], older: Iterable[Path]
) -> tuple[list[str], list[str]]:
    """Return the names of the values that forbid to go on from a checkpoint, and of those that may be a mask."""
    bad: list[str] = []
    unsure: list[str] = []
    parameters = frozenset(_parameter_names(content.get("parameter_names")) if nonfinite else ())
    for name, kind in nonfinite.items():
        part, _, inner = name.partition(".")
        is_sure = kind == one_pass.NAN or part in OPTIMIZER_KEYS or inner in parameters
        (bad if is_sure else unsure).append(name)
    if unsure and not bad:
        bad = _finite_before(tensors, unsure, older)
        unsure = [name for name in unsure if name not in bad]
    return bad, unsure


def _finite_before(tensors: Mapping[str, Tensor], names: list[str], older: Iterable[Path]) -> list[str]:
    """Return which of some infinite tensors are finite in the newest older checkpoint that can be read."""
    for path, _ in zip(older, range(_OLDER), strict=False):
        try:
            descriptor = layout.open_one(path)
        except UnreadableFile:
            continue
        try:
            content, _, inside = archive.content(descriptor)
            before = tensors_of(content)
            return [
                name
                for name in names
                if name in before
                and _form(before[name]) == _form(tensors[name])
                and not one_pass.kinds_in(descriptor, before[name], inside[f"data/{before[name].storage.key}"])
            ]
        except (UnreadableFile, OSError, KeyError):
            continue
        finally:
            os.close(descriptor)
    return []


def _form(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    return tensor.shape, tensor.dtype


def _parameter_names(value: Any) -> Iterator[str]:
    """Yield the names in what `save_checkpoint` keeps of the optimizers' parameters: lists, by name for several."""
    waiting = [value]
    for _ in range(_MAX_VALUES):
        if not waiting:
            return
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
