"""The manifest of a checkpoint, `X.pt.json`: what makes it known to be whole, and where it comes from.

It is written last, so it is the mark of completeness. It holds the checkpoint's size and SHA-256, of one with several
files those of each, its step, run, parent, config hash, optimizer, and whether all values were finite. It lies beside a
file, and of a folder in `manifests/` beside the folder of checkpoints. Reads and writes that one small file.
Try it: `python -m json.tool runs/<run_id>/checkpoints/<checkpoint>.json`
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base.file_identity import sha256
from ..base.files import TempFile, UnreadableFile, read_json, to_json, write_atomic
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import manifest_path
from ..base.values import (
    Reader,
    between,
    boolean,
    config_hash,
    count,
    finite,
    integer,
    listed,
    mapping,
    matching,
    one_of,
    path_text,
)
from . import form, layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..base.file_identity import FileIdentity

VERSION = 1
SAVE_CHECKPOINT = "save_checkpoint"
SEAL_CHECKPOINT = "seal_checkpoint"
SIDECAR = "sidecar"
# What these have written is proven: they know what was done.
PROVERS = (SAVE_CHECKPOINT, SEAL_CHECKPOINT)
WRITERS = (*PROVERS, SIDECAR)
WEIGHTS = ("raw", "ema", "swa")
_NOT_JSON = "not JSON"
# The name of what an evaluation measures; it is shown.
_metric = matching("[A-Za-z][A-Za-z0-9_./@-]{0,59}")


class FileDigest(NamedTuple):
    """One file of a checkpoint that has several: its name in the checkpoint, its bytes, their SHA-256."""

    name: str
    size: int
    sha256: str


class Manifest(NamedTuple):
    """What is known of one checkpoint.

    Args:
        writer: 'save_checkpoint' and 'seal_checkpoint' (they know what was done), or 'sidecar' (found it at rest and
            sound).
        file: the checkpoint's name, without a folder.
        size, sha256: of its bytes; of several files the sum, and the digest of their digests (`digest_of`).
        step: optimizer steps done.
        created_at: UTC, ISO 8601.
        versions: of python, torch, cuda, and the thread count; empty if the writer can't know.
        run_id, parent_run_id, parent_step, config_hash: its lineage; None where the trainer ran without the kit.
        optimizer_name: which optimizer's state it holds.
        weights: the kinds of weights inside, of 'raw', 'ema', 'swa'.
        step_completed: the optimizer step was done to its end; None if the writer can't know.
        finite: loss, weights and optimizer state had no NaN or infinity; None if the writer can't know.
        nonfinite: the names of the first few values that were not finite.
        last_fast_eval: {'step': int, METRIC: float} or None; METRIC is the name of what was measured, 'accuracy' say.
        best_score, best_weights: of the best checkpoint only.
        version: of this format.
        files: where it has several; one that is not among them does not count.
        kind: one of `form.KINDS`; None for a file of torch.save.
        world_size: ranks that wrote it; None where nothing says.
        rng_ranks: of a training of several ranks: of how many of them it holds the random number generators.
    """

    writer: str
    file: str
    size: int
    sha256: str
    step: int
    created_at: str
    versions: dict[str, Any]
    run_id: str | None = None
    parent_run_id: str | None = None
    parent_step: int | None = None
    config_hash: str | None = None
    optimizer_name: str | None = None
    weights: tuple[str, ...] = ("raw",)
    step_completed: bool | None = None
    finite: bool | None = None
    nonfinite: tuple[str, ...] = ()
    last_fast_eval: dict[str, Any] | None = None
    best_score: float | None = None
    best_weights: str | None = None
    version: int = VERSION
    files: tuple[FileDigest, ...] = ()
    kind: str | None = None
    world_size: int | None = None
    rng_ranks: int | None = None


# Fields that a manifest without them has at their defaults, and that are written only where they say more.
_MORE = ("files", "kind", "world_size", "rng_ranks")


def digest_of(files: Iterable[FileDigest]) -> str:
    """Return one SHA-256 over the digests, sizes and names of several files, in the order of their names."""
    lines = (f"{one.sha256} {one.size} {one.name}\n" for one in sorted(files))
    return sha256("".join(lines).encode("utf-8", "surrogateescape"))


def read(checkpoint: Path) -> Manifest:
    """Read the manifest of `checkpoint` and check every field's type.

    Raises:
        UnreadableFile: missing, not JSON, from a newer kit, or a field is not what it must be; the message says which.
    """
    return parse(read_json(manifest_path(checkpoint), follow_links=True), checkpoint.name)


def fast_eval_of(value: Any) -> tuple[int, str, float] | None:
    """Return (step, metric, score) of a `last_fast_eval`; None where it is none."""
    step, metrics = count(mapping(value).get("step")), mapping(value).keys() - {"step"}
    if step is None or len(metrics) != 1:
        return None
    (metric,) = metrics
    return (step, metric, value[metric]) if _metric(metric) is not None else None


def is_torn(error: UnreadableFile) -> bool:
    """Whether a manifest is unreadable because less than its whole was written: empty, or half its JSON.

    What `save_checkpoint` writes is moved into place whole. A torn one says nothing of the file beside it.
    """
    return str(error).startswith(_NOT_JSON)


def is_older(checkpoint: Path, counted: Sequence[str] = (), files: Mapping[str, FileIdentity] | None = None) -> bool:
    """Whether a checkpoint was written to behind its manifest; False where that cannot be seen.

    Args:
        counted: those of its files that count; none for all.
        files: what was seen of its files, as it was opened; None: it is looked at.
    """
    try:
        own_ns = os.lstat(manifest_path(checkpoint)).st_mtime_ns
        if files is None or not counted:
            return layout.identity(checkpoint).mtime_ns > own_ns
        return any(files[name].mtime_ns > own_ns for name in counted if name in files)
    except OSError:
        return False


def parse(value: Any, file_name: str) -> Manifest:
    """Check a manifest's content by hand (a JSON Schema library would cost more than the rest of the selection)."""
    if not isinstance(value, dict):
        raise UnreadableFile("not a JSON object")
    version = integer(value.get("version"))
    if version is not None and version > VERSION:
        raise UnreadableFile(f"written by a newer version of the kit (format {version}, this one knows {VERSION})")
    known = set(Manifest._fields)
    for name in known - value.keys() - set(_MORE):
        raise UnreadableFile(f"the field '{name}' is missing")
    for name, item in value.items():
        if name in known and not _is_sound(name, item):
            raise UnreadableFile(f"the field '{name}' is not what it must be")
        if name not in known and not name.startswith("x-"):
            raise UnreadableFile(f"the field '{name[:40]}' is unknown")
    if value["file"] != file_name:
        raise UnreadableFile(f"it names another file, '{value['file'][:80]}'")
    plain = {name: item for name, item in value.items() if name in known}
    lists = {name: tuple(plain[name]) for name in ("weights", "nonfinite")}
    files = tuple(FileDigest(**one) for one in plain.get("files", ()))
    if files and (value["size"], value["sha256"]) != (sum(one.size for one in files), digest_of(files)):
        raise UnreadableFile("its size and digest are not those of its files together")
    return Manifest(**{**plain, **lists, "files": files})


