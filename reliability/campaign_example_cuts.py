"""Cut the example's training at many random moments and compare each resumed run with the uninterrupted one.

Each cut is a real process, ended by KILL, TERM or INT at a random moment after its journal shows its first step: in a
step, a save or an evaluation, whatever it hits. Prints what was hit and ends with 1 if one run differs.
Try it: `python -m reliability.campaign_example_cuts --cuts 60 --seed 1`
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from resumekit.trainer.comparison import compare
from support.example_runs import events, example_server, fork, newest_checkpoint, wait_for
from support.fork_server import ForkServer

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def cut_and_resume(server: ForkServer, folder: Path, whole: Path, number: int, after_s: float) -> tuple[str, bool]:
    """Cut one run, resume it to the end, compare.

    Args:
        after_s: seconds between the first journalled step and the signal.

    Returns:
        (what the signal hit, whether everything is equal).
    """
    parent, child = folder / "parent", folder / "child"
    trainer = fork(server, parent)
    wait_for(parent, lambda event: event["event"] == "step")
    time.sleep(after_s)
    phases = [event["phase"] for event in events(parent, "phase")]
    try:
        os.kill(trainer.pid, number)
    except ProcessLookupError:  # it was quicker than the measured run, and is done: cut a new one earlier
        trainer.finish()
        return cut_and_resume(server, folder / "again", whole, number, after_s / 2)
    trainer.finish()
    flags, step = [], 0
    if list((parent / "checkpoints").glob("*.pt.json")):
        step, checkpoint = newest_checkpoint(parent)
        flags = ["--resume", str(checkpoint)]
    code, output = fork(server, child, *flags).finish()
    equal = code == 0 and compare(child, whole).is_equal
    if not equal:
        print(f"DIFFERS: {signal.Signals(number).name} after {after_s:.3f} s, resumed from step {step}\n{output}")
    return phases[-1], equal


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 0 if every resumed run equals the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cuts", type=int, default=60, help="how many runs are cut (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    args = parser.parse_args(argv)
    rng, hit, different = random.Random(args.seed), collections.Counter(), 0
    server = example_server()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        code, output = fork(server, whole).finish()
        assert code == 0, output
        steps = events(whole, "step")
        lasts_s = steps[-1]["mono_s"] - steps[0]["mono_s"]
        for index in range(args.cuts):
            number = SIGNALS[index % len(SIGNALS)]
            folder = Path(scratch) / str(index)
            phase, equal = cut_and_resume(server, folder, whole, number, rng.uniform(0, lasts_s))
            hit[f"{signal.Signals(number).name} in {phase}"] += 1
            different += not equal
    for what, count in sorted(hit.items()):
        print(f"{count:4d}  {what}")
    print(f"{args.cuts} cuts, seed {args.seed}: {args.cuts - different} equal bit for bit, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
