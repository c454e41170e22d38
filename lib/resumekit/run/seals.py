"""Seals: what the caller's own launcher wrote into a run folder, kept outside of it.

A run folder in a shared `runs/` may be written by other users. At each start the launcher keeps the digests of the
run's records in the caller's own state folder (`ownership.state_folder`), where no other user may write; `trust`
compares them. Writes one small file per run.
Try it: `ls ~/.local/state/resumekit/seals`
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ..base import file_identity, ownership
from ..base.files import UnreadableFile, fsync_directory, read_json, to_json, utc_now, write_atomic, write_new
from ..base.imports import Any, NamedTuple
from ..base.paths import RunPaths
from ..base.values import listed, mapping, string

_FOLDER = "seals"
# Written once, before the first seal: a run.json that is older cannot have one.
_SINCE = ".since"
# Beyond so many, now and then, those are removed whose run folder is gone.
MANY = 4096
_SWEEP_EVERY = 256
MAX_RECORD_BYTES = 4 << 20
_NAME_CHARACTERS = 180


class Seal(NamedTuple):
    """One seal.

    Args:
        sha256: file name of a record -> SHA-256 of its bytes, 64 hex digits.
        notify: `notify.command` of the run; None where it has none.
        root: the folder that relative paths of its config begin at.
    """

    sha256: Mapping[str, str]
    notify: list[str] | None
    root: str | None


def records(paths: RunPaths) -> tuple[Path, ...]:
    """Return the files that a seal is about: what a later start or a recovery of the run goes by."""
    return paths.run_json, paths.resolved_json, paths.config_copy, paths.resume_plan


def digest(contents: Mapping[str, bytes]) -> str:
    """Return one SHA-256 of all records of a run, 64 hex digits: of their names and bytes, in whichever order."""
    parts = (b"%s\0%d\0%s" % (os.fsencode(name), len(data), data) for name, data in sorted(contents.items()))
    return file_identity.sha256(b"".join(parts))


def keep(
    paths: RunPaths, record: Mapping[str, Any], contents: Mapping[str, bytes], notify: list[str] | None
) -> str | None:
    """Seal a run; one durable write.

    Without a state folder nothing is kept, and that is no error: a recovery goes by owners and modes then.

    Args:
        paths: of the run.
        record: its run.json.
        contents: file name of each of `records` -> the bytes that the launcher has written.
        notify: its `notify.command`.

    Returns:
        Why the seal could not be written, where there is a place for it; the run can start all the same.
    """
    try:
        if (folder := _folder(create=True)) is None:
            return None
        path = _path(folder, record)
        content = {
            "run_id": record["run_id"], "runs_dir": str(paths.run_dir.parent), "sealed_at": utc_now(),
            "sha256": {name: file_identity.sha256(data) for name, data in contents.items()},
            "notify": notify, "root": record["root"],
        }  # fmt: skip
        write_atomic(path, to_json(content), durable=True, mode=0o600)
        _sweep(folder)
    except OSError as error:
        return f"{error.strerror}: '{error.filename}'" if since() is not None else None
    return None


def read(record: Mapping[str, Any]) -> Seal | None:
    """Return the caller's seal of the run that a run.json says it is; None where there is none.

    Args:
        record: may be another user's: it only says which seal is looked for.
    """
    folder = _folder()
    if folder is None or string(record.get("token")) is None or string(record.get("run_id")) is None:
        return None
    path = _path(folder, record)
    if not ownership.is_callers_alone(path):
        return None
    try:
        found = mapping(read_json(path))
    except UnreadableFile:
        return None
    if not isinstance(found.get("sha256"), dict) or found.get("run_id") != record["run_id"]:
        return None
    return Seal(found["sha256"], listed(string)(found.get("notify")), string(found.get("root")))


def release(record: Mapping[str, Any]) -> None:
    """Remove the seal of a run whose folder is taken back."""
    folder = _folder()
    if folder is not None:
        with contextlib.suppress(OSError):
            _path(folder, record).unlink()


def since() -> float | None:
    """Return when this user began to keep seals, in seconds since the epoch; None where none are kept."""
    folder = _folder()
    if folder is None:
        return None
    try:
        return os.lstat(folder / _SINCE).st_mtime
    except OSError:
        return None


def _folder(*, create: bool = False) -> Path | None:
    """Return the folder of the seals, the caller's alone; None where there is none. Raises OSError with `create`."""
    state = ownership.state_folder(create=create)
    if state is None:
        return None
    folder = state / _FOLDER
    if create and not os.path.lexists(folder):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with contextlib.suppress(FileExistsError):
            write_new(folder / _SINCE, b"", mode=0o600)
        fsync_directory(state)
    return folder if ownership.is_callers_alone(folder, stat.S_IFDIR) else None


def _path(folder: Path, record: Mapping[str, Any]) -> Path:
    """Return where the seal of a run lies: of two runs of one id, in two runs folders, the token is another."""
    token = file_identity.sha256(record["token"].encode("utf-8", "surrogatepass"))[:16]
    run_id = record["run_id"].replace("/", "-")[:_NAME_CHARACTERS]
    return folder / f"{run_id}-{token}.json"


def _sweep(folder: Path) -> None:
    """Remove the seals of runs that are gone, where there are very many; a runs folder that is away keeps its seals."""
    names = os.listdir(folder)
    if len(names) < MANY or len(names) % _SWEEP_EVERY:
        return
    for name in names:
        with contextlib.suppress(UnreadableFile, OSError, TypeError, KeyError, ValueError):
            if not name.endswith(".json"):
                continue
            found = read_json(folder / name)
            runs_dir = Path(found["runs_dir"])
            if runs_dir.is_dir() and not os.path.lexists(runs_dir / found["run_id"]):
                (folder / name).unlink()
