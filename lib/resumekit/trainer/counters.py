"""The counters of a checkpoint: optimizer steps done, epoch, the best so far; checked before they are taken over.

Reads and writes no file. Source: protocol §6: absent counters are step 0, epoch 0, best_val_loss infinite.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..basics.actions import COUNTERS, RESET
from ..basics.errors import InvalidFile
from .trainer_plan import TrainerPlan


def counters_of(content: dict[str, Any], action: str, plan: TrainerPlan | None, path: Path) -> dict[str, Any]:
    """Return global_step, start_epoch and best_val_loss.

    Args:
        content: the checkpoint.
        action: what is done with the counters; 'reset' begins at 0.
        plan: the launcher's; None without.
        path: for messages.

    Raises:
        InvalidFile: one of them is not a number, or the step is not the plan's.
    """
    for name in (*COUNTERS, "lr_scale"):
        value = content.get(name)
        if not isinstance(value, (int, float, type(None))):
            raise InvalidFile(f"the checkpoint's '{name}' is a {type(value).__name__}, not a number")
        if name in ("global_step", "epoch") and value is not None and not 0 <= value < 10**12:
            raise InvalidFile(f"the checkpoint's '{name}' is '{value}', not a count")
    step = content.get("global_step")
    planned = plan.step if plan is not None else None
    if planned is not None and step is not None and int(step) != planned:
        raise InvalidFile(
            f"the plan '{plan.path}' is for step {planned}, and checkpoint '{path}' is of step {int(step)}; nothing "
            f"was loaded: let bin/resume.sh write a new plan"
        )
    if action == RESET:
        content = {}
        planned = None
    step, best = content.get("global_step"), content.get("best_val_loss")
    return {
        "global_step": int(planned or 0) if step is None else int(step),
        "start_epoch": int(content.get("epoch") or 0),
        "best_val_loss": float(math.inf if best is None else best),
    }
