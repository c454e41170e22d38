"""Whether the checkpoints that a run left without a manifest may be attested by a command that goes on from it.

The run's sidecar attests a checkpoint that lay still for some seconds; one that was younger when everything was killed
has no manifest. Reads; writes nothing. Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base import processes
from ..base.files import UnreadableFile
from ..checkpoint import catalog, manifest
from ..checkpoint.form import Form
from . import own_runs, status, trust
from .run_folder import Run, open_run

# `paths.checkpoints` may be a folder in a folder.
MOST_LEVELS = 4


def may_be_attested(run: Run) -> bool:
    """Return whether a run left a checkpoint that may be attested now: it is dead, and the folder is the caller's.

    Cheap where its newest checkpoint has a manifest; else it walks through /proc for what the trainer left.
    """
    if not run.is_ours or not _newest_waits(run.paths.checkpoints, run.form):
        return False
    if own_runs.why_run_is_not_own(run.paths) is not None or not trust.standing(run).is_callers:
        return False
    is_dead = status.look(run, status.read_state(run), is_thorough=True).trainer == processes.DEAD
    return is_dead


def may_be_attested_in(folder: Path) -> bool:
    """Return the same of the run that a folder of checkpoints belongs to; False for one that lies in no run."""
    real = Path(os.path.realpath(folder))
    for run_dir in list(real.parents)[:MOST_LEVELS]:
        if os.path.lexists(run_dir / "run.json"):
            run = open_run(run_dir)
            return Path(os.path.realpath(run.paths.checkpoints)) == real and may_be_attested(run)
    return False


def _newest_waits(folder: Path, form: Form) -> bool:
    """Return whether the newest checkpoint of a folder has no manifest of what it holds now."""
    names = catalog.names_in(folder)
    steps, _ = catalog.sorted_names(folder, names, form)
    if not steps:
        return False
    newest = folder / steps[0][1]
    if newest.name not in catalog.with_manifest(folder, names):
        return True
    try:
        known = manifest.read(newest)
    except UnreadableFile as error:
        return manifest.is_torn(error)
    return known.writer == manifest.SIDECAR and manifest.is_older(newest, [one.name for one in known.files])
