"""What ties a process to a run: the token in its environment, its output, its descent.

The environment is the one that the process began with. A wrapper may start its trainer with another one
(`subprocess.run(env=...)`, `env -i`, `runuser -l`), in a session of its own too. Such a process carries no token. It is
the run's if its output is the run's log, or if its parent is the run's shim or a process of the run. Reads /proc;
writes nothing. Try it: `tr '\\0' '\\n' < /proc/PID/environ | grep RESUMEKIT_`
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Collection, Mapping

from .file_identity import file_at, identity_of
from .imports import TYPE_CHECKING, NamedTuple
from .process_details import lock_holders

if TYPE_CHECKING:
    from .paths import RunPaths
    from .processes import Identity

TOKEN_VARIABLE = "RESUMEKIT_RUN_TOKEN"
# What a process that was started to outlive its training has without the token (`env -u RESUMEKIT_RUN_TOKEN`).
RUN_ID_VARIABLE = "RESUMEKIT_RUN_ID"
RUN_DIR_VARIABLE = "RESUMEKIT_RUN_DIR"

# Whose output a live trainer writes: this folder's, another folder's (this one is a copy), or it cannot be told.
OURS, COPY, UNSEEN = "ours", "copy", "unseen"

ALIVE = "alive"
DEAD = "dead"
UNKNOWN = "unknown"  # another host, or a process we may not look at: never taken for dead

# How long an environment that is empty is read again, once a millisecond.
EXEC_S = 0.02


def read_environment(pid: int) -> list[bytes]:
    """Return the entries of a process's environment; [b""] of an empty one.

    Raises:
        OSError: there is no such process, or it may not be looked at.
    """
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read().split(b"\0")


def environment_entry(token: str) -> bytes:
    """Return what the environment of a process of the run with this token has in it."""
    return f"{TOKEN_VARIABLE}={token}".encode()


def token_carried(pid: int, token: str, until: float | None = None) -> str:
    """Say whether a process carries this run token: ALIVE; DEAD with another one; UNKNOWN where it carries none.

    None at all may be a trainer that has written its title over its environment (setproctitle): it may not be signalled
    for that alone, but it is not dead either.

    Args:
        pid: the process.
        token: the run token.
        until: on the monotonic clock, how long an empty environment is read again; EXEC_S from now without.
    """
    environment: list[bytes] = []
    until = time.monotonic() + EXEC_S if until is None else until
    while True:
        try:
            environment = read_environment(pid)
        except (FileNotFoundError, ProcessLookupError):
            return DEAD
        except OSError:
            return UNKNOWN
        if environment != [b""] or time.monotonic() >= until:
            break
        time.sleep(0.001)  # in the middle of its exec a process has none
    if environment_entry(token) in environment:
        return ALIVE
    return DEAD if any(one.startswith(TOKEN_VARIABLE.encode() + b"=") for one in environment) else UNKNOWN


def environment_variable(pid: int, name: str) -> str | None:
    """Return one variable of a process's environment, as it was when it began; None where it has none or is hidden."""
    with contextlib.suppress(OSError):
        begins = name.encode() + b"="
        for one in read_environment(pid):
            if one.startswith(begins):
                return os.fsdecode(one[len(begins) :])
    return None


def may_be_looked_at(pid: int) -> bool:
    """Whether a process's environment may be read: of one where it may not, what it carries is not known."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


class Ties(NamedTuple):
    """What ties a process without any token to its run: its output, or its parent.

    Args:
        output_log: the path of the run's log; a process of the training writes into it with descriptor 1 or 2.
        shim: the identity of the run's shim, the subreaper of the training; None where it is not known.
    """

    output_log: str
    shim: Identity | None = None


def log_of(path: str) -> os.stat_result | None:
    """Return the file under a log's name, where it can be no other process's output: no link, no second name."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    # With a second name it may be another process's output, which a journal's writer has linked here.
    return found if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else None


