"""Which file it is, and whether its bytes may have changed; SHA-256 of small texts, without OpenSSL."""

from __future__ import annotations

import os

from .imports import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class FileIdentity(NamedTuple):
    """Which file was seen, and in which state. Of two of them three questions are asked:

    - `a.file == b.file`: is it one file? Names do not count: a hard link is the same file, and so is a renamed one.
    - `a.version == b.version`: may its bytes be taken for the same? ctime is left out: a hard link that is made or
      removed (a new best, a pruned step) changes it and not one byte.
    - `a == b`: has nothing at all happened to it? A user who changes a file can set its mtime back, but not its ctime.

    Args:
        device, inode: of the file; no rename changes them.
        size: bytes.
        mtime_ns, ctime_ns: when its content, and when anything of it was changed last, in ns since the epoch.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def file(self) -> tuple[int, int]:
        """Return (device, inode): which file it is."""
        return self.device, self.inode

    @property
    def version(self) -> FileIdentity:
        """Return it without ctime (0): which file it is, and which content it has."""
        return self._replace(ctime_ns=0)

    @property
    def lasting(self) -> FileIdentity:
        """Return the version without the device (0): a network drive has another number after each mount."""
        return self._replace(device=0, ctime_ns=0)


def identity_of(seen: os.stat_result) -> FileIdentity:
    """Return the identity of a file that stat, lstat or fstat has seen."""
    return FileIdentity(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def identity_at(
    path: os.PathLike[str] | str, look: Callable[[os.PathLike[str] | str], os.stat_result] = os.stat
) -> FileIdentity | None:
    """Return the identity of the file that a path leads to; None where it leads to none that can be seen.

    Args:
        look: os.lstat for the path's own, of a link.
    """
    try:
        return identity_of(look(path))
    except (OSError, ValueError):
        return None


def file_at(
    path: os.PathLike[str] | str, look: Callable[[os.PathLike[str] | str], os.stat_result] = os.stat
) -> tuple[int, int] | None:
    """Return (device, inode) of what a path leads to, as `FileIdentity.file`; None as `identity_at`."""
    found = identity_at(path, look)
    return None if found is None else found.file


# SHA-256 of what is small, without hashlib: that loads OpenSSL, which costs every start of a run 3 ms.
#
# For whole files of any size take `hashlib`, which is several times as fast.

__all__ = ["hasher", "sha256"]

if TYPE_CHECKING:  # type checkers know no other
    from hashlib import sha256 as hasher
else:
    try:
        from _sha2 import sha256 as hasher  # Python 3.12 and newer
    except ImportError:
        try:
            from _sha256 import sha256 as hasher
        except ImportError:
            from hashlib import sha256 as hasher


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, as 64 hex digits."""
    return hasher(content).hexdigest()
