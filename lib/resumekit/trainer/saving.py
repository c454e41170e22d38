"""Save a checkpoint so that there is never half of one: the trainer's side.

Order: exclusive temp file, write, fsync, final name, folder fsync, then the manifest the same way, then the best link,
and pruning last. A save that fails is said loudly and journalled, and training goes on with the older checkpoints.
Try it: `save_checkpoint("checkpoints", step, model=model, optimizer=optimizer)` in a training loop.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import math
import operator
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..base.errors import KitError, disk_error_cause
from ..base.files import UnreadableFile, fsync_directory, fsync_parents, temp_path, utc_now
from ..base.imports import Any, NamedTuple
from ..base.paths import MAX_STEP, STEP_DIGITS, RunPaths, checkpoint_name, manifest_path, relative_to_run
from ..checkpoint import layout, manifest, pruning
from ..checkpoint.manifest import Manifest
from . import background_save, checkpoint_content, learning_rate, rank_states, restart
from .optimizer_state import named_optimizers, unwrapped
from .ranks import agreed, are_all, exchange, rank, world_size
from .save_file import DurableFile, deferred_signals
from .trainer_env import checkpoint_patterns, end_if_taken_over, journal_event, lineage, run_dir

# Two in a row: the disk is dying, and training on would only pretend to be saved.
MAX_IO_ERRORS = 2
# The kind of the warning that a trainer hands over no position in its data.
NO_DATA_STATE = "no_data_state"
_swept: set[str] = set()
_saved: dict[str, Manifest] = {}
_io_errors = 0
_has_told_of_no_data_state = False
_has_told_of_too_little_memory = False


class _Job(NamedTuple):
    """A save, as the arguments of `save_checkpoint` say it; `blocked_s` is how long a background one stopped training.

    `started_s` is on the monotonic clock.
    """

    target: Path
    best_path: Path
    content: dict[str, Any]
    loss: Any
    masks: frozenset[str]
    last_fast_eval: dict[str, Any] | None
    best: dict[str, Any] | None
    keep: pruning.Keep
    pattern: str
    started_s: float
    blocked_s: float | None = None


def save_checkpoint(
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
    keep_last: int | None = None,
    keep_every: int | None = None,
    pattern: str | None = None,
    best_pattern: str | None = None,
    ranks: str | None = None,
    background: bool = False,
    log_fn: Callable[[str], Any] = print,
) -> Path | None:
    """Save everything that makes the next step what it is; call it between two optimizer steps.

    In a training of several ranks it is rank 0 that saves. Without `ranks` any other one writes nothing, waits for
    no other rank and returns None.

    Args:
        directory: the checkpoint folder; made if it is not there.
        step: optimizer steps done.
        model, scheduler, scaler, ema, swa: whatever has a state_dict(); None where there is none.
        optimizer: one optimizer, or a dict name -> optimizer.
        epoch, best_val_loss: counters, kept as they are.
        lr_scale, lr_ramp: of a trainer that multiplies its learning rate itself, for the next resume (bundle.lr_scale
            and bundle.lr_ramp, if it changes nothing); None for what the kit itself multiplies this optimizer's by.
        loss: the last loss, for the finite check only.
        data_state: where the trainer's data stands (its sampler's state), in plain values and tensors. Without it a
            resume is not known to go on at the same place: that is said at the first save.
        extra: the trainer's own state, plain values and tensors.
        last_fast_eval: {'step': int, METRIC: float} or None; METRIC is `validation.best_metric`, 'accuracy' say.
        best: {'score': float, 'weights': 'raw'|'ema'|'swa'} where this step is a new best.
        keep_last: how many of the newest to keep (at least two stay); None: nothing is ever removed.
        keep_every: steps that this divides are kept for good.
        pattern, best_pattern: file names, with {step} in the first; None for `checkpoint.pattern` and
            `checkpoint.best_pattern` of the run's config, which is where the launcher looks for them.
        ranks: 'all' where every rank makes this call: rank 0 writes the random number generators and the data_state of
            each, and all go on together, with the same result. None: the generators of rank 0 alone.
        background: copy the values and return; a thread writes them while training goes on. A save waits for the one
            before it, and so does the end of the interpreter. How it went is said with the next optimizer step or
            save. Where memory has no room for the copy, it is said once, and the save blocks.

    Returns:
        The checkpoint, durable and with its manifest (with `background`: where it will be); None where the save
        failed (disk full, ...): that is said, journalled, and training can go on.

    Raises:
        KitError: something in it could not be loaded again, or the disk failed twice in a row; with ranks='all' in
            every rank, and where a rank does not come within the process group's timeout.
    """
    started, is_of_all = time.monotonic(), are_all("save_checkpoint", ranks)
    folder = Path(directory)
    own_pattern, own_best_pattern = checkpoint_patterns()
    pattern, best_pattern = pattern or own_pattern, best_pattern or own_best_pattern
    target = folder / checkpoint_name(pattern, step)
    is_first_rank = rank() == 0
    with agreed(f"the save of step {step}", is_of_all=is_of_all):
        refuse_arguments("save_checkpoint", step, best, last_fast_eval)
        numbers = {"epoch": epoch, "best_val_loss": best_val_loss, "keep_last": keep_last, "keep_every": keep_every}
        refuse_values("save_checkpoint", extra=extra, **numbers)
        optimizer, scheduler = unwrapped(optimizer), unwrapped(scheduler)
        kinds = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "swa": swa}
        counters = {
            "epoch": epoch,
            "best_val_loss": best_val_loss,
            **learning_rate.scale_fields(optimizer, lr_scale, lr_ramp),
        }
        background_save.wait()
        if is_first_rank:
            end_if_taken_over()
            restart.refuse_second_content(step)
            journal_event("saving", step=step, **({"background": True} if background else {}))
        content = checkpoint_content.collect(step, model=model, data_state=data_state, extra=extra, **kinds, **counters)

    def save(whole: dict[str, Any]) -> bool:
        job = _Job(
            target=target, best_path=folder / best_pattern, content=whole, loss=loss, last_fast_eval=last_fast_eval,
            masks=checkpoint_content.masks_of(model), best=best, keep=pruning.Keep(keep_last, keep_every),
            pattern=pattern, started_s=started,
        )  # fmt: skip
        if not background:
            return _save(job, log_fn)
        # What all ranks have saved is said at their next save: at a step it would be raised in rank 0 alone.
        said_by = [] if is_of_all and world_size() > 1 else named_optimizers(optimizer).values()
        return _begin_in_background(job, said_by, log_fn)

    if not is_of_all:
        return target if is_first_rank and save(content) else None
    is_saved = exchange(
        f"the writing of step {step}",
        rank_states.own_of(content),
        act=lambda all_own: save(rank_states.with_all(content, all_own)),
    )
    return target if is_saved else None


def _begin_in_background(job: _Job, said_by: Iterable[Any], log_fn: Callable[[str], Any]) -> bool:
    """Copy what is saved and have a thread save it; where there is no memory for the copy, save it here.

    The next step of the optimizers `said_by` says how it went. Returns as `_save`; True where the thread has begun.
    """
    step = job.content["global_step"]
    try:
        with deferred_signals():
            job = job._replace(
                content=background_save.copied(job.content),
                loss=None if job.loss is None else float(job.loss),
                last_fast_eval=copy.deepcopy(job.last_fast_eval),
                best=copy.deepcopy(job.best),
            )
            job = job._replace(blocked_s=time.monotonic() - job.started_s)
            background_save.begin(step, functools.partial(_save, job), said_by, log_fn)
    except background_save.TooLittleMemory as error:
        _tell_of_too_little_memory(str(error), log_fn)
        journal_event("saving", step=step)
        return _save(job, log_fn)
    return True


def _save(job: _Job, log_fn: Callable[[str], Any]) -> bool:
    """Write it, link the best, say how it went, and prune; False where the disk failed."""
    target, content, best = job.target, job.content, job.best
    try:
        with deferred_signals():
            known = _write(target, content, job.loss, job.masks, job.last_fast_eval)
            best_error = _link_best(target, job.best_path, known, best) if best and known.finite else None
    except OSError as error:
        _failed(target, content["global_step"], error, content, log_fn)
        return False
    _succeeded(target, known, time.monotonic() - job.started_s, job.blocked_s, log_fn)
    if content["data_state"] is None:
        tell_of_no_data_state("save_checkpoint", log_fn)
    if best_error is not None:
        message = f"step {known.step} is saved, but '{job.best_path.name}' still is an older one: {best_error}"
        warn("best_failed", message, log_fn)
    best_name = job.best_path.name
    pruning.prune_own(
        target.parent, job.keep, run_dir(), run_id=known.run_id, pattern=job.pattern, best_name=best_name
    )  # fmt: skip
    return True


def refuse_arguments(caller: str, step: int, best: Any, last_fast_eval: Any) -> None:
    if type(step) is not int or not 0 <= step < MAX_STEP:
        raise KitError(f"{caller}: step '{step}' is not a whole number of at most {STEP_DIGITS} digits")
    is_best = isinstance(best, dict) and _is_finite(best.get("score"))
    if best not in (None, {}) and not (is_best and best.get("weights", "raw") in manifest.WEIGHTS):
        raise KitError(
            f"{caller}: best={best!r} must have a finite 'score' and 'weights' raw, ema or swa, as {{'score': 0.5}} has"
        )
    if last_fast_eval:
        known = manifest.fast_eval_of(last_fast_eval)
        if known is None or not _is_finite(known[2]):
            raise KitError(
                f"{caller}: last_fast_eval={last_fast_eval!r} must have a 'step' and a finite score under the "
                f"name of its metric, as {{'step': 100, 'accuracy': 0.5}} has"
            )


def refuse_values(caller: str, *, extra: Any, **numbers: Any) -> None:
    """Raise KitError where an argument is not of its kind: a file is written or not, never written and then failed."""
    if extra is not None and not isinstance(extra, dict):
        raise KitError(f"{caller}: extra is a {type(extra).__name__}, not a dict of names and values")
    for name, value in numbers.items():
        is_count = name.startswith("keep_")
        if value is None and is_count:
            continue
        try:
            (operator.index if is_count else float)(value)
        except (TypeError, ValueError):
            raise KitError(f"{caller}: {name} is {value!r}, not a {'whole ' * is_count}number") from None


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _write(
    target: Path, content: dict[str, Any], loss: Any, masks: frozenset[str], last_fast_eval: Any
) -> Manifest:  # fmt: skip
    """Write data and manifest; the step that was saved last stays as it is and gets the newer manifest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(target.parent)
    saved = _saved.get(str(target.absolute()))
    if saved is not None and not _is_unchanged(target, saved):
        # What a branch stands on stays, whatever was trained again: then the save fails, and says so.
        own = run_dir()
        if own is not None and content["global_step"] in pruning.pinned_steps(RunPaths(own).claims):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        _withdraw_own(target, saved)
        saved = None
    if saved is not None and os.path.lexists(target):
        known = saved._replace(last_fast_eval=last_fast_eval or saved.last_fast_eval)
        if known != saved:
            manifest.write(target, known)
    else:
        known = _write_new(target, content, loss, masks, last_fast_eval)
    _saved.pop(str(target.absolute()), None)
    _saved[str(target.absolute())] = known  # the last one saved is the last key
    return known


