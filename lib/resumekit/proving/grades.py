"""How far one checkpoint file can be trusted: proven, witnessed or plausible, or why not at all.

Reads its manifest, its zip directory and data.pkl; its bytes only where a digest is asked for. Writes nothing but, on
request, a witness: a manifest for a file that came to rest without one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..basics.files import UnreadableFile, open_regular, utc_now
from ..basics.paths import manifest_path
from . import archive, manifest
from .manifest import SAVE_CHECKPOINT, SIDECAR, Manifest
from .proof import digest

PROVEN, WITNESSED, PLAUSIBLE = "proven", "witnessed", "plausible"
# The protocol's name for the weights (§6); a trainer that loads by itself may call them otherwise.
WEIGHTS = frozenset({"model_state_dict"})
# Of what a file has instead, so many names, and so much of each.
_NAMES_SHOWN = 8
_NAME_SHOWN = 40
_FILE_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class Unattested(UnreadableFile):
    """The manifest beside a checkpoint says nothing of what the file holds now.

    It was torn as it was written, or it is the sidecar's of what the file held before: such a trainer writes none. The
    file is judged as one without.

    Args:
        reason: of a file that is sound all the same.
        if_broken: of one that is not; None where what is broken in it says more.
    """

    def __init__(self, reason: str, if_broken: str | None = None) -> None:
        super().__init__(reason)
        self.if_broken = if_broken


class Grade(NamedTuple):
    """What `examine` found: the grade's name, the step, what is worth saying beside it, the content, the manifest."""

    name: str
    step: int | None
    notes: tuple[str, ...]
    inside: archive.Summary
    known: Manifest | None


def examine(
    path: Path,
    *,
    name_step: int | None,
    run_id: str | None,
    has_manifest: bool,
    needs: frozenset[str] = WEIGHTS,
    prove: bool = True,
    weights_only: bool = True,
) -> Grade:
    """Grade one checkpoint file.

    Args:
        name_step: the step in its name, None if its name has none.
        run_id: the run that it must belong to; None for any.
        has_manifest: a manifest lies beside it.
        needs: top-level keys that must be inside.
        prove: read the bytes once: compare the digest, or without a manifest the archive's checksums.
        weights_only: refuse what loading with weights_only=True would refuse.

    Returns:
        Its grade.

    Raises:
        Unattested: its manifest is none; it may be graded without.
        UnreadableFile: it is not stable; the message is the one short reason.
    """
    refuse_odd_files(path)
    descriptor = open_regular(path)
    try:
        known = _manifest_of(path, descriptor, run_id) if has_manifest else None
        if known is not None and name_step not in (None, known.step):
            raise UnreadableFile(f"step {name_step} in the name, {known.step} in its manifest")
        if known is not None and prove and digest(descriptor) != known.sha256:
            _refuse_if_written_again(path, known, "digest differs from its manifest")
            raise UnreadableFile("digest differs from its manifest")
        inside = archive.summarize(descriptor)
        step, notes = _agreed_step(name_step, known, inside)
        missing = sorted(needs - set(inside.keys))
        if missing:
            raise UnreadableFile(f"it has {lacks(missing[0], inside.keys)}")
        if weights_only and inside.unsafe:
            raise UnreadableFile(f"it holds '{inside.unsafe[0]}', which loading with weights_only=True refuses")
        if known is None:
            if prove:
                archive.check_crcs(descriptor)
            notes = (_without_manifest(path), *notes)
            return Grade(PLAUSIBLE, step, notes, inside, None)
        if not prove:
            notes = (*notes, "digest not read yet")
        if known.best_score is not None:
            notes = (f"score {known.best_score:g} of its {known.best_weights or 'raw'} weights", *notes)
        return Grade(PROVEN if known.writer == SAVE_CHECKPOINT else WITNESSED, step, notes, inside, known)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def witness(path: Path, name_step: int | None, *, run_id: str | None = None, **lineage: object) -> Manifest:
    """Write a manifest for a checkpoint that came to rest without one, or was written again, and is sound.

    Args:
        path: the checkpoint; its bytes are read once.
        name_step: the step in its name.
        run_id, lineage: fields of the manifest: parent_run_id, parent_step, config_hash.

    Returns:
        The manifest, now beside the file.

    Raises:
        UnreadableFile: it is not sound, or it changed while it was read.
        FileExistsError: it has a manifest of its trainer's by now.
        OSError: the manifest could not be written.
    """
    refuse_odd_files(path)
    descriptor = open_regular(path)
    try:
        before = os.fstat(descriptor)
        inside = archive.summarize(descriptor)
        step, _ = _agreed_step(name_step, None, inside)
        if step is None:
            raise UnreadableFile("neither its name nor its content says which step it is")
        archive.check_crcs(descriptor)
        sha256 = digest(descriptor)
        after = os.stat(path)
        if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
            raise UnreadableFile("it is still being written")
    finally:
        os.close(descriptor)
    kinds = ("raw", *(kind for kind in ("ema", "swa") if f"{kind}_state_dict" in inside.keys))
    found = Manifest(  # type: ignore[arg-type]
        SIDECAR, path.name, before.st_size, sha256, step, utc_now(), {}, run_id, weights=kinds, **lineage
    )
    manifest.write_ours(path, found)
    return found


