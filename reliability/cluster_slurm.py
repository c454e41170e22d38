"""The two-node Slurm of tools/slurm.sh: brought up and down, its nodes cut and frozen, its clients asked.

Try it: `python -m reliability.cluster --scenario requeue`
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.places import ROOT

SCRIPT = ROOT / "tools" / "slurm.sh"
NODES = ("node1", "node2")
TRACKERS = ("linuxproc", "cgroup")
CLIENT_S, HELD_S = 20.0, 2.0
# `tools/slurm.sh` ends with it where this machine cannot have a Slurm.
CANNOT = 3


class CannotHave(Exception):
    """This machine cannot have such a Slurm; the text is one sentence."""


class Cluster:
    """A Slurm that is up.

    Args:
        folder: its state; made, and used again.
        tracker: 'linuxproc' or 'cgroup'.
    """

    def __init__(self, folder: Path, tracker: str) -> None:
        self.folder, self.tracker = folder, tracker
        self._held_s: dict[str, float] = {}
        self.env: dict[str, str] = {}
        self.bring_up()

    def bring_up(self) -> None:
        """Bring it up, anew where it is up already."""
        done = self._script("up", str(self.folder), self.tracker)
        if done.returncode == CANNOT:
            raise CannotHave(done.stderr.strip().removeprefix("slurm.sh: "))
        if done.returncode != 0:
            self.down()
            raise RuntimeError(f"the Slurm does not come up: {done.stderr.strip()}")
        self.env = environment(self.folder / "env.sh")

    def down(self) -> None:
        """End all of it, in whatever state it is."""
        done = self._script("down", str(self.folder))
        if done.returncode != 0:
            raise RuntimeError(f"the Slurm does not go down: {done.stderr.strip()}")

    def cut(self, node: str) -> None:
        """Take a node's power: all of its processes die at once, and Slurm is told that it is down."""
        self._checked("cut", str(self.folder), node)

    def give_back(self, node: str) -> None:
        """Boot a node again."""
        self._checked("return", str(self.folder), node)

    def freeze(self, node: str) -> list[int]:
        """Stop every process of a node, as one that has lost its network is for the others; return their pids."""
        pids = self.processes(node)
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        return pids

    def thaw(self, node: str) -> None:
        for pid in self.processes(node):
            _send(pid, signal.SIGCONT)

    def processes(self, node: str) -> list[int]:
        """Return the pids, as this machine counts them, of all that runs on a node."""
        words = (b"unshare", node.encode(), os.fsencode(self.folder.resolve()))
        leader = next(pid for pid in _pids() if {*words} <= {*_argv(pid)})
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        world = _world(int(children[0]))
        return [pid for pid in _pids() if _world(pid) == world]

    # ---- its clients, as a user has them at the login node

    def ask(self, *words: str, env: dict[str, str] | None = None, code: int | None = 0) -> str:
        """Run one of Slurm's clients; return what it prints."""
        done = subprocess.run(
            words, env=env or {**os.environ, **self.env}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=CLIENT_S,
        )  # fmt: skip
        assert code in (None, done.returncode), f"{' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job, by name: 'JobState', 'Restarts', 'NodeList'."""
        lines = self.ask("scontrol", "show", "job", "-o", job).splitlines()
        return next((found for found in map(fields, lines) if job in (found.get("JobId"), task_of(found))), {})

    def queue(self) -> list[tuple[str, str, str]]:
        """Return (job, state, reason) of each job that is not over."""
        rows = (line.split(maxsplit=2) for line in self.ask("squeue", "-h", "-r", "-o", "%i %T %r").splitlines())
        return [(row[0], row[1], row[2] if len(row) > 2 else "") for row in rows]

    def release(self) -> None:
        """Let each requeued job begin that Slurm holds for two minutes: two seconds after it was seen first.

        Within the same second a node takes it for the job that it has just ended.
        """
        now_s = time.monotonic()
        held = [job for job, state, reason in self.queue() if state == "PENDING" and reason == "BeginTime"]
        self._held_s = {job: self._held_s.get(job, now_s) for job in held}
        for job, since_s in self._held_s.items():
            if now_s - since_s > HELD_S:
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now", code=None)

    def settle(self) -> None:
        """Cancel whatever there is, and wait until the queue is empty and both nodes are idle."""
        self.ask("scancel", "-u", "root" if os.geteuid() == 0 else str(os.geteuid()), code=None)
        end_s = time.monotonic() + 60
        while self.queue() or set(self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()) != {"idle"}:
            assert time.monotonic() < end_s, f"the queue does not get empty: {self.queue()}"
            time.sleep(0.1)

    def _checked(self, *words: str) -> None:
        done = self._script(*words)
        assert done.returncode == 0, done.stderr

    @staticmethod
    def _script(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400)


def environment(file: Path) -> dict[str, str]:
    """Return what a Slurm's env.sh sets."""
    words = ["env", "-i", "bash", "-c", '. "$1" && env -0', "bash", str(file)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: found[name] for name in ("SLURM_CONF", "PATH", "LD_LIBRARY_PATH") if name in found}


def fields(line: str) -> dict[str, str]:
    """Return the NAME=VALUE pairs of a line of `scontrol show job -o`; a value ends before the next name."""
    return dict(re.findall(r"(?:^| )([A-Za-z][\w:/]*)=(.*?)(?= [A-Za-z][\w:/]*=|$)", line))


def task_of(job: dict[str, str]) -> str | None:
    """Return '4_2' for the second task of the array 4; None for a job of its own."""
    return f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayJobId" in job and "ArrayTaskId" in job else None


def _pids() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def _argv(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def _world(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return None


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
