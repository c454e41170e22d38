"""A training of several gloo ranks that saves with save_sharded: each rank is a process forked from a test.

Dropout and batches are drawn from each rank's own generator, so that a resume without them is seen.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import torch._dynamo  # these once, before the ranks are forked
import torch.distributed.checkpoint.state_dict
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

sys.path.append(str(Path(__file__).resolve().parents[1]))

from resume_helper import journal_event, load_resume_bundle, save_sharded
from support.rank_groups import in_ranks

PATTERN = "step-{step}"


class Net(nn.Module):
    """Two layers of odd sizes, which no number of ranks divides, with dropout and a buffer."""

    def __init__(self, *, extra: bool = False, width: int = 7) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 3)
        self.register_buffer("seen", torch.zeros(1))
        if extra:
            self.more = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        answer = self.head(self.drop(self.body(x).relu()))
        return self.more(answer) if hasattr(self, "more") else answer


def build(kind: str, *, lr: float = 1e-2, **how: Any) -> tuple[Any, Any]:
    """Return a model and its optimizer, spread over the ranks as `kind` says."""
    net: Any = Net(**how)
    if kind == "fsdp2":
        fully_shard(net.body)
        fully_shard(net)
    elif kind == "fsdp1":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
    elif kind == "zero":
        net = nn.parallel.DistributedDataParallel(net)
        return net, ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=lr)
    return net, torch.optim.AdamW(net.parameters(), lr=lr)


def train(
    rank: int, folder: Path, kind: str, last: int, resume: Path | None = None, save_every: int = 2,
    before_save: Callable[[int, int], None] | None = None, pattern: str | None = PATTERN, **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train to step `last` and return what this rank saw: losses by step, the bundle's report, lines said."""
    model, optimizer = build(kind, **how)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(100 + rank)
    said: list[str] = []
    bundle = load_resume_bundle(
        model,
        optimizer,
        scheduler,
        ckpt_path=resume,
        ranks="all",
        log_fn=said.append,
        allow_partial_weights="extra" in how,
    )
    drawn = (bundle.extra.get("data_state") or {}).get("drawn", 0)
    losses = {}
    for step in range(bundle.global_step + 1, last + 1):
        x = torch.randn(4, 5)
        drawn += 4 + rank
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses[step] = loss.item()
        journal_event("step", step=step, loss=loss.item())
        if step % save_every == 0:
            if before_save:
                before_save(rank, step)
            save_sharded(
                folder, step, model=model, optimizer=optimizer, scheduler=scheduler, loss=loss.item(),
                data_state={"drawn": drawn, "rank": rank}, extra={"note": step}, pattern=pattern, log_fn=said.append,
            )  # fmt: skip
    return {"losses": losses, "report": bundle.report, "drawn": drawn, "said": said, "start": bundle.global_step}


def main() -> None:
    """Train with two ranks, as a run of the kit's: `python sharded_trainer.py --dir DIR --steps N [--resume PATH]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--resume", type=Path)
    options = parser.parse_args()
    ended = in_ranks(2, train, options.dir, "fsdp2", options.steps, options.resume, 2, None, None)
    sys.exit(next((f"{type(one).__name__}: {one}" for one in ended if isinstance(one, Exception)), 0))


if __name__ == "__main__":
    main()
