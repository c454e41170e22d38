"""How trainers tell of their steps: every tenth one, counted from 0, or in a progress bar and nowhere else.

For tests/support/lab_trainer.py and support/wired_trainer.py.
"""

from __future__ import annotations

import sys
import time

TENTH, FROM_0, BAR = SHOWN = ("tenth", "from-0", "bar")


def show(how: str, step: int, steps: int, loss: str) -> None:
    """Tell of a step that is done.

    Args:
        how: one of SHOWN.
        step: how many steps are done.
        steps: how many there will be.
        loss: as it is printed.
    """
    if how == BAR:  # as tqdm draws it
        time.sleep(0.01)  # one that ends between two looks of the sidecar shows nothing
        share = step / steps
        bar = f"{share:4.0%}|{'#' * int(10 * share):10}| {step}/{steps} [00:01<00:01, 90.00it/s, loss={loss}]"
        print(f"\r{bar}", end="\n" if step == steps else "", file=sys.stderr, flush=True)
    elif how == FROM_0:
        print(f"step {step - 1} loss {loss}", flush=True)
    elif step % 10 == 0:
        print(f"step {step} loss {loss}", flush=True)
