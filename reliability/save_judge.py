"""What must hold after a save in which one call went wrong, whatever call it was.

The newest proven checkpoint is this step or the one before; nothing with a manifest is anything but proven; no proven
file was altered, and none removed but by pruning; what was said is what happened.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from reliability import syscalls
from resumekit.base import journal
from resumekit.base.files import UnreadableFile
from resumekit.base.paths import default_patterns, step_of_name
from resumekit.checkpoint.grades import PLAUSIBLE, PROVEN, examine
from resumekit.checkpoint.selection import CheckpointFolder, select

RUN_ID = "T-1_faults_20260101-0000"
KEEP_LAST = 2
PINNED = 10
KILLED, SAVED, NOT_SAVED = "killed", "saved", "not saved"
_SAID = {errno.EIO: "Input/output error", errno.ENOSPC: "no space", errno.EDQUOT: "the quota is used up"}


class Scenario(NamedTuple):
    """A save, and what was there before it.

    Args:
        earlier: steps that are proven already; the last but one of them is the best.
        step: the one to save.
        options: for save_checkpoint.
        is_again: this process has saved the step before; it only gets a newer manifest and becomes the best.
        has_links: whether the file system has hard links.
    """

    name: str
    earlier: tuple[int, ...]
    step: int
    options: dict[str, Any]
    is_again: bool = False
    has_links: bool = True


class Fault(NamedTuple):
    """What is done to a call: `what` as in syscalls.py, and the errno."""

    name: str
    what: int
    number: int = 0


class Point(NamedTuple):
    """The `at`-th call of the name `call` in a scenario's save, and what happens to it.

    Args:
        path: the name of what the call is about.
        turn: the how manieth of these calls about this path it is.
    """

    scenario: Scenario
    call: str
    at: int
    path: str
    turn: int
    fault: Fault

    def __str__(self) -> str:
        return f"{self.scenario.name}: {self.fault.name} at {self.call} {self.at} ({self.path})"


class Outcome(NamedTuple):
    """How the save ended: KILLED, SAVED, NOT_SAVED or 'raised ...'; what it said; whether the call was reached."""

    end: str
    said: list[str]
    was_reached: bool


def judge(run_dir: Path, point: Point, outcome: Outcome, before: dict[str, bytes]) -> str:
    """Return what is wrong with what a save left behind; '' where nothing is.

    Args:
        before: `contents` of the run folder before the save.
    """
    if outcome.end not in (KILLED, SAVED, NOT_SAVED):
        return outcome.end
    scenario = point.scenario
    old = scenario.step if scenario.is_again else max(scenario.earlier, default=None)
    allowed = {SAVED: {scenario.step}, KILLED: {old, scenario.step}, NOT_SAVED: {old}}[outcome.end]
    step, grade = chosen_in(run_dir)
    # Where no other is there yet, data that has its name but not its manifest may be begun from.
    grades = {PROVEN, None, PLAUSIBLE} if old is None and outcome.end == KILLED else {PROVEN, None}
    if step not in allowed or grade not in grades:
        return f"{outcome.end}, and {grade} step {step} is selected"
    if outcome.end == NOT_SAVED and point.fault.what == syscalls.SHORT:
        return f"a short write is nothing that a save fails of: {outcome.said}"
    if outcome.end == SAVED and _is_vital(point):
        return "a failed fsync, and it says that the step is saved"
    if torn := torn_in(run_dir / "checkpoints"):
        return torn
    if wrong := _compared(scenario, before, contents(run_dir), may_prune=step == scenario.step):
        return wrong
    if wrong := _judge_best(run_dir, point):
        return wrong
    return _judge_what_was_said(run_dir, point, outcome)


def _judge_best(run_dir: Path, point: Point) -> str:
    """The best is the old or the new one, proven; but for a fault at the very second of its two renames."""
    if not point.scenario.earlier or (point.call == "rename" and point.path == "hrm_arc_best.pt.json"):
        return ""
    if point.fault.what == syscalls.ERROR_FROM_THERE and point.path == "hrm_arc_best.pt.json":
        return ""
    selection = select([CheckpointFolder(run_dir / "checkpoints", RUN_ID)], best=True)
    chosen = selection.chosen
    if chosen is not None and chosen.grade == PROVEN:
        return ""
    return f"the best is lost: {selection.candidates[0].reason if selection.candidates else 'not there'}"


def _is_vital(point: Point) -> bool:
    """Whether a save whose fsync failed there is not durable; after a failed one no second one counts."""
    if point.call != "fsync" or point.fault.what not in (syscalls.ERROR, syscalls.ERROR_FROM_THERE):
        return False
    folder_syncs = 1 if point.scenario.is_again else 2  # later ones are the best's
    own = point.path.startswith(f".hrm_arc_step_{point.scenario.step}.pt")
    return own or (point.path == "checkpoints" and point.turn <= folder_syncs)


def _compared(scenario: Scenario, before: dict[str, bytes], after: dict[str, bytes], *, may_prune: bool) -> str:
    gone = before.keys() - after.keys() - (_prunable(scenario) if may_prune else set())
    if gone:
        return f"removed: {sorted(gone)}"
    may_change = {"hrm_arc_best.pt", "hrm_arc_best.pt.json"}
    may_change |= {f"hrm_arc_step_{scenario.step}.pt.json"} if scenario.is_again else set()
    changed = {name for name in before.keys() & after.keys() if after[name] != before[name]} - may_change
    return f"changed: {sorted(changed)}" if changed else ""


def _judge_what_was_said(run_dir: Path, point: Point, outcome: Outcome) -> str:
    events = [event for event, _ in journal.read(run_dir / "journal.jsonl")]
    told = [event["step"] for event in events if event["event"] == "checkpoint"]
    if point.scenario.step in told and chosen_in(run_dir)[0] != point.scenario.step:
        return "the journal has a checkpoint that is not there"
    if outcome.end == KILLED:
        return ""
    left = [name for name in names_in(run_dir / "checkpoints") if ".tmp-" in name]
    if left and point.call != "unlink":
        return f"left behind by a process that lives: {left[0]}"
    if outcome.end == SAVED:
        return ""
    causes = [_SAID[point.fault.number]]
    if point.call == "stat":  # a disk that can't say whether a name is taken; the exclusive create can
        causes.append("is there already")
    is_said = any("was not saved to" in line and any(cause in line for cause in causes) for line in outcome.said)
    return "" if is_said else f"not saved, and that is all it says: {outcome.said}"


def chosen_in(run_dir: Path, run_id: str | None = RUN_ID) -> tuple[int | None, str | None]:
    """Return (step, grade) of what would be resumed from, (None, None) where nothing can be."""
    chosen = select([CheckpointFolder(run_dir / "checkpoints", run_id)]).chosen
    return (chosen.step, chosen.grade) if chosen else (None, None)


def torn_in(folder: Path) -> str:
    """Return which step checkpoint has a manifest that does not prove it; '' where there is none."""
    for name in names_in(folder):
        step = step_of_name(name, default_patterns()[0])
        if step is None or not (folder / f"{name}.json").exists():
            continue
        content = (folder / name).read_bytes() + (folder / f"{name}.json").read_bytes()
        key = name, hashlib.sha256(content).digest()
        if key not in _verdicts:  # the same few files come again in thousands of states
            _verdicts[key] = _verdict(folder / name, step)
        if _verdicts[key]:
            return _verdicts[key]
    return ""


def _verdict(path: Path, step: int) -> str:
    try:
        examine(path, name_step=step, run_id=RUN_ID, has_manifest=True)
    except UnreadableFile as error:
        return f"torn: {path.name}: {error}"
    return ""


_verdicts: dict[tuple[str, bytes], str] = {}


def contents(run_dir: Path) -> dict[str, bytes]:
    """Return every checkpoint and manifest by name, with its bytes; without temp files."""
    folder = run_dir / "checkpoints"
    return {name: (folder / name).read_bytes() for name in names_in(folder) if ".tmp-" not in name}


def names_in(folder: Path) -> list[str]:
    """Return what is in a folder; nothing where it is not there."""
    return os.listdir(folder) if folder.is_dir() else []


def _prunable(scenario: Scenario) -> set[str]:
    """What the pruning of this save may remove, once the step is durable: all but the newest two and the pinned."""
    if "keep_last" not in scenario.options:
        return set()
    steps = sorted({*scenario.earlier, scenario.step})[:-KEEP_LAST]
    return {f"hrm_arc_step_{s}.pt{end}" for s in steps if s != PINNED for end in ("", ".json")}
