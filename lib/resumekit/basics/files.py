"""Reading and writing single files so that no reader ever sees half of one.

Whatever another process watches is written to a unique temp name beside it and moved with `os.replace`.
Whatever comes from outside is read with a limit, from a regular file, and never through a FIFO or a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from .terminal import plain

TYPE_CHECKING = False  # typing costs 12 ms, pathlib 8, and only the signatures name them
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

# A temp file of ours: `.NAME.tmp-<pid>-<start time of that process>-<8 hex digits>`; swept when its writer is dead.
TEMP_MARK = ".tmp-"
SMALL_FILE_BYTES = 64 * 1024
# What a file system without hard links answers (exFAT, some network drives).
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class UnreadableFile(ValueError):
    """A file is missing, not regular, too large or not what it should be: its printable message says which."""

    def __str__(self) -> str:
        return plain(super().__str__())


def temp_path(target: Path) -> Path:
    """Return a unique temp name beside `target` that names its writer; nothing is created."""
    return target.with_name(f".{target.name}{TEMP_MARK}{os.getpid()}-{_own_start_ticks()}-{os.urandom(4).hex()}")


def write_atomic(path: Path, data: bytes, *, durable: bool = False, mode: int = 0o666, has_umask: bool = True) -> None:
    """Write `data` under `path`, whole or not at all.

    Args:
        path: the final name; an existing file is replaced, a symlink at that name is replaced, not followed.
        durable: also fsync the file and its folder, so that it survives a power cut.
        mode: permission bits before the umask.
        has_umask: False where the file is to have this very mode, from before it has its name.

    Raises:
        OSError: it could not be written; the temp file is gone, the old content stands.
    """
    temp = temp_path(path)
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            write_all(descriptor, data)
            if not has_umask:
                with contextlib.suppress(OSError):  # a file system without modes
                    os.fchmod(descriptor, mode)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    if durable:
        fsync_directory(path.parent)


def write_new(path: Path, data: bytes, *, durable: bool = False, mode: int = 0o666) -> None:
    """Create `path` with `data`; FileExistsError if anything is there already (a dangling link too).

    Args:
        durable: also fsync the content; the name is the caller's to make sure.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_new(temp: Path, target: Path) -> None:
    """Move a file to a name that nothing has; FileExistsError if anything is there already, and the file stays.

    By a hard link, which never replaces; where the file system has none, by a look before the move.
    """
    try:
        os.link(temp, target)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "there is one by now", str(target)) from error
        os.replace(temp, target)
        return
    temp.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a short write is continued (write(2) may take less than it is given)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def unlink_temps(targets: list[Path]) -> None:
    """Remove the temp files of a writer that was killed; only for targets whose writer is known to be dead."""
    for target in targets:
        try:
            for name in os.listdir(target.parent):
                if name.startswith(f".{target.name}{TEMP_MARK}"):
                    (target.parent / name).unlink(missing_ok=True)
        except OSError:
            continue


def fsync_directory(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of `path` survive a power cut; its name is the folder's."""
    descriptor = open_regular(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_parents(folder: Path, levels: int = 4) -> None:
    """Make the name of `folder`, and of those that it lies in, survive a power cut: as far up as the kit makes them.

    Raises:
        OSError: the disk failed (EIO). A folder that can't be opened or synced was there before us.
    """
    for parent in [*folder.absolute().parents][:levels]:
        try:
            fsync_directory(parent)
        except OSError as error:
            if error.errno == errno.EIO:
                raise


def open_regular(path: Path | str, *, follow_links: bool = True) -> int:
    """Open `path` for reading without ever blocking, and only if it is a regular file.

    Args:
        path: the file.
        follow_links: False for a file of the kit's own making: a link under its name was put there by another user,
            and leads to what the caller alone may read.

    Returns:
        A file descriptor; the caller closes it.

    Raises:
        UnreadableFile: missing, a FIFO, a device, a directory, a link that is not to be followed, or not permitted.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    try:
        # O_NONBLOCK: opening a FIFO for reading would wait for a writer for ever.
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise UnreadableFile("a link, and no file of the kit's own") from error
        raise UnreadableFile(f"{error.strerror.lower() if error.strerror else error}") from error
    except ValueError as error:  # an embedded NUL in the name
        raise UnreadableFile(str(error)) from error
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError as error:  # a stale handle of a network drive, a disk that fails
        _close(descriptor)
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    if not is_regular:
        _close(descriptor)
        raise UnreadableFile("not a regular file")
    return descriptor


def read_end(path: Path, limit_bytes: int) -> tuple[bytes, os.stat_result]:
    """Read the last bytes of a regular file of the kit's own; UnreadableFile when it is missing, a link, not regular or
    cannot be read.

    Returns:
        (at most `limit_bytes`, what fstat said before).
    """
    descriptor = open_regular(path, follow_links=False)
    try:
        found = os.fstat(descriptor)
        return os.pread(descriptor, limit_bytes, max(0, found.st_size - limit_bytes)), found
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    finally:
        _close(descriptor)


def read_bounded(path: Path, limit_bytes: int = SMALL_FILE_BYTES, *, follow_links: bool = True) -> bytes:
    """Read a small regular file; UnreadableFile when it is larger than `limit_bytes`, missing or not regular.

    The last argument is `open_regular`'s.
    """
    descriptor = open_regular(path, follow_links=follow_links)
    try:
        chunks, size = [], 0
        while chunk := os.read(descriptor, min(1 << 20, limit_bytes + 1 - size)):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit_bytes:
                raise UnreadableFile(f"larger than {limit_bytes} bytes")
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from error
    finally:
        _close(descriptor)
    return b"".join(chunks)


def read_json(path: Path, limit_bytes: int = SMALL_FILE_BYTES, *, follow_links: bool = False) -> Any:
    """Read a small JSON file; UnreadableFile for anything that is not strict JSON (NaN and deep nesting too).

    JSON is what the kit itself writes into a run folder: the last argument is `open_regular`'s, the other way round.
    """
    return parse_json(read_bounded(path, limit_bytes, follow_links=follow_links))


def parse_json(data: bytes) -> Any:
    """Return the value of strict JSON; UnreadableFile for anything else, as `read_json`."""
    import json  # 2 ms that a reader of checkpoints need not pay

    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"not JSON: {error}") from error


def to_json(value: Any, *, indent: int | None = 2) -> bytes:
    """Return strict JSON (no NaN token) as UTF-8, with a newline at its end; lone surrogates are escaped."""
    import json  # as in read_json

    return json.dumps(value, indent=indent, allow_nan=False).encode() + b"\n"


def utc_now(clock: float | None = None) -> str:
    """Return the time as UTC, ISO 8601 with microseconds: '2026-11-22T17:35:51.123456Z'."""
    seconds = time.time() if clock is None else clock
    whole = int(seconds // 1)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1e6):06d}Z"


def _close(descriptor: int) -> None:
    """Close what was only read from; the kernel closes it whatever it answers, and there is nothing to lose."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _refuse_constant(token: str) -> Any:
    raise ValueError(f"the token {token}")


def _own_start_ticks() -> str:
    try:
        with open("/proc/self/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[19].decode()
    except OSError:
        return "0"
