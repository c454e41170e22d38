"""Where a recovery begins: the checkpoint, what of data and evaluations is left out, and which checkpoint is left
aside because two starts from it failed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..base import terms
from ..base.errors import INVALID, NO_STABLE_CHECKPOINT, NoStableCheckpoint
from ..base.imports import NamedTuple
from ..base.terms import EVAL, REPLAYED
from ..base.values import count, mapping, seconds, string
from ..checkpoint import catalog
from ..checkpoint.selection import Selection
from ..run import held, log_end, run_end, run_table, status, stray_checkpoints
from ..run.journal_fold import State
from ..run.quarantine import put_in_quarantine, quarantined_names
from ..run.run_folder import Run
from ..run.run_table import RunTable, run_around
from ..start import along_history, search
from . import observe
from .incident import Incident

# Loading takes no longer; a trainer that tells its steps rarely may have made some by then.
LOAD_S = 600.0
_REASON = "two starts from it ended before their first step"
# An error of these says nothing of what was loaded.
_NOT_ITS_FAULT = (log_end.ARGUMENTS, log_end.IMPORT, log_end.FILE, log_end.CONFIG, log_end.SYNTAX,
                  log_end.MAY_HEAL)  # fmt: skip


class Suspect(NamedTuple):
    """A checkpoint that is left aside for one recovery: its file's name and its step."""

    name: str
    step: int

    @property
    def words(self) -> str:
        return f"'{self.name}' is left aside: {_REASON}, and starts before them made steps; the next older one is tried"


def quarantine_suspect(run: Run, table: RunTable) -> str | None:
    """Put the checkpoint that a run and the one before it began from into quarantine.

    Returns:
        Its name; None where there is none, or it is there already.

    Raises:
        Refused, OSError: its run cannot be written to.
    """
    parent = table.parent(run)
    checkpoint = _failed(run, table)
    if checkpoint is None or parent is None or _failed(parent, table) != checkpoint:
        return None
    holder, name = run_around(table, Path(checkpoint)), os.path.basename(checkpoint)
    if holder is None or name in quarantined_names(holder.paths):
        return None
    put_in_quarantine(holder.paths, name, _REASON)
    return name


def suspect_left_aside(run: Run, table: RunTable) -> Suspect | None:
    """Return the checkpoint that a trainer which loads by itself failed twice to go on from; None without one."""
    parent, step = table.parent(run), run.parent_step
    checkpoint = _checkpoint(run)
    if checkpoint is None or parent is None or not step or _checkpoint(parent) != checkpoint:
        return None
    if not (_failed_by_itself(run, table) and _failed_by_itself(parent, table)):
        return None
    before = [one for one, _ in table.history(parent)[1:] if _checkpoint(one) != checkpoint]
    if not any(_made_steps(one) for one in before):
        return None
    return Suspect(os.path.basename(checkpoint), step)


def _failed(run: Run, table: RunTable) -> str | None:
    """Return the checkpoint that a run began from, if it points at it that no step was made."""
    checkpoint, end = _checkpoint(run), run_end.read(run)
    if checkpoint is None or end is None or not _ended_before_a_step(run, table):
        return None
    is_loaded_by_us = run.setting("trainer", "loads_with_kit") is True
    codes = (NO_STABLE_CHECKPOINT, INVALID) if is_loaded_by_us else ()
    points_at_it = end.get("signal") is not None or end["code"] in codes
    return checkpoint if points_at_it else None


def _failed_by_itself(run: Run, table: RunTable) -> bool:
    """Whether a trainer that loads by itself ended with an error before its first step that may be the checkpoint's."""
    end = run_end.read(run)
    if run.setting("trainer", "loads_with_kit") is True or end is None or end.get("signal") is not None:
        return False
    if not run_end.has_failed(end) or not _ended_before_a_step(run, table):
        return False
    found = log_end.last_error_of(run, end["code"])
    return found is None or found.kind not in _NOT_ITS_FAULT


def _ended_before_a_step(run: Run, table: RunTable) -> bool:
    end, state = run_end.read(run), status.read_state(run)
    is_blind = run.setting("trainer", "loads_with_kit") is not True and not observe.steps_can_be_seen(run, state, table)
    if is_blind or run_end.stopped_by(end):
        return False  # how many it made is not known; a stop says nothing
    # Nor does a signal that was the kit's, or an end long after any load.
    is_late = (seconds(mapping(end).get("elapsed_s")) or 0.0) > LOAD_S
    return not is_late and "aborted" not in state and "stopped" not in state and not _made_steps(run)


def _made_steps(run: Run) -> bool:
    state, begun_at = status.read_state(run), run.parent_step or 0
    return any((state.get(key) or 0) > begun_at for key in ("step", "last_checkpoint_step"))


def _checkpoint(run: Run) -> str | None:
    checkpoint = string(run.record.get("checkpoint"))
    if checkpoint is None or "\0" in checkpoint:
        return None
    return os.path.realpath(run.paths.run_dir / checkpoint)


# Where a recovery begins: the checkpoint, and what of data and evaluations is left out this time.
#
# Takes a proven checkpoint, else an attested one, never a plausible one. Reads folder listings, manifests and the
# chosen file. Source: protocol §12; docs/watch.md says the same for people.


class RestartPoint(NamedTuple):
    """Where it begins.

    Args:
        selection: the chosen checkpoint, and each one that was passed over; nothing chosen: from the very beginning.
        skip_data_steps, skip_eval_step: as run/run_table has them.
        said: what cannot be left out, though it was to be.
    """

    selection: Selection
    skip_data_steps: int = 0
    skip_eval_step: int | None = None
    said: tuple[str, ...] = ()


