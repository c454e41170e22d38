"""A small GPT-like model under FSDP2, saved with torch.distributed.checkpoint: a folder step-N for each save.

One process:  python train.py
Several:      torchrun --nproc-per-node 2 train.py
"""

import argparse
import math
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.fsdp import fully_shard

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="checkpoints")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--save_every", type=int, default=25)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--resume_from_checkpoint")
parser.add_argument("--seal", action="store_true", help="prove each checkpoint with the kit, under which this runs")
args = parser.parse_args()
if args.seal:
    import resume_helper as kit

VOCAB_SIZE, SEQ_LEN, BATCH_SIZE = 32, 16, 16


class AppState(Stateful):
    """What is saved and loaded as one: model, optimizer, step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.step = model, optimizer, 0

    def state_dict(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def load_state_dict(self, state_dict: dict) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.step = state_dict["step"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True) for _ in range(2))
        self.output = nn.Linear(32, VOCAB_SIZE)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for layer in self.layers:
            x = layer(x, mask, is_causal=True)
        return self.output(x)


def batch_of(step: int) -> torch.Tensor:
    """Return this rank's tokens of a step, (BATCH_SIZE, SEQ_LEN + 1): each follows from the one before."""
    generator = torch.Generator().manual_seed(step * dist.get_world_size() + dist.get_rank())
    start = torch.randint(VOCAB_SIZE, (BATCH_SIZE, 1), generator=generator)
    stride = torch.randint(1, 4, (BATCH_SIZE, 1), generator=generator)
    return (start + stride * torch.arange(SEQ_LEN + 1)) % VOCAB_SIZE


if "RANK" in os.environ:
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
torch.set_num_threads(1)
model = Model()
for layer in model.layers:
    fully_shard(layer, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
app = AppState(model, optimizer)
if args.resume_from_checkpoint:
    dcp.load({"app": app}, checkpoint_id=args.resume_from_checkpoint)

while app.step < args.steps:
    app.step += 1
    lr = args.lr * 0.5 * (1 + math.cos(math.pi * app.step / args.steps))
    for group in optimizer.param_groups:
        group["lr"] = lr
    tokens = batch_of(app.step)
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"step: {app.step}  loss: {loss.item():.5f}  lr: {lr:.3e}", flush=True)
    if app.step % args.save_every == 0:
        checkpoint = os.path.join(args.out, f"step-{app.step}")
        dcp.save({"app": app}, checkpoint_id=checkpoint)
        if args.seal:
            kit.seal_checkpoint(checkpoint, app.step)
dist.barrier()
dist.destroy_process_group()
