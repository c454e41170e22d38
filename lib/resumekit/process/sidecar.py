"""The process beside the trainer: follows its output and its journal, writes train.log and status.json.

It is our `tee`: the trainer writes to a plain file and never waits for us. It may be killed at any moment; the next one
goes on where `.sidecar.json` says this one stood. It ends when the trainer's end is known and written down.

    python -I -S lib/resumekit_cli.py sidecar RUN_DIR [--made=...] [--echo]
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ..base import journal, processes, terms
from ..base.errors import DONE, ENDED_EARLY, FAILED, Refused
from ..base.files import UnreadableFile, read_json, unlink_temps
from ..base.imports import Any
from ..base.ownership import Exchanged, MadeFolder
from ..base.terminal import plain, say
from ..base.values import count, mapping
from ..run import run_end, status
from ..run.journal_fold import RECORDS_EDITED, fold
from ..run.run_folder import Run
from . import sidecar_state
from .attest import Attester
from .best_artifacts import LIMIT_S, BestArtifacts
from .clock_gap import ClockGap
from .nan_guard import NanGuard, exit_code, record_recovery
from .output_log import Echo, LogSource
from .sidecar_warnings import CodeWatch, NewCheckpoints, UnseenSteps
from .stop_request import Obedience
from .told_numbers import ToldNumbers
from .train_log import LogFollower

# Ten times a second would cost a busy run 0.8 % of a core; the terminal has a thread of its own.
POLL_S = 0.25
# Before the trainer is there, a short run would be over in one POLL_S.
START_POLL_S = 0.005
PROBE_S = 1.0
# What a successor reads again at most.
SAVE_S = 5.0
# Of a journal that no account knows so many events are in memory at once.
FOLDED_AT_ONCE = 20_000
# Of what a full disk has no room for, the newest that is kept in memory.
MOST_UNTOLD = 100_000
# Of one beat at most this much is spent on the log.
PUMP_S = 0.5
# A grandchild may hold the output open and go on writing for ever; a terminal may be blocked.
LAST_LINES_S = 5.0
# A launcher that was killed may have left a shim that is just starting.
NEVER_STARTED_S = 10.0
# A log that is cut again and again is spoken of no more often.
NOTICE_S = 600.0
# How long the end is tried to be written down while the disk is full: by the launcher's side, and then without it.
CONCLUDE_S = 3.0
CATCH_UP_S = 24 * 3600.0


class Sidecar:
    """Holds the status lock of one run and keeps its views up to date until the trainer has ended."""

    def __init__(self, run: Run, *, has_echo: bool) -> None:
        self._run = run
        saved = run.sidecar_account
        self._state, self._journal_offset = status.saved_state(run)
        self._log = LogFollower(run, saved, self._trainer_pid)
        is_successor = os.path.lexists(run.paths.status)  # the first one writes it before it tells of a step
        repeats_until = self._log.offset + self._log.left_bytes if is_successor else 0
        self._numbers = ToldNumbers(run, repeats_until, saved.get("numbers"))
        self._metrics_account = saved.get("metrics")
        self._metrics = sidecar_state.metrics_of(run, self._metrics_account)
        self._attester = Attester(run)
        self._new_checkpoints = NewCheckpoints(run, saved)
        self._unseen_steps = UnseenSteps(run)
        self._holding = sidecar_state.holding_of(run)
        self._wall_time = sidecar_state.wall_time_of(run)
        self._acceptance = sidecar_state.acceptance_of(run, self._state, self._journal_offset)
        self._account = sidecar_state.Account(run)
        self._nan_guard = NanGuard(run)
        self._code = CodeWatch(run, saved.get("code_changed"), time.monotonic())
        self._obedience = Obedience(run)
        self._best = BestArtifacts(run, self._observed)
        shown = LogSource(run.paths.output_log, count(saved.get("echo_offset")) or 0, saved.get("log_file"))
        self._echo = Echo(shown) if has_echo else None
        self._alarm: processes.Alarm | None = None
        self._heartbeat_mtime = 0.0
        self._found_steps: list[dict[str, Any]] = []
        self._found_from = 0
        self._untold: collections.deque[tuple[str, dict[str, Any]]] = collections.deque(maxlen=MOST_UNTOLD)
        self._started = time.monotonic()
        self._clock_gap = ClockGap()
        self._last_save = self._last_probe = self._last_status = self._last_notice = float("-inf")
        self._shown_state: str | None = None

    def run_until_end(self) -> int:
        """Follow the run; return when its end is in journal, log and status, with 7 or 8 if checks or a rule did."""
        if self._echo:
            self._echo.start()
        while True:
            end = run_end.read(self._run)
            self._beat(has_ended=end is not None)
            if end is not None or self._is_over_unseen():
                break
            self._sleep()
        is_concluded = self._try_to_conclude(end, CONCLUDE_S)
        if self._echo:
            self._echo.finish(LAST_LINES_S)
        if not is_concluded and not self._has_folder():
            say("sidecar", f"the folder of run '{self._run.run_id}' is gone: its end is not kept")
            return FAILED
        if not is_concluded:
            return self._leave_it_to_a_child(end)
        # The launcher waits for the code, and not for long.
        code = exit_code(self._run, self._state, self._observed()["state"])
        self._best.finish(LIMIT_S if code in (DONE, ENDED_EARLY) else LAST_LINES_S)
        return code

    def _try_to_conclude(self, end: dict[str, Any] | None, limit_s: float) -> bool:
        give_up = time.monotonic() + limit_s
        while not (is_concluded := self._conclude(end)) and self._has_folder() and time.monotonic() < give_up:
            time.sleep(PROBE_S)
        return is_concluded

    def _has_folder(self) -> bool:
        return os.path.isdir(self._run.paths.logs)

    def _leave_it_to_a_child(self, end: dict[str, Any] | None) -> int:
        """Say what cannot be written down, and let a child go on trying: the launcher and its pipe wait for no disk.

        The child holds the status lock on, and nothing that another process reads from.
        """
        words = f"the end cannot be written down now in '{self._run.paths.run_dir}' (is the disk full?)"
        say("resumekit", f"{words}: {run_end.words(end)}; it is tried again for a day")
        if os.fork():
            return exit_code(self._run, self._state, self._observed()["state"])
        code = FAILED
        try:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            self._echo = None
            code = DONE if self._try_to_conclude(end, CATCH_UP_S) else FAILED
        finally:
            os._exit(code)

    def _beat(self, *, has_ended: bool) -> None:
        known = self._milestones()
        self._fold_heartbeat_file()
        self._fold_journal()
        self._append_steps()
        self._found_from = self._log.offset
        self._found_steps = self._log.pump(PUMP_S)
        self._tell_of_cuts()
        now = time.monotonic()
        self._clock_gap.beat(now, self._append)
        self._clock_gap.rest(now, self._append, is_paused=os.path.lexists(self._run.paths.paused))
        if self._milestones() != known:  # a pid, a first step: the status says so at once
            self._last_probe, self._shown_state = float("-inf"), None
        if now - self._last_probe >= PROBE_S and not has_ended:
            self._last_probe = now
            self._attester.look()
            self._new_checkpoints.look(now)
            self._tell_of_strays(now)
            self._tell(self._unseen_steps.look(now, self._state, self._log.offset, self._append))
            self._best.look()
            self._tell(self._holding.look(self._state) if self._holding else "")
            self._show(now)
            record_recovery(self._run, self._state)
            self._code.look(now, self._append)
            if self._shown_state in status.LIVE:  # what is over may be continued, and is not stopped for that
                self._obedience.look(self._state, now)
                if self._wall_time:
                    self._wall_time.look(self._state, now)
        if not has_ended:
            self._accept(has_ended=False)
            self._nan_guard.stop_if_nonfinite(self._state, now)
        if now - self._last_save >= SAVE_S:
            self._save(now)

    def _accept(self, *, has_ended: bool) -> None:
        """Let the checks of a resumed run decide what they can by now."""
        if self._acceptance is not None and not self._acceptance.decide(self._append, self._say, has_ended=has_ended):
            self._acceptance = None
        self._fold_journal()

    def _say(self, line: bytes) -> None:
        self._log.note(line)
        if self._echo:
            self._echo.say(line)

    def _tell_of_cuts(self) -> None:
        for message in self._log.notices():
            self._save(time.monotonic())  # what a successor would begin from is no more
            if time.monotonic() - self._last_notice > NOTICE_S:  # `while :; do : >output.log; done` is no news
                self._last_notice = time.monotonic()
                self._append("warning", kind="log_truncated", message=message)

    def _tell_of_strays(self, now: float, *, has_ended: bool = False) -> None:
        self._tell(self._new_checkpoints.look_for_strays(now, self._append, has_ended=has_ended))

    def _tell(self, sentence: str) -> None:
        """Say a sentence to people, in the log and on the terminal; '' is none."""
        if sentence:
            self._say(f"resumekit: {plain(sentence)}\n".encode("utf-8", "backslashreplace"))

    def _trainer_pid(self) -> int | None:
        """Return the pid of the trainer, if it lives and can be seen from here."""
        trainer = self._run.trainer_of(self._state.get("launched"))
        return trainer.pid if trainer and processes.probe(trainer) == processes.ALIVE else None

    def _milestones(self) -> tuple[bool, bool]:
        return "launched" in self._state, "step" in self._state

    def _is_over_unseen(self) -> bool:
        """Whether no process will ever say how the trainer ended: its shim is dead too, or never came."""
        # An end that was seen is none of these here.
        is_dead = self._shown_state in ("lost", "stopped", "preempted", "aborted")
        return is_dead or (self._shown_state == "never_started" and time.monotonic() - self._started > NEVER_STARTED_S)

    def _sleep(self) -> None:
        """Until the next beat, or until the shim has written down the trainer's end."""
        if self._alarm is None:
            launched = self._state.get("launched") or {}
            if shim := processes.identity_from(launched.get("shim")):
                self._alarm = processes.Alarm(shim)
        if self._alarm:
            has_more = self._log.left_bytes > 0 and not (self._log.is_blocked or self._log.is_unreadable)
            self._alarm.wait(0.0 if has_more else POLL_S)
        else:
            time.sleep(START_POLL_S if time.monotonic() - self._started < PROBE_S else POLL_S)

    def _observed(self) -> dict[str, Any]:
        return status.observe(self._run, self._state, status.look(self._run, self._state, is_follower=True))

    def _show(self, now: float) -> None:
        """Write status.json if its interval is over or the state has changed; a full disk is tried again."""
        seen = self._observed()
        interval_s = self._run.setting("status", "interval_s", 60)
        if seen["exit_code"] is not None:
            return  # it has ended meanwhile: what it was is said when its last lines are read
        self._clock_gap.see(seen["suspended"], self._state, now, self._append)
        if seen["state"] == self._shown_state and now - self._last_status < interval_s:
            return
        with contextlib.suppress(OSError):
            status.write(self._run, seen)
            self._last_status = now
        self._shown_state = seen["state"]

    def _conclude(self, end: dict[str, Any] | None) -> bool:
        """Write down the end: last lines, event, status; False while something cannot be written. Safe to repeat."""
        if not self._read_last_lines():
            return False
        self._attester.look_last()
        self._fold_journal()
        self._tell(self._holding.look(self._state) if self._holding else "")
        self._tell_of_strays(time.monotonic(), has_ended=True)
        self._accept(has_ended=True)
        if not self._log.close(f"resumekit: {run_end.words(end)}\n".encode()):
            return False
        self._save(time.monotonic())
        self._fold_journal()
        if (self._state.get("aborted") or {}).get("cause") == terms.CHECKS_FAILED:
            from .acceptance import quarantine_all  # late, as in _acceptance

            quarantine_all(self._run)
        if "exited" not in self._state and not self._append("exited", **run_end.fields(end)):
            return False
        record_recovery(self._run, self._state)
        self._fold_journal()
        try:
            seen = self._observed()
            status.write(self._run, seen)
            if end is None:
                unlink_temps([self._run.paths.exit_json])  # what the shim had set aside for it
            self._nan_guard.release_marker(self._state, seen["state"])
        except OSError:
            return False
        self._save(time.monotonic())
        return True

    def _read_last_lines(self) -> bool:
        """Read all that was written when the trainer ended, and for a while what its children still write."""
        until, goal = time.monotonic() + LAST_LINES_S, self._log.offset + self._log.left_bytes
        while True:
            self._found_steps += self._log.pump(PUMP_S)
            is_late = time.monotonic() > until
            is_over = not self._log.left_bytes or (is_late and self._log.offset >= goal)
            if self._log.is_unreadable and is_late:
                self._say(b"resumekit: %d bytes of logs/output.log cannot be read\n" % self._log.left_bytes)
                self._log.pump(PUMP_S)
                break
            if self._log.is_blocked or is_over:
                break
            if self._log.is_unreadable:
                time.sleep(POLL_S)
        self._found_steps += self._log.last_told()
        self._fold_journal()
        self._append_steps()
        self._append_metrics(is_last=True)
        return not (self._log.is_blocked or self._untold)

    def _append(self, event: str, /, **fields: Any) -> bool:
        with contextlib.suppress(OSError):
            journal.append(self._run.paths.journal, event, self._run.run_id, **fields)
            return True
        return False

    def _append_steps(self) -> None:
        """Journal what the log told, unless the trainer does so itself."""
        found, self._found_steps = self._found_steps, []
        if (found or self._untold) and not self._state.get("tells_steps"):
            self._append_told(self._numbers.of_log(found, self._state, self._found_from))
        self._append_metrics()

    def _append_metrics(self, *, is_last: bool = False) -> None:
        """Journal what the metrics file told, likewise."""
        if self._metrics is None:
            return
        for batch in self._metrics.rest() if is_last else self._metrics.taken():
            if not self._state.get("tells_steps"):
                self._append_told(self._numbers.of_file(batch.rows, self._state))
            self._metrics_account = batch.account
        self._metrics = None if is_last else self._metrics

    def _append_told(self, events: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Journal what was told, and before it what a full disk had no room for until now."""
        self._untold += events
        while self._untold and self._append(self._untold[0][0], **self._untold[0][1], source="log"):
            event, fields = self._untold.popleft()
            if event == "log_format":
                self._tell(fields["message"])
        self._fold_journal()

    def _fold_journal(self) -> None:
        while len(events := self._next_events()) >= FOLDED_AT_ONCE:
            self._state = fold(self._state, events)
            if (now := time.monotonic()) - self._last_save >= SAVE_S:
                self._save(now)  # of a journal of hours no successor begins from the start again
        if events:
            self._state = fold(self._state, events)

    def _next_events(self) -> list[dict[str, Any]]:
        """Return the events of the journal that come next, no more than are folded at once."""
        events = []
        with contextlib.suppress(OSError):  # a network drive that does not answer now: the next beat reads on
            if os.stat(self._run.paths.journal, follow_symlinks=False).st_size == self._journal_offset:
                return []
            for event, offset in itertools.islice(status.told(self._run, self._journal_offset), FOLDED_AT_ONCE):
                events.append(event)
                self._journal_offset = offset
                if self._acceptance is not None:
                    self._acceptance.see(event)
        return events

    def _fold_heartbeat_file(self) -> None:
        """Take in heartbeat.json, where a trainer that knows nothing of the kit writes a status of its own."""
        path = self._run.paths.heartbeat_json
        try:
            mtime = os.lstat(path).st_mtime
            if mtime == self._heartbeat_mtime:
                return
            self._heartbeat_mtime = mtime
            payload = mapping(read_json(path))
        except (OSError, UnreadableFile):
            return
        if payload and payload.get("run_id") in (None, self._run.run_id):
            self._append("heartbeat", **payload)

    def _save(self, now: float) -> None:
        self._last_save = now
        self._account.write({
            "mono_s": now,
            "journal_offset": self._journal_offset,
            "state": self._state,
            "echo_offset": self._echo.offset if self._echo else 0,
            "code_changed": self._code.said,
            "numbers": self._numbers.account,
            "metrics": self._metrics_account,
            **self._log.account,
            **self._new_checkpoints.account,
        })  # fmt: skip


def main(run_dir: Path, *, has_echo: bool, made: MadeFolder | None = None) -> int:
    """Run the sidecar of one run.

    Args:
        run_dir: its folder.
        has_echo: show the trainer's output.
        made: by what the run's launcher knows that folder; None where the watcher starts this sidecar.

    Returns:
        0 when its end is written down, or when another sidecar is at it already; 7 where failed checks have ended it,
        8 where a rule has; 6 where another folder lies there by now.
    """
    # In the background of its terminal: what stops the launcher (Ctrl-Z) must not stop who watches the trainer, and
    # `stty tostop` must not stop who shows its output.
    with contextlib.suppress(OSError):  # it has a session of its own already: the watcher started it
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    try:
        run, doubt = sidecar_state.followed(run_dir, made)
    except Exchanged as error:
        raise Refused(f"{error}; nothing follows the run") from error
    try:
        if not sidecar_state.take_status_lock(run):
            return DONE
    except OSError as error:
        say("sidecar", f"the lock '{run.paths.status_lock}' cannot be taken: {error.strerror}")
        return FAILED
    if doubt:
        with contextlib.suppress(OSError):
            journal.append(run.paths.journal, "warning", run.run_id, kind=RECORDS_EDITED, message=doubt)
    unlink_temps([run.paths.status, run.paths.sidecar_state])  # the lock is held here: no other process writes these
    code = Sidecar(run, has_echo=has_echo).run_until_end()
    sys.stdout = None  # its flush at exit may fail or block; there is nothing in it
    return code
