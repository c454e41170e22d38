"""Ending a run because a person, a scheduler or a rule asked for it.

One stop is one stop, however often it is asked for. The signal goes to the trainer's first process, which saves and
ends; what it has left behind is told by the shim (`training_end`), or from here where that is dead. After the grace, or
where a person wants it now, KILL goes to all of it. `stopped` is in the journal before the signal is sent: what was
ended on purpose is never recovered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ..base import claims, journal, process_details, processes
from ..base.errors import DONE, FAILED
from ..base.terminal import say
from ..base.values import seconds, string, strings, wait_s
from ..run import life_signs, liveness, run_end, run_table, status
from ..run.journal_fold import State
from ..run.liveness import HERE, OURS
from ..run.run_folder import Run, open_run
from . import job_end, stop_signals, survivors
from .survivors import PATIENCE, SETTLE_S, Progress, Survivors, signal_for

# How long a trainer that is just being started is waited for before a stop gives up on it.
START_WAIT_S = 10.0
# A twentieth of a second apart.
SEND_TRIES = 10
# Of another user, host or container: its own sidecar stops it, because it was asked to.
ASKED = 9
# How long KILL is given to work: a process in uninterruptible sleep does not end on it.
KILL_WAIT_S = 10.0
# How long a signal to the launcher is held back for the shim to hear the same one: then the trainer has got it too.
JOB_WAIT_S = 0.3
# How old a signal may be that the shim has journaled.
SAME_STOP_S = 5.0
LOOK_S = 0.25
# What the end takes to be written down.
END_WAIT_S = 5.0
STOP_SIGNALS = ("TERM", "INT", "USR1", "USR2")


def stop(
    run_dir: Path, signal_name: str, *, is_now: bool = False, is_aborted: bool = False, is_launcher_s: bool = False
) -> int:
    """Stop a run's trainer.

    Args:
        run_dir: its run folder.
        signal_name: 'INT', 'TERM', 'USR1' or 'USR2': what asks for it. One of `trainer.pass_signals` stops nothing, it
            is handed on as it is.
        is_now: KILL all of it at once.
        is_aborted: a check or a rule ends it, not a person: its `abort` event is in the journal already.
        is_launcher_s: the signal came to the launcher, and may have come to the trainer too.

    Returns:
        0 when it has ended, 1 when there was nothing to stop or it cannot be stopped from here, ASKED when its own
        sidecar is stopping it.
    """
    run = open_run(run_dir)
    if is_aborted:
        return _alone(run, lambda: _end(run, _signalable(run), signal_name))
    trainer = _wait_for_trainer(run)
    if (code := _out_of_reach(run, trainer)) is not None:
        return code  # nothing is written down: it may be taken up where it can be seen
    if trainer is None and (left := _left_after_the_end(run, is_launcher_s=is_launcher_s)):
        return _end_what_is_left(run, left, signal_name, is_now=is_now)
    if trainer is not None and life_signs.place_of(run, trainer) != HERE:
        trainer = None  # dead by proof, or by a person's word: nothing is signalled, and nothing takes it up
    has_heard = is_launcher_s and trainer is not None and _was_sent_to_the_job(run, signal_name)
    if signal_name in _passed_on(run):
        return _pass_on(run, trainer, signal_name, has_heard=has_heard)
    is_over = trainer is None and _awaits_recovery(run, signal_name if is_launcher_s else None)

    def end() -> int:
        if trainer is not None or is_over:
            _write_down(run, signal_name, trainer, is_now=is_now)
        if is_over:
            return _stop_the_next(run, signal_name, is_now=is_now, is_launcher_s=is_launcher_s)
        if is_now or trainer is None:
            return _end_now(run, trainer)
        return _alone(run, lambda: _end(run, trainer, signal_name, has_heard=has_heard))

    # INT is a user's at a terminal: no scheduler sends it.
    return job_end.told_why(run, signal_name, end) if is_launcher_s and signal_name != "INT" else end()


def kill_what_is_left(run: Run, state: State) -> int:
    """KILL what lives of a trainer whose end is written down; return how many of its processes do not end on it.

    Nothing is written down: the caller, who takes the run up, says it.
    """
    leader = run.trainer_of(state.get("launched"))
    return processes.kill_session(leader, KILL_WAIT_S) if leader else 0


def stop_signal(run: Run, signal_name: str) -> int:
    """Return what the trainer gets at a stop: `trainer.stop_signal`; INT stays INT where that is TERM."""
    wanted = run.setting("trainer", "stop_signal", "TERM")
    wanted = wanted if wanted in STOP_SIGNALS else "TERM"
    name = "INT" if wanted == "TERM" and signal_name == "INT" else wanted
    return signal.Signals[f"SIG{name}"]


def grace_s(run: Run) -> float:
    """Return abort.grace_s; a config that cannot be read does not take the grace away."""
    grace = wait_s(run.setting("abort", "grace_s", 60))
    return 60.0 if grace is None else float(grace)


def patience_s(run: Run) -> float:
    """Return for how long what may have heard of a stop already is waited for."""
    return max(SETTLE_S, PATIENCE * grace_s(run))


def _passed_on(run: Run) -> list[str]:
    return [name for name in strings(run.setting("trainer", "pass_signals")) if name in ("USR1", "USR2")]


def _pass_on(run: Run, trainer: processes.Identity | None, signal_name: str, *, has_heard: bool) -> int:
    """Hand a signal on to what has a handler for it; a wrapper that has none would die of it."""
    if trainer is None:
        return FAILED
    if has_heard:
        return DONE
    number = signal.Signals[f"SIG{signal_name}"]
    found = stop_signals.recipients(processes.session_members(trainer), number)
    for one in found:
        processes.send(one, number)
    if not found:
        words = f"{signal_name} was not handed on: no process of the training has a handler for it"
        _warn(run, "not_passed_on", f"{words} (trainer.pass_signals)")
    return DONE


def _was_sent_to_the_job(run: Run, signal_name: str) -> bool:
    """Whether the shim got the signal too: it has a session of its own, so it was sent to every process of the job.

    Schedulers do that (Slurm's linuxproc, systemd's KillMode=control-group), and then the trainer has it already.
    """
    number = signal.Signals[f"SIG{signal_name}"]
    give_up = time.monotonic() + JOB_WAIT_S
    while True:
        shim = _shim(run)
        with contextlib.suppress(OSError):
            heard = journal.newest(run.paths.journal, "signalled")
            at = seconds(heard.get("mono_s")) if heard and heard.get("by") == signal_name else None
            if at is not None and abs(time.monotonic() - at) < SAME_STOP_S:
                return True
        if shim is None or process_details.is_pending(shim.pid, number):
            return shim is not None
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)


def _shim(run: Run) -> processes.Identity | None:
    """Return the run's shim while it lives."""
    with contextlib.suppress(OSError):
        for event, _ in journal.read(run.paths.journal):
            if event["event"] == "launched":
                shim = processes.identity_from(event.get("shim"))
                return shim if shim and processes.probe(shim) == processes.ALIVE else None
    return None


