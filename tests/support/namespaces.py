"""A disk of one's own, as a plain user: a child in a user and mount namespace, with a small tmpfs.

Nothing is mounted where another process sees it, and it is gone with the child.
"""

from __future__ import annotations

import ctypes
import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_PRIVATE, _RECURSIVE, _READ_ONLY, _REMOUNT = 1 << 18, 1 << 14, 1, 1 << 5


def why_not() -> str | None:
    """Return why there can be no such namespace here, None where there can."""
    return None if _exit_code(lambda: None) == 0 else "no user and mount namespaces for a plain user here"


def on_small_disk(folder: Path, options: str, work: Callable[[], None]) -> None:
    """Run `work` in a child for which `folder` is an empty tmpfs with these options ('size=64k'); fails if it fails."""

    def mounted() -> None:
        _mount(b"none", folder, b"tmpfs", 0, options.encode())
        work()

    assert _exit_code(mounted, shows_why=True) == 0


def fill(filler: Path) -> None:
    """Write a file until the disk that it lies on has no room left."""
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, bytes(4096)):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    finally:
        os.close(descriptor)


def remount(folder: Path, *, read_only: bool) -> None:
    """Make the small disk read-only, or writable again."""
    _mount(b"none", folder, b"tmpfs", _REMOUNT | (_READ_ONLY if read_only else 0), None)


def _exit_code(work: Callable[[], None], *, shows_why: bool = False) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _enter()
            work()
            code = 0
        except BaseException:
            if shows_why:
                traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _enter() -> None:
    user, group = os.getuid(), os.getgid()
    _checked(_libc.unshare(_NEW_USER | _NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(b"none", Path("/"), None, _PRIVATE | _RECURSIVE, None)


def _mount(source: bytes, target: Path, kind: bytes | None, flags: int, options: bytes | None) -> None:
    _checked(_libc.mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), options))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)
