"""Runs that are over, the watcher's next passes over them, and what must have come of them in the end.

Each pass is a fork that ends, as dead as after a power cut, and so is every launcher, shim and trainer in it. It is
the watcher's own code; only its waits are left out, and its processes are forks. The trainers die as soon as they are
there.
Try it: `python -m reliability.campaign_saves --only recovery`
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resumekit.base import journal, processes
from resumekit.process import shim, sidecar
from resumekit.process.nan_guard import record_recovery
from resumekit.run import live_marker, run_table, status
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run, open_run
from resumekit.run.run_table import RunTable
from resumekit.start import make_folder
from resumekit.watch import acting, inspection, recovering
from support.commands import Kit
from support.places import LIVE
from support.runs import reseal

EXPERIMENT = "T-1"
# Checkpoints at 5 and 10, NaN from 12 on, dead at 14.
SAVE_EVERY, NAN_FROM, DEAD_AT, BEGINS_AT = 5, 12, 14, 10
LR_FACTOR = 0.8
PASSES = 4
PASS_LIMIT_S = 30
NOTES = "told"


class Ended(NamedTuple):
    """What must have come of a run.

    Args:
        run_id: the run that had the incident.
        cause: of its `abort` event.
        step: where its child begins; None where a person has to be called instead.
        lr_factor: of its child, and of every one after that.
        notes: the file that `notify.command` writes to.
    """

    run_id: str
    cause: str
    step: int | None
    lr_factor: float
    notes: Path


def make_run(folder: Path, **config: dict[str, Any]) -> tuple[Path, Ended]:
    """Let a real run die of NaN with no process that takes it up; return the runs folder, and what must come of it.

    Args:
        folder: scratch.
        config: more sections of its config.
    """
    kit = Kit(folder / "kit")
    notes = folder / NOTES
    sections: dict[str, Any] = {
        "trainer": {"log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.a-z]+)"}, "loads_with_kit": True},
        "training": {"max_steps": 60},
        "checkpoint": {"every": SAVE_EVERY, "keep_last": None},
        "recover": {"enabled": False, "backoff_s": 1, "replay_steps": 2, "lr_factor": LR_FACTOR},
        "notify": {"command": ["tee", "-a", str(notes)]},
    }
    for name, section in config.items():
        sections[name] = {**sections.get(name, {}), **section}
    kit.config("--save-every", str(SAVE_EVERY), "--nan-from", str(NAN_FROM), **sections)
    try:
        kit("run", EXPERIMENT, code=137, env={"TOY_ARGS": f"--at {DEAD_AT} kill"})
    finally:
        kit.clean_up()
    [run_dir] = kit.run_dirs()
    # It was started with recovery off, so that its own launcher left it alone.
    resolved = json.loads((run_dir / "resolved_config.json").read_text())
    resolved["recover"]["enabled"] = True
    (run_dir / "resolved_config.json").write_text(json.dumps(resolved, indent=2))
    reseal(run_dir)
    run = open_run(run_dir)
    live_marker.make(run.paths.live_marker)
    return kit.runs, Ended(run.run_id, "nonfinite", BEGINS_AT, LR_FACTOR, notes)


def take_up(run_dir: Path, *, then: Callable[[], None] = lambda: None, command: Sequence[str] = ()) -> int | None:
    """Recover a run as a launcher of our own would, and start its trainer.

    Args:
        then: called when the new run is ready, before its trainer starts.
        command: of the trainer; one that is killed at once without.

    Returns:
        The trainer's exit code; None where nothing goes on.
    """
    made = recovering.recover(run_dir, os.getpid()).ready
    if made is None:
        return None
    then()
    return start(made, command or ("sh", "-c", "kill -9 $$"))


def start(made: make_folder.Launch, command: Sequence[str]) -> int:
    """Start a trainer through the shim, and write down what the sidecar would; return its exit code."""
    code = start_shim(made, command)
    introduce(made.paths.run_dir)
    return code


def start_shim(made: make_folder.Launch, command: Sequence[str]) -> int:
    """Run the shim in this very process, until its trainer has ended."""
    os.environ.update({"RESUMEKIT_RUN_ID": made.run_id, processes.TOKEN_VARIABLE: made.token})
    return shim.main([str(made.paths.run_dir), str(os.getpid()), str(made.head or ""), "--", *command])


def introduce(run_dir: Path) -> None:
    """Do what a sidecar does when it sees that its trainer is there."""
    run = open_run(run_dir)
    state = status.read_state(run)
    status.write(run, status.observe(run, state, status.look(run, state)))
    record_recovery(run, state)


def next_passes(runs: Path, is_enough: Callable[[], bool]) -> int:
    """Let the watcher look again and again; return how many passes it took until `is_enough()`, PASSES at most."""
    for number in range(PASSES):
        if is_enough():
            return number
        forked(lambda: _pass(runs))
    return PASSES


def forked(work: Callable[[], Any]) -> int:
    """Do something in a fork, and return its wait status; whatever it raises is raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            work()
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    found = os.waitpid(pid, 0)[1]
    if said:
        raise RuntimeError(said)
    if os.WIFSIGNALED(found) and os.WTERMSIG(found) == signal.SIGALRM:
        raise RuntimeError(f"it takes longer than {PASS_LIMIT_S} s")
    return found


