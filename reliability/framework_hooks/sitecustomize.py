"""A pace, a count of steps and a NaN for a trainer that has no line for them: `reliability.frameworks` uses it.

In the environment: RECIPE_STEPS, a folder in which `<pid>` grows by a byte for each optimizer step; RECIPE_PACE_S, how
many seconds each step takes at least; RECIPE_NAN, `<step>:<file>`: behind that step of the process every weight is NaN,
once, for the file is made then. Only a process that runs a `train.py` is touched.
"""

import os
import sys
import time


def install() -> None:
    """Hook into every optimizer; costs the import of torch, which the trainer needs anyway."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    count = open(os.path.join(os.environ["RECIPE_STEPS"], str(os.getpid())), "ab", buffering=0)  # noqa: SIM115
    pace_s = float(os.environ.get("RECIPE_PACE_S") or 0)
    nan_step, _, once = os.environ.get("RECIPE_NAN", "0:").partition(":")

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        count.write(b".")
        if count.tell() == int(nan_step) and not os.path.exists(once):
            open(once, "x").close()
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(float("nan"))
        time.sleep(pace_s)

    register_optimizer_step_post_hook(after)


if any(os.path.basename(word) == "train.py" for word in sys.orig_argv) and os.environ.get("RECIPE_STEPS"):
    install()
