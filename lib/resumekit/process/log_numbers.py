"""What a trainer's output tells in numbers: by `trainer.log_patterns`, or in the format of a framework.

Also when a line of a step was last another one: that shows that a trainer goes on, whose steps cannot be told.
Try it: `python -m pytest tests/test_log_reader.py tests/test_sidecar.py`
"""

from __future__ import annotations

import re
import time

from ..base.imports import TYPE_CHECKING, Any
from ..base.values import count, mapping
from ..run.run_folder import Run

if TYPE_CHECKING:
    from ..run.log_patterns import LastDrawing
    from ..run.log_reader import LogReader, Told
    from ..run.rank_lines import RankLines

# Of `trainer.log_patterns`: on a line of their own too.
SCORES = ("eval", "best")
# A bar that stands is drawn again with its clock going on: `7/9 [00:10<00:20]`.
_CLOCKS = rb"[0-9]+(?::[0-9]+)+"

Found = list[dict[str, Any]]


class LogNumbers:
    """Reads the numbers of one run's log.

    Args:
        run: the run, for its patterns or its format.
        saved: the account of the sidecar before this one.
        escapes: what a terminal obeys, and is no text.
    """

    def __init__(self, run: Run, saved: dict[str, Any], escapes: re.Pattern[bytes]) -> None:
        self._escapes = escapes
        self._format = run.log_format
        self._patterns = {key: one for key, one in run.log_patterns.items() if key not in SCORES}
        self._scores = {key: one for key, one in run.log_patterns.items() if key in SCORES}
        self._read = mapping(saved.get("log"))
        self._last_step = count(self._read.get("step"))
        self._reader: LogReader | None = None
        self._ranks: RankLines | None = None
        self._bar: LastDrawing | None = None
        self._is_open = self._format != "none"
        # When a line that the step's pattern matches was last another one.
        self._step_line_s, self._step_line = saved.get("step_line_s"), saved.get("step_line")

    @property
    def account(self) -> dict[str, Any]:
        """Return what a successor goes on from, as plain values."""
        read = self._read if self._reader is None else self._reader.account
        return {"log": read, "step_line_s": self._step_line_s, "step_line": self._step_line}

    def read(self, chunk: bytes, lines: bytes, *, is_new: bool) -> Found:
        """Return what comes next in a log: steps; what is none has a key `event` (`log_reader.Told`).

        Args:
            chunk: bytes of the log.
            lines: the clean lines that they complete.
            is_new: whether no predecessor has read them.
        """
        if self._is_open:
            from ..run.log_reader import LogReader  # late: it takes 5 ms, and no start waits for it

            self._is_open, self._reader = False, LogReader(self._format, self._read, self._escapes)
        if self._reader is None:
            found = self._by_patterns(lines, None, is_new=is_new)
            return [*(self._bar.rest(is_last=True) if self._bar and found else ()), *found]
        return self._in_format(self._reader, self._reader.feed(chunk), is_new=is_new)

    def of_bar(self, shown: bytes, *, is_new: bool) -> Found:
        """Return what an unfinished line tells."""
        if self._reader is not None:
            return self._in_format(self._reader, self._reader.show(shown), is_new=is_new)
        found = self._by_patterns(shown, _CLOCKS, is_new=is_new)
        if not found:
            return []
        if self._bar is None:
            from ..run.log_patterns import LastDrawing  # late, as in `Run.log_patterns`

            self._bar = LastDrawing()
        of_bar = [fields if "event" in fields else {**fields, "bar": True} for fields in found]
        return [one for fields in of_bar for one in ([fields] if "event" in fields else self._bar.put(fields))]

    def rest(self, *, is_last: bool = False) -> Found:
        """Return what is told at the end of a reading; with `is_last` the log has ended, with or without a newline."""
        if self._reader is not None:
            return _as_found(self._reader.rest(is_last=is_last))
        return self._bar.rest(is_last=is_last) if self._bar else []

    def begin_anew(self) -> None:
        """Take in that the log was cut."""
        if self._reader is not None:
            self._reader.begin_anew()

    def _in_format(self, reader: LogReader, told: list[Told], *, is_new: bool) -> Found:
        self._see_step_lines(reader.lines, _CLOCKS, is_new=is_new)
        if reader.is_over:
            self._read, self._reader = reader.account, None
        return _as_found(told)

    def _by_patterns(self, lines: bytes, without: bytes | None, *, is_new: bool) -> Found:
        """Return the steps in clean lines, and note when a step's line differs from the one before it.

        Some trainers print `[200/200]` in each epoch, or `step 1.15k`: their line says that they go on, no number. What
        matches `without` makes no difference.
        """
        if not self._patterns:
            return []
        from ..run import log_patterns, rank_lines  # late, as in `Run.log_patterns`

        if self._ranks is None:
            self._ranks = rank_lines.RankLines(self._read)
        lines, of_others = self._ranks.of_curve(lines, self._patterns)
        told: list[bytes] = []
        found = [self._ranks.with_others(one) for one in log_patterns.found_steps(lines, self._patterns, told)]
        self._see_step_lines(told, without, is_new=is_new)
        if self._scores:
            scores = log_patterns.found_scores(lines, self._scores, self._patterns, self._last_step)
            self._last_step = found[-1]["step"] if found else self._last_step
            found += scores
        if self._scores or self._ranks.account:
            self._read = {"step": self._last_step, **self._ranks.account}
        return [*found, *of_others]

    def _see_step_lines(self, told: list[bytes], without: bytes | None, *, is_new: bool) -> None:
        for line in told:
            import zlib  # late: a start need not wait for a library of its own

            mark = zlib.crc32(re.sub(without, b"", line) if without else line)
            if mark != self._step_line and is_new:
                self._step_line_s = time.monotonic()
            self._step_line = mark


def _as_found(told: list[Told]) -> Found:
    return [fields if kind == "step" else {**fields, "event": kind} for kind, fields in told]