def _pass(runs: Path) -> None:
    acting._start = _in_a_fork
    recovering._backoff_left_s = lambda _run, _found: 0.0
    recovering._say = lambda _sentence: None
    sidecar.CATCH_UP_S = 0.0  # of a disk where it cannot write: beside a recovery, not before it
    signal.alarm(PASS_LIMIT_S)
    deeds = acting.act(runs, [inspection.look_at(runs, run_id) for run_id in inspection.live_runs(runs)])
    if wrong := [deed.words for deed in deeds if not deed.is_done]:
        raise RuntimeError(f"the watcher says: {wrong[0]}")


def _in_a_fork(command: list[str], _environment: dict[str, str], log: int | None = None) -> None:
    if log is not None:
        os.close(log)
    run_dir = Path(command[-1])
    forked(lambda: take_up(run_dir) if "take-up" in command else sidecar.main(run_dir, has_echo=False))


# ---- what must have come of it


def judge(runs: Path, ended: Ended) -> str:
    """Let the watcher pass, then say what is wrong; '' where nothing is."""
    try:
        return (_called(runs, ended) if ended.step is None else _taken_up(runs, ended)) or _unread(runs)
    except RuntimeError as error:
        return f"a pass ends with {str(error).strip().splitlines()[-1]}"


def own_markers(runs: Path) -> None:
    """Let the markers of a tree that was written anew name their own inodes, as far as they are whole."""
    for name in inspection.live_runs(runs):
        path = runs / LIVE / name
        if path.read_bytes().endswith(b"\n"):
            live_marker.make(path)


def _taken_up(runs: Path, ended: Ended) -> str:
    before = {run.run_id for run in started(runs)}
    passes = next_passes(runs, lambda: bool({run.run_id for run in started(runs)} - before))
    if passes == PASSES:
        return f"no trainer runs after {passes} passes: {_left(runs)}"
    table = RunTable(runs)
    run = table.get(ended.run_id)
    chain = {one.run_id for one, _ in table.history(run)}
    if wrong := _events(run, "abort", ended.cause):
        return wrong
    while True:
        children = [one for one in started(runs) if one.record.get("parent_run_id") == run.run_id]
        if len(children) != 1:
            return f"{len(children)} children continue '{run.run_id}'"
        [child] = children
        chain.add(child.run_id)
        if wrong := _child(run, child, ended):
            return wrong
        if child.run_id in before and len(_read(child, "abort")) != 1:
            return f"the 'abort' events of '{child.run_id}' are {len(_read(child, 'abort'))}"
        if child.run_id not in before:
            if strays := {one.run_id for one in started(runs)} - chain:
                return f"{sorted(strays)} train beside '{child.run_id}'"
            return "" if child.paths.live_marker.exists() else "the run that trains has no marker"
        run = child


def _child(run: Run, child: Run, ended: Ended) -> str:
    try:
        plan = json.loads(child.paths.resume_plan.read_text())
    except (OSError, ValueError):
        return f"'{child.run_id}' has no plan"
    if plan["lr_scale"]["factor"] != ended.lr_factor:
        return f"'{child.run_id}' trains at {plan['lr_scale']['factor']} of the rate"
    if plan["step"] != ended.step:
        return f"'{child.run_id}' begins at step {plan['step']}"
    told = [event for event in _read(run, "recovery") if event["outcome"] == status.RESUMED]
    told = [event for event in told if event["parent_run_id"] == run.run_id]
    if _read(child, "launched") and [event["child_run_id"] for event in told] != [child.run_id]:
        return f"'{run.run_id}' tells of {len(told)} recoveries, not of that by '{child.run_id}'"
    if run_table.recovery_of(child) is None:
        return f"'{child.run_id}' does not say what it recovers from"
    return ""


def _called(runs: Path, ended: Ended) -> str:
    """A person is called for: one event, at least one note, two at most, and nothing is started."""
    run = open_run(runs / ended.run_id)
    next_passes(runs, lambda: not run.paths.live_marker.exists())
    if run.paths.live_marker.exists():
        return "its marker stays for ever"
    if wrong := _events(run, "abort", ended.cause) or _events(run, "recovery", ended.cause):
        return wrong
    if status.current(run)["state"] != status.NEEDS_ATTENTION:
        return f"its state is {status.current(run)['state']}"
    if len(started(runs)) != 1:
        return "a trainer was started all the same"
    notes = ended.notes.read_text().splitlines() if ended.notes.exists() else []
    return "" if 1 <= len(notes) <= 2 else f"{len(notes)} notes were sent"


def _unread(runs: Path) -> str:
    """A process that goes on from a sidecar's account has to know what a reading of the whole journal says."""
    for run in started(runs):
        beginning = {} if run.parent_step is None else {"resumed_step": run.parent_step}
        if status.read_state(run) != fold(beginning, (event for event, _ in status.told(run))):
            return f"'{run.run_id}' is not what its journal says"
    return ""


def _events(run: Run, kind: str, cause: str) -> str:
    found = [event["cause"] for event in _read(run, kind)]
    return "" if found == [cause] else f"the '{kind}' events of '{run.run_id}' are {found}"


def _read(run: Run, kind: str) -> list[dict[str, Any]]:
    return [event for event, _ in journal.read(run.paths.journal) if event["event"] == kind]


def started(runs: Path) -> list[Run]:
    """Return every run that had a trainer: no trainer runs before `launched` is on the disk."""
    return [run for run in RunTable(runs).all() if _read(run, "launched")]


def _left(runs: Path) -> str:
    found = {name: open_run(runs / name) for name in RunTable(runs).names}
    shown = [f"{name}: {status.current(run)['state']}" for name, run in found.items()]
    return f"{'; '.join(shown)}; markers: {inspection.live_runs(runs)}"
