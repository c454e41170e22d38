"""What one does without the kit: torch.load, on one file, or on each of a folder's checkpoints.

python torch_load.py FILE
python torch_load.py FOLDER SECONDS_FILE    the seconds for all its files go into SECONDS_FILE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch


def main(argv: list[str]) -> None:
    path = Path(argv[0])
    if path.is_file():
        step_of(path)
        return
    started = time.monotonic()
    for one in sorted(path.glob("*.pt")):
        if one.is_file() and step_of(one) is None:
            continue
    Path(argv[1]).write_text(str(time.monotonic() - started), encoding="utf-8")


def step_of(path: Path) -> int | None:
    """Return the step inside, None where torch can't load it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception:  # torch has many kinds of errors for a bad file; here they all mean: the next one
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
