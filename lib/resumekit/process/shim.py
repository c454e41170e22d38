"""The process between the launcher and the trainer: starts it in a session of its own, waits, writes exit.json.

It is why the trainer's end is known when the launcher is gone. Nothing can make it stop but KILL. It has a session of
its own and blocks signals: one that comes to it was sent to the whole job, which it journals (`signalled`). It takes in
what its trainer leaves behind, and where that is more than nothing, `training_end` says when the training is over.
Run by path with `python -I -S`: it imports only the standard library, `base` and one module beside it.

    python -I -S lib/resumekit/process/shim.py RUN_DIR LAUNCHER_PID [MADE[HEAD_DIR]] -- COMMAND ARG...

It opens the file that RESUMEKIT_OUTPUT_LOG names, which is not handed on, for what it and the trainer say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # run by path: the package is found beside this file, last on the path
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    __package__ = "resumekit.process"

from resumekit.base import journal, ownership, process_details, processes
from resumekit.base.errors import FAILED, KitError, Refused
from resumekit.base.files import (
    TempFile,
    UnreadableFile,
    fsync_directory,
    read_end,
    read_json,
    to_json,
    utc_now,
    write_atomic,
)
from resumekit.base.imports import Any
from resumekit.base.ownership import MadeFolder
from resumekit.base.paths import RunPaths
from resumekit.base.terminal import plain
from resumekit.process import session_lock

# The launcher's background jobs ignore INT and QUIT, Python ignores PIPE and XFSZ: a trainer must not inherit that.
_TRAINER_DEFAULTS = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGUSR1,
    signal.SIGUSR2,
)  # fmt: skip
# What it blocks, and waits for: a child's end, and what may be sent to a whole job.
_OF_THE_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_AWAITED = (signal.SIGCHLD, *_OF_THE_JOB)
# A scheduler may repeat its signal every second.
_SAY_AGAIN_S = 1.0
_OUTPUT_LOG = "RESUMEKIT_OUTPUT_LOG"
_ROOT_RUN_ID = "RESUMEKIT_ROOT_RUN_ID"
_RANK_ERROR = "TORCHELASTIC_ERROR_FILE"
_SET_CHILD_SUBREAPER = 36  # prctl(2)
# More than exit.json ever has.
_END_BYTES = 2048
_TERMINATED = 128 + signal.SIGTERM
# What a trainer that was killed ends with; a shell around it hands it on as a code.
_KILLED = 128 + signal.SIGKILL
_NOT_STARTED = 127
# One of these is in the last words of what died, and is rare in those of others: then all of it is read (log_end).
_LAST_WORDS = (
    b"Error", b"CUDA error", b"Traceback", b"Interrupt", b"Killed", b"Segmentation fault", b"Aborted", b"Bus error",
    b"Illegal instruction", b"Fatal Python", b"terminate called", b"exit status", b"return code", b"exitcode",
    b"Signals.SIG", b"Received SIGTERM",
)  # fmt: skip
_TAIL_BYTES = 16384
_SHIM_IGNORES = (*_OF_THE_JOB, signal.SIGQUIT, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Start the trainer and outlive it.

    Args:
        argv: RUN_DIR LAUNCHER_PID [MADE[HEAD_DIR]] -- COMMAND ARG...; MADE is by what the run's folder is known
            (`ownership.MadeFolder`), HEAD_DIR the absolute path of the run that this one continues, if any.

    Returns:
        The trainer's exit code, or 128 + n when signal n ended it; 127 where it could not be started, 1 where its last
        words belie its code 0.
    """
    run = RunPaths(Path(argv[0]))
    log = os.environ.pop(_OUTPUT_LOG, None)
    launcher_pid, split = int(argv[1]), argv.index("--")
    known_by, slash, rest = "".join(argv[2:split]).partition("/")
    made, head, command = ownership.made_folder_from_text(known_by), slash + rest, argv[split + 1 :]
    if not _speak_into(log, run, made):
        return _NOT_STARTED
    _name_root(run)
    os.environ[_RANK_ERROR] = str(run.rank_error)  # torchrun's own; it names another one to each of its ranks
    for number in _SHIM_IGNORES:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # the leader of a group cannot; then a signal to that group is taken for more
        os.setsid()
    reserved = _reserve(run)
    started = time.monotonic()
    # Blocked, not ignored: a signal that comes before the exec waits for it, an ignored one would be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_TRAINER_DEFAULTS, signal.SIGCHLD))
    # Before the fork: a wrapper that ends at once leaves its training to this process, not to init.
    is_subreaper = _become_subreaper()
    try:
        pid = os.fork()
    except OSError as error:
        _say(f"no process for the trainer: {error.strerror} (see 'ulimit -u' and the memory that is left)")
        _write_end(run, reserved, {"code": FAILED, "signal": None, "pid": None, "at": utc_now(), "elapsed_s": 0.0})
        return FAILED
    if pid == 0:
        _become_trainer(run, launcher_pid, made, head, command, mask)
    leader = _leader(log or str(run.output_log), pid)
    counter = process_details.oom_kill_counter()  # the trainer is on its way already, and does not wait for this
    before = process_details.oom_kills(counter)
    job = _Job(run)
    end = process_details.end_of(job.wait_for(pid)) | {"pid": pid}
    end = _outlasted(run, leader, end, job, is_subreaper=is_subreaper)
    end |= {"at": utc_now(), "elapsed_s": time.monotonic() - started}
    is_killed = end["code"] == _KILLED or (end.get("failed_rank") or {}).get("signal") == signal.SIGKILL
    if is_killed and before is not None and (process_details.oom_kills(counter) or 0) > before:
        end["oom_kill"] = True  # evidence, and only where there is some: others send KILL too
    _write_end(run, reserved, end)
    return FAILED if end["code"] == 0 and "error" in end else int(end["code"])


