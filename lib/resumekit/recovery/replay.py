"""Where a recovery begins: the checkpoint, and what of data and evaluations is left out this time.

Takes a proven checkpoint, else a witnessed one, never a plausible one. Reads folder listings, manifests and the chosen
file. Source: protocol §12; docs/watch.md says the same for people.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..basics.causes import EVAL, REPLAYED
from ..basics.errors import NoStableCheckpoint
from ..basics.paths import step_of_name
from ..planning import heads
from ..proving.checkpoints import Selection
from ..run_folder import recovery, stray_checkpoints
from ..run_folder.event_values import count
from ..run_folder.run_state import State
from ..run_folder.runs import Run, RunTable
from .incident import Incident
from .suspicion import Suspect


class Begin(NamedTuple):
    """Where it begins.

    Args:
        selection: the chosen checkpoint, and each one that was passed over; nothing chosen: from the very beginning.
        skip_data_steps, skip_eval_step: as run_folder/recovery has them.
        said: what cannot be left out, though it was to be.
    """

    selection: Selection
    skip_data_steps: int = 0
    skip_eval_step: int | None = None
    said: tuple[str, ...] = ()


def begin(run: Run, state: State, table: RunTable, incident: Incident, suspect: Suspect | None = None) -> Begin:
    """Return where the recovery of a run begins.

    Args:
        suspect: a checkpoint that is left aside this time, if there is an older one.

    Raises:
        NoStableCheckpoint: there are checkpoints, and none may be taken; or the first bad step is before all of them;
            or it would begin at 0 though what was trained may lie somewhere.
    """
    if incident.cause in REPLAYED and incident.first_bad_step is not None:
        selection = _from_before(run, table, incident.first_bad_step)
    else:
        selection = _without(suspect, run, table) or heads.search_stable(run, table, None)
    has_some = selection.candidates or run.parent_step or state.get("last_checkpoint_step") is not None
    if selection.chosen is None and has_some:
        raise _none(run, "", selection)  # a folder that cannot be listed looks like an empty one
    if selection.chosen is None:
        _refuse_to_lose_steps(run, state)
    data_steps = _left_out(run, incident, selection)
    eval_step = _eval_step(run, state, incident, selection)
    if run.setting("trainer", "loads_with_kit") is not True:
        why = "only the kit's helpers could tell the trainer so, and it loads without them (trainer.loads_with_kit)"
    elif selection.chosen is None:
        why = "there is no checkpoint, with which the trainer would be told so"
    else:
        return Begin(selection, data_steps, eval_step, said=tuple(_older_than(run, selection, incident, suspect)))
    said = _older_than(run, selection, incident, suspect)
    return Begin(selection, said=(*said, *_not_left_out(data_steps, eval_step, why)))


def _older_than(run: Run, selection: Selection, incident: Incident, suspect: Suspect | None) -> Iterator[str]:
    """Say that an older checkpoint is taken than there seems to be: because a later one failed, or fits no pattern."""
    chosen = selection.chosen
    if chosen is None or incident.cause in REPLAYED:
        return
    step = chosen.step or 0
    if suspect and step < suspect.step:
        yield suspect.words
    elif suspect is None and (stray := stray_checkpoints.newer(run, step, chosen.path)):
        yield f"{stray.words}: the recovery goes on from the older step {step}"


def _without(suspect: Suspect | None, run: Run, table: RunTable) -> Selection | None:
    """Return the choice among what is older than the suspect; None without one, or where nothing is."""
    if suspect is None:
        return None
    selection = heads.search_stable(run, table, suspect.step - 1)
    return selection if selection.chosen is not None else None


def _refuse_to_lose_steps(run: Run, state: State) -> None:
    """Raise where beginning at 0 would throw away, or write over, what was trained."""
    if stray := stray_checkpoints.newest(run):
        raise NoStableCheckpoint(f"{stray.words}: a recovery would begin at step 0")
    if lost := stray_checkpoints.lost(run, state):
        raise NoStableCheckpoint(f"{lost}: a recovery would begin at step 0")


def _not_left_out(data_steps: int, eval_step: int | None, why: str) -> Iterator[str]:
    """Say what the trainer cannot be told to leave out: only the bundle of a load holds it."""
    if data_steps:
        yield f"the data of {data_steps} steps are not left out: {why}"
    if eval_step is not None:
        yield f"the evaluation of step {eval_step} is not left out: {why}"


def _from_before(run: Run, table: RunTable, first_bad_step: int) -> Selection:
    """Go back `recover.replay_steps` before the first bad step; in a run too young for that, as far as can be."""
    wanted = count(run.setting("recover", "replay_steps")) or 1
    limits = [first_bad_step - wanted, *_steps(run, table, first_bad_step)]
    for limit in filter(lambda limit: limit >= 0, limits):
        selection = heads.search_stable(run, table, limit)
        if selection.chosen is not None:
            return selection
    raise _none(run, f" from before step {first_bad_step}", heads.search_stable(run, table, first_bad_step - 1))


def _left_out(run: Run, incident: Incident, selection: Selection) -> int:
    """Return how many steps' data are left out: up to the bad step, if that was bad once before.

    What was left out stays so when the recovery after that goes back to a checkpoint from before it.
    """
    before, chosen = recovery.of(run), selection.chosen
    if chosen is None or before is None:
        return 0
    is_again = before.first_bad_step is not None and before.first_bad_step == incident.first_bad_step
    is_undone = before.skip_data_steps > 0 and chosen.run_id != run.run_id
    until = before.first_bad_step if is_again else (run.parent_step or 0) + before.skip_data_steps
    return max(0, (until or 0) - (chosen.step or 0)) if is_again or is_undone else 0


def _eval_step(run: Run, state: State, incident: Incident, selection: Selection) -> int | None:
    """Return the step whose evaluation is left out: it crashed or hangs, or was to be left out and comes again."""
    before, chosen = recovery.of(run), selection.chosen
    if incident.cause != EVAL:
        return before.skip_eval_step if before and chosen and chosen.run_id != run.run_id else None
    crash = state.get("symptoms", {}).get("eval_crash") or {}
    return crash["step"] if crash.get("step") is not None else state.get("step")


def _steps(run: Run, table: RunTable, below: int) -> Iterator[int]:
    """Yield the steps of which there is a checkpoint along the history, the furthest back first."""
    found = set()
    for one, limit in table.history(run):
        try:
            names = os.listdir(one.paths.checkpoints)
        except OSError:
            continue
        steps = (step_of_name(name, one.step_pattern) for name in names)
        found |= {step for step in steps if step is not None and step < below and (limit is None or step <= limit)}
    yield from sorted(found)


def _none(run: Run, which: str, selection: Selection) -> NoStableCheckpoint:
    reasons = "; ".join(f"'{one.name}': {one.reason}" for one in selection.candidates[:3])
    return NoStableCheckpoint(
        f"no checkpoint{which} that may be taken without a person, along the history of '{run.run_id}'"
        + (f": {reasons}" if reasons else "")
    )
