"""The learning rate of a resumed trainer: its scale, around each optimizer step, and a schedule placed anew at a
step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

from ..base.errors import InvalidFile, KitError
from ..base.imports import Any
from ..policy import lr_scale
from ..policy.lr_scale import LrScale

_hooks: WeakKeyDictionary[Any, _Hook] = WeakKeyDictionary()


class _Hook:
    """The scale of one optimizer by its name, and how many steps it has done.

    `last` is (the groups' own rates, the factor) of the step that was done last, or is being done; None before one.
    `is_asked` is whether the trainer takes its rates from `used_lr`.
    """

    def __init__(self, scale: LrScale, step: int, name: str) -> None:
        self.scale, self.step, self.name = scale, step, name
        self.handles: tuple[Any, ...] = ()
        self.own_rates: list[Any] | None = None
        self.last: tuple[list[Any], float] | None = None
        self.is_asked = False

    @property
    def factor(self) -> float:
        """What the next step's rate is multiplied by."""
        return self.scale(self.step, self.name)

    def before(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.put_back(optimizer)  # a step that raised did not come to its end
        factor = self.factor
        self.own_rates = [group["lr"] for group in optimizer.param_groups]
        self.last = (self.own_rates, factor)
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


def attach_scale(optimizers: Mapping[str, Any], scale: LrScale, step: int) -> None:
    """Scale every later step of the optimizers; a scale put on them before is taken off.

    Args:
        optimizers: by name, '' for a single one; each counts its own steps, from `step` on.
        scale: where it is 1.0 from `step` on for good, nothing is hooked.
        step: optimizer steps done.

    Raises:
        KitError: an optimizer has no hooks (it is not torch's).
    """
    for name, optimizer in optimizers.items():
        detach_scale(optimizer)
        if scale_is_one(scale, step, name):
            continue
        if not hasattr(optimizer, "register_step_pre_hook"):
            raise KitError(
                f"the learning rate is scaled by {scale(step, name):g}, and a '{type(optimizer).__name__}' has no "
                "hooks to do that: call load_resume_bundle with own_lr_scale=True and multiply by "
                "bundle.lr_scale_at(step)"
            )
        hook = _Hook(scale, step, name)
        hook.handles = (
            optimizer.register_step_pre_hook(hook.before),
            optimizer.register_step_post_hook(hook.after),
        )
        _hooks[optimizer] = hook


def detach_scale(optimizer: Any) -> None:
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
    factor = hook.factor if hook else 1.0
    return [float(group["lr"]) * factor for group in optimizer.param_groups]


def used_lr(optimizer: Any) -> float:
    """Return the learning rate that the last step of an optimizer used, for the trainer's log.

    A scheduler's `get_last_lr()` and the optimizer's groups hold the rate without what the kit multiplies it by: a cut
    after a recovery, the first steps after a swap.

    Args:
        optimizer: one, or a dict of several: then the first one's. Its first group's rate is returned; where the kit
            multiplies by nothing, or before the first step, it is the rate of the next step.
    """
    one = next(iter(optimizer.values())) if isinstance(optimizer, dict) else optimizer
    hook = _hooks.get(one)
    if hook is None:
        return float(one.param_groups[0]["lr"])
    hook.is_asked = True
    own, factor = hook.last or ([group["lr"] for group in one.param_groups], hook.factor)
    return float(own[0]) * factor


def with_used_lr(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a trainer tells of a step, its `lr` as the step used it, with the `lr_scale` of the next step.

    A trainer that does not ask `used_lr` tells a group's own rate: that of the step, or, its schedule being ahead, of
    the next one. Any other number is left as it is, and so is everything where the kit scales nothing.

    Args:
        fields: of a `step` or `heartbeat` event.
    """
    hooked = list(_hooks.items())
    if not hooked:
        return fields
    lr: Any = fields.get("lr")
    if type(lr) in (int, float):
        fields = fields | {"lr": next((used for one, hook in hooked for used in _used(one, hook, lr)), lr)}
    return {"lr_scale": hooked[0][1].factor} | fields


def _used(optimizer: Any, hook: _Hook, lr: float) -> Iterator[float]:
    """Yield what the last step used of the group whose own rate is `lr`, in that step or in the next."""
    if hook.last is None or hook.is_asked:
        return
    own, factor = hook.last
    for rates_of_groups in (own, [group["lr"] for group in optimizer.param_groups]):
        for index, rate in enumerate(rates_of_groups):
            if index < len(own) and float(rate) == lr:
                yield float(own[index]) * factor


def scale_of(optimizer: Any) -> LrScale | None:
    """Return the scale that the kit puts on an optimizer, or on the first of several; None where it puts none."""
    for one in optimizer.values() if isinstance(optimizer, dict) else [optimizer]:
        if one is not None and one in _hooks:
            return _hooks[one].scale
    return None


def scale_fields(optimizer: Any, factor: float | None, ramp: dict[str, Any] | None) -> dict[str, Any]:
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


def scale_is_one(scale: LrScale, step: int, name: str = "") -> bool:
    """Whether the scale of the optimizer `name` is 1.0 at `step` and ever after."""
    ramp = scale.ramp if scale.ramp and scale.ramp.is_of(name) else None
    is_over = ramp is None or step >= ramp.from_step + ramp.steps or (ramp.factor == 1.0 and not ramp.warm_restart)
    return scale.factor == 1.0 and is_over


# A schedule placed anew at the kept step: its old state is not loaded, the new function of the step begins there.
#
# So a run whose rate had decayed to zero goes on when it is made longer (huggingface/transformers#18070), and no
# schedule is advanced twice (THUDM/slime#1775). Reads and writes no file. Source: protocol §1.


def refit_refusal(scheduler: Any) -> str:
    """Return why a scheduler can't be refitted, '' if it can."""
    for one in _leaves(scheduler):
        if callable(getattr(one, "refit", None)):
            continue
        if any(kind.__name__ == "ReduceLROnPlateau" for kind in type(one).__mro__):
            return (
                "a ReduceLROnPlateau is no function of the step (it goes by the evaluations) and can't be refitted: "
                "load its state, or give the trainer another schedule"
            )
        if not callable(getattr(one, "step", None)):
            return f"the scheduler '{type(one).__name__}' has neither refit(step) nor step(), and can't be refitted"
    return ""


def refit_schedule(scheduler: Any, saved: Any, step: int) -> int:
    """Place a freshly made scheduler at the kept step.

    Args:
        scheduler: the trainer's, or a dict of several; a method refit(step) of its own is called, else it is stepped
            from where it was made. The optimizer must still have the learning rates that it was made with.
        saved: its state in the checkpoint, which says how often it had been stepped where that is not once per
            optimizer step (once per epoch, say); None without.
        step: optimizer steps done.

    Returns:
        The place in its own count of steps.

    Raises:
        InvalidFile: it can't be stepped that far.
    """
    if isinstance(scheduler, dict):
        states = saved if isinstance(saved, dict) else {}
        return max((refit_schedule(one, states.get(key), step) for key, one in scheduler.items()), default=step)
    own = getattr(scheduler, "refit", None)
    if callable(own):
        own(step)
        return step
    place = step if step == 0 else _place(saved, step)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of schedules that are stepped before their optimizer
            # One that the trainer has placed already is not advanced a second time.
            for _ in range(place - int(getattr(scheduler, "last_epoch", 0) or 0)):
                scheduler.step()
    except Exception as error:  # whatever a trainer's own schedule may raise
        raise InvalidFile(
            f"the new schedule '{type(scheduler).__name__}' can't be placed at step {place}, and nothing was loaded: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; make it longer, or give it a "
            f"method refit(step)"
        ) from error
    return place


def _place(saved: Any, step: int) -> int:
    """Return how often the old schedule had been stepped; the optimizer's steps where it does not say."""
    counts = set(_counts(saved))
    return counts.pop() if len(counts) == 1 else step


def _counts(saved: Any) -> Iterator[int]:
    if not isinstance(saved, dict):
        return
    if type(saved.get("last_epoch")) is int:
        yield max(0, saved["last_epoch"])
        return
    inner = saved.get("_schedulers", list(saved.values()))
    for state in inner if isinstance(inner, list) else ():
        if isinstance(state, dict) and type(state.get("last_epoch")) is int:
            yield max(0, state["last_epoch"])


def schedule_differences(saved: Any, scheduler: Any) -> list[str]:
    """Return what the trainer made otherwise than the state that is loaded over it: 'T_max: 20 here, 10 in it'.

    The loaded one wins, and a new learning rate would go by unnoticed (pytorch/pytorch#156846).
    """
    if not isinstance(saved, dict) or not hasattr(scheduler, "state_dict") or isinstance(scheduler, dict):
        return []
    own = scheduler.state_dict()
    if not isinstance(own, dict):
        return []
    moving = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
    names = [name for name in own if isinstance(name, str) and not name.startswith("_") and name not in moving]
    plain = (int, float, str, list, tuple)
    others = [
        f"{name}: {_shown(own[name])} here, {_shown(saved[name])} in it"
        for name in names
        if name in saved and isinstance(own[name], plain) and isinstance(saved[name], plain)
        and list(_flat(own[name])) != list(_flat(saved[name]))
    ]  # fmt: skip
    # Another kind of schedule; versions of torch differ in 'verbose'.
    return others + [
        f"{name}: {_shown(own[name])} here, none in it" for name in names if name not in {*saved, "verbose"}
    ]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value if isinstance(value, (int, float, str, type(None))) else repr(value)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _leaves(scheduler: Any) -> Iterator[Any]:
    if isinstance(scheduler, dict):
        for one in scheduler.values():
            yield from _leaves(one)
        return
    yield scheduler
    for one in getattr(scheduler, "_schedulers", ()):
        yield from _leaves(one)
