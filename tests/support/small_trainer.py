"""A small trainer with the kit's helpers and what the example has not: BatchNorm, two groups, a sampler with a memory.

Trains in a second; one schedule per group that the kit cannot foresee, a GradScaler, an EMA, dropout. Run by the
launcher through support/fork_server.py; sabotage.py puts faults into it.
Try it: `python tests/support/small_trainer.py --dir /tmp/small --steps 30`
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import resume_helper as kit

SAMPLES, BATCH, EVERY = 40, 8, 10
SLOW_S = 0.002  # of a step: one that took no time could not be timed


class Small:
    """The training, all of its state as attributes."""

    def __init__(self, steps: int) -> None:
        torch.manual_seed(3)
        self.norm = nn.BatchNorm1d(32)
        self.model = nn.Sequential(
            nn.Linear(8, 32), self.norm, nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 32), nn.Linear(32, 1)
        )
        self.optimizer = self.make_optimizer()
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        draw = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(SAMPLES, 8, generator=draw), torch.randn(SAMPLES, 1, generator=draw)
        self.step, self.steps, self.seen, self.epoch = 0, steps, 0, 0

    def make_optimizer(self) -> torch.optim.Optimizer:
        weights = list(self.model.parameters())
        matrices, others = [one for one in weights if one.dim() > 1], [one for one in weights if one.dim() <= 1]
        return torch.optim.AdamW([{"params": matrices, "lr": 1e-2}, {"params": others, "lr": 3e-3, "weight_decay": 0}])

    def order(self) -> torch.Tensor:
        return torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch))

    def position(self) -> dict[str, int | str]:
        return {"epoch": self.epoch, "seen": self.seen, "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        return hashlib.sha256(self.x.numpy().tobytes() + self.y.numpy().tobytes()).hexdigest()

    def load(self, path: str | None) -> None:
        bundle = kit.load_resume_bundle(
            self.model, self.optimizer, self.schedule, self.scaler, ckpt_path=path, ema=self.ema
        )
        self.step, self.bundle = bundle.global_step, bundle
        if place := bundle.extra.get("data_state"):
            self.epoch, self.seen = place["epoch"], place["seen"]

    def check(self) -> None:
        kit.check_resume(
            self.bundle, self.model, dry_batch=lambda: self.model(self.x[:BATCH]), data_state=self.position()
        )

    def next_batch(self) -> torch.Tensor:
        if self.seen == SAMPLES:
            self.epoch, self.seen = self.epoch + 1, 0
        batch = self.order()[self.seen : self.seen + BATCH]
        self.seen += BATCH
        return batch

    def train_step(self) -> float:
        time.sleep(SLOW_S)
        batch = self.next_batch()
        loss = (self.model(self.x[batch]) - self.y[batch]).square().mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def save(self, folder: Path) -> None:
        kit.save_checkpoint(
            folder, self.step, model=self.model, optimizer=self.optimizer, scheduler=self.schedule, scaler=self.scaler,
            ema=self.ema, data_state=self.position(),
        )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--resume")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    job = Small(args.steps)
    kit.journal_event("data", fingerprint=job.fingerprint(), name="numbers", tasks=1, examples=SAMPLES)
    job.load(args.resume)
    job.check()
    while job.step < job.steps:
        rate = job.schedule.get_last_lr()[0]
        loss = job.train_step()
        kit.journal_event("step", step=job.step, epoch=job.epoch, loss=loss, lr=rate)
        print(f"step {job.step} loss {loss:.6f}", flush=True)
        if job.step % EVERY == 0 or job.step == job.steps:
            job.save(args.dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
