"""Row 7: `resume.sh --dry-run`, a full plan among many checkpoints, against Hydra's hello-world.

The run is a real one; beside its own checkpoint lie a thousand more, the newest ten of them broken, and the newest good
one holds as many tensors as a model of 27 million parameters. In the plan learning rate and batch size change. A dry
run also proves the chosen file: what that costs for 324 MB is shown apart.
Try it: `python benchmarks/bench.py 7 --quick`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peers
from arithmetic import growth
from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, clocked, measure
from lab import KIT, PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed
from settings import Findings, Settings

sys.path.append(str(KIT / "lib"))

from resumekit.checkpoint import one_pass

GOAL = 0.7
COUNT = 1000
SIZES, QUICK_SIZES = (10, 100, 1000, 10_000), (10, 100, 1000)
# 784 tensors with the optimizer's, like a model of 27 million parameters.
LAYERS = 98
DIGEST_MB = 324
CHANGES = ("--set", "optimizer.lr=5e-5", "--set", "training.batch_size=64")
BARE, DIGEST = "a Python that does nothing", "the digest of 324 MB alone"


def run(settings: Settings) -> Findings:
    """Measure row 7."""
    if not settings.has_peers:
        return Findings(remarks=["row 7: Hydra hello-world is not installed: that comparison is missing"])
    sizes = QUICK_SIZES if settings.is_quick else SIZES
    labs = {count: _lab(settings.scratch / f"plan-{count}", count) for count in sizes}
    for count, lab in labs.items():
        _check(lab, count)
    hydra, env = peers.hydra("my_app.py"), clean_environment()
    large = settings.scratch / "large.bin"
    large.write_bytes(os.urandom(1 << 20) * DIGEST_MB)
    variants = [
        *(
            Variant(_named(count), lambda lab=lab: timed(_plan(lab), cwd=lab.folder, env=env))
            for count, lab in labs.items()
        ),
        Variant(THEIRS, lambda: timed(hydra, cwd=settings.scratch, env=env)),
        Variant(AGAIN, lambda: timed(hydra, cwd=settings.scratch, env=env)),
        Variant(BARE, lambda: timed([sys.executable, "-I", "-S", str(PROGRAMS / "nothing.py")], cwd=PROGRAMS, env=env)),
        Variant(DIGEST, lambda: clocked(lambda: _digest(large))),
    ]  # fmt: skip
    samples = measure(variants, settings.rounds, "row 7")
    large.unlink()
    title = f"resume.sh --dry-run, a full plan among {COUNT} checkpoints, against Hydra hello-world"
    line = compare("7", title, samples, GOAL, limit=BARE, peers=(DIGEST,))
    return Findings([line], {"row 7": samples}, [_growth_line(samples, sizes)])


def _named(count: int) -> str:
    return OURS if count == COUNT else f"ours among {count}"


def _lab(folder: Path, count: int) -> Lab:
    ready = folder.with_suffix(".ready")
    command = ["{python}", str(PROGRAMS / "load_checkpoint.py"), "--ready", str(ready), "--width", "8"]
    trainer = {"command": [*command, "--save", "{checkpoints_dir}"], "resume_args": ["--resume", "{checkpoint}"]}
    lab = Lab(folder, {"BENCH-7": {"trainer": trainer | {"loads_with_kit": True}}})
    lab.run_killed("BENCH-7")
    (run,) = lab.run_folders()
    made = folder / "made"
    words = ["make_checkpoints.py", str(made), str(count), "--newest-layers", str(LAYERS)]
    timed([sys.executable, *words], cwd=PROGRAMS, env=clean_environment())
    saved = os.stat(run / "checkpoints")
    for name in os.listdir(made):
        os.rename(made / name, run / "checkpoints" / name)
    made.rmdir()
    # As the run itself would have saved them: files that come after a trainer's end say that it may live.
    for path in (*(run / "checkpoints").iterdir(), run / "checkpoints"):
        os.utime(path, ns=(saved.st_atime_ns, saved.st_mtime_ns), follow_symlinks=False)
    return lab


def _plan(lab: Lab) -> list[str]:
    return lab.resume("BENCH-7", "--dry-run", *CHANGES)


def _check(lab: Lab, count: int) -> None:
    done = subprocess.run([*_plan(lab), "--json"], cwd=lab.folder, env=clean_environment(), capture_output=True)
    plan = json.loads(done.stdout) if done.returncode == 0 else {}
    found = len(plan.get("passed_over", ())), len(plan.get("candidates", ())), plan.get("verdict")
    rates = [rate for rate in plan.get("learning_rates", ()) if rate["before"] != rate["after"]]
    if found != (10, count + 11, "ready") or not rates:
        raise BenchmarkError(f"the plan among {count} checkpoints is not what it must be: {done.stdout[:500]!r}")


def _digest(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        one_pass.read(descriptor, path.name, digest=True, keeps=False)
    finally:
        os.close(descriptor)


def _growth_line(samples: dict[str, dict[int, Sample]], sizes: tuple[int, ...]) -> str:
    times = []
    for count in sizes:
        seconds = sorted(sample.wall_s for sample in samples[_named(count)].values())
        times.append(seconds[len(seconds) // 2])
    shown = ", ".join(f"{count:,}: {time * 1e3:.0f} ms" for count, time in zip(sizes, times, strict=True))
    return f"    growth of ours: {shown}; slope {growth(list(sizes), times):.2f} (1: in proportion)"
