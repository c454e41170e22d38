"""Trainings of several ranks (`ranks_trainer`): started, cut, and compared bit for bit.

Try it: `python -m pytest tests/test_ranks_resume.py`
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import torch

from resumekit.checkpoint import manifest
from support.fork_server import ForkServer, Trainer

STEPS = 12
PATTERN = "hrm_arc_step_{}.pt"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(server: ForkServer, folder: Path, *argv: str, count: int = 2, **environment: str) -> list[Trainer]:
    port = str(free_port())
    return [
        server.start(
            folder / f"rank_{rank}", "--dir", str(folder), "--port", port, "--steps", str(STEPS), *argv,
            RANK=str(rank), WORLD_SIZE=str(count), RESUMEKIT_RUN_DIR=str(folder), RESUMEKIT_RUN_ID=folder.name,
            **environment,
        )
        for rank in range(count)
    ]  # fmt: skip


def train(server: ForkServer, folder: Path, *argv: str, count: int = 2, **environment: str) -> list[int]:
    """Run a training to its end and return its ranks' codes; where one is cut, all others are killed with it."""
    ranks = started(server, folder, *argv, count=count, **environment)
    codes: dict[int, int] = {}
    if cut := environment.get("CUT"):
        first = int(cut.rpartition(":")[2])
        codes[first] = ranks[first].wait()
        kill([one for rank, one in enumerate(ranks) if rank not in codes])
    return [codes[rank] if rank in codes else one.wait() for rank, one in enumerate(ranks)]


def kill(ranks: list[Trainer], number: int = signal.SIGKILL) -> None:
    """Signal every rank that is still there."""
    for one in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, number)


def newest(folder: Path) -> Path:
    proven = [path for path in folder.glob("*.pt") if path.with_name(f"{path.name}.json").exists()]
    return max(proven, key=lambda path: manifest.read(path).step)


def losses(folder: Path, rank: int) -> dict[int, set[str]]:
    """Return what a rank has told of each step; of a step that was trained again all that was told."""
    found: dict[int, set[str]] = {}
    for line in (folder / f"losses_{rank}").read_text().splitlines():
        step, loss = line.split()
        found.setdefault(int(step), set()).add(loss)
    return found


def assert_same(one: Path, other: Path) -> None:
    """Hold every loss of every rank, and what both ended with, against another training's, bit for bit."""
    for rank in range(2):
        assert losses(one, rank) == losses(other, rank), rank
        ends = [torch.load(folder / f"final_{rank}", weights_only=True) for folder in (one, other)]
        assert len({repr(end["place"]) + repr(end["python"]) for end in ends}) == 1
        assert torch.equal(ends[0]["torch"], ends[1]["torch"])
        for key, value in ends[0]["model"].items():
            assert torch.equal(value, ends[1]["model"][key]), key
        for states in zip(*(end["optimizer"]["state"].values() for end in ends), strict=True):
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def newest_or_none(folder: Path) -> Path | None:
    return newest(folder) if any(folder.glob("*.pt.json")) else None
