"""Compare two runs bit for bit: every journalled loss and evaluation, and every value of their last checkpoints.

A run counts with its history: what its parents did up to the step that it was resumed at. Reads journals and
checkpoints; writes nothing. Exit: 0 equal, 1 different, 2 usage.
Try it: `python examples/hrm_arc/compare_runs.py runs/RUN_A runs/RUN_B`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

# What belongs to one process and not to the training.
NOT_COMPARED = frozenset({"versions"})
NOT_COMPARED_EVENT = frozenset({"at", "mono_s", "run_id", "steps_per_sec"})


def journalled(run_dir: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return what a run's journal says of each step, evaluation and new best, its parents' part included.

    Returns:
        (event, step, kind, weights) -> every field but the clock's; kind and weights are None where there are none.
    """
    parent, limit = parent_of(run_dir)
    found = {}
    if parent:
        inherited = journalled(parent)
        found = {key: value for key, value in inherited.items() if key[1] <= limit}
    for line in (run_dir / "journal.jsonl").read_bytes().splitlines():
        event = json.loads(line) if line.startswith(b"{") else {}
        if event.get("event") in ("step", "eval", "best"):
            fields = {name: value for name, value in event.items() if name not in NOT_COMPARED_EVENT}
            found[event["event"], event["step"], event.get("kind"), event.get("weights")] = fields
    return found


def parent_of(run_dir: Path) -> tuple[Path | None, int | None]:
    """Return the folder of the run that this one was resumed from, and the step; (None, None) where there is none."""
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    parent, step = record.get("parent_run_id"), record.get("parent_step")
    return (run_dir.parent / parent, step) if parent and (run_dir.parent / parent).is_dir() else (None, None)


def last_checkpoint(run_dir: Path) -> Path:
    """Return the step checkpoint with the highest step; a run that had nothing left to do has its parent's."""
    found = list((run_dir / "checkpoints").glob("hrm_arc_step_*.pt"))
    parent, step = parent_of(run_dir)
    if parent and not found:
        return parent / "checkpoints" / f"hrm_arc_step_{step}.pt"
    if not found:
        raise SystemExit(f"compare_runs.py: no checkpoint in '{run_dir / 'checkpoints'}'")
    return max(found, key=lambda path: int(path.stem.rpartition("_")[2]))


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places at which two nested values differ by a single bit or more."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
        return [] if same else [where]
    if type(one) is not type(other):
        return [where]
    if isinstance(one, dict):
        keys = sorted({*one, *other} - NOT_COMPARED, key=str)
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{where}.{key}".strip("."))]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{where}[{i}]")]
    return [] if one == other or (one != one and other != other) else [where]


def compare(one: Path, other: Path) -> tuple[list[str], int, int]:
    """Return (what differs, journalled values compared, tensors and values compared) of two run folders."""
    events, others = journalled(one), journalled(other)
    found = [
        " ".join(str(part) for part in key if part is not None)
        for key in events.keys() | others.keys()
        if events.get(key) != others.get(key)
    ]
    states = [torch.load(last_checkpoint(d), map_location="cpu", weights_only=True) for d in (one, other)]
    return sorted(found) + differences(*states), len(events), _size(states[0])


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View the bytes, so that NaN equals NaN and 0.0 differs from -0.0."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_size(item) for item in value.values())
    return sum(_size(item) for item in value) if isinstance(value, (list, tuple)) else 1


def main(argv: list[str] | None = None) -> int:
    """Compare, and say it in a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN_DIR")
    one, other = parser.parse_args(argv).runs
    for run_dir in (one, other):
        if not (run_dir / "run.json").is_file():
            print(f"compare_runs.py: '{run_dir}' is not a run folder of the kit", file=sys.stderr)
            return 2
    found, events, values = compare(one, other)
    if found:
        print(f"different in {len(found)} places, the first: {', '.join(found[:5])}")
        return 1
    print(f"equal bit for bit: {events} journalled steps and evaluations, {values} tensors and values")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
