"""What the end of a run's log tells: the error that ended the trainer, whether trying again may heal it, the words
of a stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..base.imports import Any, NamedTuple
from ..base.process_details import NEGATED_STOPS, UNCLEAR_CODES
from ..base.redaction import redact
from ..base.terminal import plain
from . import log_patterns, log_tail, run_end
from .log_tail import LINE_BYTES
from .run_folder import Run

# The same comes again, as often as it is tried: what is wrong was typed or written that way.
ARGUMENTS, IMPORT, FILE, CONFIG, SYNTAX, PROGRAM = "arguments", "import", "file", "config", "syntax", "program"
# A device, a network, a disk: it may be otherwise the next time; and what the kit does not know.
MAY_HEAL, UNKNOWN = "may heal", "unknown"

# Of a log that goes on behind an exception, that was got over.
LINES = 80
MAX_WORDS = 300
_RANK = re.compile(rb"^(?:\[?(?:default|rank|worker)[_ ]?\d+\]?:?\s?)+", re.IGNORECASE)
_EXCEPTION = re.compile(rb"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Failure|Fault|Timeout))(?::(?:\s.*)?)?")
# Behind a traceback an exception may be called anything: StopIteration, queue.Empty, RayTaskError(ValueError).
_TRACEBACK = b"Traceback (most recent call last):"
_ANY_NAME = re.compile(rb"([A-Za-z_][\w.]*)(?:\([\w.]+\))?(?::(?:\s.*)?)?")
# What tells only that something below it has failed.
_WRAPPERS = frozenset({b"ChildFailedError", b"CalledProcessError", b"ProcessExitedException", b"ProcessRaisedException",
                       b"SystemExit"})  # fmt: skip
_TORCHRUN = b"ChildFailedError"
# In torchrun's banner: how the first rank has ended that did.
_RANKS_END = re.compile(rb"\s*(?:exitcode\s*: .*|traceback\s*: Signal .*)")
# What says nothing of an end: a ruler, a progress bar.
_RULER = rb"(?:[\s!-/:-@\[-`{-~]|\xe2[\x94-\x96].)*"
_BAR = rb".*(?:\d%\s?\||\d+/\d+ \[|(?:it|s|batch(?:es)?|step)/(?:s|it)\]|(?:\xe2\x94\x81){3}).*"
_EMPTY_LINE = re.compile(_RULER + rb"|" + _BAR, re.DOTALL)
_ARGPARSE = re.compile(rb"\S.{0,200}?: error: \S.*|Error: (?:No such option|Got unexpected|Missing|Invalid value).*")
_NO_SCRIPT = re.compile(
    rb".*(?:can't open file '.*|: No such file or directory|: command not found|No module named .*)"
)
_NO_MODULE = re.compile(r"No module named '?([\w.]+)")
_HYDRA = b"Set the environment variable HYDRA_FULL_ERROR=1"
_HEALS = re.compile(
    rb"connect|timed? ?out|temporar|unavailable|cuda|cudnn|cublas|nccl|\bhip\b|gpu|out of memory|no space|quota|disk"
    rb"|too many|rate limit|refused|reset by peer|resolve|busy|stale|input/output|network|http|socket|port\b|lock",
    re.IGNORECASE,
)
# What a rank dies of because another one has.
_LOST = re.compile(rb"connection (?:was )?(?:closed|reset|aborted)|broken pipe|remote process exited", re.IGNORECASE)
_KINDS = {
    **dict.fromkeys((b"ModuleNotFoundError", b"ImportError"), IMPORT),
    **dict.fromkeys((b"FileNotFoundError", b"NotADirectoryError"), FILE),
    **dict.fromkeys((b"SyntaxError", b"IndentationError", b"TabError", b"NameError", b"UnboundLocalError"), SYNTAX),
    **dict.fromkeys((b"AttributeError", b"TypeError", b"KeyError", b"ValueError", b"AssertionError",
                     b"NotImplementedError", b"IndexError"), PROGRAM),
}  # fmt: skip
_CONFIG = re.compile(
    rb".*(?:Validation|Config\w*|Parser|Scanner|YAML|JSONDecode|TOMLDecode|Usage|Argument)(?:Error|Exception)"
)


class LastError(NamedTuple):
    """What a trainer died of.

    Args:
        line: the exception's line, printable, without what looks like a secret.
        kind: ARGUMENTS, IMPORT, FILE, CONFIG, SYNTAX (a name that does not exist, too), PROGRAM, MAY_HEAL or UNKNOWN.
    """

    line: str
    kind: str

    @property
    def module(self) -> str | None:
        """The module that is missing, where that is what it died of."""
        match = _NO_MODULE.search(self.line) if self.kind == IMPORT else None
        return match[1] if match else None


def last_error_of(run: Run, code: int) -> LastError | None:
    """Return what a run's trainer died of; None where its log does not say.

    Args:
        code: its exit code: 2 is argparse's, 126 and 127 are a shell's.
    """
    return error_in_lines(error_lines_of(run), code)


def error_words_of(run: Run, code: int | None) -> str:
    """Return what a run that has ended said last: what it died of, else its last line that is no bar and no ruler.

    Args:
        code: its exit code; None where it is not known.
    """
    if code is not None and (found := last_error_of(run, code)):
        return found.line
    lines = error_lines_of(run)
    if any(map(_is_banner, lines)):
        lines = [line for line in lines if _RANKS_END.fullmatch(line[: log_tail.LINE_BYTES])][-1:] or lines
    telling = (line for line in reversed(lines) if not _EMPTY_LINE.fullmatch(line[: log_tail.LINE_BYTES]))
    return shown_error(next(telling, b"").strip())


def error_lines_of(run: Run) -> list[bytes]:
    """Return the last LINES lines of a run's log that are not empty, without the ranks that some begin with.

    Of one that ends with torchrun's banner they are counted from there: it has eight lines for each rank.
    """
    lines = [_RANK.sub(b"", line.rstrip()) for line in log_tail.read(run)[0] if line.strip()]
    banners = (at for at in range(len(lines) - 1, -1, -1) if _is_banner(lines[at]))
    return lines[max(0, next(banners, len(lines)) - LINES) :]


def error_in_lines(lines: Sequence[bytes], code: int) -> LastError | None:
    """Return what the last lines of a log say; the same as `of`."""
    found = _exceptions(lines)
    causes = [(at, name) for at, name in found if name not in _WRAPPERS]
    if causes:
        # Of several ranks the first to fail is the cause; the others lose their connection to it.
        own = [cause for cause in causes if not is_lost_connection(lines[cause[0]])] or causes
        at, name = own[0] if any(name == _TORCHRUN for _, name in found) else causes[-1]
        return LastError(shown_error(lines[at]), _kind(name, lines[at]))
    if code == 2 and (line := _last(lines, _ARGPARSE)):
        return LastError(shown_error(line), ARGUMENTS)
    if code in (1, 2, 126, 127) and (line := _last(lines[-3:], _NO_SCRIPT)):
        return LastError(shown_error(line), IMPORT if b"No module named" in line else FILE)
    hydra = next((at for at, line in enumerate(lines) if line.startswith(_HYDRA)), 0)
    return LastError(shown_error(lines[hydra - 1]), CONFIG) if hydra else None


def last_error_in(lines: Sequence[bytes]) -> tuple[int, bytes] | None:
    """Return (index, name) of the last exception that is more than a wrapper's complaint; None without one."""
    return next((one for one in reversed(_exceptions(lines)) if one[1] not in _WRAPPERS), None)


