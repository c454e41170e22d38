"""The training itself: everything that makes the next step, in one place, so that all of it can be saved and loaded.

Its state is the model, two optimizers, the schedule, EMA, one carry per micro-batch, torch's random numbers and the
progress; the data is a pure function of seed and step. Writes checkpoints through the kit's `save_checkpoint`.
Try it: `python -m pytest tests/test_example_trainer.py`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from arc_data import VOCAB_SIZE, ArcBatches, load_arc
from arc_eval import Score, evaluate, fast_subset
from arc_runtime import autocast
from arc_validation import Progress, evals_due, run_pending
from hrm_model import Hrm, HrmShape
from hrm_optim import ADAMW, SIGN_SGD, LearningRate, Schedule, dense_parameters, make_optimizers, set_hyperparameters
from hrm_segments import Carry, carry_from, empty_carry, refill, segment_loss


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step gave: its loss, the rate it used, and what was not finite (None: all was)."""

    loss: float
    lr: float
    not_finite: str | None = None


class Training:
    """A run in memory: built fresh from the settings, then perhaps loaded from a checkpoint."""

    def __init__(self, cfg: SimpleNamespace, device: str) -> None:
        self.cfg, self.device = cfg, device
        self.precision = autocast(cfg.training.amp, device)
        self.data = load_arc(
            name=cfg.data.name, version=cfg.data.version, path=cfg.data.path, max_grid=cfg.data.max_grid,
            subset=cfg.data.subset,
        )  # fmt: skip
        self.batches = ArcBatches(
            self.data, seed=cfg.training.seed, batch_size=cfg.training.batch_size,
            accumulation=cfg.training.grad_accum_steps, variants=cfg.data.variants, augment=cfg.data.augment,
            translate=cfg.data.translate,
        )  # fmt: skip
        self.model = Hrm(_shape(cfg.model, self.batches.puzzle_ids)).to(device)
        self.optimizers = make_optimizers(self.model, cfg.optimizer)
        rate = LearningRate(cfg.schedule.warmup_steps, cfg.training.max_steps, cfg.schedule.min_lr_ratio)
        self.schedule = Schedule(self.optimizers, rate)
        average = get_ema_multi_avg_fn(cfg.ema.decay)
        self.ema = AveragedModel(self.model, multi_avg_fn=average) if cfg.ema.enabled else None
        self.carries: list[Carry] = [self._empty_carry() for _ in range(cfg.training.grad_accum_steps)]
        self.progress = Progress()
        self._fast_pairs = fast_subset(self.data.test, cfg.validation.fast_fraction)

    @property
    def epoch(self) -> int:
        return self.batches.epoch(self.progress.step)

    def step(self) -> StepOutcome:
        """Do one optimizer step: every micro-batch thinks one segment, then the weights move once."""
        training, step = self.cfg.training, self.progress.step
        self.model.train()
        total = 0.0
        for micro in range(training.grad_accum_steps):
            carry = refill(self.model, self.carries[micro], self.batches, step, micro)
            with self.precision():
                loss, self.carries[micro] = segment_loss(
                    self.model, carry, max_segments=self.cfg.model.halt_max_steps,
                    exploration=self.cfg.model.halt_exploration,
                )  # fmt: skip
            (loss / training.grad_accum_steps).backward()
            total += loss.item() / training.grad_accum_steps
        lr = self.schedule.get_last_lr()[0]
        if not math.isfinite(total):
            return StepOutcome(total, lr, "loss")
        # Without a limit the norm is still taken: weights must not become NaN under a finite loss.
        norm = clip_grad_norm_(dense_parameters(self.optimizers), training.grad_clip or math.inf)
        if not math.isfinite(norm):
            return StepOutcome(total, lr, "gradient")
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.model)
        self.progress.step += 1
        self.progress.evals_pending = evals_due(self.progress.step, self.cfg.validation)
        return StepOutcome(total, lr)

    def run_pending_evals(self, journal: Callable[..., None], should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Evaluate what is due, raw and EMA weights each; returns {"score", "weights"} of a new best, else None."""

        def score(kind: str, weights: str) -> Score | None:
            return evaluate(
                self.model if weights == "raw" else self.ema.module, self.data,
                self._fast_pairs if kind == "fast" else self.data.test, segments=self.cfg.model.halt_max_steps,
                variants=self.batches.variants, precision=self.precision, should_stop=should_stop,
            )  # fmt: skip

        weights = ("raw", "ema") if self.ema else ("raw",)
        return run_pending(self.progress, self.cfg.validation, score, weights, journal)

    def save(self, kit: ModuleType, folder: Path, loss: float | None, best: dict[str, Any] | None) -> Path | None:
        """Save a checkpoint between two steps; None where that failed and training goes on."""
        checkpoint, progress = self.cfg.checkpoint, self.progress
        return kit.save_checkpoint(
            folder, progress.step, model=self.model, optimizer=self.optimizers, scheduler=self.schedule, ema=self.ema,
            epoch=self.epoch, best_val_loss=progress.best_val_loss, loss=loss, data_state=self._data_state(),
            extra={"carry": [carry.state_dict() for carry in self.carries], "progress": progress.state_dict()},
            lr_scale=self.schedule.rate.lr_scale, last_fast_eval=progress.last_fast, best=best,
            keep_last=checkpoint.keep_last, keep_every=checkpoint.keep_every, pattern=checkpoint.pattern,
            best_pattern=checkpoint.best_pattern,
        )  # fmt: skip

    def load(
        self, kit: ModuleType, path: str | None, *, allow_partial: bool, optimizer_policy: str, schedule_policy: str
    ) -> None:
        """Continue from a checkpoint; without a path everything stays fresh. Draws no random numbers after the load."""
        bundle = kit.load_resume_bundle(
            self.model, self.optimizers, self.schedule, None, ckpt_path=path, allow_partial_weights=allow_partial,
            optimizer_policy=optimizer_policy, schedule_policy=schedule_policy, ema=self.ema,
            own_lr_scale=True,
        )  # fmt: skip
        if not path:
            return
        known = {field.name for field in fields(Progress)}
        saved = bundle.extra.get("progress") or {}
        self.progress = Progress(**{key: value for key, value in saved.items() if key in known})
        self.progress.step, self.progress.best_val_loss = bundle.global_step, bundle.best_val_loss
        set_hyperparameters(self.optimizers, self.cfg.optimizer)
        self.schedule.rate.lr_scale = bundle.lr_scale
        self.schedule.place(bundle.global_step, {ADAMW: self.cfg.optimizer.lr, SIGN_SGD: self.cfg.optimizer.puzzle_lr})
        self._load_carries(bundle.extra.get("carry"))
        self._compare_data(kit, bundle.extra.get("data_state"))
        if self.ema and not int(self.ema.n_averaged):
            self.ema.module.load_state_dict(self.model.state_dict())  # newly enabled: starts from these weights

    def data_summary(self) -> dict[str, Any]:
        """Return what the `data` event says."""
        return {
            "fingerprint": self.data.fingerprint, "name": self.data.name, "tasks": len(self.data.task_ids),
            "examples": len(self.data.train),
        }  # fmt: skip

    def describe(self) -> str:
        """Say in a line what is trained on what."""
        weights = sum(weight.numel() for weight in self.model.parameters())
        training = self.cfg.training
        return (
            f"{weights:,} parameters, {len(self.data.task_ids)} tasks, {len(self.data.train)} training pairs, "
            f"batch {training.batch_size} x {training.grad_accum_steps}, {self.device}, "
            f"{torch.get_num_threads()} thread(s), fast eval every {self.cfg.validation.fast_eval_every}, "
            f"full every {self.cfg.validation.full_eval_every} steps"
        )

    def _data_state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.data.fingerprint, "seed": self.cfg.training.seed, "step": self.progress.step,
            "position": self.progress.step * self.cfg.training.grad_accum_steps * self.cfg.training.batch_size,
        }  # fmt: skip

    def _load_carries(self, saved: list[dict[str, Any]] | None) -> None:
        loaded = [carry_from(item, self._empty_carry()) for item in saved or []]
        if len(loaded) == len(self.carries) and all(loaded):
            self.carries = loaded
        else:
            print("carry: other batch size, accumulation or none saved; every slot takes a new puzzle", flush=True)

    def _compare_data(self, kit: ModuleType, saved: dict[str, Any] | None) -> None:
        if saved and saved.get("fingerprint") != self.data.fingerprint:
            message = "the data is not what the checkpoint was trained on: the curves cannot be compared"
            print(f"[warn] {message}", flush=True)
            kit.journal_event("warning", kind="data_changed", message=message)

    def _empty_carry(self) -> Carry:
        return empty_carry(self.model, self.cfg.training.batch_size)


def _shape(cfg: SimpleNamespace, puzzle_ids: int) -> HrmShape:
    return HrmShape(
        vocab_size=VOCAB_SIZE, seq_len=cfg.seq_len, puzzle_ids=puzzle_ids, hidden_size=cfg.hidden_size,
        heads=cfg.heads, layers=cfg.layers, expansion=cfg.expansion, h_cycles=cfg.h_cycles, l_cycles=cfg.l_cycles,
        puzzle_emb_dim=cfg.puzzle_emb_dim or cfg.hidden_size, dropout=cfg.dropout,
    )  # fmt: skip
