"""The errors that end a command, each with its exit code; and why a file could not be written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

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
# Of a launcher in a scheduler's job: the run is to go on in another job (EX_TEMPFAIL of sysexits.h).
TO_BE_CONTINUED = 75
TOOL_MISSING = 127


class KitError(Exception):
    """Something failed; the message is a whole sentence for the person at the keyboard.

    It may name what lies in another user's file, and a trainer prints it in a traceback: it is one printable line.
    `code` is a word for programs, which decide nothing by the sentence.
    """

    exit_code = FAILED
    code = "failed"

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

    code = "disk_full"


class KitIncomplete(InvalidFile):
    """A schema of the kit itself is missing or half there, as while another version is copied: that may pass."""

    code = "kit_incomplete"


class NeedsAccept(KitError):
    """The plan costs something that a person has to agree to."""

    exit_code = NEEDS_ACCEPT


class Refused(KitError):
    """The plan is refused, or another head is alive.

    Args:
        message: a whole sentence.
        code: a word for programs, where one of them asks why.
    """

    exit_code = REFUSED

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.code


class NothingToDo(KitError):
    """What was asked for is done or under way already: in a scheduler's job that is no failure."""

    exit_code = DONE
    code = "nothing_to_do"


class Busy(Refused):
    """Another process is at it just now; that may pass by itself."""

    code = "busy"


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


# Why a file could not be written: no space, no inodes, a quota, a limit; said with the figures where there are any.

# A save takes up to three of them at once.
FEW_INODES = 16


def disk_error_cause(error: OSError, target: Path, need_bytes: int) -> str:
    """Return why `target` could not be written, with what a person can do about it.

    Args:
        error: as it was raised.
        target: the file.
        need_bytes: how much it would have taken.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = need_bytes / 1e6
        quota = " (the quota is used up)" if error.errno == errno.EDQUOT else ""
        try:
            space = os.statvfs(target.parent)
        except OSError:
            return f"no space: need {need:,.1f} MB{quota}"
        have_bytes = space.f_bavail * space.f_frsize
        # What had been made of the save until then is removed by now: a few inodes are free again.
        few = not space.f_favail or (space.f_favail < FEW_INODES and have_bytes > need_bytes)
        if space.f_files and few and error.errno == errno.ENOSPC:
            return "no inodes left on that disk: remove some files"
        have = have_bytes / 1e6
        return f"no space: need {need:,.1f} MB, have {have:,.1f} MB{quota}"
    if error.errno == errno.EEXIST:
        return (
            f"'{target.name}' is there already, saved by another process or pinned by a branch, and is never "
            f"overwritten; give this run a folder of its own"
        )
    if error.errno == errno.EFBIG:
        return "file too large: a limit of this process (ulimit -f) or of the file system"
    return f"{error.strerror or error}"
