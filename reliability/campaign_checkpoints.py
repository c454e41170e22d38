"""The long runs of the checkpoint tests: kills during saves, mutants, damaged archives.

Prints what was found, and exits with 1 if anything was torn, lost or taken that should not have been.
Try it: `python -m reliability.campaign_checkpoints --kills 300 --mutants 2000 --seed 1`
"""

from __future__ import annotations

import argparse
import collections
import random
import tempfile
import time
from pathlib import Path

import torch

from reliability.checkpoint_mutants import Nursery
from reliability.save_crashes import kill_during_saves
from resumekit.base.files import UnreadableFile
from resumekit.checkpoint import archive
from support.checkpoint_tools import save_steps


def damaged_archives(folder: Path, count: int, seed: int) -> collections.Counter[str]:
    """Damage an archive at random places; every one must be read or refused, and never anything else."""
    (path,) = save_steps(folder, 1)
    good = path.read_bytes()
    dice = random.Random(seed)
    found: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        data = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            archive.summarize(path)
            found["read"] += 1
        except UnreadableFile:
            found["refused"] += 1
        except Exception as error:
            found[f"wrong: {type(error).__name__}"] += 1
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="SIGKILLs during saves (default: %(default)s)")
    parser.add_argument("--background", action="store_true", help="the saves are written beside a training")
    parser.add_argument("--mutants", type=int, default=2000, help="mutants of file and manifest (default: %(default)s)")
    parser.add_argument("--damaged", type=int, default=10_000, help="damaged archives (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    is_bad = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        kills = kill_during_saves(folder / "kills", options.kills, options.seed, background=options.background)
        is_bad |= any(kills[name] for name in ("torn", "lost", "mixed", "left"))
        which = "saves in the background" if options.background else "saves"
        print(
            f"{options.kills} kills during {which}, seed {options.seed}: {kills} ({time.monotonic() - started:.0f} s)"
        )

        started = time.monotonic()
        nursery = Nursery(folder / "mutants")
        wrong = [
            (one.kind, said) for one in nursery.mutants(options.mutants, options.seed) if (said := nursery.judge(one))
        ]
        is_bad |= bool(wrong)
        print(
            f"{options.mutants} mutants, seed {options.seed}: {len(wrong)} wrong ({time.monotonic() - started:.0f} s)"
        )
        for kind, said in wrong[:20]:
            print(f"  {kind}: {said}")

        started = time.monotonic()
        found = damaged_archives(folder / "damaged", options.damaged, options.seed)
        is_bad |= any(key.startswith("wrong") for key in found)
        seconds = time.monotonic() - started
        print(f"{options.damaged} damaged archives, seed {options.seed}: {dict(found)} ({seconds:.0f} s)")
    return int(is_bad)


if __name__ == "__main__":
    raise SystemExit(main())
