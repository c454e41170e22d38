"""Alive, dead or unknown: one function for all who ask; and which processes of a run are suspended."""

from __future__ import annotations

from ..base import process_details, processes
from ..base.claims import FREE, HELD, UNASKED
from ..base.imports import NamedTuple
from ..base.processes import ALIVE, DEAD, UNKNOWN
from ..base.run_ties import COPY as COPY
from ..base.run_ties import OURS as OURS
from ..base.run_ties import UNSEEN as UNSEEN
from .journal_fold import State
from .run_folder import Run

# Where a run was started, as seen from this process.
HERE, NAMESPACE, BOOT, HOST = "here", "namespace", "boot", "host"
# The verdict on a run whose end is written down, and that trains on all the same.
MOVES = "moves"
# The verdict on a run that a scheduler's word has declared dead.
JOB = "job"
# And the one where the trainer's files deny that.
JOB_MOVES = "job_moves"
# A lock that is held by processes alone that were started to outlive the trainer: without the run's token.
HELPERS = "helpers"
# A file that has changed within so many seconds is a sign of life. The sidecar renews status.json each minute.
FRESH_S = 180.0


# A trainer whose job is over, by the scheduler's word, is believed dead when it has been silent for so many seconds.
SILENCE_S = 10.0


class Evidence(NamedTuple):
    """What can be seen of a run's trainer from here, at one moment.

    Args:
        place: HERE, or what differs: another pid NAMESPACE of this boot, another BOOT of this host, another HOST.
        is_launched: the journal says `launched`.
        is_ended: exit.json is there, or the sidecar has written down that the trainer ended.
        trainer, shim, launcher: ALIVE, DEAD or UNKNOWN, by processes.probe.
        whose: of a trainer that is ALIVE: OURS, COPY or UNSEEN.
        members: live processes of the trainer's session, or with its token, beside its first one.
        session_lock: HELD, FREE, MISSING (a run of an older version) or UNASKED, as claims has them; or HELPERS.
        status_lock: one of the first four.
        is_fresh: a file of the run has changed within FRESH_S.
        moves_on: the end is written down, and a file of the trainer's has changed since.
        has_word: a person has said that it is dead (`--take-over`), and nothing has changed since.
        is_job_over: the scheduler says that the job which it ran in is over, or has begun anew.
        is_moving: and a file of the trainer's has changed within SILENCE_S all the same.
    """

    place: str
    is_launched: bool = True
    is_ended: bool = False
    trainer: str = UNKNOWN
    shim: str = UNKNOWN
    launcher: str = UNKNOWN
    whose: str = OURS
    members: int = 0
    session_lock: str = FREE
    status_lock: str = FREE
    is_fresh: bool = False
    has_word: bool = False
    moves_on: bool = False
    is_job_over: bool = False
    is_moving: bool = False


class Verdict(NamedTuple):
    """Whether a trainer lives.

    Args:
        what: ALIVE, DEAD or UNKNOWN.
        reasons: (code, words) each; the first one decided.
        way_out: what a person can do about UNKNOWN, one sentence; '' otherwise.
        can_take_over: whether a person's word is enough to go on from this run.
    """

    what: str
    reasons: tuple[tuple[str, str], ...]
    way_out: str = ""
    can_take_over: bool = False

    @property
    def code(self) -> str:
        return self.reasons[0][0]

    @property
    def words(self) -> str:
        return "; ".join(words for _, words in self.reasons)


TAKE_OVER = "if you know that it is dead, --take-over (run.sh, resume.sh) goes on from it"
WAIT = f"look again once nothing has changed for {FRESH_S / 60:.0f} minutes"
_WORDS = {
    "process": "its trainer runs",
    "ending": "its trainer has ended, and its shim is writing that down",
    "members": "processes of its trainer's session still run",
    MOVES: "its end is written down, but processes of its training go on, and its files change",
    "starting": "its launcher is starting it",
    "no_trainer": "no trainer was ever started",
    "ended": "its end is written down",
    "processes": "its processes are gone",
    "reboot": "its host has been started anew, its lock is free, and none of its files changes",
    "lock_free": "its trainer's lock is free, on this very host and boot, and none of its files changes",
    JOB_MOVES: "the scheduler says that its job is over, and its trainer's files change all the same",
    JOB: "the scheduler says that its job is over, or has begun anew",
    "word": "a person has said that it is dead (--take-over), and nothing of it has changed since",
    "session_lock": "a process holds its trainer's lock",
    "status_lock": "its sidecar is at work",
    "fresh": "its files are changing",
    "copy": "this is a copy of a live run: the trainer writes into another folder",
    "elsewhere": "its process runs, but whether it writes into this folder cannot be seen",
    "hidden": "its process may not be looked at from here",
    "no_lock": "it has no lock that would say whether its trainer lives",
    "place": "its processes cannot be seen from here",
}


