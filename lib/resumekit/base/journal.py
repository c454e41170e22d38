"""The journal: one JSON line for whatever happens to a run, appended by several processes at once.

Each event is one `write` of `\\n{...}\\n` with O_APPEND: a torn line of a dead writer cannot swallow the next one.
Try it: `tail -f runs/<run_id>/journal.jsonl`
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .files import UnreadableFile, open_regular, read_end, utc_now
from .imports import Any

# These are fsynced: after a power cut they say which run, which checkpoint and which end there was.
DURABLE_EVENTS = frozenset(
    {"launched", "checkpoint", "abort", "recovery", "stopped", "job_ends", "taken_over", "exited"}
)
# A line above this is no event of ours; a reader skips it instead of taking it into memory.
MAX_LINE_BYTES = 1 << 20
# Of another user's journal no more is read at once; what a sidecar has read of it before does not count.
MAX_FOREIGN_BYTES = 1 << 30
# Nor on from so much of it that holds no event: a power cut leaves a few MB of zeros.
MAX_FOREIGN_GAP_BYTES = 16 << 20
TAIL_BYTES = 128
# Of a trainer that goes on for a minute after its abort event, with a thousand steps a second.
END_BYTES = 16 << 20
# Answers to an open that mean: there is no such file.
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
# Nothing of ours lies deeper; what a trainer hands on may, as deep as a parser goes.
MAX_DEPTH = 32
_scan: Callable[[str, int], tuple[Any, int]] = vars(json.JSONDecoder())["scan_once"]  # of no declared type


def append(path: Path, event: str, run_id: str | None, /, **fields: Any) -> None:
    """Append one event.

    Args:
        path: the run's journal.jsonl; made if it is not there (its folder must be).
        event: the kind, one of the names in schemas/event.schema.json.
        run_id: the run it is about.
        fields: plain values; floats keep full precision, NaN and infinities become the strings 'nan', 'inf', '-inf'.

    Raises:
        OSError: the event could not be written.
    """
    head = {"event": event, "at": utc_now(), "mono_s": time.monotonic(), "run_id": run_id}
    record = {**head, **fields, **head}  # first in the line, and no field of that name takes their place
    line = b"\n" + json.dumps(_strict(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
    # O_NONBLOCK does nothing to a regular file and keeps a FIFO planted under this name from stopping us.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(28, "the event was written in part, the disk is full", str(path))
        if event in DURABLE_EVENTS:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the events from a byte offset on, up to the last whole line.

    Args:
        path: journal.jsonl; a missing one reads as empty.
        offset: where the last reading ended, in bytes.

    Yields:
        (event, offset behind it), in the order of the file. Lines that are torn, too long or not JSON objects are
        passed over, and so are holes, which take no disk however large they are.

    Raises:
        OSError: it is there and cannot be read now (a stale handle of a network drive, a disk that fails, no
            permission): that is no empty journal, and no run without a trainer. Or it is another user's, and goes
            on for more than MAX_FOREIGN_BYTES, or without an event for more than MAX_FOREIGN_GAP_BYTES.
    """
    try:
        descriptor = open_regular(path, follow_links=False)
    except UnreadableFile as error:
        _refuse_doubt(error)
        return
    with os.fdopen(descriptor, "rb") as file:
        is_own = os.fstat(descriptor).st_uid == os.geteuid()
        count = event_at = 0
        file.seek(offset)
        while line := file.readline(MAX_LINE_BYTES):
            if line == b"\n" and is_own:  # each event begins with one
                offset, count = offset + 1, count + 1
                continue
            is_whole = line.endswith(b"\n")
            if not is_whole and len(line) < MAX_LINE_BYTES:
                return  # still being written: the next reading begins here
            offset += len(line)
            count += len(line)
            if not is_own and (count > MAX_FOREIGN_BYTES or count - event_at > MAX_FOREIGN_GAP_BYTES):
                raise _too_much(path, has_events=count > MAX_FOREIGN_BYTES)
            if event := _parse(line):
                event_at = count
                yield event, offset
            elif not is_whole and (beyond := _beyond_hole(descriptor, offset)) != offset:
                offset = file.seek(beyond)


def _beyond_hole(descriptor: int, offset: int) -> int:
    """Return where the data of a file go on at or behind an offset: its end, where only a hole follows.

    A file system that knows of no holes says that all is data.
    """
    position = os.lseek(descriptor, 0, os.SEEK_CUR)  # the reader's own
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        return os.fstat(descriptor).st_size if error.errno == errno.ENXIO else offset
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def _too_much(path: Path, *, has_events: bool) -> OSError:
    size = MAX_FOREIGN_BYTES if has_events else MAX_FOREIGN_GAP_BYTES
    what = f"more than {size >> 20} MiB of another user's journal{'' if has_events else ' without an event'}"
    return OSError(errno.EFBIG, f"{what} are not read", str(path))


def newest(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the newest event of a kind among the last END_BYTES; None where there is none. Raises OSError as `read`.

    For what stands near the end, without parsing a journal of a million events.
    """
    try:
        data, _ = read_end(path, END_BYTES)
    except UnreadableFile as error:
        _refuse_doubt(error)
        return None
    begins = b'\n{"event":"%s",' % kind.encode()
    while (at := data.rfind(begins)) >= 0:
        if event := _parse(data[at + 1 :].partition(b"\n")[0]):
            return event
        data = data[:at]
    return None


def tail(path: Path, offset: int) -> str | None:
    """Return the last bytes before an offset, which tell this journal from what a power cut left of it.

    Returns:
        At most TAIL_BYTES, one character each; None where there are not so many, or it cannot be read.
    """
    wanted = min(offset, TAIL_BYTES)
    try:
        descriptor = open_regular(path, follow_links=False)
    except UnreadableFile:
        return None
    try:
        found = os.pread(descriptor, wanted, offset - wanted)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return found.decode("latin-1") if len(found) == wanted else None


def _refuse_doubt(error: UnreadableFile) -> None:
    """Raise the OSError of a file that is there and cannot be read now."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno not in _NOTHING_THERE:
        raise cause from None


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        # The scanner of json.loads by itself, which is a fifth faster: journals of millions of events are read whole.
        text = line.decode("utf-8", "surrogatepass")
        event, end = _scan(text, 0)
    except (ValueError, RecursionError, StopIteration):
        return None
    return event if isinstance(event.get("event"), str) and not text[end:].strip(" \t\n\r") else None


def _strict(value: Any, depth: int = 0) -> Any:
    """Replace what strict JSON has no token for: a NaN in a log must not make the line unreadable."""
    if depth > MAX_DEPTH and isinstance(value, (dict, list, tuple)):
        return "..."
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _strict(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item, depth + 1) for item in value]
    return value
