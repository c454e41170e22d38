"""The checks that a trainer itself makes possible right after a resume: a dry batch, a fast evaluation, its position.

Nothing of it moves the training: random numbers, buffers and the training mode are put back, gradients are off.
Journals `check` events. Source: protocol §4.
Try it: `check_resume(bundle, model, dry_batch=lambda: model(batch), fast_eval=lambda: accuracy(model))`
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..base.files import UnreadableFile
from ..base.imports import Any
from ..base.terms import FAILED, LOAD, NOT_TOLD, PARTIAL, PASSED, WARNED, Check
from ..checkpoint import manifest
from ..policy.plan_file import ENVIRONMENT, RECOVERY, PlanFile
from . import checkpoint_content, sharded_state, weights
from .proven_content import read_again
from .resume_bundle import ResumeBundle
from .trainer_env import setting
from .verification import buffers_were_compared, loaded_scaler, report
from .weights import comparison_outcome, first_line, is_same_state

# A share of the examples: what another machine or precision may change in an evaluation of the same weights.
FAST_EVAL_TOLERANCE = 0.02
# What the steps since the checkpoint's last fast evaluation may have cost.
OLDER_EVAL_TOLERANCE = 0.1
# A change of these is another position in other data, and a person has agreed to it.
_DATA_KEYS = ("data.", "training.seed")
# Before a change of the machine's or the code's, not of the config's.
_MACHINE = "environment: "
# A change of these evaluates something else, or on something else.
_EVAL_KEYS = ("validation.", "data.", "model.", "ema.", "swa.", "training.amp", "training.device")


def check_resume(
    bundle: ResumeBundle,
    model: Any = None,
    *,
    dry_batch: Callable[[], Any] | None = None,
    fast_eval: Callable[[], float] | None = None,
    data_state: Any = None,
    fast_eval_tolerance: float = FAST_EVAL_TOLERANCE,
    log_fn: Callable[[str], Any] = print,
) -> bool:
    """Check a resume, once everything is loaded and before anything else; nothing where nothing was resumed.

    No error of a check leaves this function.

    Args:
        bundle: what load_resume_bundle returned.
        model: its buffers and its training mode are put back.
        dry_batch: does one forward pass on a fixed mini-batch, under the autocast of training, and returns its output.
        fast_eval: evaluates the loaded weights on the fixed subset and returns `validation.best_metric` of them, as
            save_checkpoint's last_fast_eval has it.
        data_state: where the trainer's data stands now, as it passed it to `save_checkpoint`.
        fast_eval_tolerance: how much worse the same weights may be; of a metric above 1 a share of it. On another
            machine an example or two may come out otherwise, and of a small subset that is much.
        log_fn: takes a line for each check that did not pass.

    Returns:
        Whether nothing failed. The sidecar ends the run on a failure where `resume.strict_checks` says so.
    """
    loaded = bundle.loaded
    if loaded is None:
        return True
    checks = [
        *_safely("rng", lambda: _rng(bundle)),
        *_safely("data_position", lambda: _data_position(bundle, data_state)),
        *_safely("buffers", lambda: _buffers(bundle, model)),
        *_safely("scaler", lambda: loaded_scaler(loaded)),
    ]
    if dry_batch is not None:
        with undisturbed(model):
            checks.append(_dry_batch(dry_batch))
    if fast_eval is not None:
        with undisturbed(model):
            checks += _safely("fast_eval", lambda: [_fast_eval(fast_eval, bundle, loaded.path, fast_eval_tolerance)])
    report(checks, log_fn)
    return all(one.verdict != FAILED for one in checks)


def _safely(name: str, compare: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return what a comparison gives; values of a trainer's own may refuse to be compared."""
    try:
        return list(compare())
    except Exception as error:
        return [Check(name, NOT_TOLD, why=f"cannot be compared: {first_line(error)}")]


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Run a block without gradients, and put random numbers, buffers and the training mode back behind it."""
    import torch  # the trainer has it already

    numbers = checkpoint_content.capture_rng()
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
        checkpoint_content.restore_rng(numbers)


def _rng(bundle: ResumeBundle) -> Iterator[Check]:
    saved = bundle.saved_rng
    if saved is None or bundle.report.get("rng") != LOAD:
        return
    now = checkpoint_content.capture_rng()
    moved = [name for name in saved if name not in now or not is_same_state(saved[name], now[name])]
    verdict, why = (FAILED, f"drawn from or seeded since the load: {', '.join(moved)}") if moved else (PASSED, "")
    yield Check("rng", verdict, "as in the checkpoint", "moved" if moved else "as in the checkpoint", why)


def _data_position(bundle: ResumeBundle, now: Any) -> Iterator[Check]:
    saved = bundle.extra.get("data_state")
    if now is None or saved is None or bundle.report.get("data_position") != LOAD:
        return
    expected, found = saved, now
    if isinstance(saved, dict) and isinstance(now, dict):
        differs = [key for key in saved if not is_same_state(saved[key], now.get(key))]
        expected, found = ({key: side.get(key) for key in differs[:4]} for side in (saved, now))
    else:
        differs = [] if is_same_state(saved, now) else ["it"]
    changed = [key for key in _changed_keys(bundle.loaded.plan) if key.startswith(_DATA_KEYS)] if differs else []
    if differs and not changed and bundle.left_out.data_steps:
        yield _moved_on(bundle.left_out.data_steps, expected, found)
    elif differs:
        why = f"{changed[0]} was changed" if changed else ""
        yield Check("data_position", WARNED if changed else FAILED, str(expected)[:200], str(found)[:200], why)
    else:
        yield Check("data_position", PASSED, "as in the checkpoint", "as in the checkpoint")


def _moved_on(left_out: int, expected: Any, found: Any) -> Check:
    """Judge a position that a recovery moves on itself: numbers grow, and what is no number stays."""
    then, now = (one if isinstance(one, dict) else {"it": one} for one in (expected, found))
    pairs = [(value, now.get(key)) for key, value in then.items()]
    if all(type(one) in (int, float) and type(other) in (int, float) and one < other for one, other in pairs):
        return Check("data_position", PASSED, f"the data of {left_out} steps left out", str(found)[:200])
    why = f"the recovery leaves out the data of {left_out} steps, and whether it is only that cannot be told"
    return Check("data_position", NOT_TOLD, str(expected)[:200], str(found)[:200], why)


def _buffers(bundle: ResumeBundle, model: Any) -> Iterator[Check]:
    """Compare the model's buffers (BatchNorm's statistics) while nothing has gone through it yet."""
    action = bundle.report.get("weights", "").partition(":")[0]
    if model is None or action not in (LOAD, PARTIAL):
        return
    if isinstance(bundle.loaded.model, sharded_state.FlatModel):
        model = bundle.loaded.model
    kept = sharded_state.form_of(model)
    mine = {name: value for name, value in model.named_buffers() if name in kept}
    if not mine:
        return
    saved = read_again(bundle.loaded.path, bundle.loaded.kept)["model_state_dict"]
    fit = weights.fit_weights(saved, kept)
    pairs = [(name, saved[fit.pairs[name]], value) for name, value in mine.items() if name in fit.pairs]
    if pairs:
        buffers_were_compared(model)
        yield comparison_outcome("buffers", pairs, "as in the checkpoint")


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


def _fast_eval(evaluate: Callable[[], float], bundle: ResumeBundle, checkpoint: Path, tolerance: float) -> Check:
    try:
        found = float(evaluate())
    except Exception as error:
        return Check("fast_eval", FAILED, "an evaluation", f"{type(error).__name__}: {error}"[:300])
    try:
        last = manifest.fast_eval_of(manifest.read(checkpoint).last_fast_eval)
    except UnreadableFile:
        last = None
    if not math.isfinite(found):
        return Check("fast_eval", FAILED, "a number", str(found))
    if last is None:
        return Check("fast_eval", NOT_TOLD, None, found, "the checkpoint knows of no fast evaluation")
    step, metric, score = last
    expected = f"{metric} {score:.6g} at step {step}"
    wanted, is_loss = setting("validation", "best_metric"), setting("validation", "best_mode") == "min"
    if wanted not in (None, metric):
        return Check("fast_eval", NOT_TOLD, expected, found, f"validation.best_metric is '{wanted}' here")
    is_same = step == bundle.global_step and bundle.report.get("weights") == LOAD
    tolerance = tolerance if is_same else max(tolerance, OLDER_EVAL_TOLERANCE)
    if (found - score if is_loss else score - found) <= tolerance * max(1.0, abs(score)):
        return Check("fast_eval", PASSED, expected, found)
    changed = [key for key in _changed_keys(bundle.loaded.plan) if key.startswith((_MACHINE, *_EVAL_KEYS))]
    way = "above" if is_loss else "below"
    why = f"more than {tolerance:g} {way}" + (f"; {changed[0]} was changed" if changed else "")
    return Check("fast_eval", FAILED if is_same and not changed else WARNED, expected, found, why)


def _changed_keys(plan: PlanFile | None) -> list[str]:
    """Return what the plan says was changed, but for a recovery's own; an environment's with the mark before it."""
    changes = plan.changes if plan is not None else ()
    return [(_MACHINE if one.origin == ENVIRONMENT else "") + one.key for one in changes if one.origin != RECOVERY]