def judge(seen: Evidence) -> Verdict:
    """Say whether a trainer lives; pure.

    The rules: a sign of life (process, member of its session, held lock, changing file) is never outvoted by the lack
    of another one; DEAD needs a proof: an end that was written down, processes that would be seen, a free lock of the
    same host and boot, the word of the scheduler that ran it, or a person's word that nothing has contradicted since.
    Where processes are seen, files that have just changed prove nothing: a trainer that dies leaves such files. Nor
    do they where a scheduler has ended its job: the claim of what goes on keeps a trainer that comes back from saving.
    """
    if seen.is_ended:
        return _after_the_end(seen)
    if not seen.is_launched:
        return _before_the_start(seen)
    return {HERE: _here, NAMESPACE: _in_another_namespace, BOOT: _in_another_boot, HOST: _on_another_host}[seen.place](
        seen
    )


def _after_the_end(seen: Evidence) -> Verdict:
    """The first process has ended; what it left may still train, or hold its lock."""
    if seen.members and seen.moves_on:
        return _alive(MOVES)
    if seen.members or (seen.place == HERE and seen.trainer == ALIVE and seen.whose == OURS):
        return _alive("members")
    if seen.session_lock == HELD and not (seen.is_job_over and seen.place in (BOOT, HOST)):
        return _dead("word") if seen.has_word else _unknown("session_lock", _end_holder(seen), can_take_over=True)
    return _dead("ended")


def _before_the_start(seen: Evidence) -> Verdict:
    """No trainer is known of; one whose journal was lost is named by the status."""
    if seen.place == HERE and seen.trainer == ALIVE and seen.whose != COPY:
        return _alive("process")
    if seen.is_job_over and not seen.members and seen.place in (BOOT, HOST):
        return _of_job(seen)
    is_coming = seen.launcher == ALIVE or seen.session_lock == HELD or (seen.launcher == UNKNOWN and seen.is_fresh)
    return _alive("starting") if is_coming or seen.members else _dead("no_trainer")


def _here(seen: Evidence) -> Verdict:
    if seen.trainer == ALIVE and seen.whose == COPY:
        return _dead("word") if seen.has_word else _unknown(
            "copy",
            "go on with the original, branch with resume.sh --step N, or, to train the copy beside it, --take-over",
            can_take_over=True,
        )  # fmt: skip
    if seen.trainer == ALIVE and seen.whose == UNSEEN:
        return _unknown("elsewhere", "stop it where it was started (abort-watch.sh --stop), or end its process")
    if ALIVE in (seen.trainer, seen.shim):
        return _alive("process" if seen.trainer == ALIVE else "ending")
    if seen.members:
        return _alive("members")
    if seen.trainer == UNKNOWN:
        if HELD in (seen.session_lock, seen.status_lock) or seen.is_fresh:
            return _alive(_sign_of(seen), "hidden")
        return _dead("word") if seen.has_word else _unknown("hidden", TAKE_OVER, can_take_over=True)
    if seen.session_lock == HELD:
        return _dead("word") if seen.has_word else _unknown("session_lock", _end_holder(seen), can_take_over=True)
    return _dead("processes")


def _in_another_namespace(seen: Evidence) -> Verdict:
    """A container of this very kernel: its locks are seen, its pids are not."""
    if seen.members:
        return _alive("members", "place")
    if HELD in (seen.session_lock, seen.status_lock):
        return _alive(_sign_of(seen), "place")
    if seen.is_job_over:
        return _of_job(seen)
    if seen.is_fresh:
        return _unknown("fresh", WAIT, "place")
    if seen.session_lock in (FREE, HELPERS):
        return _dead("lock_free")
    return _dead("word") if seen.has_word else _unknown("no_lock", TAKE_OVER, "place", can_take_over=True)


def _in_another_boot(seen: Evidence) -> Verdict:
    """A reboot, most of the time; or a clone of this machine with its name, which trains on the same disk."""
    if seen.is_job_over and not seen.members:
        return _of_job(seen)
    if HELD in (seen.session_lock, seen.status_lock) or seen.is_fresh or seen.members:
        if seen.has_word and not seen.is_fresh and not seen.members:
            return _dead("word")
        is_still = not seen.is_fresh and not seen.members
        return _unknown(_sign_of(seen), TAKE_OVER if is_still else WAIT, "place", can_take_over=is_still)
    if seen.session_lock == UNASKED:
        return _dead("word") if seen.has_word else _unknown("no_lock", TAKE_OVER, "place", can_take_over=True)
    return _dead("reboot")


def _on_another_host(seen: Evidence) -> Verdict:
    """Neither its processes nor its locks say anything: a network drive loses locks."""
    if seen.is_job_over and not seen.members:
        return _of_job(seen)
    if seen.is_fresh or seen.members:
        return _alive("fresh" if seen.is_fresh else "members", "place")
    if seen.has_word:
        return _dead("word")
    signs = ("session_lock",) if seen.session_lock == HELD else ("status_lock",) if seen.status_lock == HELD else ()
    return _unknown("place", TAKE_OVER, *signs, can_take_over=True)


def _of_job(seen: Evidence) -> Verdict:
    """The scheduler's word: a launcher that was killed ends its job, and its trainer may train on."""
    if not seen.is_moving:
        return _dead(JOB)
    return _unknown(JOB_MOVES, f"look again once its trainer has been silent for {SILENCE_S:.0f} s")


