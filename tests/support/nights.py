"""Whole nights for the fault catalogue: the commands with recovery switched on, a launcher, and a watcher like cron's.

Its fixtures are in tests/faults/conftest.py. What is started carries the kit's mark, in whatever session it ends up.
Try it: `python -m pytest tests/faults/test_a_trainer.py`
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from support.commands import Kit, assert_is_said, sidecar_of
from support.fork_server import ForkServer
from support.processes import DEADLINE_S, wait_until
from support.recoveries import watcher
from support.runs import events

PATTERNS = {"step": "^step ([0-9]+)", "loss": "loss ([0-9.a-z+-]+)"}
HANG_MINUTES = 0.05
# In trainer.env of every config here: what the watcher starts is found and ended with the rest.
MARKED = ["RESUMEKIT_TEST_MARK"]
# A night of a minute: what is bounded by the hour and the day has tests of its own.
RECOVER = {"enabled": True, "backoff_s": 1, "replay_steps": 10, "max_per_hour": None, "max_per_day": None}


class Night(Kit):
    """A kit whose runs are taken up, and the ways to disturb them."""

    def __init__(self, folder: Path, server: ForkServer | None = None) -> None:
        self._server = server
        self.once = folder / "once"  # what a trainer does once leaves a file here
        self.once.mkdir(parents=True)
        self.wrapper: list[str] = []  # what stands before the warm trainer's command
        super().__init__(folder)

    def config(self, *trainer_args: str, **sections: dict[str, Any]) -> None:
        """As Kit's, with recovery on; `trainer_args` go to night_trainer.py where there is a server for it."""
        trainer = {"log_patterns": PATTERNS, "env": MARKED, **sections.pop("trainer", {})}
        recover = {**RECOVER, **sections.pop("recover", {})}
        own: dict[str, Any] = {"checkpoint": {"every": 10, "keep_last": None}, **sections}
        if self._server is None:
            super().config(*trainer_args, trainer=trainer, recover=recover, **own)
            return
        where = ("--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--once", _plain(self.once))
        command = [*self.wrapper, *self._server.command("support.night_trainer", *where, *map(_plain, trainer_args))]
        trainer = {"command": command, "loads_with_kit": True, **trainer}
        super().config(trainer=trainer, recover=recover, **own)

    def wrap(self) -> None:
        """Put a script before the trainer, as nearly every lab has one: no exec, no trap."""
        script = self.folder / "train.sh"
        script.write_text('#!/usr/bin/env bash\n"$@"\ncode=$?\necho "the script ends with $code"\nexit "$code"\n')
        self.wrapper = ["bash", _plain(script)]

    def start(self, *args: str, env: dict[str, str] | None = None, steps: int = 1) -> Path:
        """Start T-1 detached; return its folder when `steps` of its steps are in the journal."""
        done = self("run", "T-1", "--fresh", "--detach", *args, env=env or {})
        run = self.runs / done.stdout.strip()
        wait_until(lambda: len(events(run, "step")) >= steps, "a first step")
        return run

    @property
    def is_warm(self) -> bool:
        """Whether what trains is a fork of a server."""
        return self._server is not None

    def next_launch(self) -> subprocess.CompletedProcess:
        """Ask what the next launch would do: for the oracle."""
        return self("run", "T-1", "--dry-run", code=None)

    def watch(self, *args: str, code: int | None = None, **more: Any) -> subprocess.CompletedProcess:
        """One pass of the watcher, as cron makes it; with an environment of its own by bin/abort-watch.sh."""
        if more:
            return self("abort-watch", *args, code=code, **more)
        done = subprocess.run(
            watcher(self.runs, self.config_file, *args),
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * DEADLINE_S,
        )  # fmt: skip
        assert code in (None, done.returncode), done.stdout + done.stderr
        assert_is_said(done)
        return done

    def watched(self, ask: Any, what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Let the watcher pass again and again until `ask` is true."""

        def look() -> Any:
            self.watch()
            return ask()

        return wait_until(look, what, deadline_s)

    def watched_beyond_a_hang(self, hang_minutes: float) -> list[str]:
        """Let the watcher pass for longer than a hang takes; returns what it has said in each pass, the first left out.

        The first pass may come before the sidecar has seen what has just been done to the run.
        """
        said = [self.watch().stdout]
        until_s = time.monotonic() + 2.5 * 60 * hang_minutes
        while time.monotonic() < until_s:
            said.append(self.watch().stdout)
        return [*said[1:], self.watch().stdout]

    def child(self, run: Path) -> Path | None:
        """Return the run that has a trainer and recovers `run`; None while there is none."""
        return next((one for one in self.children(run) if events(one, "launched")), None)

    def children(self, run: Path) -> list[Path]:
        records = ((one, record(one)) for one in self.run_dirs())
        return [one for one, found in records if found.get("parent_run_id") == run.name and found.get("recovery")]

    def next_of(self, run: Path, deadline_s: float = DEADLINE_S) -> Path:
        """Wait until a run is taken up, and its successor has begun to train."""
        child = wait_until(lambda: self.child(run), f"{run.name} is taken up", deadline_s)
        wait_until(lambda: events(child, "step"), "its first step")
        return child

    def state(self, run: Path) -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(self.status(run)["state"])
        return ""

    def state_is(self, run: Path, *names: str) -> None:
        wait_until(lambda: self.state(run) in names, f"{run.name} is {names}, not {self.state(run)}")

    def who(self, run: Path, what: str) -> int:
        """Return the pid of a run's 'trainer', 'shim' or 'launcher' as its journal has it."""
        (launched,) = events(run, "launched")
        return launched[what]["pid"]

    def sidecar(self, run: Path) -> int | None:
        return sidecar_of(self, run)

    def kill_launcher(self, run: Path) -> None:
        """KILL a run's launcher, the shell that restarts its sidecar, and the sidecar."""
        launcher = self.who(run, "launcher")
        shim = self.who(run, "shim")
        spared = {shim, *_children_of(shim)}
        family = [launcher, *(pid for pid in _children_of(launcher) if pid not in spared)]
        family += [pid for pid in [self.sidecar(run)] if pid]
        _kill_at_once(family)

    def kill_all_of(self, run: Path) -> None:
        """KILL launcher, shim, trainer and sidecar of a run at once; returns when none of them writes any more."""
        launcher = self.who(run, "launcher")
        family = [launcher, *_children_of(launcher), self.who(run, "shim"), self.who(run, "trainer")]
        family += [pid for pid in [self.sidecar(run)] if pid]
        _kill_at_once(family)
        # A fork of the warm server is killed by the server, a moment after its client.
        wait_until(lambda: not _writers_of(run), "nothing writes into it any more")


def record(run: Path) -> dict[str, Any]:
    """Return run.json; {} while it is not there."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((run / "run.json").read_bytes())
    return {}


def one(run: Path, kind: str) -> dict[str, Any]:
    """Return the only event of a kind."""
    found = events(run, kind)
    assert len(found) == 1, f"{len(found)} {kind} events in {run.name}: {found}"
    return found[0]


def proven_steps(run: Path) -> list[int]:
    """Return the steps of which a run has a checkpoint with a manifest, oldest first."""
    return sorted(int(path.name.split("_")[3].split(".")[0]) for path in run.glob("checkpoints/hrm_arc_step_*.pt.json"))


def _plain(word: str | Path) -> str:
    return str(word).replace("{", "{{").replace("}", "}}")


def _writers_of(run: Path) -> list[int]:
    """Return the pids of the processes whose output is a run's log."""
    found = []
    log = str(run / "logs" / "output.log")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if log in (os.readlink(entry / "fd" / "1"), os.readlink(entry / "fd" / "2")):
                found.append(int(entry.name))
    return found


def _children_of(pid: int) -> list[int]:
    """Return the pids of a process's children and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found + [deeper for child in found for deeper in _children_of(child)]


def _kill_at_once(pids: list[int]) -> None:
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none of them sees another one die
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def sidecar_supervisor_of(sidecar: int) -> int:
    """Return the pid of the shell that starts a sidecar again: its parent."""
    return int(Path(f"/proc/{sidecar}/stat").read_bytes().rpartition(b")")[2].split()[1])
