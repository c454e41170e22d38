"""Deep supervision with halting: what is carried from one optimizer step to the next, and the loss of a segment.

A batch has slots. In each step every slot thinks one segment further and is corrected; a slot that halts takes a new
puzzle in the next step. So the carry is part of what makes the next step, and belongs into the checkpoint.
Source: arXiv 2506.21734, sections "deep supervision" and "adaptive computational time".
Try it: `python -m pytest tests/test_example_model.py -k carry`
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from arc_data import PAD, ArcBatches
from hrm_layers import stablemax_cross_entropy
from hrm_model import Hrm

Q_LOSS_WEIGHT = 0.5  # of each of the two halting losses, relative to the answer's (the paper's code)
RULE_LOSS_WEIGHT = 0.1  # of the auxiliary head's loss: enough to learn from, too little to lead


@dataclass(frozen=True)
class Carry:
    """The slots of one micro-batch between two steps.

    Args:
        slow, fast: states, (B, prefix + T, hidden), detached.
        segments: segments thought about the current puzzle, (B,), int64.
        halted: whether the slot takes a new puzzle next, (B,), bool.
        tokens, labels: the current puzzles, (B, T), int64.
        puzzle_ids: (B,), int64.
    """

    slow: Tensor
    fast: Tensor
    segments: Tensor
    halted: Tensor
    tokens: Tensor
    labels: Tensor
    puzzle_ids: Tensor

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they go into a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def empty_carry(model: Hrm, batch_size: int) -> Carry:
    """A carry in which every slot has halted: the first step fills it."""
    device, length = model.slow_start.device, model.shape.seq_len
    state = torch.zeros(batch_size, model.prefix + length, model.shape.hidden_size, device=device)
    numbers = torch.zeros(batch_size, dtype=torch.int64, device=device)
    grid = torch.zeros(batch_size, length, dtype=torch.int64, device=device)
    return Carry(state, state, numbers, torch.ones_like(numbers, dtype=torch.bool), grid, grid, numbers)


def carry_from(saved: dict[str, Tensor], like: Carry) -> Carry | None:
    """Return a checkpoint's carry on the device of `like`, or None if its shapes are others (batch size changed)."""
    expected = like.state_dict()
    if saved.keys() != expected.keys() or any(saved[name].shape != expected[name].shape for name in expected):
        return None
    # clone: what was loaded may be backed by the checkpoint's file
    return Carry(**{name: saved[name].to(expected[name].device).clone() for name in expected})


def refill(model: Hrm, carry: Carry, batches: ArcBatches, step: int, micro: int) -> Carry:
    """Give every halted slot its puzzle of (step, micro) and the model's starting states."""
    slots = carry.halted.nonzero().flatten()
    if not len(slots):
        return carry
    fresh = [_tensor(part, carry.tokens.device) for part in batches.take(step, micro, slots.tolist())]
    tokens, labels, puzzle_ids = (
        old.index_copy(0, slots, new)
        for old, new in zip((carry.tokens, carry.labels, carry.puzzle_ids), fresh, strict=True)
    )
    here = carry.halted.view(-1, 1, 1)
    return replace(
        carry,
        slow=torch.where(here, model.slow_start, carry.slow),
        fast=torch.where(here, model.fast_start, carry.fast),
        segments=torch.where(carry.halted, 0, carry.segments),
        tokens=tokens,
        labels=labels,
        puzzle_ids=puzzle_ids,
    )


def segment_loss(
    model: Hrm, carry: Carry, *, max_segments: int, exploration: float, rules: Tensor | None = None
) -> tuple[Tensor, Carry]:
    """Think one segment and return its loss and the carry of the next step.

    Halting draws from torch's random numbers (exploration), so their state is part of a checkpoint too.

    Args:
        carry: refilled, every slot has a puzzle.
        max_segments: a slot halts after so many at the latest.
        exploration: probability, 0 to 1, with which a slot must go on for a random number of segments, 2 or more.
        rules: the rule of each puzzle id, (puzzle ids,), int64, for the auxiliary head; None trains without it.

    Returns:
        (loss, carry): a float64 scalar averaged over the slots; the carry, detached.
    """
    told = model.embed(carry.tokens, carry.puzzle_ids)
    slow, fast = model.think(carry.slow, carry.fast, told)
    logits, q = model.read(slow)
    learned = carry.labels != PAD
    per_cell = stablemax_cross_entropy(logits, carry.labels, PAD)
    answer_loss = (per_cell.sum(-1) / learned.sum(-1).clamp(min=1)).sum()
    solved = ((logits.argmax(-1) == carry.labels) | ~learned).all(-1)
    halt_loss = F.binary_cross_entropy_with_logits(q[:, 0], solved.to(q.dtype), reduction="sum")
    after = replace(carry, slow=slow.detach(), fast=fast.detach(), segments=carry.segments + 1)
    halted, go_on_target = _halting(model, after, q.detach(), told.detach(), max_segments, exploration)
    go_on_loss = 0.0
    if go_on_target is not None:
        go_on_loss = F.binary_cross_entropy_with_logits(q[:, 1], go_on_target, reduction="sum")
    loss = (answer_loss + Q_LOSS_WEIGHT * (halt_loss + go_on_loss)) / len(q)
    if rules is not None:
        loss = loss + RULE_LOSS_WEIGHT * F.cross_entropy(model.guess_rule(slow), rules[carry.puzzle_ids])
    return loss, replace(after, halted=halted)


@torch.no_grad()
def _halting(
    model: Hrm, after: Carry, q: Tensor, told: Tensor, max_segments: int, exploration: float
) -> tuple[Tensor, Tensor | None]:
    """Return which slots halt (B,) and the target of the continue value (B,), None where nothing ever goes on."""
    last = after.segments >= max_segments
    if max_segments <= 1:
        return last, None
    explores = torch.rand(len(q), device=q.device) < exploration
    at_least = torch.randint(2, max_segments + 1, (len(q),), device=q.device) * explores
    halted = last | ((q[:, 0] > q[:, 1]) & (after.segments >= at_least))
    # What going on is worth is seen by going on: one more forward pass, as in the paper's code (no target network).
    slow, _ = model.think(after.slow, after.fast, told)
    next_q = model.read(slow)[1]
    return halted, torch.sigmoid(torch.where(last, next_q[:, 0], next_q.amax(-1)))


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
