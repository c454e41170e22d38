"""How far one checkpoint can be trusted: proven, attested or plausible, or why not at all.

Reads its manifest, its zip directory and data.pkl; its bytes only where a digest is asked for. Writes nothing but, on
request, an attestation: a manifest for a file that came to rest without one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..base.files import UnreadableFile, utc_now
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import manifest_path
from ..base.terminal import first_few
from . import archive, form, layout, manifest, sharded_folder
from .form import STATE_SUFFIXES, Form
from .layout import Opened
from .manifest import PROVERS, SAVE_CHECKPOINT, SIDECAR, FileDigest, Manifest

if TYPE_CHECKING:
    from .dcp_values import Shards
    from .finiteness import Content, Looked
    from .kinds import Inside

PROVEN, ATTESTED, PLAUSIBLE = "proven", "attested", "plausible"
# The protocol's name for the weights (§6); a trainer that loads by itself may call them otherwise.
WEIGHTS = frozenset({"model_state_dict"})
# Of what a file has instead, so many names, and so much of each.
_NAMES_SHOWN = 8
_NAME_SHOWN = 40
# Of the values that are not finite, so many are named.
_NAMED = 3
# So many older checkpoints are asked for what an infinite value was before, and which files they have.
_OLDER = 4


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
    """What `examine` found: the grade's name, the step, what is worth saying beside it, the content, the manifest.

    `finite`: whether all values that count are; None where they were not looked at, or where some cannot be told.
    """

    name: str
    step: int | None
    notes: tuple[str, ...]
    inside: archive.Summary
    known: Manifest | None
    finite: bool | None = None


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
    named: Form | None = None,
) -> Grade:
    """Grade one checkpoint.

    Args:
        name_step: the step in its name, None if its name has none.
        run_id: the run that it must belong to; None for any.
        has_manifest: it has a manifest.
        needs: top-level keys that must be inside; with any, only a file of torch.save will do.
        prove: read the bytes once: compare the digest, or without a manifest the archives' checksums, and look whether
            the values are finite where no manifest says so.
        weights_only: refuse what loading with weights_only=True would refuse.
        older: checkpoints of the same run, the newest first; they are asked what an infinite value was before.
        mb_per_s: read no faster than this.
        named: what the config says of its kind and keys; None for the defaults.

    Returns:
        Its grade.

    Raises:
        Unattested: its manifest is none; it may be graded without.
        UnreadableFile: it is not stable; the message is the one short reason.
    """
    named, older = named or form.of(None), tuple(itertools.islice(older, _OLDER))
    may_be_folder = not needs or os.path.lexists(path / sharded_folder.STATE_FILE)
    layout.refuse_odd_files(path, may_be_folder=may_be_folder, follow_links=named.follow_links)
    try:
        with layout.open_checkpoint(path, named.companions_of(path.name), named.follow_links) as opened:
            known = _manifest_of(path, opened, run_id) if has_manifest else None
            if known is not None and name_step not in (None, known.step):
                raise UnreadableFile(f"step {name_step} in the name, {known.step} in its manifest")
            has_step = (name_step is not None or known is not None) and not named.is_fixed
            inside, looked = _attested(opened, named, known if prove else None, older, mb_per_s, has_step=has_step)
            step, notes = _agreed_step(name_step, known, inside.summary)
            if step is None and named.is_fixed and path.name == named.pattern:
                names = first_few(inside.summary.keys, _NAMES_SHOWN) or "nothing"
                raise UnreadableFile(f"it does not say its step: checkpoint.keys.step names it (it has: {names})")
            _refuse_unfit(inside, needs, weights_only=weights_only)
            if prove and looked is None:
                looked = _look(opened, inside.contents, older, checksums=True, mb_per_s=mb_per_s)
            if looked is not None and looked.reason:
                raise UnreadableFile(looked.reason)
            notes = (*notes, *_notes_on_values(looked))
            finite = (known is not None and known.finite) or (looked is not None and looked.has_values) or None
            if known is None:
                _refuse_fewer_files(opened, older)
                only = _without_manifest(path, inside.kind)
                return Grade(PLAUSIBLE, step, (only, *notes), inside.summary, None, finite)
            if not prove:
                notes = (*notes, "digest not read yet")
            if known.best_score is not None:
                notes = (f"score {known.best_score:g} of its {known.best_weights or 'raw'} weights", *notes)
            return Grade(PROVEN if known.writer in PROVERS else ATTESTED, step, notes, inside.summary, known, finite)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error


def _notes_on_values(looked: Looked | None) -> Iterator[str]:
    """Yield what is to be said of the values of a checkpoint that is taken."""
    if looked is not None and looked.unsure:
        yield f"infinite, as masks are: {first_few(looked.unsure, _NAMED)}"
    if looked is not None and looked.untold:
        yield f"not told whether finite: {looked.untold}"


def _refuse_unfit(inside: Inside, needs: frozenset[str], *, weights_only: bool) -> None:
    summary = inside.summary
    if needs and not inside.loads_with_kit:
        raise UnreadableFile(
            f"of the kind '{inside.kind}', and load_resume_bundle loads files of torch.save and folders of save_sharded"
        )
    if missing := sorted(needs - set(summary.keys)):
        raise UnreadableFile(f"it has {lacks(missing[0], summary.keys)}")
    if weights_only and summary.unsafe:
        raise UnreadableFile(f"it holds '{summary.unsafe[0]}', which loading with weights_only=True refuses")


def _refuse_fewer_files(opened: Opened, older: Iterable[Path]) -> None:
    """Raise where a folder has no manifest and lacks a file that the older ones of its run have: nothing else tells.

    A file of state is missed where the one before it has it, any other where two before it have it: what a person has
    put into one of them counts for nothing. Nor do names with a number, which a rank or a part has. Another run's are
    not asked: another config may save less.
    """
    if not opened.is_folder:
        return
    before = [path for path in older if path.parent == opened.path.parent and os.path.isdir(path)][:2]
    with contextlib.suppress(OSError):
        names = [{name for name in os.listdir(path) if not re.search("[0-9]", name)} for path in before]
        if not names:
            return
        there = {name for name in names[0] if (len(names) > 1 and name in names[1]) or name.endswith(STATE_SUFFIXES)}
        own = {name.partition("/")[0] for name in opened.files}
        if missing := sorted(there - own):
            gone = f"no {first_few(missing, _NAMED)}, which '{before[0].name}' has"
            raise UnreadableFile(f"{gone}: its save was not completed")


def _attested(
    opened: Opened, named: Form, known: Manifest | None, older: Iterable[Path], mb_per_s: float | None, *,
    has_step: bool,
) -> tuple[Inside, Looked | None]:  # fmt: skip
    """Return (what it holds, what a look at its bytes found), the second where it has a manifest.

    Raises UnreadableFile, or Unattested, where the bytes are not those of the manifest; that is said before all else.
    """
    from . import kinds  # late: it costs a start that looks at no checkpoint nothing

    try:
        inside = kinds.inspect(opened, named, has_step=has_step)
    except UnreadableFile:
        if known is not None:
            _require_digest(_look(opened, None, names=_counted(known), digest=True, mb_per_s=mb_per_s), opened, known)
        raise
    if known is None:
        return inside, None
    contents = None if known.finite else inside.contents
    looked = _look(opened, contents, older, names=_counted(known), digest=True, mb_per_s=mb_per_s)
    _require_digest(looked, opened, known)
    return inside, looked


def _counted(known: Manifest) -> list[str] | None:
    return [one.name for one in known.files] or None


def _look(
    opened: Opened, contents: Mapping[str, Content | Shards | None] | None, older: Iterable[Path] = (), **asked: Any
) -> Looked:  # fmt: skip
    from . import finiteness  # late: most looks at a checkpoint read no bytes

    return finiteness.look_at(opened, contents, older, **asked)


def _require_digest(looked: Looked, opened: Opened, known: Manifest) -> None:
    if looked.sha256 == known.sha256:
        return
    changed = [one.name for one, now in zip(sorted(known.files), sorted(looked.files), strict=False) if one != now]
    what = f"the digest of {first_few(map(repr, changed), _NAMED)} differs" if changed else "digest differs"
    _refuse_if_written_again(opened, known, f"{what} from its manifest")
    raise UnreadableFile(f"{what} from its manifest")


def base_of(
    path: Path, mb_per_s: float | None = None, *, follow_links: bool | None = None
) -> tuple[Inside, str]:  # fmt: skip
    """Return (what a checkpoint holds of which the weights alone are wanted, the digest of its bytes).

    It may be of any kind, a folder of weights alone too, and belong to any user. Its checksums and values are looked at
    in the same reading, for an `examine` behind it.

    Args:
        follow_links: as for `layout.open_checkpoint`.

    Raises:
        UnreadableFile: it cannot be read, or has no weights, or values that are not finite.
    """
    from . import kinds  # late, as in `_attested`

    layout.refuse_odd_files(path, may_be_folder=True, follow_links=follow_links)
    try:
        with layout.open_checkpoint(path, follow_links=follow_links) as opened:
            inside = kinds.inspect(opened, form.of(None), has_step=True, weights_alone=True)
            looked = _look(opened, inside.contents, digest=True, checksums=True, mb_per_s=mb_per_s)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    if looked.reason or looked.sha256 is None:
        raise UnreadableFile(looked.reason or "its digest was not read")
    return inside, looked.sha256


def attest(
    path: Path, name_step: int | None, *, older: Iterable[Path] = (), mb_per_s: float | None = None,
    named: Form | None = None, **lineage: Any,
) -> Manifest:  # fmt: skip
    """Write a manifest for a checkpoint that came to rest without one, or was written again, and is sound.

    Args:
        path, name_step, older, mb_per_s, named: as for `measured`, whose errors it raises.
        lineage: fields of the manifest: run_id, parent_run_id, parent_step, config_hash.

    Returns:
        The manifest, now in its place.

    Raises:
        FileExistsError: it has a manifest of its trainer's by now.
        OSError: the manifest could not be written.
    """
    known = measured(path, name_step, older=older, mb_per_s=mb_per_s, named=named)._replace(**lineage)
    manifest.write_ours(path, known)
    return known


def measured(
    path: Path, name_step: int | None, *, older: Iterable[Path] = (), mb_per_s: float | None = None,
    named: Form | None = None,
) -> Manifest:  # fmt: skip
    """Return the manifest of a sound checkpoint, as the sidecar writes it; its bytes are read once.

    Args:
        path: the checkpoint.
        name_step: the step in its name; None where it stands inside.
        older, mb_per_s, named: as in `examine`.

    Raises:
        UnreadableFile: it is not sound, or it changed while it was read.
        OSError: it could not be read.
    """
    from . import kinds  # late, as in `_attested`

    named, older = named or form.of(None), tuple(itertools.islice(older, _OLDER))
    layout.refuse_odd_files(path, may_be_folder=True, follow_links=named.follow_links)
    with layout.open_checkpoint(path, named.companions_of(path.name), named.follow_links) as opened:
        before = opened.identity
        inside = kinds.inspect(opened, named, has_step=name_step is not None)
        step, _ = _agreed_step(name_step, None, inside.summary)
        if step is None:
            raise UnreadableFile("neither its name nor its content says which step it is")
        _refuse_fewer_files(opened, older)
        asked = {"digest": True, "checksums": True, "mb_per_s": mb_per_s, "keeps": False}
        looked = _look(opened, inside.contents, older, **asked)
        if looked.fault or looked.sha256 is None:
            raise UnreadableFile(looked.fault or "its digest was not read")
        with layout.open_checkpoint(path, named.companions_of(path.name), named.follow_links) as again:
            if again.identity.version != before.version or again.files.keys() != opened.files.keys():
                raise UnreadableFile("it is still being written")
    keys = inside.summary.keys
    return Manifest(
        writer=SIDECAR, file=path.name, size=before.size, sha256=looked.sha256, step=step, created_at=utc_now(),
        versions={}, weights=("raw", *(kind for kind in ("ema", "swa") if f"{kind}_state_dict" in keys)),
        finite=False if looked.bad else True if looked.has_values else None, nonfinite=looked.bad, files=looked.files,
        kind=None if inside.kind == form.FILE else inside.kind, world_size=inside.summary.world_size,
    )  # fmt: skip


def lacks(key: str, there: Sequence[str]) -> str:
    """Say of a key that is not among those `there` what there is instead, and what a trainer has to do."""
    short = (name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}..." for name in there)
    names = first_few(short, _NAMES_SHOWN) or "nothing"
    what = "weights" if key in WEIGHTS else "optimizer's state"
    return f"no '{key}' (it has: {names}): the trainer must save its {what} under that name"


def _manifest_of(path: Path, opened: Opened, run_id: str | None) -> Manifest:
    try:
        known = manifest.read(path)
    except UnreadableFile as error:
        kind = Unattested if manifest.is_torn(error) else UnreadableFile
        raise kind(f"its manifest is not usable: {error}") from error
    _require_sizes(path, opened, known)
    if run_id is not None and known.run_id is not None and known.run_id != run_id:
        raise UnreadableFile(f"its manifest names another run, '{known.run_id[:80]}'")
    if known.finite is False:
        from .finiteness import not_finite  # late, as in `_look`

        raise UnreadableFile(not_finite(known.nonfinite))
    if known.step_completed is False or (known.writer in PROVERS and not known.step_completed):
        raise UnreadableFile("its optimizer step was not completed")
    if known.writer == SAVE_CHECKPOINT and known.finite is not True:
        raise UnreadableFile("its manifest does not say whether its values were finite")
    if "raw" not in known.weights:
        raise UnreadableFile("it has no raw weights")
    return known


def _require_sizes(path: Path, opened: Opened, known: Manifest) -> None:
    """Raise where a file has another size than its manifest says, or is not there."""
    is_one = not opened.is_folder and len(opened.files) == 1
    for one in known.files or (FileDigest(path.name, known.size, known.sha256),):
        seen = opened.files.get(one.name)
        what = "" if is_one else f"'{one.name}': "
        if seen is None:
            _refuse_if_written_again(opened, known, "it was written again since it was attested")
            raise UnreadableFile(f"'{one.name}' is in its manifest and not there")
        if seen.size == one.size:
            continue
        short = f"{what}truncated: {seen.size:,} of {one.size:,} bytes" if seen.size < one.size else None
        _refuse_if_written_again(opened, known, "it was written again since it was attested", short)
        raise UnreadableFile(short or f"{what}{seen.size - one.size:,} bytes longer than its manifest says")


def _without_manifest(path: Path, kind: str) -> str:
    what = "its manifest is torn or older than it is" if os.path.lexists(manifest_path(path)) else "no manifest"
    if kind == form.OTHER:
        return f"{what}: nothing of it was looked at but its size"
    return f"{what}: {'its archive is sound' if kind == form.FILE else 'its files are whole'}, no digest proves it"


def _refuse_if_written_again(opened: Opened, known: Manifest, reason: str, if_broken: str | None = None) -> None:
    """Raise Unattested where the sidecar's manifest does not fit because its trainer has written the file since."""
    if known.writer == SIDECAR and manifest.is_older(opened.path, [one.name for one in known.files], opened.files):
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
