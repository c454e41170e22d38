"""The learning rate scale, applied around each optimizer step: any schedule goes on as if there were none.

Every group's rate is multiplied before the step and put back after it, so what a scheduler reads and what a checkpoint
holds is the schedule's own rate. Uses torch's hooks on optimizer.step; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from ..basics import lr_scale
from ..basics.errors import KitError
from ..basics.lr_scale import LrScale

_hooks: WeakKeyDictionary[Any, _Hook] = WeakKeyDictionary()


class _Hook:
    """The scale of one optimizer, and how many steps it has done."""

    def __init__(self, scale: LrScale, step: int) -> None:
        self.scale, self.step = scale, step
        self.handles: tuple[Any, ...] = ()
        self.own_rates: list[Any] | None = None

    def before(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.put_back(optimizer)  # a step that raised did not come to its end
        factor = self.scale(self.step)
        self.own_rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups if factor != 1.0 else ():
            group["lr"] = group["lr"] * factor

    def after(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        # An optimizer whose step calls its base class's may come here twice; the inner one has counted it.
        if self.own_rates is not None:
            self.put_back(optimizer)
            self.step += 1

    def put_back(self, optimizer: Any) -> None:
        if self.own_rates is not None:
            for group, rate in zip(optimizer.param_groups, self.own_rates, strict=False):
                group["lr"] = rate
            self.own_rates = None


def attach(optimizers: Iterable[Any], scale: LrScale, step: int) -> None:
    """Scale every later step of the optimizers; a scale put on them before is taken off.

    Args:
        optimizers: each counts its own steps, from `step` on.
        scale: where it is 1.0 from `step` on for good, nothing is hooked.
        step: optimizer steps done.

    Raises:
        KitError: an optimizer has no hooks (it is not torch's).
    """
    for optimizer in optimizers:
        detach(optimizer)
        if is_one(scale, step):
            continue
        if not hasattr(optimizer, "register_step_pre_hook"):
            raise KitError(
                f"the learning rate is scaled by {scale(step):g}, and a '{type(optimizer).__name__}' has no hooks to "
                f"do that: call load_resume_bundle with own_lr_scale=True and multiply by bundle.lr_scale_at(step)"
            )
        hook = _Hook(scale, step)
        hook.handles = (
            optimizer.register_step_pre_hook(hook.before),
            optimizer.register_step_post_hook(hook.after),
        )
        _hooks[optimizer] = hook


def detach(optimizer: Any) -> None:
    """Take the scale off an optimizer that has one."""
    hook = _hooks.pop(optimizer) if optimizer in _hooks else None
    for handle in hook.handles if hook else ():
        handle.remove()


def rates(optimizer: Any, *, is_stepping: bool) -> list[float]:
    """Return each group's learning rate as its next step uses it.

    Args:
        is_stepping: asked from inside optimizer.step, where the scale is in the groups' rates already.
    """
    hook = _hooks[optimizer] if optimizer in _hooks and not is_stepping else None
    factor = hook.scale(hook.step) if hook else 1.0
    return [float(group["lr"]) * factor for group in optimizer.param_groups]


def scale_of(optimizer: Any) -> LrScale | None:
    """Return the scale that the kit puts on an optimizer, or on the first of several; None where it puts none."""
    for one in optimizer.values() if isinstance(optimizer, dict) else [optimizer]:
        if one is not None and one in _hooks:
            return _hooks[one].scale
    return None


def fields(optimizer: Any, factor: float | None, ramp: dict[str, Any] | None) -> dict[str, Any]:
    """Return a checkpoint's `lr_scale` and `lr_ramp`.

    Args:
        optimizer: one, or a dict of several.
        factor, ramp: the trainer's own; both None for what the kit puts on the optimizer, so that a cut is inherited.

    Raises:
        KitError: they are not what they must be.
    """
    try:
        scale = scale_of(optimizer) if factor is None and ramp is None else lr_scale.from_fields(factor, ramp)
    except ValueError as error:
        raise KitError(f"save_checkpoint: {error}") from error
    kept = (scale or LrScale()).as_fields()
    return {"lr_scale": kept["factor"], "lr_ramp": kept["ramp"]}


def is_one(scale: LrScale, step: int) -> bool:
    """Whether a scale is 1.0 at `step` and ever after."""
    ramp = scale.ramp
    is_over = ramp is None or step >= ramp.from_step + ramp.steps or (ramp.factor == 1.0 and not ramp.warm_restart)
    return scale.factor == 1.0 and is_over
