"""Which python, torch, CUDA and driver this process has, with how many threads and ranks: what bits depend on."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

# A change of one of these makes an AMP scaler's state meaningless (protocol §1).
SCALER_DEPENDS_ON = ("torch", "cuda", "driver")


def versions() -> dict[str, Any]:
    """Return name -> version (text), count (int) or None."""
    import torch  # the trainer has it already

    numpy = sys.modules.get("numpy")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "numpy": str(numpy.__version__) if numpy is not None else None,
        "threads": torch.get_num_threads(),
        "world_size": torch.distributed.get_world_size() if distributed else int(os.environ.get("WORLD_SIZE") or 1),
    }


def changed(saved: dict[str, Any], now: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return 'name: old at the save, new now' for each of `names` that differs."""
    return [
        f"{name}: {saved[name]} at the save, {now.get(name)} now"
        for name in names
        if name in saved and saved[name] != now.get(name)
    ]


def _driver() -> str | None:
    try:
        with open("/sys/module/nvidia/version") as file:
            return file.read(100).strip()
    except OSError:
        return None
