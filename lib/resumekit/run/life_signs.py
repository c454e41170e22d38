"""The signs of a run's life, and what liveness makes of them: /proc, the locks, the journal's fold, the files.

Reads; the one thing it may write is an empty file that is gone at once, to ask a network drive for its time.
Try it: `bin/runs.sh EXP-01`
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

from ..base import claims, processes, run_ties, slurm
from ..base.claims import FREE, HELD
from ..base.files import TempFile, UnreadableFile, read_json, utc_now
from ..base.imports import Any, NamedTuple
from ..base.paths import MANIFEST_SUFFIX
from ..base.processes import ALIVE, DEAD, UNKNOWN
from ..base.values import mapping, string
from . import run_end
from .journal_fold import State
from .liveness import (
    BOOT,
    FRESH_S,
    HELPERS,
    HERE,
    HOST,
    JOB_MOVES,
    NAMESPACE,
    OURS,
    SILENCE_S,
    UNSEEN,
    Evidence,
    Verdict,
    judge,
)
from .run_folder import Run

# A folder with more checkpoints than this is not read to its end: its own time tells of new names.
MAX_CHECKPOINTS = 1000
# The last words of a trainer may reach its log while its end is being written down.
AFTER_S = 1.0


class Sign(NamedTuple):
    """The last sign of life: when a file of the run changed, by the file system's clock, and which."""

    at_s: float
    name: str


class LifeSigns(NamedTuple):
    """A verdict with what a person is shown beside it.

    Args:
        verdict: the verdict.
        launcher: ALIVE, DEAD or UNKNOWN.
        end: exit.json, or None.
        place: as in Evidence.
        sign: the last sign of life; None where it was not needed, or there is none.
        evidence: what was judged.
    """

    verdict: Verdict
    launcher: str
    end: dict[str, Any] | None
    place: str
    sign: Sign | None
    evidence: Evidence


def examine(run: Run, state: State, *, is_thorough: bool = False, is_follower: bool = False) -> LifeSigns:
    """Look at a run's trainer, now.

    A trainer that is seen to run costs two system calls beyond the probe of its process.

    Args:
        run: the run.
        state: its folded journal.
        is_thorough: look for what an ended trainer has left too (a scan of /proc): before another one is started.
        is_follower: the run's own sidecar asks, whose lock and files are no sign of the trainer's life.
    """
    launched = state.get("launched") or {}
    trainer = run.trainer_of(launched) if launched else _told_in_the_status(run)
    shim = processes.identity_from(launched.get("shim"))
    launcher = processes.identity_from(launched.get("launcher") or run.record.get("launcher"))
    # Processes before exit.json: read the other way round, an end between the two would look like a lost trainer.
    place = place_of(run, trainer or launcher)
    probed, whose = _probe(run, trainer, place)
    launcher_probe = processes.probe(launcher)
    shim_probe = processes.probe(shim) if probed == DEAD else UNKNOWN
    end = run_end.read(run)
    if not launched and launcher is None:
        launcher_probe = DEAD  # a folder that the kit did not make, or one whose launcher had ended before
    elif place != HERE:  # its pids are other processes' here
        probed = shim_probe = launcher_probe = UNKNOWN
    is_ended = end is not None or "exited" in state
    seen = Evidence(
        place=place, is_launched=bool(launched), is_ended=is_ended, trainer=probed, shim=shim_probe,
        launcher=launcher_probe, whose=whose,
    )  # fmt: skip
    sign = None
    if end is not None and place == HERE and not is_follower:
        seen = seen._replace(moves_on=moved_after_the_end(run) is not None)
    if _needs_more(seen, is_thorough):
        seen, sign = _more(run, state, seen, trainer, is_thorough=is_thorough, is_follower=is_follower)
    verdict = judge(seen)
    return LifeSigns(verdict=verdict, launcher=_launcher(seen), end=end, place=seen.place, sign=sign, evidence=seen)