def is_lost_connection(line: bytes) -> bool:
    """Whether an exception's line says that another process is gone."""
    return _LOST.search(line[: log_tail.LINE_BYTES]) is not None


def without_ranks(line: bytes) -> bytes:
    """Return a line without the ranks that it may begin with."""
    return _RANK.sub(b"", line)


def ends_traceback(line: bytes) -> bool:
    """Whether a line is an exception's own, a wrapper's too."""
    return _whole(line) is not None


def _exceptions(lines: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Return (index, name without its module) of the lines that end a traceback."""
    found, is_inside = [], False
    for at, line in enumerate(lines):
        match = _whole(line) or (_ANY_NAME.fullmatch(line[: log_tail.LINE_BYTES]) if is_inside else None)
        if match:
            found.append((at, _name(match)))
        is_inside = line.endswith(_TRACEBACK) or (is_inside and line.startswith(b" "))
    return found


def _is_banner(line: bytes) -> bool:
    match = _whole(line)
    return match is not None and _name(match) == _TORCHRUN


def _name(match: re.Match[bytes]) -> bytes:
    """Return an exception's name without its module."""
    return match[1].rpartition(b".")[2]


def _whole(line: bytes) -> re.Match[bytes] | None:
    """Match the line that ends a traceback: it begins with the exception's name, without any space before it."""
    return _EXCEPTION.fullmatch(line[: log_tail.LINE_BYTES])


def _last(lines: Sequence[bytes], pattern: re.Pattern[bytes]) -> bytes | None:
    return next((line for line in reversed(lines) if pattern.fullmatch(line[: log_tail.LINE_BYTES])), None)


def _kind(name: bytes, line: bytes) -> str:
    known = _KINDS.get(name) or (CONFIG if _CONFIG.fullmatch(name) else UNKNOWN)
    if known in (IMPORT, FILE, SYNTAX) or not _HEALS.search(line):
        return known
    return MAY_HEAL


def shown_error(line: bytes) -> str:
    """Return a line of a log as it may be told: printable, cut, without what looks like a secret."""
    return plain(redact(line)[0].decode("utf-8", "replace"))[:MAX_WORDS]


# How a training has ended, where its code does not say so: a stop, or an error, by the last words of its log.
#
# A wrapper hides how its trainer has ended: `subprocess.run(check=True)` and torchrun end with 1, a returncode of
# -15 that is handed on becomes 241, `python train.py | tee log` ends with 0. Writes nothing; exit.json has the
# answer for good, so that the state of a run never depends on its log. Try it: `tail -n 12
# runs/<run_id>/logs/output.log`

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
    rb"|Received (SIGTERM): 15\b"  # Lightning's own word, behind which it ends with code 0
)
_STOPS = {
    **dict.fromkeys((b"143", b"-15", b"241", b"SIGTERM"), "TERM"),
    **dict.fromkeys((b"130", b"-2", b"254", b"SIGINT"), "INT"),
}
_SIGNALS = {b"15": "TERM", b"2": "INT"}
_TRACEBACK_HEAD = b"Traceback (most recent call last):"
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


