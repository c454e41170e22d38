"""The watcher's log (`--log`): what is new, what has changed, what is over; never the same warning every minute.

Called once a minute by cron or systemd, the watcher would say of one sick run 1,440 times a day that it is sick. Here a
finding is written when it is new, when its kind has changed and when it is over. The time of the file is that of the
last pass. Writes the log; what it has said stands in the caller's memory of the pass before.
Try it: `bin/abort-watch.sh --observe --log`
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..basics.files import utc_now, write_all
from ..basics.terminal import plain
from . import watch, watcher_files
from .memory import Memory

_NUMBER = re.compile("[0-9]+([.][0-9]+)?")
_MAX_KEY = 300
_RUN, _DEED, _PASS = "run ", "deed ", "pass"


class WatchLog:
    """One pass's part of the log.

    Args:
        path: the file; it is opened and checked here.
        memory: what was said before; a log that begins anew says it again.

    Raises:
        KitError: the file may not be written to, with the reason.
    """

    def __init__(self, path: Path, memory: Memory) -> None:
        self._descriptor = watcher_files.open_log(path)
        self._memory = memory
        self._now: dict[str, str] = {}
        if os.fstat(self._descriptor).st_size == 0:
            memory.said.clear()

    def show(self, looks: Sequence[watch.Look]) -> None:
        """Write down the looks whose kind differs from the pass before."""
        for look in looks:
            causes = " ".join(sorted(one.cause for one in look.findings)) or _folded(look.note)
            self._say_if_new(_RUN + look.run_id, f"{look.verdict} {causes}", watch.as_text([look]))

    def say(self, run_id: str, words: str) -> None:
        """Write down what was done about a run, unless the pass before did the same."""
        self._say_if_new(f"{_DEED}{run_id} {_folded(words)}"[:_MAX_KEY], "", f"{run_id}: {words}")

    def fail(self, sentence: str) -> None:
        """Write down why there was no pass, unless that has been said."""
        self._say_if_new(_PASS, _folded(sentence), sentence)

    def end(self, looks: Sequence[watch.Look], is_meant: Callable[[str], bool]) -> None:
        """Write down what is over, and close.

        Args:
            looks: at every run of this pass, those too that were not worth a line.
            is_meant: whether a run of this id belongs to what the pass was asked for.
        """
        verdicts = {look.run_id: look.verdict for look in looks}
        kept = {}
        for key, value in self._memory.said.items():
            run_id = key.partition(" ")[2].partition(" ")[0]
            if key in self._now:
                continue
            if run_id and not is_meant(run_id):
                kept[key] = value
            elif key == _PASS:
                self._write("the passes go on")
            elif key.startswith(_RUN):
                is_now = verdicts.get(run_id)
                self._write(f"{run_id}: {is_now} now" if is_now else f"{run_id}: not live any more")
        self._memory.said = {**kept, **self._now}
        self.close()

    def close(self) -> None:
        """Close the log and leave the time of this pass on it."""
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _say_if_new(self, key: str, value: str, sentence: str) -> None:
        value = value[:_MAX_KEY]
        if self._memory.said.get(key) == value or self._write(sentence):
            self._now[key] = value  # what could not be written is said by the next pass

    def _write(self, sentence: str) -> bool:
        """Write a line; False on a full disk, which ends no watcher."""
        line = f"{utc_now()[:19]}Z  {plain(sentence)}\n"
        try:
            write_all(self._descriptor, line.encode("utf-8", "backslashreplace"))
        except OSError:
            return False
        return True


def _folded(sentence: str) -> str:
    """Return a sentence without its numbers: 'no step for 31 min' and 'for 32 min' say the same."""
    return _NUMBER.sub("#", sentence)
