"""A schedule placed anew at the kept step: its old state is not loaded, the new function of the step begins there.

So a run whose rate had decayed to zero goes on when it is made longer (huggingface/transformers#18070), and no schedule
is advanced twice (THUDM/slime#1775). Reads and writes no file. Source: protocol §1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from ..basics.errors import InvalidFile


def refusal(scheduler: Any) -> str:
    """Return why a scheduler can't be refitted, '' if it can."""
    for one in _leaves(scheduler):
        if callable(getattr(one, "refit", None)):
            continue
        if any(kind.__name__ == "ReduceLROnPlateau" for kind in type(one).__mro__):
            return (
                "a ReduceLROnPlateau is no function of the step (it goes by the evaluations) and can't be refitted: "
                "load its state, or give the trainer another schedule"
            )
        if not callable(getattr(one, "step", None)):
            return f"the scheduler '{type(one).__name__}' has neither refit(step) nor step(), and can't be refitted"
    return ""


def refit(scheduler: Any, saved: Any, step: int) -> int:
    """Place a freshly made scheduler at the kept step.

    Args:
        scheduler: the trainer's, or a dict of several; a method refit(step) of its own is called, else it is stepped
            from where it was made. The optimizer must still have the learning rates that it was made with.
        saved: its state in the checkpoint, which says how often it had been stepped where that is not once per
            optimizer step (once per epoch, say); None without.
        step: optimizer steps done.

    Returns:
        The place in its own count of steps.

    Raises:
        InvalidFile: it can't be stepped that far.
    """
    if isinstance(scheduler, dict):
        states = saved if isinstance(saved, dict) else {}
        return max((refit(one, states.get(key), step) for key, one in scheduler.items()), default=step)
    own = getattr(scheduler, "refit", None)
    if callable(own):
        own(step)
        return step
    place = step if step == 0 else _place(saved, step)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of schedules that are stepped before their optimizer
            # One that the trainer has placed already is not advanced a second time.
            for _ in range(place - int(getattr(scheduler, "last_epoch", 0) or 0)):
                scheduler.step()
    except Exception as error:  # whatever a trainer's own schedule may raise
        raise InvalidFile(
            f"the new schedule '{type(scheduler).__name__}' can't be placed at step {place}, and nothing was loaded: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; make it longer, or give it a "
            f"method refit(step)"
        ) from error
    return place


def _place(saved: Any, step: int) -> int:
    """Return how often the old schedule had been stepped; the optimizer's steps where it does not say."""
    counts = set(_counts(saved))
    return counts.pop() if len(counts) == 1 else step


def _counts(saved: Any) -> Iterator[int]:
    if not isinstance(saved, dict):
        return
    if type(saved.get("last_epoch")) is int:
        yield max(0, saved["last_epoch"])
        return
    inner = saved.get("_schedulers", list(saved.values()))
    for state in inner if isinstance(inner, list) else ():
        if isinstance(state, dict) and type(state.get("last_epoch")) is int:
            yield max(0, state["last_epoch"])


def differences(saved: Any, scheduler: Any) -> list[str]:
    """Return what the trainer made otherwise than the state that is loaded over it: 'T_max: 20 here, 10 in it'.

    The loaded one wins, and a new learning rate would go by unnoticed (pytorch/pytorch#156846).
    """
    if not isinstance(saved, dict) or not hasattr(scheduler, "state_dict") or isinstance(scheduler, dict):
        return []
    own = scheduler.state_dict()
    if not isinstance(own, dict):
        return []
    moving = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
    names = [name for name in own if isinstance(name, str) and not name.startswith("_") and name not in moving]
    plain = (int, float, str, list, tuple)
    others = [
        f"{name}: {_shown(own[name])} here, {_shown(saved[name])} in it"
        for name in names
        if name in saved and isinstance(own[name], plain) and isinstance(saved[name], plain)
        and list(_flat(own[name])) != list(_flat(saved[name]))
    ]  # fmt: skip
    # Another kind of schedule; versions of torch differ in 'verbose'.
    return others + [
        f"{name}: {_shown(own[name])} here, none in it" for name in names if name not in {*saved, "verbose"}
    ]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value if isinstance(value, (int, float, str, type(None))) else repr(value)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _leaves(scheduler: Any) -> Iterator[Any]:
    if isinstance(scheduler, dict):
        for one in scheduler.values():
            yield from _leaves(one)
        return
    yield scheduler
    for one in getattr(scheduler, "_schedulers", ()):
        yield from _leaves(one)
