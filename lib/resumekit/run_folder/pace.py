"""How fast a run trains, and how fast it trained before: what the fold remembers of the times between its steps.

Training time is what lies between two steps, with waiting (evaluations, saves, compiling) left out. It is cut into
buckets; of all buckets remain a histogram of their speeds (for the baseline) and, for each speed, when it was last
reached (for "slower than this since"). Bounded, plain JSON, pure: every function returns a new pace.
Try it: `python -m pytest tests/test_abort_rules.py`
"""

from __future__ import annotations

import math
import statistics
from typing import Any

Pace = dict[str, Any]

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


def begun(step: int) -> Pace:
    """Return the pace of a run before its first step is taken in."""
    return {
        "step": step, "at_s": None, "told": 0, "steps": 0, "seconds": 0.0, "trained_s": 0.0, "typical_s": 0.0,
        "least_s": None, "long_in_a_row": 0, "settling": SETTLING, "learned": 0, "levels": [], "peaks": [],
        "whole_s": 0.0, "whole": [], "whole_now": [],
    }  # fmt: skip


def told(pace: Pace, step: int, mono_s: float, *, counts: bool = True) -> Pace:
    """Take in a step.

    Args:
        pace: what is known so far.
        step: optimizer steps done.
        mono_s: when, on the monotonic clock.
        counts: whether the time since the last one was training (not warm-up).
    """
    result = {**pace, "step": step, "at_s": mono_s if counts else None}
    if pace["at_s"] is None or not counts:
        return result
    result["steps"] += max(0, step - pace["step"])
    interval_s = max(0.0, mono_s - pace["at_s"])
    if interval_s < MIN_INTERVAL_S:
        return {**result, "at_s": pace["at_s"]}
    result["told"] += 1
    result["whole_s"] += interval_s
    is_long = pace["typical_s"] > 0 and interval_s > LONG_INTERVALS * pace["typical_s"]
    result["long_in_a_row"] = min(pace["long_in_a_row"] + 1, LONG_IN_A_ROW) if is_long else 0
    if result["long_in_a_row"] == 1:
        result["seconds"] += _usual_now(pace)
    elif result["long_in_a_row"] == LONG_IN_A_ROW:
        result["seconds"] += min(interval_s, max(LONG_S, SLOW_INTERVALS * pace["typical_s"]))
    else:
        result["seconds"] += _counted(pace, interval_s)
    result["least_s"] = interval_s if pace["least_s"] is None else min(interval_s, pace["least_s"])
    is_full = result["seconds"] >= BUCKET_S and result["told"] >= (MIN_TOLD if pace["typical_s"] else FIRST_TOLD)
    return _closed(result) if is_full else result


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
    return statistics.median(pace["whole_now"]) if pace["whole_now"] else None


def slow_for(pace: Pace, speed: float) -> float:
    """Return for how many seconds of training, up to the last step, every bucket was slower than `speed` steps/s.

    The time since the last step does not count: whether another one will come is the hang rule's affair.
    """
    last_fast_s = next((end_s for end_s, peak in reversed(pace["peaks"]) if peak >= speed), 0.0)
    closed_s = pace["trained_s"] - last_fast_s
    open_s = pace["seconds"] if pace["typical_s"] else 0.0  # the first bucket holds whatever a start brings
    # The bucket that is still open counts if it is slow already with one more telling.
    each = pace["steps"] / pace["told"] if pace["told"] else 1.0
    is_slow = open_s > 0 and (pace["steps"] + each) / open_s < speed
    return max(0.0, closed_s + (open_s if is_slow else 0.0))


def recent_speed(pace: Pace | None) -> float | None:
    """Return steps per second in the last whole bucket; None before there was one."""
    return pace["peaks"][-1][1] if pace and pace["peaks"] else None


def slack_s(pace: Pace, usual_s: float) -> float:
    """Return by how much a row of slow buckets may be longer than the slow stretch in it, where tellings are rare.

    The first and the last of them may have been slow in one telling alone, with all the others at the usual speed; and
    in each an evaluation that was not told of may count in full, as long as it is no longer than LONG_INTERVALS.

    Args:
        pace: the run's.
        usual_s: seconds between two tellings at the usual speed; who never was but slow has learned too many.
    """
    return max(0.0, 2 * (MIN_TOLD - 1 + LONG_INTERVALS - 1) * min(pace["typical_s"], usual_s) - BUCKET_S)


