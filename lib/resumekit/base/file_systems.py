"""Of which type the file system is that a path lies on, and whether that is a network's.

Reads /proc/self/mountinfo; asks no server, which may not answer.
Try it: `cut -d' ' -f5- /proc/self/mountinfo`
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset((
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "panfs",
    "wekafs", "pvfs2", "afs", "9p",
))  # fmt: skip
# Of FUSE the type has the program's name behind it. Local ones: bindfs, gocryptfs, mergerfs, ntfs-3g, overlayfs.
_NETWORK_FUSE = frozenset((
    "sshfs", "glusterfs", "ceph", "ceph-fuse", "beegfs", "s3fs", "gcsfuse", "juicefs", "JuiceFS", "rclone", "davfs2",
    "goofys", "mount-s3", "mfs",
))  # fmt: skip


def network_type(path: Path) -> str | None:
    """Return the type of the network's file system that a path lies on; None where it is local, or cannot be told."""
    try:
        found = type_in(_MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"), os.path.realpath(path))
    except OSError:
        return None
    base, _, program = (found or "").partition(".")
    return found if base in _NETWORK or (base == "fuse" and program in _NETWORK_FUSE) else None


def type_in(mounts: str, path: str) -> str | None:
    """Return the type of the file system that a path lies on, by the lines of /proc/self/mountinfo.

    Args:
        path: absolute, without links.
    """
    best, found = -1, None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, place = before.split(" "), after.partition(" ")[0]
        if len(fields) < 5 or not place:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]).rstrip("/")
        # Of two on one place the later one lies on top.
        if len(point) >= best and (path == point or path.startswith(f"{point}/")):
            best, found = len(point), place
    return found
