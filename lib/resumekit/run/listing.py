"""The runs as a table and a tree, each with its state as it is now.

Reads run.json, journal and processes of each run that is shown; writes nothing.
Try it: `bin/runs.sh`
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Iterator, Sequence

from ..base import processes, terms
from ..base.errors import UsageError
from ..base.imports import Any
from ..base.terminal import duration, plain
from ..base.values import finite, mapping, string
from . import life_signs, liveness, status
from .run_folder import Run
from .run_table import RunTable

Row = tuple[Run, dict[str, Any]]
UNKNOWN = "unknown"
# A line that says how many are left out takes the place of one run itself.
FOLDED_FROM = 3
DRAWN_LEVELS = 8
_INDENT = 4


def choose(table: RunTable, wanted: str | None) -> list[Row]:
    """Return (run, status) of the runs that are asked for, each behind the one it was resumed from.

    Args:
        table: all runs.
        wanted: None for all, an experiment, or a run id for that run with its ancestors and descendants.

    Raises:
        UsageError: there is no such run or experiment.
    """
    runs = _in_tree_order(table, runs_of(table, wanted))
    life_signs.ask_about_jobs(runs)
    return [(run, state_of(run)) for run in runs]


def show(table: RunTable, wanted: str | None, width: int | None = None) -> str:
    """Return the table for a person; of many generations, one behind the other, only the first and the last are read.

    Args:
        table, wanted: as `choose`.
        width: the columns of the terminal; None where the lines may be as long as they are.

    Raises:
        UsageError: as `choose`.
    """
    runs = _in_tree_order(table, runs_of(table, wanted))
    hidden = _folded(table, runs, wanted)
    shown = [run for run in runs if run.run_id not in hidden]
    life_signs.ask_about_jobs(shown)
    return as_text(table, [(run, state_of(run)) for run in shown], width)


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


def as_text(table: RunTable, rows: list[Row], width: int | None = None) -> str:
    """Return the tree with one printable line per run, more where that does not fit into `width` columns.

    Runs that are left out between two of the rows are counted in a line of their own.
    """
    if not rows:
        return "no runs"
    lines: list[tuple[str, ...]] = []
    depths: list[int] = []
    depth_of: dict[str, int] = {}
    for run, seen in rows:
        above, left_out = _shown_above(table, run, depth_of)
        depth = 0 if above is None else depth_of[above] + 1
        if left_out:
            lines.append((f"… {left_out:,} more", "", "", ""))
            depths.append(depth)
        depth_of[run.run_id] = depth + bool(left_out)
        lines.append((run.run_id, *cells(run, seen)))
        depths.append(depth_of[run.run_id])
    drawn = [(before + line[0], *line[1:]) for before, line in zip(_branches(depths), lines, strict=True)]
    return "\n".join(_fitted([tuple(map(plain, line)) for line in drawn], width))


def _shown_above(table: RunTable, run: Run, shown: Container[str]) -> tuple[str | None, int]:
    """Return the nearest run that this one continues and that is shown, and how many between them are not."""
    parent, left_out = table.parent(run), 0
    seen = {run.run_id}
    while parent and parent.run_id not in shown and parent.run_id not in seen and _continues(run):
        seen.add(parent.run_id)
        run, parent, left_out = parent, table.parent(parent), left_out + 1
    if parent is None or parent.run_id not in shown:
        return None, 0
    return parent.run_id, left_out


def _continues(run: Run) -> bool:
    return run.record.get("relation") == "continue"


def _folded(table: RunTable, runs: list[Run], wanted: str | None) -> set[str]:
    """Return the ids of the runs in the middle of a long line of generations, each continued by the next one alone.

    A run that is continued has ended, and needs no person. A run that was asked for by its id is shown.
    """
    children = _children(table, runs)
    hidden: set[str] = set()
    line: list[str] = []
    for run in runs:  # in the order of the tree, so that a line is in one piece
        line.append(run.run_id)
        own = children.get(run.run_id, [])
        if len(own) == 1 and _continues(own[0]) and run.run_id != wanted:
            continue
        middle = line[1:-2]
        hidden |= set(middle) if len(middle) >= FOLDED_FROM else set()
        line = []
    return hidden


def _branches(depths: Sequence[int]) -> list[str]:
    """Return what stands before each name of a tree: '├ ' where a sibling follows, '└ ' before the last one.

    Of what is deeper than DRAWN_LEVELS the outer levels are not drawn.
    """
    drawn = []
    followed: set[int] = set()
    for depth in reversed(depths):  # from below: who follows is known then
        outer = max(1, depth - DRAWN_LEVELS)
        before = "".join("│ " if level in followed else "  " for level in range(outer, depth))
        before = before if outer == 1 else f"…{before}"
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


def _fitted(lines: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """Yield the lines in columns; what is too long for the terminal goes on below its name, wrapped."""
    import textwrap  # late: the sidecar and the watcher read states here, and draw no table

    short = in_columns([line[:-1] for line in lines])
    for whole, begin, line in zip(in_columns(lines), short, lines, strict=True):
        if width is None or len(whole) <= width:
            yield whole
            continue
        head, rest = (begin, line[-1:]) if len(begin) <= width else (line[0], line[1:])
        yield head
        text = "  ".join(filter(None, rest))
        indent = " " * _INDENT
        yield from textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False,
        )  # fmt: skip


def runs_of(table: RunTable, wanted: str | None) -> list[Run]:
    """Return the runs that are asked for, by name; see `choose`."""
    if wanted is None:
        return table.all()
    is_unknown = bool(table.experiments) and wanted not in table.experiments
    known = f"; the experiments of the config are {', '.join(table.experiments)}" if is_unknown else ""
    if table.is_experiment(wanted):
        runs = table.of_experiment(wanted)
        if not runs:
            known = known or " (run.sh starts one)"
            raise UsageError(f"there is no run of '{wanted}' in '{table.runs_dir}'{known}")
        return runs
    run = table.get(wanted)
    if run is None:
        raise UsageError(f"there is no run '{wanted}' in '{table.runs_dir}'{known}")
    everything = table.all()
    related = {ancestor.run_id for ancestor, _ in table.history(run)}
    children, left = _children(table, everything), [wanted]
    while left:
        own = [child.run_id for child in children.pop(left.pop(), [])]
        related |= set(own)
        left += own
    return [one for one in everything if one.run_id in related]


def _children(table: RunTable, runs: list[Run]) -> dict[str | None, list[Run]]:
    """Return the runs by the id of their parent; None for those whose parent is not one of them."""
    shown = {run.run_id for run in runs}
    children: dict[str | None, list[Run]] = {}
    for run in runs:
        parent = table.parent(run)
        children.setdefault(parent.run_id if parent and parent.run_id in shown else None, []).append(run)
    return children


def _in_tree_order(table: RunTable, runs: list[Run]) -> list[Run]:
    """Put each run behind its parent, siblings by the time they were made."""
    children = _children(table, runs)
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


def _progress(seen: dict[str, Any]) -> str:
    step, end = finite(seen["global_step"]), finite(seen["max_steps"])
    if step is None:
        return ""
    return f"step {step}/{end}" if end else f"step {step}"


def _detail(run: Run, seen: dict[str, Any]) -> str:
    parts = [] if run.copy_of is None else [plain(f"a copy of '{run.copy_of}': not taken into account")]
    has_no_step = seen["state"] in status.LIVE and seen["last_progress_at"] is None
    if (seen["state"] == UNKNOWN or has_no_step) and seen["last_warning"]:
        parts.append(plain(seen["last_warning"]))
    if run.parent_step is not None and run.record.get("relation") == "branch":
        parts.append("branch")
    is_unknown = seen["state"] in status.LIVE and seen["liveness"] == processes.UNKNOWN
    if is_unknown:
        parts.append(_last_heard(run, seen))
    elif seen["state"] in status.LIVE and finite(seen["pid"]):
        parts.append(f"pid {seen['pid']}" + _elsewhere(seen))
    if seen["state"] in (*status.LIVE, "preempted") and (job := _job_of(run)) is not None:
        parts.append(job)
    score, best_step, speed = (finite(seen[key]) for key in ("best_eval_acc", "best_step", "steps_per_sec"))
    if score is not None:
        words = ["best", *filter(None, [plain(seen["best_metric"] or "")[:40]]), f"{score:.4f}"]
        parts.append(" ".join(words) + (f" at {best_step}" if best_step is not None else ""))
    if seen["state"] in status.LIVE and not is_unknown and speed is not None and finite(seen["eta_s"]) is not None:
        parts.append(f"{speed:.2f} steps/s, {duration(seen['eta_s'])} left")
    if os.path.lexists(run.paths.held):
        from . import held  # late: few runs hold a checkpoint

        parts += [plain(words) for words in filter(None, [held.words(run)])]
    if finite(seen["exit_code"]):
        parts.append(f"exit {seen['exit_code']}")
    if seen.get("stopped_by"):
        parts.append(f"by {plain(seen['stopped_by'])}")
    if seen.get("job_cause") in terms.JOB_CAUSES:
        parts.append(f"job {seen['job_cause'].replace('_', ' ')}")
    if word := seen["taken_over"]:
        parts.append(plain(f"taken over by {word['by']} on {word['host']}"))
    return ", ".join([*parts, *_failed_checks(seen), *_suspended(seen), *_recovery(run, seen)])


def _failed_checks(seen: dict[str, Any]) -> list[str]:
    """Name what a resumed run was not accepted for: while it lives; and for ever, that it began at another step."""
    failed = [name for name in (seen["checks"] or {}).get("failed", ()) if name in terms.NAMES]
    if seen["state"] not in status.LIVE:
        failed = [name for name in failed if name == terms.ALWAYS_STRICT]
    return [f"failed checks: {' '.join(failed)}"] if failed else []


def _suspended(seen: dict[str, Any]) -> list[str]:
    """Name the processes that do nothing until CONT, while they matter: of a run that lives or may be taken up."""
    if seen["state"] not in (*status.LIVE, *status.TAKEN_UP):
        return []
    sentence = liveness.suspended_words(tuple(liveness.Suspended(**one) for one in seen["suspended"]))
    return [sentence] if sentence else []


def _last_heard(run: Run, seen: dict[str, Any]) -> str:
    """Say of a run that cannot be told alive or dead from here when it was last heard of, and where it was started."""
    host = string(seen["host"] or run.record.get("host"))
    where = "" if host is None else plain(f" on host {host[:100]}")
    if seen["last_heard_at"] is None:
        return f"alive or dead? never heard of{where}"
    return f"alive or dead? last heard of {seen['last_heard_at'][:16].replace('T', ' ')} UTC{where}"


def _elsewhere(seen: dict[str, Any]) -> str:
    host = string(seen["host"])
    if host is None or host == processes.host_name():
        return ""
    heard = string(seen.get("last_heard_at"))
    sign = "" if heard is None else f", last heard of {heard[:19].replace('T', ' ')} UTC"
    return plain(f" on host {host[:100]}") + sign


def _job_of(run: Run) -> str | None:
    """Name the scheduler's job that a run was started in; None where none was."""
    scheduler = mapping(run.record.get("scheduler"))
    name, job = string(scheduler.get("name")), string(scheduler.get("job"))
    return None if name is None or job is None else plain(f"{name} job {job[:100]}")


def _recovery(run: Run, seen: dict[str, Any]) -> list[str]:
    """Say of a run that took up another what that one died of, and of one that cannot be taken up why."""
    known = seen.get("recovery") or {}
    if known.get("outcome") == status.NEEDS_ATTENTION:
        return [plain(known.get("reason") or "it was given up")]
    if known.get("outcome") == status.RESUMED and known.get("child_run_id") == run.run_id:
        return [plain(f"taken up ({known.get('cause')})")]
    return []
