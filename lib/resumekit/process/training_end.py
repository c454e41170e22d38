"""How a training ends whose first process has left others behind, and who has stopped it. Called by the shim.

The first process may be a wrapper (`bash train.sh`, `conda run`): it ends on a TERM and its Python is still saving, or
it has put its training into the background. It may be the trainer itself, and what is left a TensorBoard. So the end is
written down when nothing is left, or when what is left shows nothing of a training any more: the process that has
shown the steps may be silent for as long as a hang takes. Reads the run's journal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ..base import journal, process_details
from ..base.imports import Any, NamedTuple
from ..base.processes import Identity
from ..base.values import count
from ..run import rank_end, run_end
from ..run.journal_fold import is_waiting, measured_speed
from ..run.run_folder import Run, open_run
from ..run.throughput import is_saving
from .stop_signals import SaveSigns
from .stopping import grace_s, patience_s, stop_signal
from .survivors import SETTLE_S, Progress, Survivors, has_written, launched_bytes

# A first process that ends by itself after steps were seen, or fails before any, was the trainer or has waited for it.
QUIET_S = 3.0
USUAL_STEPS = 5
# How old a signal to the whole job may be to be the one that the first process has ended on.
SAME_STOP_S = 5.0
# What a trap may hand a stop on as.
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Looks through /proc: often while a stop is under way, rarely beside a training that its wrapper has left.
LOOK_S, STOPPING_LOOK_S, JOURNAL_S = 5.0, 0.2, 0.5


class ShimView(NamedTuple):
    """What the shim learns while it waits.

    Args:
        seen: signal number -> when it came to the shim, which nothing reaches but a signal to the whole job.
        wait: waits for a child's end or such a signal, for so many seconds at most.
        reap: takes in the children that have ended, as pid -> wait status; None where none is left of any kind.
        written_bytes: how much the first process had written when it ended; None where that is not known.
        ended_s: when its end was heard of, on the monotonic clock; None where that is not known.
        beside: pid -> wait status of other children of the shim that have ended by now.
    """

    seen: dict[int, float]
    wait: Callable[[float], None]
    reap: Callable[[], dict[int, int] | None]
    written_bytes: int | None = None
    ended_s: float | None = None
    beside: Mapping[int, int] = MappingProxyType({})


def stopped_by(run_dir: Path, end: dict[str, Any]) -> str | None:
    """Return which stop a trainer ended on, 'INT' or 'TERM'; where its code does not say, by what it said last."""
    return run_end.stopped_by(judged(run_dir, end))


def judged(run_dir: Path, end: dict[str, Any]) -> dict[str, Any]:
    """Return an end with what its code does not say, as `rank_end.judged_end`."""
    return rank_end.judged_end(open_run(run_dir), end)


def outlast(run_dir: Path, leader: Identity, end: dict[str, Any], shim_view: ShimView) -> dict[str, Any]:
    """Wait until a training has ended whose first process has; returns how, in the words of exit.json.

    Args:
        leader: the first process.
        end: how that one ended.
    """
    return _Session(open_run(run_dir), leader, end, shim_view).end()


class _Session:
    def __init__(self, run: Run, leader: Identity, end: dict[str, Any], shim_view: ShimView) -> None:
        self._run, self._first, self._shim_view = run, end, shim_view
        self._survivors = Survivors(self._run, leader)
        self._heirs: set[int] = set()
        self._writers: set[int] = set()  # what has shown the steps, beside the first process
        self._statuses: dict[int, int] = {}
        self._has_children = True
        self._begun = self._last_sign = self._looked = time.monotonic()
        self._progress = Progress(run, self._begun if shim_view.ended_s is None else shim_view.ended_s)
        self._had_stepped = "step" in self._progress.state
        self._is_settled, self._has_trained_on = False, self._progress.has_own_word
        self._members = self._seen_members()
        self._stop: str | None = None
        self._stopped_at = self._begun
        self._was_job = self._is_doubtful = False
        self._signs: SaveSigns | None = None
        self._saved_at = self._begun
        self._cpu = (self._begun, self._cpu_s())
        self._log_size, self._last_words = -1, self._begun

    def end(self) -> dict[str, Any]:
        """Wait, tell what is left of a stop, and return the end."""
        name = stopped_by(self._run.paths.run_dir, self._first)
        # A script may hand the signal on and then die of it (`trap - TERM; kill 0`).
        has_handler = (self._progress.state.get("stopped") or {}).get("has_handler") is True
        self._notice_a_stop(name, has_handled_it=self._first["signal"] is None or has_handler)
        while self._is_process_left() and not self._is_over():
            if self._stop:
                self._tell()
            self._wait()
        if self._members:
            self._say_what_is_left()
        return self._composed()

    def _is_process_left(self) -> bool:
        """Whether a process of the training lives; for a moment also one that cannot be told from another's yet.

        A wrapper may end while what it has just forked is in its exec, and has no environment to show its token in.
        """
        return bool(self._members) or (self._has_children and not self._is_settled)

    def _wait(self) -> None:
        """Until a process has ended or it is time to look again; what costs little is looked at more often."""
        self._shim_view.wait(STOPPING_LOOK_S if self._stop else JOURNAL_S)
        ended = self._shim_view.reap()
        self._has_children = ended is not None
        self._statuses.update(ended or {})
        now = time.monotonic()
        if not self._is_settled and now - self._begun > SETTLE_S:
            self._is_settled = True
            self._had_stepped = "step" in self._progress.state
            self._progress.begin_anew()
        if self._progress.look():
            self._last_sign = now
            self._has_trained_on |= self._is_settled and self._progress.steps > 0
        # What the log says is read late; the trainer's own word says when it was.
        self._has_trained_on |= self._stop is None and self._progress.has_own_word
        if not self._stop and (self._progress.state.get("stopped") or self._progress.state.get("aborted")):
            self._notice_a_stop(None, has_handled_it=False)
        is_due = now - self._looked >= (LOOK_S if ended is not None else SETTLE_S)
        if ended or self._stop or is_due or not self._members:
            self._looked, self._members = now, self._seen_members()

    def _seen_members(self) -> list[Identity]:
        """Look through /proc; note who has lost its parent with the first process, and who has shown the steps."""
        members = self._survivors.members()
        if not self._is_settled:
            self._heirs |= {member.pid for member in self._survivors.orphans(members)}
        if "step" in self._progress.state:
            pids = [member.pid for member in members]
            self._writers |= {pid for pid in pids if self._has_shown_steps(pid, pids)}
        return members

    def _has_shown_steps(self, pid: int, pids: list[int]) -> bool:
        """Whether a process has written what the log holds, and is no `tee` that another one writes into."""
        written = process_details.written_bytes(pid)
        return has_written(self._run, written) and not process_details.reads_from(pid, pids)

    def _notice_a_stop(self, name: str | None, *, has_handled_it: bool) -> None:
        """Take note of a stop, where there is one, and of who may have heard of it already.

        Args:
            name: of the signal, as the first process's end says it.
            has_handled_it: the first process has handled it before it ended: it may have handed it on.
        """
        state = self._progress.state
        asked = (state.get("stopped") or {}).get("by") or ("TERM" if state.get("aborted") else None)
        if asked is None and name is None:
            return
        self._stop, self._stopped_at = str(asked or name), time.monotonic()
        to_the_job = [number for number, at in self._shim_view.seen.items() if self._stopped_at - at < SAME_STOP_S]
        self._was_job = bool(to_the_job)
        if self._was_job or has_handled_it:
            # A script's trap may hand on another one than it got: Slurm's TERM as USR1.
            handed_on = [self._number(), *HANDED_ON] if has_handled_it else []
            self._survivors.have_heard([*to_the_job, *handed_on], self._members)
            self._is_doubtful = True
            # What would die of the signal may be saving on another one.
            may_die = any(not process_details.catches(member.pid, self._number()) for member in self._members)
            self._signs = SaveSigns(self._run, self._members) if may_die else None

    def _tell(self) -> None:
        """Tell each process whose parent has ended; one that may have heard already, only when it evidently has not."""
        is_unseen = not self._had_stepped and not self._was_job
        if self._is_doubtful and self._signs and self._signs.look(self._members):
            self._saved_at = time.monotonic()
        if time.monotonic() - max(self._stopped_at, self._saved_at) <= patience_s(self._run):
            self._progress.begin_anew()
        elif self._is_doubtful and (is_unseen or self._progress.trains_on):
            self._survivors.forget()
            self._is_doubtful = False
        self._survivors.tell(self._number(), self._members)

    def _number(self) -> int:
        return stop_signal(self._run, self._stop or "TERM")

    def _is_over(self) -> bool:
        """Whether nothing that is left shows a training any more."""
        now = time.monotonic()
        state = self._progress.state
        has_ended_well = self._first["code"] == 0 and not self._has_trained_on and not self._stop
        if has_ended_well and run_end.last_step_is_reached(state, count(self._run.setting("training", "max_steps"))):
            return True
        quiet_s = now - max(self._last_sign, self._stopped_at)
        if quiet_s <= self._window_s():
            return False
        if self._stop:
            return True
        # A user holds it, and the rest of it may wait for that process.
        is_suspended = any(process_details.is_suspended(member.pid) for member in self._members)
        if self._has_written_since() or is_suspended:
            self._last_words = now
        if now - max(self._last_sign, self._last_words) >= run_end.silence_limit_s(self._run):
            return True
        may_be_silent = not self._had_stepped or is_waiting(state) or is_saving(state)
        return not (self._is_training_left() or (may_be_silent and self._is_busy(now)))

    def _is_training_left(self) -> bool:
        """Whether the process that has shown the steps lives: an evaluation, a save, a rendezvous may be silent.

        Where the first process was that one, what is left are its helpers.
        """
        if self._has_first_shown_steps() and not self._has_trained_on:
            return False
        return any(has_written(self._run, process_details.written_bytes(member.pid)) for member in self._members)

    def _has_first_shown_steps(self) -> bool:
        wrote = self._shim_view.written_bytes
        return wrote is not None and has_written(self._run, wrote - launched_bytes(self._run))

    def _has_written_since(self) -> bool:
        """Whether the run's log has grown since this was asked last."""
        with contextlib.suppress(OSError):
            size, self._log_size = self._log_size, os.stat(self._run.paths.output_log).st_size
            return self._log_size != size
        return False

    def _window_s(self) -> float:
        """Return for how long what is left may show nothing before the training counts as over."""
        longest_s = grace_s(self._run)
        has_failed = self._first["signal"] is None and self._first["code"] != 0
        if self._stop or (not self._had_stepped and not has_failed) or self._has_trained_on:
            return longest_s
        speed = measured_speed(self._progress.state)
        return min(longest_s, max(QUIET_S, USUAL_STEPS / speed if speed else QUIET_S))

    def _cpu_s(self) -> float:
        return process_details.total_cpu_s(member.pid for member in self._members)

    def _is_busy(self, now: float) -> bool:
        """Whether what is left computes; asked for again within a second it says the same."""
        since_s, before_s = self._cpu
        if now - since_s < 1.0:
            return True
        used_s = self._cpu_s()
        self._cpu = (now, used_s)
        return used_s - before_s > process_details.BUSY * (now - since_s)

    def _say_what_is_left(self) -> None:
        pids = process_details.shown(member.pid for member in self._members)
        message = f"what the trainer has started is left, and trains nothing: pid {pids}"
        with contextlib.suppress(OSError):
            journal.append(self._run.paths.journal, "warning", self._run.run_id, kind="left_behind", message=message)

    def _composed(self) -> dict[str, Any]:
        """Return the first process's end, or, where that one did not wait for the training, the training's own."""
        end = dict(self._first)
        shown = [status for pid, status in self._statuses.items() if pid in self._writers]
        own = shown or [status for pid, status in self._statuses.items() if pid in self._heirs]
        own = own or ([] if self._stop else list(self._shim_view.beside.values()))
        # A script that is killed in the last second of its training, or during its last save.
        was_wrapper = bool(shown) and not self._has_first_shown_steps()
        has_not_waited = end["signal"] or end["code"] == 0
        counts = (end["signal"] and (self._stop or was_wrapper)) or (self._has_trained_on and has_not_waited)
        if own and counts:
            last = process_details.end_of(own[-1])
            is_stop = last["code"] == 0 or run_end.stopped_by(last)
            if not self._stop or not is_stop:
                end |= last
            elif last["code"] and last["signal"] is None:
                end |= last  # it has saved and says which signal it was
        by = self._stop or run_end.stopped_by(end)
        if by in run_end.STOPS and run_end.stopped_by(end) is None:
            end["by"] = by
        return rank_end.judged_end(self._run, end)
