"""The example's training in this process: build it, go on with it, load it. Shared by tests/test_example_*.py."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "hrm_arc"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

import resume_helper as kit
from arc_runtime import prepare_torch
from arc_settings import load_settings
from arc_training import Training
from support.example_runs import CONFIG


@contextlib.contextmanager
def without_the_kit(patch: Any) -> Iterator[None]:
    """Hide the launcher's environment; put torch's settings back at the end. `patch` is pytest's monkeypatch."""
    for name in [name for name in os.environ if name.startswith("RESUMEKIT_")]:
        patch.delenv(name)
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def with_changes(**sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the small config with some keys of some sections changed."""
    return CONFIG | {name: CONFIG.get(name, {}) | keys for name, keys in sections.items()}


def job(config: dict | None = None, begins_at: int = 0) -> Training:
    """Build a training, seeded as in a new process."""
    cfg = load_settings(None, {(s, k): v for s, keys in (config or CONFIG).items() for k, v in keys.items()})
    return Training(cfg, prepare_torch(1, 1, "cpu"), begins_at)


def load(path: Path, config: dict | None = None, begins_at: int = 0, **policies: Any) -> Training:
    """Build a training and load it from a checkpoint."""
    training = job(config, begins_at)
    torch.manual_seed(99)  # another state than the saved one, as in a new process that drew other numbers
    wanted = {"allow_partial": False, "optimizer_policy": "load", "schedule_policy": "load"} | policies
    training.load(kit, str(path), **wanted)
    return training


def save(training: Training, folder: Path) -> Path:
    """Save a training as its loop would."""
    path = training.save(kit, folder, 1.0, None)
    assert path is not None
    return path


def go_on(training: Training, steps: int) -> list:
    """Train and evaluate; return every number that came out, and the final weights and scale."""
    seen = []
    for _ in range(steps):
        seen.append(vars(training.step()))
        training.run_pending_evals(lambda event, **numbers: seen.append((event, numbers)), lambda: False)
    seen.extend([weight.detach().clone() for weight in model.parameters()] for model in training.weights.values())
    return [*seen, training.scaler.state_dict() if training.scaler else None]


def forget(checkpoint: dict, *path: Any) -> None:
    """Leave one item of a checkpoint out."""
    for key in path[:-1]:
        checkpoint = checkpoint[key]
    del checkpoint[path[-1]]
