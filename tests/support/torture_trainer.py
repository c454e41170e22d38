"""A trainer of many states: whatever makes the next step of a PyTorch training what it is, in one small loop.

Half precision with a GradScaler, BatchNorm, dropout, EMA and SWA, a sampler with a memory, two data workers that draw
random numbers, Python's and numpy's random numbers, early stopping, a stop inside an accumulation window.
`STOP_AFTER=<n>`: TERM (or STOP_BY) to itself after n micro-batches. `LEAVE_OUT=<item>`: fresh again after a load.
`BACKGROUND=1`: its saves are written beside the training.
Try it: `STOP_AFTER=35 python tests/support/torture_trainer.py --dir /tmp/torture; echo $?`
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler

from resume_helper import journal_event, load_resume_bundle, save_checkpoint
from resumekit.trainer import background_save

SAMPLES, BATCH, WINDOW, STEPS, EVERY = 30, 3, 4, 13, 3  # 10 micro-batches in an epoch, 4 in an optimizer step
COMPONENTS = ("optimizer", "scheduler", "scaler", "ema", "swa")
EXTRA = ("stale", "micro", "window_loss", "position")
COUNTERS = ("step", "epoch", "best", "lr_scale", *EXTRA)


class Noisy(Dataset):
    """Every sample is another one each time it is asked for: the workers draw."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(SAMPLES, 8, generator=draw), torch.randn(SAMPLES, 1, generator=draw)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + 0.1 * torch.randn(8) + 0.1 * random.random(), self.y[index]


class Shuffled(Sampler):
    """A permutation drawn for each epoch from a generator of its own, and turned by the epoch's number."""

    def __init__(self) -> None:
        self.generator, self.epoch, self.permutation = torch.Generator().manual_seed(2), 0, torch.arange(SAMPLES)

    def __iter__(self):
        return iter(self.permutation.roll(self.epoch).tolist())

    def __len__(self) -> int:
        return SAMPLES


