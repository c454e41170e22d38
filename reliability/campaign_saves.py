"""Every call of a save x every fault, and the power cut at any point of it.

Starts itself once more with the library of reliability/syscalls.c under it. Prints what was found, and exits with 1 if
a point or a state was bad, or if a mistake that was put into the save on purpose was not seen.
Try it: `python -m reliability.campaign_saves --seed 1`
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reliability import syscalls

# How many of the states of a whole replay are saved in once more, in a new process.
NEXT_SAVES = 200
# A mistake in a recovery is looked for in every so many-th of its disks.
_SEEN_IN_EVERY = 7
_PARTS = ("calls", "power", "mistakes")


class Row(NamedTuple):
    """One line of the report: so many points or states were looked at, so many were bad, and what was wrong."""

    what: str
    looked_at: int
    bad: int
    examples: list[str]
    note: str = ""


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 1 if anything was wrong."""
    options = _options(argv)
    with tempfile.TemporaryDirectory(dir=_quick_folder()) as name:
        rows, started = [], time.monotonic()
        for row in _rows(options, Path(name)):
            rows.append(row)
            seconds, started = time.monotonic() - started, time.monotonic()
            if not options.json:
                print(f"{row.what}: {row.looked_at - row.bad}/{row.looked_at}{row.note} ({seconds:.1f} s)", flush=True)
                for example in row.examples:
                    print(f"  {example}")
    if options.json:
        print(json.dumps([row._asdict() for row in rows]))
    return int(any(row.bad for row in rows))


