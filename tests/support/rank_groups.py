"""Functions that run in several gloo ranks at once, each a process that is forked from the test's own.

The processes meet through a file: no port is taken. What a rank returns, or the error that it raises, comes back to
the test. Try it: `python -m pytest tests/test_ranks.py`
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

LIMIT_S = 120.0


def in_ranks(count: int, function: Callable[..., Any], *args: Any, wait_s: float = 60.0) -> list[Any]:
    """Run `function(rank, *args)` in so many ranks of one process group; returns what each returned or raised.

    Args:
        wait_s: how long a rank waits for another one, once the group is there.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        ranks = [
            context.Process(target=_rank, args=(number, count, folder, pipes[number][1], wait_s, function, args))
            for number in range(count)
        ]
        try:
            for one in ranks:
                one.start()
            for _, inner in pipes:
                inner.close()
            deadline = time.monotonic() + LIMIT_S
            return [_received(outer, deadline) for outer, _ in pipes]
        finally:
            for one in ranks:
                one.join(10)
                one.kill()


def raised(answers: list[Any]) -> list[str]:
    """Return what each rank raised, as 'Class: message'; what it returned, where it raised nothing."""
    return [f"{type(one).__name__}: {one}" if isinstance(one, Exception) else one for one in answers]


def _received(pipe: Any, deadline: float) -> Any:
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        return TimeoutError("the rank did not end")
    try:
        return pipe.recv()
    except EOFError:
        return ConnectionError("the rank was killed")


def _rank(
    number: int, count: int, folder: str, pipe: Any, wait_s: float, function: Callable[..., Any], args: Any
) -> None:  # fmt: skip
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(number), WORLD_SIZE=str(count))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=count)
    dist.distributed_c10d._get_default_store().set_timeout(datetime.timedelta(seconds=wait_s))
    try:
        answer = function(number, *args)
    except Exception as error:
        traceback.print_exc()
        answer = error
    with contextlib.suppress(OSError):
        pipe.send(answer)
    pipe.close()
    os._exit(0)  # the test's own fixtures are not this process's to end