def is_sound(pace: object) -> bool:
    """Whether a pace that was read from a file has the types that are given to it here."""
    if not isinstance(pace, dict) or pace.keys() != begun(0).keys():
        return False
    numbers = [pace[key] for key in ("seconds", "trained_s", "typical_s", "whole_s")]
    numbers += [pace[key] for key in ("at_s", "least_s") if pace[key] is not None]
    counts = (pace[key] for key in ("step", "told", "steps", "learned", "settling", "long_in_a_row"))
    if not all(map(_is_time, numbers)) or not all(type(n) is int and 0 <= n < 1 << 53 for n in counts):
        return False
    now = pace["whole_now"]
    if not isinstance(now, list) or len(now) > MAX_NOW or not all(map(_is_time, now)):
        return False
    are_levels = all(_are_pairs(pace[key], _is_level, _is_count) for key in ("levels", "whole"))
    return are_levels and _are_pairs(pace["peaks"], _is_time, _is_time)


def _usual_now(pace: Pace) -> float:
    """Return how long an interval is just now: a long one among slow ones hides none of their slowness."""
    now_s = pace["seconds"] / pace["told"] if pace["told"] else 0.0
    return min(max(pace["typical_s"], now_s), LONG_INTERVALS * pace["typical_s"])


def _counted(pace: Pace, seconds: float) -> float:
    """Return how much of an interval counts as training."""
    limit = max(LONG_S, LONG_INTERVALS * pace["typical_s"]) if pace["typical_s"] else math.inf
    return min(seconds, limit)


def _closed(pace: Pace) -> Pace:
    """Close the open bucket of a pace that is ours to change."""
    seconds, number = pace["seconds"], pace["steps"]
    if not pace["typical_s"]:
        # Of the first bucket, with all that a start brings, only this is learned: how often steps are told.
        return {**pace, "typical_s": max(MIN_INTERVAL_S, pace["least_s"]), "told": 0, "steps": 0, "seconds": 0.0,
                "whole_s": 0.0}  # fmt: skip
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


def _with_peak(peaks: list[list[float]], end_s: float, speed: float) -> list[list[float]]:
    """Return the peaks with a new one behind: what was slower before it is no peak any more, what was as fast is it."""
    kept = len(peaks)
    while kept and _level(peaks[kept - 1][1]) <= _level(speed):
        kept -= 1
        speed = max(speed, peaks[kept][1]) if _level(peaks[kept][1]) == _level(speed) else speed
    return [*peaks[:kept], [end_s, speed]]


def _learned(levels: list[list[int]], level: int) -> list[list[int]]:
    counts = dict(map(tuple, levels))
    counts[level] = counts.get(level, 0) + 1
    if sum(counts.values()) > MAX_COUNTED:
        counts = {one: count // 2 for one, count in counts.items() if count > 1}
    return [[one, counts[one]] for one in sorted(counts)]


def _median(levels: list[list[int]]) -> float | None:
    left = sum(count for _, count in levels) / 2
    for level, count in levels:
        left -= count
        if left <= 0:
            return 2.0 ** ((level + 0.5) / LEVELS)
    return None


def _level(speed: float) -> int:
    if speed <= 0:
        return -MAX_LEVEL
    return max(-MAX_LEVEL, min(MAX_LEVEL, math.floor(LEVELS * math.log2(speed))))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15


def _is_level(value: Any) -> bool:
    return type(value) is int and abs(value) <= MAX_LEVEL


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_COUNTED


def _are_pairs(pairs: Any, first: Any, second: Any) -> bool:
    if not isinstance(pairs, list) or len(pairs) > 2 * MAX_LEVEL + 1:
        return False
    return all(isinstance(pair, list) and len(pair) == 2 and first(pair[0]) and second(pair[1]) for pair in pairs)
