"""A stop that is asked for through a run's folder, and a person's word that a run is dead which cannot be seen from
here.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from ..base import claims, journal, processes
from ..base.errors import KitError, Refused
from ..base.files import UnreadableFile, read_json, to_json, utc_now, write_atomic
from ..base.imports import Any
from ..base.terminal import plain, say
from ..base.values import mapping, string
from ..run import life_signs, liveness, status
from ..run.journal_fold import State
from ..run.liveness import HERE
from ..run.run_folder import Run

# How long the run's own sidecar is waited for; it looks each second.
OBEY_WAIT_S = 15.0
# A stop that was started may be killed in the middle of its grace.
STOP_AGAIN_S = 30.0
MAX_REQUEST_BYTES = 4096


def caller() -> str:
    """Return who this process belongs to: 'ada (uid 1000)'."""
    return _user(os.geteuid())


def ask(run: Run, state: State) -> str:
    """Write the request; returns what is to be said. Raises OSError where the folder may not be written to."""
    trainer = (state.get("launched") or {}).get("trainer")
    request = {"trainer": _of(trainer), "by": caller(), "host": processes.host_name(), "at": utc_now()}
    # Whatever the umask: its reader is another user. By its descriptor: a link may take the name's place at any time.
    write_atomic(run.paths.stop_request, to_json(request), mode=0o644, has_umask=False)
    return (
        f"'{run.run_id}' cannot be signalled from here: its own launcher is asked to stop it "
        f"('{run.paths.stop_request.name}' in its folder)"
    )


def have_it_stopped(run: Run, state: State) -> bool:
    """Ask, and wait; whether its sidecar obeys. What stands against it is said."""
    try:
        say("resumekit", ask(run, state))
    except OSError as error:
        words = f"cannot be signalled from here, nor be asked to stop: {error.strerror} (its folder)"
        say("resumekit", f"'{run.run_id}' {words}")
        return False
    if is_obeyed(run):
        return True
    say("resumekit", f"'{run.run_id}': {why_it_is_not_obeyed(run)}")
    return False


def is_obeyed(run: Run) -> bool:
    """Wait until the run's sidecar has journaled the stop, or its end is there; False after OBEY_WAIT_S."""
    give_up = time.monotonic() + OBEY_WAIT_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError):
            if "stopped" in (state := status.read_state(run)) or "exited" in state:
                return True
        time.sleep(0.2)
    return False


def why_it_is_not_obeyed(run: Run) -> str:
    """Say why a request was not obeyed, and what else can be done."""
    sign = life_signs.last_sign(run)
    heard = f"; a file of it changed last at {utc_now(sign.at_s)[:16].replace('T', ' ')} UTC" if sign else ""
    is_dead = claims.lock_state(run.paths.status_lock) == claims.FREE
    who = "its sidecar is dead" if is_dead else f"its sidecar has not answered within {OBEY_WAIT_S:.0f} s"
    return (
        f"{who}{heard}: the request stays in its folder; end the run where it was started, or, if you know that it is "
        "dead, go on from it with --take-over (run.sh, resume.sh)"
    )


class Obedience:
    """Looks for a request, and for a run that has taken this one over; stops the trainer for either. The sidecar's.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stopped_at = float("-inf")

    def look(self, state: State, now: float) -> None:
        """Two lstats where there is nothing; else the event, then the stop, again until the trainer has ended.

        Args:
            state: the folded journal.
            now: the monotonic clock.
        """
        if "launched" not in state or now - self._stopped_at < STOP_AGAIN_S:
            return
        if "stopped" in state and "stop_asked_by" not in state:
            return  # it is being stopped already: a second signal would mean now
        asked_by = state.get("stop_asked_by") or self._taken_over() or self._asked(state)
        if asked_by is None or not self._can_stop(state):
            return  # what cannot be signalled from here either is not said to be stopped
        self._stopped_at = now
        if "stopped" not in state:
            try:
                journal.append(
                    self._run.paths.journal, "stopped", self._run.run_id, by="TERM", now=False, asked_by=asked_by
                )
            except OSError:
                return  # what cannot be written down is tried again
        from .aborting import stop_aborted  # late: few runs are asked to stop, and each start would wait for it

        stop_aborted(self._run.paths.run_dir)

    def _can_stop(self, state: State) -> bool:
        trainer = self._run.trainer_of(state["launched"])
        return life_signs.place_of(self._run, trainer) == HERE and processes.probe(trainer) != processes.UNKNOWN

    def _taken_over(self) -> str | None:
        """Return the run that goes on from this one though this one lives: it may not save beside that one."""
        path = self._run.paths.continuation
        claim = claims.continuation_of(self._run.paths) if os.path.lexists(path) else None
        child = string(mapping(claim).get("run_id"))
        return None if child is None else plain(f"'{child[:200]}', which has taken this run over")

    def _asked(self, state: State) -> str | None:
        """Return who asks to stop this very trainer; None where nothing is asked, or of another one."""
        path = self._run.paths.stop_request
        try:
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode):
                return None
            request = mapping(read_json(path, MAX_REQUEST_BYTES))
        except (OSError, UnreadableFile):
            return None
        if not request or request.get("trainer") != _of(state["launched"]["trainer"]):
            return None
        host = string(request.get("host"))
        # The owner of the file is a fact, the name in it is not.
        return plain(_user(found.st_uid) + ("" if host is None else f" on host {host[:100]}"))


def _of(trainer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what a request says of the trainer: enough to know it by."""
    return {key: trainer.get(key) for key in ("host", "boot_id", "pid", "start_ticks")} if trainer else None


def _user(uid: int) -> str:
    import pwd  # late: it may ask the network

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (KeyError, OSError):
        return f"uid {uid}"


# A person's word that a run is dead which cannot be told dead from here: written down in that run, with what was
# seen.
#
# The claim comes before it, and is the fence: should the trainer come back, its next save, beat or its sidecar
# finds it. Try it: `bin/resume.sh EXP-01 --take-over`


def record_take_over(parent: Run, child_run_id: str, *, has_word: bool) -> None:
    """Journal `taken_over` in a run that has just been claimed, where it is not seen to be dead.

    Args:
        parent: the run.
        child_run_id: the run that has claimed it.
        has_word: a person says that it is dead; without, only the word of its scheduler is written down.

    Raises:
        Refused: it has shown a sign of life meanwhile.
        KitError: it cannot be written. The caller takes its claim back.
    """
    sight = life_signs.examine(parent, status.read_state(parent), is_thorough=True)
    by = caller()
    if sight.verdict.code == liveness.JOB:
        by = f"slurm (job {plain(str(mapping(parent.record.get('scheduler')).get('job')))})"
    elif sight.verdict.what == processes.DEAD or not has_word:
        return  # no word was needed, or none was said
    elif not sight.verdict.can_take_over:
        raise Refused(f"'{parent.run_id}' has shown a sign of life just now: {sight.verdict.words}")
    sign = life_signs.last_sign(parent, is_of_trainer=True)
    try:
        journal.append(
            parent.paths.journal, "taken_over", parent.run_id, by=by, host=processes.host_name(),
            child_run_id=child_run_id, evidence=f"{sight.verdict.words}; {life_signs.age_words(sight, parent)}",
            last_sign_s=sign.at_s if sign else None, session_lock=sight.evidence.session_lock,
        )  # fmt: skip
    except OSError as error:
        raise KitError(f"that '{parent.run_id}' is taken over cannot be written down: {error.strerror}") from error
