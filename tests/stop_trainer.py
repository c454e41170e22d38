#!/usr/bin/env python3
"""A trainer of a lab's own that saves when it is stopped, and takes a second signal for "now": unsaved, code 99.

--kind plain: no torch. --kind workers: its batches come from two data workers, which die of a
TERM as torch's do; deaf: from two that ignore it (worker_init_fn). --kind ranks: one of torchrun's, which
agree over gloo on the step after which all stop; a second signal is borne there, for torchrun hands one on to each rank
that a scheduler has signalled as well.

    python stop_trainer.py --dir checkpoints --steps 1000000 --delay 0.1 --save-s 0.5
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))

from toy_trainer import PATTERN, write_checkpoint

NOW = 99


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds per step")
    parser.add_argument("--save-s", type=float, default=0.0, help="seconds of a save")
    parser.add_argument("--kind", choices=("plain", "workers", "deaf", "ranks"), default="plain")
    options = parser.parse_args()
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked and options.kind != "ranks":
            os.write(1, b"now, unsaved\n")
            os._exit(NOW)
        asked.append(number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, ask)
    rank, agree = _ranks(asked) if options.kind == "ranks" else (0, lambda: bool(asked))
    deaf_to = numbers if options.kind == "deaf" else []
    batches = _batches(deaf_to) if options.kind in ("workers", "deaf") else None
    for step in range(1, options.steps + 1):
        if batches is not None:
            next(batches)
        time.sleep(options.delay)
        if rank == 0:
            print(f"step {step} loss {1 / step:.4f}", flush=True)
        if agree():
            if rank == 0:
                time.sleep(options.save_s)
                if batches is not None:
                    next(batches)  # what a save may need of its workers
                write_checkpoint(options.dir / PATTERN.format(step=step), step)
                print(f"saved step {step}", flush=True)
            return 128 + (asked or [signal.SIGTERM])[0]
    return 0


def _batches(numbers: list[int]) -> Iterator[object]:
    import torch

    def ignore(_worker: int) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return iter(torch.utils.data.DataLoader(range(10**6), num_workers=2, worker_init_fn=ignore))


def _ranks(asked: list[int]) -> tuple[int, Callable[[], bool]]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")

    def agree() -> bool:
        flag = torch.tensor([float(bool(asked))])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    return dist.get_rank(), agree


if __name__ == "__main__":
    raise SystemExit(main())
