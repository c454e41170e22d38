"""Reading and writing single files so that no reader ever sees half of one.

Whatever another process watches is written to a unique temp name beside it and then given its own (`TempFile`).
Whatever comes from outside is read with a limit, from a regular file, and never through a FIFO or a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from .imports import TYPE_CHECKING, Any, NamedTuple
from .terminal import plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

# A temp file of ours: `.NAME.tmp-<pid>-<start time of that process>-<8 hex digits>`; swept when its writer is dead.
TEMP_MARK = ".tmp-"
SMALL_FILE_BYTES = 64 * 1024
# So much is given to one write(2); what is written is followed in pieces of this size.
_WRITE_BYTES = 8 << 20
# What a file system without hard links answers (exFAT, some network drives).
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class UnreadableFile(ValueError):
    """A file is missing, not regular, too large or not what it should be: its printable message says which."""

    def __str__(self) -> str:
        return plain(super().__str__())


class TempFile:
    """A new file under a temp name beside its target: written, made durable, given its name, or dropped.

    Every file of the kit that has to be whole is written through it. In a `with`, what has no name at the end is
    removed. Nothing is done without being asked for: each method is one step of a save's order.

    Args:
        target: the final name.
        mode: permission bits before the umask.
        folder: a descriptor of the target's folder, where another user might exchange the path to it; None for none.
            `move_new`, which has no use for one yet, looks at the names by their path.
        opener: makes the file of a name and flags, as `open`'s does; None for os.open.

    Raises:
        OSError: the temp file could not be made; nothing is there then.
    """

    def __init__(
        self, target: Path, *, mode: int = 0o666, folder: int | None = None,
        opener: Callable[[str, int], int] | None = None,
    ) -> None:  # fmt: skip
        self.target, self.temp = target, temp_path(target)
        self.size = 0
        self.has_name = False
        self._folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        name = self._in_folder(self.temp)
        self.descriptor = opener(name, flags) if opener else os.open(name, flags, mode, dir_fd=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.discard()

    def write(self, data: bytes) -> int:
        """Write every byte, and return how many (write(2) may take less than it is given)."""
        view = memoryview(data)
        while view:
            written = os.write(self.descriptor, view[:_WRITE_BYTES])
            view = view[written:]
            self._grow(written)
        return len(data)

    def sync(self) -> None:
        """Make the content survive a power cut; its name is the folder's.

        Raises:
            OSError: it is not durable. A failed fsync is final: the file has to be dropped, not synced again.
        """
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the descriptor; safe to call twice. Raises OSError: what was written may not be on the disk."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def replace(self) -> None:
        """Give it its name, in the place of what has it: a link there is replaced, not followed. Raises OSError."""
        temp, target = self._in_folder(self.temp), self._in_folder(self.target)
        os.replace(temp, target, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self.has_name = True

    def link(self) -> None:
        """Give it its name beside the temp name: the exclusive form of a rename, of two writers one wins.

        Raises:
            FileExistsError: something has that name (a dangling link too); it is left as it is.
            OSError: it cannot be linked: NO_HARD_LINKS has what a file system without links answers.
        """
        temp, target = self._in_folder(self.temp), self._in_folder(self.target)
        os.link(temp, target, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)

    def move_new(self) -> None:
        """Give it a name that nothing has: by a link, where the file system has none by a look before the move.

        Raises:
            FileExistsError: something has that name (a dangling link too); it is left as it is.
            OSError: it cannot be named.
        """
        try:
            self.link()
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            if os.path.lexists(self.target):
                raise FileExistsError(errno.EEXIST, "there is one by now", str(self.target)) from error
            self.replace()
            return
        self.temp.unlink(missing_ok=True)
        self.has_name = True

    def discard(self) -> None:
        """Close it, and remove the temp name where it has no other; safe to call twice."""
        with contextlib.suppress(OSError):
            self.close()
        if not self.has_name:
            with contextlib.suppress(OSError):
                os.unlink(self._in_folder(self.temp), dir_fd=self._folder)

    def _grow(self, count: int) -> None:
        """Note that so many bytes more are in the file; a reader of what is written hooks in here."""
        self.size += count

    def _in_folder(self, path: Path) -> str:
        return os.fspath(path) if self._folder is None else path.name


class TempName(NamedTuple):
    """What the name of a temp file says: the name of its target, and the process that writes it.

    Args:
        target: a name without a folder.
        pid, start_ticks: of the writer; the second in clock ticks since the boot, as text.
    """

    target: str
    pid: int
    start_ticks: str


def temp_path(target: Path) -> Path:
    """Return a unique temp name beside `target` that names its writer; nothing is created."""
    return target.with_name(f".{target.name}{TEMP_MARK}{os.getpid()}-{_own_start_ticks()}-{os.urandom(4).hex()}")


def parse_temp_name(name: str) -> TempName | None:
    """Return what a temp name of `temp_path` says; None for any other name."""
    import re  # late: only what sweeps asks

    match = re.fullmatch(r"\.(.+)" + re.escape(TEMP_MARK) + r"([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]{8}", name, re.DOTALL)
    return TempName(match[1], int(match[2]), match[3]) if match else None


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
    with TempFile(path, mode=mode) as temp:
        temp.write(data)
        if not has_umask:
            with contextlib.suppress(OSError):  # a file system without modes
                os.fchmod(temp.descriptor, mode)
        if durable:
            temp.sync()
        temp.close()
        temp.replace()
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
                found = parse_temp_name(name)
                if found is not None and found.target == target.name:
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
    """Make the content of `path`, a regular file, survive a power cut; its name is the folder's.

    Raises:
        OSError: it cannot be opened (a disk that fails), is no regular file by now, or cannot be synced.
    """
    try:
        descriptor = open_regular(path)
    except UnreadableFile as error:  # who writes a file handles what the disk says of it, and nothing else
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise OSError(errno.EINVAL, str(error), str(path)) from error
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