def _is_unchanged(target: Path, saved: Manifest) -> bool:
    """Whether a step that is saved again is what it was: the last one saved, and finite.

    A trainer that went back and trained the same steps again has other weights under the same number.
    """
    return saved.finite is True and next(reversed(_saved)) == str(target.absolute())


def _withdraw_own(target: Path, saved: Manifest) -> None:
    """Take an earlier file of this process out of the way of the step's new content; the manifest goes first."""
    del _saved[str(target.absolute())]
    with contextlib.suppress(OSError, UnreadableFile):
        if manifest.read(target).sha256 == saved.sha256:
            manifest_path(target).unlink()
            layout.remove(target)


def _write_new(
    target: Path, content: dict[str, Any], loss: Any, masks: frozenset[str], last_fast_eval: Any
) -> Manifest:  # fmt: skip
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    with DurableFile(target) as file:
        torch_save(content, file)
        file.seal()
        nonfinite = checkpoint_content.nonfinite(content, loss, masks)  # while the disk and the digest are at work
        known = Manifest(
            writer=manifest.SAVE_CHECKPOINT,
            file=target.name,
            size=file.size,
            sha256=file.finish(),
            step=content["global_step"],
            created_at=utc_now(),
            versions=content["versions"],
            optimizer_name=content["optimizer_name"],
            weights=("raw", *(kind for kind in ("ema", "swa") if content[f"{kind}_state_dict"] is not None)),
            step_completed=True,
            rng_ranks=rank_states.rng_ranks(content),
            finite=not nonfinite,
            nonfinite=nonfinite,
            last_fast_eval=last_fast_eval,
            **lineage(),
        )
        _publish(file, known)
    return known


