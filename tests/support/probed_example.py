"""The example's trainer, which leaves `probe.pt` in its run folder and stops early.

The file has all that makes its next step, right after the load; after $STOP_AFTER steps it stops as if by TERM. Started
by the launcher through support/fork_server.py.
Try it: `python -m pytest tests/test_plan_applied.py`
"""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

import arc_describe  # noqa: F401 (imported once, for every trainer that is forked)
import arc_training
import train_arc_full_nova as trainer
from resumekit.trainer import checkpoint_content


def main(argv: list[str]) -> int:
    """Train as the trainer does, probed."""
    _probe(arc_training.Training)
    return trainer.main(argv)


def _probe(training: Any) -> None:
    """Let a training write down what it has loaded, and stop after some steps."""
    load, step, left = training.load, training.step, [int(os.environ.get("STOP_AFTER", "0"))]

    def load_and_tell(self: Any, *args: Any, **policies: Any) -> None:
        load(self, *args, **policies)
        content = checkpoint_content.collect(
            self.progress.step, model=self.model, optimizer=self.optimizers, scheduler=self.schedule,
            scaler=self.scaler, ema=self.ema, swa=self.swa, epoch=self.epoch,
            best_val_loss=self.progress.best_val_loss, data_state=self._data_state(),
            extra={"progress": self.progress.state_dict()}, lr_scale=self.lr_scale, lr_ramp=self.lr_ramp,
        )  # fmt: skip
        torch.save(content, os.path.join(os.environ["RESUMEKIT_RUN_DIR"], "probe.pt"))

    def step_and_stop(self: Any) -> Any:
        outcome = step(self)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    training.load, training.step = load_and_tell, step_and_stop
