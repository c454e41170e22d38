"""Which rank of a training ended it, and how: a signal, an exception, a code; and whether torchrun was told to stop.

torchrun ends with 1 whatever was the matter. What it says stands in its banner at the end of the log (rank, code and
signal of each rank that failed) and in the file that it is told of (`rank_error`): its own exception, or that of the
rank that it takes for the first, where the rank's main function has `record`. Both are the trainer's words: read in
bounds, and only ever shown. Writes nothing; exit.json has the answer for good.
Try it: `python -m pytest tests/test_rank_end.py`
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from ..base.files import UnreadableFile, read_json
from ..base.imports import Any, NamedTuple
from ..base.values import mapping, string
from . import log_end, log_tail, run_end
from .run_folder import Run

MAX_BYTES = 1 << 20
MAX_ERROR = 200
# What the device, the machine or a person ends a process with: it has no connection to lose.
_HARD = frozenset({signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV})
# torchrun's banner, a line each.
_ROOT = re.compile(rb"Root Cause \(first observed failure\):")
_BEGINS = re.compile(rb"\[\d{1,6}\]:")
_FIELD = re.compile(rb"\s+(time|rank|exitcode)\s*: (.{0,100})", re.DOTALL)
_RANK = re.compile(rb"(\d{1,7}) \(local_rank: (\d{1,7})\)\s*")
_CODE = re.compile(rb"(-?\d{1,3}) \(pid: (\d{1,10})\).*")
# It ends those that are left with TERM, and with KILL where that does not do.
_FORCED = re.compile(rb"Unable to shutdown process (\d{1,10}) via ")
# What stands before a line of a rank, by torch's own hook or by torchrun's `--tee`; the last one is the global number.
_OF_RANK = re.compile(rb"(?:\[(?:rank|[a-z]{1,20})\d{1,7}\]:\s?)*\[(rank|[a-z]{1,20})(\d{1,7})\]:\s?")
_SIGNAL = re.compile(r"SignalException: Process \d+ got signal: (\d{1,3})")
_TOLD_TO_STOP = re.compile(rb"Received (\d{1,3}) death signal|SignalException: Process \d+ got signal: (\d{1,3})")
_FAILED = "failed"
_TERMINATED = 143
# What srun says of a task that has ended, and slurmstepd of a step that Slurm ends.
_SRUN = re.compile(rb"srun: error: \S{1,200}: tasks? [\d,-]{1,200}: (?:Exited with exit code (\d{1,3})|([A-Z][a-z]+))")
_SRUN_CODES = {b"Terminated": 143, b"Interrupt": 130, b"Killed": 137}
_STEP_CANCELLED = re.compile(rb"error: \*\*\* (?:STEP|JOB) \S{1,40} ON \S{1,200} CANCELLED AT |srun: Job step aborted")
_STOPS = {"15": "TERM", "2": "INT"}


class RankEnd(NamedTuple):
    """How the rank ended that brought a training down.

    Args:
        rank: its number among all.
        code: its exit code; None where a signal ended it.
        signal: that signal's number, else None.
        error: its exception's line, cut to 200 characters, printable; None where it has told none.
    """

    rank: int
    code: int | None
    signal: int | None
    error: str | None

    def as_fields(self) -> dict[str, Any]:
        """Return it in the words of exit.json."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class _Failure(NamedTuple):
    """A rank in torchrun's banner; `code` is negative for a signal."""

    rank: int
    local: int
    code: int
    pid: int
    time: bytes
    is_root: bool


def judged_end(run: Run, end: dict[str, Any]) -> dict[str, Any]:
    """Return an end with what its code does not say, as `log_end.judged_end`, and with `failed_rank`.

    Args:
        run: the run.
        end: in the words of exit.json.
    """
    lines = log_tail.read(run)[0] if end["code"] in (1, _TERMINATED) and end.get("signal") is None else []
    if end["code"] == _TERMINATED and (code := _code_before_srun_ended_the_rest(run, lines)) is not None:
        end = {**end, "code": code}
    if end["code"] != 1 or end.get("signal") is not None:
        return log_end.judged_end(run, end)
    said = _said(run)
    first = _first_word(run, lines) if "by" not in end else None
    if first == _FAILED and (failed := _first_to_fail(lines, said)) is not None:
        return {**end, "failed_rank": failed.as_fields()}
    if first in _STOPS.values():
        return {**end, "by": first}
    if "by" not in end and (match := _SIGNAL.fullmatch(said.message)) and (by := _STOPS.get(match[1])):
        return {**end, "by": by}
    end = log_end.judged_end(run, end)
    if "by" in end or (found := _first_to_fail(lines, said)) is None:
        return end
    return {**end, "failed_rank": found.as_fields()}


def _first_word(run: Run, lines: Sequence[bytes]) -> str | None:
    """Return what came first of several torchruns, one for each node: _FAILED, or the stop that one was told of.

    srun ends those of the other nodes with TERM when one has failed; where one is stopped, ranks of another may fail of
    the lost connection. What has trained on behind that word was another torchrun's training.
    """
    for at, line in enumerate(lines):
        line = log_end.without_ranks(line[: log_tail.LINE_BYTES].rstrip())
        told = _TOLD_TO_STOP.search(line)
        if told or _ROOT.fullmatch(line):
            word = _STOPS.get((told[1] or told[2]).decode()) if told else _FAILED
            return None if log_end.steps_behind(run, lines[at:]) else word
    return None


