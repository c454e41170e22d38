"""What touches a GPU, tried on one: `make gpu`. Each check runs on the CPU too, with `--device cpu`, as the tests do.

A training of six steps is cut after three and resumed in a process of its own; every loss and the end are compared
bit for bit with those of one that was not cut. Where there is no GPU that is said, and nothing has been tried.
Try it: `python -m reliability.gpu_checks --device cpu`
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "lib"))

STEPS, CUT_AT, WAIT_S = 6, 3, 300
# name -> what is compared; the words stand in the table.
CHECKS = {
    "generators": "dropout, drawn by the device's own generator",
    "bf16": "autocast in bfloat16",
    "fp16": "autocast in float16 with a GradScaler, one step of which is left out",
    "ranks": "a process group of one rank (nccl; gloo on the CPU), ranks='all'",
    "background": "saved beside the training, out of buffers that are kept (pinned on a GPU)",
    "sharded": "fully_shard, saved and loaded through torch.distributed.checkpoint",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, or one training of one check; returns 0, or 1 where one is not equal."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--train", help="one training of this check, in this process")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--until", type=int, default=STEPS)
    args = parser.parse_args(argv)
    if args.train:
        return _train(args.train, args.device, args.folder, args.until)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu: left out: torch sees no GPU here; on a machine that has one `make gpu` tries "
              f"{', '.join(CHECKS)} (--device cpu tries the same on the CPU)")  # fmt: skip
        return 0
    name = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU"
    print(f"gpu: torch {torch.__version__}, {name}", flush=True)
    outcomes = {check: _outcome(check, args.device) for check in args.only}
    print("\n| check | seen | what is tried |\n| --- | --- | --- |")
    for check, seen in outcomes.items():
        print(f"| {check} | {seen} | {CHECKS[check]} |")
    return int(any(not seen.startswith("equal") for seen in outcomes.values()))


def _outcome(check: str, device: str) -> str:
    """Cut and resume one training, and compare it with one that was not cut."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        for where, until in ((whole, STEPS), (cut, CUT_AT), (cut, STEPS)):
            done = _process(check, device, where, until)
            if done.returncode != 0:
                return "FAILED: " + (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
        difference = _difference(whole, cut)
    return difference or f"equal bit for bit, {time.monotonic() - began:.0f} s"


def _process(check: str, device: str, folder: Path, until: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    words = ["--device", device, "--train", check, "--folder", str(folder), "--until", str(until)]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return subprocess.run(
        [sys.executable, "-m", "reliability.gpu_checks", *words], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip


def _difference(whole: Path, cut: Path) -> str:
    """Return what differs first; '' where nothing does."""
    import torch

    losses = [json.loads((folder / "losses.json").read_text()) for folder in (whole, cut)]
    for step in map(str, range(1, STEPS + 1)):
        if losses[0].get(step) != losses[1].get(step):
            return f"FAILED: the loss of step {step} is {losses[1].get(step)}, not {losses[0].get(step)}"
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (whole, cut)]
    for name, tensor in ends[0].items():
        if not torch.equal(tensor, ends[1][name]):
            return f"FAILED: {name} differs at the end"
    return ""


class _Training:
    """A small net with dropout, its optimizer and schedule, and where a check asks for it a GradScaler or a group."""

    def __init__(self, check: str, device: str) -> None:
        import torch
        from torch import nn

        self.check, self.device = check, device
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(1)
        if check in ("ranks", "sharded"):
            _join(device)
        self.model: Any = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1)).to(device)
        if check == "sharded":
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 2 * STEPS)
        self.scaler = torch.amp.GradScaler(device, init_scale=2.0**120) if check == "fp16" else None
        self.precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(check)

    def load(self, checkpoint: Path | None) -> int:
        """Load a checkpoint; returns the step to go on from."""
        from resume_helper import load_resume_bundle

        ranks = {"ranks": "all"} if self.check in ("ranks", "sharded") else {}
        bundle = load_resume_bundle(
            self.model, self.optimizer, self.scheduler, self.scaler, ckpt_path=checkpoint, **ranks
        )
        return int(bundle.global_step)

    def step(self, number: int) -> float:
        """Train one step on the data of its number; returns the loss."""
        import torch

        data = torch.randn(32, 16, generator=torch.Generator().manual_seed(number)).to(self.device)
        with torch.autocast(self.device, dtype=self.precision, enabled=self.precision is not None):
            loss = (self.model(data) ** 2).mean()
        if self.scaler is not None:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def save(self, folder: Path, number: int) -> None:
        from resume_helper import save_checkpoint, save_sharded

        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        place = {"step": number}
        if self.check == "sharded":
            save_sharded(folder, number, data_state=place, **parts)
        else:
            more: dict[str, Any] = {"ranks": {"ranks": "all"}, "background": {"background": True}}.get(self.check, {})
            save_checkpoint(folder, number, data_state=place, **parts, **more)

    def end(self) -> dict[str, Any]:
        """Return every value of the end: weights, moments and generators."""
        import torch

        found = {f"weights {name}": _whole(tensor) for name, tensor in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer {number} {name}": _whole(torch.as_tensor(value)) for name, value in state.items()}
        found["generator"] = torch.get_rng_state()
        if self.device == "cuda":
            found["generator of the GPU"] = torch.cuda.get_rng_state()
        return found


def _train(check: str, device: str, folder: Path, until: int) -> int:
    import torch

    training = _Training(check, device)
    begun = training.load(next(iter(sorted((folder / "checkpoints").glob("*_3*"))), None) if until > CUT_AT else None)
    told = folder / "losses.json"
    losses = json.loads(told.read_text()) if begun else {}
    for number in range(begun + 1, until + 1):
        losses[str(number)] = float.hex(training.step(number))
        if number == CUT_AT:
            training.save(folder / "checkpoints", number)
    told.write_text(json.dumps(losses))
    torch.save(training.end(), folder / "end.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _join(device: str) -> None:
    import torch

    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip


def _whole(tensor: Any) -> Any:
    whole: Callable[[], Any] | None = getattr(tensor, "full_tensor", None)
    return (tensor if whole is None else whole()).detach().cpu()


if __name__ == "__main__":
    raise SystemExit(main())
