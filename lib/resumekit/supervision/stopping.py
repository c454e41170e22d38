"""Ending a run because a person, or a signal to the launcher, asked for it.

The signal goes to the trainer, which saves and ends; after the grace, or the second time, KILL goes to everything in
its session. `stopped` is in the journal before the signal is sent: what was ended on purpose is never recovered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..basics import claims, journal, processes
from ..basics.errors import DONE, FAILED
from ..run_folder import life_signs, recovery, run_end, status
from ..run_folder.liveness import HERE, OURS
from ..run_folder.run_state import State
from ..run_folder.runs import Run, open_run

# How long a trainer that is just being started is waited for before a stop gives up on it.
START_WAIT_S = 10.0
# A twentieth of a second apart.
SEND_TRIES = 10
# Of another user, host or container: its own sidecar stops it, because it was asked to.
ASKED = 9
# How long KILL is given to work: a process in uninterruptible sleep does not end on it.
KILL_WAIT_S = 10.0


def stop(run_dir: Path, signal_name: str, *, is_now: bool = False, is_aborted: bool = False) -> int:
    """Stop a run's trainer.

    Args:
        run_dir: its run folder.
        signal_name: 'INT' or 'TERM', passed on to the trainer.
        is_now: KILL its whole session at once.
        is_aborted: a check or a rule ends it, not a person: its `abort` event is in the journal already.

    Returns:
        0 when it has ended, 1 when there was nothing to stop or it cannot be stopped from here, ASKED when its own
        sidecar is stopping it.
    """
    run = open_run(run_dir)
    if is_aborted:
        return _alone(run, lambda: _end(run, _signalable(run), signal_name, is_now=False))
    trainer = _wait_for_trainer(run)
    if (code := _out_of_reach(run, trainer)) is not None:
        return code  # nothing is written down: it may be taken up where it can be seen
    if trainer is not None and life_signs.place_of(run, trainer) != HERE:
        trainer = None  # dead by proof, or by a person's word: nothing is signalled, and nothing takes it up
    is_over = trainer is None and _awaits_recovery(run)
    if trainer is not None or is_over:
        _write_down(run, signal_name, is_now=is_now)
    if is_over:
        return _stop_the_next(run, signal_name, is_now=is_now)
    return _end(run, trainer, signal_name, is_now=is_now)


def _signalable(run: Run) -> processes.Identity | None:
    """Return the live trainer of a run that a rule ends; None where it is not this folder's, or is out of reach."""
    trainer = _wait_for_trainer(run)
    sight = life_signs.examine(run, status.read_state(run))
    return trainer if sight.place == HERE and sight.evidence.whose == OURS else None


def _out_of_reach(run: Run, trainer: processes.Identity | None) -> int | None:
    """Ask the run's own sidecar where its trainer may not be signalled from here; None where it may be.

    Another host, container or user, a process that cannot be told from a stranger; and a copy of a live run, whose
    trainer writes into another folder: that one is stopped there, not here.
    """
    state = status.read_state(run)
    sight = life_signs.examine(run, state)
    if sight.evidence.is_ended or (sight.place == HERE and trainer is None):
        return None
    if sight.evidence.whose != OURS:
        copied = life_signs.original_of(run, state)
        _say(f"'{run.run_id}' was not stopped: {sight.verdict.words} ({copied}): stop it there, with that --runs")
        return FAILED
    if sight.place == HERE and processes.may_signal(trainer):
        return FAILED if _stays_unknown(trainer) and _is_unknown(run, trainer) else None
    return None if sight.verdict.what == processes.DEAD else _ask(run, state)


def _ask(run: Run, state: State) -> int:
    """Ask through the run's folder; ASKED where its sidecar obeys."""
    from . import stop_request  # what can be signalled needs none

    try:
        _say(stop_request.ask(run, state))
    except OSError as error:
        _say(f"'{run.run_id}' cannot be signalled from here, nor be asked to stop: {error.strerror} (its folder)")
        return FAILED
    if stop_request.is_obeyed(run):
        return ASKED
    _say(f"'{run.run_id}': {stop_request.why_it_is_not_obeyed(run)}")
    return FAILED


def _stop_the_next(run: Run, signal_name: str, *, is_now: bool) -> int:
    """Stop the run that was just about to go on from this one: whoever recovers looks for `stopped` after its claim."""
    child_id = (claims.continuation_of(run.paths) or {}).get("run_id")
    if not isinstance(child_id, str) or "/" in child_id:
        return DONE
    child = open_run(run.paths.run_dir.parent / child_id)
    if not child.is_ours or recovery.of(child) is None or child.record.get("parent_run_id") != run.run_id:
        return DONE
    code = stop(child.paths.run_dir, signal_name, is_now=is_now)
    return code if open_run(child.paths.run_dir).has_started else DONE


