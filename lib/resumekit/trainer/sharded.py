"""Save a training whose values are spread over ranks: FSDP1, FSDP2, tensor parallel, ZeRO-1. Every rank calls it.

Each rank writes what it holds with torch.distributed.checkpoint, by parameter name, so that another number of ranks
can load it; rank 0 writes all that is no tensor, with the generators and the data state of every rank. What there is
to agree on goes through `ranks.exchange`. The folder gets its name, and then its manifest, when every rank's part is on
the disk. `load_resume_bundle` loads it.
Try it: `save_sharded(folder, step, model=model, optimizer=optimizer, data_state=...)` in each rank
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.errors import KitError, disk_error_cause
from ..base.files import fsync_directory, fsync_parents, temp_path, to_json, utc_now
from ..base.imports import Any, NamedTuple
from ..base.paths import checkpoint_name, manifest_path, relative_to_run
from ..checkpoint import form, layout, manifest, pruning
from ..checkpoint.manifest import FileDigest, Manifest
from ..checkpoint.sharded_folder import (
    MARK,
    OPTIMIZER,
    PARTS,
    STATE_FILE,
    entry_name,
    entry_of,
    leaves,
)
from . import checkpoint_content, learning_rate, rank_states, ranks, restart, saving, sharded_state
from .checkpoint_content import require_states
from .optimizer_state import named_optimizers, unwrapped
from .save_file import DurableFile, deferred_signals
from .trainer_env import checkpoint_patterns, end_if_taken_over, journal_event, lineage, run_dir

_BUFFER_BYTES = 1 << 20
# The folder that this process saved last, as it is now; in rank 0.
_last: list[tuple[Path, Manifest]] = []
_io_errors = 0


class Held(NamedTuple):
    """What one rank holds.

    Args:
        tensors: by the keys of their entries in the shards.
        content: what a checkpoint holds, with marks in the place of tensors.
        masks: names of buffers in which an infinity is healthy.
    """

    tensors: dict[tuple[Any, ...], Any]
    content: dict[str, Any]
    masks: frozenset[str]


def save_sharded(
    directory: str | Path,
    step: int,
    *,
    model: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    swa: Any = None,
    epoch: int = 0,
    best_val_loss: float = math.inf,
    loss: Any = None,
    data_state: Any = None,
    extra: dict[str, Any] | None = None,
    lr_scale: float | None = None,
    lr_ramp: dict[str, Any] | None = None,
    last_fast_eval: dict[str, Any] | None = None,
    best: dict[str, Any] | None = None,
    pattern: str | None = None,
    timeout_s: float | None = None,
    log_fn: Callable[[str], Any] = print,
) -> Path | None:
    """Save everything that makes the next step what it is, each rank its part; every rank calls it, at the same step.

    Args:
        directory: the checkpoint folder, on a disk that all ranks share; made if it is not there.
        step: optimizer steps done, the same in every rank.
        model: under fully_shard, FullyShardedDataParallel(use_orig_params=True), tensor parallel, DDP, or none of them.
        optimizer: one optimizer, or a dict name -> optimizer; a ZeroRedundancyOptimizer too.
        scheduler, scaler, epoch, best_val_loss, extra, lr_scale, lr_ramp, last_fast_eval: as for `save_checkpoint`;
            those of rank 0 are saved, for they are alike in all.
        ema, swa: whatever has a state_dict() of names and tensors; not beside FSDP1.
        loss, data_state: this rank's own.
        best: {'score': float, 'weights': 'raw'|'ema'|'swa'} where this step is a new best.
        pattern: the folder's name, with {step} in it; None for `checkpoint.pattern` of the run's config.
        timeout_s: how long a rank waits for the others; None for the process group's own timeout.

    Returns:
        The folder, durable and with its manifest, in every rank; None in every rank where the save failed (disk full,
        ...): that is said, journalled, and training can go on.

    Raises:
        KitError: something in it could not be loaded again, a rank refused or did not come, or the disk failed twice in
            a row; in every rank, and nothing is left of the save.
    """
    started, what = time.monotonic(), f"the sharded save of step {step}"
    ranks.are_all("save_sharded", ranks.ALL)
    target = Path(directory) / checkpoint_name(pattern or checkpoint_patterns()[0], step)
    optimizer, scheduler = unwrapped(optimizer), unwrapped(scheduler)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "swa": swa}
    counters = {
        "epoch": epoch, "best_val_loss": best_val_loss,
        **learning_rate.scale_fields(optimizer, lr_scale, lr_ramp),
    }  # fmt: skip
    # What asks FSDP1 for its state waits for all ranks: none does while another has refused.
    with ranks.agreed(what, timeout_s=timeout_s):
        saving.refuse_arguments("save_sharded", step, best, last_fast_eval)
        if ranks.rank() == 0:
            end_if_taken_over()
            restart.refuse_second_content(step)
        saving.refuse_values("save_sharded", extra=extra, epoch=epoch, best_val_loss=best_val_loss)
        parts["model"] = _refuse_parts(parts)
        checkpoint_content.refuse_unsafe({"data_state": data_state})
    if ranks.rank() == 0:
        journal_event("saving", step=step)
    with deferred_signals(), sharded_state.quiet():
        own: Any = {"state": {"rng_state": checkpoint_content.capture_rng(), "data_state": data_state}}
        with ranks.agreed(f"{what}: its content", timeout_s=timeout_s):
            held = _held(step, parts, counters, extra)
        own |= {"names": _digest_of_names(held), "bad": _nonfinite(held, loss), "zero": _zero_states(parts, held)}
        save = _Save(target, held, timeout_s, last_fast_eval, best)
        outcome = save.run(f"{what}: its shards", own)
    path = _told(outcome, target, time.monotonic() - started, log_fn)
    if path is not None and data_state is None and ranks.rank() == 0:
        saving.tell_of_no_data_state("save_sharded", log_fn)
    return path


def _refuse_parts(parts: dict[str, Any]) -> Any:
    """Return the model as its state is saved. Raises KitError where something has no state that can be saved here."""
    require_states("save_sharded", parts, ("state_dict",), several=("optimizer",))
    model = sharded_state.seen(parts["model"])
    if isinstance(model, sharded_state.FlatModel) and (parts["ema"] is not None or parts["swa"] is not None):
        raise KitError("save_sharded: an average (ema, swa) beside a model under FullyShardedDataParallel is not "
                       "supported: use fully_shard, or save without it")  # fmt: skip
    for key, one in named_optimizers(parts["optimizer"]).items():
        names = checkpoint_content.parameter_names(model, one)
        if any(name is None for group in names for name in group):
            raise KitError(f"save_sharded: optimizer{f' {key!r}' if key else ''} has a parameter that is none of the "
                           "model's: its state is saved by name; pass the model that holds it")  # fmt: skip
    return model


def _held(step: int, parts: dict[str, Any], counters: dict[str, Any], extra: dict[str, Any] | None) -> Held:
    """Return what this rank holds; collective under FSDP1."""
    model, optimizer = parts["model"], parts["optimizer"]
    names = checkpoint_content.parameter_names(model, optimizer)
    by_key = names if isinstance(optimizer, dict) else {"": names}
    by_name = {
        key: sharded_state.optimizer_state(one, model, by_key[key]) for key, one in named_optimizers(optimizer).items()
    }
    states: dict[str, Any] = {"model": model.state_dict()}
    states["optimizer"] = by_name if isinstance(optimizer, dict) else by_name.get("")
    for name in ("scheduler", "scaler", "ema", "swa"):
        states[name] = None if parts[name] is None else parts[name].state_dict()
    content = checkpoint_content.described(step, states, optimizer, names, **counters)
    tensors: dict[tuple[Any, ...], Any] = {}
    for part in PARTS:
        content[part] = _marked(content[part], (part,), content, tensors)
    checkpoint_content.add_extra(content, extra, "save_sharded")
    checkpoint_content.refuse_unsafe(content)
    return Held(tensors, content, checkpoint_content.masks_of(model))


def _marked(value: Any, keys: tuple[Any, ...], content: dict[str, Any], tensors: dict[tuple[Any, ...], Any]) -> Any:
    """Return nested dicts and lists with marks in the place of tensors, which are put into `tensors`."""
    if isinstance(value, dict):
        return {key: _marked(item, (*keys, key), content, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, (*keys, index), content, tensors) for index, item in enumerate(value)]
    if "param_groups" in keys or not hasattr(value, "shape"):
        return value
    tensors[entry_of(keys, content)] = value
    return MARK


def _zero_states(parts: dict[str, Any], held: Held) -> dict[str, Any]:
    """Return by name the marked states of optimizers of which each rank has those of some parameters alone."""
    states = held.content[OPTIMIZER]
    several = isinstance(parts["optimizer"], dict)
    return {
        key: (states[key] if several else states)["state"]
        for key, one in named_optimizers(parts["optimizer"]).items() if sharded_state.is_zero(one)
    }  # fmt: skip


def _digest_of_names(held: Held) -> str:
    """Return what is alike in ranks that hold the same model and optimizers: names, groups, and no values."""
    named = [keys for keys, value in leaves(held.content["model_state_dict"], ()) if value == MARK]
    shown = [[str(key) for key in keys] for keys in named], held.content["parameter_names"]
    return hashlib.sha256(to_json({"names": shown})).hexdigest()


def _nonfinite(held: Held, loss: Any) -> list[str]:
    """Return which of this rank's values are not finite, loss, weights, optimizer and averages."""
    content: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for keys, value in held.tensors.items():
        own = sharded_state.local(value)
        if own is not None:
            content[keys[0]][entry_name(keys[1:])] = own
    return list(checkpoint_content.nonfinite(content, loss, held.masks))


