"""The acceptance of a resumed run: feeds the rules with its journal, hands on their verdicts, ends it if it must.

The sidecar's; reads the run's own journal, its plan and its parent's journal. A run that began at another step than
the planned one, or whose checks failed under `resume.strict_checks`, is stopped. Its checkpoints are quarantined, so
that nothing goes on from them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping

from ..base import journal
from ..base.errors import KitError
from ..base.imports import Any
from ..base.terms import ALWAYS_STRICT, CHECKS_FAILED, FAILED, WARNED, WHOLE, Check
from ..base.values import above_zero
from ..checks import expectations
from ..checks.journal_rules import Rules
from ..policy import plan_file
from ..run.quarantine import put_in_quarantine
from ..run.run_folder import Run
from . import aborting

# What a person can do about a run that began at another step than the planned one.
_HINT = "do trainer.resume_args name an option that the trainer acts on, and does every wrapper hand it on?"
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
        self._step_sentence = ""
        for event, place in journal.read(run.paths.journal):
            if place > min(offset, MAX_READ_BYTES):
                break
            self.see(event)

    def see(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the run's journal."""
        if event.get("event") == "resumed" and self._expected is not None:
            planned, run_dir = self._expected.checkpoint, self._run.paths.run_dir
            event = {**event, "is_planned": plan_file.is_about(planned, event.get("checkpoint"), run_dir)}
        elif event.get("event") == "abort" and event.get("cause") == CHECKS_FAILED:
            self._is_aborted = True
        elif event.get("event") == "check" and event.get("name") == ALWAYS_STRICT:
            told: list[Any] = [event.get(key) for key in ("verdict", "expected", "found", "why")]
            self._keep(Check(ALWAYS_STRICT, *told))
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
        if not self._ends_the_run():
            return not self._rules.is_over
        # A run that is over before its checks have ended it, a trainer that died of the fault, say, has failed too.
        if not self._rules.is_over:
            self._tell(self._rules.conclude(), append, say)
        evidence = "; ".join(filter(None, [f"failed: {', '.join(self._rules.failed)}", self._step_sentence]))
        with contextlib.suppress(OSError, KitError):
            if (self._is_aborted or aborting.note(self._run, CHECKS_FAILED, evidence)) and not has_ended:
                aborting.stop_aborted(self._run.paths.run_dir)  # again, if a sidecar before this one was killed
        return False

    def _ends_the_run(self) -> bool:
        failed = self._rules.failed
        return ALWAYS_STRICT in failed or (self._is_strict and bool(failed))

    def _tell(self, one: Check, append: Callable[..., bool], say: Callable[[bytes], Any]) -> None:
        append("check", **one.as_fields())
        self._keep(one)
        if one.verdict in (FAILED, WARNED) or one.name == WHOLE:
            hint = f"; {_HINT}" if one.name == ALWAYS_STRICT and one.verdict == FAILED else ""
            say(f"resumekit: {one.sentence()}{hint}\n".encode("utf-8", "backslashreplace"))

    def _keep(self, one: Check) -> None:
        """Keep the sentence of a step that is not the planned one: it goes into the reason why the run is ended."""
        if one.name == ALWAYS_STRICT and one.verdict == FAILED:
            self._step_sentence = f"{one.sentence()}; {_HINT}"


def quarantine_all(run: Run) -> None:
    """Put every checkpoint of a run that failed its checks into quarantine; the files stay."""
    try:
        names = os.listdir(run.paths.checkpoints)
    except OSError:
        return
    for name in sorted(names):
        if run.form.is_one(name):
            with contextlib.suppress(OSError, KitError):
                put_in_quarantine(run.paths, name, "the checks right after the resume failed")


def _share(run: Run, key: str) -> float | None:
    value = above_zero(run.setting("resume", key))
    return None if value is None else float(value)