def find(run: Run, state: State, table: RunTable, incident: Incident, suspect: Suspect | None = None) -> RestartPoint:
    """Return where the recovery of a run begins.

    Args:
        suspect: a checkpoint that is left aside this time, if there is an older one.

    Raises:
        NoStableCheckpoint: there are checkpoints, and none may be taken; or the first bad step is before all of them;
            or it would begin at 0 though what was trained may lie somewhere; or it would go on from, or over, a run
            that began at another step than the planned one.
    """
    if incident.cause in REPLAYED and incident.first_bad_step is not None:
        selection = _from_before(run, table, incident.first_bad_step)
    else:
        selection = _without(suspect, run, table) or along_history.search_stable(run, table, None)
    has_some = selection.candidates or run.parent_step or state.get("last_checkpoint_step") is not None
    if selection.chosen is None and has_some:
        raise _none(run, table, "", selection)  # a folder that cannot be listed looks like an empty one
    if selection.chosen is None:
        _refuse_to_lose_steps(run, state)
    _refuse_wrong_start(run, table, selection)
    data_steps = _left_out(run, incident, selection)
    eval_step = _eval_step(run, state, incident, selection)
    if run.setting("trainer", "loads_with_kit") is not True:
        why = "only the kit's helpers could tell the trainer so, and it loads without them (trainer.loads_with_kit)"
    elif selection.chosen is None:
        why = "there is no checkpoint, with which the trainer would be told so"
    else:
        return RestartPoint(
            selection, data_steps, eval_step, said=tuple(_older_than(run, selection, incident, suspect))
        )
    said = _older_than(run, selection, incident, suspect)
    return RestartPoint(selection, said=(*said, *_not_left_out(data_steps, eval_step, why)))


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
    selection = along_history.search_stable(run, table, suspect.step - 1)
    return selection if selection.chosen is not None else None


def _refuse_to_lose_steps(run: Run, state: State) -> None:
    """Raise where beginning at 0 would throw away, or write over, what was trained."""
    if stray := stray_checkpoints.newest(run):
        raise NoStableCheckpoint(f"{stray.words}: a recovery would begin at step 0")
    if lost := stray_checkpoints.lost(run, state):
        raise NoStableCheckpoint(f"{lost}: a recovery would begin at step 0")


def _refuse_wrong_start(run: Run, table: RunTable, selection: Selection) -> None:
    """Raise where the recovery would go on from, or over, a run that began at another step than the planned one.

    What such a run has trained is not known, and its steps carry other numbers than the ones before them.
    """
    holder = selection.chosen.run_id if selection.chosen else None
    for one, _ in table.history(run):
        if status.read_state(one).get("checks", {}).get(terms.ALWAYS_STRICT) == terms.FAILED:
            raise NoStableCheckpoint(
                f"'{one.run_id}' began at another step than the planned one (check {terms.ALWAYS_STRICT}): no recovery "
                "goes on from it or over it; resume.sh --from RUN_ID --step N goes on from a run before it"
            )
        if one.run_id == holder:
            return


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
        selection = along_history.search_stable(run, table, limit)
        if selection.chosen is not None:
            return selection
    raise _none(
        run, table, f" from before step {first_bad_step}", along_history.search_stable(run, table, first_bad_step - 1)
    )


def _left_out(run: Run, incident: Incident, selection: Selection) -> int:
    """Return how many steps' data are left out: up to the bad step, if that was bad once before.

    What was left out stays so when the recovery after that goes back to a checkpoint from before it.
    """
    before, chosen = run_table.recovery_of(run), selection.chosen
    if chosen is None or before is None:
        return 0
    is_again = before.first_bad_step is not None and before.first_bad_step == incident.first_bad_step
    is_undone = before.skip_data_steps > 0 and chosen.run_id != run.run_id
    until = before.first_bad_step if is_again else (run.parent_step or 0) + before.skip_data_steps
    return max(0, (until or 0) - (chosen.step or 0)) if is_again or is_undone else 0


def _eval_step(run: Run, state: State, incident: Incident, selection: Selection) -> int | None:
    """Return the step whose evaluation is left out: it crashed or hangs, or was to be left out and comes again."""
    before, chosen = run_table.recovery_of(run), selection.chosen
    if incident.cause != EVAL:
        return before.skip_eval_step if before and chosen and chosen.run_id != run.run_id else None
    crash = state.get("symptoms", {}).get("eval_crash") or {}
    return crash["step"] if crash.get("step") is not None else state.get("step")


def _steps(run: Run, table: RunTable, below: int) -> Iterator[int]:
    """Yield the steps of which there is a checkpoint along the history, the furthest back first."""
    found = set()
    for one, limit in table.history(run):
        with contextlib.suppress(OSError):
            steps = catalog.steps_in(one.paths.checkpoints, one.form)
            found |= {step for step, _ in steps if step < below and (limit is None or step <= limit)}
        if (own := held.step(one)) is not None and own < below and (limit is None or own <= limit):
            found.add(own)
    yield from sorted(found)


def _none(run: Run, table: RunTable, which: str, selection: Selection) -> NoStableCheckpoint:
    reasons = "; ".join(f"'{one.name}': {one.reason}" for one in selection.candidates[:3])
    return NoStableCheckpoint(
        f"no checkpoint{which} that may be taken without a person, along the history of '{run.run_id}': "
        + (reasons or search.looked_for(table.history(run)))
    )
