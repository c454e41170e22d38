"""What a run has to survive on a Slurm of two nodes, under both process trackers: `make cluster`.

Brings up tools/slurm.sh's Slurm for each tracker, side by side, puts it through each scenario, and prints a table. What
this machine cannot have is left out, and said. Ends with 1 where anything failed.
Try it: `python -m reliability.cluster --tracker linuxproc --scenario requeue`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reliability.cluster_chains import CHAINS
from reliability.cluster_scenarios import SCENARIOS
from reliability.cluster_slurm import TRACKERS, CannotHave, Cluster
from reliability.cluster_stage import Look, Stage

ALL: dict[str, Callable[[Stage], None]] = {**SCENARIOS, **CHAINS}
# What CI runs: one of each kind that ends a job, in under five minutes on two cores.
QUICK = ("requeue", "usr1", "preempted", "dead_node", "scancel", "finished", "detach", "hang", "five_allocations")
FAILURES = (
    AssertionError, pytest.fail.Exception, OSError, ValueError, KeyError, IndexError, StopIteration,
    subprocess.SubprocessError,
)  # fmt: skip


# What is up, for a Ctrl-C.
_UP: list[Cluster] = []
_ENDING = threading.Event()


def put_through(
    tracker: str, names: Sequence[str], folder: Path, end_s: float = float("inf")
) -> dict[str, tuple[str, float]]:
    """Run scenarios under one process tracker; none is begun behind `end_s` of the monotonic clock.

    Returns:
        scenario -> ('ok' or 'FAILED: what', seconds); one that was not begun is not there.

    Raises:
        CannotHave: this machine cannot have such a Slurm.
    """
    outcomes: dict[str, tuple[str, float]] = {}
    cluster = Cluster(folder / "slurm", tracker)
    _UP.append(cluster)
    try:
        for name in names:
            began = time.monotonic()
            if began > end_s or _ENDING.is_set():
                break
            said = outcome(ALL[name], folder / name, cluster)
            took_s = time.monotonic() - began
            outcomes[name] = said, took_s
            print(f"{tracker:9} {name:20} {took_s:6.1f} s  {said}", flush=True)
            if said != "ok" and not _ENDING.is_set():
                bring_up_again(cluster)
    finally:
        cluster.down()
        if not _ENDING.is_set():
            _UP.remove(cluster)
    return outcomes


def bring_up_again(cluster: Cluster) -> None:
    """Bring up a Slurm that a failed scenario has left in some state.

    Raises:
        RuntimeError: it does not come up; it was there before.
    """
    try:
        cluster.bring_up()
    except CannotHave as reason:
        raise RuntimeError(f"the Slurm does not come up again: {reason}") from None


def outcome(scenario: Callable[[Stage], None], folder: Path, cluster: Cluster) -> str:
    """Put a stage of its own through a scenario; return 'ok', or 'FAILED: ' and what is wrong."""
    look = Look(cluster)
    stage = Stage(folder, cluster, look)
    try:
        scenario(stage)
        if overlaps := look.take():
            root, seconds = max(overlaps.items(), key=lambda one: one[1])
            return f"FAILED: two trainers of '{root}' at once for {seconds:.2f} s"
        cluster.settle()
    except FAILURES as error:
        return f"FAILED: {type(error).__name__}: {error}; the jobs have printed: {stage.outputs()}"
    finally:
        look.end()
        stage.clean_up()
    return "ok"


def table(found: dict[str, dict[str, tuple[str, float]]], names: Sequence[str]) -> str:
    """Return the table as Markdown: a row for each scenario, a column for each tracker."""
    rows = [["scenario", *found, "what has to hold"], ["---"] * (len(found) + 2)]
    for name in names:
        cells = []
        for outcomes in found.values():
            said, took_s = outcomes.get(name, ("left out", 0.0))
            cells.append("left out" if name not in outcomes else f"{said.partition(':')[0]}, {took_s:.0f} s")
        rows.append([name, *cells, (ALL[name].__doc__ or "").strip().splitlines()[0]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--tracker", action="append", choices=TRACKERS, help="this process tracker; repeatable")
    parser.add_argument("--scenario", action="append", choices=list(ALL), help="this scenario; repeatable")
    parser.add_argument("--quick", action="store_true", help="the part that CI runs")
    parser.add_argument("--jobs", type=int, default=2, help="trackers at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="what is not begun by then is left out")
    parser.add_argument("--keep", type=Path, help="where the runs are kept; else they are removed")
    args = parser.parse_args(argv)
    names = args.scenario or (QUICK if args.quick else list(ALL))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found, left_out = of_trackers(args.tracker or TRACKERS, names, folder, args.jobs, began + args.minutes * 60)
    if found:
        print(f"\n{table(found, names)}\n")
    for tracker, why in left_out.items():
        print(f"cluster: left out: {tracker}, for {why}")
    outcomes = [said for of_tracker in found.values() for said, _ in of_tracker.values()]
    if not_begun := len(found) * len(names) - len(outcomes):
        print(f"cluster: left out: {not_begun} scenarios, for {args.minutes:.0f} minutes were over")
    failed = sum(one != "ok" for one in outcomes)
    print(f"cluster: {len(outcomes) - failed} passed, {failed} failed, in {time.monotonic() - began:.0f} s")
    return int(failed > 0)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Let a Ctrl-C or a TERM bring down what is up, with the jobs on it, and end this process."""

    def end(number: int, _frame: object) -> None:
        _ENDING.set()
        for cluster in (*_UP, *_UP):  # twice: its thread may just be bringing it up again
            with contextlib.suppress(Exception):  # the others are brought down all the same
                cluster.down()
        os._exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def of_trackers(
    trackers: Sequence[str], names: Sequence[str], folder: Path, jobs: int, end_s: float
) -> tuple[dict[str, dict[str, tuple[str, float]]], dict[str, str]]:
    """Run scenarios under several trackers side by side; return what came of each, and why one was left out."""
    found: dict[str, dict[str, tuple[str, float]]] = {}
    left_out: dict[str, str] = {}
    with ended_at_once(), ThreadPoolExecutor(jobs) as pool:
        futures = {one: pool.submit(put_through, one, names, folder / one, end_s) for one in dict.fromkeys(trackers)}
        for tracker, future in futures.items():
            try:
                found[tracker] = future.result()
            except CannotHave as reason:
                left_out[tracker] = str(reason)
    return found, left_out


if __name__ == "__main__":
    raise SystemExit(main())
