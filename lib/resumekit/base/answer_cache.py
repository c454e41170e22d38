"""Answers that cost time and hardly ever change, kept in the caller's own state folder: one small file for each kind.

`value` keeps one answer of a kind, with the key that it belongs to: another key is another question, and takes its
place. `recall` and `keep` hold the answers to the last hundred questions. Without a state folder, or where it cannot be
written, each question is asked anew.
Try it: `cat ~/.local/state/resumekit/kit_digest`
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from . import ownership
from .files import UnreadableFile, read_bounded, read_json, to_json, write_atomic
from .imports import Any
from .values import items, seconds

MOST = 100


def value(name: str, key: str, ask: Callable[[], str | None]) -> str | None:
    """Return the value that belongs to a key, as it was remembered; else as `ask` says, which is remembered then.

    Args:
        name: of the file, one for each kind of question.
        key: what the value depends on, without white space.
        ask: returns the value, without white space; None where there is none, which is not remembered.
    """
    folder = ownership.state_folder()
    if folder is not None and (known := _read(folder / name, key)) is not None:
        return known
    found = ask()
    if found is not None:
        with contextlib.suppress(OSError):
            if (folder := ownership.state_folder(create=True)) is not None:
                write_atomic(folder / name, f"{key} {found}\n".encode(), mode=0o600)
    return found


def recall(name: str, key: Any, max_age_s: float) -> Any:
    """Return the value that was kept for a key; None where none was, or where it is older than `max_age_s`.

    Args:
        name: of the file, one for each kind of question.
        key: what the value depends on, as JSON has it.
        max_age_s: seconds, by the wall clock.
    """
    folder = ownership.state_folder()
    entries = _entries(folder / name) if folder is not None else []
    now_s = time.time()
    return next((value for at_s, known, value in entries if known == key and 0 <= now_s - at_s <= max_age_s), None)


def keep(name: str, key: Any, value: Any) -> None:
    """Keep the value of a key, JSON both, beside those of the last MOST keys; where it cannot be written it is not."""
    with contextlib.suppress(OSError):
        if (folder := ownership.state_folder(create=True)) is not None:
            others = [entry for entry in _entries(folder / name) if entry[1] != key]
            write_atomic(folder / name, to_json([*others[1 - MOST :], [time.time(), key, value]]), mode=0o600)


def _entries(path: Path) -> list[list[Any]]:
    if not ownership.is_callers_alone(path):
        return []
    try:
        entries = items(read_json(path))
    except UnreadableFile:
        return []
    return [entry for entry in entries if len(items(entry)) == 3 and seconds(entry[0]) is not None]


def _read(path: Path, key: str) -> str | None:
    if not ownership.is_callers_alone(path):
        return None
    try:
        words = read_bounded(path).decode("ascii", "replace").split()
    except UnreadableFile:
        return None
    return words[1] if len(words) == 2 and words[0] == key else None
