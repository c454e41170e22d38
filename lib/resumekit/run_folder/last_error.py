"""What a trainer died of, by the end of its log: the exception's own line, and whether trying again may heal it.

Not the ruler under torchrun's banner, nor the wrapper's complaint that its child has failed. Reads no more than
`log_tail` does.
Try it: `tail -n 40 runs/<run_id>/logs/output.log`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..basics.redaction import redact
from ..basics.terminal import plain
from . import log_tail
from .runs import Run

# The same comes again, as often as it is tried: what is wrong was typed or written that way.
ARGUMENTS, IMPORT, FILE, CONFIG, SYNTAX, PROGRAM = "arguments", "import", "file", "config", "syntax", "program"
# A device, a network, a disk: it may be otherwise the next time; and what the kit does not know.
MAY_HEAL, UNKNOWN = "may heal", "unknown"

# Of a log that goes on behind an exception, that was got over.
LINES = 80
MAX_WORDS = 300
_RANK = re.compile(rb"^(?:\[?(?:default|rank|worker)[_ ]?\d+\]?:?\s?)+", re.IGNORECASE)
_EXCEPTION = re.compile(rb"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Failure|Fault|Timeout))(?::(?:\s.*)?)?")
# What tells only that something below it has failed.
_WRAPPERS = frozenset({b"ChildFailedError", b"CalledProcessError", b"ProcessExitedException", b"ProcessRaisedException",
                       b"SystemExit"})  # fmt: skip
_TORCHRUN = b"ChildFailedError"
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


def of(run: Run, code: int) -> LastError | None:
    """Return what a run's trainer died of; None where its log does not say.

    Args:
        code: its exit code: 2 is argparse's, 126 and 127 are a shell's.
    """
    return in_lines(lines_of(run), code)


def lines_of(run: Run) -> list[bytes]:
    """Return the last LINES lines of a run's log that are not empty, without the ranks that some begin with."""
    return [_RANK.sub(b"", line.rstrip()) for line in log_tail.read(run)[0] if line.strip()][-LINES:]


def in_lines(lines: Sequence[bytes], code: int) -> LastError | None:
    """Return what the last lines of a log say; the same as `of`."""
    found = _exceptions(lines)
    causes = [(at, name) for at, name in found if name not in _WRAPPERS]
    if causes:
        # Of several ranks the first to fail is the cause; the others lose their connection to it.
        at, name = causes[0] if any(name == _TORCHRUN for _, name in found) else causes[-1]
        return LastError(shown(lines[at]), _kind(name, lines[at]))
    if code == 2 and (line := _last(lines, _ARGPARSE)):
        return LastError(shown(line), ARGUMENTS)
    if code in (1, 2, 126, 127) and (line := _last(lines[-3:], _NO_SCRIPT)):
        return LastError(shown(line), IMPORT if b"No module named" in line else FILE)
    hydra = next((at for at, line in enumerate(lines) if line.startswith(_HYDRA)), 0)
    return LastError(shown(lines[hydra - 1]), CONFIG) if hydra else None


def last_of(lines: Sequence[bytes]) -> tuple[int, bytes] | None:
    """Return (index, name) of the last exception that is more than a wrapper's complaint; None without one."""
    return next((one for one in reversed(_exceptions(lines)) if one[1] not in _WRAPPERS), None)


def ends_traceback(line: bytes) -> bool:
    """Whether a line is an exception's own, a wrapper's too."""
    return _whole(line) is not None


def _exceptions(lines: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Return (index, name without its module) of the lines that end a traceback."""
    return [(at, match[1].rpartition(b".")[2]) for at, line in enumerate(lines) if (match := _whole(line))]


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


def shown(line: bytes) -> str:
    """Return a line of a log as it may be told: printable, cut, without what looks like a secret."""
    return plain(redact(line)[0].decode("utf-8", "replace"))[:MAX_WORDS]
