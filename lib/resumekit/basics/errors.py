"""The errors that end a command, each with its exit code.

Every one of them carries one sentence for the person: what, which value, where it came from, what to do.
`report` turns it into that sentence on stderr, without a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from .terminal import plain, say

DONE = 0
FAILED = 1
USAGE = 2
NO_STABLE_CHECKPOINT = 3
INVALID = 4
NEEDS_ACCEPT = 5
REFUSED = 6
CHECKS_FAILED = 7
STOPPED_BY_RULE = 8
ENDED_EARLY = 9  # of the sidecar, to its launcher: a person has to be told; no command ends with it
TOOL_MISSING = 127


class KitError(Exception):
    """Something failed; the message is a whole sentence for the person at the keyboard.

    It may name what lies in another user's file, and a trainer prints it in a traceback: it is one printable line.
    """

    exit_code = FAILED

    def __str__(self) -> str:
        return plain(super().__str__())


class UsageError(KitError):
    """The command line is wrong."""

    exit_code = USAGE


class NoStableCheckpoint(KitError):
    """There is no checkpoint that may be resumed from."""

    exit_code = NO_STABLE_CHECKPOINT


class InvalidFile(KitError):
    """A config or another file that was read is not valid."""

    exit_code = INVALID


class DiskFull(InvalidFile):
    """There is no room for a run; that may pass by itself."""


class NeedsAccept(KitError):
    """The plan costs something that a person has to agree to."""

    exit_code = NEEDS_ACCEPT


class Refused(KitError):
    """The plan is refused, or another head is alive."""

    exit_code = REFUSED


class Busy(Refused):
    """Another process is at it just now; that may pass by itself."""


class ToolMissing(KitError):
    """A program or package that is needed is not there."""

    exit_code = TOOL_MISSING


def report(main: Callable[[], int], prog: str) -> int:
    """Run `main` and turn a KitError into one line on stderr and its exit code.

    Args:
        main: the command; returns an exit code.
        prog: the name that the person typed, put before the sentence.

    Returns:
        The exit code of the process.
    """
    try:
        return main()
    except KitError as error:
        say(prog, str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`runs.sh | head`): nothing more to say, and no flush at exit that would fail again.
        sys.stdout = None
        return DONE
    except KeyboardInterrupt:
        return 130
