"""What a save under way means for a run: no step is expected until it is over, whether the trainer tells phases or not.

`save_checkpoint` journals `saving` when it begins; its own `checkpoint`, or the warning `save_failed`, ends it. That is
no phase: a trainer that names none stays one that names none, and an evaluation in which it saves stays one. Part of
the fold; reads and writes nothing. Try it: `python -m pytest tests/test_save_wait.py`
"""

from __future__ import annotations

from typing import Any

from . import pace
from .event_values import seconds

# A step that is read out of the log may be journaled a little after the evaluation or save behind it has begun.
LATE_S = 60.0
# The warning with which `save_checkpoint` says that nothing was saved.
SAVE_FAILED = "save_failed"

State = dict[str, Any]
Event = dict[str, Any]


def begun(state: State, event: Event) -> None:
    """Take in that a save begins; one that was broken off before, and told nothing, is forgotten."""
    if (mono_s := seconds(event.get("mono_s"))) is not None:
        state.update(saving_since_s=mono_s, active_mono_s=max(mono_s, state.get("active_mono_s", 0.0)))


def over(state: State, event: Event) -> None:
    """Take in that the save is over: its time was no training.

    What was told meanwhile counts (a log is read late, a save may run in a thread): the time since then is left out.
    It is so from the next step on, for until then nothing that was measured holds it.
    """
    since_s, mono_s = state.pop("saving_since_s", None), seconds(event.get("mono_s"))
    if since_s is None or mono_s is None:
        return
    state["active_mono_s"] = max(mono_s, state.get("active_mono_s", 0.0))
    if "waiting_since_s" in state:
        return  # the evaluation in which it was goes on; its time is left out as a whole
    if "first_step" in state:
        own_s = max(0.0, mono_s - max(since_s, state["step_mono_s"]))
        state["saved_s"] = state.get("saved_s", 0.0) + own_s
    if "pace" in state:
        state["pace"] = pace.waited(state["pace"], since_s, mono_s)


def denied(state: State) -> None:
    """Take in a step that the trainer itself tells: it saves beside its training, or no more."""
    state.pop("saving_since_s", None)


def is_saving(state: State) -> bool:
    """Whether a save is under way, and no step has come since to deny it."""
    since_s = state.get("saving_since_s")
    return since_s is not None and state.get("step_mono_s", 0.0) < since_s + LATE_S
