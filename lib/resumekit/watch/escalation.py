"""Giving up: a run that a person has to look at. One event with the reason, and the person is told.

Writes into the run's journal and status, takes its live marker away, and runs `notify.command`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence

from ..base import journal
from ..base.claims import locked, try_lock
from ..base.errors import KitError
from ..base.imports import Any
from ..base.redaction import redact
from ..base.terminal import plain
from ..base.values import listed, seconds, string
from ..process import aborting
from ..run import live_marker, status
from ..run.run_folder import Run
from ..run.run_table import RunTable
from . import incident as incidents
from .incident import Incident

NOTIFY_S = 30.0
MAX_REASON = 1000
# The kind of the warning in the journal of a run that lives.
UNATTENDED = "unattended"
# Within so long of one telling a second watcher tells nothing: what it tells it has seen since the same moment.
TOLD_FOR_S = 600.0
ENDED_EARLY = status.ENDED_EARLY


def call_a_person(run: Run, incident: Incident, reason: str, *, is_told: bool = False) -> None:
    """Write down that nothing goes on from here by itself, once, and tell it.

    The live marker goes last: while it is there, no person may have been told yet, and `renotify` does.

    Args:
        run: the run that ended.
        incident: how.
        reason: one sentence: what stands against a recovery.
        is_told: the person who is to know has been told, at the terminal: `notify.command` is not needed.

    Raises:
        Refused, OSError: it cannot be written; no person is told then, and the next pass tries again.
    """
    fields = _fields(run, incident, reason)
    with locked(run.paths.lock):
        if status.needs_attention(status.read_state(run)):
            return
        journal.append(run.paths.journal, "recovery", run.run_id, **fields)
    _tell(run, fields, is_told=is_told)


def renotify(run: Run) -> None:
    """Tell of a run that needs attention if the process that wrote that down may have been killed before it told it."""
    fields = status.read_state(run).get("recovery") or {}
    _tell(run, {key: value for key, value in fields.items() if key != "at"}, is_again=True)


def escalate(run: Run, table: RunTable, reason: str) -> None:
    """Tell a person of a run about which nothing can be done from here: it is over, or it lives and cannot be judged.

    A run that is over needs attention then, as by `call_a_person`. One that lives stays what it is: a warning in its
    journal says so, and `notify.command` gets that.

    Raises:
        Refused, OSError: it cannot be written, or the run's lock is held: the caller tries again.
    """
    found = None
    with contextlib.suppress(OSError):  # a journal that cannot be read now: that may be what is told
        found = incidents.of(run, status.read_state(run), table)
    if found is None:
        _warn_and_tell(run, reason)
        return
    aborting.note(run, found.cause, found.evidence, first_bad_step=found.first_bad_step)
    call_a_person(run, found, f"{found.evidence}; {reason}")


def _warn_and_tell(run: Run, reason: str) -> None:
    # A run whose folder cannot be written to is told of all the same.
    with contextlib.suppress(OSError), contextlib.ExitStack() as lock:
        with contextlib.suppress(KitError):  # held for long, by a process that is suspended perhaps
            lock.enter_context(locked(run.paths.lock))
        if _is_told_just_now(run):
            return
        message = plain(reason)[:MAX_REASON]
        journal.append(run.paths.journal, "warning", run.run_id, kind=UNATTENDED, message=message)
    status.renew(run)
    tell_of(run, UNATTENDED, reason)


def _is_told_just_now(run: Run) -> bool:
    """Whether another watcher, the launcher's or cron's, has told of a run: both have waited for as long."""
    told_s = [
        mono_s for event, _ in journal.read(run.paths.journal)
        if (event.get("event"), event.get("kind")) == ("warning", UNATTENDED)
        and (mono_s := seconds(event.get("mono_s"))) is not None
    ]  # fmt: skip
    return any(0 <= time.monotonic() - mono_s < TOLD_FOR_S for mono_s in told_s)


def tell_unwritten(run: Run, incident: Incident, reason: str) -> None:
    """Tell of a run that needs attention where that cannot be written down: the disk is what it is about."""
    _notify(run, _event(run, _fields(run, incident, reason)))


def tell_of(run: Run, kind: str, message: str) -> None:
    """Run `notify.command` with a warning about a run that goes on: a person should look, nothing waits for it."""
    fields = {"event": "warning", "run_id": run.run_id, "run_dir": str(run.paths.run_dir)}
    _notify(run, {**fields, "kind": kind, "message": plain(message)[:MAX_REASON]})


def tell_of_early_end(run: Run, message: str) -> None:
    """Tell, once, of a run that has ended with code 0 before its last step: nothing goes on from it by itself.

    The live marker goes last, as in `call_a_person`. A run without one has been told of.

    Raises:
        OSError: it cannot be written down; the next one that asks tells it.
    """
    with _alone(run) as is_alone:
        if not is_alone or not live_marker.was_made_here(live_marker.of(run.paths)):
            return
        if ENDED_EARLY not in status.read_state(run).get("warned_of", ()):
            journal.append(run.paths.journal, "warning", run.run_id, kind=ENDED_EARLY, message=message)
        status.renew(run)
        tell_of(run, ENDED_EARLY, message)
        with contextlib.suppress(OSError):
            live_marker.remove(run.paths)


def _fields(run: Run, incident: Incident, reason: str) -> dict[str, Any]:
    return {
        "outcome": status.NEEDS_ATTENTION, "cause": incident.cause, "parent_run_id": run.run_id, "child_run_id": None,
        "step": incident.step, "attempt": incident.fruitless, "lr_factor": None, "reason": plain(reason)[:MAX_REASON],
    }  # fmt: skip


def _event(run: Run, fields: dict[str, Any]) -> dict[str, Any]:
    return {"event": "recovery", "run_id": run.run_id, "run_dir": str(run.paths.run_dir), **fields}


def _tell(run: Run, fields: dict[str, Any], *, is_again: bool = False, is_told: bool = False) -> None:
    status.renew(run)
    with _alone(run) as is_alone:
        if not is_alone or (is_again and not live_marker.was_made_here(live_marker.of(run.paths))):
            return  # another process is telling it, or has told it
        if not is_told:
            _notify(run, _event(run, fields))
        with contextlib.suppress(OSError):
            live_marker.remove(run.paths)


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[bool]:
    """Hold the marker while a person is told, which may take longer than a pass; True where there is none."""
    try:
        # For writing: on NFS no other process may lock.
        descriptor = os.open(live_marker.of(run.paths), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield True
        return
    try:
        yield _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Lock a marker; where the file system has no locks, telling twice is better than not telling."""
    try:
        return try_lock(descriptor)
    except OSError:
        return True


