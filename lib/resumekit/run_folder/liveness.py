"""Whether a run's trainer is alive, dead, or cannot be told from here: one answer for every command.

`judge` is pure; what it judges is collected by life_signs. A sign of life forbids *dead*; *dead* needs a proof;
*unknown* always names a way out for a person.
Try it: `bin/runs.sh --json EXP-01 | grep liveness`
"""

from __future__ import annotations

from typing import NamedTuple

from ..basics.claims import FREE, HELD, UNASKED
from ..basics.processes import ALIVE, DEAD, UNKNOWN

# Where a run was started, as seen from this process.
HERE, NAMESPACE, BOOT, HOST = "here", "namespace", "boot", "host"
# Whose output a live trainer writes: this folder's, another folder's (this one is a copy), or it cannot be told.
OURS, COPY, UNSEEN = "ours", "copy", "unseen"
# The verdict on a run whose end is written down, and that trains on all the same.
MOVES = "moves"
# A lock that is held by processes alone that were started to outlive the trainer: without the run's token.
HELPERS = "helpers"
# A file that has changed within so many seconds is a sign of life. The sidecar renews status.json each minute.
FRESH_S = 180.0


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
    same host and boot, or a person's word that nothing has contradicted since. Where processes are seen, files that
    have just changed prove nothing: a trainer that dies leaves such files.
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
    if seen.session_lock == HELD:
        return _dead("word") if seen.has_word else _unknown("session_lock", _end_holder(seen), can_take_over=True)
    return _dead("ended")


def _before_the_start(seen: Evidence) -> Verdict:
    """No trainer is known of; one whose journal was lost is named by the status."""
    if seen.place == HERE and seen.trainer == ALIVE and seen.whose != COPY:
        return _alive("process")
    is_coming = seen.launcher == ALIVE or seen.session_lock == HELD or (seen.launcher == UNKNOWN and seen.is_fresh)
    return _alive("starting") if is_coming or seen.members else _dead("no_trainer")


def _here(seen: Evidence) -> Verdict:
    if seen.trainer == ALIVE and seen.whose == COPY:
        return _dead("word") if seen.has_word else _unknown(
            "copy", "go on with the original, branch with --step, or, to train the copy beside it, --take-over",
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
    if seen.is_fresh:
        return _unknown("fresh", WAIT, "place")
    if seen.session_lock in (FREE, HELPERS):
        return _dead("lock_free")
    return _dead("word") if seen.has_word else _unknown("no_lock", TAKE_OVER, "place", can_take_over=True)


def _in_another_boot(seen: Evidence) -> Verdict:
    """A reboot, most of the time; or a clone of this machine with its name, which trains on the same disk."""
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
    if seen.is_fresh or seen.members:
        return _alive("fresh" if seen.is_fresh else "members", "place")
    if seen.has_word:
        return _dead("word")
    signs = ("session_lock",) if seen.session_lock == HELD else ("status_lock",) if seen.status_lock == HELD else ()
    return _unknown("place", TAKE_OVER, *signs, can_take_over=True)


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
