"""What /proc tells of a process beside its identity, what ties a process to a run (environment, output, descent),
and whether the kernel has killed for want of memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from .file_identity import file_at, identity_of
from .imports import TYPE_CHECKING, Any, NamedTuple
from .terminal import first_few

if TYPE_CHECKING:
    from collections.abc import Iterable

# A share of one core: a training computes, a TensorBoard waits.
BUSY = 0.1
_SHOWN = 8
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# A shell that waits for a foreground child acts on INT only when that child has ended.
_SHELLS = frozenset({"ash", "bash", "busybox", "dash", "ksh", "ksh93", "mksh", "sh", "yash", "zsh"})

# What a wrapper in Python that hands on its child's returncode ends with: -15 & 255 and -2 & 255.
NEGATED_STOPS = {241: "TERM", 254: "INT"}
# Codes that may be those of a stop: 1 is a wrapper's, which says in words how its child has ended.
UNCLEAR_CODES = frozenset({1, *NEGATED_STOPS})


def end_of(status: int) -> dict[str, Any]:
    """Return how a process ended, by its wait status: its code (128 + n for signal n), its signal or None."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return {"code": 128 + number if number else os.waitstatus_to_exitcode(status), "signal": number}


def parent_of(pid: int) -> int | None:
    """Return the pid of a process's parent."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else None


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children; none where the kernel does not list them."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def is_suspended(pid: int) -> bool:
    """Whether a process does nothing until CONT (state T)."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] in (b"T", b"t")


def may_be_looked_at(pid: int) -> bool:
    """Whether a process's environment may be read: of one where it may not, what it carries is not known."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def arguments(pid: int) -> list[bytes]:
    """Return a process's command line; none where it may not be looked at."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[:-1]
    except OSError:
        return []


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds; 0 where that is not known."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S if fields else 0.0


def total_cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time of several processes together."""
    return sum(map(cpu_s, pids))


def shown(pids: Iterable[int]) -> str:
    """Return pids for a message, the first few of them: '4711, 4712 and 3 more'."""
    return first_few(map(str, pids), _SHOWN)


def written_bytes(pid: int) -> int | None:
    """Return how many bytes a process has written, to files and pipes; None where that is not known.

    Of a process that has ended, and that its parent has not yet taken in, too.
    """
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("wchar:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def is_shell(pid: int) -> bool:
    """Whether a process runs a shell, by the name of its program."""
    return os.path.basename(_link(pid, "exe") or "") in _SHELLS


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent to a process that blocks it and has not taken it yet."""
    return _has_bit(pid, ("SigPnd", "ShdPnd"), number)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; one without it dies of it, or ignores it."""
    return _has_bit(pid, ("SigCgt",), number)


def ignores(pid: int, number: int) -> bool:
    return _has_bit(pid, ("SigIgn",), number)


def reads_from(pid: int, others: list[int]) -> bool:
    """Whether a process's standard input is a pipe into which one of `others` writes its output (`python | tee`)."""
    pipe = _link(pid, "fd/0")
    if pipe is None or not pipe.startswith("pipe:"):
        return False
    return any(other != pid and pipe in (_link(other, "fd/1"), _link(other, "fd/2")) for other in others)


def _has_bit(pid: int, names: tuple[str, ...], number: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = [line.split()[1] for line in file if line.partition(":")[0] in names]
    except (OSError, IndexError):
        return False
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def stat_fields(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat behind the command's name, which may hold spaces and brackets."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return fields if len(fields) > 19 else None


def start_ticks(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since the boot, as text; None if there is no such process."""
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in (b"Z", b"X") else fields[19].decode()


def _link(pid: int, name: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return None


def lock_holders(path: str | os.PathLike[str]) -> list[int]:
    """Return the processes that can be seen from here to hold the lock of a file, by an inherited descriptor too.

    Reads every descriptor in /proc; the kernel says in `fdinfo` through which of them a lock is held.
    """
    lock, found = file_at(path), []
    if lock is None:
        return []
    for entry in os.listdir("/proc"):
        if entry.isascii() and entry.isdigit():
            with contextlib.suppress(OSError):
                if any(_holds(entry, number, lock) for number in os.listdir(f"/proc/{entry}/fd")):
                    found.append(int(entry))
    return found


def _holds(pid: str, number: str, lock: tuple[int, int]) -> bool:
    if file_at(f"/proc/{pid}/fd/{number}") != lock:
        return False
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
            return b"FLOCK" in file.read()
    except OSError:
        return False


# What a process's environment says of the run that it belongs to: its token, another run's, or none.
#
# The environment is the one that the process began with. Reads /proc/PID/environ; writes nothing. Try it: `tr '\0'
# '\n' < /proc/PID/environ | grep RESUMEKIT_`

TOKEN_VARIABLE = "RESUMEKIT_RUN_TOKEN"
# What a process that was started to outlive its training has without the token (`env -u RESUMEKIT_RUN_TOKEN`).
RUN_ID_VARIABLE = "RESUMEKIT_RUN_ID"

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


# What ties a process to a run though its environment does not: it writes the run's output, or descends from the
# run.
#
# A wrapper may start its trainer with an environment of its own (`subprocess.run(env=...)`, `env -i`, `runuser
# -l`), in a session of its own too. Such a process carries no token. It is the run's if its output is the run's
# log, or if its parent is the run's shim or a process of the run. Reads /proc; writes nothing.

if TYPE_CHECKING:
    from .processes import Identity


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


# Whether the kernel has killed for want of memory: the `oom_kill` counter of this process's memory cgroup.
#
# It counts the killed processes that belonged to the cgroup, whether its own limit or the whole machine's memory
# ran out. Reads /proc/self/cgroup and the counter, with v2 and v1 cgroups alike; writes nothing. Source: Linux,
# Documentation/admin-guide/cgroup-v2.rst. Try it: `cat /sys/fs/cgroup/memory.events`

_LISTING = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_MAX_BYTES = 1 << 16
# `local` leaves out the cgroups below, where others may live.
_V2_FILES, _V1_FILES = ("memory.events.local", "memory.events"), ("memory.oom_control",)


def oom_kill_counter(listing: Path = _LISTING, mount: Path = _MOUNT) -> Path | None:
    """Return the file with the counter of this process's cgroup, or of the nearest one above that counts memory.

    In a container the listing may hold the host's path, of which the mount has only the end: then its root is ours.

    Returns:
        None where nothing counts (no memory controller, no /sys, a kernel before 4.13).
    """
    places = dict(_hierarchies(listing))
    names: tuple[str, ...] = _V2_FILES
    root, inside = mount, places.get("")
    if "memory" in places:
        root, inside, names = mount / "memory", places["memory"], _V1_FILES
    parts = [part for part in (inside or "").split("/") if part]
    if inside is None or ".." in parts:  # it lies outside of what this namespace shows
        return None
    folders = (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    files = (folder / name for folder in folders for name in names)
    return next((file for file in files if oom_kills(file) is not None), None)


def oom_kills(file: Path | None) -> int | None:
    """Return how many processes the kernel has killed there; None where the kernel does not count."""
    for line in _read(file) if file else ():
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.isdecimal():
            return int(number)
    return None


def _hierarchies(listing: Path) -> list[tuple[str, str]]:
    """Return (controller, path) of each hierarchy; the controller of v2 is ''."""
    lines = (line.split(":", 2) for line in _read(listing))
    return [(name, line[2]) for line in lines if len(line) == 3 for name in line[1].split(",")]


def _read(file: Path) -> list[str]:
    try:
        with open(file, "rb") as opened:
            return opened.read(_MAX_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
