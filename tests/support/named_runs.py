"""Run folders that have a name and a parent, by their record and journal alone."""

from __future__ import annotations

from pathlib import Path

from resumekit.base.files import to_json
from resumekit.base.paths import RunPaths
from resumekit.run.run_folder import Run
from resumekit.run.run_table import RunTable


def made(runs: Path, run_id: str, name: str | None, *, parent: str | None = None, step: int | None = None) -> Run:
    """Make the folder of a run that has started, by its record and its journal alone."""
    own = RunPaths(runs / run_id)
    own.checkpoints.mkdir(parents=True)
    number = len(list(runs.iterdir()))
    fields = {"run_id": run_id, "experiment": "T-1", "name": name, "parent_run_id": parent, "parent_step": step,
              "created_at": f"2026-11-29T10:00:{number:02d}.000000Z"}  # fmt: skip
    own.run_json.write_bytes(to_json(fields))
    own.journal.write_text('\n{"event":"launched"}\n')
    return RunTable(runs).get(run_id)
