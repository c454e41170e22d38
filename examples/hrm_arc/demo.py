"""The demo: a real training is killed in the middle, resumed, and compared bit for bit with one never interrupted.

Runs the kit's own commands and shows each of them. Its runs go to runs-demo/, away from yours.
Try it: `make demo`
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent
KIT = EXAMPLE.parent.parent
RUNS = KIT / "runs-demo"
EXPERIMENT = "EXP-01"
STEPS, KILL_AFTER = 48, 29
# The demo kills by hand and resumes by hand: nothing is to be faster than we are.
SETTINGS = (
    f"training.max_steps={STEPS}", "training.log_every=8", "schedule.warmup_steps=8", "checkpoint.every=8",
    "validation.fast_eval_every=16", "validation.full_eval_every=48", "status.interval_s=1", "recover.enabled=false",
)  # fmt: skip


def main() -> int:
    """Run the demo; 0 if the resumed run equals the uninterrupted one."""
    started = time.monotonic()
    shutil.rmtree(RUNS, ignore_errors=True)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]

    say(1, f"Start {EXPERIMENT}, a small HRM on real ARC puzzles, and kill it with SIGKILL after step {KILL_AFTER}.")
    killed = kit("run.sh", "--fresh", *settings, kill_after=KILL_AFTER)

    say(2, "Resume it. The kit takes the newest checkpoint that it can prove whole, in a folder of its own.")
    resumed = kit("resume.sh")

    say(3, "Run the same thing once more, uninterrupted.")
    whole = kit("run.sh", "--fresh", *settings)

    say(4, "Compare the two bit for bit: every loss in the journals, every tensor of the last checkpoints.")
    equal = call(sys.executable, KIT / "lib" / "resume_helper.py", "--compare", resumed, whole) == 0

    say(5, "The lineage, and a picture of the loss, spliced where it was resumed.")
    call(KIT / "bin" / "runs.sh", "--runs", RUNS)
    picture = RUNS / "loss.png"
    call(sys.executable, EXAMPLE / "plot_curves.py", resumed, "--out", picture)

    lost = KILL_AFTER - resumed_at(resumed)
    print(f"""
What happened: '{killed.name}' was killed after step {KILL_AFTER}. Its newest whole checkpoint was of step
{resumed_at(resumed)}, so {lost} steps were trained again, and the run went on to step {STEPS}
{"as if nothing had happened: not one bit differs." if equal else "but it is NOT equal to the uninterrupted run."}
The picture is {os.path.relpath(picture)}. All of it took {time.monotonic() - started:.0f} s.

What to type next:
  bin/resume.sh {killed.name} --runs {os.path.relpath(RUNS)} --step 16 --dry-run
                                      what a resume from step 16 would take, and why
  cat {os.path.relpath(resumed)}/status.json
  bin/run.sh EXP-01                   the whole small run (2,000 steps); Ctrl-C saves and ends it,
                                      the same command goes on""")
    return 0 if equal else 1


def kit(command: str, *arguments: str, kill_after: int | None = None) -> Path:
    """Run one of the kit's commands on the experiment, with its output in view.

    Args:
        command: in bin/.
        kill_after: the step after which the trainer gets SIGKILL; None lets it end.

    Returns:
        The run folder that it made.
    """
    before = set(run_folders())
    line = [KIT / "bin" / command, EXPERIMENT, "--runs", RUNS, *arguments]
    show(line)
    process = subprocess.Popen(list(map(str, line)))
    if kill_after is not None:
        threading.Thread(target=kill_at, args=(before, kill_after, process), daemon=True).start()
    code = process.wait()
    made = sorted(set(run_folders()) - before)
    if len(made) != 1 or code not in (0, 128 + signal.SIGKILL):
        raise SystemExit(f"demo.py: '{command}' ended with code {code}")
    print(f"(exit code {code})", flush=True)
    return made[0]


def kill_at(before: set[Path], step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the new run's journal has `step`, then kill its trainer without warning."""
    while process.poll() is None:
        for folder in set(run_folders()) - before:
            events = journal(folder)
            if any(e["event"] == "step" and e["step"] >= step for e in events):
                launched = next(e for e in events if e["event"] == "launched")
                os.kill(launched["trainer"]["pid"], signal.SIGKILL)
                print(f"--- kill -9 {launched['trainer']['pid']} (the trainer, after step {step})", flush=True)
                return
        time.sleep(0.02)


def journal(folder: Path) -> list[dict]:
    """Return the events that a run's journal has by now."""
    try:
        lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"}")]


def run_folders() -> list[Path]:
    return [path.parent for path in RUNS.glob("*/run.json")]


def resumed_at(folder: Path) -> int:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["parent_step"]


def call(*line: str | Path) -> int:
    show(line)
    return subprocess.run(list(map(str, line)), check=False).returncode


def show(line: tuple[str | Path, ...] | list[str | Path]) -> None:
    words = [os.path.relpath(word) if isinstance(word, Path) else word for word in line]
    if line[0] == sys.executable:
        words[0] = "python"
    print("$ " + " ".join(words), flush=True)


def say(number: int, sentence: str) -> None:
    print(f"\n[{number}/5] {sentence}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
