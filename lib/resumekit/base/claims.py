"""What one run may claim in another's folder: to continue its head, and that a step of it is kept.

A claim is a file made with exclusive create, under the run's lock. `claims/continued.json` says who continues this
head, for good; `claims/pin_<step>_<child>.json` keeps a step from being pruned while a branch stands on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import processes, slurm
from .errors import Busy, Refused
from .files import NO_HARD_LINKS, TempFile, UnreadableFile, fsync_directory, read_json, to_json, utc_now, write_new
from .paths import RunPaths

LOCK_WAIT_S = 10.0
# What a lock file answers. UNASKED: it is there, and the file system does not say.
HELD, FREE, MISSING, UNASKED = "held", "free", "missing", "unasked"

HasStarted = Callable[[str], bool]


@contextlib.contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock file at `path`, made if it is not there; Refused as in `held`."""
    with held(open_lock(path), path, wait_s):
        yield


def open_lock(path: Path) -> int:
    """Open a lock file, made if it is not there, never through a link; closed on exec. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


@contextlib.contextmanager
def held(descriptor: int, path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock of an open file, let go of it at the end, and close the file.

    The descriptor is closed on exec, so that no child keeps the lock; nor does a child that was forked meanwhile.

    Raises:
        Busy: another process holds it for longer than `wait_s` seconds.
    """
    try:
        deadline = time.monotonic() + wait_s
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Busy(f"another command holds the lock '{path}' for more than {wait_s:.0f} s")
            time.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take an exclusive lock without waiting; True if it is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether a lock file is held; not where there is none, or where it cannot be asked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def lock_state(path: Path) -> str:
    """Say whether a process holds a lock file: HELD, FREE, MISSING, or UNASKED where that cannot be asked.

    A shared lock is tried, which needs no right to write and hinders no other command that asks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return MISSING
    except OSError:
        return UNASKED
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return FREE
    except BlockingIOError:
        return HELD
    except OSError:
        return UNASKED
    finally:
        os.close(descriptor)


def continuation_of(run: RunPaths) -> dict[str, object] | None:
    """Return the claim of the run that continues this head, or None if none has claimed it."""
    try:
        claim = read_json(run.continuation)
    except UnreadableFile:
        return None
    return claim if isinstance(claim, dict) else None


def held_by_other(run: RunPaths, has_started: HasStarted, *, is_taken_over: bool = False) -> str | None:
    """Return the sentence that says which run continues this head already, or None: none does, or only by a dead claim.

    Args:
        run: the head.
        has_started: `has_started(run_id)`, whether a child of that name ever had a trainer.
        is_taken_over: a person's word that the processes which cannot be seen from here are dead.
    """
    claim = continuation_of(run)
    if claim is None:
        return None
    owner, child = processes.identity_from(claim.get("claimer")), str(claim.get("run_id"))
    # The claimer first: asked the other way round, a child that starts between the two looks like none.
    claimer, is_void = processes.probe(owner), not has_started(child)
    if is_void and (claimer == processes.DEAD or (is_taken_over and claimer == processes.UNKNOWN)):
        return None
    if is_void and claimer == processes.UNKNOWN and _is_job_over(claim):
        return None
    where = f"pid {owner.pid} on {owner.host}" if owner else "by an unknown process"
    is_unseen = is_void and claimer == processes.UNKNOWN
    return (
        f"'{run.run_dir.name}' is continued already by '{child}' ({where}): "
        "resume that one, or branch from a step with resume.sh --step N"
        + (f"; it has no trainer yet: where {where} is gone for good, --take-over says so" if is_unseen else "")
    )


def _is_job_over(claim: dict[str, object]) -> bool:
    """Whether the scheduler says that the job in which a claim was made is over: its node died before its trainer."""
    return slurm.says_it_is_over(claim.get("scheduler"))


def refuse_continued(run: RunPaths, has_started: HasStarted, *, is_taken_over: bool = False) -> None:
    """Raise Refused where another run continues this head already. The arguments are `held_by_other`'s."""
    if sentence := held_by_other(run, has_started, is_taken_over=is_taken_over):
        raise Refused(sentence)


