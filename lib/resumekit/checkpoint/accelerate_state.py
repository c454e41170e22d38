"""What a folder of Accelerate's `save_state` tells of its step and of its processes: little.

No file in it holds the trainer's step. What stands near it, as Accelerate 1.15 was seen to write it:

- `random_states_<rank>.pkl`, a torch zip written last by each process, has a `step`: batches since the epoch began,
  counted inside `accelerator.accumulate` alone. It is 0 at an epoch's end, and always 0 in a loop without `accumulate`.
- `scheduler.bin` has `last_epoch`: how often the schedule was stepped. That is the number of optimizer steps in a loop
  of one process that steps it once for each; of several processes Accelerate steps it once for each of them, unless
  batches are split.
- `optimizer.bin` keeps for Adam and its like a `step` for each parameter, a tensor: the number of optimizer steps.

So the step is the one in the folder's name; the schedule's can only contradict it. Reads and writes nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..base import values
from ..base.imports import Any

SCHEDULE = "scheduler.bin"
_RANDOM_STATES = re.compile(r"random_states_([0-9]{1,9})\.pkl", re.ASCII)


def ranks(names: Iterable[str]) -> tuple[int, ...]:
    """Return the processes that saved their state, in order; () where a folder is not Accelerate's.

    One that is missing between 0 and the last one was lost; one that is missing behind the last one is not seen.

    Args:
        names: of the folder's files.
    """
    return tuple(sorted(int(match[1]) for name in names if (match := _RANDOM_STATES.fullmatch(name))))


def schedule_steps(schedule: Mapping[Any, Any]) -> int | None:
    """Return how often the schedule was stepped; None where it does not tell.

    Args:
        schedule: what `archive.content` returned of `scheduler.bin`.
    """
    return values.count(schedule.get("last_epoch"))
