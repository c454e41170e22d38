"""The example's trainer, with a stamp of the monotonic clock after every step: bare or under the kit, it is the same.

    python timed_example.py STAMPS_FILE TRAINER_ARGUMENT...
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hrm_arc"
sys.path.insert(0, str(EXAMPLE))

import arc_training
import train_arc_full_nova

stamps: list[float] = []
plain_step = arc_training.Training.step


def stamped_step(job: arc_training.Training) -> arc_training.StepOutcome:
    outcome = plain_step(job)
    stamps.append(time.monotonic())
    return outcome


def cpu_seconds() -> float:
    """Return what this process and its children took."""
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


if __name__ == "__main__":
    arc_training.Training.step = stamped_step
    code = train_arc_full_nova.main(sys.argv[2:])
    temp = f"{sys.argv[1]}.tmp"
    Path(temp).write_text("\n".join([repr(cpu_seconds()), *map(repr, stamps)]), encoding="utf-8")
    os.replace(temp, sys.argv[1])
    raise SystemExit(code)
