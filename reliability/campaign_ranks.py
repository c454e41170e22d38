"""Cut one DDP training of two ranks after another, anywhere and several times, and compare it with one left alone.

The trainer (support/ranks_trainer.py) has dropout and noise from generators that each rank seeds by itself. A rank is
killed in a step, before or inside a save, in an evaluation; all are killed at once, as with their parent; all get TERM.
Each is resumed until it is done: every loss of every rank and the end must be those of the whole run, bit for bit.
Try it: `python -m reliability.campaign_ranks --cuts 10 --seed 1`
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from support.fork_server import ForkServer
from support.processes import wait_until
from support.rank_runs import STEPS, assert_same, kill, losses, newest_or_none, started, train
from support.ranks_trainer import EVERY

WAYS = ("step", "save", "manifest", "before_save", "eval", "all killed", "TERM to all", "TERM to one")
FROM_OUTSIDE = WAYS[5:]


def one_cut(server: ForkServer, folder: Path, way: str, draw: random.Random, begun: int, more: list[str]) -> str:
    """Start or resume the training and cut it once; return what was done, in words."""
    if way in FROM_OUTSIDE:
        at = draw.randrange(begun + 1, STEPS + 1)
        ranks = started(server, folder, "--ranks", "all", "--pause", "0.02", *more)
        wait_until(lambda: _told(folder) >= at, f"step {at}")
        time.sleep(draw.random() * 0.03)
        number = signal.SIGKILL if way == "all killed" else signal.SIGTERM
        kill(ranks[draw.randrange(2) :][:1] if way == "TERM to one" else ranks, number)
        codes = [one.wait() for one in ranks]
        assert number == signal.SIGKILL or codes in ([143, 143], [0, 0]), codes
        return f"{way} at step {at}"
    every = {"step": 1, "eval": 3}.get(way, EVERY)
    rank = 0 if way in ("save", "manifest") else draw.randrange(2)
    steps = [step for step in range(begun + 1, STEPS + 1) if step % every == 0]
    cut = f"{way}:{draw.choice(steps)}:{rank}"
    codes = train(server, folder, "--ranks", "all", *more, CUT=cut)
    assert codes[rank] == -signal.SIGKILL, (cut, codes)
    return cut


def _told(folder: Path) -> int:
    """Return the last step that every rank has told."""
    if not all((folder / f"losses_{rank}").exists() for rank in range(2)):
        return 0
    lines = [(folder / f"losses_{rank}").read_text().splitlines() for rank in range(2)]
    return min(int(own[-1].split()[0]) if own and " " in own[-1] else 0 for own in lines)


def campaign(folder: Path, count: int, draw: random.Random) -> tuple[int, int, Counter[str]]:
    """Make so many cuts; return those made, the runs that were resumed to their end, and how often in each way."""
    server = ForkServer("support.ranks_trainer")
    whole = folder / "whole"
    assert train(server, whole, "--ranks", "all") == [0, 0]
    done, runs, ways = 0, 0, Counter[str]()
    while done < count:
        own, said = folder / f"run{runs}", []
        path, begun = None, 0
        for attempt in range(draw.randrange(1, 4)):
            if begun >= STEPS - EVERY:
                break
            way = draw.choice(WAYS)
            place = own / f"checkpoints_{attempt}"
            more = ["--checkpoints", str(place), *(["--resume", str(path)] if path else [])]
            said.append(one_cut(server, own, way, draw, begun, more))
            done, ways[way] = done + 1, ways[way] + 1
            path = newest_or_none(place) or path
            begun = int(path.stem.rpartition("_")[2]) if path else 0
        more = ["--resume", str(path)] if path else []
        codes = train(server, own, "--ranks", "all", "--checkpoints", str(own / "last"), *more)
        assert codes == [0, 0], (said, codes)
        assert max(losses(own, 1)) == STEPS
        assert_same(own, whole)
        runs += 1
        print(f"{done} cuts, {runs} runs: {', '.join(said)}: equal bit for bit", flush=True)
    return done, runs, ways


def main() -> int:
    """Run the campaign; any difference ends it with an AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done, runs, ways = campaign(Path(folder), options.cuts, random.Random(options.seed))
    print(f"{done} cuts of {runs} runs, all equal bit for bit; {', '.join(f'{way} {n}' for way, n in ways.items())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