def _quick_folder() -> str | None:
    """A disk in memory, where there is one: what an fsync does to the plate is not what is looked at."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="only so many points, and the thin form of each replay")
    parser.add_argument("--only", nargs="+", choices=(*_PARTS, "list", "recovery"), default=_PARTS, help="parts of it")
    parser.add_argument("--seed", type=int, default=1, help="of whatever is drawn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--stage", type=Path, help="where to save; a folder of its own, and kept")
    return parser.parse_args(argv)


def _rows(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    stage: Any = None
    if set(options.only) != {"recovery"}:
        import torch  # not before this process is the one with the library under it

        from reliability.save_faults import Stage

        torch.set_num_threads(1)
        stage = Stage(options.stage or scratch / "stage")
    parts = {"calls": _calls, "power": _power, "mistakes": _mistakes, "list": _list, "recovery": _recovery}
    for name in options.only:
        yield from parts[name](options, stage, scratch)


def _list(_options: argparse.Namespace, stage: Any, _scratch: Path) -> Iterator[Row]:
    """Which calls there are, in their order."""
    from reliability.save_faults import SCENARIOS

    for scenario in SCENARIOS:
        calls = stage.recorded(scenario)
        yield Row(scenario.name, len(calls), 0, [f"{c.name} {os.path.basename(c.to or c.path)}" for c in calls])


def _calls(options: argparse.Namespace, stage: Any, _scratch: Path) -> Iterator[Row]:
    """Every call x every fault; a sample takes some of each kind of call."""
    from reliability.save_faults import SCENARIOS

    points = [point for scenario in SCENARIOS for point in stage.points(scenario)]
    if options.sample:
        # In turn by the name of the call: drawn from all of them, nearly all would be writes.
        dice = random.Random(options.seed)
        kinds = {call: [point for point in points if point.call == call] for call in {p.call for p in points}}
        drawn = [dice.sample(kinds[call], len(kinds[call])) for call in sorted(kinds)]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
        points = list(filter(None, turns))[: options.sample]
    wrong, passed_over = [], 0
    for point in points:
        said = stage.judge(point)
        passed_over += said is None
        wrong += [f"{point}: {said}"] if said else []
    count = len(points) - passed_over
    note = f", {passed_over} more were not reached (what a thread reads varies)" if passed_over else ""
    yield Row("calls x faults", count, len(wrong), wrong[:40], f", seed {options.seed}{note}")


def _power(options: argparse.Namespace, stage: Any, scratch: Path) -> Iterator[Row]:
    """Every disk that a power cut could leave, of saves, of a status, and of a launch."""
    from reliability import power_protocols as power
    from reliability.save_judge import RUN_ID

    names = ("first save", "save", "save and prune") + (() if options.sample else ("two with pruning",))
    for name in names:
        recording = power.saves(stage, name)
        how: dict[str, Any] = {"is_thin": bool(options.sample), "seed": options.seed}
        if not options.sample:
            states = power.replay(recording._replace(judge=lambda *_: ""), scratch / "disk").states
            how |= {"every": max(1, states // NEXT_SAVES), "go_on": lambda at: stage.next_process(at / RUN_ID, 900)}
        yield _row(name, power.replay(recording, scratch / "disk", **how))
    recording = power.status_writes(scratch, stage.shim)
    found = power.replay(recording, scratch / "disk", is_thin=bool(options.sample), seed=options.seed)
    row = _row("status", found)
    unreadable = (
        "" if options.sample else f", {power.unreadable_statuses(recording)} with a status.json to be made anew"
    )
    yield row._replace(note=row.note + unreadable)
    if not options.sample:
        yield _row("launch", power.replay(_launch(scratch), scratch / "disk", seed=options.seed))


def _launch(scratch: Path) -> Any:
    from reliability import power_protocols as power
    from support.commands import Kit, killed

    kit = Kit(scratch / "kit")
    try:
        killed(kit)
        return power.launch(kit.runs, kit.config_file, "T-1", scratch)
    finally:
        kit.clean_up()


def _row(name: str, found: Any) -> Row:
    some = "" if found.is_whole else ", where there were too many ways a stated part of them"
    return Row(f"power cut, {name}", found.states, found.bad, found.examples, some)


def _mistakes(options: argparse.Namespace, stage: Any, scratch: Path) -> Iterator[Row]:
    """Each mistake must turn something red; a sample makes every second one."""
    from reliability import power_protocols as power
    from reliability import save_mistakes
    from reliability.save_faults import SCENARIOS

    every = 2 if options.sample else 1
    for name, (mistake, where) in list(save_mistakes.AT_POWER_LOSS.items())[::every]:
        recording = power.saves(stage, where, mistake)
        found = power.replay(recording, scratch / "disk", is_thin=True, until_bad=bool(options.sample))
        seen = f"{found.bad} of {found.states} states are bad" if found.bad else "NOT SEEN"
        yield Row(f"mistake, {name}", 1, int(not found.bad), [], f": {seen}; {found.examples[:1]}")
    points = stage.points(SCENARIOS[1])
    for name, (mistake, call) in list(save_mistakes.IN_CALLS.items())[::every]:
        seen = next(
            (said for point in points if point.call == call and (said := stage.judge(point, mistake))), None
        )  # fmt: skip
        yield Row(f"mistake, {name}", 1, int(not seen), [], f": {seen or 'NOT SEEN'}"[:160])


def _recovery(options: argparse.Namespace, _stage: Any, scratch: Path) -> Iterator[Row]:
    """A recovery: every disk that a power cut could leave, a kill before each of its calls, and mistakes made in it.

    A sample looks at so many disks of each recording but one, so many kills of one scene, and one mistake.
    """
    from reliability import power_protocols as power
    from reliability import recovery_kills, recovery_mistakes, recovery_power

    for name in ("recovery", "attention", "account") if options.sample else recovery_power.NAMES:
        recording = recovery_power.record(name, scratch / f"power-{name}")
        if options.sample:
            found = power.replay_some(recording, scratch / "disk", options.sample, options.seed)
        else:
            found = power.replay(recording, scratch / "disk", is_thin=True, seed=options.seed)
        yield _row(recording.name, found)
    for name in ("recovery",) if options.sample else recovery_kills.NAMES:
        found = recovery_kills.kill_everywhere(name, scratch / f"kills-{name}", most=options.sample)
        yield Row(f"kill, recovery, {name}", found.states, found.bad, found.examples)
    for name, mistake in recovery_mistakes.MISTAKES.items():
        if options.sample and name != recovery_mistakes.QUICK:
            continue
        with recovery_mistakes.made(mistake):
            recording = recovery_power.record(mistake.scene, scratch / name)
            found = power.replay(
                recording, scratch / "disk", is_thin=True, seed=options.seed, stride=_SEEN_IN_EVERY, until_bad=True
            )
        seen = f"seen at disk {found.states}" if found.bad else "NOT SEEN"
        yield Row(f"mistake, {name}", 1, int(not found.bad), [], f": {seen}; {found.examples[:1]}")


if __name__ == "__main__":
    if str(syscalls.SOURCE.stem) not in os.environ.get("LD_PRELOAD", ""):
        if reason := syscalls.why_not():
            raise SystemExit(f"campaign_saves.py: {reason}")
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], syscalls.environment())
    raise SystemExit(main())