def claim_continuation(
    run: RunPaths, child_run_id: str, claimer: processes.Identity, has_started: HasStarted, *,
    is_taken_over: bool = False,
) -> None:  # fmt: skip
    """Claim this head for `child_run_id`, for good.

    Args:
        run: the head that is continued.
        child_run_id: the run that continues it.
        claimer: the process that starts the child.
        has_started, is_taken_over: as in `held_by_other`; the claim says that it was.

    Raises:
        Refused: another run continues it already. A claim whose child never started and whose claimer is dead counts
            for nothing and is replaced.
        OSError: the folder cannot be written to.
    """
    with locked(run.lock):
        refuse_continued(run, has_started, is_taken_over=is_taken_over)
        path = run.continuation
        _require_own_folder(path.parent)
        path.unlink(missing_ok=True)  # a dead claim, or one that cannot be read
        claim: dict[str, object] = {"run_id": child_run_id, "claimer": claimer.as_fields(), "at": utc_now()}
        if own := slurm.allocation():
            claim["scheduler"] = own.as_fields()
        _write_claim(path, {**claim, "taken_over": True} if is_taken_over else claim)


def still_continues(parent: RunPaths, child_run_id: str) -> bool:
    """Return whether the head is still claimed by this child; ask under the parent's lock, before it starts.

    A launcher that is killed between its claim and its trainer's start counts as dead, and its claim may be replaced:
    the trainer of the replaced child must not start any more.
    """
    claim = continuation_of(parent)
    return claim is not None and claim.get("run_id") == child_run_id


def release_continuation(run: RunPaths, child_run_id: str) -> None:
    """Take back a claim of ours for a child that could not be made."""
    with contextlib.suppress(OSError, Refused), locked(run.lock):
        _require_own_folder(run.claims)
        if still_continues(run, child_run_id):
            run.continuation.unlink()


def pin_step(run: RunPaths, step: int, child_run_id: str) -> None:
    """Keep the checkpoint of `step` from being pruned by its own run; OSError if nothing can be written there."""
    # Not between the look of its pruning and the removal; a folder that the kit did not make is not pruned.
    with locked(run.lock) if os.path.lexists(run.run_json) else contextlib.nullcontext():
        _write_claim(_pin(run, step, child_run_id), {"run_id": child_run_id, "at": utc_now()})


def release_pin(run: RunPaths, step: int, child_run_id: str) -> None:
    """Take back a pin of ours for a child that could not be made."""
    with contextlib.suppress(OSError):
        _require_own_folder(run.claims)
        _pin(run, step, child_run_id).unlink()


def _pin(run: RunPaths, step: int, child_run_id: str) -> Path:
    return run.claims / f"pin_{step}_{child_run_id}.json"


def _require_own_folder(claims: Path) -> None:
    """Raise OSError where the folder of the claims is a link: another user's may lead to the claims of another run."""
    if os.path.lexists(claims) and not stat.S_ISDIR(os.lstat(claims).st_mode):
        raise NotADirectoryError(20, "Not a directory", str(claims))


def _write_claim(path: Path, claim: dict[str, object]) -> None:
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(0o775)
    _require_own_folder(path.parent)
    # Whole or not at all, and never over another: a claim of half a line would need a hand to clear it.
    with TempFile(path) as temp:
        # Its content before its name: an empty claim counts for nothing, and its child may be training.
        temp.write(to_json(claim))
        temp.sync()
        temp.close()
        try:
            temp.link()
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            write_new(path, to_json(claim), durable=True)  # exclusive, which a look before a rename is not
    fsync_directory(path.parent)
    fsync_directory(path.parent.parent)  # it may have been made just now
