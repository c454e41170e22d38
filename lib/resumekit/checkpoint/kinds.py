"""What kind of checkpoint lies at a path, whether it is whole, and what it holds: told without torch, nothing run.

A kind knows by which files it is recognised and what a whole one has. It reads names, headers, directories and small
records, never a tensor. Writes nothing. To add one: a function here, its name in `form.KINDS` and in `_FOLDER_KINDS`.
Try it: `python lib/resume_helper.py --inspect PATH`
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import STEP_DIGITS
from ..base.terminal import first_few
from . import archive, form, layout, sharded_folder
from .archive import Record, Summary
from .form import Form
from .layout import Opened
from .torch_names import ITEM_BYTES, Storage, Tensor

if TYPE_CHECKING:
    from .dcp_values import Shards
    from .finiteness import Content

TRAINER_STATE = "trainer_state.json"
DCP_METADATA = ".metadata"
# What Transformers puts there while it saves just in time, and takes away at the end.
_INCOMPLETE = "checkpoint-is-incomplete.txt"
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")
_PLAIN = (".json", ".txt", ".md")
# Pickles that no trainer reads to go on: what they hold is for people.
_FOR_PEOPLE = frozenset({"training_args.bin"})
# Small objects that a load reads; of others, a tokenizer's say, it is not known what they have to be.
_CONFIGS = frozenset({"config.json", "generation_config.json"})
_HF_RANK = re.compile(r"rng_state_([0-9]{1,9})\.pth", re.ASCII)
_ACCELERATE_RANK = re.compile(r"random_states_([0-9]{1,9})\.pkl", re.ASCII)
_MISSING_NAMED = 3


class Inside(NamedTuple):
    """What a look into a checkpoint found.

    Args:
        kind: one of `form.KINDS`, never 'auto'.
        summary: step, keys, shapes, optimizers and the like.
        contents: by name of a file what its values are (`archive.content`, or where its shards have them); None of one
            that is not read as such: only its digest tells whether it is whole.
    """

    kind: str
    summary: Summary
    contents: Mapping[str, Content | Shards | None]

    @property
    def loads_with_kit(self) -> bool:
        """Whether `load_resume_bundle` loads it: a file of torch.save, or a folder of `save_sharded`."""
        return self.kind == form.FILE or (self.kind == form.DCP and sharded_folder.STATE_FILE in self.contents)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, not one file or some."""
        return self.kind in _FOLDER_KINDS


def look_inside(checkpoint: Path, named: Form) -> Inside:
    """Open a checkpoint and say what it holds. Raises UnreadableFile as `inspect`."""
    layout.refuse_odd_files(checkpoint, may_be_folder=True, follow_links=named.follow_links)
    with layout.open_checkpoint(checkpoint, named.companions_of(checkpoint.name), named.follow_links) as opened:
        return inspect(opened, named, has_step=named.step_of(checkpoint.name) is not None)


def inspect(opened: Opened, named: Form, *, has_step: bool, weights_alone: bool = False) -> Inside:
    """Say what an open checkpoint is and holds.

    Args:
        opened: the checkpoint.
        named: what the config says of its kind and keys.
        has_step: its step is known from elsewhere too, by its name or manifest.
        weights_alone: nothing but weights is wanted of a folder: one without an optimizer will do.

    Raises:
        UnreadableFile: it is not whole, or not of the kind that the config says; one short reason.
    """
    if weights_alone and opened.is_folder and any(is_weights(name) for name in opened.files):
        _require_weights(opened)
        return _framework(form.HF, opened, _contents(opened), None)
    kind = named.kind if named.kind != form.AUTO else kind_of(opened, named)
    if opened.is_folder != (kind in _FOLDER_KINDS):
        what = "a folder" if opened.is_folder else "a file"
        raise UnreadableFile(f"{what}, and checkpoint.kind '{kind}' is none")
    if opened.is_folder:
        return _FOLDER_KINDS[kind](opened, named)
    return _file(opened, named, kind, has_step=has_step)


def kind_of(opened: Opened, named: Form) -> str:
    """Return the kind by the names of its files, or the name of a file. Raises UnreadableFile for an unknown folder."""
    if not opened.is_folder:
        return form.SAFETENSORS if opened.path.name.endswith(form.SAFETENSORS_SUFFIX) else form.FILE
    if named.complete_when is not None:
        return form.FOLDER
    names = opened.files.keys()
    if DCP_METADATA in names or any(name.endswith(".distcp") and "/" not in name for name in names):
        return form.DCP
    if TRAINER_STATE in names or _INCOMPLETE in names:
        return form.HF
    if any(name.startswith("random_states_") for name in names):
        return form.ACCELERATE
    if "training_args.bin" in names or "rng_state.pth" in names or {"optimizer.pt", "scheduler.pt"} & names:
        return form.HF
    if {"optimizer.bin", "scheduler.bin"} & names:
        return form.ACCELERATE
    if any(is_weights(name) for name in names):
        raise UnreadableFile("a folder of weights alone: no optimizer, no step; they do not go on training")
    raise UnreadableFile(
        "a folder of no known kind: checkpoint.complete_when names the file that a whole one has"
        if names else "an empty folder: its save was not completed"
    )  # fmt: skip


