"""The Hierarchical Reasoning Model: a slow (H) and a fast (L) transformer that refine two states in turns.

One `think` is one segment: `h_cycles` rounds of `l_cycles` fast steps and a slow one. Only the very last fast and slow
step carry a gradient (the paper's one-step approximation), so memory does not grow with the depth of thought.
Source: arXiv 2506.21734. Reads and writes nothing.
Try it: `python -m pytest tests/test_example_model.py`
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hrm_layers import Block, cut_normal_, depth_schedule, lecun_linear, rotary_angles


@dataclass(frozen=True)
class HrmShape:
    """The sizes of a model.

    Args:
        vocab_size: tokens, PAD and EOS included.
        seq_len: cells of the padded grid.
        puzzle_ids: rows of the puzzle embedding.
        hidden_size, heads: width, and attention heads; hidden_size / heads must be even (rotary).
        layers: blocks in each of the two modules.
        expansion: inner size of the MLP, relative to the width.
        h_cycles, l_cycles: slow rounds in a segment, fast steps in a round.
        puzzle_emb_dim: size of the puzzle embedding; it takes as many positions as it needs.
        dropout: probability, 0 to 1, after attention and after the MLP.
        droppath_h: probability that an example skips a block of the slow module in training: at the first and at the
            last of the h_cycles x layers places that a segment passes, evenly in between.
        rules: classes of the auxiliary head; 0 for none.
    """

    vocab_size: int
    seq_len: int
    puzzle_ids: int
    hidden_size: int = 64
    heads: int = 4
    layers: int = 1
    expansion: float = 4.0
    h_cycles: int = 2
    l_cycles: int = 2
    puzzle_emb_dim: int = 64
    dropout: float = 0.0
    droppath_h: tuple[float, float] = (0.0, 0.0)
    rules: int = 0


class Reasoner(nn.Module):
    """One of the two modules: adds what it is told to its state and runs it through its blocks."""

    def __init__(self, shape: HrmShape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(shape.hidden_size, shape.heads, shape.expansion, shape.dropout) for _ in range(shape.layers)
        )

    def forward(
        self, state: Tensor, told: Tensor, cosines: Tensor, sines: Tensor, skips: tuple[float, ...] | None = None
    ) -> Tensor:
        """Refine the state; `skips` has one probability for each block (DropPath)."""
        state = state + told
        for block, skip in zip(self.blocks, skips or (0.0,) * len(self.blocks), strict=True):
            state = block(state, cosines, sines, skip)
        return state


class Hrm(nn.Module):
    """Embeddings, the two reasoners, the answer head, the halt/continue head, and perhaps one that guesses the rule."""

    def __init__(self, shape: HrmShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.hidden_size
        self.prefix = math.ceil(shape.puzzle_emb_dim / width)  # positions that the puzzle embedding takes
        self.embed_scale = math.sqrt(width)
        self.tokens = nn.Embedding(shape.vocab_size, width)
        cut_normal_(self.tokens.weight.data, 1 / self.embed_scale)
        # sparse: a step touches a few rows, and only those may move or decay (see hrm_optim.SignSgd)
        self.puzzles = nn.Embedding(shape.puzzle_ids, shape.puzzle_emb_dim, sparse=True)
        nn.init.zeros_(self.puzzles.weight)
        self.slow, self.fast = Reasoner(shape), Reasoner(shape)
        self.answer = lecun_linear(width, shape.vocab_size)
        self.halt = nn.Linear(width, 2)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, -5.0)  # both values start near 0: it learns to halt slowly, as in the paper
        self.register_buffer("slow_start", cut_normal_(torch.empty(width), 1.0))
        self.register_buffer("fast_start", cut_normal_(torch.empty(width), 1.0))
        cosines, sines = rotary_angles(shape.seq_len + self.prefix, width // shape.heads)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        places = depth_schedule(*shape.droppath_h, shape.h_cycles * shape.layers)
        self.skips = [places[start : start + shape.layers] for start in range(0, len(places), shape.layers)]
        # Last: with or without it, all other parameters begin alike.
        self.rule_head = nn.Linear(width, shape.rules) if shape.rules else None

    def embed(self, tokens: Tensor, puzzle_ids: Tensor) -> Tensor:
        """Return what both reasoners are told: (B, prefix + T, hidden), the puzzle's positions first."""
        puzzle = self.puzzles(puzzle_ids)
        missing = self.prefix * self.shape.hidden_size - puzzle.shape[-1]
        puzzle = nn.functional.pad(puzzle, (0, missing)).unflatten(-1, (self.prefix, -1))
        return self.embed_scale * torch.cat((puzzle, self.tokens(tokens)), dim=1)

    def think(self, slow: Tensor, fast: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Run one segment; the gradient flows through the last fast and the last slow step alone.

        Args:
            slow, fast: states, (B, prefix + T, hidden).
            told: from `embed`.

        Returns:
            The new states (slow, fast), still attached to the graph.
        """
        at = (self.cosines, self.sines)
        with torch.no_grad():
            for cycle in range(self.shape.h_cycles):
                last_cycle = cycle == self.shape.h_cycles - 1
                for _ in range(self.shape.l_cycles - last_cycle):
                    fast = self.fast(fast, slow + told, *at)
                if not last_cycle:
                    slow = self.slow(slow, fast, *at, self.skips[cycle])
        fast = self.fast(fast, slow + told, *at)
        return self.slow(slow, fast, *at, self.skips[-1]), fast

    def read(self, slow: Tensor) -> tuple[Tensor, Tensor]:
        """Return the answer's logits (B, T, vocab) and the halt/continue values (B, 2), float32."""
        return self.answer(slow[:, self.prefix :]), self.halt(slow[:, 0]).float()

    def guess_rule(self, slow: Tensor) -> Tensor:
        """Return the auxiliary head's logits (B, rules), float32, from the mean of the slow state."""
        return self.rule_head(slow.mean(1)).float()