def _notify(run: Run, event: dict[str, Any]) -> None:
    """Run `notify.command` with the event on its standard input; what it does wrong is written down, no more."""
    command = listed(string)(run.setting("notify", "command"))
    if not command:
        return
    if wrong := notify(command, event, string(run.record.get("root"))):
        with contextlib.suppress(OSError, KitError):
            message = plain(f"notify.command ('{command[0]}') {wrong}")
            journal.append(run.paths.journal, "warning", run.run_id, kind="notify_failed", message=message)


def notify(command: Sequence[str], event: Mapping[str, Any], root: str | None) -> str:
    """Run `notify.command` with an event on its standard input; return what it did wrong, in words, '' for nothing.

    Args:
        command: its words.
        event: becomes a line of JSON.
        root: the folder that it runs in, where that is one.
    """
    import subprocess  # late: each recovery imports this module, and few tell a user

    try:
        done = subprocess.run(
            command, input=json.dumps(event).encode() + b"\n", timeout=NOTIFY_S,
            cwd=root if root is not None and os.path.isdir(root) else None,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"did not end within {NOTIFY_S:.0f} s"
    except (OSError, ValueError) as error:
        return f"could not be started: {getattr(error, 'strerror', None) or error}"
    # curl names its URL, with the key in it.
    said = redact(done.stderr[-2000:])[0][-200:].decode("utf-8", "replace")
    return f"ended with code {done.returncode}: {said}" if done.returncode else ""
