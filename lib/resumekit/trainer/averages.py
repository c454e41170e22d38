"""Averages of the weights for a trainer that has none: an EMA, and an SWA tail with the small cycle of its rate.

The averages are torch's own AveragedModel, so `save_checkpoint` and `load_resume_bundle` take them as `ema` and `swa`;
one that the checkpoint lacks begins at the weights just loaded. Reads and writes no file. Source: protocol §8, §9.
Try it: `python -m pytest tests/test_averages.py -k "tail or ema"`
"""

from __future__ import annotations

from ..base.imports import Any, NamedTuple
from ..base.values import count, mapping

STALL_FAST_EVALS = 3  # fast evaluations in a row without a new best that count as a stall


def average_of(model: Any, decay: float | None = None) -> Any:
    """Return an average of a model's weights, which `average.update_parameters(model)` takes one step further.

    Args:
        model: a torch module; the average is a copy of it, in `average.module`.
        decay: of an EMA, 0 to 1: what stays of the average at an update. None weighs all updates equally, as SWA does.
    """
    from torch.optim import swa_utils  # the trainer has torch already

    if decay is None:
        return swa_utils.AveragedModel(model)
    return swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))


class SwaTail:
    """When collecting for an SWA begins, and after which steps the weights go into its average.

    It begins with the weights of one step, which count as the first ones collected, and takes further ones each time
    that a cycle of the rate ends. Call `after_load` behind the load, `after_step` behind each optimizer step (and the
    schedule's), `after_fast_eval` behind each fast evaluation; each says whether collecting has begun just then.

    Args:
        average: of `average_of(model)`; the trainer loads and saves it.
        start_step: completed steps at which collecting begins; None leaves that to a stall.
        cycle_steps: steps between two collections, those of `SwaCycle`.
        start_on_stall: also begin when a fast evaluation improves after STALL_FAST_EVALS that did not.

    Attributes:
        from_step: the step at which collecting began; None before.
        stalled: fast evaluations in a row that were no new best.
    """

    def __init__(self, average: Any, start_step: int | None, cycle_steps: int, *, start_on_stall: bool = False) -> None:
        self.average, self.start_step, self.cycle_steps = average, start_step, cycle_steps
        self.start_on_stall = start_on_stall
        self.from_step: int | None = None
        self.stalled = 0

    @property
    def collected(self) -> Any:
        """The average; None before collecting has begun: until then it holds weights that were not trained."""
        return self.average if self.from_step is not None else None

    def after_load(self, step: int, model: Any, state: Any = None) -> bool:
        """Go on where a checkpoint says; begin where the step is past `start_step`, as for a tail enabled later.

        Args:
            step: completed steps of the run.
            state: what `state_dict` returned; None in a run that had no tail.
        """
        self.from_step = count(mapping(state).get("from_step"))
        self.stalled = count(mapping(state).get("stalled")) or 0
        if not int(self.average.n_averaged):
            self.from_step = None  # nothing collected is here: a tail of long ago is over
        return self._begin_if_due(step, model)

    def after_step(self, step: int, model: Any) -> bool:
        """Collect the weights where a cycle ends at `step`, the completed steps of the run."""
        if self.from_step is not None:
            if step > self.from_step and (step - self.from_step) % self.cycle_steps == 0:
                self.average.update_parameters(model)
            return False
        return self._begin_if_due(step, model)

    def after_fast_eval(self, step: int, model: Any, *, is_new_best: bool) -> bool:
        """Count the fast evaluations that brought nothing; begin at the one that ends a stall."""
        before, self.stalled = self.stalled, 0 if is_new_best else self.stalled + 1
        ends_a_stall = is_new_best and before >= STALL_FAST_EVALS
        return self.start_on_stall and self.from_step is None and ends_a_stall and self._begin(step, model)

    def state_dict(self) -> dict[str, int | None]:
        """Return what belongs into the checkpoint's `extra`; the average itself is its `swa`."""
        return {"from_step": self.from_step, "stalled": self.stalled}

    def _begin_if_due(self, step: int, model: Any) -> bool:
        is_due = self.from_step is None and self.start_step is not None and step >= self.start_step
        return is_due and self._begin(step, model)

    def _begin(self, step: int, model: Any) -> bool:
        self.average.module.load_state_dict(model.state_dict())  # its buffers too, whatever an update does with them
        self.average.n_averaged.zero_()
        self.average.update_parameters(model)
        self.from_step = step
        return True


class SwaCycle(NamedTuple):
    """The small triangular cycle of the learning rate in an SWA tail: low, high, low again.

    Args:
        amplitude: half its height over its middle, 0 to 1.
        steps: optimizer steps in one cycle; weights are collected where it is lowest.
        middle: its middle relative to the base rate; None for what the schedule would give without it.

    Source: protocol §8; arXiv 1803.05407 (weights are collected at the end of each cycle, at its lowest rate).
    """

    amplitude: float
    steps: int
    middle: float | None = None

    def __call__(self, step: int, otherwise: float) -> float:
        """Return the factor of the base rate after `step` steps of the tail; `otherwise` is the schedule's own."""
        place = step % self.steps / self.steps
        triangle = 1 - 2 * abs(2 * place - 1)  # -1 where a cycle begins and ends, 1 in its middle
        return (otherwise if self.middle is None else self.middle) * (1 + self.amplitude * triangle)
