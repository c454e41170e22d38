"""Questions to other programs that run beside our own work, with a limit on time and on what is kept of an answer."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence

from . import file_identity
from .imports import NamedTuple

_CHUNK = 1 << 18
# Before a command: what it writes to stderr is part of its answer, and so is what it says where it fails.
WITH_ERRORS = ("/bin/sh", "-c", '"$@" 2>&1 || :', "sh")


class Question(NamedTuple):
    """A program under way: its pid and the pipe that it answers into."""

    pid: int
    pipe: int


class Answer(NamedTuple):
    """What a program wrote to stdout.

    Args:
        kept: its beginning, as much as was asked for; b'' where it failed or took too long.
        size: of the whole, in bytes.
        sha256: of the whole; None where there is no answer.
    """

    kept: bytes = b""
    size: int = 0
    sha256: str | None = None


def start(argv: Sequence[str], environ: Mapping[str, str], stdin: bytes = b"") -> Question | None:
    """Start a program with stderr thrown away; None where it cannot be started.

    By posix_spawn, not by subprocess: a launch waits for this, and the import alone takes longer than the start.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    given = _file_of(stdin) if stdin else os.dup(null)
    actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    try:
        pid = os.posix_spawnp(argv[0], list(argv), dict(environ), file_actions=actions)
    except OSError:
        os.close(reader)
        return None
    finally:
        for descriptor in (writer, null, given):
            os.close(descriptor)
    return Question(pid, reader)


def _file_of(content: bytes) -> int:
    """Return a descriptor of a file in memory, at its beginning: a pipe would have to be fed."""
    descriptor = os.memfd_create("stdin")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def result(question: Question | None, limit_bytes: int, timeout_s: float) -> Answer:
    """Wait for an answer; a program that fails, is missing or takes longer than `timeout_s` seconds gives none."""
    if question is None:
        return Answer()
    hasher, kept, size = file_identity.hasher(), bytearray(), 0
    deadline, is_whole = time.monotonic() + timeout_s, False
    while select.select([question.pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(question.pipe, _CHUNK)
        if not chunk:
            is_whole = True
            break
        hasher.update(chunk)
        kept += chunk[: max(0, limit_bytes - size)]
        size += len(chunk)
    os.close(question.pipe)
    if not is_whole:
        os.kill(question.pid, signal.SIGKILL)
    _, code = os.waitpid(question.pid, 0)
    return Answer(bytes(kept), size, hasher.hexdigest()) if is_whole and code == 0 else Answer()