def writes_into(pid: int, log: os.stat_result | None) -> bool:
    """Whether a process's standard output or error is this very file, and open for writing."""
    return log is not None and any(_is_open_as(pid, number, identity_of(log).file) for number in (1, 2))


def tied(
    known: Collection[int], others: Collection[int], parents: Mapping[int, int], token: str, log: os.stat_result | None
) -> set[int]:
    """Return which of some processes belong to a run without carrying its token.

    None does that carries the token of another run, or was started to outlive the training (the run's id without its
    token), and nothing does that only such a process has started. What has started a process of another run (the
    launcher of a run within this one) is tied by its output alone.

    Args:
        known: the pids of the run's shim and of the processes that are known to be the training's.
        others: the pids in question.
        parents: pid -> its parent's pid, of `others` at least.
        token: the run token.
        log: the run's log; None where it ties nothing.
    """
    until = time.monotonic() + EXEC_S
    found = {pid for pid in others if writes_into(pid, log) and _is_free(pid, token, until)}
    children: dict[int, list[int]] = {}
    for pid in others:
        children.setdefault(parents[pid], []).append(pid)
    queue = [*known, *found]
    for parent in queue:  # grows while it is walked
        for pid in children.get(parent, ()):
            starts_another = any(token_carried(one, token, until) == DEAD for one in children.get(pid, ()))
            if pid not in found and not starts_another and _is_free(pid, token, until):
                found.add(pid)
                queue.append(pid)
    return found


def _is_free(pid: int, token: str, until: float) -> bool:
    """Whether a process says of no other run, and not of this one either, that it belongs there."""
    carried = token_carried(pid, token, until)
    return carried == UNKNOWN and environment_variable(pid, RUN_ID_VARIABLE) is None


def _is_open_as(pid: int, number: int, file: tuple[int, int]) -> bool:
    if file_at(f"/proc/{pid}/fd/{number}") != file:
        return False
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as info:
            flags = next((line.split()[1] for line in info if line.startswith("flags:")), "1")
    except OSError:
        return False
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def whose_output(pid: int, run: RunPaths) -> str:
    """Say whether a live process writes into this very folder (OURS), into another one (COPY), or UNSEEN.

    Args:
        pid: of the process that is taken for one of the run.
        run: the files of that folder.
    """
    own = file_at(run.output_log, _look_at_only_name)  # a link would let a folder pass for another one
    for number in (1, 2):
        if own is not None and own == file_at(f"/proc/{pid}/fd/{number}"):
            return OURS
    named = environment_variable(pid, RUN_DIR_VARIABLE)
    if not named:
        return UNSEEN
    theirs = f"/proc/{pid}/root{named}"
    folder = file_at(theirs)
    if folder is None:
        return UNSEEN
    if folder == file_at(run.run_dir):
        return OURS
    # One folder under two mounts may have two identities, but what is written shows in both.
    log = f"{theirs}/{os.path.relpath(run.output_log, run.run_dir)}"
    return COPY if _written(log) not in (None, _written(str(run.output_log))) else UNSEEN


def _look_at_only_name(path: os.PathLike[str] | str) -> os.stat_result:
    """Return the lstat of a file that has no second name; OSError for one that has: it may be another run's log."""
    found = os.lstat(path)
    if found.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has another name", os.fspath(path))
    return found


def _written(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def are_helpers(run: RunPaths, run_id: str | None) -> bool:
    """Whether all that is seen to hold the lock of a run's session was started to outlive its trainer.

    Such a process has the run's id, and not its token. What a wrapper in Bash starts inherits the lock;
    `env -u RESUMEKIT_RUN_TOKEN` says that it is no part of the run.
    """
    holders = lock_holders(run.session_lock)
    return bool(holders) and all(
        environment_variable(pid, RUN_ID_VARIABLE) == run_id and environment_variable(pid, TOKEN_VARIABLE) is None
        for pid in holders
    )
