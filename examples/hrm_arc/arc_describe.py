"""What a training would be: its parameters, and the learning rates of its next steps. Trains nothing, draws nothing.

Reads the puzzles (their number is the size of an embedding) and, in an SWA tail, one value of the checkpoint. Writes
nothing. Try it: `python examples/hrm_arc/train_arc_full_nova.py --describe`
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from arc_build import learning_rate, make_batches, model_shape
from arc_settings import SettingsError
from hrm_model import Hrm
from hrm_optim import chosen_kind, optimizer_class, parameter_groups

STEPS_AHEAD = 3


def describe(cfg: SimpleNamespace, begins_at: int, resume: str | None) -> dict[str, Any]:
    """Return what the settings make, as plain values.

    Args:
        begins_at: completed steps that the training would begin with.
        resume: the checkpoint that it would begin from, if any.

    Returns:
        'parameters': name, shape, optimizer ('model' or 'puzzles') and group of each; 'buffers': name and shape of what
        else a checkpoint holds of the model; 'learning_rates': by optimizer, for each group the rates of the next three
        steps, before any lr_scale; 'step': begins_at.
    """
    # On the CPU, whatever the training is for; and the groups without their optimizers: making one (or a model on the
    # meta device) imports torch's compiler, which takes as long as all the rest.
    model = Hrm(model_shape(cfg.model, make_batches(cfg).puzzle_ids))
    optimizer_class(chosen_kind(cfg.optimizer, begins_at), cfg.optimizer.lr)
    groups, rate = parameter_groups(model, cfg.optimizer), learning_rate(cfg)
    rate.cycle_from = _tail_began(cfg.swa, begins_at, resume)
    coming = range(begins_at, begins_at + STEPS_AHEAD)
    place = {
        id(weight): {"optimizer": name, "group": number}
        for name, parts in groups.items()
        for number, group in enumerate(parts)
        for weight in group["params"]
    }
    parameters = dict(model.named_parameters())
    return {
        "parameters": [
            {"name": name, "shape": list(weight.shape), **place[id(weight)]} for name, weight in parameters.items()
        ],
        "buffers": [
            {"name": name, "shape": list(tensor.shape)}
            for name, tensor in model.state_dict().items()
            if name not in parameters
        ],
        "learning_rates": {
            name: [[group["lr"] * rate(step) for step in coming] for group in parts] for name, parts in groups.items()
        },
        "step": begins_at,
    }


def _tail_began(cfg: SimpleNamespace, begins_at: int, resume: str | None) -> int | None:
    """Return the step at which the SWA tail began or begins, None where none is running."""
    if not cfg.enabled:
        return None
    began = _saved_beginning(Path(resume)) if resume else None
    return begins_at if began is None and begins_at >= cfg.start_step else began


def _saved_beginning(path: Path) -> int | None:
    if not path.is_file():  # a FIFO would wait for ever
        raise SettingsError(f"the checkpoint '{path}' (--resume) is not a regular file; name one of checkpoints/")
    try:
        # mmap: reads the index and one small record, whatever the size of the file.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if content.get("swa_state_dict") is None:
            return None  # one of another trainer, or saved before its tail
        began = (content.get("progress") or {}).get("swa_from_step")
    except Exception as error:  # torch raises many kinds for a bad file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SettingsError(f"the checkpoint '{path}' (--resume) has no readable progress: {reason}") from error
    return began if type(began) is int else None
