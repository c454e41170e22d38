"""What a recovery writes, recorded; the power is cut anywhere in it, or its process killed before any of its calls.

Runs in a Python that was started with `syscalls.environment()`; it needs no torch.
Try it: `python -m reliability.campaign_saves --only recovery`
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from reliability import power_loss, syscalls
from reliability import recovery_stage as stage
from reliability.power_protocols import Recording
from resumekit.base import journal
from resumekit.process import sidecar_state
from resumekit.run import status
from resumekit.run.run_folder import open_run
from resumekit.watch import escalation, recovering

NAMES = ("recovery", "attention", "quarantine", "account")
Mistake = Callable[[], None]


class Scene(NamedTuple):
    """A runs folder before something happens in it.

    Args:
        runs: the folder.
        ended: what must come of its run.
        at: the run that is looked at first, `ended`'s own or a descendant of it.
        work: what is recorded; called in a fork.
    """

    runs: Path
    ended: stage.Ended
    work: Callable[[syscalls.Shim], None]


def scene(name: str, folder: Path) -> Scene:
    """Prepare what is to be recorded.

    Args:
        name: 'recovery' (taken up, started, introduced, dead again), 'attention' (a person is called), 'quarantine'
            (two starts died of a checkpoint), 'account' (a sidecar writes down how far it has read, then the run is
            taken up).
        folder: scratch, empty.
    """
    # A trainer whose rate can't be cut; a budget that the kills do not use up.
    special = {"attention": {"trainer": {"loads_with_kit": False}}, "quarantine": {"recover": {"max_attempts": 9}}}
    config: dict[str, Any] = special.get(name, {})
    runs, ended = stage.make_run(folder, **config)
    run_dir = runs / ended.run_id
    if name == "attention":
        return Scene(runs, ended._replace(step=None), lambda shim: _call(run_dir, shim))
    if name == "quarantine":
        for _ in range(2):
            stage.forked(lambda: _die_at_once(_newest(runs)))
        last = _newest(runs)
        own = stage.Ended(last.name, "died", stage.SAVE_EVERY, stage.LR_FACTOR, ended.notes)
        return Scene(runs, own, lambda shim: _recover(last, shim))
    if name == "account":
        return Scene(runs, ended, lambda shim: _account(run_dir, shim))
    return Scene(runs, ended, lambda shim: _recover(run_dir, shim))


def record(name: str, folder: Path, mistake: Mistake | None = None) -> Recording:
    """Record what happens in a scene."""
    found, log = scene(name, folder), folder / "calls"
    before = power_loss.scan(found.runs)

    def work() -> None:
        if mistake:
            mistake()
        shim = syscalls.Shim()
        shim.watch(found.runs, log)
        found.work(shim)

    stage.forked(work)
    return Recording(
        f"recovery, {name}", found.runs, before, syscalls.read_log(log),
        lambda state, at: judged(state, at, found.ended),
    )  # fmt: skip


def judged(state: power_loss.State, runs: Path, ended: stage.Ended) -> str:
    """Look at one disk: what was told to a person before the power went is told already."""
    ended.notes.unlink(missing_ok=True)
    if "a person was told" in state.marks:
        ended.notes.write_text("before\n")
    stage.own_markers(runs)
    return stage.judge(runs, ended)


# ---- what is recorded


def _recover(run_dir: Path, shim: syscalls.Shim) -> None:
    """Take it up, let its trainer live until all is told, then die."""
    recovering._backoff_left_s = lambda _run, _found: 0.0
    made = recovering.recover(run_dir, os.getpid()).ready
    shim.mark("ready")
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            stage.start_shim(made, ["sleep", "60"])
        os._exit(0)
    run = open_run(made.paths.run_dir)
    trainer = _trainer_of(run.paths.journal)
    shim.mark("launched")
    stage.introduce(made.paths.run_dir)
    shim.mark("introduced")
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(pid, 0)
    shim.mark("ended")


def _trainer_of(path: Path) -> int:
    """Wait for the `launched` event and for its exec; return the trainer's pid."""
    for _ in range(3000):
        time.sleep(0.002)
        found = [event for event, _ in journal.read(path)] if path.exists() else []
        if found:
            pid = found[0]["trainer"]["pid"]
            if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
                return pid
    raise AssertionError("the trainer has not started")


def _call(run_dir: Path, shim: syscalls.Shim) -> None:
    real = escalation._notify

    def notify(*arguments: Any) -> None:
        real(*arguments)
        shim.mark("a person was told")

    escalation._notify = notify
    assert stage.take_up(run_dir) is None


def _account(run_dir: Path, shim: syscalls.Shim) -> None:
    """The last lines of a journal, the account of how far it was read, and then the incident."""
    run = open_run(run_dir)
    for step in range(stage.DEAD_AT, stage.DEAD_AT + 3):
        journal.append(run.paths.journal, "step", run.run_id, step=step, loss="nan", lr=0.1)
    saved = {**run.sidecar_account, "state": status.read_state(run)}
    saved["journal_offset"] = os.stat(run.paths.journal).st_size
    sidecar_state.Account(run).write(saved)
    shim.mark("account")
    assert stage.take_up(run_dir, then=lambda: shim.mark("ready")) is not None
    shim.mark("ended")


def _die_at_once(run_dir: Path) -> None:
    """A start that ends before its first step."""
    recovering._backoff_left_s = lambda _run, _found: 0.0
    assert stage.take_up(run_dir) is not None


def _newest(runs: Path) -> Path:
    return max(
        (run.paths.run_dir for run in stage.started(runs)),
        key=lambda p: json.loads((p / "run.json").read_text())["created_at"],
    )