def judged_end(run: Run, end: dict[str, Any]) -> dict[str, Any]:
    """Return an end with what its code does not say: `by`, the stop that it ended on, or `error`, of code 0.

    Args:
        run: the run.
        end: in the words of exit.json; one whose code says it, or that names its stop, is returned as it is.
    """
    code = end["code"]
    if end.get("signal") is not None or run_end.stopped_by(end) or code not in (0, *UNCLEAR_CODES):
        return end
    lines = error_lines_of(run)
    if by := stop_words(lines, code):
        return {**end, "by": by}
    if code == 0 and (found := error_words(lines)) is not None and not steps_behind(run, lines[found + 1 :]):
        return {**end, "error": shown_error(lines[found])[:MAX_ERROR]}
    return end


def stop_words(lines: Sequence[bytes], code: int) -> str | None:
    """Return which stop a training ended on, 'INT' or 'TERM', by its last lines and its code; None for no stop.

    An error of the trainer's own at the end of the log is no stop, whatever the code.
    """
    own = last_error_in(lines)
    since = max(0, len(lines) - BEHIND, own[0] if own else 0)
    children = [match for line in lines[since:] if (match := _CHILD.search(line[-LINE_BYTES:]))]
    if children:
        return _stop_of(children[-1])
    if own and own[0] >= len(lines) - BEHIND:
        return "INT" if own[1] == _INTERRUPT else None
    return NEGATED_STOPS.get(code)


def error_words(lines: Sequence[bytes]) -> int | None:
    """Return which of a log's last lines says that its trainer died: an uncaught exception, or a shell's word of it."""
    for at in range(len(lines) - 1, -1, -1):
        line = lines[at][:LINE_BYTES]
        is_near = at >= len(lines) - BEHIND_AN_ERROR
        if _FATAL.fullmatch(line) and (is_near or _WITH_STACK.match(line)):
            return at
        if is_near and ends_traceback(line):
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
    begins = next((at for at in range(len(before) - 1, -1, -1) if before[at].startswith(_TRACEBACK_HEAD)), None)
    return begins is not None and not (begins and _NO_END.match(before[begins - 1]))


def steps_behind(run: Run, lines: Sequence[bytes]) -> bool:
    """Whether the trainer has told steps behind its words: then it has got over them."""
    return bool(log_patterns.found_steps(b"\n".join([*lines, b""]), run.step_patterns))