def _name_root(run: RunPaths) -> None:
    """Tell the trainer with which run its lineage began; one that another run has handed down is none of this one's.

    The launcher cannot: one from before this variable may still be at work when a recovery starts this file.
    """
    os.environ.pop(_ROOT_RUN_ID, None)
    with contextlib.suppress(OSError, UnreadableFile, KeyError, TypeError, ValueError):
        os.environ[_ROOT_RUN_ID] = read_json(run.run_json)["root_run_id"]


def _leader(log: str, pid: int) -> processes.Identity | None:
    """Return the trainer's identity, known as other commands know it."""
    known = processes.identify(pid, os.environ.get(processes.TOKEN_VARIABLE))
    return known and known._replace(ties=processes.Ties(log, processes.identify(os.getpid())))


def _speak_into(log: str | None, run: RunPaths, made: MadeFolder | None) -> bool:
    """Make the log both outputs of this process and of the trainer; False, and a sentence, where it is not our own."""
    try:
        ownership.refuse_exchanged(run.run_dir, made)
        if log is None:
            return True
        descriptor = _opened(log, run, made)
        os.set_blocking(descriptor, True)  # as the trainer expects its output
        for number in (1, 2):
            os.dup2(descriptor, number)
            os.set_inheritable(number, True)  # it has that number already where the launcher's was closed
    except ownership.Exchanged as error:
        _say(f"{error}; the trainer was not started")
        return False
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        _say(f"'{log}' cannot take the trainer's output, and it was not started: {reason}")
        return False
    if descriptor > 2:
        os.close(descriptor)
    return True


