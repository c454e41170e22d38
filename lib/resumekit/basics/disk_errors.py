"""Why a file could not be written: no space, no inodes, a quota, a limit; said with the figures where there are any."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def cause(error: OSError, target: Path, need_bytes: int) -> str:
    """Return why `target` could not be written, with what a person can do about it.

    Args:
        error: as it was raised.
        target: the file.
        need_bytes: how much it would have taken.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = need_bytes / 1e6
        try:
            space = os.statvfs(target.parent)
        except OSError:
            return f"no space: need {need:,.1f} MB"
        if space.f_files and not space.f_favail:
            return "no inodes left on that disk: remove some files"
        have = space.f_bavail * space.f_frsize / 1e6
        quota = " (the quota is used up)" if error.errno == errno.EDQUOT else ""
        return f"no space: need {need:,.1f} MB, have {have:,.1f} MB{quota}"
    if error.errno == errno.EEXIST:
        return (
            f"'{target.name}' is there already, saved by another process or pinned by a branch, and is never "
            f"overwritten; give this run a folder of its own"
        )
    if error.errno == errno.EFBIG:
        return "file too large: a limit of this process (ulimit -f) or of the file system"
    return f"{error.strerror or error}"
