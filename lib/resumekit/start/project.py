"""Whether a run belongs to another project: two projects may share a runs folder, and call their experiments alike.

A clone, a moved folder, a worktree and a container's mount of one repository are one project: they have the same
first commit. Reads run.json as it was read already; asks git in the caller's own folder alone, never in one that
a record names. Try it: `bin/run.sh EXP-01 --dry-run` where the newest run of EXP-01 is another project's
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base import git
from ..base.errors import KitError
from ..base.values import mapping, string
from ..run.run_folder import Run
from . import consent
from .request import Request


def another_project(run: Run, request: Request, experiment: str) -> str | None:
    """Return how a run is another project's, for a message; None where it is the caller's own.

    Args:
        run: its run.json may be another user's.
        experiment: what its words are compared for, where git does not say it.
    """
    root = run.record.get("root")
    if not isinstance(root, str) or "\0" in root or not os.path.isdir(root) or _is_same(root, request.root):
        return None  # it is gone, as after an `mv`, or seen from another container
    first = string(mapping(run.record.get("git")).get("first_commit"))
    here = None if first is None else git.first_commit(request.root)
    if first is not None and here is not None:
        if here == first:
            return None
        how = f"whose repository begins with commit {first[:12]}; '{request.root}' begins with {here[:12]}"
    elif _has_same_words(run, request, experiment):
        return None
    else:
        how = f"and would execute other words than the config of '{request.root}'"
    return f"was started in '{root}', {how}"


def _is_same(root: str, own: Path) -> bool:
    try:
        return os.path.samefile(root, own)
    except OSError:
        return False


def _has_same_words(run: Run, request: Request, experiment: str) -> bool:
    schema = request.config_file.schema
    try:
        own = consent.executed_words(request.resolved(experiment), schema)
    except KitError:
        return False
    return not consent.differing_words(consent.executed_words(run.config, schema), own)
