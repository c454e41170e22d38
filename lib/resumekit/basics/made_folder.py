"""By what the folder that a launcher has made for its run is known again: its device, its inode and its records.

In a runs folder without the sticky bit another user can rename a run's folder and put an own one in its place. So the
launcher hands on what it made, and the processes that it starts use that folder or none. Looks with lstat alone.
"""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

from .errors import KitError


class Exchanged(KitError):
    """A run's name leads to another folder than the one that its launcher has made."""


class MadeFolder(namedtuple("MadeFolder", ["device", "inode", "records"], defaults=[""])):
    """A run's folder as its launcher made it. (Importing typing costs the shim 4 ms.)

    Args:
        device, inode: of the folder; no rename changes them.
        records: the digest of the records that the launcher wrote into it (`seals.digest`); '' where it wrote none yet.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.device}:{self.inode}:{self.records}"

    def is_at(self, found: os.stat_result) -> bool:
        """Whether a folder that was looked at is this one."""
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


def of(found: os.stat_result, records: str = "") -> MadeFolder:
    """Return by what a folder that was looked at is known."""
    return MadeFolder(found.st_dev, found.st_ino, records)


def from_text(text: str) -> MadeFolder | None:
    """Return what a launcher has handed on as text; None for '' (an older launcher hands on nothing)."""
    if not text:
        return None
    device, inode, records = text.split(":")
    return MadeFolder(int(device), int(inode), records)


def refuse_exchanged(run_dir: Path, made: MadeFolder | None) -> None:
    """Raise Exchanged where a run's name leads to another folder than its launcher made; OSError where to none."""
    if made is not None and not made.is_at(os.lstat(run_dir)):
        raise exchanged(run_dir)


def exchanged(run_dir: Path) -> Exchanged:
    """Return the error of a run whose name leads to another folder."""
    return Exchanged(f"'{run_dir}' is not the folder that was made for this run: another user has exchanged it")
