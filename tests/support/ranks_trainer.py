"""A DDP trainer whose ranks draw numbers of their own: dropout, noise on the data, each from a generator of its own.

Every rank writes the loss of each step into `losses_RANK`, and what it ends with into `final_RANK.pt`. `CUT=PLACE:STEP:
RANK` kills a rank at a place: `step` (behind the backward pass), `save` (the file is written, and has no name yet),
`manifest` (it has one, and is not proven yet), `before_save`, `eval`. Under the kit (RESUMEKIT_RUN_DIR) the checkpoints
lie in the run's folder. Try it: `python -m pytest tests/test_ranks_resume.py`
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resume_helper import StepSampler, accumulation, check_resume, journal_event, load_resume_bundle, save_checkpoint
from resumekit.trainer import saving

EXAMPLES, GLOBAL_BATCH, MICRO_BATCH, EVERY = 40, 8, 2, 4


def main(argv: list[str] | None = None) -> int:
    """Train; returns 0, or 143 after a TERM, with the step saved."""
    options = _options(argv)
    torch.set_num_threads(1)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    if "RANK" in os.environ:
        _join(options.port)
    try:
        return _train(options, asked)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(port: int | None) -> None:
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    wait = datetime.timedelta(seconds=60)
    if port:
        store = dist.TCPStore("127.0.0.1", port, count, is_master=rank == 0, timeout=wait)
    else:
        # torchrun keeps one store over its restarts, in which gloo finds the addresses of ranks that are dead.
        agents = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), count, timeout=wait)
        store = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", agents)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=wait)


def _train(options: argparse.Namespace, asked: list[int]) -> int:
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(7)
    model: Any = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
    inputs = torch.randn(EXAMPLES, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step)
    torch.manual_seed(100 + rank)
    random.seed(100 + rank)
    passes = accumulation(GLOBAL_BATCH, MICRO_BATCH)
    sampler = StepSampler(EXAMPLES, MICRO_BATCH, seed=5, batches_per_step=passes)
    bundle = load_resume_bundle(model, optimizer, scheduler, ckpt_path=options.resume, ranks=options.ranks)
    place = bundle.extra.get("data_state")
    if place is not None:
        sampler.load_state_dict(place, skip_steps=bundle.skip_data_steps)
    elif bundle.global_step:
        sampler.set_step(bundle.global_step)
    check_resume(bundle, model, data_state=_place(sampler, bundle.global_step, rank, options))
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    batches, step = _forever(sampler), bundle.global_step
    with open(options.dir / f"losses_{rank}", "a") as losses:
        while step < options.steps:
            loss = torch.zeros(())
            for _ in range(passes):
                batch = inputs[next(batches)]
                noisy = batch + 0.1 * torch.randn_like(batch) + 0.1 * random.random()
                one = (model(noisy) - noisy.sum(1, keepdim=True)).square().mean() / passes
                one.backward()
                loss += one.detach()
            _cut("step", step + 1, rank)
            time.sleep(options.pause)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            losses.write(f"{step} {loss.item().hex()}\n")
            losses.flush()
            journal_event("step", step=step, loss=loss.item(), lr=scheduler.get_last_lr()[0])
            if step % 3 == 0:
                _evaluate(model, inputs, step, rank)
            is_stopping = _any(bool(asked))
            if step % EVERY == 0 or is_stopping:
                _cut("before_save", step, rank)
                _cut_inside_the_save(step, rank)
                save_checkpoint(
                    options.checkpoints, step, model=getattr(model, "module", model), optimizer=optimizer,
                    scheduler=scheduler, data_state=_place(sampler, step, rank, options), ranks=options.ranks,
                )  # fmt: skip
            if is_stopping:
                return 143
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "torch": torch.get_rng_state()}
    torch.save(
        {**states, "python": random.getstate(), "place": sampler.state_dict(step)}, options.dir / f"final_{rank}"
    )
    return 0


def _place(sampler: StepSampler, step: int, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    own = {"of_rank": rank} if options.own_places else {}
    return {**sampler.state_dict(step), **own}


def _forever(sampler: StepSampler) -> Any:
    while True:
        yield from sampler


def _evaluate(model: Any, inputs: torch.Tensor, step: int, rank: int) -> None:
    model.eval()
    with torch.no_grad():
        model(inputs)
        _cut("eval", step, rank)
    model.train()


def _any(is_asked: bool) -> bool:
    if not dist.is_initialized():
        return is_asked
    flag = torch.tensor([float(is_asked)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def _cut(place: str, step: int, rank: int) -> None:
    wanted = os.environ.get("CUT")
    # Once: a trainer that is started again, in its place or by its launcher, passes through the same step.
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and "RESUMEKIT_PLAN" not in os.environ
    if wanted == f"{place}:{step}:{rank}" and is_first:
        os.kill(os.getpid(), signal.SIGKILL)


def _cut_inside_the_save(step: int, rank: int) -> None:
    """Have a cut come while the file is there under its temp name, or when it has its own and no manifest yet."""
    publish = saving.DurableFile.publish

    def cut_publish(file: Any) -> None:
        _cut("save", step, rank)
        publish(file)
        _cut("manifest", step, rank)

    if os.environ.get("CUT") in (f"save:{step}:{rank}", f"manifest:{step}:{rank}"):
        saving.DurableFile.publish = cut_publish


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--dir", type=Path, required=True, help="where losses and the end are written")
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--port", type=int, help="of the ranks' meeting; without it as torchrun says")
    parser.add_argument("--ranks", choices=("all",))
    parser.add_argument("--pause", type=float, default=0.0, help="seconds in each step")
    parser.add_argument("--own-places", action="store_true", help="each rank hands over a data_state of its own")
    options = parser.parse_args(argv)
    options.checkpoints = options.checkpoints or options.dir / "checkpoints"
    return options


if __name__ == "__main__":
    raise SystemExit(main())