def _told_in_the_status(run: Run) -> processes.Identity | None:
    """Return the trainer that status.json names, where the journal was lost; it has to carry the token of run.json."""
    token = string(run.record.get("token"))
    try:
        told = mapping(read_json(run.paths.status))
    except UnreadableFile:
        return None
    if not token:
        return None
    named = {key: told.get(key) for key in ("host", "boot_id", "pid")}
    known = processes.identity_from({**named, "start_ticks": told.get("pid_start_ticks"), "token": token})
    return known and known._replace(ties=processes.Ties(str(run.paths.output_log)))


def _probe(run: Run, trainer: processes.Identity | None, place: str) -> tuple[str, str]:
    """Return (what its process is, whose output it writes); a process that ends just now loses what it is known by."""
    probed = processes.probe(trainer)
    if trainer is None or place != HERE or probed != ALIVE:
        return probed, OURS
    whose = run_ties.whose_output(trainer.pid, run.paths)
    shim = trainer.ties.shim if trainer.ties else None
    if whose == UNSEEN and shim is not None and processes.is_under_shim(trainer.pid, trainer.ties):
        # Its own output goes elsewhere, and its environment was replaced.
        whose = run_ties.whose_output(shim.pid, run.paths)
    if whose == UNSEEN and (again := processes.probe(trainer)) != ALIVE:
        return again, OURS
    return probed, whose


def place_of(run: Run, process: processes.Identity | None) -> str:
    """Return HERE, NAMESPACE, BOOT or HOST; a run that does not say where it was started is another host's."""
    record = run.record
    host = process.host if process else record.get("host")
    boot = process.boot_id if process else record.get("boot_id")
    is_same_kernel = processes.is_of_this_kernel(boot) and record.get("boot_id", boot) == boot
    if not is_same_kernel and (host != processes.host_name() or record.get("host", host) != host):
        return HOST  # a host that was renamed while the run lives is the same kernel
    if boot == processes.boot_id():
        return HERE if run.is_in_our_namespace else NAMESPACE
    # A clone of a machine may have its name; the kernel of one boot has one id, whatever the files of a container say.
    machine, own = string(record.get("machine_id")), processes.machine_id()
    return HOST if machine is not None and own is not None and machine != own else BOOT


def left_of(run: Run, state: State) -> list[processes.Identity]:
    """Return what lives of the session of a run's trainer and is seen from here; after its end, what it has left."""
    leader = run.trainer_of(state.get("launched"))
    return processes.session_members(leader) if leader else []


def with_live_processes(runs: Iterable[Run]) -> list[Run]:
    """Return those of some runs whose token a live process carries, after their end too; one walk through /proc."""
    tokens = processes.live_tokens()
    return [run for run in runs if run.record.get("token") in tokens]


def last_sign(run: Run, *, is_of_trainer: bool = False) -> Sign | None:
    """Return the newest change of the run's files; None where there is none. The argument is `signs`'."""
    return max(signs(run, is_of_trainer=is_of_trainer), default=None)


def signs(run: Run, *, is_of_trainer: bool = False, is_brief: bool = False) -> list[Sign]:
    """Return when each of the run's files changed.

    Args:
        is_of_trainer: leave out what the sidecar and other commands write too: journal, account, status, manifests.
        is_brief: leave out the single checkpoints.
    """
    paths = run.paths
    files = [paths.output_log, paths.heartbeat_json]
    if not is_of_trainer:
        files += [paths.checkpoints, paths.sidecar_state, paths.status, paths.journal]
    found = [sign for path in files if (sign := _sign(str(path), path.name))]
    return found if is_brief else [*found, *_saved(run)]


