"""The files of code that a trainer's command names, and what those import from beside them; by the digest of each.

Reads these files, in bounds; runs and imports nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..base import file_identity
from ..base.files import UnreadableFile, read_bounded

MAX_FILES = 300
MAX_FILE_BYTES = 8 << 20
_SCRIPTS = (".py", ".sh", ".bash", ".pyx")
_CONFIGS = (".yaml", ".yml", ".toml", ".ini", ".cfg")
# A JSON file on a command line is as often what the trainer writes: only one that says that it is a config.
_SAYS_CONFIG = "(?i)conf|cfg|deepspeed"
_IMPORT = rb"(?m)^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+([\w, \t]*)|import[ \t]+([\w., \t]+))"


def named_files(argv: Sequence[str], cwd: Path, root: Path, runs_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of code that a command names, by its path relative to `root`.

    Args:
        argv: the trainer's command line, filled in.
        cwd: its working folder.
        root: `paths.root`, which git is asked about too.
        runs_dir: what lies in there is the runs' own, and no code.
    """
    here, base, runs = os.path.realpath(cwd), os.path.realpath(root), os.path.realpath(runs_dir) + os.sep
    waiting = [os.path.join(here, name) for name in _words_of(argv, here)]
    found: dict[str, str] = {}
    while waiting and len(found) < MAX_FILES:
        path = os.path.normpath(waiting.pop(0))
        name = os.path.relpath(path, base) if path.startswith(base + os.sep) else path
        if name in found or os.path.realpath(path).startswith(runs) or (content := _content(path)) is None:
            continue
        found[name] = file_identity.sha256(content)
        if path.endswith(".py"):
            waiting += _imported(content, os.path.dirname(path))
    return found


def named_files_changed(recorded: Mapping[str, object], root: Path) -> list[str]:
    """Return which of the recorded files are no longer as they were, sorted; one that is gone is changed too."""
    return sorted(name for name, sha256 in recorded.items() if isinstance(name, str) and _now(name, root) != sha256)


def _now(name: str, root: Path) -> str | None:
    content = _content(os.path.join(root, name)) if "\0" not in name else None
    return None if content is None else file_identity.sha256(content)


def _words_of(argv: Sequence[str], here: str) -> Iterator[str]:
    """Yield the words of a command that are files of code, as paths relative to the working folder."""
    before = ""
    for number, word in enumerate(argv):
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        name = value if equals or not option else ""
        if before == "-m":
            yield from _module(word, here)
        elif name and "\0" not in name and _is_code(name, option or before, number, here):
            yield name
        before = word


def _is_code(name: str, option: str, number: int, here: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".json":
        return bool(re.search(_SAYS_CONFIG, f"{option} {os.path.basename(name)}"))
    # A first word without a suffix is a program; one inside the working folder may be the lab's own script.
    is_own = number == 0 and not suffix and "/" in name and _is_script(os.path.join(here, name), here)
    return suffix in (*_SCRIPTS, *_CONFIGS) or is_own


def _is_script(path: str, here: str) -> bool:
    is_inside = os.path.realpath(path).startswith(here + os.sep) and os.path.basename(os.path.dirname(path)) != "bin"
    return is_inside and (_content(path) or b"").startswith(b"#!")


def _module(word: str, here: str) -> Iterator[str]:
    """Yield the files of `-m package.module` that lie in the working folder."""
    path = word.replace(".", "/")
    if os.path.isdir(os.path.join(here, path)):
        for folder, folders, names in os.walk(os.path.join(here, path)):
            folders[:] = sorted(one for one in folders if not one.startswith((".", "__")))
            yield from (os.path.join(folder, one) for one in sorted(names) if one.endswith(".py"))
    elif os.path.isfile(os.path.join(here, f"{path}.py")):
        yield f"{path}.py"


def _imported(content: bytes, folder: str) -> list[str]:
    """Return the files that a script imports from its own folder, which is where Python looks first."""
    found = []
    for match in re.finditer(_IMPORT, content):
        if match[1] is not None:
            module = match[1].decode("ascii", "ignore")
            start, up = folder, len(module) - len(module.lstrip("."))
            for _ in range(up - 1):
                start = os.path.dirname(start)
            found += _files_of(module.lstrip("."), start)
            for name in match[2].decode("ascii", "ignore").split(","):
                words = name.split()
                found += _files_of(".".join(filter(None, [module.lstrip("."), *words[:1]])), start) if words else []
        else:
            for name in match[3].decode("ascii", "ignore").split(","):
                words = name.split()
                found += _files_of(words[0], folder) if words else []
    return found


def _files_of(module: str, folder: str) -> list[str]:
    """Return the files that importing a dotted name would read, of those that are there."""
    parts = [part for part in module.split(".") if part]
    found = []
    for depth in range(1, len(parts) + 1):
        path = os.path.join(folder, *parts[:depth])
        found += [one for one in (f"{path}.py", os.path.join(path, "__init__.py")) if os.path.isfile(one)]
    return found


def _content(path: str) -> bytes | None:
    try:
        return read_bounded(Path(path), MAX_FILE_BYTES)
    except UnreadableFile:
        return None