class _Save:
    """One save: what all ranks do together, and what rank 0 does for them.

    An outcome is told in values, not raised: a disk that is full in one rank is a save that failed in all.
    """

    def __init__(
        self, target: Path, held: Held, timeout_s: float | None, last_fast_eval: Any, best: dict[str, Any] | None
    ) -> None:  # fmt: skip
        self.target, self.held, self._timeout_s = target, held, timeout_s
        self.content = held.content
        self._last_fast_eval, self._best = last_fast_eval, best or {}
        self._temp: Path | None = None
        self._bad: tuple[str, ...] = ()

    def run(self, what: str, own: dict[str, Any]) -> dict[str, Any]:
        """Return {'saved': sentence fields}, or {'failed': reason, 'is_io': bool}. Raises KitError as `exchange`."""
        try:
            begun: dict[str, Any] = ranks.exchange(what, own, act=self._begin, timeout_s=self._timeout_s)
            if "folder" not in begun:
                return begun
            written = _write(Path(begun["folder"]), self.held, self.target)
            ended: dict[str, Any] = ranks.exchange(what, written, act=self._end, timeout_s=self._timeout_s)
            return ended
        finally:
            if self._temp is not None:
                shutil.rmtree(self._temp, ignore_errors=True)

    def _begin(self, told: list[Any]) -> dict[str, Any]:
        """In rank 0: compare the ranks, make the folder, and write into it all that is in no shard."""
        for number, one in enumerate(told):
            if one["names"] != told[0]["names"]:
                raise KitError(
                    f"save_sharded: rank {number} has other parameters than rank 0: stages of a pipeline are not "
                    f"supported, each rank must hold its part of the same model"
                )
        content = self.held.content
        for one in told:
            for key, state in one["zero"].items():
                (content[OPTIMIZER][key] if key else content[OPTIMIZER])["state"].update(state)
        self._bad = tuple(dict.fromkeys(name for one in told for name in one["bad"]))
        states = [one["state"] for one in told]
        self.content = rank_states.with_all({**content, **states[0]}, states)
        if _last and _last[-1][0] == self.target.absolute() and os.path.isdir(self.target):
            return {"again": True, **_fields(_last[-1][1])}
        try:
            if os.path.lexists(self.target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.target))
            self.target.parent.mkdir(parents=True, exist_ok=True)
            pruning.sweep(self.target.parent)
            fsync_parents(self.target.parent)
            self._temp = temp_path(self.target)
            self._temp.mkdir()
            with DurableFile(self._temp / STATE_FILE) as file:
                saving.torch_save(self.content, file)
                file.seal()
                file.finish()
                file.publish()
        except OSError as error:
            return _failure(error, self.target)
        return {"folder": str(self._temp)}

    def _end(self, told: list[Any]) -> dict[str, Any]:
        """In rank 0: give the folder its name and its manifest, when every rank's part is there."""
        for number, one in enumerate(told):
            if "failed" in one:
                return {**one, "failed": f"rank {number}: {one['failed']}"}
        files = tuple(FileDigest(*one) for part in told for one in part["files"])
        temp = self._temp
        try:
            if temp is None:
                raise OSError(errno.ENOENT, "its folder is gone")
            here = {entry.name: entry.stat().st_size for entry in os.scandir(temp)}
            if here != {one.name: one.size for one in files}:
                raise KitError(f"save_sharded: '{self.target.parent}' does not hold what the ranks have written: is it "
                               "on a disk that all of them share?")  # fmt: skip
            known = self._manifest(files)
            fsync_directory(temp)
            _publish(temp, self.target, known)
        except OSError as error:
            return _failure(error, self.target)
        self._temp = None
        _last[:] = [(self.target.absolute(), known)] if known.finite else []
        return _fields(known)

    def _manifest(self, files: tuple[FileDigest, ...]) -> Manifest:
        content = self.content
        return Manifest(
            writer=manifest.SAVE_CHECKPOINT, file=self.target.name, size=sum(one.size for one in files),
            sha256=manifest.digest_of(files), step=content["global_step"], created_at=utc_now(),
            versions=content["versions"], optimizer_name=content["optimizer_name"],
            weights=("raw", *(kind for kind in ("ema", "swa") if content[f"{kind}_state_dict"] is not None)),
            step_completed=True, finite=not self._bad, nonfinite=self._bad[: checkpoint_content.MAX_NONFINITE],
            last_fast_eval=self._last_fast_eval, files=tuple(sorted(files)), kind=form.DCP,
            best_score=float(self._best["score"]) if self._best else None,
            best_weights=str(self._best.get("weights", "raw")) if self._best else None,
            world_size=ranks.world_size(), rng_ranks=rank_states.rng_ranks(content), **lineage(),
        )  # fmt: skip


