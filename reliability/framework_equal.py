"""The last checkpoints of two runs of one recipe, compared value by value."""

from __future__ import annotations

from pathlib import Path

import torch

import compare_runs
from reliability.framework_recipes import Recipe


def differences(run: Path, other: Path, recipe: Recipe) -> list[str]:
    """Return what is different in the last checkpoints of two runs."""
    one, two = (list(recipe.checkpoints(path).values())[-1] for path in (run, other))
    if one.name != two.name:
        return [f"{one.name} is not {two.name}"]
    files = sorted(path.name for path in two.iterdir()) if two.is_dir() else [""]
    return [found for name in files for found in _of_file(one / name, two / name)]


def _of_file(one: Path, two: Path) -> list[str]:
    if one.read_bytes() == two.read_bytes() or one.name in (".metadata", "trainer_state.json", "training_args.bin"):
        return []
    if one.suffix in (".safetensors", ".distcp", ".pkl"):
        return [f"{one.name}: other bytes"]
    states = (torch.load(path, map_location="cpu", weights_only=True) for path in (one, two))
    return [f"{one.name}: {where}" for where in compare_runs.differences(*states)]