def _publish(file: DurableFile, known: Manifest) -> None:
    """Data first, then its manifest, which is ready on the disk before the data gets its name."""
    with manifest.write_temp(file.target, known) as beside:
        file.publish()
        try:
            beside.replace()
            fsync_directory(file.target.parent)
        except BaseException:
            file.withdraw()
            if beside.has_name:
                beside.target.unlink(missing_ok=True)
            raise


def torch_save(content: dict[str, Any], file: DurableFile) -> None:
    import torch  # the trainer has it already

    # The archive's checksums are a third of what a save costs; torch.load never reads them, and the digest says more.
    with_checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, file)
    except BaseException as error:
        # torch reports 'unexpected pos ...' and no errno; what really happened was kept by the file.
        if file.error is not None and file.error is not error:
            raise file.error from None
        raise
    finally:
        torch.serialization.set_crc32_options(with_checksums)


def _link_best(target: Path, best_path: Path, known: Manifest, best: dict[str, Any]) -> OSError | None:
    """Point the best name at this step's file (a hard link, so that pruning the step's name leaves it)."""
    score, weights = float(best["score"]), str(best.get("weights", "raw"))
    named = known._replace(file=best_path.name, best_score=score, best_weights=weights)
    temp = temp_path(best_path)
    try:
        # Both are on the disk before either has its name: a best with the manifest of an older one is none at all.
        with manifest.write_temp(best_path, named) as beside:
            try:
                layout.pin(target, temp)
                layout.rename(temp, best_path)
                beside.replace()
            finally:
                layout.remove(temp, missing_ok=True)
        fsync_directory(best_path.parent)
    except OSError as error:
        return error
    return None