def write(checkpoint: Path, manifest: Manifest) -> None:
    """Write the manifest beside `checkpoint`, durably, replacing an earlier one. Raises OSError."""
    path = manifest_path(checkpoint)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, encode(manifest), durable=True)


def write_ours(checkpoint: Path, manifest: Manifest) -> None:
    """Write the sidecar's manifest whole or not at all, in the place of none, of a torn one, or of its own earlier one.

    Raises:
        FileExistsError: the trainer has written one by now; it stays.
        OSError: it cannot be written; nothing is left of it.
    """
    with write_temp(checkpoint, manifest) as temp:
        if _is_ours_to_replace(checkpoint, manifest.sha256):
            temp.replace()
        else:
            temp.move_new()


def _is_ours_to_replace(checkpoint: Path, sha256: str) -> bool:
    if not os.path.lexists(manifest_path(checkpoint)):
        return False
    try:
        known = read(checkpoint)
        return known.writer == SIDECAR and (known.sha256 != sha256 or is_older(checkpoint))
    except UnreadableFile as error:
        return is_torn(error)


def write_temp(checkpoint: Path, manifest: Manifest) -> TempFile:
    """Write the manifest durably under a temp name beside its own; the caller gives it its name, or discards it.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    path = manifest_path(checkpoint)
    path.parent.mkdir(exist_ok=True)
    temp = TempFile(path)
    try:
        temp.write(encode(manifest))
        temp.sync()
        temp.close()
    except BaseException:
        temp.discard()
        raise
    return temp


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as it stands in its file."""
    fields = manifest._asdict()
    if manifest.files:
        fields["files"] = [one._asdict() for one in manifest.files]
    return to_json({name: value for name, value in fields.items() if value or name not in _MORE})


def _is_sound(field: str, value: Any) -> bool:
    of = _NEEDED.get(field) or _OR_NONE[field]
    return of(value) is not None or (value is None and field in _OR_NONE)


def _file_name(value: Any) -> str | None:
    found = path_text(value)
    return None if found is None or found in ("", ".", "..") or "/" in found else found


def _fast_eval(value: Any) -> dict[str, Any] | None:
    known = fast_eval_of(value)
    return value if known is not None and finite(known[2]) is not None else None


def _versions(value: Any) -> dict[str, Any] | None:
    are_sound = isinstance(value, dict) and all(
        item is None or isinstance(item, str) or integer(item) is not None for item in value.values()
    )
    return value if are_sound else None


def _inner_path(value: Any) -> str | None:
    """Return a path inside a folder; None for one that leads out of it."""
    found = path_text(value)
    return None if found is None or any(part in ("", ".", "..") for part in found.split("/")) else found


_digest = matching("[0-9a-f]{64}")


def _file_digest(value: Any) -> dict[str, Any] | None:
    one = mapping(value)
    is_sound = one.keys() == set(FileDigest._fields) and None not in (
        _inner_path(one["name"]), count(one["size"]), _digest(one["sha256"]),
    )  # fmt: skip
    return one if is_sound else None


_NEEDED: dict[str, Reader] = {
    "version": between(1, VERSION),
    "writer": one_of(WRITERS),
    "file": _file_name,
    **dict.fromkeys(("size", "step"), count),
    "sha256": _digest,
    "files": listed(_file_digest),
    "weights": listed(one_of(WEIGHTS)),
    "nonfinite": listed(path_text),
    "versions": _versions,
    "created_at": path_text,
}
_OR_NONE: dict[str, Reader] = {
    **dict.fromkeys(("run_id", "parent_run_id", "optimizer_name"), path_text),
    **dict.fromkeys(("parent_step", "world_size", "rng_ranks"), count),
    "kind": one_of(form.KINDS),
    "config_hash": config_hash,
    **dict.fromkeys(("step_completed", "finite"), boolean),
    "last_fast_eval": _fast_eval,
    "best_score": finite,
    "best_weights": one_of(WEIGHTS),
}
