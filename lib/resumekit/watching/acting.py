"""What is done about a look: a sick run is stopped, one without a sidecar gets another, one that is over is taken up.

Each deed is safe to repeat, whoever is killed in the middle of it: the next pass finishes it. Stopping and taking up
are processes of their own, so that no run waits for another; what a run's launcher can do is left to its launcher.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..basics import claims, journal, ownership, processes, recorded_environment
from ..basics.errors import DONE
from ..basics.paths import LIB, RunPaths
from ..run_folder import live_marker, status, trust
from ..run_folder.runs import Run, RunTable
from ..supervision import aborting
from .abort_rules import SICK, WARNING
from .watch import ENDED, LIMIT_S, WELL, Look, TooSlow, time_limit

CLI = str(LIB / "resumekit_cli.py")
LAUNCHER = str(LIB / "launcher.sh")
# A sidecar keeps account every five seconds; a launcher pauses for 32 s at most before it starts another.
LEFT_ALONE_S = 90.0
MAX_LOG_BYTES = 1 << 20


class Deed(NamedTuple):
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
    folder = runs_dir / ".live"
    folder.mkdir(exist_ok=True)
    # Another user's watcher has other runs.
    descriptor = claims.open_lock(folder / f".watch.{os.geteuid()}.lock")
    try:
        yield claims.try_lock(descriptor)
    finally:
        os.close(descriptor)


def act(runs_dir: Path, looks: Sequence[Look]) -> list[Deed]:
    """Do what each look asks for; what goes wrong with one run keeps nobody from the next."""
    deeds = []
    for look in looks:
        if look.is_at_rest and not _is_left_alone(RunPaths(runs_dir / look.run_id)):
            continue  # most of them, each minute
        try:
            with time_limit(LIMIT_S):
                deeds += _about(runs_dir, look)
        except TooSlow:
            deeds.append(Deed(look.run_id, f"nothing could be done within {LIMIT_S:.0f} s", is_done=False))
        except Exception as error:  # anything: what one folder holds must not keep anybody from the others
            deeds.append(Deed(look.run_id, f"nothing could be done: {type(error).__name__}: {error}", is_done=False))
    return deeds


def stop(runs_dir: Path, run_ids: Sequence[str]) -> list[Deed]:
    """End runs because a person wants it: TERM, grace, KILL; all at once, waited for. Nothing takes them up again."""
    import subprocess  # 11 ms for every pass, and hardly ever

    command = [sys.executable, "-I", "-S", CLI, "stop"]
    started = [(name, subprocess.Popen([*command, str(runs_dir / name), "TERM"])) for name in run_ids]
    codes = [(name, process.wait()) for name, process in started]
    return [
        Deed(name, "stopped" if code == DONE else "could not be stopped", is_done=code == DONE) for name, code in codes
    ]


def _about(runs_dir: Path, look: Look) -> Iterator[Deed]:
    table = RunTable(runs_dir)
    run = table.get(look.run_id)
    if look.verdict not in (SICK, WARNING, WELL, ENDED):
        return  # paused, remote, unknown: nobody's business here
    if run is None:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(runs_dir / look.run_id)
            return  # there is something, which cannot be read now
        (runs_dir / ".live" / look.run_id).unlink(missing_ok=True)
        return
    if not run.is_ours or not run.config:
        return  # what it was told to do cannot be read now
    if not ownership.is_callers(run.paths.run_dir, stat.S_IFDIR):
        is_link = os.path.islink(run.paths.run_dir)
        words = "is a link" if is_link else "belongs to another user"
        yield Deed(look.run_id, f"left alone: its folder {words}")
        return
    if look.verdict == SICK and not live_marker.was_made_here(run.paths.live_marker):
        yield Deed(look.run_id, "left alone: its marker in .live was not made by a launcher here, but copied")
        return
    state = status.read_state(run)
    view = status.look(run, state)
    if look.state in status.LIVE:
        yield from _about_live(run, state, view, look)
    elif look.verdict == SICK:
        yield from _about_over(run, state, view)
    elif look.state == status.NEEDS_ATTENTION and live_marker.was_made_here(run.paths.live_marker):
        yield from _about_untold(run, view)
    elif "launched" in state and "exited" not in state:
        if view.launcher == processes.DEAD:
            _start_sidecar(run)  # its end was written down by nobody; whoever does so takes the marker
    elif look.verdict == ENDED and status.name_of(run, state, view) == look.state and not _may_start(run, look):
        run.paths.live_marker.unlink(missing_ok=True)


def _may_start(run: Run, look: Look) -> bool:
    """Whether a shim may still be about to start its trainer, though its launcher is dead."""
    if look.state != "never_started":
        return False
    return time.time() - os.stat(run.paths.run_json).st_mtime < LEFT_ALONE_S


def _about_live(run: Run, state: dict[str, Any], view: status.View, look: Look) -> Iterator[Deed]:
    if view.end is not None:
        return  # it has ended since: the next pass sees what it is now
    if (view.launcher == processes.DEAD or _is_left_alone(run.paths)) and _start_sidecar(run):
        yield Deed(run.run_id, "nobody follows it any more: a sidecar of its own does now")
    _note_warnings(run, state, look)
    first = next((one for one in look.findings if one.verdict == SICK), None)
    if "aborted" in state:
        aborting.stop_aborted(run.paths.run_dir)  # again, if whoever began it was killed
    elif first is not None and aborting.abort(run, first.cause, first.evidence, first_bad_step=first.first_bad_step):
        yield Deed(run.run_id, f"stopping it: {first.cause}: {first.evidence}")


def _note_warnings(run: Run, state: dict[str, Any], look: Look) -> None:
    """Write each kind of warning down once, where runs.sh shows it: nobody reads what cron says."""
    for one in look.findings:
        if one.verdict == WARNING and one.cause not in state.get("warned_of", ()):
            journal.append(run.paths.journal, "warning", run.run_id, kind=one.cause, message=one.evidence)


def _about_over(run: Run, state: dict[str, Any], view: status.View) -> Iterator[Deed]:
    if view.launcher != processes.DEAD:
        return  # its launcher takes it up, or cannot be seen from here
    if "exited" not in state:
        _start_sidecar(run)
    if run.setting("recover", "enabled") is True:
        # What it says goes where somebody may look for it; what stands against it for good is in the journal.
        _start(["bash", LAUNCHER, "recover", str(run.paths.run_dir)], environment_of(run), _log_of(run))
        yield Deed(run.run_id, f"taking it up, or .live/{_log_path(run).name} in the runs folder says why not")
    elif "exited" in state:
        run.paths.live_marker.unlink(missing_ok=True)  # it has been said; recover.enabled is false


def _about_untold(run: Run, view: status.View) -> Iterator[Deed]:
    """Tell whom `notify.command` tells, where whoever was to do it was killed before the marker went."""
    if view.launcher == processes.DEAD:
        _start(["bash", LAUNCHER, "recover", str(run.paths.run_dir)], environment_of(run), _log_of(run))
        yield Deed(run.run_id, "it needs attention: telling it again")


def environment_of(run: Run) -> dict[str, str]:
    """Return the environment that a run was started with, as it is recorded; of `trainer.env` what is set here.

    Only where the record is the caller's own word: a PATH in another user's would choose what is executed. Else the
    environment here; `recover` says then why the run is not taken up.
    """
    examined = trust.examine(run.paths.run_dir)
    if not examined.standing.is_callers:
        return dict(os.environ)
    run = examined.run
    recorded = run.record.get("environment")
    values = recorded.get("values") if isinstance(recorded, dict) else None
    kept = values if isinstance(values, dict) else {}
    environment = {name: kept[name] for name in recorded_environment.NAMES if isinstance(kept.get(name), str)}
    names = recorded_environment.passed_names(recorded)
    return {"PATH": os.defpath, **environment, **{name: os.environ[name] for name in names if name in os.environ}}


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
    """Whether nobody has kept account of a run for longer than its launcher would need to start another sidecar."""
    for path in (paths.sidecar_state, paths.run_json):
        with contextlib.suppress(OSError):
            return time.time() - os.stat(path).st_mtime > LEFT_ALONE_S
    return False


def _log_path(run: Run) -> Path:
    return run.paths.live_marker.with_name(f".recover.{os.geteuid()}.log")


def _log_of(run: Run) -> int:
    """Open the file beside the markers that takes what recoveries without a launcher say; a large one begins anew."""
    path = _log_path(run)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if os.fstat(descriptor).st_size > MAX_LOG_BYTES:
        os.ftruncate(descriptor, 0)
    return descriptor


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
