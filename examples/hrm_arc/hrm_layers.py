"""The parts of the Hierarchical Reasoning Model: norm, rotary positions, attention, gated MLP, stablemax loss.

Pure functions and modules on tensors; reads and writes nothing.
Source: arXiv 2506.21734, section 2, and the figures of its published code; written anew here.
Try it: `python -m pytest tests/test_example_model.py -k layers`
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STABLEMAX_EPSILON = 1e-30  # keeps the logarithm finite at -infinity


def rms_norm(x: Tensor) -> Tensor:
    """Scale each vector of the last dimension to root mean square 1; no learned gain, as in the paper."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-5)


def rotary_angles(length: int, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary positions, each (length, 1, head_dim), float32."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn queries or keys (B, T, heads, head_dim) by their positions."""
    front, back = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-back, front), dim=-1) * sines


def lecun_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias, weights from a normal of std 1/sqrt(inputs) cut at two std."""
    linear = nn.Linear(inputs, outputs, bias=False)
    cut_normal_(linear.weight, 1 / math.sqrt(inputs))
    return linear


def cut_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill a tensor from a normal distribution cut at two standard deviations."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


class Attention(nn.Module):
    """Every position looks at every other: not causal, rotary positions."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = lecun_linear(hidden_size, 3 * hidden_size)
        self.out = lecun_linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2).to(q.dtype))
        return self.out(mixed.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """SwiGLU: silu(gate) * up, then down; the inner size is 2/3 of expansion x hidden, rounded up.

    To a multiple of 256 as in the paper's code; a small model would grow by half from that and takes 32.
    """

    def __init__(self, hidden_size: int, expansion: float) -> None:
        super().__init__()
        multiple = 256 if hidden_size >= 256 else 32
        inner = multiple * math.ceil(expansion * hidden_size * 2 / 3 / multiple)
        self.gate_up = lecun_linear(hidden_size, 2 * inner)
        self.down = lecun_linear(inner, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """A transformer block that normalises after each sum (post-norm): what is carried on stays bounded.

    In training an example may skip it, with the probability that the caller gives (DropPath): both of its branches
    then add nothing. Drawn from torch's random numbers; where the probability is 0, nothing is drawn.
    """

    def __init__(self, hidden_size: int, heads: int, expansion: float, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(hidden_size, heads)
        self.mlp = GatedMlp(hidden_size, expansion)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor, skip: float = 0.0) -> Tensor:
        kept = drop_path(x, skip) if self.training and skip else None
        x = rms_norm(x + _times(self.dropout(self.attention(x, cosines, sines)), kept))
        return rms_norm(x + _times(self.dropout(self.mlp(x)), kept))


def drop_path(x: Tensor, skip: float) -> Tensor:
    """Draw for each example of x (B, ...) 0 with probability `skip`, else 1 / (1 - skip); (B, 1, 1).

    Source: arXiv 1603.09382 (stochastic depth), scaled in training instead of in evaluation.
    """
    kept = torch.rand(len(x), 1, 1, device=x.device) >= skip
    return kept.to(x.dtype) / (1 - skip)


def depth_schedule(first: float, last: float, depth: int) -> tuple[float, ...]:
    """Return one probability for each of `depth` places, evenly from `first` to `last`; a single place has `last`."""
    shares = [place / (depth - 1) for place in range(depth)] if depth > 1 else [1.0]
    return tuple(first * (1 - share) + last * share for share in shares)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Cross entropy with s(x) = x + 1 for x >= 0, else 1 / (1 - x), in the place of exp(x).

    Computed in float64, as the paper's code does: the sums reach far below float32's resolution.

    Args:
        logits: (B, T, classes).
        labels: (B, T), int64.
        ignored: the label that is not learned.

    Returns:
        Loss per position, (B, T), float64; 0 where ignored.

    Source: arXiv 2501.04697 (stablemax), used by arXiv 2506.21734.
    """
    x = logits.to(torch.float64)
    # Both branches are computed; the clamp keeps the one not taken from dividing by zero in the gradient.
    scores = torch.where(x < 0, 1 / (1 - x.clamp(max=0) + _STABLEMAX_EPSILON), x + 1)
    log_share = torch.log(scores / scores.sum(-1, keepdim=True))
    picked = log_share.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.where(labels == ignored, 0.0, -picked)
