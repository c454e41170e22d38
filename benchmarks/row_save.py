"""Row 5: a save with digest, manifest and every fsync, against torch.save and one fsync; then `row_background`.

Both in this process, in turn, each to a new file on the same disk. What was saved is removed outside the time.
Try it: `python benchmarks/bench.py 5 --quick`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import row_background
from comparison import compare
from harness import AGAIN, OURS, THEIRS, Variant, clocked, measure
from lab import KIT, PROGRAMS
from processes import BenchmarkError
from settings import Findings, Settings

GOAL = 1.1
# (row, size of the checkpoint in MB, most rounds)
FULL = (("5a", 256, 21), ("5b", 1000, 9))
QUICK = (("5a", 64, 5),)
WRITING = "writing as many bytes and fsync"


def run(settings: Settings) -> Findings:
    """Measure row 5."""
    found = Findings()
    for row, megabytes, rounds in QUICK if settings.is_quick else FULL:
        _measure(settings.scratch / f"save-{megabytes}", row, megabytes, min(rounds, settings.rounds), found)
    row_background.run(settings, found)
    return found


def _measure(folder: Path, row: str, megabytes: int, rounds: int, found: Findings) -> None:
    sys.path += [str(PROGRAMS), str(KIT / "lib")]
    from stack import make_optimizer, make_stack, plain_content, width_for

    import resume_helper  # late, with torch: the rows before this one need neither

    folder.mkdir()
    stack = make_stack(width_for(megabytes))
    optimizer = make_optimizer(stack, has_stepped=True)
    content = plain_content(stack, optimizer, 1)
    steps = iter(range(1, 10**6))
    plain = folder / "plain.pt"
    _plain_save(content, plain)
    size = plain.stat().st_size
    block = bytes(1 << 20)

    def ours() -> None:
        if resume_helper.save_checkpoint(folder, next(steps), model=stack, optimizer=optimizer, log_fn=_quiet) is None:
            raise BenchmarkError("save_checkpoint failed")

    variants = [
        Variant(OURS, lambda: clocked(ours)),
        Variant(THEIRS, lambda: clocked(lambda: _plain_save(content, plain))),
        Variant(AGAIN, lambda: clocked(lambda: _plain_save(content, plain))),
        Variant(WRITING, lambda: clocked(lambda: _write(block, size, plain))),
    ]
    title = f"row 5, {megabytes} MB"
    samples = measure(variants, rounds, title, lambda: _empty(folder))
    found.samples[title] = samples
    title = f"save_checkpoint with digest, manifest and fsyncs, {size / 1e6:.0f} MB, against torch.save + fsync"
    found.comparisons.append(compare(row, title, samples, GOAL, limit=WRITING))
    _empty(folder)


def _plain_save(content: dict[str, Any], path: Path) -> None:
    import torch  # late, see above

    torch.save(content, path)
    _sync(path)


def _write(block: bytes, size: int, path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _quiet(line: str) -> None:
    """Say nothing: the terminal is not what is measured."""
