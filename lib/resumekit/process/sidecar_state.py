"""What the next sidecar goes on from: as which run, the account, whose turn it is, and which steps of a log are new."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ..base import journal, processes
from ..base.claims import open_lock, try_lock
from ..base.files import to_json, write_atomic
from ..base.imports import Any
from ..base.ownership import MadeFolder
from ..base.paths import RunPaths
from ..run import seals, trust
from ..run.run_folder import Run


def take_status_lock(run: Run) -> bool:
    """Become the one who writes status.json; the lock ends with the process."""
    return try_lock(open_lock(run.paths.status_lock))


def followed(run_dir: Path, made: MadeFolder | None) -> tuple[Run, str]:
    """Return a run as the caller's launcher wrote it, and why nothing is taken from its records where it is not that.

    Such a run has the default paths, and no setting: no pattern for its log above all. Of a user who keeps no seals
    (without a HOME), the watcher's sidecar goes by what lies there. Raises as `trust.examine_made`.
    """
    run, standing, _ = trust.examine(run_dir) if made is None else trust.examine_made(run_dir, made)
    if standing.is_callers or (made is None and seals.since() is None):
        return run, ""
    run = Run(RunPaths(run_dir), {"run_id": run_dir.name, "token": run.record.get("token")} if run.is_ours else {})
    run.config = {}
    return run, f"{standing.reason}: its sidecar uses the default paths, and no setting and no log pattern of it"


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


# Which of the steps that a log tells are new ones: pure, for trainers that journal none themselves.
#
# A sidecar's successor reads lines again; a line may speak of an older step ("saved step 400"); and some trainers
# count anew in each epoch, which is progress. Try it: `python -m pytest tests/test_sidecar.py -k anew`


class StepOrder:
    """Remembers a step that lay behind the last one, until the next shows whether the trainer goes on from there.

    Args:
        repeats_until: byte offset in the output up to which lines may have been dealt with by a predecessor.
        resumed_at: the step that a resumed run begins from.
    """

    def __init__(self, repeats_until: int, resumed_at: int | None = None) -> None:
        self._repeats_until, self._resumed_at = repeats_until, resumed_at
        self._behind: int | None = None

    def new(self, found: Iterable[dict[str, Any]], last: int, read_from: int) -> list[dict[str, Any]]:
        """Return those of the found steps that are to be journaled.

        Args:
            found: fields of `step` events, in the order of the log.
            last: the step that was told last; -1 before the first.
            read_from: byte offset in the output from which on they were read.
        """
        result = []
        for fields in found:
            step = fields["step"]
            if last < 0 and step == self._resumed_at and "loss" not in fields:
                continue  # "resumed at step 40" says where the trainer begins: that step is its parent's
            counts_anew = self._behind is not None and self._behind < step and read_from >= self._repeats_until
            if step > last or (counts_anew and step < last):
                result.append(fields)
                last, self._behind = step, None
            elif step < last:
                self._behind = step
        return result
