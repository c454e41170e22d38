"""Row 10: what looking after a live run costs: CPU of its sidecar, and of two watchers that look every minute.

One watcher is the launcher's own, the other one cron's.

Twenty trainers that tell a step four times a second, by their log alone: the sidecar has to read it, and journals each
step. Nothing else of the kit runs meanwhile but the launchers and shims, which wait.
Try it: `python benchmarks/bench.py 10 --quick`
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from arithmetic import spread
from comparison import Comparison
from harness import AGAIN, OURS, THEIRS, Sample
from lab import KIT, PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed
from settings import Findings, Settings

sys.path.append(str(KIT / "lib"))

from resumekit.base import processes
from resumekit.run import live_marker

GOAL = 0.005
LIVE, STEPS_PER_S = 20, 4.0
WINDOW_S, QUICK_WINDOW_S, WINDOWS = 60.0, 10.0, 3
PASS_EVERY_S = 60.0
# The launchers' own watchers look more often than they do each minute, so that a window has some looks in it.
LOOK_EVERY_S = 2.0
# Starting costs a sidecar as much as a minute of following: it is not what is asked for.
SETTLED_S = 10.0
# A run that is not stopped ends by itself.
TRAINER_S = 900
_PATTERNS = {"step": "step ([0-9]+)", "loss": "loss ([0-9.a-z+-]+)", "lr": "lr ([0-9.]+)"}


def run(settings: Settings) -> Findings:
    """Measure row 10."""
    command = ["{python}", "-u", str(PROGRAMS / "tell_steps.py"), str(STEPS_PER_S), str(TRAINER_S)]
    trainer = {"command": command, "resume_args": [], "log_patterns": _PATTERNS}
    entry = {"trainer": trainer, "abort": {"watch_every_s": LOOK_EVERY_S}}
    lab = Lab(settings.scratch / "night", {"BENCH-10": entry})
    try:
        runs = _started(lab)
        return _measured(settings, lab, {run: _process_of(run, b"sidecar") for run in runs},
                         [_process_of(run, b"watch-own") for run in runs])  # fmt: skip
    finally:
        _stop(lab)


def _started(lab: Lab) -> list[Path]:
    """Start the runs, wait until every one has settled; return their folders."""
    for number in range(LIVE):
        timed(lab.run("BENCH-10", "--name", f"run{number:02d}", "--detach"), cwd=lab.folder, env=clean_environment())
    time.sleep(SETTLED_S)
    found = sorted(lab.run_folders())
    if len(found) != LIVE:
        raise BenchmarkError(f"{len(found)} of {LIVE} runs have started")
    return found


def _measured(settings: Settings, lab: Lab, sidecars: dict[Path, int], watchers: list[int]) -> Findings:
    window_s = QUICK_WINDOW_S if settings.is_quick else WINDOW_S
    steps_before = [_step_of(run) for run in sidecars]
    shares, sidecar_shares, look_shares, pass_shares, nulls = [], [], [], [], []
    idle = subprocess.Popen(["sleep", str(TRAINER_S)], stdin=subprocess.DEVNULL)
    for _ in range(WINDOWS):
        began, before = time.monotonic(), [_cpu_s(pid) for pid in sidecars.values()]
        own_before, looks_before = _cpu_s(idle.pid), sum(map(_cpu_s, watchers))
        watched = _pass(lab)
        time.sleep(max(0.0, began + window_s - time.monotonic()))
        elapsed_s = time.monotonic() - began
        used_s = sum(_cpu_s(pid) for pid in sidecars.values()) - sum(before)
        sidecar_shares.append(used_s / elapsed_s / LIVE)
        looked_s = sum(map(_cpu_s, watchers)) - looks_before
        look_shares.append(looked_s / elapsed_s * LOOK_EVERY_S / PASS_EVERY_S / LIVE)
        pass_shares.append((watched.cpu_s or 0.0) / PASS_EVERY_S / LIVE)
        shares.append(sidecar_shares[-1] + look_shares[-1] + pass_shares[-1])
        nulls.append((_cpu_s(idle.pid) - own_before) / elapsed_s / LIVE)
    idle.kill()
    idle.wait()
    told = sum(map(_step_of, sidecars)) - sum(steps_before)
    rate = told / LIVE / (WINDOWS * window_s)
    if rate < STEPS_PER_S / 2:
        raise BenchmarkError(f"only {rate:.2f} steps a second were journaled, not {STEPS_PER_S:g}")
    samples = {
        OURS: {n: Sample(60 * share) for n, share in enumerate(shares)},
        THEIRS: {n: Sample(60.0) for n in range(WINDOWS)},
        AGAIN: {n: Sample(60 * share) for n, share in enumerate(nulls)},
    }
    title = (
        f"CPU of sidecar and two watchers per live run, of one core: {LIVE} runs, {rate:.1f} steps/s each, "
        "a look and a pass a minute"
    )
    line = Comparison(
        row="10", title=title, ours=spread([60 * share for share in shares]), theirs=spread([60.0] * WINDOWS),
        ratio=spread(shares), null=spread(nulls), goal=GOAL, null_is=0.0, null_within=GOAL / 10,
        notes=(
            f"sidecar {spread(sidecar_shares).median:.3%}, its launcher's watcher {spread(look_shares).median:.4%}, "
            f"its part of cron's pass {spread(pass_shares).median:.4%}",
            "the null comparison is the same account of a process that waits",
        ),
    )  # fmt: skip
    return Findings([line], {"row 10": samples})


def _pass(lab: Lab) -> Sample:
    words = [str(KIT / "bin" / "abort-watch.sh"), "--runs", str(lab.runs), "--config", str(lab.config)]
    return timed(words, cwd=lab.folder, env=clean_environment())


def _process_of(run: Path, verb: bytes) -> int:
    wanted = (verb, os.fsencode(run))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if all(word in words for word in wanted):
            return int(pid)
    raise BenchmarkError(f"the run '{run.name}' has no {verb.decode()}")


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of the children that it has waited for.

    Of its threads in nanoseconds, where the kernel counts them; /proc/PID/stat rounds to hundredths of a second.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
        own, children = (sum(map(int, fields[at : at + 2])) / os.sysconf("SC_CLK_TCK") for at in (11, 13))
        threads = [int(path.read_bytes().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError as error:
        raise BenchmarkError(f"the process {pid} has ended in the middle of the measurement") from error
    return (sum(threads) / 1e9 if threads else own) + children


def _step_of(run: Path) -> int:
    with open(run / "journal.jsonl", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = [json.loads(line) for line in file.read().splitlines()[1:] if line.startswith(b"{")]
    return next((line["step"] for line in reversed(lines) if line["event"] == "step"), 0)


def _stop(lab: Lab) -> None:
    """Stop every run, as a person would: through its launcher."""
    for run in lab.run_folders():
        try:
            first = next(line for line in (run / "journal.jsonl").read_bytes().splitlines() if line)
            launcher = processes.identity_from(json.loads(first)["launcher"])
        except (OSError, StopIteration, ValueError, KeyError):
            continue
        if launcher:
            processes.send(launcher, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while live_marker.run_ids(lab.runs) and time.monotonic() < deadline:
        time.sleep(0.2)