def _signalable(run: Run) -> processes.Identity | None:
    """Return the live trainer of a run that a rule ends; None where it is not this folder's, or is out of reach."""
    trainer = _wait_for_trainer(run)
    sight = life_signs.examine(run, status.read_state(run))
    return trainer if sight.place == HERE and sight.evidence.whose == OURS else None


def _out_of_reach(run: Run, trainer: processes.Identity | None) -> int | None:
    """Ask the run's own sidecar where its trainer may not be signalled from here; None where it may be.

    Another host, container or user, a process that cannot be told from another's; and a copy of a live run, whose
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
    if sight.place == HERE and trainer is not None and processes.may_signal(trainer):
        return FAILED if _stays_unknown(trainer) and _is_unknown(run, trainer) else None
    return None if sight.verdict.what == processes.DEAD else _ask(run, state)


def _ask(run: Run, state: State) -> int:
    """Have its scheduler end its job, or ask through the run's folder; ASKED where its launcher is stopping it."""
    from . import job_stop, stop_request  # what can be signalled needs none

    if (said := job_stop.cancel(run)) is None:
        return ASKED if stop_request.have_it_stopped(run, state) else FAILED
    _say(said)
    return ASKED


def _stop_the_next(run: Run, signal_name: str, *, is_now: bool, is_launcher_s: bool) -> int:
    """Stop the run that was just about to go on from this one: a recovery looks for `stopped` after its claim."""
    child_id = string((claims.continuation_of(run.paths) or {}).get("run_id"))
    if child_id is None or "/" in child_id:
        return DONE
    child = open_run(run.paths.run_dir.parent / child_id)
    if not child.is_ours or run_table.recovery_of(child) is None or child.record.get("parent_run_id") != run.run_id:
        return DONE
    code = stop(child.paths.run_dir, signal_name, is_now=is_now, is_launcher_s=is_launcher_s)
    return code if open_run(child.paths.run_dir).has_started else DONE


