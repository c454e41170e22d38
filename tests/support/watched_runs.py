"""Runs that a watcher looks at: real ones, and folders that stand for one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from resumekit.base import journal, processes
from resumekit.checkpoint import grades
from resumekit.run import live_marker
from support.commands import Kit
from support.places import LIVE
from support.processes import wait_until
from support.runs import events


def start(kit: Kit, toy_args: str = "", name: str = "toy") -> Path:
    """Start a detached run and return its folder when its first step is in its journal."""
    done = kit("run", "T-1", "--fresh", "--name", name, "--detach", env={"TOY_ARGS": toy_args})
    run = kit.runs / done.stdout.strip()
    wait_until(lambda: events(run, "step"), "a first step")
    return run


def kill_all_of(run: Path) -> None:
    """KILL launcher, shim and trainer of a run, and its sidecar with them, all at once."""
    (launched,) = events(run, "launched")
    pids = [launched[who]["pid"] for who in ("launcher", "shim", "trainer")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sidecar" in words and os.fsencode(run) in words:
            pids.append(int(pid))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # none of them sees another one die
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def attest_all(run: Path) -> None:
    """Give each checkpoint of a run that is dead its manifest, as its sidecar would have five seconds later."""
    for path in run.glob("checkpoints/*.pt"):
        grades.attest(path, int(path.stem.rpartition("_")[2]), run_id=run.name)


def made(runs_dir: Path, run_id: str, **files: bytes) -> Path:
    """Make a live run folder of another_user's."""
    run = runs_dir / run_id
    run.mkdir(parents=True)
    (runs_dir / LIVE).mkdir(exist_ok=True)
    (runs_dir / LIVE / run_id).touch()
    record = {"run_id": run_id, "host": processes.host_name(), "experiment": "T-1"}
    for name, content in {"run_json": json.dumps(record).encode(), **files}.items():
        stem, _, suffix = name.rpartition("_")
        (run / f"{stem}.{suffix}").write_bytes(content)
    return run


def own_identity() -> dict[str, Any]:
    found = processes.identify(os.getpid())
    assert found
    return found.as_fields()


def journal_of(run: Path, *more: tuple[str, dict[str, Any]]) -> None:
    who = own_identity()
    journal.append(run / "journal.jsonl", "launched", run.name, trainer=who, shim=who, launcher=who)
    for kind, fields in more:
        journal.append(run / "journal.jsonl", kind, run.name, **fields)


def live_run(runs_dir: Path, *events_of_it: Any) -> Path:
    """Make a live run of ours whose processes are this one."""
    config = json.dumps({"recover": {"enabled": False}}).encode()
    run = made(runs_dir, "T-1_run_20261122-1735", resolved_config_json=config)
    (runs_dir / LIVE / run.name).unlink()
    live_marker.make(runs_dir / LIVE / run.name)
    record = json.loads((run / "run.json").read_text())
    own = processes.identify(os.getpid())
    assert own
    (run / "run.json").write_text(json.dumps({**record, "launcher": own.as_fields()}))
    journal_of(run, *events_of_it)
    return run
