"""The training itself: everything that makes the next step, in one place, so that all of it can be saved and loaded.

Its state is the model, two optimizers, the schedule, fp16's scaler, EMA, SWA, one carry per micro-batch, torch's random
numbers and the progress; data, noise and learning rates are pure functions of seed and step. Writes checkpoints through
the kit's `save_checkpoint`.
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
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from arc_build import learning_rate, make_batches, model_shape
from arc_eval import Score, evaluate, fast_subset
from arc_runtime import autocast
from arc_validation import Progress, best_of, evals_due, run_pending
from hrm_model import Hrm
from hrm_noise import add_noise
from hrm_optim import dense_parameters, kind_of, make_optimizers, set_hyperparameters
from hrm_schedule import Schedule
from hrm_segments import Carry, carry_from, empty_carry, refill, segment_loss
from resume_helper import SwaTail, average_of

# The scale starts at 2^16 and is halved at each overflow: after so many in a row it is not the scale's fault.
MAX_ATTEMPTS = 24


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step gave: its loss, the rate it used, and what was not finite (None: all was)."""

    loss: float
    lr: float
    not_finite: str | None = None


class Training:
    """A run in memory: built fresh from the settings, then perhaps loaded from a checkpoint.

    Args:
        cfg: the settings.
        device: 'cpu' or 'cuda'.
        begins_at: completed steps of the checkpoint that will be loaded; it decides which optimizer is built.
    """

    def __init__(self, cfg: SimpleNamespace, device: str, begins_at: int = 0) -> None:
        self.cfg, self.device = cfg, device
        self.precision = autocast(cfg.training.amp, device)
        self.scaler = torch.amp.GradScaler(device) if cfg.training.amp == "fp16" else None
        self.batches = make_batches(cfg)
        self.data = self.batches.data
        self.model = Hrm(model_shape(cfg.model, self.batches.puzzle_ids)).to(device)
        self.rules = torch.from_numpy(self.batches.rules).to(device) if cfg.model.aux_rule_head else None
        self.optimizers = make_optimizers(self.model, cfg.optimizer, begins_at)
        self.schedule = Schedule(self.optimizers, learning_rate(cfg))
        self.ema = average_of(self.model, cfg.ema.decay) if cfg.ema.enabled else None
        self.swa = average_of(self.model) if cfg.swa.enabled else None
        tail = {"start_step": cfg.swa.start_step, "cycle_steps": cfg.swa.cycle_steps}
        self.tail = SwaTail(self.swa, **tail, start_on_stall=cfg.swa.start_on_stall) if self.swa else None
        self.carries: list[Carry] = [self._empty_carry() for _ in range(cfg.training.grad_accum_steps)]
        self.progress = Progress(optimizer=kind_of(self.optimizers))
        self.lr_scale, self.lr_ramp, self.bundle = 1.0, None, None
        self.data_from = 0  # the step at which the data's order began
        self._fast_pairs = fast_subset(self.data.test, cfg.validation.fast_fraction)

    @property
    def epoch(self) -> int:
        return self.batches.epoch(self.data_step)

    @property
    def data_step(self) -> int:
        """How many steps of the data's order are done: the run's, unless one of the two began anew."""
        return self.progress.step - self.data_from

    @property
    def weights(self) -> dict[str, Hrm]:
        """The models to evaluate by kind of weights, 'raw' first; 'swa' once its tail has begun."""
        averages = {"ema": self.ema, "swa": self._collected()}
        return {"raw": self.model} | {name: one.module for name, one in averages.items() if one is not None}

    def step(self) -> StepOutcome:
        """Do one optimizer step: every micro-batch thinks one segment, then the weights move once.

        A step is a move of the weights. Under fp16 an attempt whose scaled gradients overflow is none: the scale is
        halved and the same examples are thought about again; weights, carry, schedule, averages and `progress.step`
        are as before (only what is drawn at random is drawn anew). So no skipped step is ever counted.
        """
        begun, lr = list(self.carries), self.schedule.get_last_lr()[0]
        for _ in range(MAX_ATTEMPTS if self.scaler else 1):
            self.carries = list(begun)
            loss = self._think()
            if not math.isfinite(loss):
                return StepOutcome(loss, lr, "loss")
            if self._move():
                self._count()
                return StepOutcome(loss, lr)
        return StepOutcome(loss, lr, "gradient")

    def run_pending_evals(self, journal: Callable[..., None], should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Evaluate what is due, each kind of weights; returns {"score", "weights"} of a new best, else None.

        A fast evaluation that improves after a stall begins the SWA tail.
        """
        stalled = self.progress.fast_stalled
        best = run_pending(
            self.progress, self.cfg.validation, lambda kind, name: self._score(kind, name, should_stop),
            tuple(self.weights), journal,
        )  # fmt: skip
        if self.tail:
            self.tail.stalled, is_new_best = stalled, self.progress.fast_stalled == 0
            if self.tail.after_fast_eval(self.progress.step, self.model, is_new_best=is_new_best):
                self._note_tail("fast eval improved after a stall")
        return best

    def save(self, kit: ModuleType, folder: Path, loss: float | None, best: dict[str, Any] | None) -> Path | None:
        """Save a checkpoint between two steps; None where that failed and training goes on."""
        checkpoint, progress = self.cfg.checkpoint, self.progress
        return kit.save_checkpoint(
            folder, progress.step, model=self.model, optimizer=self.optimizers, scheduler=self.schedule,
            scaler=self.scaler, ema=self.ema, swa=self._collected(), epoch=self.epoch,
            best_val_loss=progress.best_val_loss, loss=loss, data_state=self._data_state(),
            extra={"carry": [carry.state_dict() for carry in self.carries], "progress": progress.state_dict()},
            lr_scale=self.lr_scale, lr_ramp=self.lr_ramp, last_fast_eval=progress.last_fast, best=best,
            keep_last=checkpoint.keep_last, keep_every=checkpoint.keep_every, pattern=checkpoint.pattern,
            best_pattern=checkpoint.best_pattern,
        )  # fmt: skip

    def load(
        self, kit: ModuleType, path: str | None, *, allow_partial: bool, optimizer_policy: str, schedule_policy: str
    ) -> None:
        """Continue from a checkpoint; without a path everything stays fresh. Draws no random numbers after the load."""
        bundle = kit.load_resume_bundle(
            self.model, self.optimizers, self.schedule, self.scaler, ckpt_path=path,
            allow_partial_weights=allow_partial, optimizer_policy=optimizer_policy, schedule_policy=schedule_policy,
            ema=self.ema, swa=self.swa, own_lr_scale=True,
        )  # fmt: skip
        self.take_lr_scale(bundle)
        self.bundle = bundle
        if path:
            self._load_progress(bundle)
            self._leave_out_eval()
            self._load_data_position(bundle)
            self._load_carries(bundle.extra.get("carry"))
            self._compare_data(kit, bundle.extra.get("data_state"))
            if self.ema and not int(self.ema.n_averaged):
                self.ema.module.load_state_dict(self.model.state_dict())  # newly enabled: starts from these weights
        self._place_rates()
        state = {"from_step": self.progress.swa_from_step}
        if self.tail and self.tail.after_load(self.progress.step, self.model, state):
            self._note_tail(f"swa.start_step is {self.cfg.swa.start_step}")

    def check(self, kit: ModuleType) -> None:
        """Let the kit check the resume: a dry batch, the fast subset, where the data stands. Moves nothing."""
        if self.bundle is not None:
            kit.check_resume(
                self.bundle, self.model, dry_batch=self._dry_batch, fast_eval=self._fast_score,
                data_state=self._data_state(), fast_eval_tolerance=1.5 / len(self._fast_pairs),
            )  # fmt: skip

    def take_lr_scale(self, bundle: Any) -> None:
        """Multiply every learning rate by the bundle's lr_scale(step) from now on, and keep it for the next save."""
        self.lr_scale, self.lr_ramp = bundle.lr_scale, bundle.lr_ramp
        self.schedule.rate.scale_at = bundle.lr_scale_at

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

    def _think(self) -> float:
        """Gather the gradients of every micro-batch; returns the step's loss."""
        training, model, total = self.cfg.training, self.cfg.model, 0.0
        self.model.train()
        for micro in range(training.grad_accum_steps):
            carry = refill(self.model, self.carries[micro], self.batches, self.data_step, micro)
            with self.precision():
                loss, self.carries[micro] = segment_loss(
                    self.model, carry, max_segments=model.halt_max_steps, exploration=model.halt_exploration,
                    rules=self.rules,
                )  # fmt: skip
            share = loss / training.grad_accum_steps
            (self.scaler.scale(share) if self.scaler else share).backward()
            total += loss.item() / training.grad_accum_steps
        return total

    def _score(self, kind: str, name: str, should_stop: Callable[[], bool]) -> Score | None:
        return evaluate(
            self.weights[name], self.data, self._fast_pairs if kind == "fast" else self.data.test,
            segments=self.cfg.model.halt_max_steps, variants=self.batches.variants, precision=self.precision,
            should_stop=should_stop,
        )  # fmt: skip

    def _dry_batch(self) -> list[Tensor]:
        """Return the losses of the next step's micro-batches."""
        losses = []
        for micro, begun in enumerate(self.carries):
            carry = refill(self.model, begun, self.batches, self.data_step, micro)
            with self.precision():
                losses.append(
                    segment_loss(
                        self.model, carry, max_segments=self.cfg.model.halt_max_steps,
                        exploration=self.cfg.model.halt_exploration, rules=self.rules,
                    )[0]
                )  # fmt: skip
        return losses

    def _fast_score(self) -> float:
        """Return the score on the fast subset, as `Progress.last_fast` keeps it: of the weights that do best."""
        scores = {name: self._score("fast", name, lambda: False) for name in self.weights}
        return best_of(scores, self.cfg.validation)[1]

    def _move(self) -> bool:
        """Move the weights along the gathered gradients; False where these are not finite: nothing has moved then."""
        training, dense = self.cfg.training, dense_parameters(self.optimizers)
        if self.scaler:
            for optimizer in self.optimizers.values():
                self.scaler.unscale_(optimizer)
        # Without a limit the norm is still taken: weights must not become NaN under a finite loss.
        finite = math.isfinite(clip_grad_norm_(dense, training.grad_clip or math.inf))
        if self.scaler:  # both optimizers move or none: the scaler alone would let one of them go ahead
            finite = finite and bool(self.model.puzzles.weight.grad.coalesce().values().isfinite().all())
        if finite and training.grad_noise_sigma:
            add_noise(dense, sigma=training.grad_noise_sigma, seed=training.seed, step=self.progress.step)
        for optimizer in self.optimizers.values():
            if finite:
                self.scaler.step(optimizer) if self.scaler else optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()
        return finite

    def _count(self) -> None:
        """Take everything that goes by the step one step further."""
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.model)
        self.progress.step += 1
        if self.tail and self.tail.after_step(self.progress.step, self.model):
            self._note_tail(f"swa.start_step is {self.cfg.swa.start_step}")
        self.progress.evals_pending = evals_due(self.progress.step, self.cfg.validation)
        self._leave_out_eval()

    def _leave_out_eval(self) -> None:
        """Pass over the one evaluation that a recovery leaves out, because it crashed or hung."""
        if self.bundle is not None and self.bundle.skip_eval_step == self.progress.step and self.progress.evals_pending:
            print(f"eval: that of step {self.progress.step} is left out", flush=True)
            self.progress.evals_pending = type(self.progress.evals_pending)()

    def _note_tail(self, why: str) -> None:
        self.progress.swa_from_step = self.tail.from_step
        self._place_rates()
        print(f"swa: collecting begins at step {self.progress.step}: {why}", flush=True)

    def _place_rates(self) -> None:
        """Set every learning rate to what config and progress say where the schedule stands."""
        rate, place = self.schedule.rate, self.schedule.place
        rate.cycle_from, rate.behind = self.progress.swa_from_step, self.progress.step - place
        self.schedule.refit(place)

    def _collected(self) -> AveragedModel | None:
        """The SWA average, None before its tail: until then it holds weights that were not trained."""
        return self.tail.collected if self.tail else None

    def _load_progress(self, bundle: Any) -> None:
        known = {field.name for field in fields(Progress)}
        saved = bundle.extra.get("progress") or {}
        was, now = saved.get("optimizer"), kind_of(self.optimizers)
        if bundle.report.get("counters", "").startswith("reset"):
            saved = {}  # a control from scratch: no best to beat, no evaluation due
        self.progress = Progress(**{key: value for key, value in saved.items() if key in known})
        self.progress.step, self.progress.best_val_loss = bundle.global_step, bundle.best_val_loss
        self.progress.optimizer = now
        if was not in (None, now):
            self.progress.swap_from_step = bundle.global_step
            print(f"swap: {now} takes over from {was} at step {bundle.global_step}", flush=True)
        swapped = self.progress.swap_from_step is not None
        set_hyperparameters(self.optimizers, self.cfg.optimizer, swapped=swapped)
        if not self.swa or not int(self.swa.n_averaged):
            self.progress.swa_from_step = None  # nothing collected is here: a tail of long ago is over

    def _load_data_position(self, bundle: Any) -> None:
        """Go on in the data where the checkpoint stands, which need not be the run's step; or begin them anew."""
        step, saved = bundle.global_step, bundle.extra.get("data_state") or {}
        if bundle.report.get("data_position", "").startswith("reset"):
            step = 0
        elif type(saved.get("step")) is int:
            step = saved["step"]
        self.data_from = bundle.global_step - step - bundle.skip_data_steps
        if bundle.skip_data_steps:
            print(f"data: those of the next {bundle.skip_data_steps} steps are left out", flush=True)

    def _data_state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.data.fingerprint, "seed": self.cfg.training.seed, "step": self.data_step,
            "position": self.data_step * self.cfg.training.grad_accum_steps * self.cfg.training.batch_size,
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
