"""The verb `recover`, for launchers: is the run that has just ended taken up, and how; and three that tell or take up.

    python -I lib/resumekit_cli.py recover RUN_DIR --launcher-pid=PID [--attended]
    python -I lib/resumekit_cli.py take-up RUN_DIR
    python -I lib/resumekit_cli.py escalate RUN_DIR REASON
    python -I lib/resumekit_cli.py tell RUN_DIR KIND MESSAGE

`recover` answers in NUL-separated fields: none (nothing goes on from here), one (ask again in so many seconds), or
those that `start` and `resume` answer. `take-up` becomes the launcher of a run that has none, `escalate` tells a
person of one that the watcher can do nothing about, `tell` of a warning that is in the journal already.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..basics.errors import DONE, Refused, ToolMissing
from ..basics.ownership import state_folder
from ..basics.paths import LIB, RunPaths
from ..basics.terminal import plain
from ..run_folder import trust
from ..run_folder.runs import Run, RunTable
from ..watching import custody
from ..watching.acting import environment_of
from . import attention, recovering


def main(arguments: Sequence[str]) -> int:
    """Decide about one run; returns 0."""
    launcher_pid = int(arguments[1].partition("=")[2])
    outcome = recovering.recover(Path(arguments[0]), launcher_pid, is_attended="--attended" in arguments[2:])
    if outcome.ready is not None:
        fields = outcome.ready.answer()
    else:
        fields = [] if outcome.wait_s is None else [str(max(1, math.ceil(outcome.wait_s)))]
    sys.stdout.buffer.write(b"".join(os.fsencode(field) + b"\0" for field in fields))
    sys.stdout.flush()
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
    attention.escalate(_callers_run(run_dir), RunTable(run_dir.parent), reason)
    return DONE


def tell(run_dir: Path, kind: str, message: str) -> int:
    """Tell a person of a warning about a run that goes on; returns 0.

    Raises:
        Refused: the run is not the caller's.
    """
    attention.tell_of(_callers_run(run_dir), kind, message)
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
    if reason := custody.of_marked_run(RunPaths(run_dir)):
        raise Refused(f"'{plain(run_dir.name)}' is left alone: {reason}")
    examined = trust.examine(run_dir)
    if not examined.standing.is_callers:
        return dict(os.environ)
    return {**environment_of(examined.run), **_own_state_folder()}


def _own_state_folder() -> dict[str, str]:
    """Name the caller's state folder: what is kept there of a run must not depend on a HOME that its record names."""
    folder = state_folder()
    return {} if folder is None else {"XDG_STATE_HOME": str(folder.parent)}
