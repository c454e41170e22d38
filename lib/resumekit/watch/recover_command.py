"""The verb `recover`, for launchers: is the run that has just ended taken up, and how; and two more.

    python -I lib/resumekit_cli.py recover RUN_DIR --answer-to=PID [--attended]
    python -I lib/resumekit_cli.py take-up RUN_DIR
    python -I lib/resumekit_cli.py escalate RUN_DIR REASON

`recover` answers the launcher PID as `start/launcher_answer` says; `--launcher-pid=PID` is how one of version
0.1.0 asks. `take-up` becomes the launcher of a run that has none, `escalate` tells a person of one that the watcher can
do nothing about.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import DONE, Refused, ToolMissing
from ..base.ownership import state_folder
from ..base.paths import LIB, RunPaths
from ..base.terminal import plain
from ..run import own_runs, trust
from ..run.run_folder import Run
from ..run.run_table import RunTable
from ..start import launcher_answer
from . import escalation, recovering
from .acting import environment_of


def main(arguments: Sequence[str]) -> int:
    """Decide about one run; returns 0."""
    option, _, launcher_pid = arguments[1].partition("=")
    outcome = recovering.recover(Path(arguments[0]), int(launcher_pid), is_attended="--attended" in arguments[2:])
    launcher_answer.write(outcome.ready, outcome.wait_s, by_position=option == "--launcher-pid")
    return DONE


def take_up(run_dir: Path) -> int:
    """Become the launcher of a run that has lost its own, in the environment that the run has recorded.

    Does not return where it does.

    Raises:
        Refused: the run is not the caller's.
        ToolMissing: there is no Bash.
    """
    environment = environment_of_callers_run(run_dir)
    bash = shutil.which("bash")  # the caller's, never the one in a recorded PATH
    if bash is None:
        raise ToolMissing("there is no 'bash' in PATH")
    os.execve(bash, [bash, str(LIB / "launcher.sh"), "recover", str(run_dir)], environment)


def escalate(run_dir: Path, reason: str) -> int:
    """Tell a person of a run that the watcher can do nothing about; returns 0.

    Raises:
        Refused: the run is not the caller's.
    """
    escalation.escalate(_callers_run(run_dir), RunTable(run_dir.parent), reason)
    return DONE


def _callers_run(run_dir: Path) -> Run:
    """Return a run with its sealed `notify.command`, or none; that one runs in the environment of the run's start."""
    environment = environment_of_callers_run(run_dir)
    os.environ.clear()
    os.environ.update(environment)
    return trust.examine(run_dir).run


def environment_of_callers_run(run_dir: Path) -> dict[str, str]:
    """Return the recorded environment of a run that is the caller's own.

    PATH, PYTHON and LD_PRELOAD of a record decide what is executed, so nothing may be started in it before this. Of a
    record that is not the caller's word nothing is taken: what is asked next says why the run is left alone.
    """
    if reason := own_runs.why_marked_run_is_not_own(RunPaths(run_dir)):
        raise Refused(f"'{plain(run_dir.name)}' is left alone: {reason}")
    examined = trust.examine(run_dir)
    if not examined.standing.is_callers:
        return dict(os.environ)
    return {**environment_of(examined.run), **_own_state_folder()}


def _own_state_folder() -> dict[str, str]:
    """Name the caller's state folder: what is kept there of a run must not depend on a HOME that its record names."""
    folder = state_folder()
    return {} if folder is None else {"XDG_STATE_HOME": str(folder.parent)}
