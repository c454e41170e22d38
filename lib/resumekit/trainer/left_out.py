"""What a recovery leaves out of data and evaluations, and whether the trainer has asked for it.

Only the trainer can leave something out; the kit tells it, by two fields of the bundle. A trainer that has not read
them has left out nothing, and once it has trained on that is said: a `warning` in the journal, `not_left_out`. Writes
nothing itself. Try it: `python -m pytest tests/test_left_out.py`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NOT_LEFT_OUT = "not_left_out"
DATA, EVAL = "skip_data_steps", "skip_eval_step"


@dataclass
class LeftOut:
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


_expected: list[LeftOut] = []
_said: set[str] = set()


def expect(told: LeftOut) -> None:
    """Wait for the trainer to ask what a load told it to leave out; a second load beside it takes nothing back."""
    if told.data_steps or told.eval_step is not None:
        _expected.append(told)


def not_asked(step: Any) -> list[str]:
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


def _due(told: LeftOut, step: int) -> Iterator[tuple[str, str]]:
    gone_on = "the trainer has gone on without reading bundle."
    if told.data_steps and step > told.step:
        what = f"the data of the {told.data_steps} steps behind step {told.step} were to be left out"
        yield DATA, f"{what}: {gone_on}{DATA}, and trains on them again"
    if told.eval_step is not None and step > max(told.step, told.eval_step):
        what = f"the evaluation of step {told.eval_step} was to be left out once"
        yield EVAL, f"{what}: {gone_on}{EVAL}"