def _write_down(run: Run, signal_name: str, trainer: processes.Identity | None, *, is_now: bool) -> None:
    """Journal that this end is wanted; on a full disk an empty `paused` keeps every command off the run instead."""
    more = {"has_handler": True} if trainer is not None and _has_handler(run, trainer, signal_name) else {}
    try:
        journal.append(run.paths.journal, "stopped", run.run_id, by=signal_name, now=is_now, **more)
    except OSError as error:
        why = f"that it is stopped cannot be written down ({error.strerror})"
        try:
            os.close(os.open(run.paths.paused, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
            _say(f"{why}: '{run.paths.paused}' keeps everybody from taking it up")
        except OSError:
            _say(f"{why}: once it can, stop it again with bin/abort-watch.sh --stop, or it may be taken up")


def _has_handler(run: Run, trainer: processes.Identity, signal_name: str) -> bool:
    """Whether the first process handles the signal, and may hand it on; any Python handles INT, which says nothing."""
    number = _number_for(run, trainer, stop_signal(run, signal_name))
    wanted = {number, signal.SIGTERM} if number == signal.SIGINT else {number}
    return all(process_details.catches(trainer.pid, each) for each in wanted)


def _alone(run: Run, end: Callable[[], int]) -> int:
    """Let one process at a time stop a run: a trainer that is saving may take a second signal for "now".

    One that comes second waits for the first; if that is killed, the lock is free again.
    """
    descriptor = claims.open_lock(run.paths.stop_lock)
    try:
        give_up = time.monotonic() + grace_s(run) + KILL_WAIT_S + END_WAIT_S
        while not claims.try_lock(descriptor):
            if run_end.read(run) is not None or time.monotonic() > give_up:
                return DONE
            time.sleep(LOOK_S)
        return end() if run_end.read(run) is None else DONE
    finally:
        os.close(descriptor)


def _awaits_recovery(run: Run, signal_name: str | None = None) -> bool:
    """Whether a run has ended in a way that something may still take up: a person who stops it then means that.

    Args:
        run: the run.
        signal_name: what has come to the launcher. A scheduler signals every process of a job: a trainer that ends
            fast, with 0, was stopped before the launcher's stop came, unless it is known to have done its last step.
    """
    end = run_end.read(run)
    if signal_name is None or end is None or run_end.has_failed(end):
        return run.has_started and (end is None or run_end.has_failed(end))
    state = str(status.current(run)["state"])
    is_whole = state == "finished" and run.setting("training", "max_steps") is not None
    return state == status.ENDED_EARLY or (
        state == "finished" and not is_whole and _was_sent_to_the_job(run, signal_name)
    )


def _end(run: Run, trainer: processes.Identity | None, signal_name: str, *, has_heard: bool = False) -> int:
    if trainer is None:
        return FAILED
    deadline = time.monotonic() + grace_s(run)
    number = stop_signal(run, signal_name)
    if not has_heard and not _tell_first(run, trainer, number, deadline) and _is_unknown(run, trainer):
        return FAILED
    _wake(trainer)
    if has_heard:
        _tell_if_it_trains_on(run, trainer, number, deadline)
    if process_details.is_shell(trainer.pid):
        stop_signals.tell_first(run, trainer, number, deadline, patience_s(run), has_heard=has_heard)
    if processes.wait_for_end(trainer, deadline - time.monotonic()):
        _wait_for_what_is_left(run, trainer, number, deadline, has_heard=has_heard)
    return _end_now(run, trainer)


def _tell_first(run: Run, trainer: processes.Identity, number: int, deadline: float) -> bool:
    """Send the first process its signal, or the ranks that it has spawned; then its end is waited for here."""
    wanted = _number_for(run, trainer, number)
    members = processes.session_members(trainer) if process_details.children_of(trainer.pid) else []
    if not (ranks := survivors.spawned_ranks_of(run, trainer.pid, wanted, members)):
        return _send(trainer, wanted)
    for rank in ranks:
        processes.send(rank, wanted)
    _wake(trainer)
    survivors.wait_for_parent(trainer, ranks, wanted, deadline)
    return True


def _number_for(run: Run, trainer: processes.Identity, number: int) -> int:
    """Return the signal that the first process gets; the processes of the training are looked at for INT alone."""
    members = processes.session_members(trainer) if number == signal.SIGINT else []
    return signal_for(run, trainer.pid, number, members)


def _wake(trainer: processes.Identity) -> None:
    """Send CONT to what is suspended of a training that was told to stop: it can save then."""
    for pid in liveness.suspended_of_trainer(trainer):
        if one := processes.identify(pid):
            processes.send(one, signal.SIGCONT)


def _tell_if_it_trains_on(run: Run, trainer: processes.Identity, number: int, deadline: float) -> None:
    """Watch a trainer that has got the signal from elsewhere; one that begins further steps has not."""
    if _trains_on(run, trainer, deadline):
        _tell_first(run, trainer, number, deadline)


def _trains_on(run: Run, trainer: processes.Identity, deadline: float) -> bool:
    """Wait until a trainer begins further steps after PATIENCE: True; False where it has ended, or the grace has."""
    progress, begun = Progress(run), time.monotonic()
    while time.monotonic() < deadline and not processes.wait_for_end(trainer, LOOK_S):
        progress.look()
        if time.monotonic() - begun <= patience_s(run):
            progress.begin_anew()
        elif progress.trains_on:
            return True
    return False


def _wait_for_what_is_left(
    run: Run, trainer: processes.Identity, number: int, deadline: float, *, has_heard: bool
) -> None:
    """Wait for the rest of a training whose first process has ended: a wrapper's Python may still be saving.

    The shim tells it to stop. Where the shim is dead too, it is told from here.
    """
    survivors = Survivors(run, trainer)
    members = survivors.members()
    if has_heard:
        survivors.have_heard([number], members)
    while members and time.monotonic() < deadline:
        if _shim(run) is None:
            survivors.tell(number, members)
        time.sleep(0.1)
        members = survivors.members()


def _left_after_the_end(run: Run, *, is_launcher_s: bool) -> processes.Identity | None:
    """Return the first process of a training whose end is written down, where something that it has left lives here.

    A signal to the launcher is not meant for a helper that was started to stay: then only what trains on counts.
    """
    state = status.read_state(run)
    trainer = run.trainer_of(state.get("launched"))
    if run_end.read(run) is None or trainer is None or life_signs.place_of(run, trainer) != HERE:
        return None
    if is_launcher_s and not status.look(run, state).trains_on:
        return None
    return trainer if processes.session_members(trainer) else None


def _end_what_is_left(run: Run, trainer: processes.Identity, signal_name: str, *, is_now: bool) -> int:
    """End what lives of a training whose end is written down: a signal to each, once, and KILL after the grace."""
    members = processes.session_members(trainer)
    pids, grace = process_details.shown(member.pid for member in members), 0.0 if is_now else grace_s(run)
    how = "is killed" if is_now else f"is told to stop, and killed after {grace:.0f} s"
    _say(f"the end of '{run.run_id}' is written down; what is left of it (pid {pids}) {how}")
    if _awaits_recovery(run):
        _write_down(run, signal_name, None, is_now=is_now)
    _wait_for_what_is_left(run, trainer, stop_signal(run, signal_name), time.monotonic() + grace, has_heard=False)
    return _end_now(run, trainer)


def _end_now(run: Run, trainer: processes.Identity | None) -> int:
    if trainer is None:
        return FAILED
    if processes.kill_session(trainer, KILL_WAIT_S):
        _warn(run, "cannot_be_killed", f"what is left of session {trainer.pid} does not end on KILL")
        return FAILED
    if _is_unknown(run, trainer):
        return FAILED
    give_up = time.monotonic() + END_WAIT_S
    while run_end.read(run) is None and _shim(run) is not None and time.monotonic() < give_up:
        time.sleep(0.02)
    return DONE


def _send(trainer: processes.Identity, number: int) -> bool:
    """Send a signal to the trainer; in the middle of its exec it cannot be told from another process, for a moment."""
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
    """Whether a process lives under the trainer's pid that may be another's: none that may be signalled."""
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
    say("resumekit", sentence)


def _wait_for_trainer(run: Run) -> processes.Identity | None:
    """Return the trainer's first process while anything of the training lives; None when all has ended, or none comes.

    A wrapper may have ended before what it wrapped: its shim says when the training has.
    """
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline and run_end.read(run) is None:
        with contextlib.suppress(OSError):  # a network drive may answer the next time
            for event, _ in journal.read(run.paths.journal):
                if event["event"] == "launched":
                    trainer = run.trainer_of(event)
                    return trainer if trainer and _is_there(trainer) else None
        time.sleep(0.05)
    return None


def _is_there(trainer: processes.Identity) -> bool:
    return processes.probe(trainer) != processes.DEAD or bool(processes.session_members(trainer))
