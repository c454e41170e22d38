"""Write one checkpoint as a framework does: `folder_save.py hf|dcp FOLDER MEGABYTES`.

hf: model.safetensors and optimizer.pt, a third and two thirds of the size; dcp: torch.distributed.checkpoint, in eight
files.
"""

import json
import re
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

kind, folder, megabytes = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
step = int(re.findall("[0-9]+", folder.name)[-1])
torch.manual_seed(0)
weights = [torch.randn(max(1, int(megabytes * 1e6 / 4 / 3 / 16))) for _ in range(16)]
moments = {
    number: {"step": torch.tensor(float(step)), "exp_avg": one * 0.5, "exp_avg_sq": one**2}
    for number, one in enumerate(weights)
}
optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]}

if kind == "dcp":
    state = {"model": {f"layer.{number}.weight": one for number, one in enumerate(weights)}, "optim": optimizer}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=8), no_dist=True)
else:
    folder.mkdir(parents=True)
    header, at = {}, 0
    for number, one in enumerate(weights):
        size = one.numel() * 4
        header[f"layer.{number}.weight"] = {"dtype": "F32", "shape": [one.numel()], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in weights:
            file.write(one.numpy().tobytes())
    torch.save(optimizer, folder / "optimizer.pt")
    torch.save({"last_epoch": step}, folder / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 1.0, "log_history": []}))
