"""How many test puzzles are solved: whole grids, cells, by family, and what copying the input would get.

A pair counts as solved when the grid read out of the answer equals the true one, size included, at the first attempt
(ARC's own rule allows two, and asks for all test pairs of a task). Puzzles are shown as they are, not turned, in the
corner. Uses no random numbers and leaves the model as it was: an evaluation does not change the training.
Try it: `python examples/hrm_arc/arc_eval.py` (the baseline)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arc_data import PAD, ArcData, Pair, decode, encode, load_arc

if TYPE_CHECKING:
    from hrm_model import Hrm

FAST_MINIMUM = 8  # 1-2 % of 190 pairs are two or three: too few to see an improvement in
_FAST_SEED = 20200  # fixed, whatever the run's seed: the subset is the same in every run
BATCH = 16  # as in training: larger ones fall out of the cache of one core (1.5 s against 1.9 s at 64)


@dataclass(frozen=True)
class Score:
    """The result of one evaluation.

    Args:
        accuracy: share of pairs solved as whole grids.
        cell_accuracy: share of right cells, averaged over the pairs; sizes are not asked for.
        loss: the answer's loss per cell, averaged over the pairs (nan for a baseline).
        families: accuracy, cell_accuracy and number of pairs by family of output size.
    """

    accuracy: float
    cell_accuracy: float
    loss: float
    examples: int
    families: dict[str, dict[str, float]]


def fast_subset(pairs: Sequence[Pair], fraction: float) -> list[Pair]:
    """Return the fixed subset of the fast evaluation: `fraction` of the pairs, at least FAST_MINIMUM."""
    size = min(len(pairs), max(FAST_MINIMUM, round(fraction * len(pairs))))
    chosen = np.random.default_rng(_FAST_SEED).permutation(len(pairs))[:size]
    return [pairs[index] for index in sorted(chosen)]


def family(pair: Pair) -> str:
    """Return how the output's size relates to the input's: 'same', 'larger' (more cells) or 'smaller'."""
    if pair.input.shape == pair.output.shape:
        return "same"
    return "larger" if pair.output.size > pair.input.size else "smaller"


def evaluate(
    model: Hrm,
    data: ArcData,
    pairs: Sequence[Pair],
    *,
    segments: int,
    variants: int,
    precision: Callable[[], object],
    should_stop: Callable[[], bool],
) -> Score | None:
    """Let the model solve `pairs`, thinking `segments` segments about each.

    Args:
        variants: puzzle ids per task; the id of the unturned version is used.
        precision: makes the autocast context.
        should_stop: asked between batches.

    Returns:
        The score, or None if it was asked to stop.
    """
    import torch  # late: the baseline needs none

    was_training = model.training
    model.eval()
    answers, losses = [], []
    try:
        with torch.no_grad(), precision():
            for start in range(0, len(pairs), BATCH):
                if should_stop():
                    return None
                tokens, batch_losses = _solve(model, data, pairs[start : start + BATCH], segments, variants)
                answers.extend(tokens)
                losses.extend(batch_losses)
    finally:
        model.train(was_training)
    return _score(pairs, answers, losses, data.max_grid)


def copy_the_input(data: ArcData) -> Score:
    """Score the answer that changes nothing, on the same pairs and by the same rule."""
    answers = [encode(pair.input, data.max_grid) for pair in data.test]
    return _score(data.test, answers, [float("nan")] * len(answers), data.max_grid)


def _solve(
    model: Hrm, data: ArcData, pairs: Sequence[Pair], segments: int, variants: int
) -> tuple[np.ndarray, list[float]]:
    import torch

    from hrm_layers import stablemax_cross_entropy

    device = model.slow_start.device
    tokens, labels = (
        torch.from_numpy(np.stack([encode(getattr(pair, side), data.max_grid) for pair in pairs])).to(device)
        for side in ("input", "output")
    )
    ids = torch.tensor([pair.task * variants for pair in pairs], device=device)
    told = model.embed(tokens, ids)
    slow, fast = (start.expand_as(told) for start in (model.slow_start, model.fast_start))
    for _ in range(segments):
        slow, fast = model.think(slow, fast, told)
    logits = model.read(slow)[0]
    per_cell = stablemax_cross_entropy(logits, labels, PAD)
    losses = per_cell.sum(-1) / (labels != PAD).sum(-1)
    return logits.argmax(-1).cpu().numpy(), losses.tolist()


def _score(pairs: Sequence[Pair], answers: Sequence[np.ndarray], losses: list[float], max_grid: int) -> Score:
    solved = np.array(
        [np.array_equal(decode(answer, max_grid), pair.output) for pair, answer in zip(pairs, answers, strict=True)]
    )
    cells = np.array([_right_cells(pair, answer, max_grid) for pair, answer in zip(pairs, answers, strict=True)])
    kinds = np.array([family(pair) for pair in pairs])
    return Score(
        accuracy=float(solved.mean()),
        cell_accuracy=float(cells.mean()),
        loss=float(np.mean(losses)),
        examples=len(pairs),
        families={
            kind: {
                "accuracy": float(solved[kinds == kind].mean()),
                "cell_accuracy": float(cells[kinds == kind].mean()),
                "examples": int((kinds == kind).sum()),
            }
            for kind in ("same", "smaller", "larger")
            if (kinds == kind).any()
        },
    )


def _right_cells(pair: Pair, answer: np.ndarray, max_grid: int) -> float:
    truth = encode(pair.output, max_grid)
    cells = truth > 1
    return float((np.asarray(answer)[cells] == truth[cells]).mean())


if __name__ == "__main__":
    _baseline = copy_the_input(load_arc())
    print(f"copying the input: {_baseline.accuracy:.1%} of grids, {_baseline.cell_accuracy:.1%} of cells")
    for _kind, _numbers in _baseline.families.items():
        print(f"  {_kind}: {_numbers['cell_accuracy']:.1%} of cells, {_numbers['examples']} pairs")
