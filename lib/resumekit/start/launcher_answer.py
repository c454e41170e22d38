"""What the planning Python answers the launcher: NAME=VALUE fields, each ended by NUL, on stdout.

    RUN_ID= RUN_DIR= CWD= TOKEN= CONFIG_HASH= OUTPUT_LOG= CHECKPOINT= MADE= HEAD= WATCH_S= RANKS_GRACE_S= ARGV=<n> and n
        words: start this run
    WAIT_S=<n>: ask again in so many seconds
    nothing: no run goes on from here

`kit_read_answer` in lib/launcher.sh reads it; a name that it does not know it passes over. The trainer's words come
last and unnamed, so that a word of theirs is never taken for a field.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

from .make_folder import Launch


def write(launch: Launch | None, wait_s: float | None = None, *, by_position: bool = False) -> None:
    """Write the answer to stdout.

    Args:
        launch: the run to start; None for none.
        wait_s: without a run, in how many seconds the launcher is to ask again; None for not at all.
        by_position: the launcher is of version 0.1.0 (`--launcher-pid`), which reads fields by their position. It may
            run while the files of the kit are copied over, and must still be able to take up its run.
    """
    if launch is None:
        seconds = [] if wait_s is None else [str(max(1, math.ceil(wait_s)))]
        fields: Sequence[str] = seconds if by_position else [f"WAIT_S={one}" for one in seconds]
    else:
        fields = _by_position(launch) if by_position else _by_name(launch)
    # Paths are bytes to the shell: what Python could not decode goes out as it came in.
    sys.stdout.buffer.write(b"".join(os.fsencode(field) + b"\0" for field in fields))
    sys.stdout.flush()


def _by_name(launch: Launch) -> Sequence[str]:
    fields = {
        "RUN_ID": launch.run_id,
        "RUN_DIR": launch.paths.run_dir,
        "CWD": launch.cwd,
        "TOKEN": launch.token,
        "CONFIG_HASH": launch.config_hash,
        "OUTPUT_LOG": launch.paths.output_log,
        "CHECKPOINT": launch.prove or "",
        "MADE": launch.made,
        "HEAD": launch.head or "",
        "WATCH_S": launch.watch_every_s or "",
        "RANKS_GRACE_S": launch.ranks_grace_s or "",
        "ARGV": len(launch.argv),
    }
    return [*(f"{name}={value}" for name, value in fields.items()), *launch.argv]


def _by_position(launch: Launch) -> Sequence[str]:
    return [launch.run_id, str(launch.paths.run_dir), str(launch.cwd), launch.token, launch.config_hash,
            str(launch.paths.output_log), str(launch.prove or ""), f"{launch.made}{launch.head or ''}",
            *launch.argv]  # fmt: skip
