"""Where a sidecar stands: what the next one goes on from, and the lock that says whose turn it is.

Writes `.sidecar.json` and holds `.status.lock` in the run's folder.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ..basics import journal, processes
from ..basics.claims import open_lock, try_lock
from ..basics.files import UnreadableFile, read_json, to_json, write_atomic
from ..run_folder.runs import Run


def take_status_lock(run: Run) -> bool:
    """Become the one who writes status.json; the lock ends with the process."""
    return try_lock(open_lock(run.paths.status_lock))


def saved(run: Run) -> dict[str, Any]:
    """Return the account of the sidecar before this one; {} where there is none of this run."""
    try:
        found = read_json(run.paths.sidecar_state)
    except UnreadableFile:
        return {}
    return found if isinstance(found, dict) and found.get("run_id") == run.run_id else {}


class Account:
    """Writes down where the sidecar stands, and when: an account that is old says that none follows the run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        own = processes.identify(os.getpid())
        self._sidecar = own.as_fields() if own else None

    def write(self, account: dict[str, Any]) -> None:
        tail = journal.tail(self._run.paths.journal, account["journal_offset"])
        account = {"run_id": self._run.run_id, "sidecar": self._sidecar, **account, "journal_tail": tail}
        with contextlib.suppress(OSError):
            write_atomic(self._run.paths.sidecar_state, to_json(account, indent=None))
