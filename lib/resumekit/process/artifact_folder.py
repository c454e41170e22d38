"""The folders `artifacts/best@<N>/` of one run: how one is made whole, recognised as ours, and removed again.

One is filled under a temp name and renamed, so that no reader sees half of it. It is ours if it has the name, a
lineage.json of this run and this step in it, and no file that the kit does not write; nothing else is ever removed.
Try it: `python -m json.tool runs/<run_id>/artifacts/best@400/lineage.json`
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..base.files import (
    UnreadableFile,
    fsync_directory,
    open_regular,
    parse_temp_name,
    read_json,
    temp_path,
    write_atomic,
)
from ..base.imports import TYPE_CHECKING, Any, NamedTuple
from ..base.paths import STEP_DIGITS
from ..base.values import mapping
from .train_log import MAX_LINE_BYTES

if TYPE_CHECKING:
    from ..run.log_patterns import Patterns

WEIGHTS, STATUS, LINEAGE, LOG = "weights.pt", "status.json", "lineage.json", "log.txt"
CONFIG_YAML, CONFIG_JSON = "config.yaml", "config.json"
# What the process that extracts the weights says; gone before the folder gets its name.
SAID = "extract.log"
FILES = frozenset({WEIGHTS, STATUS, LINEAGE, LOG, CONFIG_YAML, CONFIG_JSON, SAID})
MAKER = "resumekit"
LINES_BEFORE = LINES_AFTER = 100
# A log line may be long; of those around a best no more than this is read on either side.
WINDOW_BYTES = 1 << 20
# How far back a best's line is looked for: a fast log writes on while its checkpoint comes to rest.
SEARCH_BYTES = 16 << 20

_NAME = f"best@([0-9]{{1,{STEP_DIGITS}}})"


class Artifact(NamedTuple):
    """A snapshot that is there: its step, its folder, its lineage.json."""

    step: int
    path: Path
    lineage: dict[str, Any]


def new(folder: Path, step: int) -> Path:
    """Make the folder that a snapshot is filled in, under its temp name; OSError if that cannot be."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise NotADirectoryError(20, "Not a directory", str(folder))
    temp = temp_path(folder / f"best@{step}")
    temp.mkdir()
    return temp


def publish(temp: Path, step: int, run_id: str) -> Path:
    """Give a filled folder its name; an older snapshot of that step goes first. OSError if something else is there."""
    target = temp.with_name(f"best@{step}")
    if (old := read(target, run_id)) is not None:
        remove(old.path)
    fsync_directory(temp)
    os.rename(temp, target)
    fsync_directory(target.parent)
    return target


def read(path: Path, run_id: str) -> Artifact | None:
    """Return the snapshot at `path`, or None where there is none that this run's sidecar made."""
    name = re.fullmatch(_NAME, path.name)
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
        lineage = mapping(read_json(path / LINEAGE))
        names = os.listdir(path) if is_folder else []
    except (OSError, UnreadableFile):
        return None
    if name is None or not is_folder:
        return None
    is_ours = (
        lineage.get("made_by") == MAKER and lineage.get("run_id") == run_id and lineage.get("step") == int(name[1])
    )
    return Artifact(int(name[1]), path, lineage) if is_ours and all(map(_is_known, names)) else None


def made_in(folder: Path, run_id: str) -> list[Artifact]:
    """Return the snapshots that this run's sidecars made."""
    return [artifact for name in _names(folder) if (artifact := read(folder / name, run_id))]


def prune(folder: Path, run_id: str, keep: int, current: int) -> list[Path]:
    """Remove all but the snapshot of the step `current` and the `keep` newest of the others; return what is gone."""
    past = sorted(
        (one for one in made_in(folder, run_id) if one.step != current), key=lambda one: one.step, reverse=True
    )
    for artifact in past[keep:]:
        remove(artifact.path)
    return [artifact.path for artifact in past[keep:] if not artifact.path.exists()]


def sweep(folder: Path) -> None:
    """Remove what a sidecar left half made. The caller holds the status lock, so no other one is at work."""
    for name in _names(folder):
        if _is_temp(name):
            remove(folder / name)


