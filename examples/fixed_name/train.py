"""A small GPT trained in the manner of nanoGPT's train.py: one checkpoint, ckpt.pt, overwritten at each evaluation.

Start:  python train.py --out_dir=out
Resume: python train.py --out_dir=out --init_from=resume
"""

import argparse
import math
import os
import time

import torch
from torch import nn
from torch.nn import functional

parser = argparse.ArgumentParser()
parser.add_argument("--out_dir", default="out")
parser.add_argument("--init_from", default="scratch", choices=["scratch", "resume"])
parser.add_argument("--eval_interval", type=int, default=25)
parser.add_argument("--eval_iters", type=int, default=5)
parser.add_argument("--max_iters", type=int, default=200)
parser.add_argument("--learning_rate", type=float, default=1e-2)
args = parser.parse_args()

batch_size, block_size, vocab_size, n_embd = 16, 16, 32, 32
warmup_iters, min_lr = 10, args.learning_rate / 10
torch.manual_seed(1337)
torch.set_num_threads(1)

# A text of made-up words; the last tenth is kept for validation.
words = [torch.randint(vocab_size, (length,)) for length in (3, 5, 4, 6, 2)]
data = torch.cat([words[i] for i in torch.randint(len(words), (4000,))])
split = {"train": data[: len(data) * 9 // 10], "val": data[len(data) * 9 // 10 :]}


def get_batch(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (inputs, targets) of random places, each (batch_size, block_size)."""
    text = split[name]
    places = torch.randint(len(text) - block_size - 1, (batch_size,))
    return tuple(torch.stack([text[i + shift : i + shift + block_size] for i in places]) for shift in (0, 1))


class GPT(nn.Module):
    """Two blocks of causal attention."""

    def __init__(self, block_size: int, vocab_size: int, n_embd: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(nn.TransformerEncoderLayer(n_embd, 2, 64, 0.0, batch_first=True) for _ in range(2))
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(idx.shape[1])
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x, mask, is_causal=True)
        return functional.cross_entropy(self.lm_head(x).flatten(0, 1), targets.flatten())


@torch.no_grad()
def estimate_loss() -> dict[str, float]:
    """Return the mean loss of `eval_iters` batches of each split."""
    model.eval()
    means = {name: sum(model(*get_batch(name)).item() for _ in range(args.eval_iters)) for name in split}
    model.train()
    return {name: total / args.eval_iters for name, total in means.items()}


def get_lr(it: int) -> float:
    """Return the learning rate of an iteration: linear warm-up, then a cosine."""
    if it < warmup_iters:
        return args.learning_rate * (it + 1) / (warmup_iters + 1)
    ratio = (it - warmup_iters) / (args.max_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (args.learning_rate - min_lr)


os.makedirs(args.out_dir, exist_ok=True)
iter_num, best_val_loss = 0, 1e9
model_args = {"block_size": block_size, "vocab_size": vocab_size, "n_embd": n_embd}
if args.init_from == "resume":
    print(f"Resuming training from {args.out_dir}")
    checkpoint = torch.load(os.path.join(args.out_dir, "ckpt.pt"), map_location="cpu", weights_only=True)
    model_args = checkpoint["model_args"]
    iter_num, best_val_loss = checkpoint["iter_num"], checkpoint["best_val_loss"]
model = GPT(**model_args)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95))
if args.init_from == "resume":
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    checkpoint = None  # free its memory

X, Y = get_batch("train")
t0 = time.time()
while True:
    lr = get_lr(iter_num)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if iter_num % args.eval_interval == 0:
        losses = estimate_loss()
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}", flush=True)
        best_val_loss = min(best_val_loss, losses["val"])
        if iter_num > 0:
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "model_args": model_args,
                "iter_num": iter_num,
                "best_val_loss": best_val_loss,
                "config": vars(args),
            }
            print(f"saving checkpoint to {args.out_dir}", flush=True)
            torch.save(checkpoint, os.path.join(args.out_dir, "ckpt.pt"))
    loss = model(X, Y)
    X, Y = get_batch("train")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    t1 = time.time()
    print(f"iter {iter_num}: loss {loss.item():.4f}, time {(t1 - t0) * 1000:.2f}ms", flush=True)
    t0 = t1
    iter_num += 1
    if iter_num > args.max_iters:
        break
