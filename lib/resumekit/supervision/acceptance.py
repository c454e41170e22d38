"""The acceptance of a resumed run: feeds the rules with its journal, hands on their verdicts, ends it if it must.

The sidecar's; reads the run's own journal, its plan and its parent's journal. A run whose checks failed under
`resume.strict_checks` is stopped and its checkpoints are quarantined, so that nothing goes on from them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..basics import journal
from ..basics.causes import CHECKS_FAILED
from ..basics.check import FAILED, WARNED, WHOLE, Check
from ..basics.errors import KitError
from ..basics.paths import step_of_name
from ..run_folder import recovery
from ..run_folder.quarantine import put_in_quarantine
from ..run_folder.runs import Run
from . import aborting, expectations, notice
from .acceptance_rules import Rules

# The kind of the warning about a recovery that began at another step than the planned one: it trains all again.
BEGAN_ELSEWHERE = "began_elsewhere"
# A sidecar that was started again looks at no more than this of the journal before it.
MAX_READ_BYTES = 8 << 20


class Acceptance:
    """The checks of one resumed run.

    Args:
        run: its folder.
        known: verdicts that its journal holds already.
        offset: where the sidecar reads its journal on; what stands before is read here.
    """

    def __init__(self, run: Run, known: Mapping[str, str], offset: int) -> None:
        self._run = run
        self._is_strict = run.setting("resume", "strict_checks") is True
        self._expected = expectations.read(run) if WHOLE not in known else None
        self._rules = Rules(self._expected, _share(run, "throughput_band") or 0.15, _share(run, "loss_band"), known)
        self._is_aborted = False
        for event, place in journal.read(run.paths.journal):
            if place > min(offset, MAX_READ_BYTES):
                break
            self.see(event)

    def see(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the run's journal."""
        if event.get("event") == "resumed" and self._expected is not None:
            event = {**event, "is_planned": expectations.is_planned(event.get("checkpoint"), self._expected, self._run)}
        elif event.get("event") == "abort" and event.get("cause") == CHECKS_FAILED:
            self._is_aborted = True
        self._rules.see(event)

    def decide(self, append: Callable[..., bool], say: Callable[[bytes], Any], *, has_ended: bool) -> bool:
        """Decide what can be decided by now.

        Args:
            append: (event, **fields) writes into the run's journal.
            say: takes a line for the log and the terminal.
            has_ended: the trainer has: nothing more will come.

        Returns:
            Whether there is more to decide.
        """
        for one in self._rules.verdicts(time.monotonic(), has_ended=has_ended):
            self._tell(one, append, say)
        if not (self._is_strict and self._rules.failed):
            return not self._rules.is_over
        # A run that is over before its checks have ended it, a trainer that died of the fault, say, has failed too.
        if not self._rules.is_over:
            self._tell(self._rules.conclude(), append, say)
        evidence = f"failed: {', '.join(self._rules.failed)}"
        with contextlib.suppress(OSError, KitError):
            if (self._is_aborted or aborting.note(self._run, CHECKS_FAILED, evidence)) and not has_ended:
                aborting.stop_aborted(self._run.paths.run_dir)  # again, if a sidecar before this one was killed
        return False

    def _tell(self, one: Check, append: Callable[..., bool], say: Callable[[bytes], Any]) -> None:
        append("check", **one.as_fields())
        if one.verdict in (FAILED, WARNED) or one.name == WHOLE:
            say(f"resumekit: {one.sentence()}\n".encode("utf-8", "backslashreplace"))
        if one.name == "step" and one.verdict == FAILED and not self._is_strict and recovery.of(self._run) is not None:
            # There may be no one at the terminal of a recovery.
            message = f"{one.sentence()}; it trains on: do trainer.resume_args name an option that the trainer acts on?"
            append("warning", kind=BEGAN_ELSEWHERE, message=message)
            notice.give(self._run, BEGAN_ELSEWHERE, message)


def quarantine_all(run: Run) -> None:
    """Put every checkpoint of a run that failed its checks into quarantine; the files stay."""
    try:
        names = os.listdir(run.paths.checkpoints)
    except OSError:
        return
    for name in sorted(names):
        if name == run.best_pattern or step_of_name(name, run.step_pattern) is not None:
            with contextlib.suppress(OSError, KitError):
                put_in_quarantine(run.paths, name, "the checks right after the resume failed")


def _share(run: Run, key: str) -> float | None:
    value = run.setting("resume", key)
    return float(value) if type(value) in (int, float) and value > 0 else None
