"""The end of a trainer whose run another one goes on from: it comes back, and must not save or beat beside that one.

Only a run that was taken for dead is continued while its trainer lives: its host was cut off, and a person has said
`--take-over`. Reads `claims/continued.json` in the run's own folder; one stat where there is none.
"""

from __future__ import annotations

import contextlib
import os
import sys

from ..basics import claims, journal
from ..basics.errors import REFUSED
from ..basics.paths import RunPaths
from ..basics.processes import TOKEN_VARIABLE
from ..basics.terminal import plain, say
from .trainer_env import run_dir


def end_if_taken_over() -> None:
    """End this process with one sentence where another run continues this one.

    A trainer that a person started by hand (command.sh) carries no token, and goes on: the kit does not supervise it.
    """
    folder = run_dir()
    if folder is None or TOKEN_VARIABLE not in os.environ:
        return
    run = RunPaths(folder)
    if not os.path.lexists(run.continuation):
        return
    child = (claims.continuation_of(run) or {}).get("run_id")
    if not isinstance(child, str):
        return
    sentence = f"'{run.run_dir.name}' was taken over by '{child[:200]}': this trainer ends, and saves nothing more"
    run_id = os.environ.get("RESUMEKIT_RUN_ID")
    with contextlib.suppress(OSError):
        journal.append(run.journal, "warning", run_id, kind="fenced", message=plain(sentence))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        say("resumekit", sentence)
    os._exit(REFUSED)  # an exception could be caught, and the training go on
