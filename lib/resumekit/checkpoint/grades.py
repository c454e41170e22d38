"""How far one checkpoint file can be trusted: proven, attested or plausible, or why not at all.

Reads its manifest, its zip directory and data.pkl; its bytes only where a digest is asked for. Writes nothing but, on
request, an attestation: a manifest for a file that came to rest without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..base.files import UnreadableFile, utc_now
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import manifest_path
from ..base.terminal import first_few
from . import archive, layout, manifest
from .manifest import SAVE_CHECKPOINT, SIDECAR, Manifest

if TYPE_CHECKING:
    from .finiteness import Content, Looked

PROVEN, ATTESTED, PLAUSIBLE = "proven", "attested", "plausible"
# The protocol's name for the weights (§6); a trainer that loads by itself may call them otherwise.
WEIGHTS = frozenset({"model_state_dict"})
# Of what a file has instead, so many names, and so much of each.
_NAMES_SHOWN = 8
_NAME_SHOWN = 40
# Of the values that are not finite, so many are named.
_NAMED = 3


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
    older: Iterable[Path] = (),
    mb_per_s: float | None = None,
) -> Grade:
    """Grade one checkpoint file.

    Args:
        name_step: the step in its name, None if its name has none.
        run_id: the run that it must belong to; None for any.
        has_manifest: a manifest lies beside it.
        needs: top-level keys that must be inside.
        prove: read the bytes once: compare the digest, or without a manifest the archive's checksums, and look whether
            the values are finite where no manifest says so.
        weights_only: refuse what loading with weights_only=True would refuse.
        older: checkpoints of the same run, the newest first; they are asked what an infinite value was before.
        mb_per_s: read no faster than this.

    Returns:
        Its grade.

    Raises:
        Unattested: its manifest is none; it may be graded without.
        UnreadableFile: it is not stable; the message is the one short reason.
    """
    layout.refuse_odd_files(path)
    descriptor = layout.open_one(path)
    try:
        known = _manifest_of(path, descriptor, run_id) if has_manifest else None
        if known is not None and name_step not in (None, known.step):
            raise UnreadableFile(f"step {name_step} in the name, {known.step} in its manifest")
        content, looked = _attested(descriptor, path, known if prove else None, older, mb_per_s)
        inside = archive.summary_of(content[0], layout.identity(descriptor).size, content[1])
        step, notes = _agreed_step(name_step, known, inside)
        missing = sorted(needs - set(inside.keys))
        if missing:
            raise UnreadableFile(f"it has {lacks(missing[0], inside.keys)}")
        if weights_only and inside.unsafe:
            raise UnreadableFile(f"it holds '{inside.unsafe[0]}', which loading with weights_only=True refuses")
        if prove and looked is None:
            looked = _look(descriptor, path, content, older, checksums=True, mb_per_s=mb_per_s)
        if looked is not None and looked.reason:
            raise UnreadableFile(looked.reason)
        if looked is not None and looked.unsure:
            notes = (*notes, f"infinite, as masks are: {first_few(looked.unsure, _NAMED)}")
        if known is None:
            notes = (_without_manifest(path), *notes)
            return Grade(PLAUSIBLE, step, notes, inside, None)
        if not prove:
            notes = (*notes, "digest not read yet")
        if known.best_score is not None:
            notes = (f"score {known.best_score:g} of its {known.best_weights or 'raw'} weights", *notes)
        return Grade(PROVEN if known.writer == SAVE_CHECKPOINT else ATTESTED, step, notes, inside, known)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _attested(
    descriptor: int, path: Path, known: Manifest | None, older: Iterable[Path], mb_per_s: float | None
) -> tuple[Content, Looked | None]:
    """Return (what it holds, what a look at its bytes found), the second where it has a manifest.

    Raises UnreadableFile, or Unattested, where the bytes are not those of the manifest; that is said before all else.
    """
    try:
        content = archive.content(descriptor)
    except UnreadableFile:
        if known is not None:
            _require_digest(_look(descriptor, path, None, digest=True, mb_per_s=mb_per_s), path, known)
        raise
    if known is None:
        return content, None
    looked = _look(descriptor, path, None if known.finite else content, older, digest=True, mb_per_s=mb_per_s)
    _require_digest(looked, path, known)
    return content, looked


def _look(
    descriptor: int, path: Path, content: Content | None, older: Iterable[Path] = (), **asked: Any
) -> Looked:  # fmt: skip
    from . import finiteness  # late: most looks at a checkpoint read no bytes

    return finiteness.look(descriptor, path.name, content, older, **asked)


def _require_digest(looked: Looked, path: Path, known: Manifest) -> None:
    if looked.sha256 != known.sha256:
        _refuse_if_written_again(path, known, "digest differs from its manifest")
        raise UnreadableFile("digest differs from its manifest")


def kind_and_digest(path: Path, mb_per_s: float | None = None) -> tuple[str, str]:
    """Return (what a checkpoint is on disk, the SHA-256 of its bytes), whoever it belongs to.

    Its checksums and values are looked at in the same reading, for an `examine` behind it.

    Raises:
        UnreadableFile: it cannot be read.
    """
    layout.refuse_odd_files(path)
    descriptor = layout.open_one(path)
    try:
        content = archive.content(descriptor)
        looked = _look(descriptor, path, content, digest=True, checksums=True, mb_per_s=mb_per_s)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if looked.sha256 is None:
        raise UnreadableFile("its digest was not read")
    return layout.FILE, looked.sha256


def attest(
    path: Path, name_step: int | None, *, run_id: str | None = None, older: Iterable[Path] = (),
    mb_per_s: float | None = None, parent_run_id: str | None = None, parent_step: int | None = None,
    config_hash: str | None = None,
) -> Manifest:  # fmt: skip
    """Write a manifest for a checkpoint that came to rest without one, or was written again, and is sound.

    Args:
        path: the checkpoint; its bytes are read once.
        name_step: the step in its name.
        older, mb_per_s: as in `examine`.
        run_id, parent_run_id, parent_step, config_hash: fields of the manifest.

    Returns:
        The manifest, now beside the file.

    Raises:
        UnreadableFile: it is not sound, or it changed while it was read.
        FileExistsError: it has a manifest of its trainer's by now.
        OSError: the manifest could not be written.
    """
    layout.refuse_odd_files(path)
    descriptor = layout.open_one(path)
    try:
        before = layout.identity(descriptor)
        content = archive.content(descriptor)
        inside = archive.summary_of(content[0], before.size, content[1])
        step, _ = _agreed_step(name_step, None, inside)
        if step is None:
            raise UnreadableFile("neither its name nor its content says which step it is")
        looked = _look(descriptor, path, content, older, digest=True, checksums=True, mb_per_s=mb_per_s, keeps=False)
        if looked.fault or looked.sha256 is None:
            raise UnreadableFile(looked.fault or "its digest was not read")
        if layout.identity(path).version != before.version:
            raise UnreadableFile("it is still being written")
    finally:
        os.close(descriptor)
    kinds = ("raw", *(kind for kind in ("ema", "swa") if f"{kind}_state_dict" in inside.keys))
    attested = Manifest(
        writer=SIDECAR, file=path.name, size=before.size, sha256=looked.sha256, step=step, created_at=utc_now(),
        versions={}, run_id=run_id, parent_run_id=parent_run_id, parent_step=parent_step, config_hash=config_hash,
        weights=kinds, finite=not looked.bad if looked.has_values else None, nonfinite=looked.bad,
    )  # fmt: skip
    manifest.write_ours(path, attested)
    return attested


def lacks(key: str, there: Sequence[str]) -> str:
    """Say of a key that is not among those `there` what there is instead, and what a trainer has to do."""
    short = (name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}..." for name in there)
    names = first_few(short, _NAMES_SHOWN) or "nothing"
    what = "weights" if key in WEIGHTS else "optimizer's state"
    return f"no '{key}' (it has: {names}): the trainer must save its {what} under that name"


def _manifest_of(path: Path, descriptor: int, run_id: str | None) -> Manifest:
    try:
        known = manifest.read(path)
    except UnreadableFile as error:
        kind = Unattested if manifest.is_torn(error) else UnreadableFile
        raise kind(f"its manifest is not usable: {error}") from error
    size = layout.identity(descriptor).size
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
        from .finiteness import not_finite  # late, as in `_look`

        raise UnreadableFile(not_finite(known.nonfinite))
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
