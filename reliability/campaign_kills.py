"""Kill -9 for each process of a training, again and again, until it is done; then compare it bit for bit.

Launcher, trainer, sidecar and watcher of a small training (support/night_trainer.py) are killed at random moments;
the watcher comes back as cron would bring it. Nights of some twenty kills each, until there were so many. Judged by the
oracle (never two trainers, no step lost beyond the newest proven checkpoint, one event per incident), and by the last
checkpoint and every loss: those of an undisturbed training.
With --wrapper a `train.sh` stands before the trainer: then the script is killed, or the Python inside it.
Try it: `python -m reliability.campaign_kills --kills 30 --seed 1`
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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reliability.oracle import Oracle
from support.fork_server import ForkServer
from support.nights import Night
from support.processes import marked_pids
from support.runs import events

STEPS, EVERY, DELAY_S = 1000, 5, 0.01
MEAN_S = 0.6  # between two kills
NIGHT_S = 300.0  # a night that is longer has come to a standstill
NIGHT_KILLS = 25
# How a process is known by its command line, and how often one of its kind is drawn.
KINDS = {"trainer": b"fork_server.py", "launcher": b".sh", "sidecar": b"sidecar", "watcher": b"watch"}
WEIGHTS = {"trainer": 4, "launcher": 2, "sidecar": 2, "watcher": 2}


class Outcome(NamedTuple):
    """What came of one night.

    Args:
        kills: kind -> how many were killed.
        runs: how many runs it took.
        faults: what the oracle and the comparison found; empty if it was as it must be.
        elapsed_s: how long it took.
    """

    kills: Counter[str]
    runs: int
    faults: list[str]
    elapsed_s: float


class Cron:
    """A watcher that looks every second, and comes back a moment after it was killed."""

    def __init__(self, night: Night) -> None:
        self._night, self._process, self._again_at = night, None, 0.0

    def tick(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            self._process, self._again_at = None, time.monotonic() + 0.5
        elif time.monotonic() >= self._again_at:
            nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self._process = self._night.popen("abort-watch", "--every", "1", **nowhere, start_new_session=True)


def reference(night: Night) -> Path:
    """Train without any disturbance, and as fast as it goes: no bit hangs on the pace; returns the run."""
    configure(night, delay_s=0.0)
    night("run", "T-2")
    return night.run_dirs()[0]


def configure(night: Night, delay_s: float = DELAY_S) -> None:
    night.config(
        "--every", str(EVERY), "--delay", str(delay_s), training={"max_steps": STEPS},
        recover={"max_attempts": 1000}, checkpoint={"every": EVERY, "keep_last": None},
    )  # fmt: skip


def one_night(night: Night, whole: Path, draw: random.Random, most: int, *, has_wrapper: bool = False) -> Outcome:
    """Start a training and kill `most` times at most; wait until it is done.

    Args:
        night: an empty folder of its own.
        whole: the run to compare with.
        draw: moments and victims.
        has_wrapper: whether the trainer is started by a script.
    """
    begun = time.monotonic()
    if has_wrapper:
        night.wrap()
    configure(night)
    try:
        with Oracle(night.runs, night.next_launch, is_forked=night.is_warm) as oracle:
            night("run", "T-1", "--detach")
            kills = disturb(night, draw, most)
            last = night.run_dirs()[-1]
            found = [] if is_done(night) else [f"not finished after {NIGHT_S:.0f} s: {last.name} {night.state(last)}"]
            time.sleep(1.5)  # what comes after the end must be nothing: the watcher is still there
            with contextlib.suppress(AssertionError):
                oracle.check()
            found += oracle.faults()
    finally:
        night.clean_up()
    return Outcome(kills, len(night.run_dirs()), found or differences(night, whole), time.monotonic() - begun)


def disturb(night: Night, draw: random.Random, most: int) -> Counter[str]:
    """Kill one after another until the training is done or has come to a standstill; returns kind -> how many."""
    kills, cron = Counter[str](), Cron(night)
    begun = time.monotonic()
    next_s = begun + draw.expovariate(1 / MEAN_S)
    while not is_done(night) and time.monotonic() - begun < NIGHT_S:
        cron.tick()
        time.sleep(0.02)
        if kills.total() < most and time.monotonic() >= next_s:
            kills.update(filter(None, [kill_one(night, draw)]))
            next_s = time.monotonic() + draw.expovariate(1 / MEAN_S)
    return kills


def nights(
    folder: Path, server: ForkServer, draw: random.Random, kills: int, *, has_wrapper: bool = False
) -> Iterator[Outcome]:
    """Spend night after night in folders of their own until so many were killed, or one without a kill."""
    whole, left, number = reference(Night(folder / "whole", server)), kills, 0
    while left > 0:
        night = Night(folder / f"night{number}", server)
        outcome = one_night(night, whole, draw, min(left, NIGHT_KILLS), has_wrapper=has_wrapper)
        yield outcome
        left, number = left - (outcome.kills.total() or left), number + 1


def is_done(night: Night) -> bool:
    """Whether some run has come to its last step, or a person is called."""
    return any(night.state(run) in ("finished", "needs_attention") for run in night.run_dirs())


def kill_one(night: Night, draw: random.Random) -> str | None:
    """KILL a process of a kind that is drawn; returns the kind, None where there is none of it now."""
    kind = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    pids = sorted(pid for pid in marked_pids(f"RESUMEKIT_TEST_MARK={night.mark}") if kind_of(pid) == kind)
    if not pids:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(pids), signal.SIGKILL)
        return kind
    return None


def kind_of(pid: int) -> str | None:
    """Return what a process of ours is, by its command line; None for the shim, a helper, or one that is gone."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if any(word.endswith(b"shim.py") for word in argv):
        return None
    if any(word.endswith(KINDS["trainer"]) for word in argv):
        return "trainer"
    if b"sidecar" in argv or b"watch" in argv:
        return "sidecar" if b"sidecar" in argv else "watcher"
    return "launcher" if any(word.endswith((b"launcher.sh", b"run.sh")) for word in argv) else None


