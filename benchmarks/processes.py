"""Starts a command as a person would, waits for it and all it leaves behind, and says what it took.

CPU seconds are those of the process and of every descendant that was waited for, as the kernel counts them.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import Sample

READ_BYTES = 1 << 16
# Of what a failed command said.
TAIL_BYTES = 4000


class BenchmarkError(Exception):
    """A measured command did not do what is measured; the message is for a person."""


@dataclass(frozen=True)
class Seen:
    """What came out on the terminal of a command: how many lines, and its last bytes."""

    lines: int
    tail: bytes


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment of every measured command: what a shell has, and nothing of a run or of the caller's."""
    names = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    # The kit is measured with the Python that runs this, as its peers are.
    return kept | {"PYTHON": sys.executable} | more


def timed(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], codes: Sequence[int] = (0,)) -> Sample:
    """Run a command with its output in a file and return what it took, from the start to its exit.

    Raises:
        BenchmarkError: it ended with another exit code than `codes`; the message has the end of its output.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(command), cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        ended, cpu_s, code = _waited(process)
        if code not in codes:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - TAIL_BYTES))
            _refuse(command, code, output.read())
    return Sample(ended - started, cpu_s)


def timed_on_terminal(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[Sample, Seen, float]:
    """Run a command on a terminal of its own whose screen is read as fast as it can.

    Returns:
        What it took until the command had exited and its last byte was read; what was on the screen; the monotonic
        time of that moment.

    Raises:
        BenchmarkError: it failed.
    """
    screen, terminal = pty.openpty()
    started = time.monotonic()
    process = subprocess.Popen(
        list(command), cwd=cwd, env=dict(env), stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    lines, tail = 0, b""
    while True:
        try:
            chunk = os.read(screen, READ_BYTES)
        except OSError:  # EIO: no process holds the terminal any more
            break
        if not chunk:
            break
        lines += chunk.count(b"\n")
        tail = (tail + chunk)[-TAIL_BYTES:]
    os.close(screen)
    _, cpu_s, code = _waited(process)
    if code:
        _refuse(command, code, tail)
    ended = time.monotonic()
    return Sample(ended - started, cpu_s), Seen(lines, tail), ended


def _waited(process: subprocess.Popen[bytes]) -> tuple[float, float, int]:
    """Return (monotonic time of the end, CPU seconds, exit code)."""
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.monotonic()
    process.returncode = os.waitstatus_to_exitcode(status)
    return ended, usage.ru_utime + usage.ru_stime, process.returncode


def _refuse(command: Sequence[str], code: int, said: bytes) -> None:
    shown = " ".join(command)
    raise BenchmarkError(f"exit code {code} of '{shown}', which said:\n{said.decode('utf-8', 'replace')}")