def _write_down(run: Run, signal_name: str, *, is_now: bool) -> None:
    """Journal that somebody wants this end; on a full disk an empty `paused` keeps every hand off the run instead."""
    try:
        journal.append(run.paths.journal, "stopped", run.run_id, by=signal_name, now=is_now)
    except OSError as error:
        why = f"that it is stopped cannot be written down ({error.strerror})"
        try:
            os.close(os.open(run.paths.paused, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
            _say(f"{why}: '{run.paths.paused}' keeps everybody from taking it up")
        except OSError:
            _say(f"{why}: once it can, stop it again with bin/abort-watch.sh --stop, or it may be taken up")


def _alone(run: Run, end: Callable[[], int]) -> int:
    """Let one process at a time stop a run that a rule has ended: a trainer that is saving takes a second TERM for now.

    Whoever comes second leaves it to the first; if that one is killed, the lock is free again.
    """
    descriptor = claims.open_lock(run.paths.stop_lock)
    try:
        return end() if claims.try_lock(descriptor) else DONE
    finally:
        os.close(descriptor)


def _awaits_recovery(run: Run) -> bool:
    """Whether a run has ended in a way that something may still take up: a person who stops it then means that."""
    end = run_end.read(run)
    return run.has_started and (end is None or end["code"] != 0)


def _end(run: Run, trainer: processes.Identity | None, signal_name: str, *, is_now: bool) -> int:
    if trainer is None:
        return FAILED
    if not is_now:
        grace_s = _grace_s(run)
        deadline = time.monotonic() + grace_s
        if not _send(trainer, signal.Signals[f"SIG{signal_name}"]) and _is_unknown(run, trainer):
            return FAILED
        if processes.wait_for_end(trainer, grace_s):
            # What it has left behind (data workers) may still be putting away its things.
            while processes.session_members(trainer) and time.monotonic() < deadline:
                time.sleep(0.05)
    if left := processes.kill_session(trainer, KILL_WAIT_S):
        _warn(run, "cannot_be_killed", f"{left} processes of session {trainer.pid} do not end on KILL")
        return FAILED
    return FAILED if _is_unknown(run, trainer) else DONE


def _send(trainer: processes.Identity, number: int) -> bool:
    """Send a signal to the trainer; in the middle of its exec it cannot be told from a stranger, for a moment."""
    for _ in range(SEND_TRIES):
        if processes.send(trainer, number):
            return True
        if processes.probe(trainer) == processes.DEAD:
            return False
        time.sleep(0.05)
    return False


def _stays_unknown(trainer: processes.Identity) -> bool:
    for _ in range(SEND_TRIES):
        if processes.probe(trainer) != processes.UNKNOWN:
            return False
        time.sleep(0.05)
    return True


def _is_unknown(run: Run, trainer: processes.Identity) -> bool:
    """Whether somebody lives under the trainer's pid who cannot be told from a stranger: nobody we may signal."""
    if processes.probe(trainer) != processes.UNKNOWN:
        return False
    _warn(
        run, "not_signalled", f"pid {trainer.pid} on {trainer.host} cannot be seen to be this run's trainer from here"
    )
    return True


def _warn(run: Run, kind: str, message: str) -> None:
    _say(message)
    with contextlib.suppress(OSError):
        journal.append(run.paths.journal, "warning", run.run_id, kind=kind, message=message)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"resumekit: {sentence}", file=sys.stderr, flush=True)


def _grace_s(run: Run) -> float:
    """Return abort.grace_s; a config that cannot be read does not take the grace away."""
    grace_s = run.setting("abort", "grace_s", 60)
    return float(grace_s) if type(grace_s) in (int, float) and 0 <= grace_s < 1e6 else 60.0


def _wait_for_trainer(run: Run) -> processes.Identity | None:
    """Return the live trainer; None when it has ended already or never comes."""
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline and run_end.read(run) is None:
        with contextlib.suppress(OSError):  # a network drive may answer the next time
            for event, _ in journal.read(run.paths.journal):
                if event["event"] == "launched":
                    trainer = processes.identity_from(event.get("trainer"))
                    is_there = trainer and (
                        processes.probe(trainer) != processes.DEAD or processes.session_members(trainer)
                    )
                    return trainer if is_there else None
        time.sleep(0.05)
    return None
