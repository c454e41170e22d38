"""Rows 5c and 5d: for how long a save in the background stops the training, against torch's dcp.async_save.

The same state, both in this process, in turn; timed is the call, and what a thread writes behind it is waited for
outside the time. dcp's process group is gloo's, of one process. Try it: `python benchmarks/bench.py 5 --quick`
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, clocked, measure
from lab import KIT, PROGRAMS
from processes import BenchmarkError
from settings import Findings, Settings

GOAL = 0.5
FULL = (("5c", 256, 21), ("5d", 1000, 9))
QUICK = (("5c", 64, 5),)
KEPT = "dcp.async_save, its stager kept"
BLOCKING = "ours, blocking"


def run(settings: Settings, found: Findings) -> None:
    """Add the rows to what was found."""
    import torch.distributed as dist  # late: the rows before this one need no torch

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        for row, megabytes, rounds in QUICK if settings.is_quick else FULL:
            _measure(settings.scratch / f"background-{megabytes}", row, megabytes, min(rounds, settings.rounds), found)
    finally:
        dist.destroy_process_group()


def _measure(folder: Path, row: str, megabytes: int, rounds: int, found: Findings) -> None:
    sys.path += [str(PROGRAMS), str(KIT / "lib")]
    import torch.distributed.checkpoint as dcp  # late, as above
    from stack import make_optimizer, make_stack, width_for
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    import resume_helper

    stack = make_stack(width_for(megabytes))
    optimizer = make_optimizer(stack, has_stepped=True)
    stager = DefaultStager(StagingOptions(False, False, False, False))  # as dcp makes one for each save
    steps = iter(range(1, 10**6))

    def ours(*, background: bool) -> Sample:
        step = next(steps)
        options = {"model": stack, "optimizer": optimizer, "data_state": {"at": step}, "log_fn": lambda line: None}
        sample = clocked(lambda: resume_helper.save_checkpoint(folder, step, background=background, **options))
        # The same step once more waits for the thread, and writes nothing.
        path = resume_helper.save_checkpoint(folder, step, **options)
        if path is None or not path.with_name(f"{path.name}.json").exists():
            raise BenchmarkError("save_checkpoint failed")
        return sample

    def theirs(**options: object) -> Sample:
        futures = []

        def call() -> None:
            state = {"model": stack.state_dict(), "optim": optimizer.state_dict()}
            futures.append(dcp.async_save(state, checkpoint_id=folder / f"dcp-{next(steps)}", **options))

        sample = clocked(call)
        futures[0].result()
        return sample

    variants = [
        Variant(OURS, lambda: ours(background=True)),
        Variant(THEIRS, theirs),
        Variant(AGAIN, theirs),
        Variant(KEPT, lambda: theirs(async_stager=stager)),
        Variant(BLOCKING, lambda: ours(background=False)),
    ]
    samples = measure(variants, rounds, f"row 5, {megabytes} MB, in the background", _emptied(folder))
    title = f"training stopped by save_checkpoint(background=True), {megabytes} MB, against dcp.async_save"
    found.samples[f"row 5, {megabytes} MB, in the background"] = samples
    found.comparisons.append(compare(row, title, samples, GOAL, peers=(KEPT, BLOCKING)))
    _emptied(folder)()


def _emptied(folder: Path) -> Callable[[], None]:
    def empty() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    return empty
