"""A warning, while a run lives, that its code is no longer the one that it began with: a recovery would need a person.

Asks a process of its own every few minutes, at a low priority; the sidecar never waits for it. Appends to the journal.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import Any

from ..basics.paths import LIB
from ..run_folder.runs import Run

# The first look comes early: a person who starts a run and goes on editing learns of it while still at the keyboard.
FIRST_LOOK_S = 60.0
LOOK_S = 180.0
# git may have many files to read; what takes longer is given up, and asked again.
ANSWER_S = 30.0
MAX_BYTES = 4096
KIND = "code_changed"


class CodeWatch:
    """Looks at the code of one run; its owner calls `look` every second or so."""

    def __init__(self, run: Run, said: object, now: float) -> None:
        """Start with what the sidecar before this one has said last."""
        self._run = run
        self.said = said if isinstance(said, str) else ""
        self._asked: Any = None
        is_of_interest = run.setting("recover", "enabled") is True
        is_of_interest = is_of_interest and run.setting("recover", "allow_code_change") is not True
        self._next_s = now + FIRST_LOOK_S if is_of_interest else float("inf")

    def look(self, now: float, append: Callable[..., object]) -> None:
        """Ask when it is time, and journal an answer that is another one than before.

        Args:
            now: the monotonic clock.
            append: what appends an event to the run's journal.
        """
        if self._asked is None and now < self._next_s:
            return
        from ..basics import answers  # late: it takes a sidecar 6 ms, and most runs are over before

        if self._asked is not None:
            self._take(now, append, answers.collect)
        else:
            command = [sys.executable, "-I", "-S", str(LIB / "resumekit_cli.py"), "code-changed"]
            self._asked = answers.ask([*command, str(self._run.paths.run_dir)], os.environ)
            self._next_s = now + (LOOK_S if self._asked is None else ANSWER_S)

    def _take(self, now: float, append: Callable[..., object], collect: Callable[..., Any]) -> None:
        if not select.select([self._asked.pipe], [], [], 0)[0] and now < self._next_s:
            return
        # It prints one line at its end: where that can be read, the rest is a moment away.
        answer = collect(self._asked, MAX_BYTES, 1.0)
        self._asked, self._next_s = None, now + LOOK_S
        said = answer.kept.decode("utf-8", "replace").strip()
        if answer.sha256 is None or said == self.said:
            return
        if said:
            append("warning", kind=KIND, message=f"{said}; a recovery would need attention")
        self.said = said
