"""What a trainer gets back from a load: counters, its own entries, what was done, and what a recovery skips."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..base.imports import Any
from ..policy import lr_scale as scales

NOT_LEFT_OUT = "not_left_out"
DATA, EVAL = "skip_data_steps", "skip_eval_step"


@dataclass
class Skips:
    """What one load is told to leave out.

    Args:
        step: that was resumed.
        data_steps: optimizer steps whose data are left out after it.
        eval_step: the step whose evaluation is left out once; None for none.
        asked: which of the two the trainer has read.
    """

    step: int = 0
    data_steps: int = 0
    eval_step: int | None = None
    asked: set[str] = field(default_factory=set, compare=False, repr=False)


_expected: list[Skips] = []
_said: set[str] = set()


def expect_skips(told: Skips) -> None:
    """Wait for the trainer to ask what a load told it to leave out; a second load beside it takes nothing back."""
    if told.data_steps or told.eval_step is not None:
        _expected.append(told)


def skips_not_asked(step: Any) -> list[str]:
    """Return one sentence, once, for each thing that was to be left out and that the trainer has not asked for in time.

    Args:
        step: that the trainer tells or saves. The data are due before the first one is trained, an evaluation before
            the step behind it.
    """
    if not _expected or type(step) is not int:
        return []
    asked = {name for told in _expected for name in told.asked}
    due = {name: sentence for told in _expected for name, sentence in _due(told, step) if name not in asked | _said}
    _said.update(due)
    return list(due.values())


def _due(told: Skips, step: int) -> Iterator[tuple[str, str]]:
    gone_on = "the trainer has gone on without reading bundle."
    if told.data_steps and step > told.step:
        what = f"the data of the {told.data_steps} steps behind step {told.step} were to be left out"
        yield DATA, f"{what}: {gone_on}{DATA}, and trains on them again"
    if told.eval_step is not None and step > max(told.step, told.eval_step):
        what = f"the evaluation of step {told.eval_step} was to be left out once"
        yield EVAL, f"{what}: {gone_on}{EVAL}"


# What a trainer gets back from a load: its counters, its own entries of the checkpoint, and what was done.


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
    left_out: Skips = field(default_factory=Skips)
    optimizer: Any = field(default=None, compare=False, repr=False)
    loaded: Any = field(default=None, compare=False, repr=False)
    saved_rng: Any = field(default=None, compare=False, repr=False)

    @property
    def skip_data_steps(self) -> int:
        """How many steps' data a recovery leaves out after the checkpoint; 0 otherwise.

        Training came to grief there twice. The trainer moves on in its data by as much; read, this counts as done.
        """
        self.left_out.asked.add(DATA)
        return self.left_out.data_steps

    @property
    def skip_eval_step(self) -> int | None:
        """The step whose evaluation a recovery leaves out, because it crashed or hung; None otherwise.

        The trainer passes over that one evaluation; read, this counts as done.
        """
        self.left_out.asked.add(EVAL)
        return self.left_out.eval_step

    def lr_scale_at(self, step: int, optimizer: str | None = None) -> float:
        """Return what the schedule's rate is multiplied by in the optimizer step that follows `step` done ones.

        A trainer that multiplies by it says own_lr_scale=True to `load_resume_bundle`; for all others the kit does.

        Args:
            step: optimizer steps done.
            optimizer: its name in the dict that was passed, where there are several: the ramp after a swap holds for
                the swapped one alone. None is the swapped one.
        """
        return scales.from_fields(self.lr_scale, self.lr_ramp)(step, optimizer)
