"""The manifest beside a checkpoint, `X.pt.json`: what makes it known to be whole, and where it comes from.

It is written last, so it is the mark of completeness. It holds the file's size and SHA-256, its step, run, parent,
config hash, optimizer, and whether all values were finite. Reads and writes that one small file.
Try it: `python -m json.tool runs/<run_id>/checkpoints/hrm_arc_step_400.pt.json`
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..basics.files import UnreadableFile, move_new, read_json, temp_path, to_json, write_all, write_atomic
from ..basics.paths import manifest_path

VERSION = 1
SAVE_CHECKPOINT = "save_checkpoint"
SIDECAR = "sidecar"
WRITERS = (SAVE_CHECKPOINT, SIDECAR)
WEIGHTS = ("raw", "ema", "swa")
_NOT_JSON = "not JSON"


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
        last_fast_eval: {'step': int, 'accuracy': float} or None.
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


def is_torn(error: UnreadableFile) -> bool:
    """Whether a manifest is unreadable because less than its whole was written: empty, or half its JSON.

    What `save_checkpoint` writes is moved into place whole. A torn one says nothing of the file beside it.
    """
    return str(error).startswith(_NOT_JSON)


def is_older(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to behind its manifest; False where that cannot be seen."""
    try:
        return os.stat(checkpoint).st_mtime_ns > os.lstat(manifest_path(checkpoint)).st_mtime_ns
    except OSError:
        return False


def parse(value: Any, file_name: str) -> Manifest:
    """Check a manifest's content by hand (a JSON Schema library would cost more than the rest of the selection)."""
    if not isinstance(value, dict):
        raise UnreadableFile("not a JSON object")
    version = value.get("version")
    if type(version) is int and version > VERSION:
        raise UnreadableFile(f"written by a newer version of the kit (format {version}, this one knows {VERSION})")
    known = set(Manifest._fields)
    for name in known - value.keys():
        raise UnreadableFile(f"the field '{name}' is missing")
    for name, item in value.items():
        if name in known and not _CHECKS[name](item):
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
    temp, target = write_temp(checkpoint, manifest), manifest_path(checkpoint)
    try:
        if _is_ours_to_replace(checkpoint, manifest.sha256):
            os.replace(temp, target)
        else:
            move_new(temp, target)
    finally:
        temp.unlink(missing_ok=True)


def _is_ours_to_replace(checkpoint: Path, sha256: str) -> bool:
    if not os.path.lexists(manifest_path(checkpoint)):
        return False
    try:
        known = read(checkpoint)
        return known.writer == SIDECAR and (known.sha256 != sha256 or is_older(checkpoint))
    except UnreadableFile as error:
        return is_torn(error)


def write_temp(checkpoint: Path, manifest: Manifest) -> Path:
    """Write the manifest durably under a temp name beside its own; the caller moves it there. Raises OSError."""
    temp = temp_path(manifest_path(checkpoint))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temp, flags, 0o666)
    try:
        try:
            write_all(descriptor, encode(manifest))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    return temp


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as it stands in its file."""
    return to_json(manifest._asdict())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**15


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**12


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


def _is_fast_eval(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"step", "accuracy"} and (
        _is_step(value["step"]) and _is_number(value["accuracy"])
    )  # fmt: skip


def _is_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(item is None or type(item) in (str, int) for item in value.values())


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "writer": lambda value: value in WRITERS,
    "file": lambda value: _is_text(value) and value not in ("", ".", "..") and "/" not in value,
    "size": _is_count,
    "sha256": lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    "step": _is_step,
    "run_id": _or_none(_is_text),
    "parent_run_id": _or_none(_is_text),
    "parent_step": _or_none(_is_step),
    "config_hash": _or_none(lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{12,64}", value))),
    "optimizer_name": _or_none(_is_text),
    "weights": _is_list_of(lambda value: value in WEIGHTS),
    "step_completed": _or_none(lambda value: isinstance(value, bool)),
    "finite": _or_none(lambda value: isinstance(value, bool)),
    "nonfinite": _is_list_of(_is_text),
    "last_fast_eval": _or_none(_is_fast_eval),
    "versions": _is_versions,
    "best_score": _or_none(_is_number),
    "best_weights": _or_none(lambda value: value in WEIGHTS),
    "created_at": _is_text,
    "version": lambda value: type(value) is int and value >= 1,
}