def _publish(temp: Path, target: Path, known: Manifest) -> None:
    """Give the folder its name, and then its manifest. Raises OSError; nothing is left then."""
    layout.rename(temp, target)
    try:
        fsync_directory(target.parent)
        manifest.write(target, known)  # in `manifests/`: where it lies is told by the folder that is there
        fsync_directory(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            manifest_path(target).unlink(missing_ok=True)
            layout.rename(target, temp)
        raise


def _write(folder: Path, held: Held, target: Path) -> dict[str, Any]:
    """Write this rank's shards; returns {'files': its files, durable}, or a failure. Raises nothing of torch's own."""
    import torch  # the trainer has it already
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException  # a BaseException of its own

    nested: dict[str, Any] = {}
    for keys, value in held.tensors.items():
        place = nested
        for key in keys[:-1]:
            place = place.setdefault(str(key), {})
        place[str(keys[-1])] = value
    has_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        dcp.save(nested, storage_writer=dcp.FileSystemWriter(folder), no_dist=not has_group)
        return {"files": [list(_sealed(folder / name)) for name in _own_files(folder)]}
    except (Exception, CheckpointException) as error:  # it has gathered what failed in which rank
        failures = list(getattr(error, "failures", {}).values())
        first = failures[0][0] if failures else error
        return _failure(first, target)


def _own_files(folder: Path) -> Iterator[str]:
    """Yield the names of the files that this rank has written."""
    own = ranks.rank()
    for name in sorted(os.listdir(folder)):
        if name.startswith(f"__{own}_") or (own == 0 and not name.startswith("__")):
            yield name


def _sealed(path: Path) -> FileDigest:
    """Return the digest of a file, which is on the disk then. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        while block := file.read(_BUFFER_BYTES):
            digest.update(block)
            size += len(block)
    return FileDigest(path.name, size, digest.hexdigest())


def _failure(error: BaseException, target: Path) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"failed": disk_error_cause(error, target, 0), "is_io": error.errno == errno.EIO}
    lines = str(error).strip().splitlines()
    return {"failed": f"{type(error).__name__}: {lines[0] if lines else ''}", "is_io": False}


def _fields(known: Manifest) -> dict[str, Any]:
    return {
        "step": known.step,
        "sha256": known.sha256,
        "size": known.size,
        "finite": known.finite,
        "bad": list(known.nonfinite),
    }


def _told(outcome: dict[str, Any], target: Path, seconds: float, log_fn: Callable[[str], Any]) -> Path | None:
    """Say and journal in rank 0 what became of it; returns the folder, None where the save failed."""
    global _io_errors
    is_first, step = ranks.rank() == 0, outcome.get("step")
    if "failed" in outcome:
        _io_errors = _io_errors + 1 if outcome["is_io"] else 0
        message = f"'{target.name}' was not saved to '{target.parent}': {outcome['failed']}"
        if is_first:
            saving.warn("save_failed", f"{message}; training goes on, older checkpoints are as they were", log_fn)
        if _io_errors >= saving.MAX_IO_ERRORS:
            raise KitError(
                f"{message}; that is {_io_errors} in a row, the disk is failing: move the run to another one"
            )
        return None
    _io_errors = 0
    if is_first and "again" not in outcome:
        folder = run_dir()
        shown = relative_to_run(target, folder) if folder else str(target)
        fields = {"sha256": outcome["sha256"], "size": outcome["size"], "finite": outcome["finite"]}
        journal_event("checkpoint", step=step, path=shown, seconds=round(seconds, 6), **fields)
        log_fn(f"[checkpoint] {target.name} saved by {ranks.world_size()} ranks ({outcome['size'] / 1e6:,.1f} MB, "
               f"{seconds:.2f} s)")  # fmt: skip
        if outcome["bad"]:
            names = ", ".join(outcome["bad"])
            why = f"'{target.name}' is kept, but never resumed from: not finite: {names}"
            saving.warn("checkpoint_not_finite", why, log_fn)
    return target
