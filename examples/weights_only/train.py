"""A recurrent model trained in the manner of HRM's and TRM's pretrain.py: `step_N` holds the weights and nothing else.

Beside it lies what its evaluation predicted, `step_N_all_preds.0`. The lines marked "to resume" are what such a trainer
lacks: `train_state_N` with all else that makes the next step, and its load.
"""

import argparse
import math
import os

import torch
from torch import nn
from torch.nn import functional

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoint_path", default="checkpoints")
parser.add_argument("--total_steps", type=int, default=200)
parser.add_argument("--eval_interval", type=int, default=25)
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--load_checkpoint")
args = parser.parse_args()

seq_len, vocab_size, hidden_size, batch_size = 16, 10, 32, 16


class RecurrentModel(nn.Module):
    """Improves a state over several segments; the state of one segment, the carry, is where the next one begins."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.mix = nn.Linear(seq_len, seq_len)
        self.inner = nn.Sequential(nn.Linear(2 * hidden_size, 64), nn.SiLU(), nn.Linear(64, hidden_size))
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, carry: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = self.mix(self.embed(inputs).transpose(1, 2)).transpose(1, 2)
        state = carry + self.inner(torch.cat([carry, mixed], 2))
        return state.detach(), self.head(state)


def puzzles(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (inputs, labels), each (count, seq_len): what stands there is to be sorted."""
    inputs = torch.randint(vocab_size, (count, seq_len), generator=torch.Generator().manual_seed(seed))
    return inputs, inputs.sort(1).values


def evaluate(step: int) -> None:
    """Save what the model predicts on puzzles that it has not seen, as HRM's evaluation does."""
    inputs, labels = puzzles(0, 64)
    with torch.inference_mode():
        carry = torch.zeros(64, seq_len, hidden_size)
        for _ in range(4):
            carry, logits = model(carry, inputs)
    predictions = {"inputs": inputs, "labels": labels, "logits": logits}
    torch.save(predictions, os.path.join(args.checkpoint_path, f"step_{step}_all_preds.0"))
    print(f"eval step {step} accuracy {(logits.argmax(2) == labels).float().mean().item():.4f}", flush=True)


torch.manual_seed(0)
torch.set_num_threads(1)
model = RecurrentModel()
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
carry = torch.zeros(batch_size, seq_len, hidden_size)
step = 0
os.makedirs(args.checkpoint_path, exist_ok=True)

if args.load_checkpoint:
    model.load_state_dict(torch.load(args.load_checkpoint, map_location="cpu", weights_only=True))
    folder, name = os.path.split(args.load_checkpoint)  # to resume, and the next three lines
    train_state = torch.load(os.path.join(folder, f"train_state_{name[5:]}"), map_location="cpu", weights_only=True)
    optimizer.load_state_dict(train_state["optimizer"])
    step, carry = train_state["step"], train_state["carry"]

while step < args.total_steps:
    step += 1
    lr = args.lr * 0.5 * (1 + math.cos(math.pi * step / args.total_steps))
    for group in optimizer.param_groups:
        group["lr"] = lr
    inputs, labels = puzzles(step, batch_size)
    carry, logits = model(carry, inputs)
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 4 == 0:  # these puzzles are done, others begin
        carry = torch.zeros_like(carry)
    print(f"[{step}/{args.total_steps}] train/loss={loss.item():.6f} train/lr={lr:.3e}", flush=True)
    if step % args.eval_interval == 0:
        evaluate(step)
        train_state = {
            "step": step,
            "optimizer": optimizer.state_dict(),
            "carry": carry,
        }  # to resume, and the next line
        torch.save(train_state, os.path.join(args.checkpoint_path, f"train_state_{step}"))
        torch.save(model.state_dict(), os.path.join(args.checkpoint_path, f"step_{step}"))