def is_weights(name: str) -> bool:
    """Whether a file's name is that of a model's weights, or of a part of them, as Transformers and Accelerate say."""
    stem = name.partition(".")[0].partition("-")[0]
    return (
        "/" not in name and stem.rstrip("_0123456789") in _WEIGHTS and name.endswith((form.SAFETENSORS_SUFFIX, ".bin"))
    )


def _file(opened: Opened, named: Form, kind: str, *, has_step: bool) -> Inside:
    name, size = opened.path.name, opened.identity.size
    contents: dict[str, Content | None] = {}
    for one in opened.files:
        is_main = one == name
        own = kind if is_main else form.SAFETENSORS if one.endswith(form.SAFETENSORS_SUFFIX) else form.FILE
        try:
            contents[one] = None if own == form.OTHER else _content(opened, one, own)
        except UnreadableFile as error:
            if is_main:
                raise
            raise UnreadableFile(f"'{one}', which belongs to it: {error}") from error
    if kind == form.OTHER and not size:
        raise UnreadableFile("empty: 0 bytes")
    value: dict[Any, Any] = {}
    unsafe: set[str] = set()
    for one in reversed(contents):  # of two with one key that of the file itself counts
        content = contents[one]
        if content is not None:
            value |= _in_its_place(content[0], one, is_main=one == name)
            unsafe.update(content[1])
    unsafe.update(_unread(contents))
    summary = archive.summary_of(value, size, tuple(sorted(unsafe)), named.keys, has_step=has_step)
    summary.best = _best_of_lightning(value)
    return Inside(kind, summary, contents)


def _in_its_place(value: dict[Any, Any], name: str, *, is_main: bool) -> dict[Any, Any]:
    """Return the content of a companion under the key of what it is: an optimizer's bare state, or weights."""
    if is_main or archive.first_of((*archive.WEIGHT_KEYS, *archive.OPTIMIZER_KEYS), value):
        return value
    if "param_groups" in value:
        return {archive.OPTIMIZER_KEYS[0]: value}
    return {f"({name})": value}


def _best_of_lightning(value: Mapping[Any, Any]) -> str | None:
    """Return the name of the best checkpoint that Lightning's ModelCheckpoint has noted; None without."""
    callbacks = value.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        path = state.get("best_model_path") if isinstance(state, dict) else None
        if isinstance(path, str) and path:
            return os.path.basename(path)
    return None


def _content(opened: Opened, name: str, kind: str) -> Content | None:
    """Return the content of one file; None for a pickle without an archive, which is not read."""
    descriptor = opened.open_file(name)
    try:
        if kind == form.SAFETENSORS:
            return safetensors_content(descriptor)
        try:
            return archive.content(descriptor)
        except archive.OtherFormat:
            if name == opened.path.name:
                raise
            return None
    finally:
        os.close(descriptor)


def safetensors_content(descriptor: int) -> Content:
    """Return what an open safetensors file holds, in the form of `archive.content`: its metadata, and its tensors under
    'model'.
    """
    from . import safetensors_header  # late: it reads JSON

    header = safetensors_header.read(descriptor)
    tensors, records = {}, {}
    for number, (name, region) in enumerate(header.tensors.items()):
        key, size = str(number), region.end - region.begin
        records[f"data/{key}"] = Record(f"safetensors/data/{key}", region.begin, size, 0, begin=region.begin)
        held = Storage(key, region.dtype, ITEM_BYTES[region.dtype], size)
        tensors[name] = Tensor(region.shape, region.dtype, held, 0, _row_by_row(region.shape), ())
    return {**{key: _number_in(text) for key, text in header.metadata.items()}, "model": tensors}, (), records


