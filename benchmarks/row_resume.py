"""Row 4: from `resume.sh` to model and optimizer loaded and proven, against the same trainer bare and unproven.

The bare one maps the file with torch.load(mmap=True) and believes it. The time runs from the start of the command to
the moment at which the trainer could do its first step. The model is made without any initialisation, so that the
digest has little to hide behind.
Try it: `python benchmarks/bench.py 4 --quick`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, measure
from lab import PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed
from settings import Findings, Settings

GOAL = 1.10
MB, QUICK_MB = 1000, 200
PROGRAM = PROGRAMS / "load_checkpoint.py"
READING = "reading the file once"


def run(settings: Settings) -> Findings:
    """Measure row 4."""
    megabytes = QUICK_MB if settings.is_quick else MB
    lab, ready = _lab(settings, megabytes)
    lab.run_killed("BENCH-4")
    base = lab.run_folders()
    (checkpoint,) = next(iter(base)).glob("checkpoints/*.pt")
    bare = [sys.executable, *_arguments(ready, megabytes), "--resume", str(checkpoint), "--bare"]
    variants = [
        Variant(OURS, lambda: _until_ready(lab.resume("BENCH-4"), lab.folder, ready)),
        Variant(THEIRS, lambda: _until_ready(bare, lab.folder, ready)),
        Variant(AGAIN, lambda: _until_ready(bare, lab.folder, ready)),
        Variant(READING, lambda: _read_once(checkpoint)),
    ]
    samples = measure(variants, settings.rounds, "row 4", lambda: lab.forget_runs(base))
    size = checkpoint.stat().st_size / 1e6
    title = f"resume.sh to model and optimizer loaded and proven, {size:.0f} MB, against torch.load(mmap=True) bare"
    return Findings([compare("4", title, samples, GOAL, limit=READING)], {"row 4": samples})


def _lab(settings: Settings, megabytes: int) -> tuple[Lab, Path]:
    ready = settings.scratch / "ready"
    command = ["{python}", *_arguments(ready, megabytes)]
    trainer = {
        "command": command, "resume_args": ["--resume", "{checkpoint}"], "loads_with_kit": True,
    }  # fmt: skip
    experiment = {"trainer": trainer | {"command": [*command, "--save", "{checkpoints_dir}"]}}
    return Lab(settings.scratch / "resume", {"BENCH-4": experiment}), ready


def _arguments(ready: Path, megabytes: int) -> list[str]:
    sys.path.append(str(PROGRAMS))
    from stack import width_for  # late: it imports torch

    return [str(PROGRAM), "--ready", str(ready), "--width", str(width_for(megabytes))]


def _until_ready(command: list[str], folder: Path, ready: Path) -> Sample:
    """Return the time from the command's start to the trainer's moment; the CPU is that of the whole command."""
    ready.unlink(missing_ok=True)
    started = time.monotonic()
    whole = timed(command, cwd=folder, env=clean_environment())
    if not ready.exists():
        raise BenchmarkError(f"'{' '.join(command)}' ended well and its trainer was never ready")
    return Sample(float(ready.read_text(encoding="utf-8")) - started, whole.cpu_s)


def _read_once(path: Path) -> Sample:
    started = time.monotonic()
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return Sample(time.monotonic() - started)
