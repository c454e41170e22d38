"""Whether a run is the caller's own, by what lies there: its marker, its folder, its records.

In a shared runs folder another user may put a link, or a run of theirs, under any name. The watcher judges, stops
and takes up only what the caller made, and nothing of a run's files decides what is executed before this was
asked. Looks with lstat alone; what the records say is the affair of seals (`trust`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..base.paths import RunPaths
from . import live_marker

_KINDS = {stat.S_IFREG: "regular file", stat.S_IFDIR: "folder"}


def why_marked_run_is_not_own(paths: RunPaths) -> str | None:
    """Return why a run with a live marker is left alone; None where marker, folder and records are the caller's."""
    marker = live_marker.of(paths)
    folder = None
    if marker != paths.shared_marker:  # that folder is all users'
        folder = _why_not_own(marker.parent, stat.S_IFDIR, f"the folder '{marker.parent.name}' of its marker")
    return folder or _why_not_own(marker, stat.S_IFREG, "its marker") or why_run_is_not_own(paths)


def why_run_is_not_own(paths: RunPaths) -> str | None:
    """Return why a run is left alone; None where its folder and its records are the caller's, and no link.

    A record that is not there is no reason: who reads it says so.
    """
    if reason := _why_not_own(paths.run_dir, stat.S_IFDIR, "its folder"):
        return reason
    for record in (paths.run_json, paths.resolved_json, paths.config_copy, paths.journal):
        if os.path.lexists(record) and (reason := _why_not_own(record, stat.S_IFREG, f"its {record.name}")):
            return reason
    return None


def why_link_is_not_own(paths: RunPaths) -> str | None:
    """Return why a run that a person names is left alone all the same: its folder lies elsewhere."""
    return "its folder is a link" if os.path.islink(paths.run_dir) else None


def _why_not_own(path: Path, kind: int, what: str) -> str | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None  # its folder or marker is gone: what the next look sees
    if stat.S_ISLNK(found.st_mode):
        return f"{what} is a link"
    if stat.S_IFMT(found.st_mode) != kind:
        return f"{what} is no {_KINDS[kind]}"
    if found.st_uid != os.geteuid():
        return f"{what} belongs to another user (uid {found.st_uid})"
    return None
