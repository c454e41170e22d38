"""The last checkpoints of two runs of one recipe, compared value by value."""

from __future__ import annotations

from pathlib import Path

import compare_runs
import torch

from reliability.framework_recipes import Recipe


def differences(run: Path, other: Path, recipe: Recipe) -> list[str]:
    """Return what is different in the last checkpoints of two runs."""
    files = [recipe.files(*recipe.checkpoints(path)[-1]) for path in (run, other)]
    names, others = ([path.name for path in of_one] for of_one in files)
    if names != others:
        return [f"{names} are not {others}"]
    return [found for one, two in zip(*files, strict=True) for found in _of_file(one, two)]


def _of_file(one: Path, two: Path) -> list[str]:
    if one.read_bytes() == two.read_bytes() or one.name in (".metadata", "trainer_state.json", "training_args.bin"):
        return []
    if one.suffix in (".safetensors", ".distcp", ".pkl"):
        return [f"{one.name}: other bytes"]
    states = (torch.load(path, map_location="cpu", weights_only=True) for path in (one, two))
    return [f"{one.name}: {where}" for where in compare_runs.differences(*states)]
