"""Has a person told, by `notify.command`, of a run that goes on: a process of its own does it, and is not waited for.

It asks whether the run is the caller's, as a recovery does, before it starts anything that the run's files name.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

from ..basics.paths import LIB
from ..run_folder.runs import Run


def give(run: Run, kind: str, message: str) -> None:
    """Start what tells it.

    Args:
        run: the run.
        kind: of the warning, as in its journal.
        message: one sentence.
    """
    if not run.setting("notify", "command"):
        return
    command = [sys.executable, "-I", str(LIB / "resumekit_cli.py"), "tell", str(run.paths.run_dir), kind, message]
    with contextlib.suppress(OSError):
        subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
