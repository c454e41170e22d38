"""The digest of the checkpoint that a run starts from, computed beside the trainer's start.

The launcher side runs `prove_for_run` as a process of its own; the trainer's load waits for its verdict, and computes
the digest itself where there is none. Reads the checkpoint once; writes `checkpoint_proof.json` in the run folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..base.errors import DONE, NO_STABLE_CHECKPOINT
from ..base.file_identity import FileIdentity
from ..base.files import UnreadableFile, read_json, to_json, write_atomic
from ..base.imports import Any, NamedTuple
from ..base.ownership import MadeFolder, refuse_exchanged
from ..base.paths import RunPaths, manifest_path
from ..base.process_details import start_ticks
from ..base.values import fields, kernel_number, one_of, string
from . import layout, manifest

PENDING = "pending"
EQUAL = "equal"  # the digest is the manifest's
SOUND = "sound"  # no manifest; every record has the checksum that the archive says
DIFFERS = "differs"
UNREADABLE = "unreadable"
VERDICTS = (PENDING, EQUAL, SOUND, DIFFERS, UNREADABLE)
GOOD = (EQUAL, SOUND)
# A prover that hangs on a dying disk must not keep a trainer for ever: after this, and the time that the slowest drive
# takes for the file, the trainer reads it itself.
WAIT_S = 600.0
SLOWEST_BYTES_PER_S = 10e6


class Proof(NamedTuple):
    """A verdict on one file as it was at one moment.

    Args:
        path: the checkpoint, as it was named.
        device, inode, size, mtime_ns, ctime_ns: which file it was, in which state (`identity`); a changed one needs a
            new proof.
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

    @property
    def identity(self) -> FileIdentity:
        return FileIdentity(self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns)


_saved = fields(
    {"sha256": string},
    **dict.fromkeys(("device", "inode", "size", "mtime_ns", "ctime_ns", "pid"), kernel_number),
    **dict.fromkeys(("path", "reason", "pid_started"), string),
    verdict=one_of(VERDICTS),
)


def prove(descriptor: int, path: Path, mb_per_s: float | None = None, *, keeps: bool = False) -> Proof:
    """Read an open checkpoint once and compare it with its manifest, or without one with its own checksums.

    Where no manifest says that its values are finite, that is looked at too.

    Args:
        descriptor: of the file.
        path: its name.
        mb_per_s: read no faster than this, in 10^6 bytes a second; None for no limit.
        keeps: remember what the pass finds (one_pass).

    Returns:
        The verdict; this never raises for a bad file.
    """
    from . import archive, finiteness  # late: planning, which reads verdicts, proves nothing here

    sha256: str | None = None
    how: dict[str, Any] = {"mb_per_s": mb_per_s, "keeps": keeps}
    before = layout.identity(descriptor)
    try:
        if os.path.lexists(manifest_path(path)):
            expected = manifest.read(path)
            if expected.size != before.size:
                return _proof(path, before, None, DIFFERS, f"{before.size:,} of {expected.size:,} bytes")
            content = None if expected.finite else archive.content(descriptor)
            looked = finiteness.look(descriptor, path.name, content, digest=True, **how)
            sha256, verdict, reason = looked.sha256, UNREADABLE if looked.reason else EQUAL, looked.reason
            if sha256 != expected.sha256:
                verdict, reason = DIFFERS, "digest differs from its manifest"
        else:
            content = archive.content(descriptor)
            reason = finiteness.look(descriptor, path.name, content, checksums=True, **how).reason
            verdict = UNREADABLE if reason else SOUND
    except (UnreadableFile, OSError) as error:
        verdict, reason = UNREADABLE, str(error)
    if layout.identity(descriptor).version != before.version:
        verdict, reason = DIFFERS, "it changed while it was read"
    return _proof(path, before, sha256, verdict, reason)


def of_folder(path: Path, reason: str) -> Proof:
    """Return the verdict on a folder that is not whole, or whose bytes are not the proven ones. Raises OSError."""
    return _proof(path, layout.identity(path), None, DIFFERS, reason)


def prove_for_run(
    run_dir: Path, checkpoint_path: Path, made: MadeFolder | None = None, mb_per_s: float | None = None
) -> int:
    """Prove the checkpoint that the run in `run_dir` starts from, and write the verdict there.

    Args:
        run_dir: the run's folder.
        checkpoint_path: the checkpoint.
        made: by what its launcher knows that folder.
        mb_per_s: as in `prove`.

    Returns:
        An exit code: 0 proven, 3 not.

    Raises:
        Exchanged: another folder lies there by now.
    """
    refuse_exchanged(run_dir, made)
    target = RunPaths(run_dir).proof
    if checkpoint_path.is_dir():
        return DONE  # its ranks share the reading out as they load it, and leave a bad verdict
    try:
        descriptor = layout.open_one(checkpoint_path)
    except UnreadableFile as error:
        write(target, _proof(checkpoint_path, FileIdentity(0, 0, 0, 0, 0), None, UNREADABLE, str(error)))
        return NO_STABLE_CHECKPOINT
    try:
        write_pending(target, checkpoint_path, os.getpid())
        found = prove(descriptor, checkpoint_path, mb_per_s, keeps=True)
    finally:
        os.close(descriptor)
    write(target, found)
    return DONE if found.is_good else NO_STABLE_CHECKPOINT


def write_pending(target: Path, checkpoint_path: Path, pid: int) -> None:
    """Say in the proof file that process `pid` is computing; the trainer then waits for it. Raises OSError."""
    seen = layout.identity(checkpoint_path)
    write(target, _proof(checkpoint_path, seen, None, PENDING, "", pid, start_ticks(pid) or ""))


def write(target: Path, proof: Proof) -> None:
    """Write the proof file atomically. Raises OSError."""
    write_atomic(target, to_json(proof._asdict()))


def read(target: Path) -> Proof | None:
    """Return the proof in `target`, or None if there is none that can be read."""
    try:
        value = _saved(read_json(target))
    except UnreadableFile:
        return None
    return None if value is None else Proof(**value)


def wait_for(target: Path, descriptor: int, wait_s: float = WAIT_S) -> Proof | None:
    """Return the launcher's verdict on the open file, waiting while its process lives.

    Args:
        target: the proof file.
        descriptor: the checkpoint that the caller has open.
        wait_s: seconds after which the wait ends, beside what the slowest drive takes for the file.

    Returns:
        The proof, or None: there is none, it is about another file or an earlier state of it, or its process is gone.
    """
    limit = time.monotonic() + wait_s + layout.identity(descriptor).size / SLOWEST_BYTES_PER_S
    while time.monotonic() < limit:
        proof = read(target)
        if proof is None or proof.identity != layout.identity(descriptor):
            return None
        if proof.verdict != PENDING:
            return proof
        if start_ticks(proof.pid) != proof.pid_started:
            proof = read(target)  # it may have written its verdict just before it ended
            return proof if proof and proof.verdict != PENDING else None
        time.sleep(0.005)
    return None


def _proof(
    path: Path, seen: FileIdentity, sha256: str | None, verdict: str, reason: str, pid: int = 0, started: str = ""
) -> Proof:
    device, inode, size, mtime_ns, ctime_ns = seen
    return Proof(
        path=str(path), device=device, inode=inode, size=size, mtime_ns=mtime_ns, ctime_ns=ctime_ns, sha256=sha256,
        verdict=verdict, reason=reason, pid=pid, pid_started=started,
    )  # fmt: skip
