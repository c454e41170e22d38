"""The systemd user units that call the watcher every minute: the two templates in lib/systemd/, filled in.

Writes into ~/.config/systemd/user ($XDG_CONFIG_HOME); only units that carry its own mark are replaced or removed.
Try it: `make install-systemd`
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..basics.errors import Refused, UsageError
from ..basics.files import UnreadableFile, read_bounded, write_atomic
from ..basics.ownership import is_callers_alone, make_private
from ..basics.paths import KIT_ROOT
from .night import NightWatch

TEMPLATES = KIT_ROOT / "lib" / "systemd"
NAME = "resumekit-watch"
KINDS = ("service", "timer")
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def folder() -> Path:
    """Return where the user's own units lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "systemd" / "user"


def files(night: NightWatch, name: str | None = None) -> dict[Path, str]:
    """Return the content of the service and of its timer, by path.

    Args:
        night: the watcher.
        name: what tells it from other watchers of the same user: `resumekit-watch-NAME`; None for the only one.

    Raises:
        UsageError: the name cannot be a unit's.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(f"a unit cannot be named '{name}': letters, digits, '.', '_' and '-' alone")
    stem = NAME if name is None else f"{NAME}-{name}"
    values = {
        "MARK": _text(night.mark),
        "ENVIRONMENT": " ".join(_quoted(f"{key}={value}") for key, value in night.environment.items()),
        # Not the script itself: as a first word systemd takes no path with a quote in it.
        "COMMAND": " ".join(["/usr/bin/env", "bash", *(_quoted(word).replace("$", "$$") for word in night.command)]),
    }
    return {folder() / f"{stem}.{kind}": _filled(TEMPLATES / f"{NAME}.{kind}", values) for kind in KINDS}


def check_own(wanted: dict[Path, str]) -> None:
    """Refuse to touch a unit that is not of the same watcher: the first line says whose it is.

    Raises:
        Refused: there is another one under this name.
    """
    for path, content in wanted.items():
        if os.path.lexists(path) and _first_line(path) != content.partition("\n")[0]:
            raise Refused(f"'{path}' is there and watches something else: say NAME=... for another name, or remove it")


def write(wanted: dict[Path, str]) -> None:
    """Write the units, which decide what is executed: for the caller alone, whatever the umask; their folder too."""
    for path, content in wanted.items():
        make_private(path.parent)
        write_atomic(path, content.encode(), mode=0o600)


def is_written(wanted: dict[Path, str]) -> bool:
    """Whether the units are there, exactly like this, and no other user may write to them."""
    return all(is_callers_alone(path) and _read(path) == content for path, content in wanted.items())


def _filled(template: Path, values: dict[str, str]) -> str:
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], template.read_text(encoding="utf-8"))


def _quoted(word: str) -> str:
    return '"' + _text(word).replace('"', '\\"') + '"'


def _text(text: str) -> str:
    return text.replace("%", "%%")  # systemd's own placeholders begin with it


def _first_line(path: Path) -> str:
    return _read(path).partition("\n")[0]


def _read(path: Path) -> str:
    try:
        return read_bounded(path).decode("utf-8", "replace")
    except UnreadableFile:
        return ""
