"""The example's trainer with a fault planted in it, for the recorded night and the tests: the loss turns NaN once.

    python faulty_trainer.py FAULT FOLDER TRAINER-ARGUMENTS...

FAULT is `nan@STEP` (once: a file in FOLDER remembers it), `poison@STEP` (whenever the data of that step are trained
on), `eval@STEP` (the evaluation after that step fails, every time) or `hang@STEP` (once). It knows nothing of the kit.
Try it: `python examples/hrm_arc/night.py`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import train_arc_full_nova as trainer


def main(argv: list[str]) -> int:
    """Train as the example does, but for the fault; returns its exit code."""
    import arc_training  # late: torch comes with it

    kind, _, number = argv[0].partition("@")
    step, done = int(number), Path(argv[1]) / argv[0]
    own_step, own_evals = arc_training.Training.step, arc_training.Training.run_pending_evals

    def first_time() -> bool:
        try:
            done.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def sick_step(self: Any) -> Any:
        is_there = self.progress.step + 1 == step
        if (kind == "nan" and is_there and first_time()) or (kind == "poison" and self.data_step + 1 == step):
            return arc_training.StepOutcome(float("nan"), self.schedule.get_last_lr()[0], "loss")
        if kind == "hang" and is_there and first_time():
            time.sleep(10**6)
        return own_step(self)

    def sick_evals(self: Any, *args: Any) -> Any:
        if kind == "eval" and self.progress.step == step:
            raise RuntimeError("the evaluation was told to fail")
        return own_evals(self, *args)

    arc_training.Training.step, arc_training.Training.run_pending_evals = sick_step, sick_evals
    return trainer.main(argv[2:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
