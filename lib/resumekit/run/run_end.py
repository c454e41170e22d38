"""How a run's trainer ended, by exit.json, and whether the run had done its last step."""

from __future__ import annotations

from ..base.files import UnreadableFile, read_json, utc_now
from ..base.imports import Any
from ..base.terminal import plain
from ..base.values import above_zero, between, count, integer, mapping, one_of, seconds, string
from .journal_fold import State
from .run_folder import Run

_code = between(0, 255)


def read(run: Run) -> dict[str, Any] | None:
    """Return exit.json if it is there and has a code."""
    try:
        end = mapping(read_json(run.paths.exit_json))
    except UnreadableFile:
        return None
    return end if _code(end.get("code")) is not None else None


def silence_limit_s(run: Run) -> float:
    """Return for how long what is left of a training may show nothing before it counts as over: as long as a hang."""
    minutes = above_zero(run.setting("abort", "hang_minutes", 30))
    return 1800.0 if minutes is None else 60.0 * minutes


# A trainer that ends on one of these was stopped, wherever the signal came from: it has saved and says so by its code,
# or has died of it. KILL is none of them.
STOPS = {"INT": 130, "TERM": 143}
_stop = one_of(STOPS)


def stopped_by(end: dict[str, Any] | None) -> str | None:
    """Return which stop a trainer ended on, 'INT' or 'TERM'; None where it ended otherwise.

    `by` is the shim's word, once and for good, where code and signal do not say so (log_end).
    """
    if end is None:
        return None
    if by := _stop(end.get("by")):
        return by
    return next((name for name, code in STOPS.items() if end.get("code") == code), None)


def error(end: dict[str, Any] | None) -> str | None:
    """Return what a trainer died of that ended with code 0; None where there is nothing of the kind."""
    return (string(end.get("error")) or None) if end is not None and end.get("code") == 0 else None


def has_failed(end: dict[str, Any] | None) -> bool:
    """Whether a trainer whose end was seen did not end with success: a code, a signal, or words that belie code 0."""
    return end is not None and (end.get("code") != 0 or error(end) is not None)


def words(end: dict[str, Any] | None) -> str:
    """Say how a trainer ended: 'ended (code 137; signal 9), elapsed 12.3 s'."""
    if end is None:
        return f"ended, how is not known (its shim was killed too), {utc_now()}"
    by_signal = f"; signal {end['signal']}" if integer(end.get("signal")) else ""
    by_signal += f"; on {end['by']}" if _stop(end.get("by")) else ""
    died_of = error(end)
    rank = rank_words(end)
    by_signal += f"; {plain(rank)}" if rank else ""
    by_signal += f"; but: {plain(died_of)}" if died_of else ""
    by_signal += "; killed for want of memory" if is_oom_kill(end) else ""
    elapsed_s = seconds(end.get("elapsed_s"))
    elapsed = f", elapsed {elapsed_s:.1f} s" if elapsed_s is not None else ""
    return f"ended (code {end['code']}{by_signal}){elapsed}, {end.get('at')}"


def fields(end: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the `exited` event says of it."""
    seen = {key: end.get(key) if end else None for key in ("code", "signal", "elapsed_s", "pid")}
    by = {"by": end["by"]} if end and _stop(end.get("by")) else {}
    by |= {"error": error(end)} if error(end) else {}
    by |= {"failed_rank": failed} if (failed := failed_rank(end)) else {}
    return {**seen, **by, **({"oom_kill": True} if is_oom_kill(end) else {})}


def failed_rank(end: dict[str, Any] | None) -> dict[str, Any]:
    """Return which rank brought a training down, and its code, signal or error; {} where that is not known."""
    found = mapping(end.get("failed_rank")) if end is not None else {}
    read = {"rank": count, "code": _code, "signal": between(1, 64), "error": string}
    kept = {key: value for key, reader in read.items() if (value := reader(found.get(key))) is not None}
    return kept if "rank" in kept else {}


def rank_words(end: dict[str, Any] | None) -> str:
    """Say how the rank that brought a training down ended: 'rank 1 was killed by signal 9'; '' if not known."""
    failed = failed_rank(end)
    if not failed:
        return ""
    if "error" in failed:
        return f"rank {failed['rank']}: {failed['error']}"
    how = f"was killed by signal {failed['signal']}" if "signal" in failed else f"ended with code {failed.get('code')}"
    return f"rank {failed['rank']} {how}"


def is_oom_kill(end: dict[str, Any] | None) -> bool:
    """Whether there is evidence that the kernel killed it for want of memory; without any, it is not said."""
    return end is not None and end.get("oom_kill") is True


# Whether a run has done its last step: a number of the log alone may be another one, as of an evaluation's bar.
#
# `782/5000` of an evaluation looks like a step beyond `training.max_steps`. What the trainer journals itself is its
# word. Pure; reads and writes nothing. Try it: `python -m pytest tests/test_last_step.py`


def last_step_is_reached(state: State, max_steps: int | None) -> bool:
    """Whether a run whose trainer has ended with 0 is whole; a step of the log beyond the end needs a checkpoint there.

    Args:
        state: the folded journal.
        max_steps: where the run ends; None where that is not known.
    """
    step = state.get("step")
    if step is None or max_steps is None:
        return False
    if step < max_steps:  # what prints each hundredth step alone, in a known format, has saved its last one
        return "log_format" in state and _is_of_the_log(state) and state.get("last_checkpoint_step") == max_steps
    return step == max_steps or not _is_of_the_log(state) or state.get("last_checkpoint_step", -1) >= max_steps


def last_step_is_proven(state: State, step: int | None, max_steps: int | None) -> bool:
    """Whether a run whose trainer has failed had done its last step: one of the log has to be that one, and saved."""
    if step is None or max_steps is None or step < max_steps:
        return False
    return not _is_of_the_log(state) or step == max_steps <= state.get("last_checkpoint_step", -1)


def _is_of_the_log(state: State) -> bool:
    return bool(state.get("has_step_events") and not state.get("tells_steps"))
