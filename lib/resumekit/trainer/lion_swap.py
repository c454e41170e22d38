"""A Lion in the place of a trainer's optimizer, for `optimizer_policy="swap_to_lion"` of a trainer that passes no Lion.

Only where lion_pytorch is installed. The trainer's loop must go on with `bundle.optimizer`; the old optimizer refuses
to step from then on, because a swap that goes unnoticed is none. Source: protocol §7, §13.
"""

from __future__ import annotations

from typing import Any

from ..basics.errors import KitError
from .optimizer_state import SCHEDULE_KEYS
from .saved_optimizers import is_lion

WEIGHT_DECAY = 0.01  # protocol §7: at first; reduce it on underfitting


def stand_in(optimizer: Any, scheduler: Any) -> Any | None:
    """Return a Lion with the optimizer's parameters, groups and learning rates.

    None where none is needed (it is a Lion), or none can be made: several optimizers, a scheduler that does not say
    which optimizer it drives, or no lion_pytorch.
    """
    if optimizer is None or isinstance(optimizer, dict) or is_lion(optimizer):
        return None
    if scheduler is not None and not _drives(scheduler, optimizer):
        return None
    try:
        from lion_pytorch import Lion  # only here: a trainer that swaps nothing does without it
    except ImportError:
        return None
    groups = [
        {**{key: group[key] for key in SCHEDULE_KEYS & group.keys()}, "params": group["params"]}
        for group in optimizer.param_groups
    ]
    return Lion(groups, weight_decay=WEIGHT_DECAY)


def take_over(lion: Any, optimizer: Any, scheduler: Any) -> None:
    """Put the Lion under the scheduler, and make the old optimizer refuse to step."""
    for one in _schedulers(scheduler):
        one.optimizer = lion

    def refuse(*_: Any) -> None:
        raise KitError(
            f"this {type(optimizer).__name__} was swapped for a Lion: write 'optimizer = bundle.optimizer' behind "
            f"load_resume_bundle, or pass a lion_pytorch.Lion to it"
        )

    optimizer.register_step_pre_hook(refuse)


def _drives(scheduler: Any, optimizer: Any) -> bool:
    return all(getattr(one, "optimizer", None) is optimizer for one in _schedulers(scheduler))


def _schedulers(scheduler: Any) -> list[Any]:
    """Return a scheduler and those inside it (SequentialLR, ChainedScheduler)."""
    if scheduler is None:
        return []
    return [scheduler, *(inner for one in getattr(scheduler, "_schedulers", ()) for inner in _schedulers(one))]
