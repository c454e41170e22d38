"""Answers that cost time and hardly ever change, kept in the caller's own state folder: one small file for each.

A file holds the key that its value belongs to; another key is another question, and takes its place. Without a state
folder, or where it cannot be written, each question is asked anew.
Try it: `cat ~/.local/state/resumekit/kit_digest`
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from . import ownership
from .files import UnreadableFile, read_bounded, write_atomic


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


def _read(path: Path, key: str) -> str | None:
    if not ownership.is_callers_alone(path):
        return None
    try:
        words = read_bounded(path).decode("ascii", "replace").split()
    except UnreadableFile:
        return None
    return words[1] if len(words) == 2 and words[0] == key else None
