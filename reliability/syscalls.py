"""The calls by which a process touches one folder: recorded, counted, and made to fail one by one.

reliability/syscalls.c is compiled with the machine's C compiler and put under a Python with LD_PRELOAD, so that what
is seen is what the kernel gets, whatever library asks for it. That it sees everything is checked against strace.
Try it: `python -m reliability.campaign_saves --list`
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().with_name("syscalls.c")
# As in the enum of syscalls.c.
KILL, ERROR, ERROR_FROM_THERE, SHORT, SHORT_THEN_ERROR, DELAY = range(1, 7)
# What changes the folder, or makes a change durable.
CHANGING = ("open", "write", "fsync", "link", "rename", "unlink", "mkdir", "symlink", "truncate", "rmdir")
STRACED = (
    "openat,creat,write,pwrite64,writev,sendfile,copy_file_range,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,symlink,symlinkat,ftruncate,truncate,rmdir"
)


class Call(NamedTuple):
    """One call on the folder, as it ended.

    Args:
        name: open (for writing), openr, opendir, write, read, fsync, close, link, rename, unlink, mkdir, rmdir,
            symlink, truncate, stat, flock; or 'mark', then `path` is the word.
        pid, descriptor: who, and on which open file; -1 for none.
        path, to: absolute.
        result, error: what it returned, and errno.
        offset, data: where and what was written.
        flags: of an open.
    """

    name: str
    pid: int
    descriptor: int
    path: str
    to: str
    result: int
    error: int
    offset: int
    flags: int
    data: bytes


def why_not() -> str | None:
    """Return why calls can't be looked at on this machine, None where they can."""
    if not sys.platform.startswith("linux"):
        return "LD_PRELOAD as it is used here is Linux's"
    if not _compiler():
        return "there is no C compiler (cc, gcc or clang)"
    return None


def compiled() -> Path:
    """Compile the library, once for each state of its source; return it."""
    source = SOURCE.read_bytes()
    cache = Path(tempfile.gettempdir()) / f"resumekit-tests-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    library = cache / f"syscalls-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if os.stat(cache).st_uid != os.getuid():
        raise PermissionError(f"'{cache}' belongs to another user")
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = [_compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        os.replace(made, library)
    return library


def environment(**more: str) -> dict[str, str]:
    """Return an environment for a process whose calls can be looked at."""
    return {**os.environ, "LD_PRELOAD": str(compiled()), **more}


class Shim:
    """The library in this very process; it must have been started with `environment()`."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])

    def watch(self, folder: Path, log: Path | None = None) -> None:
        """Look at the calls below `folder` from now on, and record them to `log`."""
        self._library.faults_watch(os.fsencode(folder), os.fsencode(log) if log else None)

    def arm(self, call: str, at: int, what: int, value: int = 0) -> None:
        """Let the `at`-th call of that name from now on go wrong; `value` is an errno, or milliseconds."""
        self._library.faults_arm(call.encode(), ctypes.c_long(at), what, value)

    def disarm(self) -> bool:
        """Let everything work again and look away; return whether the armed call was reached."""
        was_reached = bool(self._library.faults_reached())
        self.arm("", 0, 0)
        self._library.faults_watch(b"", None)
        return was_reached

    def no_links(self, yes: bool) -> None:
        """Whether the file system has no hard links."""
        self._library.faults_no_links(int(yes))

    def mark(self, word: str) -> None:
        """Put a word into the record."""
        self._library.faults_mark(word.encode())


def read_log(path: Path) -> list[Call]:
    """Return the recorded calls, in the order in which they happened."""
    return list(_parsed(path.read_bytes())) if path.exists() else []


def _parsed(log: bytes) -> Iterator[Call]:
    at = 0
    while at < len(log):
        fields = []
        for _ in range(10):
            end = log.index(b"\0", at)
            fields.append(log[at:end])
            at = end + 1
        name, path, to = (os.fsdecode(fields[i]) for i in (0, 3, 4))
        pid, descriptor, result, error, offset, flags, size = (int(fields[i]) for i in (1, 2, 5, 6, 7, 8, 9))
        yield Call(name, pid, descriptor, path, to, result, error, offset, flags, log[at : at + size])
        at += size


_STRACE_LINE = re.compile(r"^(?:\d+ +)?(?P<name>[a-z0-9_]+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_STRACE_NAMES = {
    "openat": "open", "creat": "open", "pwrite64": "write", "writev": "write", "fdatasync": "fsync", "linkat": "link",
    "renameat": "rename", "renameat2": "rename", "unlinkat": "unlink", "mkdirat": "mkdir", "symlinkat": "symlink",
    "ftruncate": "truncate", "sendfile": "write",
}  # fmt: skip


def read_strace(path: Path, folder: Path, log: Path) -> list[tuple[str, str]]:
    """Return (name, first path) of the calls that change `folder`, out of `strace -f -y -s 0`'s output.

    Args:
        log: what the recorder wrote to; what came before it was opened is left out.
    """
    found = []
    has_begun = False
    unfinished: dict[str, str] = {}
    for raw in path.read_text(errors="surrogateescape").splitlines():
        pid, line = raw.split(" ", 1)[0], raw
        if line.endswith("<unfinished ...>"):
            unfinished[pid] = line[: -len("<unfinished ...>")].rstrip()
            continue
        if resumed := re.match(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$", line):
            line = unfinished.pop(resumed[1], "") + resumed[2]
        match = _STRACE_LINE.match(line)
        has_begun = has_begun or f'"{log}"' in line
        if not has_begun or match is None or str(folder) not in match["arguments"]:
            continue
        name, arguments = _STRACE_NAMES.get(match["name"], match["name"]), match["arguments"]
        if name == "open" and not re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", arguments):
            continue
        if name in CHANGING:
            where = re.search(re.escape(str(folder)) + r"[^\">]*", arguments)
            found.append((name, where[0] if where else ""))
    return found


def strace() -> str | None:
    """Return strace where it is there and may trace; None where not."""
    tool = shutil.which("strace")
    if tool and subprocess.run([tool, "-o", os.devnull, "true"], capture_output=True).returncode == 0:
        return tool
    return None


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
