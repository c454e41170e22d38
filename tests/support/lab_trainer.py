"""A lab's own trainer, as people write them: it knows nothing of the kit and saves with plain torch.save."""

import argparse
import os
import sys
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))

import config  # the lab's own module, which no other module may shadow
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--out", required=True)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--lr", type=float, default=config.DEFAULT_LR)
parser.add_argument("--resume")
parser.add_argument("--shows", help="how it tells of its steps: 'tenth', 'from-0' or 'bar' (lab_trainer_log.py)")
parser.add_argument("--hold", help="wait at step 17 for as long as this file is there")
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
step = 0

if args.resume:
    state = torch.load(args.resume, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model_state_dict"])
    optimizer.load_state_dict(state["optimizer_state_dict"])
    scheduler.load_state_dict(state["scheduler_state_dict"])
    step = state["global_step"]
    print(f"resumed at step {step}", flush=True)

os.makedirs(args.out, exist_ok=True)
while step < args.steps:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    step += 1
    if args.shows:
        # Late: a lab that is made for a test does not have it, and never asks.
        from support import lab_trainer_log

        lab_trainer_log.show(args.shows, step, args.steps, f"{loss.item():.9f}")
    else:
        print(f"step {step} loss {loss.item():.9f} lr {scheduler.get_last_lr()[0]:.6f}", flush=True)
    if step % 5 == 0:
        state = {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(),
            "global_step": step,
            "epoch": 0,
        }
        torch.save(state, os.path.join(args.out, f"hrm_arc_step_{step}.pt"))  # in place, as people do
    while step == 17 and args.hold and os.path.exists(args.hold):
        time.sleep(0.02)
print("done", flush=True)
