#!/usr/bin/env python3
"""Make tests/recorded/foreign: one tiny checkpoint of each kind, written by the package that writes such ones.

Needs torch, transformers, lightning, accelerate and safetensors, which the kit does not: run it with a Python that has
them. It replaces the whole folder; the versions that it was made with are in its VERSIONS.
Usage: python tools/make_foreign_fixtures.py
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

TARGET = Path(__file__).resolve().parents[1] / "tests" / "recorded" / "foreign"
# Some packages write the absolute path of where they save into what they save.
WORK = Path("/tmp/foreign-checkpoints")
PACKAGES = ("torch", "transformers", "lightning", "accelerate", "safetensors", "numpy")
STEPS = 4


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 5, bias=False)


def trained(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def hf() -> None:
    """checkpoint-2 and checkpoint-4 as Trainer writes them; sharded: the same model in three files with an index."""
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    class Config(PretrainedConfig):
        model_type = "tiny"

    class Tiny(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.first, self.last = torch.nn.Linear(3, 5), torch.nn.Linear(5, 1)
            self.post_init()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            out = self.last(self.first(x)).squeeze(-1)
            return {"loss": ((out - labels) ** 2).mean(), "logits": out}

    data = [{"x": torch.full((3,), float(n)), "labels": torch.tensor(float(n))} for n in range(4)]
    arguments = TrainingArguments(
        output_dir="hf", max_steps=STEPS, save_steps=2, eval_steps=2, eval_strategy="steps", logging_steps=1,
        per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, load_best_model_at_end=True,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Trainer(model=Tiny(Config()), args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.model.save_pretrained("hf/sharded", max_shard_size=70)


def accelerate() -> None:
    """Named by Accelerate itself, of which `total_limit` keeps one; and by the trainer, weights in torch's format."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    limited = ProjectConfiguration("accelerate", automatic_checkpoint_naming=True, total_limit=1)
    accelerator = Accelerator(cpu=True, project_config=limited, gradient_accumulation_steps=2)
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    loader = torch.utils.data.DataLoader([torch.ones(3)] * 8, batch_size=1)
    model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)
    for number, batch in enumerate(loader, 1):
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).sum())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if number == 4:
            accelerator.save_state()
    accelerator.save_state()
    accelerator.project_configuration.automatic_checkpoint_naming = False
    accelerator.save_state("accelerate/step_4", safe_serialization=False)


def lightning() -> None:
    import lightning as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 5})
            self.layer = small()

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            loss = self.layer(batch).sum()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> tuple[list[object], list[object]]:
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))]

    keep = ModelCheckpoint("lightning", monitor="loss", save_last=True, every_n_train_steps=2, save_top_k=1, mode="min")
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[keep], logger=False, enable_progress_bar=False, devices=1,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader([torch.ones(3)] * 8, batch_size=1))


def dcp_of_two() -> None:
    """FSDP2 on two processes: a model and AdamW, in parts of unequal length."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641", "WORLD_SIZE": "2"}
    others = [subprocess.Popen([sys.executable, __file__, "rank", str(rank)], cwd=WORK) for rank in (0, 1)]
    if any(one.wait() for one in others):
        raise SystemExit("a rank failed")


def rank(number: int) -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", rank=number, world_size=2)
    model = small()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    weights, state = get_state_dict(model, trained(model))
    dcp.save({"model": weights, "optim": state, "step": STEPS}, checkpoint_id="dcp/step-4")
    dist.destroy_process_group()


def dcp_of_one() -> None:
    dcp.save({"model": small().state_dict(), "train": {"step": torch.tensor(STEPS)}}, checkpoint_id="dcp/alone-4")


def plain() -> None:
    """Files of plain loops: weights beside an optimizer, nanoGPT's, and HRM's weights alone, without an extension."""
    from safetensors.torch import save_file

    for name in ("pair", "nanogpt", "hrm"):
        Path(name).mkdir()
    model = small()
    optimizer = trained(model)
    save_file(model.state_dict(), "pair/model_4.safetensors", metadata={"step": "4"})
    torch.save(optimizer.state_dict(), "pair/optim_4.pt")
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "model_args": {"n_layer": 1, "bias": False},
        "iter_num": STEPS, "best_val_loss": torch.tensor(2.5), "config": {"out_dir": "out", "dropout": 0.0},
    }  # fmt: skip
    torch.save(content, "nanogpt/ckpt.pt")
    torch.save(model.state_dict(), "hrm/step_4")


def main() -> None:
    """Make all of it in WORK, and put it in the place of the folder."""
    warnings.simplefilter("ignore")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.chdir(WORK)
    for make in (hf, accelerate, lightning, dcp_of_two, dcp_of_one, plain):
        make()
    versions = "".join(f"{name} {importlib.metadata.version(name)}\n" for name in PACKAGES)
    Path("VERSIONS").write_text(versions, encoding="utf-8")
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.move(WORK, TARGET)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]))
    else:
        main()
