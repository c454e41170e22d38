"""The night: a real training goes wrong twice while no person is there, and in the morning it has finished.

First its loss turns NaN: it is stopped, taken back, and goes on at 0.8 of the learning rate. Then everything of it is
killed at once, launcher and sidecar too: the watcher, which cron would start once a minute, takes it up from an empty
environment. Runs the kit's own commands, in runs-night/, and writes down what they said.
Try it: `make night` (two minutes), or `python examples/hrm_arc/night.py --write docs/night.md` to record it
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parent
KIT = EXAMPLE.parent.parent
RUNS = KIT / "runs-night"
EXPERIMENT = "EXP-01"
STEPS, NAN_AT, KILL_AFTER = 320, 130, 230
SETTINGS = (
    f"training.max_steps={STEPS}", "training.log_every=10", "schedule.warmup_steps=20", "checkpoint.every=20",
    "checkpoint.keep_last=null", "validation.fast_eval_every=80", "validation.full_eval_every=320",
    "status.interval_s=1", "recover.replay_steps=40", "recover.backoff_s=5",
)  # fmt: skip
# What cron gives: no more. PYTHON says where the kit's packages are, as a line in the crontab would.
CRON = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
LIMIT_S = 900.0


def main() -> int:
    """Live through the night; 0 if the training has finished in the morning."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="record it as Markdown, with a picture beside it")
    args = parser.parse_args()
    began = time.monotonic()
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir()
    said = []
    start()
    said.append(say(f"Started, detached. In the trainer the loss turns NaN once, in step {NAN_AT}."))
    first = wait_for(lambda: run_folders()[:1], "a run")[0]
    wait_for(lambda: of_kind(first, "abort"), "the loss that is not finite")
    second = wait_for(lambda: run_folders()[1:2], "the run that goes on")[0]
    said.append(say(f"The loss is not finite: '{first.name}' is stopped, '{second.name}' goes on."))
    wait_for(lambda: any(event["step"] >= KILL_AFTER for event in of_kind(second, "step")), f"step {KILL_AFTER}")
    kill_everything(second)
    said.append(say(f"kill -9 of trainer, shim, launcher and sidecar of '{second.name}', after step {KILL_AFTER}."))
    passes = watch_until(lambda: len(run_folders()) > 2)
    third = run_folders()[2]
    said.append(say(f"The watcher has taken it up: '{third.name}'."))
    wait_for(lambda: of_kind(third, "exited"), "the end")
    passes += watch_until(lambda: True)
    tree = output(KIT / "bin" / "runs.sh", "--runs", RUNS)
    print(tree, flush=True)
    if args.write:
        write(args.write, [first, second, third], said, passes, tree)
    is_done = of_kind(third, "exited")[0]["code"] == 0
    print(f"{'Finished' if is_done else 'NOT finished'} after {time.monotonic() - began:.0f} s.", flush=True)
    return 0 if is_done else 1


def start() -> None:
    """Start the experiment, detached, with the fault planted in its trainer's command."""
    command = [
        "{python}", "{kit}/examples/hrm_arc/faulty_trainer.py", f"nan@{NAN_AT}", "{run_dir}/..",
        "--config", "{config_json}", "--run_id", "{run_id}", "--checkpoint_dir", "{checkpoints_dir}",
    ]  # fmt: skip
    settings = [*SETTINGS, f"trainer.command={json.dumps(command)}"]
    words = [part for setting in settings for part in ("--set", setting)]
    subprocess.run([KIT / "bin" / "run.sh", EXPERIMENT, "--runs", RUNS, "--detach", *words], check=True)


def kill_everything(run: Path) -> None:
    """Stop every process of a run at once, so that none sees another one die, then kill them."""
    launched = of_kind(run, "launched")[0]
    pids = [launched[who]["pid"] for who in ("launcher", "shim", "trainer")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sidecar" in words and os.fsencode(run) in words:
            pids.append(int(pid))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)


