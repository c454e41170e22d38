"""The status of a run: a view on its journal, the clock and the processes, never a source of its own.

`observe` is pure; `current` reads what it needs; `write` puts status.json down whole. Whoever holds the status lock
writes: the sidecar, else the watcher.
Try it: `bin/runs.sh --json EXP-01`
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from . import journal, processes
from .files import UnreadableFile, read_json, to_json, utc_now, write_atomic
from .run_state import State, fold, measured_speed
from .runs import Run

ENDED = frozenset({"finished", "ended_early", "stopped", "preempted", "failed", "aborted", "lost", "needs_attention"})
LIVE = frozenset({"starting", "running", "unsupervised"})


@dataclass(frozen=True)
class View:
    """What is known of a run beside its journal, at one moment.

    Args:
        trainer, launcher: 'alive', 'dead' or 'unknown', from processes.probe.
        end: exit.json, or None.
        now: seconds since the epoch.
    """

    trainer: str
    launcher: str
    end: dict[str, Any] | None
    now: float


def observe(run: Run, state: State, view: View) -> dict[str, Any]:
    """Return the status of a run, by schemas/status.schema.json.

    Args:
        run: the run, for what was fixed at its start.
        state: its folded journal.
        view: processes, end and clock.
    """
    launched = state.get("launched") or {}
    trainer = launched.get("trainer") or {}
    max_steps = run.setting("training", "max_steps")
    step, speed = state.get("step"), measured_speed(state) or state.get("steps_per_sec")
    status = {key: state.get(key) for key in _TAKEN}
    return status | {
        "run_id": run.run_id,
        "experiment": run.experiment,
        "state": state_of(state, view, max_steps),
        "phase": state.get("phase"),
        "parent_run_id": run.record.get("parent_run_id"),
        "parent_step": run.parent_step,
        "config_hash": run.record.get("config_hash"),
        "global_step": step if step is not None else run.parent_step,
        "max_steps": max_steps,
        "steps_per_sec": speed,
        "lr_scale": state.get("lr_scale", 1.0),
        "optimizer": state.get("optimizer") or run.setting("optimizer", "name"),
        **_etas(run, step, speed, max_steps, view.now),
        "host": trainer.get("host"),
        "boot_id": trainer.get("boot_id"),
        "pid": trainer.get("pid"),
        "pid_started_at": launched.get("at"),
        "pid_start_ticks": trainer.get("start_ticks"),
        "started_at": launched.get("at"),
        "heartbeat_at": utc_now(view.now),
        "exit_code": view.end.get("code") if view.end else None,
        "checks": None,
        "recovery": None,
    }


_TAKEN = (
    "epoch", "loss", "lr", "swap_from_step", "scheduler_phase", "last_checkpoint_step", "best_step", "best_eval_acc",
    "last_fast_eval_step", "last_full_eval_step", "last_progress_at",
)  # fmt: skip


def state_of(state: State, view: View, max_steps: int | None) -> str:
    """Name the state of a run; a trainer is never called dead on doubt."""
    if not state.get("launched"):
        return "starting" if view.launcher == processes.ALIVE else "never_started"
    if view.end is None and view.trainer != processes.DEAD:
        if view.launcher == processes.DEAD:
            return "unsupervised"
        return "running" if "step" in state else "starting"
    if view.end is None:
        return "lost"
    return _end_state(state, view.end, max_steps)


def _end_state(state: State, end: dict[str, Any], max_steps: int | None) -> str:
    code, step = end.get("code"), state.get("step")
    is_whole = step is None or not isinstance(max_steps, int) or step >= max_steps
    if code == 0 and is_whole:
        return "finished"
    if state.get("stopped"):
        return "stopped"
    if code == 0:
        return "ended_early"
    # 143: a trainer that saved and ended on the scheduler's TERM; one that was killed by it has a signal instead.
    return "preempted" if code == 143 and end.get("signal") is None else "failed"


def _etas(run: Run, step: int | None, speed: float | None, max_steps: Any, now: float) -> dict[str, Any]:
    """Return the seconds to the next evals and the end, at the speed measured since the resume point."""

    def seconds_to(target: Any) -> float | None:
        if step is None or not speed or not isinstance(target, int):
            return None
        return max(0.0, (target - step) / speed)

    def next_multiple(every: Any) -> int | None:
        return (step // every + 1) * every if step is not None and isinstance(every, int) and every > 0 else None

    end_s = seconds_to(max_steps)
    return {
        "eta_s": end_s,
        "eta_at": utc_now(now + end_s) if end_s is not None and end_s < 10**9 else None,
        "eta_fast_eval_s": seconds_to(next_multiple(run.setting("validation", "fast_eval_every"))),
        "eta_full_eval_s": seconds_to(next_multiple(run.setting("validation", "full_eval_every"))),
    }


def look(run: Run, state: State) -> View:
    """Probe the run's processes and its exit.json, now."""
    launched = state.get("launched") or {}
    launcher = processes.identity_from(launched.get("launcher") or run.record.get("launcher"))
    trainer = processes.identity_from(launched.get("trainer"))
    # Processes before exit.json: read the other way round, an end between the two would look like a lost trainer.
    trainer_probe = processes.probe(trainer)
    shim = processes.identity_from(launched.get("shim"))
    if trainer_probe == processes.DEAD and processes.probe(shim) == processes.ALIVE:
        trainer_probe = processes.ALIVE  # its end is being written down
    return View(trainer_probe, processes.probe(launcher), read_end(run), time.time())


def read_end(run: Run) -> dict[str, Any] | None:
    """Return exit.json if it is there and has a code."""
    try:
        end = read_json(run.paths.exit_json)
    except UnreadableFile:
        return None
    return end if isinstance(end, dict) and type(end.get("code")) is int else None


def read_state(run: Run) -> State:
    """Fold the run's journal, from where the sidecar's saved fold ended."""
    state, offset = saved_state(run)
    return fold(state, (event for event, _ in journal.read(run.paths.journal, offset)))


def saved_state(run: Run) -> tuple[State, int]:
    """Return (state, byte offset in the journal) as the sidecar last saved them; ({}, 0) if there is nothing usable."""
    try:
        saved = read_json(run.paths.sidecar_state)
        size = os.stat(run.paths.journal).st_size
    except (UnreadableFile, OSError):
        return {}, 0
    if not isinstance(saved, dict) or saved.get("run_id") != run.run_id:
        return {}, 0
    state, offset = saved.get("state"), saved.get("journal_offset")
    if not isinstance(state, dict) or type(offset) is not int or not 0 <= offset <= size:
        return {}, 0
    return state, offset


def current(run: Run) -> dict[str, Any]:
    """Return the status of a run as it is now, without writing anything."""
    state = read_state(run)
    return observe(run, state, look(run, state))


def write(run: Run, status: dict[str, Any]) -> None:
    """Replace status.json; a reader sees the old one or the new one, never half of either."""
    write_atomic(run.paths.status, to_json(status))
