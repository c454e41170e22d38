"""The runs as a table and a tree, each with its state as it is now.

Reads run.json, journal and processes of each run that is shown; writes nothing.
Try it: `bin/runs.sh`
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from ..basics import check, processes
from ..basics.errors import UsageError
from ..basics.terminal import duration, plain
from . import status, suspended
from .runs import Run, RunTable

Row = tuple[Run, dict[str, Any]]
UNKNOWN = "unknown"


def choose(table: RunTable, wanted: str | None) -> list[Row]:
    """Return (run, status) of the runs that are asked for, each behind the one it was resumed from.

    Args:
        table: all runs.
        wanted: None for all, an experiment, or a run id for that run with its ancestors and descendants.

    Raises:
        UsageError: there is no such run or experiment.
    """
    runs = runs_of(table, wanted)
    return [(run, state_of(run)) for run in _in_tree_order(table, runs)]


def state_of(run: Run) -> dict[str, Any]:
    """Return a run's status; of a folder that the kit did not make, or that cannot be read now, what its name says."""
    try:
        seen = status.current(run)
    except OSError as error:
        seen = status.observe(run, {}, status.View(processes.UNKNOWN, processes.UNKNOWN, None, time.time()))
        return seen | {"state": UNKNOWN, "last_warning": f"it cannot be read now: {error.strerror or error}"}
    return seen if run.is_ours or not run.has_started else seen | {"state": UNKNOWN}


def as_json(rows: list[Row]) -> str:
    """Return the status objects, one per run, as a JSON array."""
    return json.dumps([seen for _, seen in rows], indent=2)


def as_text(table: RunTable, rows: list[Row]) -> str:
    """Return the tree with one printable line per run."""
    if not rows:
        return "no runs"
    shown = {run.run_id for run, _ in rows}
    branches = _branches([_depth(table, run, shown) for run, _ in rows])
    lines = [(drawn + run.run_id, *cells(run, seen)) for drawn, (run, seen) in zip(branches, rows, strict=True)]
    return "\n".join(map(plain, in_columns(lines)))


def _branches(depths: Sequence[int]) -> list[str]:
    """Return what stands before each name of a tree: '├ ' where a sibling follows, '└ ' before the last one."""
    drawn, followed = [], set()
    for depth in reversed(depths):  # from below: who follows is known then
        before = "".join("│ " if level in followed else "  " for level in range(1, depth))
        drawn.append(before + ("├ " if depth in followed else "└ ") if depth else "")
        followed = {level for level in followed if level < depth} | {depth}
    return drawn[::-1]


def cells(run: Run, seen: dict[str, Any]) -> tuple[str, str, str]:
    """Return what is said of a run behind its name: state, progress, and the rest."""
    return seen["state"], _progress(seen), _detail(run, seen)


