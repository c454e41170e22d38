"""A small training whose load is checked at its first step, and what the checks have found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from resume_helper import load_resume_bundle, save_checkpoint
from support.resume_parts import Net


class Job:
    """A trainer's objects; `step` trains one step."""

    def __init__(self, seed: int = 0, **more: Any) -> None:
        self.model = Net(seed=seed, **more)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.ema = AveragedModel(self.model)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(5, 4) * torch.randn(5, 1)).backward()
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.model)

    def save(self, folder: Path, **more: Any) -> Path:
        return save_checkpoint(
            folder, 4, model=self.model, optimizer=self.optimizer, scheduler=self.schedule, ema=self.ema, **more
        )  # fmt: skip

    def load(self, path: Path, **more: Any) -> Any:
        return load_resume_bundle(
            self.model, self.optimizer, self.schedule, ckpt_path=path, ema=self.ema, log_fn=lambda _: None, **more
        )  # fmt: skip


def found(run: Path) -> dict[str, dict[str, Any]]:
    lines = (run / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line]
    return {event["name"]: event for event in events if event["event"] == "check"}


def verdicts(run: Path) -> dict[str, str]:
    return {name: event["verdict"] for name, event in found(run).items()}


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run folder of the kit's, whose journal tells what the checks found."""
    torch.set_num_threads(1)
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(folder))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "EXP-01_x_20261122-1735")
    monkeypatch.delenv("RESUMEKIT_PLAN", raising=False)
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    job = Job()
    for _ in range(4):
        job.step()
    return job.save(tmp_path / "checkpoints", data_state={"position": 32, "seed": 1})