def _code_before_srun_ended_the_rest(run: Run, lines: Sequence[bytes]) -> int | None:
    """Return the code of the task that failed first, where srun has ended the others with TERM for it; else None.

    srun itself ends with the highest code of its tasks, 143 then (--kill-on-bad-exit), and no user has stopped it.
    """
    for at, line in enumerate(lines):
        match = _SRUN.search(line[: log_tail.LINE_BYTES])
        if match is None:
            if _TOLD_TO_STOP.search(line[: log_tail.LINE_BYTES]) or _STEP_CANCELLED.search(line[: log_tail.LINE_BYTES]):
                return None
            continue
        code = int(match[1]) if match[1] else _SRUN_CODES.get(match[2], 1)
        is_stop = code in run_end.STOPS.values() or log_end.steps_behind(run, lines[at:])
        return None if is_stop else code
    return None


class _Said(NamedTuple):
    """The file of `rank_error`: the exception's line, and whether it is a rank's; empty where there is none."""

    message: str
    is_rank_s: bool


def _said(run: Run) -> _Said:
    try:
        message = mapping(read_json(run.paths.rank_error, MAX_BYTES)).get("message")
    except UnreadableFile:
        return _Said("", False)
    # A handler of the lab's own may write a text alone. torchrun notes a code with what it hands on from a rank.
    text = mapping(message).get("message") if isinstance(message, dict) else message
    lines = (string(text) or "").strip().splitlines()
    return _Said(lines[0] if lines else "", "errorCode" in mapping(message))


def _first_to_fail(lines: Sequence[bytes], said: _Said) -> RankEnd | None:
    """Return the rank that the others ended because of; None without a banner."""
    failures = _banner(lines)
    root = next((one for one in failures if one.is_root), None)
    if root is None:
        return None
    told = _errors_by_rank(lines, failures)
    if said.is_rank_s and said.message:
        told[root.rank] = said.message.encode("utf-8", "surrogateescape")
    if not told and (error := _error_without_rank(lines)):
        told[root.rank] = error
    found = _killed(failures, root, lines) or _raised(failures, root, told)
    error = told.get(found.rank)
    # A rank that raises may be aborted behind it, by the threads of its process group; what kills hard tells nothing.
    if found.code < 0 and -found.code in _HARD:
        error = None
    shown = log_end.shown_error(error)[:MAX_ERROR] if error else None
    is_signal = found.code < 0 and not shown
    return RankEnd(
        found.rank, None if found.code < 0 else found.code, -found.code if is_signal else None, shown or None
    )


def _error_without_rank(lines: Sequence[bytes]) -> bytes | None:
    """Return the exception in a log in which no line says from which rank it is: there the first one is the cause."""
    whole = [log_end.without_ranks(line.rstrip()) for line in lines if line.strip()]
    found = log_end.error_in_lines(whole, 1)
    return found.line.encode("utf-8", "surrogateescape") if found else None


def _killed(failures: Sequence[_Failure], root: _Failure, lines: Sequence[bytes]) -> _Failure | None:
    """Return a rank that was killed; torchrun's times have whole seconds, so that another may stand there as first."""
    forced = {int(match[1]) for line in lines if (match := _FORCED.search(line[: log_tail.LINE_BYTES]))}
    hard = [one for one in failures if -one.code in _HARD and one.pid not in forced and one.time == root.time]
    return root if root in hard else next(iter(hard), None)


def _raised(failures: Sequence[_Failure], root: _Failure, told: dict[int, bytes]) -> _Failure:
    """Return the rank whose exception is more than a lost connection to another one; else the one that failed first."""
    for one in (root, *failures):
        if one.rank in told and not log_end.is_lost_connection(told[one.rank]):
            return one
    return root


def _banner(lines: Sequence[bytes]) -> list[_Failure]:
    """Return the ranks of torchrun's banners, in their order; of several nodes each has one of its own."""
    found, fields, is_root = [], dict[bytes, bytes](), False
    for line in lines:
        line = log_end.without_ranks(line[: log_tail.LINE_BYTES].rstrip())
        if _ROOT.fullmatch(line):
            is_root = True
        elif _BEGINS.fullmatch(line):
            fields = {}
        elif match := _FIELD.fullmatch(line):
            fields[match[1]] = match[2]
            if match[1] == b"exitcode":
                found += _failure(fields, is_root=is_root)
                is_root = False
    return found


def _failure(fields: dict[bytes, bytes], *, is_root: bool) -> list[_Failure]:
    rank, code = _RANK.fullmatch(fields.get(b"rank", b"")), _CODE.fullmatch(fields[b"exitcode"])
    if rank is None or code is None:
        return []
    return [_Failure(int(rank[1]), int(rank[2]), int(code[1]), int(code[2]), fields.get(b"time", b""), is_root)]


def _errors_by_rank(lines: Sequence[bytes], failures: Sequence[_Failure]) -> dict[int, bytes]:
    """Return each rank's last exception of its own, of those whose lines say which rank they are from."""
    by_local = {one.local: one.rank for one in failures}
    own: dict[int, list[bytes]] = {}
    for line in lines:
        if match := _OF_RANK.match(line):
            number = int(match[2])
            rank = number if match[1] == b"rank" else by_local.get(number, number)
            own.setdefault(rank, []).append(line[match.end() :].rstrip())
    return {rank: its[found[0]] for rank, its in own.items() if (found := log_end.last_error_in(its))}
