"""An `sbatch` that takes jobs and starts none, and the environment in which Slurm would start one.

What it was called with lies in `told`, one call a line; its ids count from 101. Where a file `full` holds a number, it
takes so many jobs and no more. Try it: `python -m pytest tests/test_submit.py`
"""

from __future__ import annotations

import os
from pathlib import Path

_SBATCH = """#!/bin/sh
echo "$*" >>"{folder}/told"
number=$(wc -l <"{folder}/told")
if [ -e "{folder}/full" ] && [ "$number" -gt "$(cat "{folder}/full")" ]; then
  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
  exit 1
fi
echo $((100 + number))
"""
_SCANCEL = """#!/bin/sh
echo "$*" >>"{folder}/cancelled"
"""


class FakeSbatch:
    """The scripts, in a folder of the test's own, which is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in (("sbatch", _SBATCH), ("scancel", _SCANCEL)):
            script = folder / "bin" / name
            script.write_text(text.replace("{folder}", str(folder)))
            script.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    @property
    def told(self) -> list[str]:
        """What it was called with."""
        return self._lines("told")

    @property
    def cancelled(self) -> list[str]:
        """The ids that scancel got."""
        return self._lines("cancelled")

    def takes(self, number: int) -> None:
        """Let it take so many jobs in all."""
        (self.folder / "full").write_text(str(number))

    @staticmethod
    def environment(job: str = "101", restarts: int = 0, task: int | None = None) -> dict[str, str]:
        """Return what Slurm sets for a start of a job."""
        return {
            "SLURM_JOB_ID": job, "SLURM_CLUSTER_NAME": "fake", "SLURM_RESTART_COUNT": str(restarts),
            **({"SLURM_ARRAY_TASK_ID": str(task)} if task is not None else {}),
        }  # fmt: skip

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []
