"""What one run may claim in another's folder: to continue its head, and that a step of it is kept.

A claim is a file made with exclusive create, under the run's lock. `claims/continued.json` says who continues this
head, for good; `claims/pin_<step>_<child>.json` keeps a step from being pruned while a branch stands on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import processes
from .errors import Refused
from .files import UnreadableFile, fsync_directory, read_json, to_json, utc_now, write_new
from .paths import RunPaths

LOCK_WAIT_S = 10.0


@contextlib.contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock file at `path`; Refused if somebody else holds it longer than `wait_s` seconds.

    The descriptor is closed on exec, so that no child keeps the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + wait_s
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Refused(f"another command holds the lock '{path}' for more than {wait_s:.0f} s")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take an exclusive lock without waiting; True if it is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def continuation_of(run: RunPaths) -> dict[str, object] | None:
    """Return the claim of whoever continues this head, or None if nobody has claimed it."""
    try:
        claim = read_json(run.claims / "continued.json")
    except UnreadableFile:
        return None
    return claim if isinstance(claim, dict) else None


def claim_continuation(run: RunPaths, child_run_id: str, claimer: processes.Identity, has_started: Callable) -> None:
    """Claim this head for `child_run_id`, for good.

    Args:
        run: the head that is continued.
        child_run_id: the run that continues it.
        claimer: the process that starts the child.
        has_started: `has_started(run_id) -> bool`, whether a child of that name ever had a trainer.

    Raises:
        Refused: another run continues it already. A claim whose child never started and whose claimer is dead counts
            for nothing and is replaced.
    """
    with locked(run.lock):
        path = run.claims / "continued.json"
        if claim := continuation_of(run):
            owner = processes.identity_from(claim.get("claimer"))
            child = str(claim.get("run_id"))
            if has_started(child) or processes.probe(owner) != processes.DEAD:
                where = f"pid {owner.pid} on {owner.host}" if owner else "by an unknown process"
                raise Refused(
                    f"'{run.run_dir.name}' is continued already by '{child}' ({where}): "
                    f"resume that one, or name a step with --step to branch"
                )
            path.unlink()
        _write_claim(path, {"run_id": child_run_id, "claimer": claimer.as_fields(), "at": utc_now()})


def release_continuation(run: RunPaths, child_run_id: str) -> None:
    """Take back a claim of ours for a child that could not be made."""
    with contextlib.suppress(OSError, Refused), locked(run.lock):
        claim = continuation_of(run)
        if claim and claim.get("run_id") == child_run_id:
            (run.claims / "continued.json").unlink()


def pin_step(run: RunPaths, step: int, child_run_id: str) -> None:
    """Keep the checkpoint of `step` from being pruned by its own run; OSError if nothing can be written there."""
    _write_claim(run.claims / f"pin_{step}_{child_run_id}.json", {"run_id": child_run_id, "at": utc_now()})


def _write_claim(path: Path, claim: dict[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_new(path, to_json(claim))
    fsync_directory(path.parent)
