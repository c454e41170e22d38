"""Ending a run that is sick: one `abort` event with cause, evidence and the log's last lines, then TERM, grace, KILL.

The sidecar does it for numbers that are not finite and for failed checks, the watcher for all else; the first one
decides. What cannot be written down is not stopped. Source: protocol §12.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from ..base import journal
from ..base.claims import locked
from ..base.imports import Any
from ..base.paths import LIB
from ..base.redaction import redact
from ..run import log_tail, run_end, status
from ..run.run_folder import Run


def note(run: Run, cause: str, evidence: str, **fields: Any) -> bool:
    """Write the `abort` event of a run, once, whichever process asks and how often.

    Args:
        run: the run.
        cause: one of base/terms.
        evidence: one sentence with numbers.
        fields: `first_bad_step`, where a recovery has to begin before it.

    Returns:
        Whether it is the event of this cause that stands in the journal now: not where a person has stopped the run.

    Raises:
        Refused: another process holds the run's lock.
        OSError: the event cannot be written.
    """
    with locked(run.paths.lock):
        state = status.read_state(run)
        known = state.get("aborted") or state.get("died")
        if known or state.get("stopped"):
            return bool(known and known["cause"] == cause)
        said = redact(evidence.encode("utf-8", "replace"))[0].decode("utf-8", "replace")  # a trainer's words are in it
        journal.append(
            run.paths.journal, "abort", run.run_id, cause=cause, evidence=said, **fields,
            log_lines=log_tail.last_lines(run),
        )  # fmt: skip
    return True


def abort(run: Run, cause: str, evidence: str, **fields: Any) -> bool:
    """Write down why, then stop the run's trainer; returns whether it is being stopped for that.

    A trainer that has ended meanwhile is not stopped, and not written about: it has an end of its own.

    Raises:
        Refused, OSError: as `note`; nothing is stopped then.
    """
    if run_end.read(run) is not None or not note(run, cause, evidence, **fields):
        return False
    stop_aborted(run.paths.run_dir)
    return True


def stop_aborted(run_dir: Path) -> None:
    """Stop the trainer of a run that is sick, as `stop_beside`."""
    stop_beside(run_dir, "TERM", "--aborted")


def stop_beside(run_dir: Path, signal_name: str, *how: str) -> None:
    """Start a process that stops the trainer, with its grace; safe to repeat, a second one leaves it to the first.

    Args:
        run_dir: the run's folder.
        signal_name, how: the words of the verb `stop`.
    """
    import subprocess  # 11 ms for every sidecar, and hardly ever

    cli = str(LIB / "resumekit_cli.py")
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [sys.executable, "-I", "-S", cli, "stop", str(run_dir), signal_name, *how], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
