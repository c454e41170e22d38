"""The process between the launcher and the trainer: starts it in a session of its own, waits, writes exit.json.

It is why the trainer's end is known when the launcher is gone. It knows nothing else, and nothing can make it stop
but KILL. Run by path with `python -I -S`: it imports only the standard library, `basics` and one module beside it.

    python -I -S lib/resumekit/supervision/shim.py RUN_DIR LAUNCHER_PID [HEAD_DIR] -- COMMAND ARG...
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # run by path: the package is found beside this file, last on the path
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    __package__ = "resumekit.supervision"

from resumekit.basics import journal, processes
from resumekit.basics.errors import FAILED, KitError, Refused
from resumekit.basics.files import fsync_directory, temp_path, to_json, utc_now, write_atomic
from resumekit.basics.paths import RunPaths
from resumekit.supervision import memory_kills, session_lock

# The launcher's background jobs ignore INT and QUIT, Python ignores PIPE and XFSZ: a trainer must not inherit that.
_TRAINER_DEFAULTS = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ,
)  # fmt: skip
# More than exit.json ever has.
_END_BYTES = 512
# What a trainer that was killed ends with; a shell around it hands it on as a code.
_KILLED = 128 + signal.SIGKILL
_SHIM_IGNORES = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Start the trainer and outlive it.

    Args:
        argv: RUN_DIR LAUNCHER_PID [HEAD_DIR] -- COMMAND ARG...; HEAD_DIR is the run that this one continues, if any.

    Returns:
        The trainer's exit code, or 128 + n when signal n ended it.
    """
    run = RunPaths(Path(argv[0]))
    launcher_pid, split = int(argv[1]), argv.index("--")
    head, command = "".join(argv[2:split]), argv[split + 1 :]
    for number in _SHIM_IGNORES:
        signal.signal(number, signal.SIG_IGN)
    reserved = _reserve(run)
    started = time.monotonic()
    # Blocked, not ignored: a signal that comes before the exec waits for it, an ignored one would be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINER_DEFAULTS)
    try:
        pid = os.fork()
    except OSError as error:
        _say(f"no process for the trainer: {error.strerror} (see 'ulimit -u' and the memory that is left)")
        _write_end(run, reserved, {"code": FAILED, "signal": None, "pid": None, "at": utc_now(), "elapsed_s": 0.0})
        return FAILED
    if pid == 0:
        _become_trainer(run, launcher_pid, head, command, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    counter = memory_kills.counter()  # the trainer is on its way already, and does not wait for this
    before = memory_kills.kills(counter)
    _, status = os.waitpid(pid, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = 128 + number if number else os.waitstatus_to_exitcode(status)
    end = {"code": code, "signal": number, "pid": pid, "at": utc_now(), "elapsed_s": time.monotonic() - started}
    if code == _KILLED and before is not None and (memory_kills.kills(counter) or 0) > before:
        end["oom_kill"] = True  # evidence, and only where there is some: others send KILL too
    _write_end(run, reserved, end)
    return code


def _become_trainer(run: RunPaths, launcher_pid: int, head: str, command: list[str], mask: set[signal.Signals]) -> None:
    """In the child: a new session, the `launched` event, then the trainer. Never returns.

    The event is on disk before the trainer's first instruction: no trainer ever runs that nobody knows of.
    """
    try:
        os.setsid()
        run_id = os.environ["RESUMEKIT_RUN_ID"]
        own = processes.identify(os.getpid(), os.environ[processes.TOKEN_VARIABLE])
        launcher, shim = processes.identify(launcher_pid), processes.identify(os.getppid())
        with _claim(head, run_id):
            session_lock.take(run.session_lock)  # before `launched`: a trainer that is known of is known by it too
            journal.append(
                run.journal, "launched", run_id, trainer=own.as_fields(), shim=shim.as_fields(),
                launcher=launcher.as_fields() if launcher else None,
            )  # fmt: skip
            fsync_directory(run.journal.parent)  # the journal's first event: its name is new
        for number in _TRAINER_DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a stop that came since `launched` ends it here
        os.execvp(command[0], command)
    except (OSError, ValueError) as error:  # ValueError: an empty name
        reason = getattr(error, "strerror", None) or "no such name"
        _say(f"the trainer could not be started: {reason}: '{command[0]}'")
    except KitError as error:
        _say(str(error))
        os._exit(error.exit_code)
    finally:
        os._exit(127)


@contextlib.contextmanager
def _claim(head: str, run_id: str) -> Iterator[None]:
    """Hold the lock of the head that is continued, if there is one, and make sure that it still is ours.

    A launcher that is killed before its trainer has started counts as dead, and another one may take its claim; between
    that and a trainer of ours stands this lock.
    """
    if not head:
        yield
        return
    from resumekit.basics import claims  # only a continuation needs it

    parent = RunPaths(Path(head))
    with claims.locked(parent.lock):
        if not claims.still_continues(parent, run_id):
            raise Refused(f"'{parent.run_dir.name}' has been taken over by another continuation; nothing was started")
        yield


def _reserve(run: RunPaths) -> tuple[Path, int] | None:
    """Set space aside for exit.json, so that a disk that fills up meanwhile does not keep the end from being known.

    Returns:
        (temp name, open descriptor), or None if there is no space now.
    """
    temp = temp_path(run.exit_json)
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        os.write(descriptor, b" " * _END_BYTES)
        return temp, descriptor
    except OSError:
        return None


def _write_end(run: RunPaths, reserved: tuple[Path, int] | None, end: dict[str, object]) -> None:
    """Write exit.json, into the space that was set aside; else a full disk is waited for: nobody else knows this."""
    data = to_json(end)
    with contextlib.suppress(OSError):
        if reserved and len(data) <= _END_BYTES:
            temp, descriptor = reserved
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
            os.replace(temp, run.exit_json)
            fsync_directory(run.exit_json.parent)
            return
    for pause_s in (0.1, 0.3, 1.0, 3.0, 10.0, 0.0):
        try:
            write_atomic(run.exit_json, data, durable=True)
            return
        except OSError as error:
            if not os.path.isdir(run.run_dir):
                return  # the folder was removed: there is nowhere to write it, and nothing to wait for
            _say(f"exit.json could not be written: {error.strerror}")
            time.sleep(pause_s)


def _say(sentence: str) -> None:
    """Into the trainer's log; if that cannot be written either, there is nobody to tell."""
    with contextlib.suppress(OSError):
        os.write(2, f"resumekit: {sentence}\n".encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    # Not SystemExit: a failed flush of the log at exit would replace the trainer's code by 120.
    os._exit(main(sys.argv[1:]))
