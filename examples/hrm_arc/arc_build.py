"""What the settings make: batches, the model's shape, the learning rate. The same for a training and for a description.

Reads the puzzles; writes nothing. Try it: `python examples/hrm_arc/train_arc_full_nova.py --describe`
"""

from __future__ import annotations

from types import SimpleNamespace

from arc_data import RULES, VOCAB_SIZE, ArcBatches, load_arc
from arc_settings import droppath_range
from hrm_model import HrmShape
from hrm_schedule import LearningRate
from resume_helper import SwaCycle


def make_batches(cfg: SimpleNamespace) -> ArcBatches:
    """Return the puzzles (`.data`) in the order in which they are trained on."""
    data = load_arc(
        name=cfg.data.name, version=cfg.data.version, path=cfg.data.path, max_grid=cfg.data.max_grid,
        subset=cfg.data.subset,
    )  # fmt: skip
    return ArcBatches(
        data, seed=cfg.training.seed, batch_size=cfg.training.batch_size, accumulation=cfg.training.grad_accum_steps,
        variants=cfg.data.variants, augment=cfg.data.augment, translate=cfg.data.translate,
    )  # fmt: skip


def model_shape(cfg: SimpleNamespace, puzzle_ids: int) -> HrmShape:
    """Return the model's sizes; `cfg` is the config's `model` section."""
    return HrmShape(
        vocab_size=VOCAB_SIZE, seq_len=cfg.seq_len, puzzle_ids=puzzle_ids, hidden_size=cfg.hidden_size,
        heads=cfg.heads, layers=cfg.layers, expansion=cfg.expansion, h_cycles=cfg.h_cycles, l_cycles=cfg.l_cycles,
        puzzle_emb_dim=cfg.puzzle_emb_dim or cfg.hidden_size, dropout=cfg.dropout,
        droppath_h=droppath_range(cfg.droppath_h), rules=RULES if cfg.aux_rule_head else 0,
    )  # fmt: skip


def learning_rate(cfg: SimpleNamespace) -> LearningRate:
    """Return the learning rate as a function of the step, relative to each optimizer's base rate."""
    cycle = None
    if cfg.swa.enabled:
        # One cycle for both optimizers: the puzzles' rate keeps its ratio to the model's.
        middle = None if cfg.swa.lr is None else cfg.swa.lr / cfg.optimizer.lr
        cycle = SwaCycle(cfg.swa.amplitude, cfg.swa.cycle_steps, middle)
    return LearningRate(cfg.schedule.warmup_steps, cfg.training.max_steps, cfg.schedule.min_lr_ratio, cycle)
