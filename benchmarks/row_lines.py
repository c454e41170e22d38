"""Row 6, the log: a million lines of 120 bytes from the trainer to `train.log` and a terminal, against `| tee`.

The time runs from the trainer's first line until the command has ended and the terminal has shown its last byte;
whatever is missing in log or terminal fails the measurement.
"""

from __future__ import annotations

import sys
from pathlib import Path

from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, measure
from lab import PROGRAMS, Lab
from processes import BenchmarkError, Seen, clean_environment, timed_on_terminal
from settings import Findings, Settings

GOAL = 2.2
LINES, QUICK_LINES = 1_000_000, 100_000
LAST_LINE = b"the last line of them all"
FILE_ONLY = "into a file alone, no terminal"
MANNERS = {"blocks": "64 KiB at a time", "lines": "one print a line, unbuffered"}


def run_lines(settings: Settings, found: Findings) -> None:
    """Measure the way of the log, for a trainer that prints in blocks and for one that prints line by line."""
    count = QUICK_LINES if settings.is_quick else LINES
    for row, manner in zip(("6c", "6d"), MANNERS, strict=True):
        log = _Log(settings, count, manner)
        variants = [
            Variant(OURS, log.ours),
            Variant(THEIRS, log.tee),
            Variant(AGAIN, log.tee),
            Variant(FILE_ONLY, log.file_only),
        ]
        samples = measure(variants, settings.rounds, f"row 6, {manner}", log.clean)
        found.samples[f"row 6, {manner}"] = samples
        title = f"{count:,} lines of 120 bytes ({MANNERS[manner]}) to train.log and a terminal against `| tee`"
        found.comparisons.append(compare(row, title, samples, GOAL, limit=FILE_ONLY))


class _Log:
    """The three ways of one manner of printing."""

    def __init__(self, settings: Settings, count: int, manner: str) -> None:
        self._count = count
        self._start = settings.scratch / "first_line"
        self._tee_log = settings.scratch / "tee.log"
        self._words = ["-u", str(PROGRAMS / "print_lines.py"), str(self._start), str(count), manner]
        command = {"command": ["{python}", *self._words], "resume_args": []}
        self._lab = Lab(settings.scratch / f"lines-{manner}", {"BENCH-7": {"trainer": command}})

    def clean(self) -> None:
        self._lab.forget_runs()
        self._tee_log.unlink(missing_ok=True)

    def ours(self) -> Sample:
        sample, seen = self._on_terminal(self._lab.run("BENCH-7"))
        (folder,) = self._lab.run_folders()
        self._check(folder / "logs" / "train.log", seen)
        return sample

    def tee(self) -> Sample:
        sample, seen = self._on_terminal(self._in_bash('"$@" 2>&1 | tee "$LOG"'))
        self._check(self._tee_log, seen)
        return sample

    def file_only(self) -> Sample:
        sample, _ = self._on_terminal(self._in_bash('"$@" >"$LOG" 2>&1'))
        self._check(self._tee_log, None)
        return sample

    def _in_bash(self, words: str) -> list[str]:
        return ["bash", "-c", words, "bash", sys.executable, *self._words]

    def _on_terminal(self, command: list[str]) -> tuple[Sample, Seen]:
        env = clean_environment(PYTHONUNBUFFERED="1", LOG=str(self._tee_log))
        sample, seen, ended = timed_on_terminal(command, cwd=self._lab.folder, env=env)
        return Sample(ended - float(self._start.read_text(encoding="utf-8")), sample.cpu_s), seen

    def _check(self, log: Path, seen: Seen | None) -> None:
        """Refuse a measurement in which a line is missing."""
        lines, last = 0, b""
        with open(log, "rb") as file:
            while chunk := file.read(1 << 20):
                lines += chunk.count(b"\n")
                last = (last + chunk)[-4000:]
        if lines < self._count or LAST_LINE not in last:
            raise BenchmarkError(f"'{log.name}' has {lines:,} of {self._count:,} lines")
        if seen is not None and (seen.lines < self._count or LAST_LINE not in seen.tail):
            raise BenchmarkError(f"the terminal saw {seen.lines:,} of {self._count:,} lines")
