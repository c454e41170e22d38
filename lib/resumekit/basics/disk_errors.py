"""Why a file could not be written: no space, no inodes, a quota, a limit; said with the figures where there are any."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# A save takes up to three of them at once.
FEW_INODES = 16


def cause(error: OSError, target: Path, need_bytes: int) -> str:
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
