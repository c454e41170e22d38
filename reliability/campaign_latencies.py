"""How soon: from a loss that is not finite to the trainer's end, from a death to the next step, from a hang to TERM.

Each as often as --count says; the middle and the longest are printed. The first and the last with a small training
whose next process is there in 30 ms, so that the kit's own time is measured; the death on the example itself, with all
that a start of torch costs, under its launcher and once more with the launcher killed beside it, where the watcher
(--every 1) takes it up.
Try it: `python -m reliability.campaign_latencies --count 10`
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.fork_server import ForkServer
from support.nights import Night, one
from support.places import ROOT
from support.processes import wait_until
from support.runs import events

HANG_MINUTES, LOOK_S = 0.1, 1
LONG = {"training": {"max_steps": 1_000_000}}
NOWHERE = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def nonfinite(night: Night, count: int) -> Iterator[tuple[float, float]]:
    """Yield (seconds to the abort event, which is followed by TERM at once; to the trainer's end) of each."""
    for number in range(count):
        night.config("--delay", "0.05", "--at", "25", "loss=nan", **LONG)
        (night.once / "loss.done").unlink(missing_ok=True)
        run = night.start("--name", f"nan{number}")
        wait_until(lambda run=run: events(run, "exited"), "it is stopped")
        child = night.next_of(run)
        bad_s = next(event["mono_s"] for event in events(run, "step") if event["step"] == 25)
        yield one(run, "abort")["mono_s"] - bad_s, one(run, "exited")["mono_s"] - bad_s
        end(night, child)


def hang(night: Night, count: int) -> Iterator[float]:
    """Yield the seconds from the last step to the abort event, of runs whose limit is HANG_MINUTES."""
    limits = {"hang_minutes": HANG_MINUTES, "grace_s": 2}
    night.config("--delay", "0.05", **LONG)
    end(night, night.start())
    watcher = night.popen("abort-watch", "--every", str(LOOK_S), **NOWHERE)
    for number in range(count):
        night.config("--delay", "0.05", "--at", "25", "hang", abort=limits, **LONG)
        (night.once / "hang.done").unlink(missing_ok=True)
        run = night.start("--name", f"hang{number}")
        child = night.next_of(run)
        yield one(run, "abort")["mono_s"] - events(run, "step")[-1]["mono_s"]
        end(night, child)
    watcher.kill()
    watcher.wait()


def death(night: Night, count: int, *, with_launcher: bool) -> Iterator[float]:
    """Yield the seconds from a kill -9 to the next trainer's first step, on the example."""
    night.config_file.write_bytes((ROOT / "config.yaml").read_bytes().replace(b'root: "."', f'root: "{ROOT}"'.encode()))
    settings = ["training.max_steps=100000", "checkpoint.every=20", "trainer.env=[RESUMEKIT_TEST_MARK]"]
    words = [word for setting in settings for word in ("--set", setting)]
    run = night.runs / night("run", "EXP-01", "--fresh", "--detach", *words).stdout.strip()
    watcher = night.popen("abort-watch", "--every", str(LOOK_S), **NOWHERE) if with_launcher else None
    for _ in range(count):
        first = len(events(run, "step"))
        wait_until(lambda run=run, first=first: len(events(run, "step")) > first + 2, "it trains", 300)
        wait_until(lambda run=run: list(run.glob("checkpoints/*.pt.json")), "a checkpoint", 300)
        begun = time.monotonic()
        if with_launcher:
            night.kill_all_of(run)
        else:
            os.kill(night.who(run, "trainer"), signal.SIGKILL)
        run = night.next_of(run, 300)
        yield events(run, "step")[0]["mono_s"] - begun
    if watcher:
        watcher.kill()
        watcher.wait()
    end(night, run)


def end(night: Night, run: Path) -> None:
    """End a run as a person does."""
    night("abort-watch", "--stop", run.name)


def told(what: str, values_s: list[float]) -> str:
    ordered = sorted(values_s)
    return f"{what}: {ordered[len(ordered) // 2]:.1f} s in the middle, {ordered[-1]:.1f} s at most (n = {len(ordered)})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10)
    count = parser.parse_args(argv).count
    with tempfile.TemporaryDirectory() as folder:
        server = ForkServer("support.night_trainer")
        nights = [Night(Path(folder) / name, server) for name in ("nonfinite", "hang", "death", "both")]
        try:
            found = list(nonfinite(nights[0], count))
            print(told("a loss that is not finite to its abort event and TERM", [one[0] for one in found]))
            print(told("a loss that is not finite to the end of its trainer", [one[1] for one in found]))
            over_s = [age_s - HANG_MINUTES * 60 for age_s in hang(nights[1], count)]
            print(told(f"a hang to its TERM, beyond abort.hang_minutes, with a look every {LOOK_S} s", over_s))
            died = list(death(nights[2], count, with_launcher=False))
            print(told("a dead trainer to the next one's first step, the example, by its launcher", died))
            both = list(death(nights[3], count, with_launcher=True))
            print(told("the same with the launcher killed, too, by a watcher that looks every second", both))
        finally:
            for night in nights:
                night.clean_up()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