def remove(path: Path) -> None:
    """Remove one folder of ours: under a temp name first, so that none sees half of it, and files of ours alone."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return
        if not _is_temp(path.name):
            path = path.rename(temp_path(path))
        for name in filter(_is_known, os.listdir(path)):
            (path / name).unlink()
        path.rmdir()


def anchor(train_log: Path, step: int, patterns: Patterns) -> int | None:
    """Return the byte in train.log behind the last line that says that `step` was saved, else that tells that step.

    Args:
        train_log: the log; its last SEARCH_BYTES are looked through.
        step: optimizer steps done.
        patterns: `trainer.log_patterns`, ready for use.

    Returns:
        None where there is no such line (yet).
    """
    for ends_of in (_saved, _told):
        for start, data in _backwards(train_log):
            if ends := ends_of(data, step, patterns):
                return start + ends[-1]
    return None


def anchor_behind(train_log: Path, start: int, step: int, patterns: Patterns) -> tuple[int | None, int]:
    """Look for the first such line behind the byte `start`, where none was before it.

    Returns:
        (the byte behind that line or None, the byte to look on from).
    """
    try:
        _, data = _part(train_log, start, start + WINDOW_BYTES)
    except OSError:
        return None, start
    whole = data[: data.rfind(b"\n") + 1]
    ends = _saved(whole, step, patterns) or _told(whole, step, patterns)
    return (start + ends[0] if ends else None), start + len(whole)


def log_end(train_log: Path) -> int:
    """Return the byte behind the last whole line of train.log."""
    for start, data in _backwards(train_log):
        return start + data.rfind(b"\n") + 1
    return 0


def _backwards(train_log: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, bytes) of the log's last parts, the newest first; a line stands whole in one of them."""
    with contextlib.suppress(OSError):
        size = os.lstat(train_log).st_size
        for end in range(size, max(0, size - SEARCH_BYTES), -WINDOW_BYTES):
            yield _part(train_log, max(0, end - WINDOW_BYTES - MAX_LINE_BYTES), end)


def _saved(data: bytes, step: int, _patterns: Patterns) -> list[int]:
    """Return where the lines end with which `save_checkpoint` says that it has saved a step."""
    return [match.end() for match in re.finditer(rb" \[checkpoint\] step=%d .*\n" % step, data)]


def _told(data: bytes, step: int, patterns: Patterns) -> list[int]:
    """Return where the lines end in which the patterns read a step; only those with its number are looked at."""
    if not patterns:
        return []
    from ..run.log_patterns import found_steps  # late, as in `Run.log_patterns`
    from ..run.rank_lines import without_rank

    number = "|".join({str(step), f"{step:,}", f"{step:_}"}).encode()
    ends = []
    for match in re.finditer(rb"(?m)^[0-9a-f]+ (.*(?<![0-9])(?:%b)(?![0-9]).*\n)" % number, data):
        steps = found_steps(match[1], patterns) or found_steps(without_rank(match[1]), patterns)
        if any(one["step"] == step for one in steps):
            ends.append(match.end())
    return ends


def write_log(path: Path, train_log: Path, offset: int) -> bool:
    """Write the lines of train.log around a byte: 100 before it, and up to 100 behind it, as many as there are.

    Returns:
        Whether all that come behind it are there: then there is no need to write it again.
    """
    with contextlib.suppress(OSError):
        _, before = _part(train_log, max(0, offset - WINDOW_BYTES), offset)
        _, after = _part(train_log, offset, offset + WINDOW_BYTES)
        lines = after.splitlines(keepends=True)[:LINES_AFTER]
        whole = [line for line in lines if line.endswith(b"\n")]
        wanted = b"".join([*before.splitlines(keepends=True)[-LINES_BEFORE:], *whole])
        if not path.exists() or path.read_bytes() != wanted:
            write_atomic(path, wanted)
        return len(whole) == LINES_AFTER or len(after) == WINDOW_BYTES
    return False


def _part(path: Path, start: int, end: int) -> tuple[int, bytes]:
    """Return (start, the bytes from there to `end`); OSError where it is no file, or a link: that may lead anywhere."""
    try:
        descriptor = open_regular(path, follow_links=False)
    except UnreadableFile as error:
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    with open(descriptor, "rb") as file:
        file.seek(start)
        return start, file.read(end - start)


def _is_known(name: str) -> bool:
    """Whether the kit writes files of this name here: one of the snapshot's, or the temp file of one."""
    temp = parse_temp_name(name)
    return (temp.target if temp else name) in FILES


def _is_temp(name: str) -> bool:
    """Whether a folder has the temp name of a snapshot."""
    temp = parse_temp_name(name)
    return temp is not None and re.fullmatch(_NAME, temp.target) is not None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder)) if stat.S_ISDIR(os.lstat(folder).st_mode) else []
    except OSError:
        return []
