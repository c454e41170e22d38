"""The digest of the checkpoint that a run starts from, computed beside the trainer's start.

The launcher side runs `prove_for_run` as a process of its own; the trainer's load waits for its verdict, and computes
the digest itself where there is none. Reads the checkpoint once; writes `checkpoint_proof.json` in the run folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from ..basics.errors import DONE, NO_STABLE_CHECKPOINT
from ..basics.files import UnreadableFile, open_regular, read_json, to_json, write_atomic
from ..basics.made_folder import MadeFolder, refuse_exchanged
from ..basics.paths import RunPaths, manifest_path
from . import archive, manifest

PENDING = "pending"
EQUAL = "equal"  # the digest is the manifest's
SOUND = "sound"  # no manifest; every record has the checksum that the archive says
DIFFERS = "differs"
UNREADABLE = "unreadable"
VERDICTS = (PENDING, EQUAL, SOUND, DIFFERS, UNREADABLE)
GOOD = (EQUAL, SOUND)
# A prover that hangs on a dying disk must not keep a trainer for ever: after this the trainer reads the file itself.
WAIT_S = 600.0


class Proof(NamedTuple):
    """A verdict on one file as it was at one moment.

    Args:
        path: the checkpoint, as it was named.
        device, inode, size, mtime_ns, ctime_ns: which file it was, in which state; a changed one needs a new proof
            (mtime can be set back by a user who changes a file, ctime can't).
        sha256: the digest of its bytes, if it was read to its end.
        verdict: 'pending', 'equal', 'sound', 'differs' or 'unreadable'.
        reason: in a few words, for the last two.
        pid, pid_started: the process that computes it.
    """

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str | None
    verdict: str
    reason: str = ""
    pid: int = 0
    pid_started: str = ""

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


def digest(descriptor: int) -> str:
    """Return the SHA-256 of an open file in hexadecimal; one sequential pass. Raises OSError."""
    import hashlib  # late, see basics.digests

    hasher, position = hashlib.sha256(), 0
    buffer = memoryview(bytearray(archive.BUFFER_BYTES))
    while count := os.preadv(descriptor, [buffer], position):
        hasher.update(buffer[:count])
        position += count
    return hasher.hexdigest()


def prove(descriptor: int, path: Path) -> Proof:
    """Read an open checkpoint once and compare it with its manifest, or without one with its own checksums.

    Returns:
        The verdict; this never raises for a bad file.
    """
    sha256: str | None = None
    before = os.fstat(descriptor)
    try:
        if os.path.lexists(manifest_path(path)):
            expected = manifest.read(path)
            if expected.size != before.st_size:
                return _proof(path, before, None, DIFFERS, f"{before.st_size:,} of {expected.size:,} bytes")
            sha256 = digest(descriptor)
            same = sha256 == expected.sha256
            verdict, reason = (EQUAL, "") if same else (DIFFERS, "digest differs from its manifest")
        else:
            archive.summarize(descriptor)
            archive.check_crcs(descriptor)
            verdict, reason = SOUND, ""
    except (UnreadableFile, OSError) as error:
        verdict, reason = UNREADABLE, str(error)
    # ctime is left out here: a hard link made meanwhile (a new best) changes it and not one byte.
    if _identity(os.fstat(descriptor))[:-1] != _identity(before)[:-1]:
        verdict, reason = DIFFERS, "it changed while it was read"
    return _proof(path, before, sha256, verdict, reason)


def prove_for_run(run_dir: Path, checkpoint_path: Path, made: MadeFolder | None = None) -> int:
    """Prove the checkpoint that the run in `run_dir` starts from, and write the verdict there.

    Args:
        run_dir: the run's folder.
        checkpoint_path: the checkpoint.
        made: by what its launcher knows that folder.

    Returns:
        An exit code: 0 proven, 3 not.

    Raises:
        Exchanged: another folder lies there by now.
    """
    refuse_exchanged(run_dir, made)
    target = RunPaths(run_dir).proof
    try:
        descriptor = open_regular(checkpoint_path)
    except UnreadableFile as error:
        write(target, Proof(str(checkpoint_path), 0, 0, 0, 0, 0, None, UNREADABLE, str(error)))
        return NO_STABLE_CHECKPOINT
    try:
        write_pending(target, checkpoint_path, os.getpid())
        found = prove(descriptor, checkpoint_path)
    finally:
        os.close(descriptor)
    write(target, found)
    return DONE if found.is_good else NO_STABLE_CHECKPOINT


def write_pending(target: Path, checkpoint_path: Path, pid: int) -> None:
    """Say in the proof file that process `pid` is computing; the trainer then waits for it. Raises OSError."""
    status = os.stat(checkpoint_path)
    write(target, _proof(checkpoint_path, status, None, PENDING, "", pid, start_ticks(pid) or ""))


def write(target: Path, proof: Proof) -> None:
    """Write the proof file atomically. Raises OSError."""
    write_atomic(target, to_json(proof._asdict()))


def read(target: Path) -> Proof | None:
    """Return the proof in `target`, or None if there is none that can be read."""
    try:
        value = read_json(target)
        proof = Proof(**value)
    except (UnreadableFile, TypeError):
        return None
    kinds = {
        "path": str,
        "device": int,
        "inode": int,
        "size": int,
        "mtime_ns": int,
        "ctime_ns": int,
        "verdict": str,
        "reason": str,
    }
    sound = all(isinstance(getattr(proof, name), kind) for name, kind in kinds.items())
    return proof if sound and proof.verdict in VERDICTS and isinstance(proof.pid, int) else None


def wait_for(target: Path, descriptor: int, wait_s: float = WAIT_S) -> Proof | None:
    """Return the launcher's verdict on the open file, waiting while its process lives.

    Args:
        target: the proof file.
        descriptor: the checkpoint that the caller has open.
        wait_s: seconds after which the wait ends.

    Returns:
        The proof, or None: there is none, it is about another file or an earlier state of it, or its process is gone.
    """
    limit = time.monotonic() + wait_s
    while time.monotonic() < limit:
        proof = read(target)
        if proof is None or _identity_of(proof) != _identity(os.fstat(descriptor)):
            return None
        if proof.verdict != PENDING:
            return proof
        if start_ticks(proof.pid) != proof.pid_started:
            proof = read(target)  # it may have written its verdict just before it ended
            return proof if proof and proof.verdict != PENDING else None
        time.sleep(0.005)
    return None


def start_ticks(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since the boot, as text; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _identity_of(proof: Proof) -> tuple[int, int, int, int, int]:
    return proof.device, proof.inode, proof.size, proof.mtime_ns, proof.ctime_ns


def _proof(
    path: Path, status: os.stat_result, sha256: str | None, verdict: str, reason: str, pid: int = 0, started: str = ""
) -> Proof:
    return Proof(str(path), *_identity(status), sha256, verdict, reason, pid, started)
