"""Whether the kernel has killed for want of memory: the `oom_kill` counter of this process's memory cgroup.

It counts the killed processes that belonged to the cgroup, whether its own limit or the whole machine's memory ran out.
Reads /proc/self/cgroup and the counter, with v2 and v1 cgroups alike; writes nothing.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst. Try it: `cat /sys/fs/cgroup/memory.events`
"""

from __future__ import annotations

from pathlib import Path

_LISTING = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_MAX_BYTES = 1 << 16
# `local` leaves out the cgroups below, where others may live.
_V2_FILES, _V1_FILES = ("memory.events.local", "memory.events"), ("memory.oom_control",)


def counter(listing: Path = _LISTING, mount: Path = _MOUNT) -> Path | None:
    """Return the file with the counter of this process's cgroup, or of the nearest one above that counts memory.

    In a container the listing may hold the host's path, of which the mount has only the end: then its root is ours.

    Returns:
        None where nothing counts (no memory controller, no /sys, a kernel before 4.13).
    """
    places = dict(_hierarchies(listing))
    root, inside, names = mount, places.get(""), _V2_FILES
    if "memory" in places:
        root, inside, names = mount / "memory", places["memory"], _V1_FILES
    parts = [part for part in (inside or "").split("/") if part]
    if inside is None or ".." in parts:  # it lies outside of what this namespace shows
        return None
    folders = (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    files = (folder / name for folder in folders for name in names)
    return next((file for file in files if kills(file) is not None), None)


def kills(file: Path | None) -> int | None:
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
