"""The user's crontab: one line of ours in it, known again by a mark at its end; every other byte stays as it is.

Reads and writes through crontab(1), which alone may touch the file.
Try it: `make install-cron`
"""

from __future__ import annotations

import os
import shlex
import subprocess

from ..basics.errors import KitError, ToolMissing, UsageError
from ..basics.terminal import plain
from .night import NightWatch

# Debian's cron takes no longer command.
MAX_COMMAND_BYTES = 990
# What the lab's Makefile puts before the names of our targets; resumekit.mk says it.
PREFIX = "RESUMEKIT_MAKE_PREFIX"
_NONE_YET = ("no crontab", "no such file")


def line_of(night: NightWatch) -> bytes:
    """Return the line, without its end: quoted for sh, and with cron's own % (a line break to it) escaped.

    Raises:
        UsageError: it would be longer than every cron takes.
    """
    words = [f"{name}={shlex.quote(value)}" for name, value in night.environment.items()]
    words += map(shlex.quote, night.command)
    # Nothing is redirected: the watcher opens its log itself, and what keeps it from that is for cron's mail.
    words.append(_mark(night))
    command = os.fsencode(" ".join(words).replace("%", "\\%"))
    if len(command) > MAX_COMMAND_BYTES:
        raise UsageError(
            f"the line for cron would have {len(command)} bytes, and not every cron takes more than "
            f"{MAX_COMMAND_BYTES}: move the kit or '{night.runs}' to a shorter path"
        )
    return b"* * * * * " + command


def with_line(crontab: bytes, night: NightWatch) -> bytes:
    """Return the crontab with the line of a watcher in it, once, where an older one of the same folder stood."""
    line, kept, is_in = line_of(night) + b"\n", [], False
    for one in _lines(crontab):
        if not _is_own(one, night):
            kept.append(one)
        elif not is_in:
            kept.append(line)
            is_in = True
    if not is_in:
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        kept.append(line)
    return b"".join(kept)


def own_lines(crontab: bytes, night: NightWatch) -> list[bytes]:
    """Return the lines of a watcher as they stand there, of an older kit or Python maybe."""
    return [line.rstrip(b"\n") for line in _lines(crontab) if _is_own(line, night)]


def without_line(crontab: bytes, night: NightWatch) -> bytes:
    """Return the crontab without the line of a watcher, however often it stands there."""
    return b"".join(line for line in _lines(crontab) if not _is_own(line, night))


def read() -> bytes:
    """Return the user's crontab; b'' if there is none yet.

    Raises:
        ToolMissing: there is no crontab(1).
        KitError: it cannot be read; to take that for an empty one would lose it.
    """
    done = _crontab("-l")
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 1 and any(words in said.lower() for words in _NONE_YET):
        return b""
    raise KitError(f"the crontab cannot be read: 'crontab -l' ended with code {done.returncode}: {plain(said[-300:])}")


def write(crontab: bytes) -> None:
    """Replace the user's crontab.

    Raises:
        KitError: crontab(1) did not take it; the old one stands.
    """
    done = _crontab("-", crontab)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise KitError(
            f"the crontab was not taken: 'crontab -' ended with code {done.returncode}: {plain(said[-300:])}"
        )


def _crontab(argument: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        # In English, so that "no crontab for you" can be told from a failure.
        return subprocess.run(
            ["crontab", argument], input=given, capture_output=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        instead = plain(f"{os.environ.get(PREFIX, '')}install-systemd")
        raise ToolMissing(f"there is no 'crontab' on this machine: install cron, or use 'make {instead}'") from None


def _lines(crontab: bytes) -> list[bytes]:
    """Split at line feeds alone; what else may be in a line is its owner's."""
    *whole, rest = crontab.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _mark(night: NightWatch) -> str:
    # Quoted, so that no folder's mark is the end of another's. A comment to sh.
    return f"# {shlex.quote(night.mark)}"


def _is_own(line: bytes, night: NightWatch) -> bool:
    return line.rstrip().endswith(os.fsencode(f" {_mark(night)}".replace("%", "\\%")))