def _sweep_once(folder: Path) -> None:
    key = str(folder.absolute())
    if key not in _swept:
        pruning.sweep(folder)
        fsync_parents(folder)  # the launcher made the run's folder just now, and its name is not durable yet
        _swept.add(key)


def _succeeded(
    target: Path, known: Manifest, seconds: float, blocked_s: float | None, log_fn: Callable[[str], Any]
) -> None:
    """Say that a step is durable, `seconds` after the call; one in the background has blocked training for less."""
    global _io_errors
    _io_errors = 0
    folder = run_dir()
    shown = relative_to_run(target, folder) if folder else str(target)
    waited_s = seconds if blocked_s is None else blocked_s
    fields = {"sha256": known.sha256, "size": known.size, "seconds": round(waited_s, 6), "finite": known.finite}
    if blocked_s is not None:
        fields["written_s"] = round(seconds, 6)
    journal_event("checkpoint", step=known.step, path=shown, **fields)
    took = f"{waited_s:.2f} s" if blocked_s is None else f"{waited_s:.2f} s, durable after {seconds:.2f} s"
    log_fn(f"[checkpoint] step={known.step} saved as {target.name} ({known.size / 1e6:,.1f} MB, {took})")
    if known.nonfinite:
        names = ", ".join(known.nonfinite)
        warn("checkpoint_not_finite", f"step {known.step} is kept, but never resumed from: not finite: {names}", log_fn)


def tell_of_no_data_state(caller: str, log_fn: Callable[[str], Any]) -> None:
    """Say, once in a process, that a resume from these checkpoints will not be exact."""
    global _has_told_of_no_data_state
    if _has_told_of_no_data_state:
        return
    _has_told_of_no_data_state = True
    message = (
        f"{caller} got no data_state: a resume does not know where the data stood, and will not be exact; pass "
        "the sampler's state as data_state (an entry of extra does not count), or data_state={'step': step} where the "
        "data follow from the step alone"
    )
    warn(NO_DATA_STATE, message, log_fn)


def _tell_of_too_little_memory(reason: str, log_fn: Callable[[str], Any]) -> None:
    """Say, once in a process, that saves block though they were to be written beside the training."""
    global _has_told_of_too_little_memory
    if not _has_told_of_too_little_memory:
        _has_told_of_too_little_memory = True
        message = f"save_checkpoint with background=True blocks: {reason}; give the job more memory, or save without it"
        warn("background_memory", message, log_fn)


def warn(kind: str, message: str, log_fn: Callable[[str], Any]) -> None:
    journal_event("warning", kind=kind, message=message)
    log_fn(f"[warn] {message}")


def _failed(target: Path, step: int, error: OSError, content: dict[str, Any], log_fn: Callable[[str], Any]) -> None:
    global _io_errors
    _io_errors = _io_errors + 1 if error.errno == errno.EIO else 0
    reason = disk_error_cause(error, target, checkpoint_content.tensor_bytes(content))
    message = f"step {step} was not saved to '{target.parent}': {reason}"
    warn("save_failed", f"{message}; training goes on, older checkpoints are as they were", log_fn)
    if _io_errors >= MAX_IO_ERRORS:
        raise KitError(f"{message}; that is {_io_errors} in a row, the disk is failing: move the run to another one")