def in_columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines with their cells below one another; the last cell is as long as it is."""
    if not lines:
        return []
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return [
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    ]


def runs_of(table: RunTable, wanted: str | None) -> list[Run]:
    """Return the runs that are asked for, by name; see `choose`."""
    if wanted is None:
        return table.all()
    if "_" not in wanted:
        runs = table.of_experiment(wanted)
        if not runs:
            raise UsageError(f"there is no run of '{wanted}' in '{table.runs_dir}'")
        return runs
    run = table.get(wanted)
    if run is None:
        raise UsageError(f"there is no run '{wanted}' in '{table.runs_dir}'")
    ancestors = {ancestor.run_id for ancestor, _ in table.history(run)}
    return [r for r in table.all() if r.run_id in ancestors or wanted in {a.run_id for a, _ in table.history(r)}]


def _in_tree_order(table: RunTable, runs: list[Run]) -> list[Run]:
    """Put each run behind its parent, siblings by the time they were made."""
    shown = {run.run_id for run in runs}
    children: dict[str | None, list[Run]] = {}
    for run in runs:
        parent = table.parent(run)
        children.setdefault(parent.run_id if parent and parent.run_id in shown else None, []).append(run)
    order: list[Run] = []
    stack = sorted(children.get(None, []), key=_age, reverse=True)
    while stack:
        run = stack.pop()
        order.append(run)
        stack += sorted(children.pop(run.run_id, []), key=_age, reverse=True)
    # Two that say of each other that they are its parent hang on no root; they are runs all the same.
    left = {run.run_id for run in runs} - {run.run_id for run in order}
    return order + [run for run in runs if run.run_id in left]


def _age(run: Run) -> tuple[str, str]:
    return run.created_at, run.run_id


def _depth(table: RunTable, run: Run, shown: set[str]) -> int:
    return sum(1 for ancestor, _ in table.history(run)[1:] if ancestor.run_id in shown)


def _progress(seen: dict[str, Any]) -> str:
    step, end = _number(seen["global_step"]), _number(seen["max_steps"])
    if step is None:
        return ""
    return f"step {step}/{end}" if end else f"step {step}"


def _number(value: Any) -> int | float | None:
    """Return a value that came from a file if it is a number: only those are shown."""
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _detail(run: Run, seen: dict[str, Any]) -> str:
    parts = [] if run.copy_of is None else [plain(f"a copy of '{run.copy_of}': not taken into account")]
    if seen["state"] == UNKNOWN and seen["last_warning"]:
        parts.append(seen["last_warning"])
    if run.parent_step is not None and run.record.get("relation") == "branch":
        parts.append("branch")
    is_unknown = seen["state"] in status.LIVE and seen["liveness"] == processes.UNKNOWN
    if is_unknown:
        parts.append(_last_heard(run, seen))
    elif seen["state"] in status.LIVE and _number(seen["pid"]):
        parts.append(f"pid {seen['pid']}" + _elsewhere(seen))
    score, best_step, speed = (_number(seen[key]) for key in ("best_eval_acc", "best_step", "steps_per_sec"))
    if score is not None:
        parts.append(f"best {score:.4f}" + (f" at {best_step}" if best_step is not None else ""))
    if seen["state"] in status.LIVE and not is_unknown and speed is not None and _number(seen["eta_s"]) is not None:
        parts.append(f"{speed:.2f} steps/s, {duration(seen['eta_s'])} left")
    if _number(seen["exit_code"]):
        parts.append(f"exit {seen['exit_code']}")
    if seen.get("stopped_by"):
        parts.append(f"by {plain(seen['stopped_by'])}")
    if word := seen["taken_over"]:
        parts.append(plain(f"taken over by {word['by']} on {word['host']}"))
    return ", ".join([*parts, *_failed_checks(seen), *_suspended(seen), *_recovery(run, seen)])


def _failed_checks(seen: dict[str, Any]) -> list[str]:
    """Name what a resumed run that lives was not accepted for."""
    failed = [name for name in (seen["checks"] or {}).get("failed", ()) if name in check.NAMES]
    return [f"failed checks: {' '.join(failed)}"] if failed and seen["state"] in status.LIVE else []


def _suspended(seen: dict[str, Any]) -> list[str]:
    """Name the processes that do nothing until CONT, while they matter: of a run that lives or may be taken up."""
    if seen["state"] not in (*status.LIVE, *status.TAKEN_UP):
        return []
    sentence = suspended.words(tuple(suspended.Suspended(**one) for one in seen["suspended"]))
    return [sentence] if sentence else []


def _last_heard(run: Run, seen: dict[str, Any]) -> str:
    """Say of a run that cannot be told alive or dead from here when it was last heard of, and where it was started."""
    host = seen["host"] or run.record.get("host")
    where = plain(f" on host {host[:100]}") if isinstance(host, str) else ""
    if seen["last_heard_at"] is None:
        return f"alive or dead? never heard of{where}"
    return f"alive or dead? last heard of {seen['last_heard_at'][:16].replace('T', ' ')} UTC{where}"


def _elsewhere(seen: dict[str, Any]) -> str:
    host = seen["host"]
    return plain(f" on host {host[:100]}") if isinstance(host, str) and host != processes.host_name() else ""


def _recovery(run: Run, seen: dict[str, Any]) -> list[str]:
    """Say of a run that took up another what that one died of, and of one that cannot be taken up why."""
    known = seen.get("recovery") or {}
    if known.get("outcome") == status.NEEDS_ATTENTION:
        return [plain(known.get("reason") or "it was given up")]
    if known.get("outcome") == status.RESUMED and known.get("child_run_id") == run.run_id:
        return [plain(f"taken up ({known.get('cause')})")]
    return []
