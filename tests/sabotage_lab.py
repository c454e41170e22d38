"""tests/lab_trainer.py, a lab's own script, as a module that a warm process can run (tests/warm_trainer.py)."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run the script as it would be run by its own command line."""
    script = str(Path(__file__).resolve().parent / "lab_trainer.py")
    sys.modules["config"] = types.SimpleNamespace(DEFAULT_LR=0.01)  # the lab's own module
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")
    return 0


def prepare() -> None:
    """Import what the first optimizer pulls in."""
    import torch._dynamo  # noqa: F401
