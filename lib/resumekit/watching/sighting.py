"""What the abort rules need to see of a run beside its journal: clock, processes, ancestors, the log's end, the disk.

Reads a run's folder and those of its ancestors, /proc and the file system; writes nothing.
Try it: `bin/abort-watch.sh --observe`
"""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

from ..run_folder import log_tail, observer, pace, recovery, status, step_sight, suspended
from ..run_folder.event_values import count
from ..run_folder.run_state import RECORDS_EDITED, State
from ..run_folder.runs import Run, RunTable
from ..run_folder.status import View
from . import custody
from .abort_rules import Sight
from .limits import Limits

# Ancestors whose speed is asked for: each is one small file to read.
MAX_ANCESTORS = 5
TAIL_LINES = 50
# What is told in the journal and in the log within so long is in no order.
SAME_MOMENT_S = 2.0
# A longer line is no message.
LINE_BYTES = 4096
_OOM = re.compile(
    rb"out of memory|OutOfMemoryError|can't allocate memory|Cannot allocate memory|\bMemoryError\b|ALLOC_FAILED",
    re.IGNORECASE,
)


def sight(run: Run, state: State, view: View, table: RunTable, limits: Limits) -> Sight:
    """Look at a run of this host, now.

    Args:
        run: the run.
        state: its folded journal.
        view: its processes and its end, from `status.look`.
        table: all runs, for its ancestors.
        limits: its thresholds.
    """
    name = status.name_of(run, state, view)
    has_ended = name in status.TAKEN_UP
    free_bytes, free_inodes = _free(run)
    # A trainer that its user has suspended is not judged by its ages: it does not hang. Nor is one that goes on since a
    # moment ago, until its sidecar has said so: all ages begin anew there.
    is_suspended = any(one.process == suspended.TRAINER for one in view.suspended)
    is_unaged = has_ended or is_suspended or "suspended_since_s" in state
    now_s = None if is_unaged else status.clock(run, state)
    account = observer.Observer() if now_s is None else observer.read(run)
    speed, whole = (None, None) if has_ended else lineage_speed(run, table)
    return Sight(
        now_s=now_s,
        run_state=name,
        end=view.end,
        lineage_speed=speed,
        lineage_whole=whole,
        fruitless=fruitless_starts(run, state, table, limits.max_attempts) if has_ended else 0,
        log_ooms=log_ooms(run, math.inf) if has_ended else _log_ooms_now(run, state, limits, now_s),
        last_words=_last_words(run, view.end) if has_ended else "",
        free_bytes=free_bytes,
        free_inodes=free_inodes,
        behind="" if now_s is None else _blind(state) or observer.behind(run, account, state, now_s),
        progress_s=_progress_s(run, state, table, account),
        parent_stepped=not has_ended and not step_sight.has_stepped(state) and step_sight.parent_stepped(run, table),
    )


def _blind(state: State) -> str:
    """Say that a sidecar reads no steps, because the run's records are not as they were written."""
    if RECORDS_EDITED not in state.get("warned_of", ()) or state.get("tells_steps"):
        return ""
    return "its records were edited, so its sidecar reads no steps: nothing can be said of its speed"


def _last_words(run: Run, end: dict[str, Any] | None) -> str:
    """Return what a trainer died of by its log: the exception's line, which need not be the last one."""
    from ..run_folder import last_error  # late: most runs of a pass live

    found = last_error.of(run, end["code"]) if end is not None else None
    return found.line if found else "".join(log_tail.last_lines(run, 1))


def _progress_s(run: Run, state: State, table: RunTable, account: observer.Observer) -> float | None:
    """Return when the run was last seen to get on by something else than a step; None where it was not.

    Where no pattern reads steps (there is none, or none that ever fitted), a text that changes has to do; where one
    does, a line of it that differs from the one before, unless the trainer tells its steps itself.
    """
    text_s = None if account.text_s is None or step_sight.can_be_seen(run, state, table) else account.text_s
    line_s = None if state.get("tells_steps") else account.step_line_s
    return max((one for one in (account.saved_s, text_s, line_s) if one is not None), default=None)


