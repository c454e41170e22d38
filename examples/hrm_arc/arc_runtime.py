"""What a trainer needs of the world around it: the kit's helpers, signals, the device, a clock for its speed.

Reads the environment that the launcher sets. Writes nothing.
Try it: `python examples/hrm_arc/train_arc_full_nova.py --max_steps 20`, then Ctrl-C once, or twice
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType


def find_helpers() -> ModuleType:
    """Import `resume_helper`: from PYTHONPATH under the launcher, else from the lib/ folder of this repo."""
    try:
        import resume_helper
    except ImportError:
        # Last, not first: a folder of ours must not shadow a module of the lab's.
        sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))
        import resume_helper
    return resume_helper


class StopRequest:
    """TERM or INT asks for a stop after the step. A second one is the same stop, but for a second INT after a moment.

    A scheduler sends TERM to the whole job, and again; a person who presses Ctrl-C once more means now.
    """

    MOMENT_S = 1.0

    def __init__(self) -> None:
        self.signal: int | None = None
        self._first_int_s: float | None = None

    def listen(self) -> None:
        """Take over TERM and INT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

    def asked(self) -> bool:
        return self.signal is not None

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now_s = time.monotonic()
            if self._first_int_s is not None and now_s - self._first_int_s >= self.MOMENT_S:
                os._exit(128 + number)
            self._first_int_s = self._first_int_s or now_s
        self.signal = self.signal or number


class Speed:
    """Steps per second of training alone, over the last steps; evaluations and saves are not counted."""

    def __init__(self, window: int = 50) -> None:
        self._seconds: deque[float] = deque(maxlen=window)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Time one step."""
        begun = time.monotonic()
        yield
        self._seconds.append(time.monotonic() - begun)

    def per_second(self) -> float | None:
        total = sum(self._seconds)
        return len(self._seconds) / total if total > 0 else None


def prepare_torch(seed: int, threads: int | None, device: str) -> str:
    """Seed everything, fix the thread count (other counts give other last bits), ask for repeatable kernels.

    Returns:
        'cpu' or 'cuda'; 'auto' takes a GPU where there is one.
    """
    # cuBLAS repeats its sums only with a workspace of its own; it is read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import numpy
    import torch  # late: a usage error needs no torch (1.3 s)

    if threads:
        torch.set_num_threads(threads)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a GPU a few kernels have no repeatable form; they warn and go on.
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # It would also fill fresh memory before each use: nothing here reads memory it has not written (10 % of a step).
    torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def autocast(amp: str, device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a maker of precision contexts: bf16 or fp16 autocast, or none."""
    import torch

    if amp == "off":
        return contextlib.nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return lambda: torch.autocast(device, dtype=dtype)
