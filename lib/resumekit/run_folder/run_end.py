"""How a run's trainer ended: exit.json, which the shim that started it writes.

Try it: `cat runs/<run_id>/exit.json`
"""

from __future__ import annotations

from typing import Any

from ..basics.files import UnreadableFile, read_json, utc_now
from ..basics.terminal import plain
from .runs import Run


def read(run: Run) -> dict[str, Any] | None:
    """Return exit.json if it is there and has a code."""
    try:
        end = read_json(run.paths.exit_json)
    except UnreadableFile:
        return None
    is_end = isinstance(end, dict) and type(end.get("code")) is int and 0 <= end["code"] < 256
    return end if is_end else None


def silence_limit_s(run: Run) -> float:
    """Return for how long what is left of a training may show nothing before it counts as over: as long as a hang."""
    minutes = run.setting("abort", "hang_minutes", 30)
    return 60.0 * minutes if type(minutes) in (int, float) and 0 < minutes < 1e6 else 1800.0


# A trainer that ends on one of these was stopped, wherever the signal came from: it has saved and says so by its code,
# or has died of it. KILL is none of them.
STOPS = {"INT": 130, "TERM": 143}


def stopped_by(end: dict[str, Any] | None) -> str | None:
    """Return which stop a trainer ended on, 'INT' or 'TERM'; None where it ended otherwise.

    `by` is the shim's word, once and for good, where code and signal do not say so (end_words).
    """
    if end is None:
        return None
    if end.get("by") in STOPS:
        return str(end["by"])
    return next((name for name, code in STOPS.items() if end.get("code") == code), None)


def error(end: dict[str, Any] | None) -> str | None:
    """Return what a trainer died of that ended with code 0; None where there is nothing of the kind."""
    found = end.get("error") if end is not None and end.get("code") == 0 else None
    return found if isinstance(found, str) and found else None


def has_failed(end: dict[str, Any] | None) -> bool:
    """Whether a trainer whose end was seen did not end with success: a code, a signal, or words that belie code 0."""
    return end is not None and (end.get("code") != 0 or error(end) is not None)


def words(end: dict[str, Any] | None) -> str:
    """Say how a trainer ended: 'ended (code 137; signal 9), elapsed 12.3 s'."""
    if end is None:
        return f"ended, nobody saw how (its shim was killed too), {utc_now()}"
    by_signal = f"; signal {end['signal']}" if end.get("signal") else ""
    by_signal += f"; on {end['by']}" if end.get("by") in STOPS else ""
    by_signal += f"; but: {plain(error(end))}" if error(end) else ""
    by_signal += "; killed for want of memory" if is_oom_kill(end) else ""
    elapsed_s = end.get("elapsed_s")
    elapsed = f", elapsed {elapsed_s:.1f} s" if isinstance(elapsed_s, (int, float)) else ""
    return f"ended (code {end['code']}{by_signal}){elapsed}, {end.get('at')}"


def fields(end: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the `exited` event says of it."""
    seen = {key: end.get(key) if end else None for key in ("code", "signal", "elapsed_s", "pid")}
    by = {"by": end["by"]} if end and end.get("by") in STOPS else {}
    by |= {"error": error(end)} if error(end) else {}
    return {**seen, **by, **({"oom_kill": True} if is_oom_kill(end) else {})}


def is_oom_kill(end: dict[str, Any] | None) -> bool:
    """Whether there is evidence that the kernel killed it for want of memory; without any, it is not said."""
    return end is not None and end.get("oom_kill") is True
