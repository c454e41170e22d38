"""A checkpoint that a trainer loads by itself is executed by it: whose it is, and what is in it.

`torch.load` without weights_only unpickles, and a pickle runs what it names. A file that is another user's, or lies in
a run that is not the caller's word (a copy belongs to its copier), is taken without a question only if the kit's reader
finds plain data in it, as loading with weights_only=True would. Looks at one file and at the records of its run.
Source: docs/security.md, decision 0014.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..configuration import config
from ..proving.checkpoints import Candidate
from ..run_folder import trust
from ..run_folder.runs import Run, RunTable, run_around


def consents(candidate: Candidate | None, resolved: Mapping[str, Any], table: RunTable) -> tuple[str, ...]:
    """Return what a person must agree to before a trainer loads a checkpoint.

    Args:
        candidate: the chosen one, with what the kit's reader found in it; None for none.
        resolved: the new run's config: a trainer with the kit's helpers loads with weights_only=True.
        table: the runs among which it was looked for.
    """
    if candidate is None or config.get(dict(resolved), "trainer.loads_with_kit"):
        return ()
    inside = candidate.inside
    if inside is not None and not inside.unsafe:
        return ()
    try:
        whose = _whose(candidate, table)
    except OSError:  # gone since: the start says so when it opens it
        return ()
    if whose is None:
        return ()
    what = f"'{inside.unsafe[0]}'" if inside is not None else "what the kit cannot read"
    return (
        f"'{candidate.path}' {whose} and holds {what}, which is not plain data: this trainer "
        "loads by itself (trainer.loads_with_kit is false), and what loads it may run what it names",
    )


def _whose(candidate: Candidate, table: RunTable) -> str | None:
    """Return how a checkpoint is another user's, for a message; None where it is the caller's own word."""
    path = candidate.path
    others = sorted({os.lstat(path).st_uid, os.stat(path).st_uid} - {os.geteuid()})
    if others:
        return f"belongs to {trust.user_of(others[0])}"
    for run in _holders(candidate, table):
        if reason := trust.against_checkpoint(run, path):
            return f"lies in '{run.run_id}', which is not your own word ({reason}),"
    return None


def _holders(candidate: Candidate, table: RunTable) -> Iterator[Run]:
    """Yield each run that a checkpoint lies in: by where it was found, by its folder, and where a link leads to."""
    seen: set[str] = set()
    real = Path(os.path.realpath(candidate.path))
    for run in (table.get(candidate.run_id), run_around(table, candidate.path), run_around(table, real)):
        if run is None or str(run.paths.run_dir) in seen:
            continue
        # A run.json of another program makes no run of the folder; a folder in the runs folder is one without it.
        if run.is_ours or run.other_id is not None or table.get(run.run_id) is run:
            seen.add(str(run.paths.run_dir))
            yield run
