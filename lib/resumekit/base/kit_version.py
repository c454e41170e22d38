"""Which kit this is: its version, and a digest of its code, so that two copies can be told apart.

The digest is over names and bytes of everything in bin/, lib/ and schemas/. Reading all of it takes some 8 ms, so the
result is kept in the caller's state folder, by names, sizes and times. Writes nothing but that one file.
Try it: `bin/run.sh --version`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import answer_cache, file_identity
from .files import UnreadableFile, read_bounded
from .paths import KIT_ROOT

FOLDERS = ("bin", "lib", "schemas")
MAX_FILE_BYTES = 4 << 20
_KEPT = "kit_digest"


def version() -> str:
    """Return resumekit's version, as VERSION has it; 'unknown' in a copy without that file, which its digest tells."""
    try:
        return read_bounded(KIT_ROOT / "VERSION").decode("utf-8", "replace").strip() or "unknown"
    except UnreadableFile:
        return "unknown"


def digest() -> str:
    """Return the SHA-256 of the kit's code, as 64 hex digits; costs 1 to 2 ms where it was asked for before."""
    found = sorted(_files())
    listed = "\n".join(f"{name}\0{one.st_size}\0{one.st_mtime_ns}\0{one.st_ino}" for name, one in found)
    key = file_identity.sha256(listed.encode("utf-8", "surrogateescape"))
    return answer_cache.value(_KEPT, key, lambda: _of([name for name, _ in found])) or ""


def _files() -> Iterator[tuple[str, os.stat_result]]:
    waiting = list(FOLDERS)
    while waiting:
        name = waiting.pop()
        for entry in _entries(name):
            own = f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    waiting.append(own)
            elif entry.is_file():
                with contextlib.suppress(OSError):
                    yield own, entry.stat()


def _entries(name: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(KIT_ROOT / name) as entries:
            return list(entries)
    except OSError:  # a start must not fail because a part of the kit that it does not need cannot be listed
        return []


def _of(names: list[str]) -> str:
    whole = file_identity.hasher()
    for name in names:
        try:
            content = read_bounded(KIT_ROOT / name, MAX_FILE_BYTES)
        except UnreadableFile:  # an editor's leftover of another user's
            content = b""
        whole.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        whole.update(content)
    return whole.hexdigest()
