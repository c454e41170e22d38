"""The content of a folder that `save_sharded` wrote, loaded by each rank as far as it holds the values, and proven.

The digests of the files are shared out among the ranks, and compared with the manifest while torch's own loader (DCP)
reads what this rank needs into tensors that no model has yet: a content is handed out when every rank has found its
share whole. Loading is not collective: each rank reads for itself. Reads the folder, its manifest; writes a bad verdict
into the run's folder, for the launcher.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pickle
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..base.errors import InvalidFile, KitError, NoStableCheckpoint
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from ..base.paths import RunPaths, manifest_path
from ..checkpoint import archive, dcp_metadata, finiteness, form, kinds, layout, manifest, proof
from ..checkpoint.layout import Opened
from ..checkpoint.parameters import pair_paths, plain_path
from ..checkpoint.sharded_folder import OPTIMIZER, PARTS, STATE_FILE, WEIGHTS, Keys, entry_name, marks
from . import ranks, sharded_state
from .checkpoint_content import parameter_names
from .optimizer_state import named_optimizers
from .trainer_env import run_dir
from .weights import Sample

_BUFFER_BYTES = 1 << 20


class Live(NamedTuple):
    """What a checkpoint is loaded into.

    Args:
        model: as `sharded_state.seen` returns it.
        optimizer, ema, swa: the trainer's; None where there is none.
    """

    model: Any
    optimizer: Any = None
    ema: Any = None
    swa: Any = None


def is_one(path: Path) -> bool:
    """Whether a folder that `save_sharded` wrote lies at a path."""
    return path.is_dir() and os.path.lexists(path / STATE_FILE)


def read_proven(path: Path, live: Live, *, is_of_all: bool) -> dict[str, Any]:
    """Return the content of a folder in the form of a file's, each tensor as far as this rank holds it.

    A tensor that the trainer's objects have no place for has its shape and no values.

    Args:
        is_of_all: every rank makes this call, and none goes on before all have returned: each proves its share of the
            files. Else this rank proves them all.

    Raises:
        NoStableCheckpoint: it is not whole, or its bytes are not the proven ones.
        InvalidFile: a state of the optimizer has a form that cannot be spread over ranks.
        KitError: there are several ranks, and not all of them make this call.
    """
    if ranks.world_size() > 1 and not is_of_all:
        raise KitError(
            f"load_resume_bundle: '{path}' was saved by save_sharded, and each rank loads a part of it: pass "
            f"ranks='all' in every rank"
        )
    share = (ranks.rank(), ranks.world_size()) if is_of_all else (0, 1)
    try:
        with layout.open_checkpoint(path) as opened:
            before = opened.identity.version
            with _Prover(opened, path, share) as prover, sharded_state.quiet():
                content = _read(opened, live)
            if prover.problem:
                raise UnreadableFile(prover.problem)
            if layout.identity(path).version != before:
                raise UnreadableFile("it changed while it was loaded")
    except (UnreadableFile, OSError) as error:
        _leave_verdict(path, str(error))
        raise NoStableCheckpoint(f"checkpoint '{path}' can't be resumed from: {error}") from error
    return content


def kept(content: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return what of a content is kept for the checks after the load: of large tensors values at some places.

    Args:
        content: as it is loaded, spread over the ranks or not.
        model: as `sharded_state.seen` returns it.
    """
    buffers = {plain_path(name) for name, _ in model.named_buffers()} if hasattr(model, "named_buffers") else set()

    def keep(value: Any, keys: Keys) -> Any:
        if isinstance(value, dict):
            return {key: keep(item, (*keys, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [keep(item, (*keys, index)) for index, item in enumerate(value)]
        if not hasattr(value, "shape") or getattr(value, "is_meta", False):
            return value
        if keys[0] == WEIGHTS and plain_path(entry_name(keys[1:])) in buffers:
            return sharded_state.local(value).clone()
        return Sample(value)

    with sharded_state.quiet():
        return {name: keep(value, (name,)) if name in PARTS else value for name, value in content.items()}


class _Prover:
    """Compares a share of the files with the manifest, in a thread; without a manifest the first share is all of it.

    A problem with the proof is told before one of the load: it says better what is wrong.
    """

    def __init__(self, opened: Opened, path: Path, share: tuple[int, int]) -> None:
        self.problem = ""
        self._opened, self._path, self._share = opened, path, share
        self._thread = threading.Thread(target=self._run, name="resumekit-proof")

    def __enter__(self) -> _Prover:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        self._thread.join()
        if self.problem and isinstance(error, UnreadableFile):
            raise UnreadableFile(self.problem) from error

    def _run(self) -> None:
        try:
            if os.path.lexists(manifest_path(self._path)):
                self._compare(manifest.read(self._path))
            elif self._share[0] == 0:
                inside = kinds.inspect(self._opened, form.of(None), has_step=True)
                self.problem = finiteness.look_at(self._opened, inside.contents, checksums=True).reason
        except (UnreadableFile, OSError) as error:
            self.problem = str(error)
        except Exception as error:  # nothing is handed out that was not proven
            self.problem = f"its proof failed: {type(error).__name__}"

    def _compare(self, known: manifest.Manifest) -> None:
        files = self._opened.files
        if missing := [one.name for one in known.files if one.name not in files]:
            raise UnreadableFile(f"'{missing[0]}' is in its manifest and not there")
        for name in files:
            if name not in {one.name for one in known.files}:
                raise UnreadableFile(f"'{name}' is there and not in its manifest")
        first, count = self._share
        for one in known.files[first::count]:
            if files[one.name].size != one.size or _sha256(self._opened, one.name) != one.sha256:
                raise UnreadableFile(f"the digest of '{one.name}' differs from its manifest")


def _sha256(opened: Opened, name: str) -> str:
    descriptor, digest, place = opened.open_file(name), hashlib.sha256(), 0
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    try:
        while count := os.preadv(descriptor, [buffer], place):
            digest.update(buffer[:count])
            place += count
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _leave_verdict(path: Path, reason: str) -> None:
    """Leave the launcher a bad verdict; it holds without it too."""
    if (folder := run_dir()) is not None:
        with contextlib.suppress(OSError):
            proof.write(RunPaths(folder).proof, proof.of_folder(path, reason))


def _read(opened: Opened, live: Live) -> dict[str, Any]:
    """Return the content; what torch cannot load raises UnreadableFile."""
    from torch.distributed.checkpoint.api import CheckpointException  # a BaseException of its own

    inside = kinds.inspect(opened, form.of(None), has_step=True)
    if inside.summary.unsafe:
        raise UnreadableFile(f"it holds '{inside.summary.unsafe[0]}', which loading with weights_only=True refuses")
    data = archive.read_small(opened, dcp_metadata.NAME)
    known = dcp_metadata.read(data)
    content = _plain(opened)
    wanted: dict[str, Any] = {}
    places = _Places(content, live)
    for keys, entry in list(marks(content)):
        name = entry_name(entry)
        value = places.empty(keys, entry, *known.tensors[name])
        _put(content, keys, value)
        if not getattr(value, "is_meta", False):
            wanted[name] = value
    for state in _states_of(content):  # of parameters that this rank has not
        for number in [
            number for number, one in state.items() if any(getattr(x, "is_meta", False) for x in one.values())
        ]:
            del state[number]
    try:
        _fill(opened, data, wanted)
    except (Exception, CheckpointException) as error:  # the proof beside it says better what is wrong
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableFile(f"torch can't load it: {why}") from error
    return content


def _states_of(content: dict[str, Any]) -> Iterator[dict[Any, Any]]:
    """Yield of each optimizer its parameters' states by number."""
    held = content.get(OPTIMIZER)
    for one in [held] if isinstance(held, dict) and "param_groups" in held else (held or {}).values():
        yield one["state"]


def _plain(opened: Opened) -> dict[str, Any]:
    import torch  # the trainer has it already

    descriptor = opened.open_file(STATE_FILE)
    try:
        content: dict[str, Any] = torch.load(f"/proc/self/fd/{descriptor}", map_location="cpu", weights_only=True)
        return content
    except Exception as error:
        raise UnreadableFile(f"torch can't load '{STATE_FILE}'") from error
    finally:
        os.close(descriptor)


def _fill(opened: Opened, metadata: bytes, wanted: dict[str, Any]) -> None:
    """Have torch read the values of some entries, each as far as this rank holds it; nothing is collective.

    The metadata is of the bytes that the kit's own reader has found harmless: torch would unpickle the file anew.
    """
    from torch.distributed import checkpoint as dcp  # the trainer has torch already

    def read_metadata(*_args: Any, **_kwargs: Any) -> Any:
        told = pickle.loads(metadata)
        if told.storage_meta is not None:
            told.storage_meta.load_id = reader.load_id
        return told

    reader = dcp.FileSystemReader(opened.path)
    reader.read_metadata = read_metadata
    dcp.load(wanted, storage_reader=reader, no_dist=True)


class _Places:
    """Where the tensors of a checkpoint go: for each an empty one that is spread as what it is loaded into.

    Args:
        content: with marks in the place of tensors.
        live: the trainer's objects.
    """

    def __init__(self, content: Mapping[str, Any], live: Live) -> None:
        self._live: dict[str, dict[str, Any]] = {}
        self._is_used = {WEIGHTS: True, OPTIMIZER: live.optimizer is not None}
        states = {WEIGHTS: live.model.state_dict()}
        for name in ("ema", "swa"):
            part = getattr(live, name)
            self._is_used[f"{name}_state_dict"] = part is not None
            states[f"{name}_state_dict"] = part.state_dict() if hasattr(part, "state_dict") else {}
        for name, state in states.items():
            saved = content.get(name)
            pairs = pair_paths(state, saved) if isinstance(state, Mapping) and isinstance(saved, Mapping) else {}
            self._live[name] = {old: state[own] for own, old in pairs.items() if hasattr(state[own], "shape")}
            if name == WEIGHTS:
                others = set(_of_other_ranks(live))
                self._live[OPTIMIZER] = {old: state[own] for own, old in pairs.items() if own not in others}

    def empty(self, keys: Keys, entry: Keys, shape: tuple[int, ...], dtype: str) -> Any:
        """Return an empty tensor for an entry; on the device 'meta' where this rank has no place for it.

        Raises InvalidFile for a state of another shape than its parameter's, which cannot be spread.
        """
        import torch  # the trainer has it already

        kind, part = getattr(torch, dtype), keys[0]
        own = self._live.get(part, {}).get(str(entry[entry.index("state") + 1] if part == OPTIMIZER else entry[1]))
        if not self._is_used.get(part) or (own is None and part in (WEIGHTS, OPTIMIZER)):
            return torch.empty(shape, dtype=kind, device="meta")
        if own is not None and tuple(own.shape) == shape:
            return torch.empty_like(own, dtype=kind if part == OPTIMIZER else own.dtype)
        if part == WEIGHTS:
            return torch.empty(shape, dtype=kind, device="meta")
        if part == OPTIMIZER and own is not None and math.prod(shape) > 1 and sharded_state.local(own) is not own:
            raise InvalidFile(
                f"'{entry_name(entry)}' of the checkpoint has shape {shape}, and its parameter {tuple(own.shape)}: the "
                f"state of such an optimizer is not supported in shards; resume.optimizer=reset leaves it out"
            )
        return torch.empty(shape, dtype=kind)  # a count of steps, or an average's own: the same in every rank


def _of_other_ranks(live: Live) -> Iterator[str]:
    """Yield the names of the parameters that another rank steps: their moments have no place here."""
    for one in named_optimizers(live.optimizer).values():
        if sharded_state.is_zero(one):
            every = parameter_names(live.model, one)
            own = {name for group in parameter_names(live.model, one.optim) for name in group}
            yield from (name for group in every for name in group if name is not None and name not in own)


def _put(content: dict[str, Any], keys: Keys, value: Any) -> None:
    place: Any = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
