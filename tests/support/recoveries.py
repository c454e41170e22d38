"""Runs that are taken up again: their config, their end, and how far a successor has come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.commands import Kit
from support.places import LIB, LIVE, ROOT
from support.processes import wait_until
from support.runs import events


def askers(kit: Kit, run: Path, number: int) -> list[subprocess.Popen]:
    """Start so many processes that ask at once, each as a launcher of its own, whether a run is taken up.

    Each says the id of the run that it was given, or nothing, in one line, and lives until its standard input ends.
    """
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from resumekit.watch import recovering;"
        "made = recovering.recover(Path(sys.argv[2]), os.getpid()).ready;"
        "print(made.run_id if made else ''); sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(ROOT / "lib"), str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return [subprocess.Popen(command, env=kit.env, **pipes) for _ in range(number)]


def answers_of(asked: list[subprocess.Popen]) -> list[str]:
    """Return the ids of the runs that were made, of all that `askers` started."""
    return [name for one in asked if (name := one.stdout.readline().strip())]


PATTERNS = {"step": "^step ([0-9]+)", "loss": "loss ([0-9.a-z]+)"}
DELAY = 0.03


def configure(kit: Kit, *toy_args: str, **more: Any) -> None:
    """Write a config whose runs are recovered: a trainer that loads with the kit, as far as the launcher knows."""
    sections: dict[str, Any] = {
        "trainer": {"log_patterns": PATTERNS, "env": ["RESUMEKIT_TEST_MARK"], "loads_with_kit": True},
        "training": {"max_steps": 60},
        "status": {"interval_s": 1},
        "checkpoint": {"every": 5, "keep_last": None},
        "recover": {"enabled": True, "backoff_s": 1, "replay_steps": 10},
    }
    for name, section in more.items():
        sections[name] = {**sections.get(name, {}), **section}
    kit.config("--delay", str(DELAY), "--save-every", "5", *toy_args, **sections)


def reached(run: Path, step: int) -> bool:
    return any(event["step"] >= step for event in events(run, "step"))


def kill_trainer(run: Path, number: int = signal.SIGKILL) -> None:
    os.kill(events(run, "launched")[0]["trainer"]["pid"], number)


def over(kit: Kit, run: Path, state: str) -> dict[str, Any]:
    """Wait until a run's status says this state; return the status."""
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == state, f"{run.name} is {state}")
    return kit.status(run)


def live(kit: Kit) -> list[str]:
    return [name for name in os.listdir(kit.runs / LIVE) if not name.startswith(".")]


# A pass of the watcher as bin/abort-watch.sh starts it, whose second look comes sooner.
SOON = """
import sys
sys.path.append(sys.argv.pop(1))
from resumekit import commands
from resumekit.watch import inspection
inspection.SECOND_LOOK_S = 0.2
sys.exit(commands.main(sys.argv[1:]))
"""


def watcher(runs: Path, config: Path, *args: str) -> list[str]:
    """Return the command of one pass."""
    return [sys.executable, "-I", "-S", "-c", SOON, str(LIB), "watch", f"--runs={runs}", f"--config={config}", *args]


def watch_as_cron(kit: Kit, code: int | None = None, **more: str) -> subprocess.CompletedProcess:
    """Let the watcher pass as under cron: no terminal, an empty environment but for Python and the test's mark."""
    env = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "RESUMEKIT_TEST_MARK": kit.mark, **more}
    done = subprocess.run(
        watcher(kit.runs, kit.config_file),
        env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert code in (None, done.returncode), done.stdout + done.stderr
    return done
