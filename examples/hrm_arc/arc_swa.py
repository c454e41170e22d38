"""The SWA tail: when collecting begins, and at which steps weights are collected.

Equal averages of the raw weights, taken where the small cycle of the learning rate (hrm_schedule.Cycle) is lowest. All
that it remembers is the average itself and, in the progress, the step at which collecting began and how many fast
evaluations brought nothing. Source: protocol §8. Try it: `python -m pytest tests/test_example_trainer.py -k swa`
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn
from torch.optim.swa_utils import AveragedModel

from arc_validation import Progress

STALL_FAST_EVALS = 3  # fast evaluations in a row without a new best that count as a stall


def is_due(progress: Progress, cfg: SimpleNamespace) -> bool:
    """Whether collecting begins after `progress.step` because that step has come; `cfg` is the `swa` section."""
    return progress.swa_from_step is None and progress.step >= cfg.start_step


def ends_a_stall(progress: Progress, stalled_before: int, cfg: SimpleNamespace) -> bool:
    """Whether collecting begins because a fast evaluation improved after a stall.

    Args:
        stalled_before: `progress.fast_stalled` before the evaluations of this step.
        cfg: the config's `swa` section.
    """
    improved = stalled_before >= STALL_FAST_EVALS and progress.fast_stalled == 0
    return cfg.start_on_stall and progress.swa_from_step is None and improved


def collects(progress: Progress, cfg: SimpleNamespace) -> bool:
    """Whether the weights after `progress.step` go into the average: a cycle ends there."""
    began = progress.swa_from_step
    return began is not None and progress.step > began and (progress.step - began) % cfg.cycle_steps == 0


def begin(average: AveragedModel, model: nn.Module) -> None:
    """Start the average anew from the current weights, which count as the first ones collected."""
    average.module.load_state_dict(model.state_dict())  # its buffers too: update_parameters leaves those alone
    average.n_averaged.zero_()
    average.update_parameters(model)
