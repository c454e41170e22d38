"""lab_trainer.py, a lab's own script, as a module that a warm process can run (support/fork_server.py)."""

from __future__ import annotations

import runpy
import sys
import types

from support import lab_repo


def main(argv: list[str]) -> int:
    """Run the script as it would be run by its own command line."""
    script = str(lab_repo.TRAINER)
    sys.modules["config"] = types.SimpleNamespace(DEFAULT_LR=0.01)  # the lab's own module
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")
    return 0
