"""The toy trainer behind a script, as labs start theirs; what it has done until a step."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support.commands import Kit
from support.places import TOY
from support.processes import wait_until

PYTHON = '"$PYTHON" "$TOY" "$@"'
RUN = '"$PYTHON" -c "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"'
WRAPPERS = {
    "plain": f"{PYTHON}",
    "then": f"{PYTHON}\necho the script goes on",
    "background": f"{PYTHON} &\nwait",
    "forwards": f'trap \'kill -TERM "$pid"\' TERM INT\n{PYTHON} &\npid=$!\nwait "$pid"',
    "forwards and waits": f'trap \'kill -TERM "$pid"; wait "$pid"\' TERM INT\n{PYTHON} &\npid=$!\nwait "$pid"',
    "kills its group": f"trap 'trap - TERM INT; kill 0' TERM INT\n{PYTHON} &\nwait",
    "python": f"exec {RUN} {PYTHON}",
    "python in a script": f"{RUN} {PYTHON}\necho the script goes on",
    "tee": f'{PYTHON} | tee "$0.log"',
    "twice": 'bash -c \'"$PYTHON" "$TOY" "$@"; true\' x "$@"',
}


def wrapped(kit: Kit, script: str, *toy_args: str, shell: str = "bash", **sections: dict) -> Path:
    """Configure the toy trainer behind a script; returns the script."""
    file = kit.folder / "train.sh"
    file.write_text(f"#!/usr/bin/env {shell}\n{script}\n")
    kit.config(training={"max_steps": 10**6}, **sections)
    config = json.loads(kit.config_file.read_text())
    toy = config["trainer"]["command"][2:]
    braced = str(file).replace("{", "{{").replace("}", "}}")
    config["trainer"]["command"] = [shell, braced, *toy, *toy_args]
    config["trainer"]["env"] = ["TOY"]
    kit.config_file.write_text(json.dumps(config))
    kit.env |= {"TOY": str(TOY)}
    return file


def begun(kit: Kit, *args: str, step: int = 2, **options: object) -> tuple[subprocess.Popen, Path]:
    """Start a run; return when it steps."""
    process = kit.popen("run", "T-1", *args, **options)
    run = kit.started(len(kit.run_dirs()) or 1)
    wait_until(lambda: f"step {step} ".encode() in (run / "logs" / "output.log").read_bytes(), f"step {step}")
    return process, run


def last_step(run: Path) -> int:
    lines = (run / "logs" / "output.log").read_text(errors="replace").splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("step ")][-1]


def saved_steps(run: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("_")[2]) for path in (run / "checkpoints").glob("*.pt"))
