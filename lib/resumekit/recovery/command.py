"""The verb `recover`, for launchers: is the run that has just ended taken up, and how.

    python -I lib/resumekit_cli.py recover RUN_DIR --launcher-pid=PID [--attended]

Answers in NUL-separated fields: none (nothing goes on from here), one (ask again in so many seconds), or those that
`start` and `resume` answer.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..basics.errors import DONE
from . import recovering


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
