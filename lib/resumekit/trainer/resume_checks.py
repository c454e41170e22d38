"""The checks that a trainer itself makes possible right after a resume: a dry batch, a fast evaluation, its position.

Nothing of it moves the training: random numbers, buffers and the training mode are put back, gradients are off.
Journals `check` events. Source: protocol §4.
Try it: `check_resume(bundle, model, dry_batch=lambda: model(batch), fast_eval=lambda: accuracy(model))`
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..basics.actions import LOAD
from ..basics.check import FAILED, PASSED, UNKNOWN, WARNED, Check
from ..basics.files import UnreadableFile
from ..proving import manifest
from . import rng_state
from .resume_bundle import ResumeBundle
from .verification import is_alike, report

# A share of the examples: what another machine or precision may change in an evaluation of the same weights.
FAST_EVAL_TOLERANCE = 0.02
# What the steps since the checkpoint's last fast evaluation may have cost.
OLDER_EVAL_TOLERANCE = 0.1


def check_resume(
    bundle: ResumeBundle,
    model: Any = None,
    *,
    dry_batch: Callable[[], Any] | None = None,
    fast_eval: Callable[[], float] | None = None,
    data_state: Any = None,
    log_fn: Callable[[str], Any] = print,
) -> bool:
    """Check a resume, once everything is loaded and before the first step; nothing where nothing was resumed.

    Args:
        bundle: what load_resume_bundle returned.
        model: its buffers and its training mode are put back.
        dry_batch: does one forward pass on a fixed mini-batch, under the autocast of training, and returns its output.
        fast_eval: evaluates the loaded weights on the fixed subset and returns the accuracy, 0 to 1.
        data_state: where the trainer's data stands now, as it passed it to `save_checkpoint`.
        log_fn: takes a line for each check that did not pass.

    Returns:
        Whether nothing failed. The sidecar ends the run on a failure where `resume.strict_checks` says so.
    """
    loaded = bundle.loaded
    if loaded is None:
        return True
    checks = [*_rng(bundle), *_data_position(bundle, data_state)]
    if dry_batch is not None:
        with undisturbed(model):
            checks.append(_dry_batch(dry_batch))
    if fast_eval is not None:
        with undisturbed(model):
            checks.append(_fast_eval(fast_eval, bundle, loaded.path))
    report(checks, log_fn)
    return all(one.verdict != FAILED for one in checks)


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Run a block without gradients, and put random numbers, buffers and the training mode back behind it."""
    import torch  # the trainer has it already

    numbers = rng_state.capture()
    modules = list(model.modules()) if model is not None else []
    modes = [module.training for module in modules]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if model is not None else []
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        rng_state.restore(numbers)


def _rng(bundle: ResumeBundle) -> Iterator[Check]:
    saved = bundle.saved_rng
    if saved is None or bundle.report.get("rng") != LOAD:
        return
    now = rng_state.capture()
    moved = [name for name in saved if name not in now or not _is_same_state(saved[name], now[name])]
    verdict, why = (FAILED, f"drawn from or seeded since the load: {', '.join(moved)}") if moved else (PASSED, "")
    yield Check("rng", verdict, "as in the checkpoint", "moved" if moved else "as in the checkpoint", why)


def _is_same_state(saved: Any, now: Any) -> bool:
    if isinstance(saved, dict):
        return saved == now
    if isinstance(saved, (list, tuple)):
        return len(saved) == len(now) and all(_is_same_state(*pair) for pair in zip(saved, now, strict=True))
    return is_alike(saved, now)


def _data_position(bundle: ResumeBundle, now: Any) -> Iterator[Check]:
    saved = bundle.extra.get("data_state")
    if now is None or saved is None or bundle.report.get("data_position") != LOAD:
        return
    differs = [key for key in saved if saved[key] != now.get(key)] if _are_dicts(saved, now) else saved != now
    if not differs:
        yield Check("data_position", PASSED, "as in the checkpoint", "as in the checkpoint")
    elif isinstance(differs, list):
        expected, found = ({key: side.get(key) for key in differs[:4]} for side in (saved, now))
        yield Check("data_position", FAILED, str(expected)[:200], str(found)[:200])
    else:
        yield Check("data_position", FAILED, str(saved)[:200], str(now)[:200])


def _are_dicts(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _dry_batch(forward: Callable[[], Any]) -> Check:
    expected = "one forward pass with finite output"
    try:
        output = forward()
    except Exception as error:
        return Check("dry_batch", FAILED, expected, f"{type(error).__name__}: {error}"[:300])
    tensors = list(_tensors(output))
    broken = sum(not bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
    shapes = "; ".join(f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in tensors[:4])
    if broken:
        return Check("dry_batch", FAILED, expected, shapes, f"{broken} of {len(tensors)} outputs are not finite")
    return Check("dry_batch", PASSED, expected, shapes or "no tensor")


def _tensors(output: Any) -> Iterator[Any]:
    if hasattr(output, "isfinite") and hasattr(output, "is_floating_point"):
        yield output
    elif isinstance(output, dict):
        for one in output.values():
            yield from _tensors(one)
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from _tensors(one)


def _fast_eval(evaluate: Callable[[], float], bundle: ResumeBundle, checkpoint: Path) -> Check:
    try:
        found = float(evaluate())
    except Exception as error:
        return Check("fast_eval", FAILED, "an evaluation", f"{type(error).__name__}: {error}"[:300])
    try:
        last = manifest.read(checkpoint).last_fast_eval
    except UnreadableFile:
        last = None
    if not math.isfinite(found):
        return Check("fast_eval", FAILED, "a number", str(found))
    if last is None:
        return Check("fast_eval", UNKNOWN, None, found, "the checkpoint knows of no fast evaluation")
    is_same = last["step"] == bundle.global_step and bundle.report.get("weights") == LOAD
    tolerance = FAST_EVAL_TOLERANCE if is_same else OLDER_EVAL_TOLERANCE
    expected = f"{last['accuracy']:.6g} at step {last['step']}"
    if found >= last["accuracy"] - tolerance:
        return Check("fast_eval", PASSED, expected, found)
    return Check("fast_eval", FAILED if is_same else WARNED, expected, found, f"more than {tolerance:g} below")
