"""A training loop in plain PyTorch: a small classifier on made-up data, saved every so many steps."""

import argparse
import math
from pathlib import Path

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("snapshots"))
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--save_every", type=int, default=25)
parser.add_argument("--resume_from_checkpoint", type=Path)
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
inputs = torch.randn(2048, 32)
labels = (inputs @ torch.randn(32, 10)).argmax(1)
train_x, train_y, val_x, val_y = inputs[:1536], labels[:1536], inputs[1536:], labels[1536:]

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
first_step, best_val_loss = 1, float("inf")

if args.resume_from_checkpoint:
    snapshot = torch.load(args.resume_from_checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(snapshot["model"])
    optimizer.load_state_dict(snapshot["optimizer"])
    torch.set_rng_state(snapshot["rng_state"])
    first_step, best_val_loss = snapshot["step"] + 1, snapshot["best_val_loss"]

args.out.mkdir(parents=True, exist_ok=True)
for step in range(first_step, args.steps + 1):
    lr = args.lr * 0.5 * (1 + math.cos(math.pi * step / args.steps))
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    batch = torch.randint(len(train_x), (64,))
    loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step} loss {loss.item():.6f} lr {lr:.3e}", flush=True)
    if step % args.save_every == 0:
        model.eval()
        with torch.no_grad():
            val_loss = nn.functional.cross_entropy(model(val_x), val_y).item()
        print(f"step {step} val_loss {val_loss:.6f}", flush=True)
        is_best = val_loss < best_val_loss
        best_val_loss = min(val_loss, best_val_loss)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        state |= {"best_val_loss": best_val_loss, "rng_state": torch.get_rng_state()}
        torch.save(state, args.out / f"snapshot_{step}.pt")
        if is_best:
            torch.save(state, args.out / "snapshot_best.pt")
