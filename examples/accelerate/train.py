"""A small classifier on made-up data with Accelerate, in the manner of its examples: a folder step_N for each save."""

import argparse
import logging
import math
import os

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

logger = get_logger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", default="checkpoints")
    parser.add_argument("--max_train_steps", type=int, default=200)
    parser.add_argument("--checkpointing_steps", type=int, default=25)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--resume_from_checkpoint")
    parser.add_argument("--seal", action="store_true", help="prove each checkpoint with the kit, under which this runs")
    args = parser.parse_args()
    if args.seal:
        import resume_helper as kit

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    set_seed(0)
    torch.set_num_threads(1)
    inputs = torch.randn(3200, 32)
    labels = (inputs @ torch.randn(32, 10)).argmax(1)
    # A generator of its own: else a loader that is begun in the middle of an epoch draws from the model's.
    train_dataloader = DataLoader(TensorDataset(inputs, labels), 64, shuffle=True, generator=torch.Generator())
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / args.max_train_steps))
    )
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, scheduler
    )

    completed_steps, resume_step = 0, 0
    if args.resume_from_checkpoint:
        logger.info(f"Resumed from checkpoint: {args.resume_from_checkpoint}")
        accelerator.load_state(args.resume_from_checkpoint)
        # The rate of the command line, not the one that the scheduler has loaded.
        scheduler.base_lrs = [args.learning_rate]
        optimizer.param_groups[0]["lr"] = args.learning_rate * scheduler.lr_lambdas[0](scheduler.last_epoch)
        completed_steps = int(os.path.basename(args.resume_from_checkpoint).removeprefix("step_"))
        resume_step = completed_steps % len(train_dataloader)

    logger.info("***** Running training *****")
    logger.info(f"  Total optimization steps = {args.max_train_steps}")
    is_shown = accelerator.is_local_main_process
    progress_bar = tqdm(total=args.max_train_steps, initial=completed_steps, disable=not is_shown)
    while completed_steps < args.max_train_steps:
        model.train()
        train_dataloader.set_epoch(completed_steps // len(train_dataloader))
        active_dataloader = train_dataloader
        if resume_step:
            active_dataloader, resume_step = accelerator.skip_first_batches(train_dataloader, resume_step), 0
        for batch, targets in active_dataloader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(batch), targets)
                accelerator.backward(loss)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            completed_steps += 1
            progress_bar.update(1)
            progress_bar.set_postfix(loss=loss.item(), lr=lr_scheduler.get_last_lr()[0])
            if completed_steps % args.checkpointing_steps == 0:
                output_dir = os.path.join(args.output_dir, f"step_{completed_steps}")
                accelerator.save_state(output_dir)
                if args.seal:
                    kit.seal_checkpoint(output_dir, completed_steps)
            if completed_steps >= args.max_train_steps:
                break


if __name__ == "__main__":
    main()
