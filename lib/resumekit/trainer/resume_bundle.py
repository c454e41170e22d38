"""What a trainer gets back from a load: its counters, its own entries of the checkpoint, and what was done."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..basics import lr_scale as scales
from . import left_out
from .left_out import LeftOut


@dataclass(frozen=True)
class ResumeBundle:
    """What a trainer needs to go on.

    Args:
        global_step, start_epoch, best_val_loss: the counters; 0, 0 and infinite where they are absent.
        missing, unexpected, reinitialised: parameter names: new in the model, only in the checkpoint, and those of the
            new ones that got another initialisation than their module's.
        lr_scale: the factor that stays; 1.0 where there is none.
        extra: the trainer's own entries of the checkpoint, and 'data_state'.
        report: component -> what was done with it: '<action>' or '<action>: <detail>', in the words of a plan.
        reshaped: names of parameters that have another shape in the checkpoint; new, as the missing ones are.
        lr_ramp: the ramp after a swap, as `save_checkpoint` takes it; None where there was none.
        left_out: what a recovery leaves out, to be read as `skip_data_steps` and `skip_eval_step`.
        optimizer: the one to go on with: the trainer's own, or the Lion that took its place.
        loaded, saved_rng: for `check_resume`; None where nothing was resumed.
    """

    global_step: int = 0
    start_epoch: int = 0
    best_val_loss: float = math.inf
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    lr_scale: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)
    report: dict[str, str] = field(default_factory=dict)
    reshaped: tuple[str, ...] = ()
    lr_ramp: dict[str, Any] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    optimizer: Any = field(default=None, compare=False, repr=False)
    loaded: Any = field(default=None, compare=False, repr=False)
    saved_rng: Any = field(default=None, compare=False, repr=False)

    @property
    def skip_data_steps(self) -> int:
        """How many steps' data a recovery leaves out after the checkpoint; 0 otherwise.

        Training came to grief there twice. The trainer moves on in its data by as much; read, this counts as done.
        """
        self.left_out.asked.add(left_out.DATA)
        return self.left_out.data_steps

    @property
    def skip_eval_step(self) -> int | None:
        """The step whose evaluation a recovery leaves out, because it crashed or hung; None otherwise.

        The trainer passes over that one evaluation; read, this counts as done.
        """
        self.left_out.asked.add(left_out.EVAL)
        return self.left_out.eval_step

    def lr_scale_at(self, step: int) -> float:
        """Return what the schedule's rate is multiplied by in the optimizer step that follows `step` done ones.

        A trainer that multiplies by it says own_lr_scale=True to `load_resume_bundle`; for all others the kit does.
        """
        return scales.from_fields(self.lr_scale, self.lr_ramp)(step)
