"""A lab's trainer as docs/adopting.md wires one in: its own torch.save, load_resume_bundle, and a log that is read.

It has what such trainers have and the kit does not hold in its hands: BatchNorm, micro-batches whose random numbers
come from a generator for each rank (one process stands for two ranks), a carry from step to step, a sampler with a
memory, an EMA. It does not call check_resume and writes no event of its own. sabotage.py puts faults into it.
Try it: `python tests/support/wired_trainer.py --out /tmp/wired --steps 30`
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "lib")]

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import resume_helper as kit
from support.lab_trainer_log import SHOWN, show

SAMPLES, BATCH, EVERY, RANKS = 40, 4, 10, 2
SLOW_S = 0.002  # of a step: one that took no time could not be timed


class Wired:
    """The training, all of its state as attributes."""

    def __init__(self, steps: int, rate: float) -> None:
        torch.manual_seed(3)
        self.norm = nn.BatchNorm1d(32)
        self.model = nn.Sequential(nn.Linear(8, 32), self.norm, nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.ranks = [torch.Generator().manual_seed(seed) for seed in range(RANKS)]
        self.carry = torch.zeros(1)
        draw = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(SAMPLES, 8, generator=draw), torch.randn(SAMPLES, 1, generator=draw)
        self.step, self.steps, self.seen, self.epoch = 0, steps, 0, 0

    def load(self, path: str | None) -> None:
        bundle = kit.load_resume_bundle(self.model, self.optimizer, self.schedule, ckpt_path=path, ema=self.ema)
        self.optimizer, self.step = bundle.optimizer, bundle.global_step
        if bundle.extra.get("data_state") is not None:
            self.epoch, self.seen = bundle.extra["data_state"]["epoch"], bundle.extra["data_state"]["seen"]
        if "carry" in bundle.extra:
            self.carry = bundle.extra["carry"].clone()
            for generator, state in zip(self.ranks, bundle.extra["ranks"], strict=True):
                generator.set_state(state.clone())

    def next_batch(self) -> torch.Tensor:
        if self.seen == SAMPLES:
            self.epoch, self.seen = self.epoch + 1, 0
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch))
        batch = order[self.seen : self.seen + BATCH]
        self.seen += BATCH
        return batch

    def train_step(self) -> float:
        time.sleep(SLOW_S)
        total = 0.0
        for generator in self.ranks:
            batch = self.next_batch()
            noise = 0.3 * torch.randn(BATCH, 8, generator=generator)
            output = self.model(self.x[batch] + noise)
            self.carry = 0.9 * self.carry + output.detach().mean().reshape(1)
            loss = (output + 0.1 * self.carry - self.y[batch]).square().mean() / len(self.ranks)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return total

    def save(self, folder: Path) -> None:
        state = {
            "model_state_dict": self.model.state_dict(), "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.schedule.state_dict(), "ema_state_dict": self.ema.state_dict(),
            "global_step": self.step, "epoch": self.epoch, "data_state": {"epoch": self.epoch, "seen": self.seen},
            "carry": self.carry, "ranks": [generator.get_state() for generator in self.ranks],
        }  # fmt: skip
        torch.save(state, folder / f"hrm_arc_step_{self.step}.pt")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--resume")
    parser.add_argument("--shows", choices=SHOWN, help="how it tells of its steps; each by a line of its own without")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    job = Wired(args.steps, args.lr)
    job.load(args.resume)
    while job.step < job.steps:
        loss = job.train_step()
        if args.shows:
            show(args.shows, job.step, job.steps, f"{loss:.9f}")
        else:
            print(f"step {job.step} loss {loss:.9f}", flush=True)
        if job.step % EVERY == 0 or job.step == job.steps:
            job.save(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