def watch_until(ask: Callable[[], Any]) -> list[str]:
    """Run the watcher every five seconds, as cron would every minute, until `ask` is true; return what it said."""
    said, give_up = [], time.monotonic() + LIMIT_S
    while True:
        watch = [KIT / "bin" / "abort-watch.sh", "--runs", RUNS]
        done = subprocess.run(watch, env=CRON, cwd="/", capture_output=True, text=True, check=False)
        said += [*done.stdout.splitlines(), *done.stderr.splitlines()]
        print(done.stdout + done.stderr, end="", flush=True)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if ask():
                return said
            time.sleep(0.2)
        if time.monotonic() > give_up:
            raise SystemExit("night.py: it was not taken up")


def wait_for(ask: Callable[[], Any], what: str) -> Any:
    """Return the first true answer of `ask`."""
    give_up = time.monotonic() + LIMIT_S
    while not (answer := ask()):
        if time.monotonic() > give_up:
            raise SystemExit(f"night.py: after {LIMIT_S:.0f} s still not: {what}")
        time.sleep(0.2)
    return answer


def of_kind(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a run's journal."""
    try:
        lines = (run / "journal.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    return [event for event in found if event["event"] == kind]


def run_folders() -> list[Path]:
    """Return the run folders, oldest first."""
    found = [(json.loads(path.read_bytes())["created_at"], path.parent) for path in RUNS.glob("*/run.json")]
    return [folder for _, folder in sorted(found)]


def say(sentence: str) -> str:
    line = f"{time.strftime('%H:%M:%S', time.gmtime())} {sentence}"
    print(f"--- {line}", flush=True)
    return line


def output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def write(target: Path, runs: list[Path], said: list[str], passes: list[str], tree: str) -> None:
    """Write the record of the night: what happened, the journals, the lineage, the curve."""
    picture = target.with_name(target.stem + "_curve.png")
    output(sys.executable, EXAMPLE / "plot_curves.py", runs[-1], "--out", picture)
    story = [(event["at"], line(event)) for run in runs for event in story_of(run)]
    target.write_text(
        f"""# A recorded night

Written by `python examples/hrm_arc/night.py --write docs/night.md` (`make night` lives through another one), on
{time.strftime("%Y-%m-%d", time.gmtime())}, UTC. The small experiment {EXPERIMENT} trains for {STEPS} steps. In step
{NAN_AT} its loss is made NaN, once; after step {KILL_AFTER} trainer, shim, launcher and sidecar are killed at once.
Nothing is typed after the start. The watcher is run as cron would, with an environment of PATH and PYTHON alone,
every five seconds instead of every minute.

```
{chr(10).join(said)}
```

## The journals

`abort`, `recovery` and what is around them, of all three runs in the order of time:

```
{chr(10).join(text for _, text in sorted(story))}
```

## The watcher

```
{chr(10).join(passes)}
```

## The lineage

```
{tree.rstrip()}
```

## The curve, spliced along it

![loss over the steps of the three runs]({picture.name})
""",
        encoding="utf-8",
    )


def story_of(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run that tell the night, its own journal's only."""
    kinds = ("launched", "resumed", "nonfinite", "abort", "recovery", "checkpoint", "exited")
    events = [event for kind in kinds for event in of_kind(run, kind)]
    saved = [event for event in events if event["event"] == "checkpoint"]
    return [event for event in events if event not in saved[:-1]]  # the last checkpoint of each run will do


def line(event: dict[str, Any]) -> str:
    """Return an event on one line, without what says nothing here."""
    told = {
        "launched": lambda: f"trainer pid {event['trainer']['pid']}",
        "resumed": lambda: f"step {event['step']}, lr_scale {event['lr_scale']:g}",
        "nonfinite": lambda: f"step {event['step']}: {event['what']}",
        "abort": lambda: f"{event['cause']}: {event['evidence']}",
        "recovery": lambda: (
            f"{event['outcome']} at step {event['step']}, attempt {event['attempt']}, "
            f"lr_factor {event['lr_factor']:g}, child {event['child_run_id']}"
        ),
        "checkpoint": lambda: f"step {event['step']}, the last one",
        "exited": lambda: f"code {event['code']}, signal {event['signal']}",
    }[event["event"]]()
    return f"{event['at'][11:19]} {event['run_id']}  {event['event']}: {told}"


if __name__ == "__main__":
    raise SystemExit(main())
