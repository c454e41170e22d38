"""What /proc tells of a process beside its identity, whether the kernel has killed for want of memory, and how much
there is left.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .file_identity import file_at
from .imports import TYPE_CHECKING, Any
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


# Memory: how much is left, and whether the kernel has killed for want of it, by the `oom_kill` counter of this
# process's memory cgroup.
#
# It counts the killed processes that belonged to the cgroup, whether its own limit or the whole machine's memory
# ran out. Reads /proc/self/cgroup and the counter, with v2 and v1 cgroups alike; writes nothing. Source: Linux,
# Documentation/admin-guide/cgroup-v2.rst. Try it: `cat /sys/fs/cgroup/memory.events`

_LISTING = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_MAX_BYTES = 1 << 16
# `local` leaves out the cgroups below, where others may live.
_V2_FILES, _V1_FILES = ("memory.events.local", "memory.events"), ("memory.oom_control",)


def oom_kill_counter(listing: Path = _LISTING, mount: Path = _MOUNT) -> Path | None:
    """Return the file with the counter of this process's cgroup, or of the nearest one above that counts memory.

    In a container the listing may hold the host's path, of which the mount has only the end: then its root is ours.

    Returns:
        None where nothing counts (no memory controller, no /sys, a kernel before 4.13).
    """
    folders, is_v2 = _memory_folders(listing, mount)
    files = (folder / name for folder in folders for name in (_V2_FILES if is_v2 else _V1_FILES))
    return next((file for file in files if oom_kills(file) is not None), None)


def _memory_folders(listing: Path, mount: Path) -> tuple[list[Path], bool]:
    """Return the folders of this process's memory cgroup and of those above it, and whether they are v2's."""
    places = dict(_hierarchies(listing))
    is_v2 = "memory" not in places
    root, inside = (mount, places.get("")) if is_v2 else (mount / "memory", places["memory"])
    parts = [part for part in (inside or "").split("/") if part]
    if inside is None or ".." in parts:  # it lies outside of what this namespace shows
        return [], is_v2
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)], is_v2


def oom_kills(file: Path | None) -> int | None:
    """Return how many processes the kernel has killed there; None where the kernel does not count."""
    for line in _read(file) if file else ():
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.isdecimal():
            return int(number)
    return None


def available_bytes(listing: Path = _LISTING, mount: Path = _MOUNT, meminfo: Path = _MEMINFO) -> int | None:
    """Return how much memory this process may still take without swapping: what the machine has left, or the one of
    its cgroups that leaves least. What a cgroup holds of files that were not read lately counts as free.

    Returns:
        Bytes, 0 where a limit is passed already; None where nothing says.
    """
    folders, is_v2 = _memory_folders(listing, mount)
    names = ("memory.max", "memory.current") if is_v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    files = "inactive_file" if is_v2 else "total_inactive_file"
    found = [room * 1024 for room in _numbers(meminfo, "MemAvailable:")]
    for folder in folders:
        limits, used = (_numbers(folder / name) for name in names)
        if limits and used:
            found.append(limits[0] - used[0] + sum(_numbers(folder / "memory.stat", files)))
    return max(0, min(found)) if found else None


def _numbers(file: Path, name: str = "") -> list[int]:
    """Return the number of a file's first line, or of each line that begins with a name; none where there is none."""
    words = [line.split() for line in _read(file)]
    places = [line[1:2] for line in words if line[:1] == [name]] if name else [line[:1] for line in words[:1]]
    return [int(place[0]) for place in places if place and place[0].isdecimal()]


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
