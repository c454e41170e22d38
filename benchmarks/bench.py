#!/usr/bin/env python3
"""Measure the kit beside its peers and its limits, and print ratios: rows 1 to 11 of the table in docs/benchmarks.md.

    python benchmarks/bench.py [ROW...] [--quick] [--rounds N] [--scratch DIR] [--markdown FILE]

Each line is measured side by side in one run, in alternating order, with a null comparison (a thing against itself)
and the spread. Writes benchmarks/results/<time>.json; everything else lies in a scratch folder that is removed.
Exit: 0 measured (whether the goals are met stands in the table), 1 something could not be measured, 2 usage.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import peers
import table
from processes import BenchmarkError
from settings import FULL_ROUNDS, QUICK_ROUNDS, Findings, Settings

HERE = Path(__file__).resolve().parent
# row -> (module, function); imported when the row is run, some need torch
ROWS = {
    "1": ("row_start", "run_nothing"),
    "2": ("row_start", "run_torch"),
    "3": ("row_choose", "run"),
    "4": ("row_resume", "run"),
    "5": ("row_save", "run"),
    "6": ("row_train", "run"),
    "7": ("row_plan", "run"),
    "8": ("row_accept", "run"),
    "9": ("row_watch", "run"),
    "10": ("row_night", "run"),
    "11": ("row_pass", "run"),
}


def main(argv: list[str] | None = None) -> int:
    """Measure the rows that were asked for; returns the exit code."""
    args = _parsed(argv)
    # TERM would leave gigabytes behind; INT is ignored where a shell started us in the background.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: sys.exit(128 + signum))
    scratch = Path(args.scratch) / f"resumekit-bench-{os.getpid()}"
    scratch.mkdir(parents=True)
    machine = _machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}")
    print(f"load {machine['load']}: " + ("busy, do not trust these numbers" if machine["is_busy"] else "quiet"))
    total = Findings()
    failed = False
    try:
        rounds = args.rounds or (QUICK_ROUNDS if args.quick else FULL_ROUNDS)
        settings = Settings(scratch, args.quick, peers.ensure(), rounds)
        for row in args.rows or ROWS:
            failed |= not _run_row(row, settings, total)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    machine["load_at_end"] = os.getloadavg()[0]
    results = HERE / "results" / f"{machine['at'].replace(':', '')}.json"
    table.write_json(results, machine, total.comparisons, total.samples)
    _conclude(total, args, results)
    return 1 if failed else 0


def _run_row(row: str, settings: Settings, total: Findings) -> bool:
    """Run one row, print it, add it to the total; False if it could not be measured."""
    module, function = ROWS[row]
    started = time.monotonic()
    try:
        found: Findings = getattr(importlib.import_module(module), function)(settings)
    except BenchmarkError as error:
        print(f"row {row} could not be measured: {error}", file=sys.stderr)
        return False
    for line in (*map(table.as_text, found.comparisons), *found.remarks):
        print(line, flush=True)
    print(f"(row {row} took {time.monotonic() - started:.0f} s)\n", flush=True)
    total.comparisons += found.comparisons
    total.samples |= found.samples
    total.remarks += found.remarks
    return True


def _conclude(total: Findings, args: argparse.Namespace, results: Path) -> None:
    markdown = table.as_markdown(total.comparisons)
    if args.markdown:
        Path(args.markdown).write_text(markdown + "\n", encoding="utf-8")
    missed = [one.row for one in total.comparisons if one.verdict.startswith("missed")]
    crooked = [one.row for one in total.comparisons if not one.is_level]
    print(markdown)
    print(f"\nevery sample: {os.path.relpath(results)}")
    if missed:
        print(f"goals missed: {', '.join(missed)}")
    if crooked:
        print(f"null comparison not level: {', '.join(crooked)}; measure these again on a quiet machine")
    if args.quick:
        print("--quick: too few rounds to decide anything")


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="few rounds, small files: shows that it works")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"pairs of each comparison (default {FULL_ROUNDS})")
    parser.add_argument("--scratch", default=str(HERE / ".scratch"), help="folder on the disk to measure")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds takes a whole number of at least 1, not '{args.rounds}'")
    for row in args.rows:
        if row not in ROWS:
            parser.error(f"there is no row '{row}': {', '.join(ROWS)}")
    return args


def _machine() -> dict[str, object]:
    load = os.getloadavg()[0]
    return {
        "at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "cpu": _cpu_model(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(), "load": round(load, 2), "is_busy": load > 0.5,
    }  # fmt: skip


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