class Torture:
    """The training, all of its state as attributes."""

    def __init__(self, autocast: bool) -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        self.norm, self.wide = nn.BatchNorm1d(256), nn.Linear(256, 256)
        head = nn.Linear(256, 1)
        self.model = nn.Sequential(nn.Linear(8, 256), self.norm, nn.ReLU(), nn.Dropout(0.2), self.wide, head)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.97**step)
        # Doubled after every good step until half precision overflows: then the step is left out and it is halved.
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.swa = AveragedModel(self.model)
        self.data, self.sampler, self.seeds = Noisy(), Shuffled(), torch.Generator().manual_seed(4)
        self.loader = DataLoader(self.data, BATCH, sampler=self.sampler, num_workers=2, generator=self.seeds)
        self.autocast, self.step, self.epoch, self.best, self.lr_scale = autocast, 0, 0, float("inf"), 1.0
        self.stale, self.micro, self.window_loss, self.position = 0, 0, 0.0, 0
        self.stopping, self.seen, self.seed_base, self.resumed = False, 0, self.seeds.get_state(), False
        self.random_states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def train(self, folder: Path) -> int:
        stop_after = int(os.environ.get("STOP_AFTER", 0))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        while True:
            batches = self.begin_epoch()
            for x, y in batches:
                self.micro_batch(x, y)
                if self.micro == WINDOW:
                    self.optimizer_step()
                    if self.step % EVERY == 0 or self.step == STEPS:
                        self.save(folder)
                self.seen += 1
                if self.seen == stop_after:
                    os.kill(os.getpid(), signal.Signals[f"SIG{os.environ.get('STOP_BY', 'TERM')}"])
                if self.stopping and (self.micro or self.step % EVERY):
                    self.save(folder)
                if self.stopping or self.step == STEPS:
                    return 143 if self.stopping else 0
            self.end_epoch()

    def begin_epoch(self) -> Any:
        if not self.resumed:
            self.sampler.permutation = torch.randperm(SAMPLES, generator=self.sampler.generator)
            self.seed_base = self.seeds.get_state()
        self.resumed = False
        batches = iter(self.loader)
        for _ in range(self.position):  # what was seen before the stop; the workers draw it again
            next(batches)
        return batches

    def micro_batch(self, x: torch.Tensor, y: torch.Tensor) -> None:
        x = x * (-1 if random.random() < 0.5 else 1) * (1 + 0.1 * np.random.standard_normal())
        with torch.autocast("cpu", dtype=torch.float16, enabled=self.autocast):
            answer = self.model(x.float())
        # A sum over 65,536 weights: two threads add it up in another order than one.
        loss = (answer.float() - y).square().mean() * (1 + 0.1 * self.epoch) + 1e-4 * self.wide.weight.square().sum()
        self.scaler.scale(loss / WINDOW).backward()
        self.window_loss += loss.item() / WINDOW
        self.micro, self.position = self.micro + 1, self.position + 1

    def optimizer_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.scheduler.get_last_lr()[0] * self.lr_scale
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.ema.update_parameters(self.model)
        if self.step >= EVERY:
            self.swa.update_parameters(self.model)
        self.step += 1
        journal_event("step", step=self.step, epoch=self.epoch, loss=self.window_loss, scale=self.scaler.get_scale())
        self.micro, self.window_loss = 0, 0.0

    def end_epoch(self) -> None:
        self.model.eval()
        with torch.no_grad():
            # The truth drifts away, so that the first evaluation stays the best one and `stale` has something to count.
            truth = self.data.y.flip(0) * (1 + 2 * self.epoch)
            loss = (self.model(self.data.x) - truth).square().mean().item()
        self.model.train()
        journal_event("eval", step=self.step, kind="full", weights="raw", accuracy=0.0, loss=loss)
        self.best, self.stale = min(self.best, loss), 0 if loss < self.best else self.stale + 1
        self.lr_scale *= 0.5 if self.stale == 2 else 1.0
        self.epoch, self.sampler.epoch, self.position = self.epoch + 1, self.sampler.epoch + 1, 0

    def save(self, folder: Path) -> None:
        extra = {name: getattr(self, name) for name in EXTRA}
        extra["gradients"] = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        sampler = self.sampler
        extra["sampler"] = (sampler.permutation, sampler.epoch, sampler.generator.get_state(), self.seed_base)
        parts = {name: getattr(self, name) for name in COMPONENTS}
        counters = {"epoch": self.epoch, "best_val_loss": self.best, "lr_scale": self.lr_scale}
        background = "BACKGROUND" in os.environ
        save_checkpoint(folder, self.step, model=self.model, **parts, **counters, extra=extra, background=background)

    def load(self, path: str) -> None:
        parts = {name: getattr(self, name) for name in COMPONENTS}
        bundle = load_resume_bundle(self.model, ckpt_path=path, own_lr_scale=True, **parts)
        self.step, self.epoch, self.best = bundle.global_step, bundle.start_epoch, bundle.best_val_loss
        self.lr_scale, self.resumed = bundle.lr_scale, True
        for name in EXTRA:
            setattr(self, name, bundle.extra[name])
        for parameter, gradient in zip(self.model.parameters(), bundle.extra["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        self.sampler.permutation, self.sampler.epoch, generator, self.seed_base = bundle.extra["sampler"]
        self.sampler.generator.set_state(generator)
        self.seeds.set_state(self.seed_base)


def copy_values(to: Iterable[torch.Tensor], of: Iterable[torch.Tensor]) -> None:
    with torch.no_grad():
        for one, other in zip(to, of, strict=True):
            one.copy_(other)


def counter(name: str) -> Callable[[Torture, Torture], None]:
    return lambda job, fresh: setattr(job, name, getattr(fresh, name))


def component(name: str) -> Callable[[Torture, Torture], None]:
    return lambda job, fresh: getattr(job, name).load_state_dict(getattr(fresh, name).state_dict())


# Each puts one item back to its value in a process that has loaded nothing.
FORGET: dict[str, Callable[[Torture, Torture], object]] = {
    **{name: counter(name) for name in COUNTERS},
    **{name: component(name) for name in COMPONENTS},
    "weights": lambda job, fresh: copy_values(job.model.parameters(), fresh.model.parameters()),
    "batch norm buffers": lambda job, fresh: copy_values(job.norm.buffers(), fresh.norm.buffers()),
    "ema count": lambda job, fresh: job.ema.n_averaged.zero_(),
    "swa count": lambda job, fresh: job.swa.n_averaged.zero_(),
    "gradients": lambda job, fresh: job.optimizer.zero_grad(),
    "permutation": lambda job, fresh: vars(job.sampler).update(permutation=fresh.sampler.permutation),
    "sampler generator": lambda job, fresh: vars(job.sampler).update(generator=fresh.sampler.generator),
    "sampler epoch": lambda job, fresh: vars(job.sampler).update(epoch=fresh.sampler.epoch),
    "worker seed base": lambda job, fresh: job.seeds.set_state(fresh.seeds.get_state()),
    "python": lambda job, fresh: random.setstate(fresh.random_states[0]),
    "numpy": lambda job, fresh: np.random.set_state(fresh.random_states[1]),
    "torch": lambda job, fresh: torch.set_rng_state(fresh.random_states[2]),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--resume")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--autocast", choices=("on", "off"), default="on")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    fresh, job = Torture(args.autocast == "on"), Torture(args.autocast == "on")
    if args.resume:
        job.load(args.resume)
    if out := os.environ.get("LEAVE_OUT"):
        FORGET[out](job, fresh)
    code = job.train(args.dir)
    background_save.wait()  # what a fork server has started does not end as an interpreter does
    return code


if __name__ == "__main__":
    raise SystemExit(main())