def _sign_of(seen: Evidence) -> str:
    if seen.session_lock == HELD:
        return "session_lock"
    return "status_lock" if seen.status_lock == HELD else "fresh" if seen.is_fresh else "members"


def _end_holder(seen: Evidence) -> str:
    return f"end the process that holds trainer.lock (`fuser -v trainer.lock` in its folder names it); or, {TAKE_OVER}"


def _alive(*codes: str) -> Verdict:
    return Verdict(ALIVE, _reasons(codes))


def _dead(*codes: str) -> Verdict:
    return Verdict(DEAD, _reasons(codes))


def _unknown(code: str, way_out: str, *more: str, can_take_over: bool = False) -> Verdict:
    return Verdict(UNKNOWN, _reasons((code, *more)), way_out, can_take_over)


def _reasons(codes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((code, _WORDS[code]) for code in codes)


# Which processes of a run are suspended (`kill -STOP`, Ctrl-Z, a debugger), and the command that lets them go on.
#
# A suspended launcher takes up no end, a suspended shim writes none down, a suspended sidecar follows nothing, and
# a suspended trainer does not hang, nor do ranks that wait for a suspended one: no process is suspended but by a signal
# or a debugger. Only the user who suspended them can know whether that is meant. Reads /proc and the sidecar's account;
# writes nothing. Try it: `bin/runs.sh`

LAUNCHER, SHIM, SIDECAR, HELPER, TRAINER = "launcher", "shim", "sidecar", "helper", "trainer"
# So many processes of a training are looked at, the nearest first: wrappers, torchrun, the ranks of one machine, not
# each data worker. The sidecar looks four times a second, at some 50 us a process.
MAX_OF_TRAINER = 32


class Suspended(NamedTuple):
    """One suspended process: 'launcher', 'shim', 'sidecar', 'trainer' (its first process, or what that wraps), or
    'helper' (another one of the launcher's group).
    """

    process: str
    pid: int


def suspended_of(run: Run, state: State, *, is_follower: bool = False) -> tuple[Suspended, ...]:
    """Return the suspended processes of a run of this host.

    Args:
        run: the run; its files may be another user's, so each identity is checked against /proc.
        state: its folded journal.
        is_follower: the run's own sidecar asks, which is not suspended.
    """
    if not run.is_in_our_namespace:
        return ()
    launched = state.get("launched") or {}
    launcher = processes.identity_from(launched.get("launcher") or run.record.get("launcher"))
    identities = {
        LAUNCHER: launcher,
        SHIM: processes.identity_from(launched.get("shim")),
        SIDECAR: None if is_follower else processes.identity_from(run.sidecar_account.get("sidecar")),
    }
    named = [
        Suspended(name, identity.pid)
        for name, identity in identities.items()
        if identity is not None and processes.is_stopped(identity)
    ]
    trainer = run.trainer_of(state.get("launched"))
    named += [Suspended(TRAINER, pid) for pid in suspended_of_trainer(trainer, identities[SHIM])]
    if launcher is None or not any(one.process == LAUNCHER for one in named):
        return tuple(named)
    # Ctrl-Z suspends the launcher's whole group, subshells of it too: all of them have to go on.
    others = set(processes.stopped_in_group_of(launcher)) - {one.pid for one in named}
    return (*named, *(Suspended(HELPER, pid) for pid in sorted(others)))


def suspended_of_trainer(trainer: processes.Identity | None, shim: processes.Identity | None = None) -> list[int]:
    """Return the pids of the suspended ones of a trainer's first process and its nearest descendants.

    Args:
        trainer: the first process.
        shim: its parent; where the first process has ended, what that has left is looked at, which is below the shim.
    """
    if trainer is None:
        return []
    found = _suspended_from([trainer.pid])
    if found and processes.probe(trainer) == processes.ALIVE:
        return found
    left = [] if shim is None else process_details.children_of(shim.pid)
    if shim is None or trainer.pid in left:
        return []
    found = _suspended_from(left)
    return found if found and processes.probe(shim) == processes.ALIVE else []


def _suspended_from(pids: list[int]) -> list[int]:
    """Return which of these processes and of their nearest descendants are suspended."""
    walked = pids[:MAX_OF_TRAINER]
    for pid in walked:  # grows while it is walked
        walked += process_details.children_of(pid)[: max(0, MAX_OF_TRAINER - len(walked))]
    return [pid for pid in walked if process_details.is_suspended(pid)]


def suspended_words(found: tuple[Suspended, ...]) -> str:
    """Return the sentence that names the processes and the command; '' where none is suspended."""
    if not found:
        return ""
    named = [f"{one.process} (pid {one.pid})" for one in found if one.process != HELPER]
    which = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    verb, whom = ("are", "them") if len(named) > 1 else ("is", "it")
    return f"its {which} {verb} suspended (state T): {continue_command(found)} lets {whom} go on"


def continue_command(found: tuple[Suspended, ...]) -> str:
    """Return the command that lets suspended processes go on, to be pasted."""
    return " ".join(["kill -CONT", *(str(one.pid) for one in found)])
