"""How fast a run goes, by what it reports of itself, and what a save under way means for that."""

from __future__ import annotations

import math

from ..base.imports import Any
from ..base.values import amount, between, fields, listed, row, seconds, total

Pace = dict[str, Any]
# A folded journal, and one event of it.
State = dict[str, Any]
Event = dict[str, Any]

# A bucket is this long and holds so many tellings: shorter ones show the noise of single steps.
BUCKET_S = 30.0
MIN_TOLD = 5
# The first one says no more than how often steps are told.
FIRST_TOLD = 3
# One interval of more than so many usual ones is an evaluation that was not told of, a save, a stall: it counts as
# those before it. A second in a row counts up to LONG_S or so many usual ones: beyond is the hang's affair. From the
# third on they are slowness, and count for more: who tells a step every ten minutes instead of every one is found in
# time.
LONG_INTERVALS = 4.0
LONG_S = 60.0
LONG_IN_A_ROW = 3
SLOW_INTERVALS = 12.0
# Steps that are told closer together are one telling: a log is read in bursts, and a pipe on the way hands on blocks.
MIN_INTERVAL_S = 0.01
# Speeds are counted in levels of 4.4 %: 16 to the factor of two, from 2^-32 to 2^32 steps/s.
LEVELS = 16
MAX_LEVEL = 512
# How often steps are told is learned from the first buckets and then left as it is: what is long must not change its
# meaning under the feet of the baseline. From so many more buckets on there is one.
SETTLING = 2
LEARNED = 8
# A bucket slower than this share of the baseline teaches nothing: a sick hour must not become the norm.
LEARNED_SHARE = 0.5
# Then all counts are halved, and what a run did a day ago fades.
MAX_COUNTED = 2000
# Speeds of so many of the last buckets, each interval in full: ten minutes at least.
MAX_NOW = 20


def before_first_step(step: int) -> Pace:
    """Return the pace of a run before its first step is taken in."""
    return {
        "step": step, "at_s": None, "told": 0, "steps": 0, "seconds": 0.0, "trained_s": 0.0, "typical_s": 0.0,
        "least_s": None, "long_in_a_row": 0, "settling": SETTLING, "learned": 0, "levels": [], "peaks": [],
        "whole_s": 0.0, "whole": [], "whole_now": [],
    }  # fmt: skip


def on_step(pace: Pace, step: int, mono_s: float, *, counts: bool = True) -> Pace:
    """Take in a step.

    Args:
        pace: what is known so far.
        step: optimizer steps done.
        mono_s: when, on the monotonic clock.
        counts: whether the time since the last one was training (not warm-up).
    """
    if not counts:
        return {**pace, "step": step, "at_s": None}
    result = dict(pace)
    take_in(result, step, mono_s)
    return result


def take_in(pace: Pace, step: int, mono_s: float) -> None:
    """Take in a step of the training, in place; the arguments are those of `told`."""
    before_s, typical_s = pace["at_s"], pace["typical_s"]
    way, pace["step"] = step - pace["step"], step
    if before_s is None:
        pace["at_s"] = mono_s
        return
    if way > 0:
        pace["steps"] += way
    interval_s = mono_s - before_s
    if interval_s < MIN_INTERVAL_S:
        return
    pace["at_s"] = mono_s
    long_in_a_row = 0
    if typical_s > 0 and interval_s > LONG_INTERVALS * typical_s:
        long_in_a_row = min(pace["long_in_a_row"] + 1, LONG_IN_A_ROW)
    if long_in_a_row == 1:
        counted_s = _usual_now(pace)
    elif long_in_a_row == LONG_IN_A_ROW:
        counted_s = min(interval_s, max(LONG_S, SLOW_INTERVALS * typical_s))
    else:
        counted_s = _counted(pace, interval_s)
    pace["long_in_a_row"] = long_in_a_row
    pace["told"] += 1
    pace["whole_s"] += interval_s
    pace["seconds"] += counted_s
    if pace["least_s"] is None or interval_s < pace["least_s"]:
        pace["least_s"] = interval_s
    if pace["seconds"] >= BUCKET_S and pace["told"] >= (MIN_TOLD if typical_s else FIRST_TOLD):
        pace.update(_closed(pace))


def paused(pace: Pace, mono_s: float) -> Pace:
    """Stop the clock: an evaluation, a save; what lies between the last step and now was training."""
    if pace["at_s"] is None:
        return pace
    interval_s = max(0.0, mono_s - pace["at_s"])
    seconds, whole_s = pace["seconds"] + _counted(pace, interval_s), pace["whole_s"] + interval_s
    return {**pace, "at_s": None, "seconds": seconds, "whole_s": whole_s}


