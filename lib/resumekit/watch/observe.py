"""What the abort rules need to see of a run beside its journal: clock, processes, ancestors, the log's end, the
disk.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time

from ..base.imports import Any, NamedTuple
from ..base.terminal import duration
from ..base.values import count, mapping, seconds
from ..run import liveness, log_tail, own_runs, run_end, run_table, status, throughput
from ..run.journal_fold import RECORDS_EDITED, State
from ..run.run_folder import Run
from ..run.run_table import RunTable
from ..run.status import View
from .rules import Limits, Observation

MAX_STEP_ANCESTORS = 5


def steps_can_be_seen(run: Run, state: State, table: RunTable) -> bool:
    """Whether steps of this trainer can be seen: some of this run were, or of a run that it came from."""
    return has_stepped(state) or parent_stepped(run, table)


def has_stepped(state: State) -> bool:
    """Whether steps or phases of this run were seen, by its folded journal."""
    return bool(state.get("has_stepped") or state.get("tells_phases"))


def parent_stepped(run: Run, table: RunTable) -> bool:
    """Whether steps were seen of a run that this one came from, by the means that this one has.

    Not asked is whether it has a pattern or the kit's helpers: a heartbeat, which needs neither, tells steps too. A
    journal that is too long for a look tells steps: nothing else comes so often.
    """
    means = _means(run)
    for ancestor, _ in table.history(run)[1 : 1 + MAX_STEP_ANCESTORS]:
        if _means(ancestor) != means:
            return False
        if status.is_long_unread(ancestor) or "has_stepped" in status.read_state(ancestor):
            return True
    return False


def _means(run: Run) -> tuple[Any, ...]:
    """Return what decides how the steps of a run are seen."""
    names = ("log_patterns", "metrics_file", "loads_with_kit")
    return (run.log_format, *(run.setting("trainer", name) for name in names))


# How far the sidecar of a run has come: what is not read yet cannot be judged, by age or by speed.
#
# An observer is behind when all that had been printed half a minute ago is not read yet. That is so for one that
# stands still or is dead, for a log that cannot be written, for a flood; not for a trainer that merely prints all
# the time. Reads `.sidecar.json` and the size of logs/output.log. Try it: `python -m pytest tests/test_progress.py`

# A sidecar reads four times a second and keeps account every five seconds; a large digest may hold it up.
BEHIND_S = 30.0


class Observer(NamedTuple):
    """Where the sidecar stands, by its own account.

    Args:
        read_bytes: how far it has read output.log; None where there is no account.
        written_s: when it wrote the account, on the run's monotonic clock; None in one of an older kit.
        caught_up_s: up to which moment all that had been printed was read.
        text_s: when the text that the trainer prints was last another.
        step_line_s: when a line that the step's pattern matches was last another.
        saved_s: when a checkpoint was last new, or renewed.
        age_s: of the account's file, by the wall clock.
    """

    read_bytes: int | None = None
    written_s: float | None = None
    caught_up_s: float | None = None
    text_s: float | None = None
    step_line_s: float | None = None
    saved_s: float | None = None
    age_s: float = 0.0


def read_observer(run: Run) -> Observer:
    """Return the account of a run's sidecar; without one, or with one that is of another run, an empty one."""
    saved = run.sidecar_account
    try:
        age_s = max(0.0, time.time() - os.stat(run.paths.sidecar_state).st_mtime)
    except OSError:
        return Observer()
    if not saved:
        return Observer()
    offset = count(saved.get("read_offset"))
    return Observer(
        read_bytes=count(saved.get("output_offset")) if offset is None else offset,
        written_s=seconds(saved.get("mono_s")),
        caught_up_s=seconds(saved.get("caught_up_s")),
        text_s=seconds(saved.get("text_s")),
        step_line_s=seconds(saved.get("step_line_s")),
        saved_s=seconds(saved.get("saved_s")),
        age_s=age_s,
    )


