"""Stop one training after another, in every way that a person or a scheduler has; the last step is saved each time.

The trainer (support/toy_trainer.py) is a lab's own: it knows nothing of the kit, saves on the first signal and takes a
second one for "now". It stands alone, in a script, under torchrun with two ranks, or has data workers. A stop that
reaches nothing, reaches it twice, or ends it before its save is done shows as a step that is lost.
Try it: `python -m reliability.campaign_stops --stops 10 --seed 1`
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from support.commands import Kit
from support.places import TOY
from support.processes import marked_pids
from support.runs import events
from support.terminal import Terminal

SCRIPTS = {
    "script": '"$@"\necho "the script goes on"',
    "script in the background": '"$@" &\nwait',
    "script with a trap": 'trap \'kill -TERM "$pid"\' TERM INT\n"$@" &\npid=$!\nwait "$pid"',
    "pipe": '"$@" | tee "$0.log"',
    "script in a script": 'bash -c \'"$@"; true\' x "$@"',
}
# How often each is drawn; torch takes seconds to start.
KINDS = {"plain": 25, **dict.fromkeys(SCRIPTS, 10), "workers": 7, "deaf": 6, "torchrun": 12}
QUICK = {"plain": 1, **dict.fromkeys(SCRIPTS, 1)}
WAYS = ("TERM", "INT", "USR1", "TERM again", "group TERM", "all TERM", "all INT", "ctrl-c", "ctrl-c bounces",
        "--stop", "trainer TERM")  # fmt: skip
START_S, END_S, GRACE_S = 120.0, 90.0, 45


class Outcome(NamedTuple):
    """What came of one stop.

    Args:
        kind, way: what was stopped, and how.
        fault: what is wrong; None if the last step is saved, and the state says that it was stopped.
    """

    kind: str
    way: str
    fault: str | None


def stops(folder: Path, draw: random.Random, count: int, kinds: dict[str, int] = KINDS) -> Iterator[Outcome]:
    """Make so many stops, each of a run of its own."""
    for number in range(count):
        kind = draw.choices(list(kinds), list(kinds.values()))[0]
        kit = Kit(folder / f"stop{number}")
        try:
            # What dies of the signal that a scheduler sends it is gone before the save: no launcher mends that.
            ways = [way for way in WAYS if not (kind in ("pipe", "workers") and way.startswith("all "))]
            yield one_stop(kit, kind, draw.choice(ways), draw)
        finally:
            kit.clean_up()


def one_stop(kit: Kit, kind: str, way: str, draw: random.Random) -> Outcome:
    """Start a training, stop it at a moment that is drawn, and judge what is left."""
    configure(kit, kind, draw.choice((0.02, 0.1, 0.3)), draw.choice((0.0, 0.3, 2.0)))
    is_at_a_terminal = way.startswith("ctrl-c")
    nowhere = (
        {}
        if is_at_a_terminal
        else {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    )
    process: Any = Terminal(kit, "run", "T-1") if is_at_a_terminal else kit.popen("run", "T-1", **nowhere)
    try:
        run = _begun(kit, process if is_at_a_terminal else None)
        _sleep(process if is_at_a_terminal else None, draw.uniform(0.0, 0.8))
        send(kit, run, process, way)
        code = process.wait() if is_at_a_terminal else process.wait(timeout=END_S)
        return Outcome(kind, way, judged(kit, run, code, way))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(kind, way, f"{type(error).__name__}: {error}"[:400])


def configure(kit: Kit, kind: str, delay_s: float, save_s: float) -> None:
    own = ["--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}", "--delay", str(delay_s)]
    own += ["--save-s", str(save_s)]
    python, trainer = ["{python}"], _plain(TOY)
    if kind == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*python, *torchrun, trainer, *own, "--kind", "ranks"]
    else:
        command = [*python, trainer, *own, "--kind", kind if kind in ("workers", "deaf") else "plain"]
    if kind in SCRIPTS:
        script = kit.folder / "train.sh"
        script.write_text(f"#!/usr/bin/env bash\n{SCRIPTS[kind]}\n")
        command = ["bash", _plain(script), *command]
    kit.config(trainer={"command": command}, training={"max_steps": 10**6}, abort={"grace_s": GRACE_S})


def send(kit: Kit, run: Path, process: Any, way: str) -> None:
    """Stop it, once, in one of WAYS."""
    if way == "--stop":
        kit("abort-watch", "--stop", "T-1")
    elif way.startswith("ctrl-c"):
        process.press(b"\x03")
        if way == "ctrl-c bounces":
            _sleep(process, 0.1)
            process.press(b"\x03")
    elif way == "trainer TERM":
        os.kill(events(run, "launched")[0]["trainer"]["pid"], signal.SIGTERM)
    elif way == "group TERM":
        os.killpg(process.pid, signal.SIGTERM)
    elif way.startswith("all "):
        for pid in list(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[f"SIG{way.split()[1]}"])
    else:
        for number in range(3 if way == "TERM again" else 1):
            time.sleep(0.2 * number)
            process.send_signal(signal.Signals[f"SIG{way.split()[0]}"])


def judged(kit: Kit, run: Path, code: int, way: str) -> str | None:
    """Return what is wrong with a run that was stopped."""
    log = (run / "logs" / "output.log").read_text(errors="replace").splitlines()
    last = [int(line.split()[1]) for line in log if line.startswith("step ")][-1]
    saved = sorted(int(path.stem.rpartition("_")[2]) for path in (run / "checkpoints").glob("*.pt"))
    seen = kit.status(run)
    state = "preempted" if way == "USR1" else "stopped"
    if saved != [last]:
        return f"saved {saved}, last step {last}, code {code}, state {seen['state']}, its last words: {log[-3:]}"
    if seen["state"] != state:
        return f"state {seen['state']}, not {state} (code {code})"
    attested = run / "checkpoints" / f"hrm_arc_step_{last}.pt.json"
    if not attested.exists() or json.loads(attested.read_text())["step"] != last:
        return f"step {last} is not attested"
    return "something of it still runs" if _is_left(kit) else None


def _is_left(kit: Kit) -> bool:
    give_up = time.monotonic() + 20.0
    while (found := list(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"))) and time.monotonic() < give_up:
        time.sleep(0.1)
    return bool(found)


def _begun(kit: Kit, terminal: Terminal | None) -> Path:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        _sleep(terminal, 0.05)
        for run in kit.run_dirs():
            with contextlib.suppress(FileNotFoundError):
                if b"step 2 " in (run / "logs" / "output.log").read_bytes():
                    return run
    raise TimeoutError(f"no second step within {START_S:.0f} s")


def _sleep(terminal: Terminal | None, seconds: float) -> None:
    """Sleep; a terminal is read meanwhile."""
    if terminal is None:
        time.sleep(seconds)
        return
    give_up = time.monotonic() + seconds
    while (left := give_up - time.monotonic()) > 0:
        terminal.read_on(min(left, 0.05))


def _plain(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    begun, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in stops(Path(folder), random.Random(args.seed), args.stops):
            outcomes.append(outcome)
            if outcome.fault:
                print(f"stop {len(outcomes)}: {outcome.kind}, {outcome.way}: {outcome.fault}", flush=True)
    listed = ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(one.kind for one in outcomes).items()))
    bad = sum(outcome.fault is not None for outcome in outcomes)
    print(f"seed {args.seed}: {len(outcomes)} stops ({listed}), {bad} with a fault; {time.monotonic() - begun:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
