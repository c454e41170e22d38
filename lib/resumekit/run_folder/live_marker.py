"""The file in `runs/.live/` that says of a run that somebody has to look at it.

A launcher makes it, and it holds its own inode number: in a tree that was copied, restored or unpacked it is another
file, and the watcher starts nothing that it finds there. Reads and writes that one file.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..basics.files import UnreadableFile, fsync_directory, read_bounded, temp_path, write_all


def make(path: Path) -> None:
    """Make the marker; its folder is made if it is not there. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    temp = temp_path(path)
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, b"%d\n" % os.fstat(descriptor).st_ino)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temp, path)
        fsync_directory(path.parent)  # after a power cut nobody would look at a run without it
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def was_made_here(path: Path) -> bool:
    """Whether it is the very file that a launcher made."""
    try:
        return read_bounded(path, 64).strip() == b"%d" % os.lstat(path).st_ino
    except (UnreadableFile, OSError):
        return False
