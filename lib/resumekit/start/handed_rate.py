"""The learning rate that a trainer which takes it as an argument is handed at a resume (`recover.lr_args`).

Such a trainer knows nothing of the plan's scale: the launcher multiplies the config's base rate by it, and puts the
product last on the command line. It holds for the whole process, so a ramp after a swap ends at the next resume.
Reads the plan of the run that the checkpoint lies in. Source: protocol §7, §12.
Try it: `bin/resume.sh EXP-01 --set recover.lr_args='[--lr, "{lr}"]' --dry-run`
"""

from __future__ import annotations

import os

from ..base.errors import InvalidFile
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from ..base.values import listed, string
from ..config import config
from ..config.rules import base_rates
from ..config.schema import Schema
from ..policy import plan_file
from ..policy.lr_scale import LrScale
from ..run.run_folder import Run
from . import trainer_command

KEY = "recover.lr_args"
UNDO = f"--set {KEY}=null goes on at the trainer's own rate"


class HandedRate(NamedTuple):
    """What is handed over.

    Args:
        key: the base rate's, 'optimizer.lr'.
        base: its value in the config.
        factor: what it is multiplied by, at the step that is resumed at.
        lr: the product.
        before: the same in the run that holds the checkpoint; None where it cannot be known.
        args: the arguments.
        why: what makes the factor, in words.
    """

    key: str
    base: float
    factor: float
    lr: float
    before: float | None
    args: tuple[str, ...]
    why: str

    @property
    def words(self) -> str:
        """What is handed over and what it comes from, in a line."""
        return f"{' '.join(self.args)} ({KEY}): {self.key} {self.base:g} x {self.factor:g}, {self.why}"

    def as_fields(self) -> dict[str, Any]:
        """Return it by schemas/plan.schema.json."""
        return {name: value for name, value in self._asdict().items() if name != "why"} | {"args": list(self.args)}


def is_taken(resolved: dict[str, Any]) -> bool:
    """Whether the trainer of a config takes a cut rate as an argument."""
    return bool(config.get(resolved, KEY)) and not config.get(resolved, "trainer.loads_with_kit")


def of(
    resolved: dict[str, Any], schema: Schema, step: int, scale: LrScale, before: tuple[dict[str, Any] | None, LrScale]
) -> HandedRate | None:
    """Return what a resume hands over; None where the trainer takes none, or its rate is not to be multiplied.

    Args:
        resolved: the new config, a valid one.
        schema: says which keys are base rates.
        step: optimizer steps done.
        scale: what the rate is multiplied by from here on.
        before: (config, scale) of the run that holds the checkpoint; None for its config where there is none.
    """
    factor = scale(step)
    if not is_taken(resolved) or factor == 1.0:
        return None
    (key, base), *_ = base_rates(resolved, schema).items()
    held_base = None if before[0] is None else base_rates(before[0], schema).get(key)
    text = f"{base * factor:.10g}"
    return HandedRate(
        key=key, base=base, factor=factor, lr=float(text), before=held_base and held_base * before[1](step),
        args=tuple(trainer_command.lr_words(resolved, text)), why=_why(scale, step),
    )  # fmt: skip


def held_scale(holder: Run, resolved: dict[str, Any]) -> LrScale:
    """Return what the rate of a run's checkpoints is multiplied by: its plan says it, and no checkpoint of it does.

    Args:
        holder: the run that they lie in.
        resolved: the new config.

    Raises:
        InvalidFile: it has a plan that cannot be read, and the new run's rate depends on it.
    """
    if not listed(string)(config.get(holder.config, KEY)) or not os.path.lexists(holder.paths.resume_plan):
        return LrScale()
    try:
        plan = plan_file.read(holder.paths.resume_plan)
    except (UnreadableFile, ValueError) as error:
        if not is_taken(resolved):
            return LrScale()
        raise InvalidFile(
            f"'{holder.paths.resume_plan}' cannot be read ({error}), and whether its run had its learning rate cut "
            f"stands there alone; {UNDO}"
        ) from error
    return plan.lr_scale if plan.lr_scale is not None and plan.handed is not None else LrScale()


def refusal(resolved: dict[str, Any], scale: LrScale, step: int) -> str:
    """Return why an argument cannot do what the scale asks for; '' where it can."""
    ramp = scale.ramp
    if ramp is None or not ramp.warm_restart or not is_taken(resolved) or ramp(step) == 1.0:
        return ""
    return (
        "optimizer.swap_warm_restart lets the rate rise from step to step, and an argument (recover.lr_args) holds for "
        "the whole run: set it to false"
    )


def _why(scale: LrScale, step: int) -> str:
    why = [] if scale.factor == 1.0 else ["cut by recoveries"]
    if scale.ramp is not None and scale.ramp(step) != 1.0:
        end = scale.ramp.from_step + scale.ramp.steps
        why.append(f"lowered by the swap of the optimizer, whole again at the first resume from step {end:,} on")
    return " and ".join(why)