def lineage_speed(run: Run, table: RunTable) -> tuple[float | None, float | None]:
    """Return the highest usual speed of the ancestors that trained the same thing on the same host, and the same whole.

    Of the caller's own: another user's numbers stop none of the caller's runs.
    """
    known: list[float] = []
    wholes: list[float] = []
    for ancestor, _ in table.history(run)[1 : 1 + MAX_ANCESTORS]:
        if any(ancestor.record.get(key) != run.record.get(key) for key in ("config_hash", "host")):
            break
        if custody.of_run(ancestor.paths) is not None:
            break
        its_pace = status.read_state(ancestor).get("pace")
        speed, whole = pace.baseline(its_pace), pace.whole_speed(its_pace)
        if speed is not None and whole is not None:
            known.append(speed)
            wholes.append(whole)
    return max(known, default=None), max(wholes, default=None)


def fruitless_starts(run: Run, state: State, table: RunTable, limit: int) -> int:
    """Return how many starts in a row, this one the last, brought nothing new; more than `limit` are not counted.

    Counted along a chain of recoveries; what a person has started begins a new one. A start brings something if it got
    beyond the step that any before it had reached: where a rule stopped it, `recover.replay_steps` beyond, for such a
    run is trained again from further back and must not creep towards the same end for ever. Steps may begin again in
    each epoch, or be told nowhere: a checkpoint that is newer than those of all starts before it is as good.
    """
    starts = _starts(run, state, table)
    for number, one in enumerate(starts[:limit]):
        before = starts[number + 1 :]
        reached, saved = ([other.reached for other in before], [other.saved for other in before])
        if one.reached > (max(reached) + one.further if reached else one.begun):
            return number
        if one.saved > max([one.begun, *saved]) + one.further:
            return number
    return min(limit, len(starts))


class _Start(NamedTuple):
    """What one start brought.

    Args:
        begun: the step that it began at.
        reached: the step that it reached.
        saved: the step of its newest checkpoint, as its name has it; `begun` where it left none.
        further: how much further than those before it must get.
    """

    begun: int
    reached: int
    saved: int
    further: int


def _starts(run: Run, state: State, table: RunTable) -> list[_Start]:
    """Return what this run and those that it recovers brought, newest first."""
    starts = []
    for one in recovery.chain(run, table):
        seen = state if one is run else status.read_state(one)
        if one is not run and status.name_of(one, seen, status.look(one, seen)) not in status.TAKEN_UP:
            break
        begun, reached = one.parent_step or 0, seen.get("step", 0)
        bad = (seen.get("aborted") or {}).get("first_bad_step")
        saved = seen.get("last_checkpoint_step", begun)
        if bad is not None:
            reached, saved = min(reached, bad - 1), min(saved, bad - 1)
        further = count(run.setting("recover", "replay_steps")) if "aborted" in seen else 0
        starts.append(_Start(begun, max(begun, reached), max(begun, saved), further or 0))
    return starts


def _log_ooms_now(run: Run, state: State, limits: Limits, now_s: float | None) -> int:
    """Return `log_ooms` of a run that lives, those left out that a step came after."""
    window_s = limits.oom_minutes * 60
    if state.get("tells_steps") and now_s is not None:  # its log shows none: what was written before the last is over
        window_s = min(window_s, now_s - state.get("step_mono_s", 0.0) + SAME_MOMENT_S)
    return log_ooms(run, window_s, clears=True)


def log_ooms(run: Run, window_s: float, *, clears: bool = False) -> int:
    """Return how many of the last lines of a log that was written to lately say that memory ran out.

    Args:
        run: the run.
        window_s: how old a log may be.
        clears: whether a line that the step's pattern matches clears what stands before it: the trainer got over that.
    """
    lines, age_s = log_tail.read(run)
    if age_s > window_s:
        return 0
    lines = [line[:LINE_BYTES] for line in lines[-TAIL_LINES:]]
    found = sum(1 for line in lines if _OOM.search(line))
    return _not_cleared(run, lines) if found and clears else found


def _not_cleared(run: Run, lines: list[bytes]) -> int:
    """Return how many lines say that memory ran out behind the last line of a step."""
    from ..run_folder import log_patterns  # late: nearly no log speaks of memory
    from ..supervision.train_log import clean

    step = log_patterns.compiled(run.setting("trainer", "log_patterns")).get("step")
    found = 0
    for line in lines:
        if _OOM.search(line):
            found += 1
        elif step and step.number.search(clean(line)):
            found = 0
    return found


def _free(run: Run) -> tuple[int | None, int | None]:
    """Return (free bytes, free inodes) of the disk of a run; None where the file system does not say."""
    try:
        found: Any = os.statvfs(run.paths.run_dir)
    except OSError:
        return None, None
    # Some file systems make inodes as they go, and say that they have 0 of them.
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
