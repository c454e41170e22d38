"""Ending a run because a person, or a signal to the launcher, asked for it.

The signal goes to the trainer, which saves and ends; after the grace, or the second time, KILL goes to everything in
its session. `stopped` is in the journal before the signal is sent: what was ended on purpose is never recovered.
"""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

from . import journal, processes, status
from .errors import DONE, FAILED
from .runs import Run, open_run

# How long a trainer that is just being started is waited for before a stop gives up on it.
START_WAIT_S = 10.0


def stop(run_dir: Path, signal_name: str, *, is_now: bool = False) -> int:
    """Stop a run's trainer.

    Args:
        run_dir: its run folder.
        signal_name: 'INT' or 'TERM', passed on to the trainer.
        is_now: KILL its whole session at once.

    Returns:
        0 when it has ended, 1 when there was nothing to stop.
    """
    run = open_run(run_dir)
    trainer = _wait_for_trainer(run)
    if trainer is None:
        return FAILED
    with contextlib.suppress(OSError):  # a full disk must not keep anybody from stopping
        journal.append(run.paths.journal, "stopped", run.run_id, by=signal_name, now=is_now)
    if not is_now:
        processes.send(trainer, signal.Signals[f"SIG{signal_name}"])
        if processes.wait_for_end(trainer, float(run.setting("abort", "grace_s", 60))):
            return DONE
    processes.kill_session(trainer)
    return DONE


def _wait_for_trainer(run: Run) -> processes.Identity | None:
    """Return the live trainer; None when it has ended already or never comes."""
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline and status.read_end(run) is None:
        for event, _ in journal.read(run.paths.journal):
            if event["event"] == "launched":
                trainer = processes.identity_from(event.get("trainer"))
                return trainer if trainer and processes.probe(trainer) != processes.DEAD else None
        time.sleep(0.05)
    return None
