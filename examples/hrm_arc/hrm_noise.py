"""Noise on the gradients that fades with the step; a pure function of seed and step, so nothing is remembered.

Reads and writes nothing. Try it: `python -m pytest tests/test_example_model.py -k noise`
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

DECAY = 0.55  # of the variance, the paper's gamma
_STREAM = 3  # data draws from the streams 0 to 2 of the same seed (arc_data)


def noise_std(sigma: float, step: int) -> float:
    """Return the standard deviation at a step: its square, the variance, is sigma^2 / (1 + step)^0.55.

    Args:
        sigma: standard deviation at the first step, at least 0.
        step: completed optimizer steps.

    Source: arXiv 1511.06807 (Neelakantan et al. 2015): variance eta / (1 + t)^gamma, with gamma 0.55 and eta 0.01, 0.3
    or 1. Ours is sqrt(eta), 0.1 to 1 there; much code takes the paper's variance for the standard deviation.
    """
    return sigma / (1 + step) ** (DECAY / 2)


@torch.no_grad()
def add_noise(weights: Iterable[Tensor], *, sigma: float, seed: int, step: int) -> None:
    """Add Gaussian noise to the gradients of `weights`, in place; torch's own random numbers are not touched.

    Args:
        weights: parameters; one without a gradient is passed over, another order gives other noise.
        sigma: see `noise_std`.
        seed: the run's.
        step: completed optimizer steps.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    key = int(np.random.SeedSequence([seed, _STREAM, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator(gradients[0].device).manual_seed(key)
    std = noise_std(sigma, step)
    for gradient in gradients:
        gradient.add_(torch.empty_like(gradient).normal_(generator=generator), alpha=std)