def taken_up(pace: Pace, mono_s: float) -> Pace:
    """Let the clock go on from now; what has gone by since the last step, a machine asleep, does not count."""
    return {**pace, "at_s": mono_s}


def waited(pace: Pace, since_s: float, mono_s: float) -> Pace:
    """Leave out of the interval that is open what of it, or since what was told meanwhile, was spent on a save."""
    if pace["at_s"] is None:
        return pace
    return {**pace, "at_s": pace["at_s"] + max(0.0, mono_s - max(since_s, pace["at_s"]))}


def baseline(pace: Pace | None) -> float | None:
    """Return the usual speed in steps per second, the median of what was learned; None where that is too little."""
    return _median(pace["levels"]) if pace and pace["learned"] >= LEARNED else None


def whole_speed(pace: Pace | None) -> float | None:
    """Return the median speed of all buckets with every interval in full; None before the first bucket.

    Which intervals are long, and count as usual ones instead, depends on `typical_s`, which each life of a lineage
    learns anew; this speed does not, and can be compared between them.
    """
    return _median(pace["whole"]) if pace else None


def whole_speed_now(pace: Pace) -> float | None:
    """Return the same of the last buckets alone."""
    speeds: list[float] = sorted(pace["whole_now"])
    middle = len(speeds) // 2  # of an even number the mean of the two; importing statistics costs each process 5 ms
    return (speeds[middle] + speeds[~middle]) / 2 if speeds else None


def slow_for(pace: Pace, speed: float) -> float:
    """Return for how many seconds of training, up to the last step, every bucket was slower than `speed` steps/s.

    The time since the last step does not count: whether another one will come is the hang rule's affair.
    """
    last_fast_s = next((end_s for end_s, peak in reversed(pace["peaks"]) if peak >= speed), 0.0)
    closed_s: float = pace["trained_s"] - last_fast_s
    open_s: float = pace["seconds"] if pace["typical_s"] else 0.0  # the first bucket holds whatever a start brings
    # The bucket that is still open counts if it is slow already with one more telling.
    each = pace["steps"] / pace["told"] if pace["told"] else 1.0
    is_slow = open_s > 0 and (pace["steps"] + each) / open_s < speed
    return max(0.0, closed_s + (open_s if is_slow else 0.0))


def recent_speed(pace: Pace | None) -> float | None:
    """Return steps per second in the last whole bucket; None before there was one."""
    if not pace or not pace["whole"]:  # the first bucket's is a bound
        return None
    speed: float = pace["peaks"][-1][1]
    return speed


def tolerance_s(pace: Pace, usual_s: float) -> float:
    """Return by how much a row of slow buckets may be longer than the slow stretch in it, where tellings are rare.

    The first and the last of them may have been slow in one telling alone, with all the others at the usual speed; and
    in each an evaluation that was not told of may count in full, as long as it is no longer than LONG_INTERVALS.

    Args:
        pace: the run's.
        usual_s: seconds between two tellings at the usual speed; who never was but slow has learned too many.
    """
    typical_s: float = pace["typical_s"]
    return max(0.0, 2 * (MIN_TOLD - 1 + LONG_INTERVALS - 1) * min(typical_s, usual_s) - BUCKET_S)


def _usual_now(pace: Pace) -> float:
    """Return how long an interval is just now: a long one among slow ones hides none of their slowness."""
    typical_s: float = pace["typical_s"]
    now_s: float = pace["seconds"] / pace["told"] if pace["told"] else 0.0
    return min(max(typical_s, now_s), LONG_INTERVALS * typical_s)


def _counted(pace: Pace, seconds: float) -> float:
    """Return how much of an interval counts as training."""
    typical_s: float = pace["typical_s"]
    if seconds <= LONG_S or not typical_s:
        return seconds
    return min(seconds, max(LONG_S, LONG_INTERVALS * typical_s))


def _closed(pace: Pace) -> Pace:
    """Close the open bucket of a pace that is ours to change."""
    seconds, number = pace["seconds"], pace["steps"]
    if not pace["typical_s"]:
        return _first_closed(pace)
    speed = number / seconds
    usual = baseline(pace)
    if pace["settling"]:
        usual_s = max(MIN_INTERVAL_S, seconds / pace["told"])
        pace["typical_s"] += (usual_s - pace["typical_s"]) / (SETTLING - pace["settling"] + 1)
        pace["settling"] -= 1
    elif number and (usual is None or speed >= LEARNED_SHARE * usual):
        pace["levels"] = _learned(pace["levels"], _level(speed))
        pace["learned"] = min(pace["learned"] + 1, MAX_COUNTED)
    whole = number / max(pace["whole_s"], MIN_INTERVAL_S)
    pace["whole"] = _learned(pace["whole"], _level(whole))
    pace["whole_now"] = [*pace["whole_now"], whole][-MAX_NOW:]
    pace["trained_s"] += seconds
    pace["peaks"] = _with_peak(pace["peaks"], pace["trained_s"], speed)
    pace.update(told=0, steps=0, seconds=0.0, whole_s=0.0)
    return pace


