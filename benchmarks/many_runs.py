"""A runs folder as a lab has it after a year: thousands of finished runs, some live ones with long journals.

One real run is made by the kit and copied under other names. Of a live one every process is there: a sleeper of its own
stands for its trainer, and carries its token.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lab import KIT, PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed

sys.path.append(str(KIT / "lib"))

from resumekit.base import journal, processes
from resumekit.base.files import utc_now
from resumekit.run.journal_fold import fold

LIVE = 20
# What a sidecar that saves its fold every 5 s has not folded yet, at some steps a second.
UNSAVED_EVENTS = 20
STEPS_PER_S = 4.0
LOG_LINES = 2000
_PATTERNS = {"step": "step ([0-9]+)", "loss": "loss ([0-9.a-z+-]+)"}


class ManyRuns:
    """The folder, and the sleepers that stand for trainers; `make` it, and `end` it whatever happens.

    Args:
        folder: made by `make`.
        sizes: how many runs the folders have: of the smaller ones the finished runs are hard links into the largest.
        events: how many events a live run's journal has.
    """

    def __init__(self, folder: Path, sizes: tuple[int, ...], events: int) -> None:
        self.folders = {size: folder / str(size) for size in sizes}
        self.config = folder / "config.yaml"
        self._folder, self._events = folder, events
        self._template, self._shared = Path(), _Journal(1)
        self._sleepers: list[subprocess.Popen[bytes]] = []
        self._locks: list[TextIO] = []

    def make(self) -> None:
        """Make the folders and start the sleepers."""
        command = ["{python}", "-u", str(PROGRAMS / "tell_steps.py"), "10", "0.5"]
        trainer = {"command": command, "resume_args": [], "log_patterns": _PATTERNS}
        lab = Lab(self._folder, {"BENCH-9": {"trainer": trainer}})
        timed(lab.run("BENCH-9"), cwd=self._folder, env=clean_environment())
        (self._template,) = lab.run_folders()
        self._shared = _Journal(self._events)
        for size in sorted(self.folders, reverse=True):
            self._make(self.folders[size], size)
            _check(self.folders[size], size)

    def end(self) -> None:
        """End the sleepers."""
        for sleeper in self._sleepers:
            sleeper.kill()
            sleeper.wait()
        for lock in self._locks:
            lock.close()

    def save_folds(self) -> None:
        """Do as the sidecars do every five seconds: what is older was left alone by one that died."""
        for runs in self.folders.values():
            for name in os.listdir(runs / ".live"):
                if not name.startswith("."):
                    os.utime(runs / name / ".sidecar.json")

    def without_saved_folds(self, target: Path) -> None:
        """Make a folder of live runs, but for what their sidecars have saved."""
        self._make(target, LIVE)
        for name in os.listdir(target / ".live"):
            (target / name / ".sidecar.json").unlink(missing_ok=True)

    def _make(self, runs: Path, count: int) -> None:
        template, largest = self._template, self.folders[max(self.folders)]
        files = {path: path.read_bytes() for path in sorted(template.rglob("*")) if path.is_file()}
        (runs / ".live").mkdir(parents=True)
        for number, name in enumerate(map(_name, range(count))):
            if number >= LIVE and runs != largest:
                shutil.copytree(largest / name, runs / name, copy_function=os.link, symlinks=True)
                continue
            for path, content in files.items():
                target = runs / name / path.relative_to(template)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.replace(template.name.encode(), name.encode()))
            if number < LIVE:
                self._bring_to_life(runs / name)
                (runs / ".live" / name).touch()

    def _bring_to_life(self, run: Path) -> None:
        token = os.urandom(16).hex()
        env = {**clean_environment(), processes.TOKEN_VARIABLE: token}
        lines = "".join(f"step {step} loss {1 / step:.6f} lr 0.001\n" for step in range(1, LOG_LINES))
        log = run / "logs" / "output.log"
        log.write_text(lines, encoding="ascii")
        with open(log, "ab") as output:  # as of a trainer: a process is known by its output too
            sleeper = subprocess.Popen(["sleep", "7200"], env=env, stdin=subprocess.DEVNULL, stdout=output)
        self._sleepers.append(sleeper)
        trainer = processes.identify(sleeper.pid, token)
        itself = processes.identify(os.getpid())
        if trainer is None or itself is None:
            raise BenchmarkError("a sleeper that stands for a trainer has ended")
        (run / "exit.json").unlink()
        record = json.loads((run / "run.json").read_bytes())
        (run / "run.json").write_text(json.dumps({**record, "token": token}), encoding="ascii")
        who = {"trainer": trainer.as_fields(), "shim": itself.as_fields(), "launcher": itself.as_fields()}
        state, offset = self._shared.write(run, who)
        tail = journal.tail(run / "journal.jsonl", offset)
        account = {"run_id": run.name, "journal_offset": offset, "journal_tail": tail, "state": state,
                   "output_offset": len(lines)}  # fmt: skip
        (run / ".sidecar.json").write_text(json.dumps(account), encoding="ascii")
        self._locks.append(open(run / ".status.lock", "w"))  # noqa: SIM115 (held as its sidecar would, to the end)
        fcntl.flock(self._locks[-1], fcntl.LOCK_EX)


class _Journal:
    """One long journal for all live runs, but for its first line: who it is."""

    def __init__(self, events: int) -> None:
        self._now_s = time.monotonic()
        self._steps = [self._step(number, events) for number in range(1, events)]
        # Folded once; what differs from run to run is put in its place.
        self._folded = fold({}, [self._launched({}, events), *self._steps[:-UNSAVED_EVENTS]])
        self._events = events

    def write(self, run: Path, who: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Write it; return (state, offset) as a sidecar would have saved them a moment ago."""
        path = run / "journal.jsonl"
        launched = self._launched(who, self._events)
        with open(path, "wb") as file:
            for event in (launched, *self._steps):
                file.write(_line(event | {"run_id": run.name}))
        unsaved = sum(len(_line(event | {"run_id": run.name})) for event in self._steps[-UNSAVED_EVENTS:])
        begun = fold({}, [launched])
        return self._folded | {"launched": begun["launched"]}, path.stat().st_size - unsaved

    def _launched(self, who: dict[str, Any], events: int) -> dict[str, Any]:
        return {"event": "launched", "at": utc_now(), "mono_s": self._mono_s(0, events), "run_id": "", **who}

    def _step(self, number: int, events: int) -> dict[str, Any]:
        return {
            "event": "step", "at": utc_now(), "mono_s": self._mono_s(number, events), "run_id": "", "step": number,
            "loss": 2 + 1 / number, "lr": 0.001, "source": "log",
        }  # fmt: skip

    def _mono_s(self, number: int, events: int) -> float:
        # The machine need not have been up for so long: then they were a little faster.
        per_step_s = min(1 / STEPS_PER_S, 0.9 * self._now_s / events)
        return self._now_s - (events - number) * per_step_s


def drop_from_memory(paths: Iterator[Path]) -> None:
    """Put the files' pages out of the page cache; names and inodes stay, and no other files are touched."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        os.fdatasync(descriptor)  # a page that is not on the disk yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def files_that_are_read(runs: Path) -> list[Path]:
    """Return every status.json, and every file of a live run."""
    live = os.listdir(runs / ".live")
    found = [runs / name / "status.json" for name in os.listdir(runs) if name != ".live"]
    return found + [path for name in live for path in (runs / name).rglob("*") if path.is_file()]


def _name(number: int) -> str:
    return f"BENCH-9_run{number:05d}_20261122-1200"


def _check(runs: Path, size: int) -> None:
    live = len(os.listdir(runs / ".live"))
    events = sum(1 for _ in journal.read(runs / _name(0) / "journal.jsonl"))
    if live != min(LIVE, size) or len(os.listdir(runs)) != size + 1 or not events:
        raise BenchmarkError(f"'{runs}' has {live} live runs of {len(os.listdir(runs)) - 1}")


def _line(event: dict[str, Any]) -> bytes:
    return b"\n" + json.dumps(event, separators=(",", ":")).encode() + b"\n"
