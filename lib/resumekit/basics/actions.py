"""The words of a plan: which components a checkpoint has, and what a resume can do with each.

The launcher writes them, the trainer carries them out, the config's `resume:` and the schema's `x-on-resume` use them.
Pure names; reads nothing. What is decided with them: `planning/components` (a plan), `trainer/decisions` (without one).
Try it: `PYTHONPATH=lib python -c "from resumekit.basics import actions; print(actions.ALLOWED['ema'])"`
"""

from __future__ import annotations

LOAD = "load"
PARTIAL = "partial"  # by name and shape
REDERIVE = "rederive"  # the trainer works it out from the step
REFIT = "refit"  # a new function of the step, which is kept
FRESH = "fresh"  # from the weights just loaded
RESET = "reset"  # as newly made
SWAP = "swap"  # another optimizer takes over, its predecessor's state is left
ABSENT = "absent"  # not in the checkpoint, or not used any more

# The further to the right, the less of the checkpoint is used: of two changes the one that keeps less decides.
KEEPS_LESS = (LOAD, REDERIVE, PARTIAL, REFIT, FRESH, RESET, SWAP, ABSENT)

COUNTERS = ("global_step", "epoch", "best_val_loss")
# Each component, and the checkpoint's keys that hold it (protocol §6; one of the counters is enough).
KEYS: dict[str, tuple[str, ...]] = {
    "weights": ("model_state_dict",),
    "optimizer": ("optimizer_state_dict",),
    "scheduler": ("scheduler_state_dict",),
    "scaler": ("scaler_state_dict",),
    "ema": ("ema_state_dict",),
    "swa": ("swa_state_dict",),
    "counters": COUNTERS,
    "rng": ("rng_state",),
    "data_position": ("data_state",),
}
# Words in x-on-resume that choose between several effects, instead of being one.
DIRECTIONS = ("enable", "disable", "increase", "decrease", "otherwise")
# What a plan may say of each.
ALLOWED: dict[str, tuple[str, ...]] = {
    "weights": (LOAD, PARTIAL, RESET),
    "optimizer": (LOAD, PARTIAL, RESET, SWAP, ABSENT),
    "scheduler": (LOAD, REFIT, RESET, ABSENT),
    "scaler": (LOAD, RESET, ABSENT),
    "ema": (LOAD, PARTIAL, FRESH, RESET, ABSENT),
    "swa": (LOAD, PARTIAL, FRESH, RESET, ABSENT),
    "counters": (LOAD, RESET, ABSENT),
    "rng": (LOAD, RESET, ABSENT),
    "data_position": (LOAD, REDERIVE, RESET, ABSENT),
}
