"""A storm: one kill a minute on average, checkpoints every ten seconds; how many of the trained steps survive.

The trainer of a small training is killed at moments drawn from an exponential distribution, three times in ten
together with its launcher and sidecar, which leaves it to a watcher that looks every ten seconds. A step that was
trained and not saved is trained again: it counts as lost. `--minutes` by the clock; `--scale 5` makes all times a fifth
(kills, checkpoints, watcher, length), but not what a start takes, so that is the harder storm.
Try it: `python -m reliability.campaign_storm --minutes 20 --seed 1`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from reliability.oracle import Oracle
from support.fork_server import ForkServer
from support.nights import Night, record
from support.runs import events

KILL_EVERY_S, SAVE_EVERY_S, LOOK_EVERY_S = 60.0, 10.0, 10.0
STEP_S = 0.05
WITH_LAUNCHER = 0.3


class Outcome(NamedTuple):
    """What came of a storm.

    Args:
        kills: how many, and how many of them with the launcher.
        trained, survived: optimizer steps that were done, and those that the newest run stands on.
        pauses_s: from each kill of a trainer to its successor's first step.
        elapsed_s: from the first step to the last.
        faults: what the oracle found.
    """

    kills: tuple[int, int]
    trained: int
    survived: int
    pauses_s: list[float]
    elapsed_s: float
    faults: list[str]

    @property
    def share(self) -> float:
        return self.survived / self.trained


def storm(night: Night, draw: random.Random, minutes: float, scale: float) -> Outcome:
    """Let it blow; returns what came of it.

    Args:
        minutes: by the clock, after scaling.
        scale: all times but those of a start are divided by it.
    """
    step_s = STEP_S / scale
    every = round(SAVE_EVERY_S / STEP_S)
    night.config(
        "--every", str(every), "--delay", f"{step_s:.4f}", training={"max_steps": 10_000_000},
        recover={"max_attempts": 1000}, checkpoint={"every": every, "keep_last": None},
    )  # fmt: skip
    kills = with_launcher = 0
    with Oracle(night.runs, is_forked=night.is_warm) as oracle:
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        night.start()
        night.popen("abort-watch", "--every", str(max(1, round(LOOK_EVERY_S / scale))), **nowhere)
        end = time.monotonic() + minutes * 60
        next_s = time.monotonic() + draw.expovariate(scale / KILL_EVERY_S)
        while time.monotonic() < end:
            time.sleep(0.05)
            run = night.run_dirs()[-1]
            if time.monotonic() < next_s or not events(run, "launched") or (run / "exit.json").exists():
                continue
            both = draw.random() < WITH_LAUNCHER
            with contextlib.suppress(ProcessLookupError):
                night.kill_all_of(run) if both else os.kill(night.who(run, "trainer"), signal.SIGKILL)
                kills, with_launcher = kills + 1, with_launcher + both
            next_s = time.monotonic() + draw.expovariate(scale / KILL_EVERY_S)
        time.sleep(10)
        with contextlib.suppress(AssertionError):
            oracle.check()
        found = oracle.faults()
    night.clean_up()
    return _outcome(night, (kills, with_launcher), found)


def _outcome(night: Night, kills: tuple[int, int], faults: list[str]) -> Outcome:
    trained, pauses_s, told = 0, [], []
    before: float | None = None
    for run in night.run_dirs():
        steps = events(run, "step")
        if not steps:
            continue
        trained += steps[-1]["step"] - (record(run)["parent_step"] or 0)
        if before is not None:
            pauses_s.append(steps[0]["mono_s"] - before)
        before, told = steps[-1]["mono_s"], [*told, steps[0]["mono_s"], steps[-1]["mono_s"]]
        last = steps[-1]["step"]
    return Outcome(kills, trained, last, pauses_s, told[-1] - told[0], faults)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="where the runs are kept; else they are removed")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        night = Night(args.keep or Path(folder) / "night", ForkServer("support.night_trainer"))
        found = storm(night, random.Random(args.seed), args.minutes, args.scale)
    pauses = sorted(found.pauses_s)
    middle = f"{pauses[len(pauses) // 2]:.1f} s in the middle, {pauses[-1]:.1f} s at most" if pauses else "none"
    print(
        f"seed {args.seed}, scale {args.scale:g}: {found.kills[0]} kills ({found.kills[1]} with the launcher) in "
        f"{found.elapsed_s / 60:.1f} min; {found.survived} of {found.trained} trained steps survived, "
        f"{found.share:.1%}; from a run's last step to its successor's first: {middle}"
    )
    print(*found.faults, sep="\n")
    return int(bool(found.faults) or found.share < 0.8)


if __name__ == "__main__":
    raise SystemExit(main())
