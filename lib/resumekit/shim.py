"""The process between the launcher and the trainer: starts it in a session of its own, waits, writes exit.json.

It is why the trainer's end is known when the launcher is gone. It knows nothing else, and nothing can make it stop
but KILL. Run by path with `python -I -S`: it imports only the standard library and two modules beside it.

    python -I -S lib/resumekit/shim.py RUN_DIR LAUNCHER_PID -- COMMAND ARG...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run by path: the package is found beside this file, last on the path
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    __package__ = "resumekit"

from resumekit import journal, processes
from resumekit.files import to_json, utc_now, write_atomic
from resumekit.paths import RunPaths

# The launcher's background jobs ignore INT and QUIT, Python ignores PIPE and XFSZ: a trainer must not inherit that.
_TRAINER_DEFAULTS = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ,
)  # fmt: skip
_SHIM_IGNORES = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Start the trainer and outlive it.

    Args:
        argv: RUN_DIR LAUNCHER_PID -- COMMAND ARG...

    Returns:
        The trainer's exit code, or 128 + n when signal n ended it.
    """
    run = RunPaths(Path(argv[0]))
    launcher_pid, command = int(argv[1]), argv[3:]
    for number in _SHIM_IGNORES:
        signal.signal(number, signal.SIG_IGN)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become_trainer(run, launcher_pid, command)
    _, status = os.waitpid(pid, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = 128 + number if number else os.waitstatus_to_exitcode(status)
    end = {"code": code, "signal": number, "pid": pid, "at": utc_now(), "elapsed_s": time.monotonic() - started}
    _write_end(run, end)
    return code


def _become_trainer(run: RunPaths, launcher_pid: int, command: list[str]) -> None:
    """In the child: a new session, the `launched` event, then the trainer. Never returns.

    The event is on disk before the trainer's first instruction: no trainer ever runs that nobody knows of.
    """
    try:
        os.setsid()
        run_id = os.environ["RESUMEKIT_RUN_ID"]
        own = processes.identify(os.getpid(), os.environ[processes.TOKEN_VARIABLE])
        launcher, shim = processes.identify(launcher_pid), processes.identify(os.getppid())
        journal.append(
            run.journal, "launched", run_id, trainer=own.as_fields(), shim=shim.as_fields(),
            launcher=launcher.as_fields() if launcher else None,
        )  # fmt: skip
        for number in _TRAINER_DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"resumekit: the trainer could not be started: {error} (command '{command[0]}')", file=sys.stderr)
        sys.stderr.flush()
    finally:
        os._exit(127)


def _write_end(run: RunPaths, end: dict[str, object]) -> None:
    """Write exit.json; a full disk is waited for, since nobody else knows this."""
    for pause_s in (0.1, 0.3, 1.0, 3.0, 10.0, 0.0):
        try:
            write_atomic(run.exit_json, to_json(end), durable=True)
            return
        except OSError as error:
            print(f"resumekit: exit.json could not be written: {error.strerror}", file=sys.stderr)
            time.sleep(pause_s)


if __name__ == "__main__":
    # Not SystemExit: a failed flush of the log at exit would replace the trainer's code by 120.
    os._exit(main(sys.argv[1:]))
