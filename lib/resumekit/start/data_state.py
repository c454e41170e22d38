"""What the data below `data.path` are at a start: names, sizes and times of the files, their content on request.

The sum goes into run.json, the list into the run's data_files.json; a resume says what differs from those of the run
that holds its checkpoint. Bounded: so many files, so many seconds, in the order of the names; what is behind them is
not known. Links to folders are not followed. Reads the folders, and the files where `data.fingerprint` is 'content'.
Try it: `bin/run.sh EXP-01 --set data.path=data`, then `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.files import UnreadableFile, open_regular, read_json, to_json
from ..base.imports import Any, NamedTuple
from ..base.terminal import plain
from ..base.values import items, kernel_number, mapping, matching, path_text, row, string
from ..run.run_folder import Run

CONTENT = "content"
MOST_FILES = 10_000
MOST_NAME_BYTES = 2 << 20
MOST_NAMES = 200_000  # of one folder, which have to be sorted before the first of them is looked at
MOST_LEVELS = 50
MOST_S = 1.0
MAX_LIST_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20

_sha256 = matching("[0-9a-f]{64}")
_named = row(path_text, kernel_number, kernel_number)


class DataFile(NamedTuple):
    """One file of the data.

    Args:
        name: relative to data.path; '' where that is a file itself, with a '/' behind it for what is not looked into.
        size: bytes; -1 where it cannot be asked for.
        mtime_ns: when it was last written.
        sha256: of its content; None where that was not asked for.
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None

    @property
    def place(self) -> tuple[str, ...]:
        """By what the files are in order, whatever stands in their names."""
        return tuple(self.name.split("/"))


class DataState(NamedTuple):
    """The data of a start.

    Args:
        files: in the order of their places.
        is_whole: whether these are all; else those behind the last one are not known.
    """

    files: tuple[DataFile, ...]
    is_whole: bool

    def as_fields(self) -> dict[str, Any]:
        """Return run.json's `data`."""
        return {
            "files": len(self.files), "bytes": sum(max(0, one.size) for one in self.files), "sha256": self._digest(),
            "is_whole": self.is_whole, "has_content": any(one.sha256 for one in self.files),
        }  # fmt: skip

    def as_list(self) -> bytes:
        """Return data_files.json's content."""
        return to_json([[part for part in one if part is not None] for one in self.files], indent=None)

    def _digest(self) -> str:
        return hashlib.sha256(self.as_list()).hexdigest()


def look(data: Path, *, reads: bool, clock: Callable[[], float] = time.monotonic) -> DataState:
    """Return the state of the data.

    Args:
        data: where `data.path` leads, a folder or a file.
        reads: whether each file is read for its digest, which takes as long as it takes.
    """
    ends = clock() + MOST_S
    found: list[DataFile] = []
    name_bytes, is_whole = 0, False
    with contextlib.suppress(_Late):
        for one in _walk(data, "", lambda: clock() > ends):
            name_bytes += len(one.name)
            if len(found) >= MOST_FILES or name_bytes > MOST_NAME_BYTES:
                raise _Late
            found.append(one)
        is_whole = True
    if reads:
        found = [one._replace(sha256=_digest_of(data / one.name if one.name else data)) for one in found]
    return DataState(tuple(found), is_whole)


class _Late(Exception):
    """There is more than is looked at."""


def _walk(folder: Path, name: str, is_late: Callable[[], bool]) -> Iterator[DataFile]:
    """Yield what lies at a path and below it, in the order of the places."""
    if is_late():
        raise _Late
    try:
        seen = os.stat(folder)
    except OSError:  # a link that leads nowhere
        yield DataFile(name, -1, 0)
        return
    if not stat.S_ISDIR(seen.st_mode):
        yield DataFile(name, seen.st_size, seen.st_mtime_ns)
        return
    is_left = name and (os.path.islink(folder) or name.count("/") >= MOST_LEVELS)
    names = None if is_left else _names_in(folder, is_late)
    if names is None:
        yield DataFile(f"{name}/", 0, seen.st_mtime_ns)
        return
    for own in names:
        yield from _walk(folder / own, f"{name}/{own}" if name else own, is_late)


def _names_in(folder: Path, is_late: Callable[[], bool]) -> list[str] | None:
    """Return the sorted names in a folder; None where there are too many, or it cannot be read."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > MOST_NAMES:
                    return None
                if len(names) % 1000 == 0 and is_late():
                    raise _Late
    except OSError:
        return None
    return sorted(names)


def _digest_of(path: Path) -> str | None:
    try:
        descriptor = open_regular(path)
    except UnreadableFile:
        return None
    digest = hashlib.sha256()
    try:
        while block := os.read(descriptor, _BLOCK_BYTES):
            digest.update(block)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def differences(holder: Run, now: DataState) -> list[str]:
    """Return what is to be said of data that are not those of the run that holds the checkpoint; [] where they are.

    A run of an older kit, or without data, has nothing to compare with.
    """
    record = mapping(holder.record.get("data"))
    if string(record.get("sha256")) in (None, now.as_fields()["sha256"]):
        return []
    try:
        known = [_read_file(one) for one in items(read_json(holder.paths.data_files, MAX_LIST_BYTES))]
    except UnreadableFile:
        return [f"the data are not as '{holder.run_id}' found them: {_sum(record)} then, {_sum(now.as_fields())} now"]
    then = [one for one in known if one is not None]
    return _compared(holder.run_id, then, now, is_whole=record.get("is_whole") is True)


def _compared(run_id: str, then: list[DataFile], now: DataState, *, is_whole: bool) -> list[str]:
    # Where one of the two was cut off, what stands behind its last file is unknown there.
    sides = ((then, is_whole), (now.files, now.is_whole))
    if any(not files and not all_known for files, all_known in sides):
        return []
    ends = [files[-1].place for files, all_known in sides if not all_known]
    old, new = ({one.name: one for one in files if all(one.place <= end for end in ends)} for files, _ in sides)
    kinds: dict[str, list[str]] = {"changed": [], "gone": [], "new": []}
    touched = []
    for name in sorted(old.keys() | new.keys()):
        was, one = old.get(name), new.get(name)
        if was is None or one is None:
            kinds["new" if was is None else "gone"].append(f"'{name}' is {'new' if was is None else 'gone'}")
        elif was.size != one.size:
            kinds["changed"].append(f"'{name}' has {one.size:,} bytes, {was.size:,} then")
        elif was.sha256 and one.sha256:
            if was.sha256 != one.sha256:
                kinds["changed"].append(f"'{name}' has another content of the same size")
        elif was.mtime_ns != one.mtime_ns:
            touched.append(name)
    said = [f"{len(words):,} {kind}" for kind, words in kinds.items() if words]
    firsts = [words[0] for words in kinds.values() if words]
    found = []
    if said:
        found.append(f"the data are not as '{run_id}' found them: files {', '.join(said)}; {'; '.join(firsts)}")
    if touched:
        hint = "data.fingerprint: content tells whether they are the same"
        found.append(
            f"the data were written again since '{run_id}' found them: {len(touched):,} files of the same size have "
            f"another time, the first '{touched[0]}' ({hint})"
        )
    return [plain(sentence) for sentence in found]


def _read_file(value: Any) -> DataFile | None:
    if not isinstance(value, list) or _named(value[:3]) is None or len(value) > 4:
        return None
    name, size, mtime_ns = value[:3]
    return DataFile(name, size, mtime_ns, _sha256(value[3]) if len(value) == 4 else None)


def _sum(fields: dict[str, Any]) -> str:
    return f"{fields.get('files')} files of {fields.get('bytes')} bytes"