def moved_after_the_end(run: Run) -> Sign | None:
    """Return the newest change of a file of the trainer's that came after its end was written down; None without one.

    One that is older than the silence that a hang takes counts no more: what has made it shows nothing since.
    """
    ended = _sign(str(run.paths.exit_json), run.paths.exit_json.name)
    if ended is None:
        return None
    changes = signs(run, is_of_trainer=True, is_brief=True)
    folder = _sign(str(run.paths.checkpoints), run.paths.checkpoints.name)
    if folder is not None and folder.at_s > ended.at_s + AFTER_S:  # manifests are made there too
        changes += _saved(run, ended.at_s)
    newest = max((sign for sign in changes if sign.at_s > ended.at_s + AFTER_S), default=None)
    is_recent = newest is not None and now_of(run) - newest.at_s < run_end.silence_limit_s(run)
    return newest if is_recent else None


def _saved(run: Run, since_s: float = 0.0) -> list[Sign]:
    """Return when each checkpoint was written, of those since a moment; a manifest may be a child's work."""
    found = []
    with contextlib.suppress(OSError), os.scandir(run.paths.checkpoints) as entries:
        for _, entry in zip(range(MAX_CHECKPOINTS), entries, strict=False):
            if entry.name.endswith(MANIFEST_SUFFIX):
                continue
            with contextlib.suppress(OSError):
                changed_s = entry.stat(follow_symlinks=False).st_mtime
                if changed_s > since_s:
                    found.append(Sign(changed_s, entry.name))
    return found


def age_words(sight: LifeSigns, run: Run) -> str:
    """Say when a run was last heard of: 'last heard of 2026-11-29 22:14:03 UTC (2 h ago, output.log) on host n1'."""
    host = string(run.record.get("host"))
    where = "" if host is None else f" on host {host[:100]}"
    if sight.sign is None:
        return f"never heard of{where}"
    from ..base.terminal import duration  # only where a person is told

    age = duration(max(0.0, now_of(run) - sight.sign.at_s))
    return f"last heard of {utc_now(sight.sign.at_s)[:16].replace('T', ' ')} UTC ({age} ago, {sight.sign.name}){where}"


def now_of(run: Run) -> float:
    """Return the time by the clock of the file system that a run lies on: a network drive has one of its own."""
    try:
        device = os.stat(run.paths.run_dir).st_dev
    except OSError:
        return time.time()
    if device not in _clock_offsets:
        _clock_offsets[device] = _offset(run)
    return time.time() + _clock_offsets[device]


_clock_offsets: dict[int, float] = {}


def _offset(run: Run) -> float:
    """Return how far the file system's clock is ahead, by a file that is made and removed; 0 where none may be made."""
    with contextlib.suppress(OSError), TempFile(run.paths.run_dir.parent / "clock", mode=0o600) as made:
        return os.fstat(made.descriptor).st_mtime - time.time()
    return 0.0


def settled(look: Callable[[], Any]) -> Any:
    """Look again while a trainer whose job is over moves all the same, for some seconds; return the last look.

    A node that has died has left files that have just changed.

    Args:
        look: returns a look of `status.look`.
    """
    give_up = time.monotonic() + 3 * SILENCE_S
    while (seen := look()).seen.verdict.code == JOB_MOVES and time.monotonic() < give_up:
        time.sleep(1.0)
    return seen


def _needs_more(seen: Evidence, is_thorough: bool) -> bool:
    if seen.is_ended:
        return is_thorough or seen.moves_on or seen.place in (NAMESPACE, BOOT)  # there: whether the launcher lives
    if not seen.is_launched:
        return seen.launcher != ALIVE
    return seen.place != HERE or seen.trainer != ALIVE or seen.whose != OURS


