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
from ..base.values import mapping
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


# What few sidecars need: each start would wait for its import.


def metrics_of(run: Run, saved: Any) -> Any:
    """Return what reads the run's metrics file in the background; None for a run without one."""
    if not run.setting("trainer", "metrics_file"):
        return None
    from .metrics_file import MetricsFollower, MetricsReader  # late: few runs have one

    return MetricsReader(MetricsFollower(run, saved))


def holding_of(run: Run) -> Any:
    """Return what lets go of the checkpoint that a run holds of its parent's; None for a run that holds none."""
    if not os.path.lexists(run.paths.held):
        return None
    from ..run.held import Holding  # late, as above

    return Holding(run)


def wall_time_of(run: Run) -> Any:
    """Return what stops a run before its job's time is over; None for a run that no job of Slurm has started."""
    if mapping(run.record.get("scheduler")).get("name") != "slurm":
        return None
    from .wall_time import of_run  # late, as above

    return of_run(run)


def acceptance_of(run: Run, state: dict[str, Any], offset: int) -> Any:
    """Return what checks a resumed run; None for any other."""
    if not os.path.lexists(run.paths.resume_plan):
        return None
    from .acceptance import Acceptance  # late: 5 ms, and most runs were not resumed

    return Acceptance(run, state.get("checks", {}), offset)
