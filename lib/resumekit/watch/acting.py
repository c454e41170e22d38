"""What is done about a look: a sick run is stopped, one without a sidecar gets another, one that is over is taken up.

Each deed is safe to repeat, whatever is killed in the middle of it: the next pass finishes it. Stopping and taking up
are processes of their own, so that no run waits for another; what a run's launcher can do is left to its launcher.
Of a run that is not the caller's nothing is touched, and all processes start with the watcher's own environment.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..base import claims, journal, processes, redaction
from ..base.errors import DONE, KitError
from ..base.imports import Any, NamedTuple
from ..base.paths import LIB, RunPaths, live_folder
from ..base.values import mapping
from ..run import live_marker, own_runs, status
from ..run.run_folder import Run
from ..run.run_table import RunTable
from . import watcher_files
from .inspection import ENDED, HEALTHY, LIMIT_S, Report, TooSlow, time_limit
from .rules import SICK, WARNING
from .watcher_files import Memory, Wait

CLI = str(LIB / "resumekit_cli.py")
# A sidecar keeps account every five seconds; a launcher pauses for 32 s at most before it starts another.
LEFT_ALONE_S = 90.0
# A person is told of a run that nothing could be done about in so many passes, and for so long: under cron both are ten
# minutes. A user who has suspended a launcher on purpose is back by then, and a night is not lost.
STUCK_PASSES = 10
STUCK_S = 600.0


class Action(NamedTuple):
    """What was done about a run.

    Args:
        run_id: the run.
        words: what, in a few words, for people.
        is_done: False where it could not be done, which the words say.
    """

    run_id: str
    words: str
    is_done: bool = True


@contextlib.contextmanager
def one_pass_at_a_time(runs_dir: Path) -> Iterator[bool]:
    """Hold the watcher's lock; yields False where another pass has it. It ends with the process, children have none.

    Raises:
        OSError: the lock cannot be made; then nothing could be written down either.
    """
    folder = live_marker.make_folder(live_folder(runs_dir))
    try:
        lock = watcher_files.of(runs_dir).lock
        # For this user alone: who may open it for reading could hold it, and no pass would ever look.
        descriptor = live_marker.open_own(folder, lock, 0)
        try:
            yield claims.try_lock(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


def act(runs_dir: Path, looks: Sequence[Report], memory: Memory | None = None) -> list[Action]:
    """Do what each look asks for; what goes wrong with one run does not keep it from the next.

    Args:
        runs_dir: the folder of all runs.
        looks: what was seen of each run in this pass.
        memory: what the passes before have left; None where there were none.
    """
    memory = Memory() if memory is None else memory
    memory.forget_waits(look.run_id for look in looks if not look.stuck)
    deeds = []
    for look in looks:
        if look.is_at_rest and not _is_left_alone(RunPaths(runs_dir / look.run_id)):
            continue  # most of them, each minute
        deeds += _within_its_time(look, lambda one: _about(runs_dir, one))
        if look.stuck:
            deeds += _within_its_time(look, lambda one: _about_stuck(runs_dir, one, memory))
    return deeds


def _within_its_time(look: Report, about: Callable[[Report], Iterator[Action]]) -> list[Action]:
    """Return what is done about one run, in bounded time; whatever goes wrong in it becomes a deed that is not done."""
    deeds: list[Action] = []
    try:
        with time_limit(LIMIT_S):
            for deed in about(look):
                deeds.append(deed)
    except TooSlow:
        deeds.append(Action(look.run_id, f"nothing could be done within {LIMIT_S:.0f} s", is_done=False))
    except Exception as error:  # anything: what one folder holds must not keep the watcher from the others
        deeds.append(Action(look.run_id, f"nothing could be done: {type(error).__name__}: {error}", is_done=False))
    return deeds


def stop(runs_dir: Path, run_ids: Sequence[str], *, is_now: bool = False) -> list[Action]:
    """End runs because a person wants it: TERM, grace, KILL; all at once, waited for. Nothing takes them up again.

    Args:
        is_now: KILL, without a grace.
    """
    import subprocess  # 11 ms for every pass, and hardly ever

    from ..process.stopping import ASKED

    # What lies behind a link may be a run of another folder, which the name does not mean.
    links = {name: reason for name in run_ids if (reason := own_runs.why_link_is_not_own(RunPaths(runs_dir / name)))}
    command = [sys.executable, "-I", "-S", CLI, "stop"]
    how = ["TERM", "--now"] if is_now else ["TERM"]
    meant = [name for name in run_ids if name not in links]
    started = [(name, subprocess.Popen([*command, str(runs_dir / name), *how])) for name in meant]
    codes = [(name, process.wait()) for name, process in started]
    words = {DONE: "stopped", ASKED: "its own launcher is stopping it"}
    return [Action(name, f"left alone: {reason}", is_done=False) for name, reason in links.items()] + [
        Action(name, words.get(code, "could not be stopped"), is_done=code in words) for name, code in codes
    ]


def _about(runs_dir: Path, look: Report) -> Iterator[Action]:
    table = RunTable(runs_dir)
    run = table.get(look.run_id)
    if look.verdict not in (SICK, WARNING, HEALTHY, ENDED) and look.state not in status.LIVE and not look.is_unread:
        return  # paused, remote, unknown: nothing to do here; one whose sidecar is behind may need another
    if run is None:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(runs_dir / look.run_id)
            return  # there is something, which cannot be read now
        if live_marker.carriers(runs_dir / look.run_id):
            return  # its folder was moved or removed, and it trains on: the marker is all that says so
        live_marker.remove(RunPaths(runs_dir / look.run_id))
        return
    if reason := own_runs.why_marked_run_is_not_own(run.paths):
        yield Action(look.run_id, f"left alone: {reason}")
        return
    if not run.is_ours or not run.config:
        return  # what it was told to do cannot be read now
    if look.verdict == SICK and (reason := live_marker.why_not_made_here(live_marker.of(run.paths))):
        yield Action(look.run_id, f"left alone: {reason}")
        return
    if look.is_unread:
        if _is_of_this_host(run) and _is_left_alone(run.paths) and _start_sidecar(run):
            yield Action(run.run_id, "its journal has been read by no sidecar: one of its own does it now")
        return
    state = status.read_state(run)
    view = status.look(run, state)
    if look.state in status.LIVE:
        yield from _about_live(run, state, view, look)
    elif look.verdict == SICK:
        yield from _about_over(run, state, view)
    elif look.state == status.NEEDS_ATTENTION and _was_marked_here(run):
        yield from _about_untold(run, view, "it needs attention")
    elif "launched" in state and "exited" not in state:
        if view.launcher == processes.DEAD:
            _start_sidecar(run)  # its end was not written down; the sidecar that does so takes the marker
    elif look.state == status.ENDED_EARLY and run.setting("recover", "enabled") is True and _was_marked_here(run):
        yield from _about_untold(run, view, "it ended early")
    elif look.verdict == ENDED and status.name_of(run, state, view) == look.state and not _may_start(run, look):
        live_marker.remove(run.paths)


def _is_of_this_host(run: Run) -> bool:
    """Whether a run was started on this host and in this container, by its record alone."""
    is_here = run.record.get("boot_id") == processes.boot_id() or run.record.get("host") == processes.host_name()
    return is_here and run.is_in_our_namespace


def _was_marked_here(run: Run) -> bool:
    return live_marker.was_made_here(live_marker.of(run.paths))


def _about_stuck(runs_dir: Path, look: Report, memory: Memory) -> Iterator[Action]:
    """Count the passes in which nothing could be done about a run; have a person told of it, once."""
    run = RunTable(runs_dir).get(look.run_id)
    if run is None or not run.config or own_runs.why_marked_run_is_not_own(run.paths) or not _was_marked_here(run):
        return
    now_s = time.time()
    wait = memory.waits.get(run.run_id, Wait(now_s))
    wait = wait._replace(passes=wait.passes + 1)
    # A wall clock that was set back begins the wait anew.
    wait = wait if wait.since_s <= now_s else Wait(now_s, wait.passes, wait.is_told)
    # What could not be written down of a run that is over is tried again; one that lives is told of once.
    is_due = not wait.is_told or (look.state in status.TAKEN_UP and wait.passes % STUCK_PASSES == 0)
    if is_due and wait.passes >= STUCK_PASSES and now_s - wait.since_s >= STUCK_S:
        reason = f"the watcher could do nothing about it in {wait.passes} passes: {look.stuck}"
        _start([sys.executable, "-I", CLI, "escalate", str(run.paths.run_dir), reason], dict(os.environ), _log_of(run))
        yield Action(run.run_id, f"a person is told: {reason}")
        wait = wait._replace(is_told=True)
    memory.waits[run.run_id] = wait


def _may_start(run: Run, look: Report) -> bool:
    """Whether a shim may still be about to start its trainer, though its launcher is dead."""
    if look.state != "never_started":
        return False
    return time.time() - os.stat(run.paths.run_json).st_mtime < LEFT_ALONE_S


def _about_live(run: Run, state: dict[str, Any], view: status.View, look: Report) -> Iterator[Action]:
    if view.end is not None:
        return  # it has ended since: the next pass sees what it is now
    if (view.launcher == processes.DEAD or _is_left_alone(run.paths)) and _start_sidecar(run):
        yield Action(run.run_id, "it had no sidecar any more: it has one now")
    _note_warnings(run, state, look)
    first = next((one for one in look.findings if one.verdict == SICK), None)
    if "aborted" not in state and first is None:
        return
    from ..process import aborting  # late: most runs of a pass are well

    if "aborted" in state:
        aborting.stop_aborted(run.paths.run_dir)  # again, if the process that began it was killed
    elif first is not None and aborting.abort(run, first.cause, first.evidence, first_bad_step=first.first_bad_step):
        yield Action(run.run_id, f"stopping it: {first.cause}: {first.evidence}")


def _note_warnings(run: Run, state: dict[str, Any], look: Report) -> None:
    """Write each kind of warning down once, where runs.sh shows it: what cron says is not read."""
    warnings = [one for one in look.findings if one.verdict == WARNING]
    if all(one.cause in state.get("warned_of", ()) for one in warnings):
        return
    with claims.locked(run.paths.lock):  # another watcher, the launcher's or cron's, looks at this moment
        warned_of = status.read_state(run).get("warned_of", ())
        for one in warnings:
            if one.cause not in warned_of:
                journal.append(run.paths.journal, "warning", run.run_id, kind=one.cause, message=one.evidence)


def _about_over(run: Run, state: dict[str, Any], view: status.View) -> Iterator[Action]:
    if view.launcher != processes.DEAD:
        return  # its launcher takes it up, or cannot be seen from here
    if "exited" not in state:
        _start_sidecar(run)
    if run.setting("recover", "enabled") is True:
        # What it says goes where a user may look for it; what stands against it for good is in the journal.
        _take_up(run)
        yield Action(run.run_id, f"taking it up, or '{_log_path(run)}' says why not")
    elif "exited" in state:
        live_marker.remove(run.paths)  # it has been said; recover.enabled is false


def _about_untold(run: Run, view: status.View, what: str) -> Iterator[Action]:
    """Tell whom `notify.command` tells, where the process that was to do it was killed before the marker went."""
    if view.launcher == processes.DEAD:
        _take_up(run)
        yield Action(run.run_id, f"{what}: telling it again")


def _take_up(run: Run) -> None:
    """Start the process that takes a run up. It sets the recorded environment itself, once it trusts the record."""
    _start([sys.executable, "-I", CLI, "take-up", str(run.paths.run_dir)], dict(os.environ), _log_of(run))


def environment_of(run: Run) -> dict[str, str]:
    """Return the environment that a run was started with, as it is recorded; of `trainer.env` what is set here.

    So is what a scheduler says of its job: that of the caller, never the record's, with which srun would start in
    another allocation. PATH, PYTHON and LD_PRELOAD are in it: only for a run whose record is known to be the caller's.
    """
    recorded = run.record.get("environment")
    kept = {k: v for k, v in mapping(mapping(recorded).get("values")).items() if redaction.is_recorded_variable(k)}
    environment = {k: v for k, v in kept.items() if isinstance(v, str) and not redaction.is_of_a_job(k)}
    passed = redaction.passed_variables(recorded)
    here = {k: v for k, v in os.environ.items() if k in passed or redaction.is_of_a_job(k)}
    return {"PATH": os.defpath, **environment, **here}


def _start_sidecar(run: Run) -> bool:
    """Start a sidecar for a run that has none; whether it had none."""
    descriptor = claims.open_lock(run.paths.status_lock)
    try:
        is_free = claims.try_lock(descriptor)
    finally:
        os.close(descriptor)
    if is_free:
        _start([sys.executable, "-I", "-S", CLI, "sidecar", str(run.paths.run_dir)], dict(os.environ))
    return is_free


def _is_left_alone(paths: RunPaths) -> bool:
    """Whether no sidecar has kept account of a run for longer than its launcher would need to start another sidecar."""
    for path in (paths.sidecar_state, paths.run_json):
        with contextlib.suppress(OSError):
            return time.time() - os.stat(path).st_mtime > LEFT_ALONE_S
    return False


def _log_path(run: Run) -> Path:
    return watcher_files.of(run.paths.run_dir.parent).recovery_log


def _log_of(run: Run) -> int | None:
    """Open the file that takes what recoveries without a launcher say; None where none can be written."""
    path = watcher_files.of(run.paths.run_dir.parent, create=True).recovery_log
    try:
        return watcher_files.open_log(path)
    except KitError:
        return None


def _start(command: list[str], environment: dict[str, str], log: int | None = None) -> None:
    """Start a process that outlives the watcher: in a session of its own, with none of its descriptors."""
    import subprocess  # as above

    try:
        subprocess.Popen(
            command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if log is None else log, start_new_session=True,
        )  # fmt: skip
    finally:
        if log is not None:
            os.close(log)
