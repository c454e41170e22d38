"""How a training has ended, where its code does not say so: a stop, or an error, by the last words of its log.

A wrapper hides how its trainer has ended: `subprocess.run(check=True)` and torchrun end with 1, a returncode of -15
that is handed on becomes 241, `python train.py | tee log` ends with 0. Writes nothing; exit.json has the answer for
good, so that the state of a run never depends on its log.
Try it: `tail -n 12 runs/<run_id>/logs/output.log`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..basics.process_details import NEGATED_STOPS, UNCLEAR_CODES
from . import last_error, log_patterns, run_end
from .log_tail import LINE_BYTES
from .runs import Run

# So many lines may stand behind the words that count: an exception's message, a torchrun banner's end, an `echo`.
BEHIND = 12
# Behind the words of one that ended with code 0 as many as the message of a CUDA error, and a script's farewell, have.
BEHIND_AN_ERROR = 6
MAX_ERROR = 200
_INTERRUPT = b"KeyboardInterrupt"
# What a wrapper says of how its child has ended: by a number of a signal, or by a code or a name.
_CHILD = re.compile(
    rb"SignalException: Process \d+ got signal: (?P<number>\d+)"
    rb"|returned non-zero exit status (\d+)\."
    rb"|died with <Signals\.(SIG[A-Z0-9]+): \d+>"
    rb"|Signal \d+ \((SIG[A-Z0-9]+)\) received by PID"
    rb"|process \d+ terminated with (?:signal (SIG[A-Z0-9]+)|exit code (\d+))"
    rb"|exitcode\s{0,8}: (-?\d+) \(pid"
    rb"|exits with return code = (-?\d+)"
)
_STOPS = {
    **dict.fromkeys((b"143", b"-15", b"241", b"SIGTERM"), "TERM"),
    **dict.fromkeys((b"130", b"-2", b"254", b"SIGINT"), "INT"),
}
_SIGNALS = {b"15": "TERM", b"2": "INT"}
_TRACEBACK = b"Traceback (most recent call last):"
# Python goes on behind these: an exception in a destructor, or in a thread.
_NO_END = re.compile(rb"Exception ignored |Exception in thread ")
# What a shell says of its child, and what a process says that ends without an exception.
_FATAL = re.compile(
    rb"(?:\S.{0,200}: line \d+: +\d+ )?(?:Killed|Segmentation fault|Aborted|Bus error|Illegal instruction)"
    rb"(?: \(core dumped\))?(?:\s{2,}.*)?"
    rb"|(?:\S.{0,200})?\bCUDA error: .*|Fatal Python error: .*|terminate called after throwing an instance of .*"
)
# Behind these comes a stack.
_WITH_STACK = re.compile(rb"Fatal Python error: |terminate called ")


def judged(run: Run, end: dict[str, Any]) -> dict[str, Any]:
    """Return an end with what its code does not say: `by`, the stop that it ended on, or `error`, of code 0.

    Args:
        run: the run.
        end: in the words of exit.json; one whose code says it, or that names its stop, is returned as it is.
    """
    code = end["code"]
    if end.get("signal") is not None or run_end.stopped_by(end) or code not in (0, *UNCLEAR_CODES):
        return end
    lines = last_error.lines_of(run)
    if by := stop(lines, code):
        return {**end, "by": by}
    if code == 0 and (found := error(lines)) is not None and not _steps_behind(run, lines[found + 1 :]):
        return {**end, "error": last_error.shown(lines[found])[:MAX_ERROR]}
    return end


def stop(lines: Sequence[bytes], code: int) -> str | None:
    """Return which stop a training ended on, 'INT' or 'TERM', by its last lines and its code; None for no stop.

    An error of the trainer's own at the end of the log is no stop, whatever the code.
    """
    own = last_error.last_of(lines)
    since = max(0, len(lines) - BEHIND, own[0] if own else 0)
    children = [match for line in lines[since:] if (match := _CHILD.search(line[-LINE_BYTES:]))]
    if children:
        return _stop_of(children[-1])
    if own and own[0] >= len(lines) - BEHIND:
        return "INT" if own[1] == _INTERRUPT else None
    return NEGATED_STOPS.get(code)


def error(lines: Sequence[bytes]) -> int | None:
    """Return which of a log's last lines says that its trainer died: an uncaught exception, or a shell's word of it."""
    for at in range(len(lines) - 1, -1, -1):
        line = lines[at][:LINE_BYTES]
        is_near = at >= len(lines) - BEHIND_AN_ERROR
        if _FATAL.fullmatch(line) and (is_near or _WITH_STACK.match(line)):
            return at
        if is_near and last_error.ends_traceback(line):
            return at if _is_uncaught(lines[:at]) else None
    return None


def _stop_of(match: re.Match[bytes]) -> str | None:
    if match["number"] is not None:
        return _SIGNALS.get(match["number"])
    return _STOPS.get(match[match.lastindex or 0])


def _is_uncaught(before: Sequence[bytes]) -> bool:
    """Whether the lines before an exception's own are a traceback that ended a process."""
    if not before or not before[-1].startswith(b" "):
        return False  # `MeanSquaredError: 0.3`
    begins = next((at for at in range(len(before) - 1, -1, -1) if before[at].startswith(_TRACEBACK)), None)
    return begins is not None and not (begins and _NO_END.match(before[begins - 1]))


def _steps_behind(run: Run, lines: Sequence[bytes]) -> bool:
    """Whether the trainer has told steps behind its words: then it has got over them."""
    patterns = log_patterns.compiled(run.setting("trainer", "log_patterns"))
    return bool(log_patterns.found_steps(b"\n".join([*lines, b""]), patterns))
