"""The watcher that a launcher brings for its own run: a look every `abort.watch_every_s`, until the launcher ends.

    python -I -S lib/resumekit_cli.py watch-own RUN_DIR SECONDS <PIPE

Looks and acts as bin/abort-watch.sh does, for this run alone. The launcher holds the other end of PIPE: when it ends,
however it ends, so does the watcher. It takes no run up: that is the launcher's work, or, where it has died, that of a
watcher that cron calls. Both may look at one run at once: what they write down of it they write under its lock.
"""

from __future__ import annotations

import gc
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import DONE, KitError
from . import acting, inspection, watcher_files
from .acting import Action
from .command import WatchLog
from .watcher_files import Memory


def main(arguments: Sequence[str]) -> int:
    """Look and act again and again; returns 0 when the launcher has ended, or the run's folder is gone."""
    gc.enable()  # the command that imports this has switched it off, for its start
    run_dir, every_s = Path(arguments[0]), float(arguments[1])
    memory = Memory()  # of this process alone: the file of the user's own watcher has other runs in it
    while os.path.isdir(run_dir):
        if not _look(run_dir, memory) or _launcher_ends(every_s):
            break
    return DONE


def _look(run_dir: Path, memory: Memory) -> bool:
    """Look at the run once, and do what that asks for; False where the launcher has ended meanwhile."""
    looks = inspection.look_at_all(run_dir.parent, [run_dir.name])
    if _launcher_ends(0.0):
        return False
    _log(run_dir, looks, acting.act(run_dir.parent, looks, memory), memory)
    return True


def _log(run_dir: Path, looks: Sequence[inspection.Report], deeds: Sequence[Action], memory: Memory) -> None:
    """Write down what is new where the user's own watcher does; what cannot be written keeps nothing from its work."""
    shown = [look for look in looks if look.verdict not in inspection.NOT_WORTH_A_LINE]
    if not shown and not deeds and not memory.said:
        return
    try:
        log = WatchLog(watcher_files.of(run_dir.parent, create=True).log, memory)
    except KitError:
        return
    log.show(shown)
    for deed in deeds:
        log.say(deed.run_id, deed.words)
    log.end(looks, lambda run_id: run_id == run_dir.name)


def _launcher_ends(wait_s: float) -> bool:
    """Whether the launcher ends within so many seconds: nothing is ever written to its end of the pipe."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])