def _number_in(text: str) -> int | str:
    """Return the whole number that a text is, as a step is one; any other text as it stands."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= STEP_DIGITS else text


def _row_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps, step = [], 1
    for length in reversed(shape):
        steps.append(step)
        step *= length
    return tuple(reversed(steps))


def _hf(opened: Opened, named: Form) -> Inside:
    """Transformers' Trainer: weights, optimizer.pt, scheduler.pt, rng_state*.pth; trainer_state.json comes last."""
    from . import trainer_state  # late, as safetensors_header

    if _INCOMPLETE in opened.files:
        raise UnreadableFile(f"{_INCOMPLETE} is in it: its save was not completed")
    if TRAINER_STATE not in opened.files:
        raise UnreadableFile(f"no {TRAINER_STATE}, which is written last: its save was not completed")
    contents = _contents(opened)
    _require_weights(opened)
    _require_optimizer(opened)
    for stem in ("scheduler", "rng_state"):
        if not any(name.startswith(stem) for name in opened.files) and not _has_inner(opened, "global_step"):
            raise UnreadableFile(f"no {stem} in it, which the Trainer saves with its optimizer")
    state = trainer_state.read(archive.read_small(opened, TRAINER_STATE))
    inside = _framework(form.HF, opened, contents, state.step)
    inside.summary.epoch = None if state.epoch is None else int(state.epoch)
    inside.summary.best = state.best_checkpoint
    # One rank alone writes rng_state.pth.
    inside.summary.world_size = _ranks(opened, _HF_RANK) or 1
    return inside


def _accelerate(opened: Opened, named: Form) -> Inside:
    """Accelerate's save_state: weights, optimizer.bin, scheduler.bin; random_states_<rank>.pkl comes last.

    No file has the trainer's step: `step` in the random states counts batches of an epoch, and the schedule's is
    stepped once for each process. So it is the one in the folder's name.
    """
    if not any(name.startswith("random_states_") for name in opened.files):
        raise UnreadableFile("no random_states_*.pkl, which is written last: its save was not completed")
    contents = _contents(opened)
    _require_weights(opened)
    _require_optimizer(opened)
    inside = _framework(form.ACCELERATE, opened, contents, None)
    inside.summary.world_size = _ranks(opened, _ACCELERATE_RANK)
    return inside


def _dcp(opened: Opened, named: Form) -> Inside:
    """torch.distributed.checkpoint: shards `*.distcp`, and `.metadata`, which is renamed into its place last."""
    from . import dcp_values  # late, as safetensors_header

    shards = dcp_values.shards_of(opened, named.keys)
    known = shards.metadata
    for name, least in known.parts.items():
        seen = opened.files.get(name)
        if seen is None:
            raise UnreadableFile(f"'{name}', which its {DCP_METADATA} names, is not there")
        if seen.size < least:
            raise UnreadableFile(f"'{name}' is truncated: {seen.size:,} of {least:,} bytes")
    if sharded_folder.STATE_FILE in opened.files:
        return _sharded(opened, shards)
    # Of one object around all else (`{"app": AppState}`) what is inside it counts.
    around = f"{known.keys[0]}." if len(known.keys) == 1 else ""
    inner = tuple(dict.fromkeys(str(path[1]) for path in known.paths.values() if around and len(path) > 1))
    parts = (*known.keys, *inner)
    weights = archive.first_of([key for key in (named.keys.weights, *archive.WEIGHT_KEYS) if key], parts)
    own = f"{around if weights in inner else ''}{weights}." if weights else ""
    summary = Summary(
        step=None, epoch=None, keys=known.keys,
        tensors={name.removeprefix(own): one for name, one in known.tensors.items() if name.startswith(own)},
        optimizers={}, counters={}, lr_ramp=None, total_bytes=opened.identity.size,
        unsafe=(known.values[0],) if known.values else (),  # its loader unpickles those
        world_size=known.writers or None, known_as=archive.known_as(parts, named.keys),
    )  # fmt: skip
    return Inside(form.DCP, summary, {name: shards if name in known.parts else None for name in opened.files})


def _sharded(opened: Opened, shards: Shards) -> Inside:
    """A DCP folder of `save_sharded`: what is no tensor is told as of a file of `save_checkpoint`."""
    known, name = shards.metadata, sharded_folder.STATE_FILE
    try:
        content = _content(opened, name, form.FILE)
    except UnreadableFile as error:
        raise UnreadableFile(f"'{name}': {error}") from error
    value, unsafe, _ = content or ({}, (), {})
    ranks = sharded_folder.require_whole(value, known)
    summary = archive.summary_of(value, opened.identity.size, unsafe)
    own = f"{sharded_folder.WEIGHTS}."
    summary.tensors = {one.removeprefix(own): form for one, form in known.tensors.items() if one.startswith(own)}
    summary.world_size = ranks
    return Inside(form.DCP, summary, {one: shards if one in known.parts else None for one in opened.files})


