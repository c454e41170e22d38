"""Save a checkpoint with plain torch.save, nothing of the kit's: `python plain_save.py PATH MEGABYTES DTYPE`."""

import sys

import torch

path, megabytes, dtype = sys.argv[1], int(sys.argv[2]), getattr(torch, sys.argv[3])
LAYER_MB = 50
layer = torch.randn(LAYER_MB * 10**6 // torch.empty(0, dtype=dtype).element_size(), dtype=torch.float32).to(dtype)
model = {f"layers.{number}.weight": layer.clone() for number in range(megabytes // LAYER_MB)}
torch.save({"model": model, "step": 1}, path)
