"""What a sidecar warns of while its run lives: code that has changed, saves that have stopped or are not found
again, a log in which no step is found.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
from collections.abc import Callable

from ..base.file_identity import FileIdentity
from ..base.imports import Any
from ..base.paths import LIB
from ..base.terms import UNSEEN
from ..base.values import mapping, string
from ..checkpoint import layout
from ..run import stray_checkpoints
from ..run.run_folder import Run
from ..run.stray_checkpoints import Stray

# The first look comes early: a person who starts a run and goes on editing learns of it while still at the keyboard.
FIRST_LOOK_S = 60.0
CODE_LOOK_S = 180.0
# git may have many files to read; what takes longer is given up, and asked again.
ANSWER_S = 30.0
MAX_BYTES = 4096
KIND = "code_changed"


class CodeWatch:
    """Looks at the code of one run; its owner calls `look` every second or so."""

    def __init__(self, run: Run, said: object, now: float) -> None:
        """Start with what the sidecar before this one has said last."""
        self._run = run
        self.said = string(said) or ""
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
        from ..base import background_command  # late: it takes a sidecar 6 ms, and most runs are over before

        if self._asked is not None:
            self._take(now, append, background_command.result)
        else:
            command = [sys.executable, "-I", "-S", str(LIB / "resumekit_cli.py"), "code-changed"]
            self._asked = background_command.start([*command, str(self._run.paths.run_dir)], os.environ)
            self._next_s = now + (CODE_LOOK_S if self._asked is None else ANSWER_S)

    def _take(self, now: float, append: Callable[..., object], collect: Callable[..., Any]) -> None:
        if not select.select([self._asked.pipe], [], [], 0)[0] and now < self._next_s:
            return
        # It prints one line at its end: where that can be read, the rest is a moment away.
        answer = collect(self._asked, MAX_BYTES, 1.0)
        self._asked, self._next_s = None, now + CODE_LOOK_S
        said = answer.kept.decode("utf-8", "replace").strip()
        if answer.sha256 is None or said == self.said:
            return
        if said:
            append("warning", kind=KIND, message=f"{said}; a recovery would need attention")
        self.said = said


# Whether a trainer goes on saving, and under a name that is found again.
#
# A new checkpoint, or an old one renewed, is progress though no step be told.
#
# Looks at names, sizes and times of the files that `checkpoint.pattern` and `checkpoint.best_pattern` mean; reads
# none of them. A file that is whole gets its manifest by `attest`; this one counts, whatever is in it. Try it:
# `python -m pytest tests/test_progress.py -k checkpoint`

# One directory listing and a stat for each checkpoint; a hang is a matter of minutes.
SAVES_LOOK_S = 5.0
# Files that fit no pattern are looked for so often. A save of several files is over in that time.
STRAY_S = 60.0
STRAY = "stray_checkpoint"


class NewCheckpoints:
    """Looks at one run's checkpoint folder; its owner calls `look` every second or so.

    Args:
        run: the run.
        saved: the account of the sidecar before this one.
    """

    def __init__(self, run: Run, saved: dict[str, Any]) -> None:
        self._run = run
        self._shapes: dict[str, FileIdentity] | None = None
        self._looked_s = float("-inf")
        self._saved_s = saved.get("saved_s")
        self._stray: Stray | None = None
        self._stray_looked_s = float("-inf")
        self._is_stray_said = saved.get("stray_said") is True

    @property
    def account(self) -> dict[str, Any]:
        """Return what a successor goes on from: when the last change was seen, and whether a stray file was said."""
        return {"saved_s": self._saved_s, "stray_said": self._is_stray_said}

    def look(self, now: float) -> None:
        """Note whether a checkpoint has come, or has changed, since the last look. What was there before is none."""
        if now - self._looked_s < SAVES_LOOK_S:
            return
        self._looked_s = now
        shapes = self._listed()
        if self._shapes is not None and any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._saved_s = now
        self._shapes = shapes

    def look_for_strays(self, now: float, append: Callable[..., bool], *, has_ended: bool = False) -> str:
        """Warn once, in the journal, of a file that looks like a checkpoint and that no pattern matches.

        It has to be there in two looks, since a trainer may save several files and the one that fits last.

        Args:
            now: on the monotonic clock.
            append: writes an event; returns False where that fails, and it is tried again.
            has_ended: the trainer has ended: whatever is there now stays so.

        Returns:
            The sentence, at the look that has journaled it; '' at any other.
        """
        if self._is_stray_said or (now - self._stray_looked_s < STRAY_S and not has_ended):
            return ""
        self._stray_looked_s = now
        before, self._stray = self._stray, self._found_stray()
        if self._stray is None or (self._stray != before and not has_ended):
            return ""
        message = f"{self._stray.words}; no recovery goes on from it"
        self._is_stray_said = append("warning", kind=STRAY, message=message)
        return message if self._is_stray_said else ""

    def _found_stray(self) -> Stray | None:
        run = self._run
        steps = {step: name for name in self._listed() if (step := run.form.step_of(name)) is not None}
        if steps:
            return stray_checkpoints.newer(run, max(steps), run.paths.checkpoints / steps[max(steps)])
        return stray_checkpoints.newest(run)

    def _listed(self) -> dict[str, FileIdentity]:
        run, found = self._run, {}
        with contextlib.suppress(OSError):
            for name in os.listdir(run.paths.checkpoints):
                if run.form.is_one(name):
                    with contextlib.suppress(OSError):
                        found[name] = layout.identity(run.paths.checkpoints / name, follow_links=False).lasting
        return found


# Whether the steps of a trainer are read at all: without them no hang, no slow training and no NaN is seen.

# A trainer that has printed in so many minutes and told no step prints it in a form that is not known.
UNSEEN_MINUTES = 10
_SHOWN = 80


class UnseenSteps:
    """Warns once where a trainer prints and no step of it is read; its owner calls `look` every second or so."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._offset, self._minute, self._minutes = 0, -1, 0

    def look(self, now: float, state: dict[str, Any], offset: int, append: Callable[..., bool]) -> str:
        """Warn, in the journal, once it is time.

        Args:
            now: on the monotonic clock.
            state: the folded journal.
            offset: how far the trainer's output has been read, in bytes.
            append: writes an event; returns False where that fails, and it is tried again.

        Returns:
            The sentence, at the look that has journaled it; '' at any other.
        """
        if offset == self._offset:
            return ""
        self._offset, minute = offset, int(now // 60)
        self._minutes += minute != self._minute
        self._minute = minute
        if self._minutes < UNSEEN_MINUTES or "step" in state or UNSEEN in state.get("warned_of", ()):
            return ""
        message = _unseen_words(self._run, string(state.get("log_format")))
        return message if message and append("warning", kind=UNSEEN, message=message) else ""


def _unseen_words(run: Run, found_format: str | None) -> str:
    """Say which key makes the steps seen; '' of a trainer that tells them itself, or whose log is not to be read."""
    pattern = string(mapping(run.setting("trainer", "log_patterns")).get("step"))
    if run.setting("trainer", "loads_with_kit") is True or (run.log_format == "none" and pattern is None):
        return ""
    return f"no step was found in its output in {UNSEEN_MINUTES} minutes{_how_it_is_read(run, pattern, found_format)}"


def _how_it_is_read(run: Run, pattern: str | None, found_format: str | None) -> str:
    from ..run import log_formats, log_tail  # late: of most runs the steps are seen

    file = string(run.setting("trainer", "metrics_file"))
    if file is not None:
        return f", nor in trainer.metrics_file '{file[:_SHOWN]}': does it write there?"
    if pattern is not None:
        return f": trainer.log_patterns.step '{pattern[:_SHOWN]}' fits none of its lines"
    name = found_format or run.log_format
    if name != log_formats.AUTO:
        advice = (
            "trainer.log_format or trainer.log_patterns says otherwise, trainer.metrics_file names a file with them"
        )
        return f", which is read as one of '{name[:_SHOWN]}': {advice}"
    bar = re.compile(log_formats.ACCELERATE.bar.encode())
    if any(bar.search(line) for line in log_tail.read(run)[0]):
        return f": its bar is one of tqdm, which trainer.log_format: {log_formats.ACCELERATE.name} reads"
    known = ", ".join(log_formats.FORMATS)
    return (
        f": trainer.log_format ({known}) or trainer.log_patterns says how it prints, trainer.metrics_file names a file"
    )