def lacks(key: str, there: Sequence[str]) -> str:
    """Say of a key that is not among those `there` what there is instead, and what a trainer has to do."""
    names = ", ".join(name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}..." for name in there[:_NAMES_SHOWN])
    more = f" and {len(there) - _NAMES_SHOWN} more" if len(there) > _NAMES_SHOWN else ""
    what = "weights" if key in WEIGHTS else "optimizer's state"
    return f"no '{key}' (it has: {names or 'nothing'}{more}): the trainer must save its {what} under that name"


def _manifest_of(path: Path, descriptor: int, run_id: str | None) -> Manifest:
    try:
        known = manifest.read(path)
    except UnreadableFile as error:
        kind = Unattested if manifest.is_torn(error) else UnreadableFile
        raise kind(f"its manifest is not usable: {error}") from error
    size = os.fstat(descriptor).st_size
    if size != known.size:
        broken = f"truncated: {size:,} of {known.size:,} bytes" if size < known.size else None
        _refuse_if_written_again(path, known, "it was written again since it was attested", broken)
    if size < known.size:
        raise UnreadableFile(f"truncated: {size:,} of {known.size:,} bytes")
    if size > known.size:
        raise UnreadableFile(f"{size - known.size:,} bytes longer than its manifest says")
    if run_id is not None and known.run_id is not None and known.run_id != run_id:
        raise UnreadableFile(f"its manifest names another run, '{known.run_id[:80]}'")
    if known.finite is False:
        raise UnreadableFile(f"not finite: {', '.join(known.nonfinite[:3]) or 'a value in it'}")
    if known.step_completed is False or (known.writer == SAVE_CHECKPOINT and not known.step_completed):
        raise UnreadableFile("its optimizer step was not completed")
    if known.writer == SAVE_CHECKPOINT and known.finite is not True:
        raise UnreadableFile("its manifest does not say whether its values were finite")
    if "raw" not in known.weights:
        raise UnreadableFile("it has no raw weights")
    return known


def _without_manifest(path: Path) -> str:
    what = "its manifest is torn or older than it is" if os.path.lexists(manifest_path(path)) else "no manifest"
    return f"{what}: its archive is sound, no digest proves it"


def _refuse_if_written_again(path: Path, known: Manifest, reason: str, if_broken: str | None = None) -> None:
    """Raise Unattested where the sidecar's manifest does not fit because its trainer has written the file since."""
    if known.writer == SIDECAR and manifest.is_older(path):
        raise Unattested(reason, if_broken)


def _agreed_step(
    name_step: int | None, known: Manifest | None, inside: archive.Summary
) -> tuple[int | None, tuple[str, ...]]:
    """Return the one step that name or manifest and the content agree on, and what is to be said about it."""
    outside = known.step if known is not None else name_step
    if inside.step is None:
        if "global_step" in inside.keys:
            raise UnreadableFile("its global_step is not a whole number")
        if outside is None:
            return None, ("no step inside, in its name or in a manifest",)
        return outside, (f"no step inside: {outside} taken from its {'manifest' if known else 'name'}",)
    if outside is not None and outside != inside.step:
        raise UnreadableFile(f"step {outside} in the {'manifest' if known else 'name'}, {inside.step} inside")
    return inside.step, ()


def refuse_odd_files(path: Path) -> None:
    """Look before opening: opening a device can already do something."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            if os.path.basename(target) != target:
                raise UnreadableFile(f"a link that leads out of its folder, to '{target[:120]}'")
            status = os.stat(path)
            if os.path.islink(path.with_name(target)):
                raise UnreadableFile("a link to another link")
    except FileNotFoundError as error:
        raise UnreadableFile("a link to nothing" if os.path.islink(path) else "not there") from error
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    for is_kind, name in _FILE_KINDS:
        if is_kind(status.st_mode):
            raise UnreadableFile(f"not a regular file ({name})")