def _opened(log: str, run: RunPaths, made: MadeFolder | None) -> int:
    """Return the log's descriptor, opened in the folder that the launcher has made, and in no other."""
    folder = os.open(run.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if made is not None and not made.is_at(os.fstat(folder)):
            raise ownership.exchanged(run.run_dir)
        # O_NONBLOCK: a FIFO under its name would wait for a reader for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(log.removeprefix(f"{run.run_dir}/"), flags, dir_fd=folder)
        owners = {os.geteuid()} if made is None else {os.geteuid(), os.fstat(folder).st_uid}
    finally:
        os.close(folder)
    if reason := _why_not_own(os.fstat(descriptor), owners):
        raise OSError(0, reason)
    return descriptor


def _why_not_own(found: os.stat_result, owners: set[int]) -> str | None:
    """Return why a file is not the one that the launcher has made; None for its own.

    Args:
        owners: the caller, and who owns the folder that the launcher has made: a drive that shows every file as one
            user's (a squashed root's, CIFS) shows that folder as theirs too.
    """
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        return "it is no regular file, or has another name"
    if found.st_uid not in owners:
        return f"it belongs to another user (uid {found.st_uid})"
    return None


class _Job:
    """The shim's children, and the signals that were sent to the whole job that it is a part of."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self.ended: dict[int, int] = {}
        self.seen: dict[int, float] = {}
        self.written_bytes: int | None = None
        self.ended_s: float | None = None

    def wait_for(self, pid: int) -> int:
        """Return the wait status of a child, once it has ended, and note when, and how much it has written; others are
        taken in meanwhile.
        """
        while pid not in self.ended:
            self._take_signal(signal.sigwaitinfo(_AWAITED))
            self.ended_s = time.monotonic()
            self.written_bytes = process_details.written_bytes(pid)
            self.ended.update(self.reap() or {})
        return self.ended[pid]

    def wait(self, timeout_s: float) -> None:
        """Sleep for so long at most; a child's end or a signal to the job ends it."""
        self._take_signal(signal.sigtimedwait(_AWAITED, timeout_s))

    def reap(self) -> dict[int, int] | None:
        """Take in the children that have ended, as pid -> wait status; None where there is no child at all."""
        ended: dict[int, int] = {}
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = found[1]
        except ChildProcessError:
            return ended or None
        return ended

    def _take_signal(self, received: signal.struct_siginfo | None) -> None:
        if received is None or received.si_signo == signal.SIGCHLD:
            return
        now, last = time.monotonic(), self.seen.get(received.si_signo)
        self.seen[received.si_signo] = now
        if last is not None and now - last < _SAY_AGAIN_S:
            return
        with contextlib.suppress(OSError):
            if os.path.getsize(self._run.journal):  # `launched` is the first event of a run with a trainer
                name = signal.Signals(received.si_signo).name.removeprefix("SIG")
                journal.append(self._run.journal, "signalled", os.environ.get("RESUMEKIT_RUN_ID"), by=name)


def _outlasted(
    run: RunPaths, leader: processes.Identity | None, end: dict[str, Any], job: _Job, *, is_subreaper: bool
) -> dict[str, Any]:
    """Return how the training has ended whose first process has: most leave nothing behind, and pay for no more."""
    found = job.reap()
    has_children = found is not None
    job.ended.update(found or {})
    beside = {pid: status for pid, status in job.ended.items() if pid != end["pid"]}
    is_left = has_children if is_subreaper or leader is None else bool(processes.session_members(leader))
    is_left = is_left or (end["signal"] is not None and bool(beside))
    if not is_left and not _may_mean_another(run, leader, end):
        return end
    with contextlib.suppress(Exception):  # whatever it is: the end has to be written down
        from resumekit.process import training_end  # late: rare, and 30 ms

        if is_left and leader is not None:
            shim_view = training_end.ShimView(
                seen=job.seen, wait=job.wait, reap=job.reap, written_bytes=job.written_bytes, ended_s=job.ended_s,
                beside=beside,
            )  # fmt: skip
            return training_end.outlast(run.run_dir, leader, end, shim_view)
        return training_end.judged(run.run_dir, end)
    return end


def _may_mean_another(run: RunPaths, leader: processes.Identity | None, end: dict[str, Any]) -> bool:
    """Whether a trainer may have ended otherwise than its code says: a wrapper's code, or code 0 behind an error."""
    if end["code"] in process_details.UNCLEAR_CODES:
        return True
    if end["code"] == _TERMINATED and end["signal"] is None and "SLURM_JOB_ID" in os.environ:
        return True  # srun's own: it may have ended its other tasks, because one had failed
    if end["code"] != 0:
        return False
    ties = leader.ties if leader else None
    with contextlib.suppress(ValueError, OSError):
        tail, _ = read_end(Path(ties.output_log) if ties else run.output_log, _TAIL_BYTES)
        return any(word in tail for word in _LAST_WORDS)
    return False


def _become_subreaper() -> bool:
    """Have what the trainer leaves behind become children of this process, so that it need not look for them."""
    try:
        import _ctypes  # its C part alone: all of ctypes would cost each start 10 ms

        itself: Any = None  # the process, which its declaration does not know
        prctl = _ctypes.dlsym(_ctypes.dlopen(itself, 0), "prctl")
        code: int = _ctypes.call_function(prctl, (_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        return code == 0
    except (ImportError, OSError, AttributeError):
        return False


def _become_trainer(
    run: RunPaths, launcher_pid: int, made: MadeFolder | None, head: str, command: list[str],
    mask: set[int | signal.Signals],
) -> None:  # fmt: skip
    """In the child: a new session, the `launched` event, then the trainer. Never returns.

    The event is on disk before the trainer's first instruction: no trainer ever runs that is not known of.
    """
    try:
        os.setsid()
        run_id = os.environ["RESUMEKIT_RUN_ID"]
        own = processes.identify(os.getpid(), os.environ[processes.TOKEN_VARIABLE])
        launcher, shim = processes.identify(launcher_pid), processes.identify(os.getppid())
        if own is None or shim is None:
            raise OSError(errno.ESRCH, "its process is not seen in /proc")
        with _claim(head, run_id):
            session_lock.take(run.session_lock)  # before `launched`: a trainer that is known of is known by it too
            journal.append(
                run.journal, "launched", run_id, trainer=own.as_fields(), shim=shim.as_fields(),
                launcher=launcher.as_fields() if launcher else None,
            )  # fmt: skip
            fsync_directory(run.journal.parent)  # the journal's first event: its name is new
            ownership.refuse_exchanged(run.run_dir, made)
        for number in _TRAINER_DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a stop that came since `launched` ends it here
        os.execvp(command[0], command)
    except (OSError, ValueError) as error:  # ValueError: an empty name
        reason = getattr(error, "strerror", None) or "no such name"
        _say(f"the trainer could not be started: {reason}: '{command[0]}'")
    except ownership.Exchanged as error:
        _say(f"{error}; the trainer was not started")
    except KitError as error:
        _say(str(error))
        os._exit(error.exit_code)
    finally:
        os._exit(_NOT_STARTED)


@contextlib.contextmanager
def _claim(head: str, run_id: str) -> Iterator[None]:
    """Hold the lock of the head that is continued, if there is one, and make sure that it still is ours.

    A launcher that is killed before its trainer has started counts as dead, and another one may take its claim; between
    that and a trainer of ours stands this lock.
    """
    if not head:
        yield
        return
    from resumekit.base import claims  # only a continuation needs it

    parent = RunPaths(Path(head))
    with claims.locked(parent.lock):
        if not claims.still_continues(parent, run_id):
            raise Refused(f"'{parent.run_dir.name}' has been taken over by another continuation; nothing was started")
        yield


def _reserve(run: RunPaths) -> TempFile | None:
    """Set space aside for exit.json, so that a disk that fills up meanwhile does not keep the end from being known.

    Returns:
        The file that is to be exit.json, open; None if there is no space now.
    """
    with contextlib.suppress(OSError):
        temp = TempFile(run.exit_json)
        temp.write(b" " * _END_BYTES)
        return temp
    return None


def _write_end(run: RunPaths, reserved: TempFile | None, end: dict[str, Any]) -> None:
    """Write exit.json, into the space that was set aside; else a full disk is waited for: no other one knows this."""
    data = to_json(end)
    with contextlib.suppress(OSError):
        if reserved and len(data) <= _END_BYTES:
            os.pwrite(reserved.descriptor, data, 0)
            os.ftruncate(reserved.descriptor, len(data))
            reserved.sync()
            reserved.replace()
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
    """Into the trainer's log; if that cannot be written either, nothing is said."""
    with contextlib.suppress(OSError):
        os.write(2, f"resumekit: {plain(sentence)}\n".encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    # Not SystemExit: a failed flush of the log at exit would replace the trainer's code by 120.
    os._exit(main(sys.argv[1:]))