def differences(night: Night, whole: Path) -> list[str]:
    """Return what is different from the undisturbed run, in any loss or any value of the last checkpoint."""
    from resumekit.trainer.comparison import compare  # late: torch

    done = [run for run in night.run_dirs() if night.state(run) == "finished" or has_done_all(run)]
    if len(done) != 1:
        last = night.run_dirs()[-1]
        return [f"{len(done)} finished runs; {last.name} {night.state(last)}: {reason_of(last)}"]
    return [one.sentence() for one in compare(done[0], whole).differences]


def has_done_all(run: Path) -> bool:
    """Whether a run was killed behind its last step: by the rule a person is told, and nothing is left to train."""
    return str(reason_of(run)).startswith("it had done its last step") and events(run, "step")[-1]["step"] == STEPS


def reason_of(run: Path) -> str | None:
    """Return why a run needs attention; None where it does not."""
    return next((one["reason"] for one in events(run, "recovery") if one["outcome"] == "needs_attention"), None)


def summary(outcomes: list[Outcome], seed: int) -> str:
    kills = sum((one.kills for one in outcomes), Counter[str]())
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kills.items()))
    bad = sum(bool(one.faults) for one in outcomes)
    runs, elapsed_s = sum(one.runs for one in outcomes), sum(one.elapsed_s for one in outcomes)
    return (
        f"seed {seed}: {kills.total()} kills ({listed}) in {len(outcomes)} nights, {runs} runs, "
        f"{bad} nights with a fault; {elapsed_s:.0f} s"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wrapper", action="store_true", help="a train.sh stands before the trainer")
    parser.add_argument("--keep", type=Path, help="where the nights are kept; else they are removed")
    args = parser.parse_args(argv)
    outcomes = []
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = ForkServer("support.night_trainer")
        for outcome in nights(folder, server, random.Random(args.seed), args.kills, has_wrapper=args.wrapper):
            outcomes.append(outcome)
            told = f"{outcome.kills.total()} kills, {outcome.runs} runs, {outcome.elapsed_s:.0f} s"
            print(f"night {len(outcomes)}: {told}", *outcome.faults[:5], sep="\n  ", flush=True)
    print(summary(outcomes, args.seed))
    return int(any(one.faults for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
