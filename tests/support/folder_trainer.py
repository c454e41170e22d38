"""A trainer that saves folders as Transformers' Trainer does and keeps the newest few, as `save_total_limit` does.

It trains nothing, needs no package, and knows nothing of the kit; its checkpoints are copies of a recorded one.

    python folder_trainer.py --dir checkpoints --steps 20 --save-every 4 --keep 2 --wait 8:/tmp/gate
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "foreign" / "hf" / "checkpoint-4"
PATTERN = "checkpoint-{step}"


def save(folder: Path, step: int) -> Path:
    """Write a whole checkpoint of a step; return it."""
    target = folder / PATTERN.replace("{step}", str(step))
    shutil.copytree(RECORDED, target)
    state = json.loads((target / "trainer_state.json").read_text())
    (target / "trainer_state.json").write_text(json.dumps({**state, "global_step": step}))
    return target


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--wait", action="append", default=[], metavar="STEP:FILE")
    options = parser.parse_args([*sys.argv[1:], *shlex.split(os.environ.get("TOY_ARGS", ""))])
    gates = dict(one.split(":", 1) for one in options.wait)
    step = json.loads((options.resume / "trainer_state.json").read_text())["global_step"] if options.resume else 0
    while step < options.steps:
        step += 1
        print(f"step {step} loss {1 / step:.4f}", flush=True)
        if step % options.save_every == 0:
            save(options.dir, step)
            saved = sorted(options.dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
            for old in saved[: -options.keep]:
                shutil.rmtree(old)
        while str(step) in gates and not os.path.exists(gates[str(step)]):
            time.sleep(0.02)


if __name__ == "__main__":
    main()
