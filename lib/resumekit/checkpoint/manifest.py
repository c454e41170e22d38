"""The manifest beside a checkpoint, `X.pt.json`: what makes it known to be whole, and where it comes from.

It is written last, so it is the mark of completeness. It holds the file's size and SHA-256, its step, run, parent,
config hash, optimizer, and whether all values were finite. Reads and writes that one small file.
Try it: `python -m json.tool runs/<run_id>/checkpoints/<checkpoint>.json`
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base.files import TempFile, UnreadableFile, read_json, to_json, write_atomic
from ..base.imports import Any, NamedTuple
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
from . import layout

VERSION = 1
SAVE_CHECKPOINT = "save_checkpoint"
SIDECAR = "sidecar"
WRITERS = (SAVE_CHECKPOINT, SIDECAR)
WEIGHTS = ("raw", "ema", "swa")
_NOT_JSON = "not JSON"
# The name of what an evaluation measures; it is shown.
_metric = matching("[A-Za-z][A-Za-z0-9_./@-]{0,59}")


class Manifest(NamedTuple):
    """What is known of one checkpoint file.

    Args:
        writer: 'save_checkpoint' (knows what was done) or 'sidecar' (found the file at rest and sound).
        file: the checkpoint's name, without a folder.
        size, sha256: of its bytes.
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


def is_older(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to behind its manifest; False where that cannot be seen."""
    try:
        return layout.identity(checkpoint).mtime_ns > os.lstat(manifest_path(checkpoint)).st_mtime_ns
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
    for name in known - value.keys():
        raise UnreadableFile(f"the field '{name}' is missing")
    for name, item in value.items():
        if name in known and not _is_sound(name, item):
            raise UnreadableFile(f"the field '{name}' is not what it must be")
        if name not in known and not name.startswith("x-"):
            raise UnreadableFile(f"the field '{name[:40]}' is unknown")
    if value["file"] != file_name:
        raise UnreadableFile(f"it names another file, '{value['file'][:80]}'")
    plain = {name: item for name, item in value.items() if name in known}
    return Manifest(**{**plain, "weights": tuple(plain["weights"]), "nonfinite": tuple(plain["nonfinite"])})


def write(checkpoint: Path, manifest: Manifest) -> None:
    """Write the manifest beside `checkpoint`, durably, replacing an earlier one. Raises OSError."""
    write_atomic(manifest_path(checkpoint), encode(manifest), durable=True)


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
    temp = TempFile(manifest_path(checkpoint))
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
    return to_json(manifest._asdict())


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


_NEEDED: dict[str, Reader] = {
    "version": between(1, VERSION),
    "writer": one_of(WRITERS),
    "file": _file_name,
    **dict.fromkeys(("size", "step"), count),
    "sha256": matching("[0-9a-f]{64}"),
    "weights": listed(one_of(WEIGHTS)),
    "nonfinite": listed(path_text),
    "versions": _versions,
    "created_at": path_text,
}
_OR_NONE: dict[str, Reader] = {
    **dict.fromkeys(("run_id", "parent_run_id", "optimizer_name"), path_text),
    "parent_step": count,
    "config_hash": config_hash,
    **dict.fromkeys(("step_completed", "finite"), boolean),
    "last_fast_eval": _fast_eval,
    "best_score": finite,
    "best_weights": one_of(WEIGHTS),
}