def _more(
    run: Run, state: State, seen: Evidence, trainer: processes.Identity | None, *, is_thorough: bool, is_follower: bool
) -> tuple[Evidence, Sign | None]:
    """Ask what is not asked of a trainer that is seen to run: locks, what is left of its session, files."""
    lock = claims.lock_state(run.paths.session_lock)
    status_lock = FREE if is_follower else claims.lock_state(run.paths.status_lock)
    members = _members(seen, trainer, lock) if is_thorough or seen.moves_on or not seen.is_ended else 0
    if lock == HELD and seen.place == HERE and not members and run_ties.are_helpers(run.paths, run.run_id):
        lock = HELPERS
    has_word = _has_word(run, state, lock)
    # The word itself is in the journal, and is no sign of life.
    changes = signs(run, is_of_trainer=is_follower or has_word, is_brief=seen.is_ended)
    is_fresh = any(_is_fresh(run, sign) for sign in changes)
    seen = seen._replace(
        session_lock=lock, status_lock=status_lock, members=members, is_fresh=is_fresh,
        has_word=has_word, is_job_over=not is_follower and seen.place != HERE and _is_job_over(run),
    )  # fmt: skip
    if seen.is_job_over:
        own = signs(run, is_of_trainer=True, is_brief=True)
        seen = seen._replace(is_moving=any(_is_fresh(run, sign, SILENCE_S) for sign in own))
    return seen, max(changes, default=None)


def ask_about_jobs(runs: Iterable[Run]) -> None:
    """Ask Slurm, once, of the jobs of those runs of whose end nothing is written down and whose processes are not seen.

    What `examine` asks of each of them is answered from that for a while.
    """
    known = (
        (run, mapping(run.record.get("scheduler")))
        for run in runs
        if run.record.get("scheduler") is not None and place_of(run, None) != HERE
    )
    slurm.ask_together(
        str(scheduler.get("job"))
        for run, scheduler in known
        if scheduler.get("name") == "slurm" and not os.path.lexists(run.paths.exit_json)
    )


def _is_job_over(run: Run) -> bool:
    return slurm.says_it_is_over(run.record.get("scheduler"))


def _is_fresh(run: Run, sign: Sign, within_s: float = FRESH_S) -> bool:
    """Whether a file has changed within so many seconds; a time that was set far into the future is no change."""
    if 0 <= time.time() - sign.at_s < within_s:
        return True
    # Only where our own clock denies it does the file system's matter: asking that one makes a file.
    return abs(now_of(run) - sign.at_s) < within_s


def _members(seen: Evidence, trainer: processes.Identity | None, lock: str) -> int:
    if trainer is None or seen.trainer == ALIVE or seen.shim == ALIVE:
        return 0
    if seen.place == HERE:
        return len(processes.session_members(trainer))
    # From outside of a container its processes are seen, under other pids.
    if seen.place == NAMESPACE and lock != HELD and trainer.token is not None:
        return len(processes.carriers(trainer.token))
    return 0


def original_of(run: Run, state: State) -> str:
    """Say where the live trainer of a copied run writes: 'pid 4711, which writes into '/runs/X''."""
    trainer = run.trainer_of(state.get("launched"))
    if trainer is None:
        return "an unknown process"
    named = processes.environment_variable(trainer.pid, "RESUMEKIT_RUN_DIR")
    return f"pid {trainer.pid}" + (f", which writes into '{named}'" if named else "")


def _sign(path: str, name: str) -> Sign | None:
    try:
        return Sign(os.lstat(path).st_mtime, name)
    except (OSError, ValueError):
        return None


def _has_word(run: Run, state: State, lock: str) -> bool:
    """Whether a person has taken the run over, and neither a file of its trainer nor its lock says otherwise since."""
    word = state.get("taken_over")
    if not word:
        return False
    sign, until_s = last_sign(run, is_of_trainer=True), word.get("last_sign_s")
    is_still = sign is None or (until_s is not None and sign.at_s <= until_s)
    return is_still and (lock != HELD or word.get("session_lock") == HELD)


def _launcher(seen: Evidence) -> str:
    """Say whether the launcher lives; where it cannot be seen it is dead if nothing of the run moves any more."""
    if seen.place == HERE or seen.launcher == ALIVE:
        return seen.launcher
    is_still = HELD not in (seen.session_lock, seen.status_lock) and not seen.is_fresh and not seen.members
    return DEAD if seen.place in (NAMESPACE, BOOT) and is_still else UNKNOWN
