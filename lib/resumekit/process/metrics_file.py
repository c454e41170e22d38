"""Follows `trainer.metrics_file`: JSON lines, a CSV file, or the trainer_state.json of Hugging Face's Trainer.

A thread of its own reads, so that a disk which does not answer keeps nothing else waiting. Only a regular file of the
caller's is read, in pieces, and what is cut, replaced or written anew is read from its beginning; what was told once
is not told again. Try it: `python -m pytest tests/test_metrics_file.py`
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

from ..base.file_identity import FileIdentity, identity_of
from ..base.files import UnreadableFile, open_regular
from ..base.imports import Any, NamedTuple
from ..base.values import count, items, mapping, string
from ..run.metrics_rows import MetricsRows, Row
from ..run.run_folder import Run
from .output_log import LogSource

# How often the file is looked at, and how long its last lines are waited for when the training has ended.
LOOK_S = 1.0
LAST_S = 5.0
READ_BYTES = 1 << 20
# A longer line is passed over.
MAX_LINE_BYTES = 64 * 1024
# Of a file that is one document; the objects in it take some twenty times as much.
MAX_DOCUMENT_BYTES = 8 << 20
MAX_COLUMNS = 1000
# So many readings wait to be journaled.
MAX_WAITING = 4
# Of a folder so many names are looked at, and so many that match `{*}` followed.
MAX_NAMES, MAX_FOLLOWED = 10_000, 64
ANY = "{*}"


class Batch(NamedTuple):
    """What one reading brought.

    Args:
        rows: as `MetricsRows` yields them.
        account: what a successor goes on from, once they are journaled.
        has_more: the file had as much as is read at once: there is more to read now.
    """

    rows: list[Row]
    account: dict[str, Any]
    has_more: bool = False


class MetricsFollower:
    """Reads one run's metrics file, further with each call.

    Args:
        run: the run.
        saved: the account of the follower before this one; values out of a file.
    """

    def __init__(self, run: Run, saved: Any = None) -> None:
        self._run = run
        self._pattern = filled(string(run.setting("trainer", "metrics_file")) or "", run)
        known = mapping(saved)
        self._rows = MetricsRows(known.get("rows"))
        self._path: Path | None = None
        self._saved = known
        self._source: LogSource | None = None
        self._beginnings = 0
        self._pending = b""
        self._is_too_long = self._has_more = False
        self._columns: list[str] = []
        self._document: FileIdentity | None = None

    def read(self) -> Batch:
        """Return what is new; at most about READ_BYTES of it. Never raises for what lies there."""
        rows: list[Row] = []
        self._has_more = False
        with contextlib.suppress(OSError, UnreadableFile):
            path = newest(self._pattern)
            if path is not None and path.name.endswith(".json"):
                rows = list(self._rows.of_document(self._read_document(path)))
            elif path is not None:
                self._follow(path)
                first = int(_counts_from_0(path))
                rows = [{**row, "step": row["step"] + first} for row in self._rows.new(self._records())]
        return Batch(rows, self._account(), self._has_more)

    @property
    def _suffix(self) -> str:
        return self._path.suffix if self._path is not None else ""

    def _follow(self, path: Path) -> None:
        if path == self._path:
            return
        known = self._saved if self._saved.get("path") == os.fspath(path) else {}
        self._path, self._saved, self._pending, self._is_too_long = path, {}, b"", False
        self._columns = [one for one in items(known.get("columns"))[:MAX_COLUMNS] if isinstance(one, str)]
        self._source = _OwnSource(path, count(known.get("offset")) or 0, known.get("file"), known.get("mark"))
        self._beginnings = 0

    def _records(self) -> Iterator[Any]:
        """Yield the records of the next lines."""
        if self._source is None:
            return
        chunk = self._source.read(READ_BYTES)
        if self._source.beginnings != self._beginnings:
            self._beginnings, self._pending, self._columns = self._source.beginnings, b"", []
            self._is_too_long = False
        self._has_more = len(chunk) == READ_BYTES
        self._source.notices.clear()
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if lines and self._is_too_long:
            del lines[0]
            self._is_too_long = False
        if len(self._pending) > MAX_LINE_BYTES:
            self._pending, self._is_too_long = b"", True
        is_table = self._suffix in (".csv", ".tsv")
        for line in lines:
            if line.strip() and len(line) <= MAX_LINE_BYTES:
                record = self._cells(line) if is_table else _parsed(line)
                if record is not None:
                    yield record

    def _cells(self, line: bytes) -> dict[str, str] | None:
        """Return the filled cells of a row by the names of their columns; None for the row that has those names."""
        import csv  # late: few runs have a table

        separator = "\t" if self._suffix == ".tsv" else ","
        try:
            (cells,) = csv.reader([line.decode("utf-8", "replace").strip("\r\n\ufeff")], delimiter=separator)
        except (csv.Error, ValueError):
            return None
        if not self._columns:
            self._columns = cells[:MAX_COLUMNS]
            return None
        return {name: cell for name, cell in zip(self._columns, cells, strict=False) if cell}

    def _read_document(self, path: Path) -> Any:
        """Return the document of a file that has changed; None for one that is as it was, or not yet whole."""
        descriptor = open_owned(path)
        with open(descriptor, "rb") as file:
            now = identity_of(os.fstat(descriptor)).version
            if now == self._document or now.size > MAX_DOCUMENT_BYTES:
                return None
            document = _parsed(file.read(MAX_DOCUMENT_BYTES + 1))
        if document is not None:
            self._document = now
        return document

    def _account(self) -> dict[str, Any]:
        account: dict[str, Any] = {"rows": self._rows.account}
        if self._source is not None and self._path is not None:
            offset = max(0, self._source.offset - len(self._pending))
            account |= {
                "path": os.fspath(self._path), "offset": offset, "mark": self._source.mark_at(offset),
                "file": self._source.identity, "columns": self._columns,
            }  # fmt: skip
        return account


class _OwnSource(LogSource):
    """Reads a file of the caller's alone; another user's is as one that is not there."""

    def __init__(self, path: Path, offset: int, identity: Any, mark: Any) -> None:
        super().__init__(path, offset, identity, mark)

    def _opened(self) -> int:
        return open_owned(self._path)


class MetricsReader(threading.Thread):
    """Reads in the background; its owner takes each batch, journals it, and keeps its account.

    Args:
        follower: what reads.
    """

    def __init__(self, follower: MetricsFollower) -> None:
        super().__init__(daemon=True)
        self._follower = follower
        self._batches: queue.Queue[Batch | None] = queue.Queue(MAX_WAITING)
        self._is_over = threading.Event()
        self.start()

    def taken(self) -> Iterator[Batch]:
        """Yield what was read since the last call; never waits."""
        with contextlib.suppress(queue.Empty):
            while batch := self._batches.get_nowait():
                yield batch

    def rest(self) -> Iterator[Batch]:
        """Yield what is left once the training has ended; gives up when nothing has come for LAST_S."""
        self._is_over.set()
        with contextlib.suppress(queue.Empty):
            while batch := self._batches.get(timeout=LAST_S):
                yield batch

    def run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_over.is_set()
            while (batch := self._follower.read()).rows or batch.has_more:
                self._batches.put(batch)
            self._is_over.wait(LOOK_S)
        self._batches.put(None)


def filled(pattern: str, run: Run) -> Path:
    """Return the path of a metrics file, with its `{*}`: relative to the run folder where it is not in full."""
    paths = run.paths
    folders = {"run_dir": paths.run_dir, "checkpoints_dir": paths.checkpoints, "logs_dir": paths.logs}
    for name, value in folders.items():
        pattern = pattern.replace(f"{{{name}}}", os.fspath(value))
    pattern = pattern.replace("{run_id}", run.run_id)
    return paths.run_dir / pattern


def newest(pattern: Path) -> Path | None:
    """Return the file that a path with `{*}` means: of several the one written last; None where there is none."""
    if ANY not in os.fspath(pattern):
        return pattern
    found = [Path("/")]
    for part in pattern.absolute().parts[1:]:
        if ANY in part:
            found = [folder / name for folder in found for name in _matching(folder, part)][:MAX_FOLLOWED]
        else:
            found = [folder / part for folder in found]
    return max((path for path in found if os.path.isfile(path)), key=_written_at, default=None)


def _matching(folder: Path, part: str) -> list[str]:
    """Return the names in a folder that a part with `{*}` means, those written last first."""
    head, _, tail = part.partition(ANY)
    names = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for _, entry in zip(range(MAX_NAMES), entries, strict=False):
            name = entry.name
            if name.startswith(head) and name.endswith(tail) and len(name) >= len(head) + len(tail):
                names.append(name)
    return sorted(names, key=lambda name: _written_at(folder / name), reverse=True)[:MAX_FOLLOWED]


def _written_at(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0


def open_owned(path: Path) -> int:
    """Open a regular file of the caller's; UnreadableFile for any other, for a link too."""
    descriptor = open_regular(path, follow_links=False)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise UnreadableFile("another user's")
    return descriptor


def _counts_from_0(path: Path) -> bool:
    """Whether a file is of Lightning's CSVLogger: its row of step 49 is written behind the fiftieth."""
    return path.name == "metrics.csv" and path.parent.name.startswith("version_")


def _parsed(data: bytes) -> Any:
    """Return the value of JSON in which NaN may stand; None for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
