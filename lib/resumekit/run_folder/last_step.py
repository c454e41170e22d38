"""Whether a run has done its last step: a number of the log alone may be another one, as of an evaluation's bar.

`782/5000` of an evaluation looks like a step beyond `training.max_steps`. What the trainer journals itself is its word.
Pure; reads and writes nothing. Try it: `python -m pytest tests/test_last_step.py`
"""

from __future__ import annotations

from .run_state import State


def is_reached(state: State, max_steps: int | None) -> bool:
    """Whether a run whose trainer has ended with 0 is whole; a step of the log beyond the end needs a checkpoint there.

    Args:
        state: the folded journal.
        max_steps: where the run ends; None where that is not known.
    """
    step = state.get("step")
    if step is None or max_steps is None or step < max_steps:
        return False
    return step == max_steps or not _is_of_the_log(state) or state.get("last_checkpoint_step", -1) >= max_steps


def is_proven(state: State, step: int | None, max_steps: int | None) -> bool:
    """Whether a run whose trainer has failed had done its last step: one of the log has to be that one, and saved."""
    if step is None or max_steps is None or step < max_steps:
        return False
    return not _is_of_the_log(state) or step == max_steps <= state.get("last_checkpoint_step", -1)


def _is_of_the_log(state: State) -> bool:
    return bool(state.get("has_step_events") and not state.get("tells_steps"))
