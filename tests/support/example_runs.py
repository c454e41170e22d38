"""Start the example's trainer as a process of its own, signal it, and compare what two runs left behind.

Shared by tests/test_example_trainer.py and a campaign. A start costs three seconds of imports, so
most runs are forked from a server that has them done; some are started anew, and both kinds must agree bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.fork_server import LIMIT_S, ForkServer
from support.places import ROOT

EXAMPLE = ROOT / "examples" / "hrm_arc"
TRAINER = EXAMPLE / "train_arc_full_nova.py"

# Small, with everything on that makes the next step: accumulation, EMA, dropout, exploration. Both evaluations are
# due at the last step.
CONFIG: dict[str, dict[str, Any]] = {
    "data": {"max_grid": 6, "variants": 4},
    "model": {"seq_len": 36, "hidden_size": 32, "dropout": 0.1, "halt_exploration": 0.5},
    "training": {"max_steps": 15, "batch_size": 3, "grad_accum_steps": 2, "log_every": 4},
    "schedule": {"warmup_steps": 4},
    "validation": {"fast_eval_every": 3, "full_eval_every": 5, "gate_full_eval_on_fast_improvement": False},
    "checkpoint": {"every": 4, "keep_last": None},
}


class Trainer:
    """A running trainer; its output lies in `output.log` of its run folder."""

    def __init__(self, pid: int, run_dir: Path, wait: Callable[[], int]) -> None:
        self.pid, self.run_dir, self._wait = pid, run_dir, wait

    def finish(self) -> tuple[int, str]:
        """Wait for its end; return exit code (negative: the signal that killed it) and output."""
        code = self._wait()
        return code, (self.run_dir / "output.log").read_text()


def example_server() -> ForkServer:
    """Start the server that `fork` takes."""
    return ForkServer("train_arc_full_nova", "arc_training")


def fork(server: ForkServer, run_dir: Path, *flags: str, config: dict | None = None) -> Trainer:
    """Start a trainer that is forked, which takes no time."""
    argv, environment = _prepare(run_dir, flags, config)
    trainer = server.start(run_dir, *argv, **environment)
    return Trainer(trainer.pid, run_dir, trainer.wait)


def start_anew(run_dir: Path, *flags: str, config: dict | None = None) -> Trainer:
    """Start a trainer from nothing, as the launcher would."""
    argv, environment = _prepare(run_dir, flags, config)
    with open(run_dir / "output.log", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", str(TRAINER), *argv],
            cwd=run_dir,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
        )
    return Trainer(process.pid, run_dir, lambda: process.wait(timeout=LIMIT_S))


def events(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the journal's events so far, of one kind or all."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run_dir / "journal.jsonl").read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):  # empty, or still being written
                found.append(json.loads(line))
    return [event for event in found if kind in (None, event["event"])]


def wait_for(run_dir: Path, seen: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the journal shows it: a signal before that would hit another moment."""
    deadline = time.monotonic() + LIMIT_S
    while not any(seen(event) for event in events(run_dir)):
        assert time.monotonic() < deadline, (run_dir / "output.log").read_text()
        time.sleep(0.002)


def newest_checkpoint(run_dir: Path) -> tuple[int, Path]:
    """Return (step, path) of the newest complete checkpoint (its manifest is there)."""
    manifests = (run_dir / "checkpoints").glob("hrm_arc_step_*.pt.json")
    paths = [manifest.with_suffix("") for manifest in manifests]
    return max((int(path.stem.rsplit("_", 1)[1]), path) for path in paths)


def _prepare(run_dir: Path, flags: tuple[str, ...], config: dict | None) -> tuple[list[str], dict[str, str]]:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(config or CONFIG))
    record: dict[str, Any] = {"run_id": run_dir.name}
    if "--resume" in flags:
        checkpoint = Path(flags[flags.index("--resume") + 1])
        record |= {
            "parent_run_id": checkpoint.parent.parent.name,
            "parent_step": int(checkpoint.stem.rpartition("_")[2]),
        }
    (run_dir / "run.json").write_text(json.dumps(record))
    path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH"), str(ROOT / "lib")) if part)
    environment = {"PYTHONPATH": path, "RESUMEKIT_RUN_DIR": str(run_dir), "RESUMEKIT_RUN_ID": run_dir.name}
    return ["--config", str(run_dir / "config.json"), *flags], environment