def observer_is_behind(run: Run, observer: Observer, state: State, now_s: float) -> str:
    """Say in a sentence that the observer is behind; '' where it is not.

    Args:
        run: the run.
        observer: its account.
        state: the folded journal, for when the run began.
        now_s: the monotonic clock that the account is on.
    """
    size = _size(run)
    if observer.read_bytes is None:
        begun_s = (state.get("launched") or {}).get("mono_s")
        if not size or begun_s is None or now_s - begun_s <= BEHIND_S:
            return ""
        return f"no sidecar has read any of the {size} bytes of its log: nothing can be said of its speed"
    if observer.caught_up_s is None or observer.written_s is None:  # of an older kit: what is unread is all it shows
        is_behind, age_s = observer.age_s > BEHIND_S and size > observer.read_bytes, observer.age_s
    else:
        is_behind, age_s = now_s - observer.caught_up_s > BEHIND_S, now_s - observer.written_s
    if not is_behind:
        return ""
    how_far = f"has read to byte {observer.read_bytes} of {max(size, observer.read_bytes)}"
    return f"the sidecar {how_far}, its account is {duration(age_s)} old: nothing can be said of its speed"


def _size(run: Run) -> int:
    with contextlib.suppress(OSError):
        return os.stat(run.paths.output_log).st_size
    return 0


# The observation. Reads a run's folder and those of its ancestors, /proc and the file system; writes nothing. Try
# it: `bin/abort-watch.sh --observe`

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


def observation(run: Run, state: State, view: View, table: RunTable, limits: Limits) -> Observation:
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
    is_suspended = any(one.process == liveness.TRAINER for one in view.suspended)
    is_unaged = has_ended or is_suspended or "suspended_since_s" in state
    now_s = None if is_unaged else status.clock(run, state)
    account = Observer() if now_s is None else read_observer(run)
    speed, whole = (None, None) if has_ended else lineage_speed(run, table)
    return Observation(
        now_s=now_s,
        run_state=name,
        end=view.end,
        lineage_speed=speed,
        lineage_whole=whole,
        fruitless=fruitless_starts(run, state, table, limits.max_attempts) if has_ended else 0,
        log_ooms=ooms_at_end(run, view.end) if has_ended else _log_ooms_now(run, state, limits, now_s),
        last_words=_last_words(run, view.end) if has_ended else "",
        free_bytes=free_bytes,
        free_inodes=free_inodes,
        behind="" if now_s is None else _blind(state) or observer_is_behind(run, account, state, now_s),
        progress_s=_progress_s(run, state, table, account),
        parent_stepped=not has_ended and not has_stepped(state) and parent_stepped(run, table),
    )


def _blind(state: State) -> str:
    """Say that a sidecar reads no steps, because the run's records are not as they were written."""
    if RECORDS_EDITED not in state.get("warned_of", ()) or state.get("tells_steps"):
        return ""
    return "its records were edited, so its sidecar reads no steps: nothing can be said of its speed"


def _last_words(run: Run, end: dict[str, Any] | None) -> str:
    """Return what a trainer died of by its log: the exception's line, which need not be the last one."""
    from ..run import log_end  # late: most runs of a pass live

    return log_end.error_words_of(run, None if end is None else end["code"])


def _progress_s(run: Run, state: State, table: RunTable, account: Observer) -> float | None:
    """Return when the run was last seen to get on by something else than a step; None where it was not.

    Where no pattern reads steps (there is none, or none that ever fitted), a text that changes has to do; where one
    does, a line of it that differs from the one before, unless the trainer tells its steps itself.
    """
    text_s = None if account.text_s is None or steps_can_be_seen(run, state, table) else account.text_s
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
        if _number_of_ranks(ancestor) != _number_of_ranks(run):
            break
        if own_runs.why_run_is_not_own(ancestor.paths) is not None or status.is_long_unread(ancestor):
            break
        its_pace = status.read_state(ancestor).get("pace")
        speed, whole = throughput.baseline(its_pace), throughput.whole_speed(its_pace)
        if speed is not None and whole is not None:
            known.append(speed)
            wholes.append(whole)
    return max(known, default=None), max(wholes, default=None)


def _number_of_ranks(run: Run) -> tuple[Any, ...]:
    """Return how many ranks the kit starts for a run; it is no part of the config's hash."""
    launcher = mapping(run.setting("trainer", "launcher"))
    return launcher.get("nproc"), launcher.get("nnodes", 1)


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
    for one in run_table.recovery_chain(run, table):
        if one is not run and status.is_long_unread(one):
            break
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


def ooms_at_end(run: Run, end: dict[str, Any] | None) -> int:
    """Return `log_ooms` of a run that is over; torchrun's banner of many ranks stands behind the words of the first."""
    error = run_end.failed_rank(end).get("error", "")
    return log_ooms(run, math.inf) or int(_OOM.search(error.encode("utf-8", "replace")) is not None)


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
    from ..process.train_log import clean  # late: nearly no log speaks of memory

    step = run.step_patterns.get("step")
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
