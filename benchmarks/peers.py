"""The tools beside which we are measured, in a venv of their own: benchmarks/.venv, from requirements.txt.

It sees the torch of the environment that runs the benchmark. What can't be installed is left out, and that is said.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = HERE / "requirements.txt"
HYDRA_APP = HERE / "programs" / "hydra_hello"
_READY = VENV / "requirements.installed"


def ensure() -> bool:
    """Make the venv if it is not there or not of these requirements; False where it can't be made."""
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if _READY.is_file() and _READY.read_text(encoding="utf-8") == wanted and PYTHON.exists():
        return True
    print("installing the peers into benchmarks/.venv ...", file=sys.stderr)
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", str(REQUIREMENTS)],
    ]
    for command in commands:
        if subprocess.run(command, stdout=sys.stderr).returncode:
            print("the peers could not be installed; measuring without them", file=sys.stderr)
            return False
        _share_torch()
    _READY.write_text(wanted, encoding="utf-8")
    return True


def hydra(program: str) -> list[str]:
    """Return the command of one of the apps in programs/hydra_hello."""
    return [str(PYTHON), str(HYDRA_APP / program)]


def launchers(program: Path) -> dict[str, list[str]]:
    """Return name -> command that starts `program`, for each launcher that is installed."""
    torchrun = Path(sys.executable).parent / "torchrun"
    accelerate = VENV / "bin" / "accelerate"
    found = {}
    if torchrun.exists():
        found["torchrun"] = [str(torchrun), str(program)]
    if accelerate.exists():
        found["accelerate launch"] = [str(accelerate), "launch", "--cpu", "--num_processes", "1", str(program)]
    return found


def _share_torch() -> None:
    """Let the venv see the packages beside torch, so that pip does not fetch it a second time."""
    spec = importlib.util.find_spec("torch")  # finds it without importing it
    if spec is None or spec.origin is None:
        return
    (site,) = VENV.glob("lib/python3*/site-packages")
    (site / "of_the_benchmark.pth").write_text(f"{Path(spec.origin).parent.parent}\n", encoding="utf-8")
