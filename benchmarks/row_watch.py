"""Row 9: one pass of the watcher over 10,000 run folders, 20 of them live, against reading every status.json.

The live ones' journals have 100,000 events each, and their sidecars have folded all but the last. Warm: as a pass finds
it that comes a minute after the last one. Cold: the runs' files are on the disk alone.
Try it: `python benchmarks/bench.py 9 --quick`
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from arithmetic import growth
from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Samples, Variant, measure
from lab import KIT, PROGRAMS
from many_runs import LIVE, ManyRuns, drop_from_memory, files_that_are_read
from processes import BenchmarkError, clean_environment, timed
from settings import Findings, Settings

GOAL_WARM, GOAL_COLD = 1.0, 0.15
COUNT, EVENTS = 10_000, 100_000
SIZES, QUICK_SIZES, QUICK_EVENTS = (10, 100, 1000, COUNT), (10, 100, 1000), 10_000
# Reading from the disk takes seconds, not milliseconds.
COLD_ROUNDS = 9
PEER_EVERY = 7
BARE, JQ = "a Python that does nothing", "jq over every status.json"
# The same pass with its hands bound, and one after every sidecar has died.
OBSERVING, UNFOLDED = "ours, --observe", "ours, no fold saved"


def run(settings: Settings) -> Findings:
    """Measure row 9."""
    sizes, events = (QUICK_SIZES, QUICK_EVENTS) if settings.is_quick else (SIZES, EVENTS)
    many = ManyRuns(settings.scratch / "many", sizes, events)
    found = Findings()
    try:
        many.make()
        _warm(settings, many, found)
        _cold(settings, many, found)
    finally:
        many.end()
    return found


def _warm(settings: Settings, many: ManyRuns, found: Findings) -> None:
    largest = max(many.folders)
    variants = [Variant(AGAIN, lambda: _read(many.folders[largest], largest))]
    variants += _beside(settings, many, many.folders[largest])
    for size, runs in many.folders.items():
        _check(runs, many.config, min(LIVE, size))
        variants += [
            Variant(_named(OURS, size, largest), lambda runs=runs: _pass(runs, many.config)),
            Variant(_named(THEIRS, size, largest), lambda runs=runs, size=size: _read(runs, size)),
        ]
    samples = measure(variants, settings.rounds, "row 9, warm", many.save_folds)
    found.samples["row 9, warm"] = samples
    title = f"one watcher pass over {largest:,} runs, {LIVE} live, against reading every status.json, warm"
    found.comparisons.append(compare("9a", title, samples, GOAL_WARM, limit=BARE, peers=(OBSERVING, JQ, UNFOLDED)))
    found.remarks += [_growth_line(samples, name, sorted(many.folders)) for name in (OURS, THEIRS)]


def _named(name: str, size: int, largest: int) -> str:
    return name if size == largest else f"{name}, {size} runs"


def _beside(settings: Settings, many: ManyRuns, runs: Path) -> list[Variant]:
    """Return what else is measured on the largest folder: the limit, and the peers."""
    env, unfolded = clean_environment(), settings.scratch / "many" / "unfolded"
    many.without_saved_folds(unfolded)
    nothing = [sys.executable, "-I", "-S", str(PROGRAMS / "nothing.py")]
    beside = [
        Variant(BARE, lambda: timed(nothing, cwd=PROGRAMS, env=env)),
        Variant(OBSERVING, lambda: timed(_words(runs, many.config, observes=True), cwd=runs, env=env)),
        Variant(UNFOLDED, lambda: _pass(unfolded, many.config), 3 * PEER_EVERY),
    ]
    if shutil.which("jq") and shutil.which("xargs"):
        words = "find . -mindepth 2 -maxdepth 2 -name status.json -print0 | xargs -0 jq -r .state >/dev/null"
        beside.append(Variant(JQ, lambda: timed(["sh", "-c", words], cwd=runs, env=env), PEER_EVERY))
    return beside


def _cold(settings: Settings, many: ManyRuns, found: Findings) -> None:
    largest = max(many.folders)
    runs = many.folders[largest]
    files = files_that_are_read(runs)
    variants = [
        Variant(OURS, lambda: _pass(runs, many.config)),
        Variant(THEIRS, lambda: _read(runs, largest)),
        Variant(AGAIN, lambda: _read(runs, largest)),
    ]
    rounds = min(settings.rounds, COLD_ROUNDS)
    samples = measure(variants, rounds, "row 9, cold", lambda: (many.save_folds(), drop_from_memory(iter(files))))
    found.samples["row 9, cold"] = samples
    title = f"the same with the runs' files on the disk alone ({len(files):,} files put out of the page cache)"
    found.comparisons.append(compare("9b", title, samples, GOAL_COLD))


def _pass(runs: Path, config: Path) -> Sample:
    """One pass as cron makes it; a run that looks sick would make it look twice, and end it with another code."""
    return timed(_words(runs, config), cwd=runs, env=clean_environment())


def _words(runs: Path, config: Path, *, observes: bool = False) -> list[str]:
    words = [str(KIT / "bin" / "abort-watch.sh"), "--runs", str(runs), "--config", str(config)]
    return [*words, "--observe"] if observes else words


def _check(runs: Path, config: Path, live: int) -> None:
    done = subprocess.run(_words(runs, config, observes=True), env=clean_environment(), capture_output=True, text=True)
    if f" {live} runs looked at, 0 sick\n" not in done.stderr or done.stdout.count("  well") != live:
        raise BenchmarkError(f"the watcher does not see {live} live runs that are well: {done.stdout}{done.stderr}")


def _read(runs: Path, count: int) -> Sample:
    words = [sys.executable, "-I", "-S", str(PROGRAMS / "read_statuses.py"), str(runs), str(count)]
    return timed(words, cwd=runs, env=clean_environment())


def _growth_line(samples: Samples, name: str, sizes: list[int]) -> str:
    times = []
    for size in sizes:
        seconds = sorted(sample.wall_s for sample in samples[_named(name, size, max(sizes))].values())
        times.append(seconds[len(seconds) // 2])
    shown = ", ".join(f"{count:,}: {time * 1e3:.0f} ms" for count, time in zip(sizes, times, strict=True))
    return f"    growth of {name}: {shown}; slope {growth(sizes, times):.2f} (1: in proportion)"
