"""Proof for a checkpoint that a framework wrote: a file or folder of any kind, sealed right behind its save.

Makes it durable, reads it once for its digests and for values that are not finite, and writes its manifest last. Needs
no torch of its own. Writes the manifest (beside a file, in `manifests/` for a folder) and a `checkpoint` event.
Try it: examples/hf_trainer, whose callback has four lines
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ..base.errors import KitError
from ..base.files import UnreadableFile, fsync_directory
from ..base.imports import Any
from ..base.paths import MAX_STEP, STEP_DIGITS, manifest_path, relative_to_run
from ..base.values import finite
from ..checkpoint import grades, layout, manifest
from ..checkpoint.manifest import SEAL_CHECKPOINT, Manifest
from .ranks import rank
from .save_file import deferred_signals
from .trainer_env import checkpoint_form, end_if_taken_over, journal_event, lineage, run_dir


def seal_checkpoint(
    path: str | Path,
    step: int,
    *,
    loss: Any = None,
    metric: dict[str, float] | None = None,
    best: bool = False,
    log_fn: Callable[[str], Any] = print,
) -> Path | None:
    """Prove a checkpoint that something else has written whole; call it when every rank's part is on the disk.

    In a training of several ranks it is rank 0 that seals; any other one does nothing and returns None.

    Args:
        path: the file or folder, of any kind (docs/adopting.md).
        step: optimizer steps done; it must be the one in its name, and the one inside where there is one.
        loss: the last loss, for the finite check only.
        metric: what an evaluation at this step gave, {METRIC: score}; None for none.
        best: this step is the best so far, by `metric`: `resume.sh --best` takes the newest that is.

    Returns:
        The manifest's path, durable; None where the checkpoint is not whole or the disk failed: that is said and
        journalled, and training can go on.

    Raises:
        KitError: an argument is not what it must be.
    """
    started = time.monotonic()
    score = _refuse_arguments(step, metric, best=best)
    if rank() != 0:
        return None
    end_if_taken_over()
    place, form = Path(path), checkpoint_form()
    try:
        with deferred_signals():
            _make_durable(place, form.companions_of(place.name), form.follow_links)
            measured = grades.measured(place, step, named=form)
            known = _sealed(measured, loss, metric, score if best else None)
            manifest.write(place, known)
    except (UnreadableFile, OSError) as error:
        message = f"'{place.name}' of step {step} is not sealed: {getattr(error, 'strerror', None) or error}"
        journal_event("warning", kind="not_sealed", message=message)
        log_fn(f"[warn] {message}; training goes on, it is no proven checkpoint")
        return None
    folder, seconds = run_dir(), round(time.monotonic() - started, 6)
    shown = relative_to_run(place, folder) if folder else str(place)
    journal_event(
        "checkpoint", step=step, path=shown, sha256=known.sha256, size=known.size, seconds=seconds, finite=known.finite
    )
    if known.finite is False:
        message = f"step {step} is kept, but never resumed from: not finite: {', '.join(known.nonfinite) or 'its loss'}"
        journal_event("warning", kind="checkpoint_not_finite", message=message)
        log_fn(f"[warn] {message}")
    return manifest_path(place)


def _refuse_arguments(step: int, metric: Any, *, best: bool) -> float | None:
    """Return the score of `metric`; None for none."""
    if type(step) is not int or not 0 <= step < MAX_STEP:
        raise KitError(f"seal_checkpoint: step '{step}' is not a whole number of at most {STEP_DIGITS} digits")
    if metric is None and not best:
        return None
    known = manifest.fast_eval_of({"step": step, **metric}) if isinstance(metric, dict) else None
    score = None if known is None else finite(known[2])
    if score is None:
        raise KitError(
            f"seal_checkpoint: metric={metric!r} must have one finite score under the name of what was measured, as "
            "{'eval_loss': 0.5} has; best=True needs one"
        )
    return float(score)


def _make_durable(place: Path, companions: tuple[str, ...], follow_links: bool) -> None:
    """Make every file and every name of a checkpoint survive a power cut. Raises UnreadableFile and OSError."""
    with layout.open_checkpoint(place, companions, follow_links) as opened:
        for name in opened.files:
            descriptor = opened.open_file(name)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        inner = {parent for name in opened.files for parent in Path(name).parents} if opened.is_folder else set()
    for folder in sorted(inner, reverse=True):
        fsync_directory(place / folder)
    fsync_directory(place.parent)


def _sealed(measured: Manifest, loss: Any, metric: dict[str, float] | None, score: float | None) -> Manifest:
    is_finite = measured.finite
    if loss is not None and finite(float(loss)) is None:
        is_finite = False
    return measured._replace(
        writer=SEAL_CHECKPOINT,
        step_completed=True,
        finite=is_finite,
        last_fast_eval=None if metric is None else {"step": measured.step, **metric},
        best_score=score,
        **lineage(),
    )