def _folder(opened: Opened, named: Form) -> Inside:
    """Any folder, whole when it has the file `checkpoint.complete_when`; of files that can be read, what is in them."""
    mark = named.complete_when
    if mark is None:
        raise UnreadableFile("checkpoint.kind 'folder' needs checkpoint.complete_when: the file that a whole one has")
    if mark not in opened.files and not any(name.startswith(f"{mark}/") for name in opened.files):
        raise UnreadableFile(f"no '{mark}' (checkpoint.complete_when): its save was not completed")
    return _framework(form.FOLDER, opened, _contents(opened), None)


_FOLDER_KINDS: dict[str, Callable[[Opened, Form], Inside]] = {
    form.HF: _hf, form.ACCELERATE: _accelerate, form.DCP: _dcp, form.FOLDER: _folder,
}  # fmt: skip


def _contents(opened: Opened) -> dict[str, Content | None]:
    """Read the directory of each archive and the header of each safetensors file of a folder."""
    contents: dict[str, Content | None] = {}
    for name in opened.files:
        kind = (
            form.SAFETENSORS
            if name.endswith(form.SAFETENSORS_SUFFIX)
            else form.FILE
            if name.endswith(form.ARCHIVE_SUFFIXES)
            else None
        )
        try:
            if kind is None or name in _FOR_PEOPLE:
                contents[name] = None
                _refuse_torn(opened, name)
            else:
                contents[name] = _content(opened, name, kind)
        except UnreadableFile as error:
            raise UnreadableFile(f"'{name}': {error}") from error
    return contents


def _unread(contents: Mapping[str, Content | None]) -> list[str]:
    """Return the files of which the kit cannot say that they hold plain data: a trainer may unpickle them."""
    return [name for name, content in contents.items() if content is None and not name.endswith(_PLAIN)]


def _refuse_torn(opened: Opened, name: str) -> None:
    """Raise where a file that is not read for what it holds is not whole: JSON, an archive of classes."""
    if name in _FOR_PEOPLE:
        descriptor = opened.open_file(name)
        try:
            archive.records(descriptor)
        finally:
            os.close(descriptor)
    elif name in _CONFIGS:
        from . import bounded_json  # late, as safetensors_header

        bounded_json.parse(archive.read_small(opened, name), "JSON")


def _require_weights(opened: Opened) -> None:
    """Raise where a framework's folder has no weights, or not all parts that their index names."""
    from . import weights_index  # late, as safetensors_header

    for name in opened.files:
        if not name.endswith(weights_index.SUFFIX) or "/" in name:
            continue
        named = weights_index.read(archive.read_small(opened, name))
        if missing := [one for one in named.files if one not in opened.files]:
            raise UnreadableFile(f"no {first_few(missing, _MISSING_NAMED)}, which '{name}' names")
    if not any(is_weights(name) for name in opened.files) and not _has_inner(
        opened, "pytorch_model_fsdp", "global_step"
    ):
        raise UnreadableFile("no weights in it (model.safetensors, pytorch_model.bin or their parts)")


def _require_optimizer(opened: Opened) -> None:
    is_there = any(name.startswith("optimizer") and name.endswith((".pt", ".bin")) for name in opened.files)
    if not is_there and not _has_inner(opened, "optimizer", "global_step"):
        raise UnreadableFile("no optimizer in it (optimizer.pt, optimizer.bin): weights alone do not go on training")


def _has_inner(opened: Opened, *beginnings: str) -> bool:
    return any("/" in name and name.startswith(beginnings) for name in opened.files)


def _ranks(opened: Opened, named: re.Pattern[str]) -> int | None:
    """Return how many ranks have saved a file so named, whose group is the rank's number; None where none has.

    Raises:
        UnreadableFile: one is missing before the last. One behind it cannot be missed.
    """
    there = {int(match[1]): name for name in opened.files if (match := named.fullmatch(name))}
    for rank in range(max(there, default=-1)):
        if rank not in there:
            raise UnreadableFile(f"what rank {rank} saves like '{there[max(there)]}' is not there")
    return len(there) or None


def _framework(kind: str, opened: Opened, contents: dict[str, Content | None], step: int | None) -> Inside:
    """Return what a framework's folder holds: weights from all their files, and each other file by its stem."""
    value: dict[Any, Any] = {}
    unsafe: set[str] = set()
    weights: dict[Any, Any] = {}
    for name, content in contents.items():
        if content is None:
            continue
        unsafe.update(content[1])
        if is_weights(name):
            weights |= content[0]["model"] if name.endswith(form.SAFETENSORS_SUFFIX) else content[0]
        else:
            value[name.partition(".")[0]] = content[0]
    unsafe.update(_unread(contents))
    value = {"model": weights, **value} if weights else value
    summary = archive.summary_of(value, opened.identity.size, tuple(sorted(unsafe)))
    summary.step = step
    return Inside(kind, summary, contents)
