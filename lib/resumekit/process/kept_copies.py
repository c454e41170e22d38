"""Copies of a checkpoint that is written again and again under one name: ckpt.pt of step 200 is kept as ckpt@200.pt.

Without one a kill in the middle of the next save would leave none. The sidecar makes it of a state that came to rest
and is attested, as the drive allows: with room for another one to spare, and no faster than the checkpoint is read.
A large one is copied over a network only where the config says so (`checkpoint.copy_large`): each copy reads and
writes it once more. Writes the copy, its manifest last; removes older copies of its own beyond `checkpoint.keep_last`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..base import file_systems
from ..base.files import TempFile, UnreadableFile
from ..base.paths import checkpoint_name
from ..base.values import count
from ..checkpoint import layout, manifest, pruning
from ..checkpoint.manifest import SIDECAR, Manifest
from ..checkpoint.pruning import Keep
from ..run.run_folder import Run

# The trainer's next save needs room too.
_ROOM = 2
# Above this a copy over a network may take longer than the training from one save to the next.
LARGE_BYTES = 5_000_000_000
_COPY_BYTES = 1 << 20


def keep(run: Run, checkpoint: Path, known: Manifest) -> Path | None:
    """Keep a copy of a checkpoint whose name will be written again.

    Args:
        run: whose it is.
        checkpoint: the one of the fixed name, just attested.
        known: its manifest.

    Returns:
        The copy; None where it is there already.

    Raises:
        UnreadableFile: it has been written again since, or there is no room, or it is too large for the file system:
            nothing is left of a copy.
        OSError: the copy cannot be written, as above.
    """
    copy = checkpoint.with_name(checkpoint_name(run.form.step_pattern, known.step))
    try:
        if manifest.read(copy).sha256 == known.sha256:
            return None
    except UnreadableFile:
        pass
    _refuse_large(run, checkpoint, known)
    disk = os.statvfs(checkpoint.parent)
    if disk.f_bavail * disk.f_frsize < _ROOM * known.size:
        raise UnreadableFile(f"no room for a copy of {known.size / 1e6:,.1f} MB beside the next save")
    with TempFile(copy) as temp:
        descriptor = layout.open_one(checkpoint)
        try:
            before = layout.identity(descriptor)
            digest = _copy(descriptor, temp, run.max_read_mb_per_s)
            is_same = layout.identity(descriptor).version == before.version
        finally:
            os.close(descriptor)
        if digest != known.sha256 or not is_same:
            raise UnreadableFile("it was written again while it was copied")
        temp.sync()
        temp.close()
        temp.replace()
    manifest.write(copy, known._replace(file=copy.name))
    keep_last = count(run.setting("checkpoint", "keep_last"))
    pruning.prune_own(
        checkpoint.parent, Keep(keep_last, count(run.setting("checkpoint", "keep_every"))), run.paths.run_dir,
        run_id=run.run_id, pattern=run.form.step_pattern, best_name=run.form.best_pattern, writer=SIDECAR,
    )  # fmt: skip
    return copy


def _refuse_large(run: Run, checkpoint: Path, known: Manifest) -> None:
    if known.size <= LARGE_BYTES or run.setting("checkpoint", "copy_large") is True:
        return
    if kind := file_systems.network_type(checkpoint.parent):
        size = f"it has {known.size / 1e9:,.1f} GB and lies on a network file system ({kind})"
        raise UnreadableFile(f"{size}: checkpoint.copy_large: true has one kept all the same")


def _copy(source: int, temp: TempFile, mb_per_s: float | None) -> str:
    """Copy all bytes of an open file, no faster than that; return their SHA-256."""
    import hashlib  # late, see base/file_identity: whole files are several times as fast with it

    digest, at, begun_s = hashlib.sha256(), 0, time.monotonic()
    while data := os.pread(source, _COPY_BYTES, at):
        digest.update(data)
        temp.write(data)
        at += len(data)
        if mb_per_s and (early_s := at / (mb_per_s * 1e6) - (time.monotonic() - begun_s)) > 0:
            time.sleep(early_s)
    return digest.hexdigest()
