"""A run that was to go on from another and could not even start its trainer: no memory for a process, a full disk.

Its parent is taken up once more, a bounded number of times. Reads the runs of one experiment; gives a claim back.
"""

from __future__ import annotations

import os

from ..basics import claims, processes
from ..run_folder import recovery
from ..run_folder.lineage import parse_run_name
from ..run_folder.runs import Run, RunTable


def origin(run: Run, table: RunTable) -> Run | None:
    """Return the run that a false start was to go on from; None where `run` is none."""
    return table.parent(run) if _is_one(run) else None


def give_back(parent: Run, run: Run, launcher: processes.Identity | None) -> bool:
    """Give back the claim that this launcher made for a false start; whether there was one."""
    claim = claims.continuation_of(parent.paths) or {}
    if launcher is None or claim.get("run_id") != run.run_id or claim.get("claimer") != launcher.as_fields():
        return False
    claims.release_continuation(parent.paths, run.run_id)
    return True


def count(parent: Run, table: RunTable) -> int:
    """Return how many runs were to go on from this one and could not start."""
    own = parse_run_name(parent.run_id)
    names = {name: parse_run_name(name) for name in table.names}
    mates = (name for name, parsed in names.items() if own and parsed and parsed.experiment == own.experiment)
    runs = filter(None, map(table.get, mates))
    return sum(run.record.get("parent_run_id") == parent.run_id and _is_one(run) for run in runs)


def _is_one(run: Run) -> bool:
    """Whether it has an end and never had a trainer; one whose launcher was killed before has no end."""
    return recovery.of(run) is not None and not run.has_started and os.path.lexists(run.paths.exit_json)