def _first_closed(pace: Pace) -> Pace:
    """Close the first bucket, with all that a start brings: it says how often steps are told.

    All its intervals but one, the start's, were training, and each was as long as the shortest at least.
    """
    least_s = max(MIN_INTERVAL_S, pace["least_s"])
    trained_s = (pace["told"] - 1) * least_s
    fastest = pace["steps"] / pace["told"] / least_s
    return {**pace, "typical_s": least_s, "trained_s": trained_s, "peaks": [[trained_s, fastest]],
            "told": 0, "steps": 0, "seconds": 0.0, "whole_s": 0.0}  # fmt: skip


def _with_peak(peaks: list[list[float]], end_s: float, speed: float) -> list[list[float]]:
    """Return the peaks with a new one behind: what was slower before it is no peak any more, what was as fast is it."""
    kept = len(peaks)
    while kept and _level(peaks[kept - 1][1]) <= _level(speed):
        kept -= 1
        speed = max(speed, peaks[kept][1]) if _level(peaks[kept][1]) == _level(speed) else speed
    return [*peaks[:kept], [end_s, speed]]


def _learned(levels: list[list[int]], level: int) -> list[list[int]]:
    counts = {pair[0]: pair[1] for pair in levels}
    counts[level] = counts.get(level, 0) + 1
    if sum(counts.values()) > MAX_COUNTED:
        counts = {one: count // 2 for one, count in counts.items() if count > 1}
    return [[one, counts[one]] for one in sorted(counts)]


def _median(levels: list[list[int]]) -> float | None:
    left = sum(count for _, count in levels) / 2
    for level, count in levels:
        left -= count
        if left <= 0:
            speed: float = 2.0 ** ((level + 0.5) / LEVELS)
            return speed
    return None


def _level(speed: float) -> int:
    if speed <= 0:
        return -MAX_LEVEL
    return max(-MAX_LEVEL, min(MAX_LEVEL, math.floor(LEVELS * math.log2(speed))))


_level_counts = listed(row(between(-MAX_LEVEL, MAX_LEVEL), between(1, MAX_COUNTED)), 2 * MAX_LEVEL + 1)
# The reader of a pace that was saved: the types that are given to it here.
saved = fields(
    {"at_s": amount, "least_s": amount},
    **dict.fromkeys(("step", "told", "steps", "learned", "settling", "long_in_a_row"), total),
    **dict.fromkeys(("seconds", "trained_s", "typical_s", "whole_s"), amount),
    **dict.fromkeys(("levels", "whole"), _level_counts),
    peaks=listed(row(amount, amount), 2 * MAX_LEVEL + 1),
    whole_now=listed(amount, MAX_NOW),
)


# What a save under way means for a run: no step is expected until it is over, whether the trainer tells phases or
# not.
#
# `save_checkpoint` journals `saving` when it begins; its own `checkpoint`, or the warning `save_failed`, ends it. One
# in the background says so, and tells `saving` once more when the trainer has to wait for it.
# That is no phase: a trainer that names none stays one that names none, and an evaluation in which it saves stays
# one. Part of the fold; reads and writes nothing. Try it: `python -m pytest tests/test_save_wait.py`

# A step that is read out of the log may be journaled a little after the evaluation or save behind it has begun.
LATE_S = 60.0
# The warning with which `save_checkpoint` says that nothing was saved.
SAVE_FAILED = "save_failed"


def on_save_begun(state: State, event: Event) -> None:
    """Take in that a save begins; one that was broken off before, and told nothing, is forgotten.

    Beside a save in the background steps are expected: training stands for it only from when it is waited for.
    """
    if (mono_s := seconds(event.get("mono_s"))) is None:
        return
    state.pop("saving_since_s", None)
    state["active_mono_s"] = max(mono_s, state.get("active_mono_s", 0.0))
    if event.get("background") is not True:
        state["saving_since_s"] = mono_s


def on_save_over(state: State, event: Event) -> None:
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
        state["pace"] = waited(state["pace"], since_s, mono_s)


def on_save_denied(state: State) -> None:
    """Take in a step that the trainer itself tells: it saves beside its training, or no more."""
    state.pop("saving_since_s", None)


def is_saving(state: State) -> bool:
    """Whether a save is under way, and no step has come since to deny it."""
    since_s = state.get("saving_since_s")
    return since_s is not None and state.get("step_mono_s", 0.0) < since_s + LATE_S
