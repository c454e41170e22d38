"""Installing the watcher for the nights, and taking it back: shows what it would do, asks, and does that alone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import DONE, KitError, Refused, ToolMissing, UsageError
from ..base.files import UnreadableFile, read_bounded, write_atomic
from ..base.imports import Any, NamedTuple
from ..base.ownership import is_callers, is_callers_alone, make_private
from ..base.paths import KIT_ROOT, live_folder
from ..base.terminal import ask, plain, say, show_text
from . import watcher_files
from .scheduled_watcher import ScheduledWatcher, scheduled_watcher

# Debian's cron takes no longer command.
MAX_COMMAND_BYTES = 990
# What the lab's Makefile puts before the names of our targets; resumekit.mk says it.
PREFIX = "RESUMEKIT_MAKE_PREFIX"
_NONE_YET = ("no crontab", "no such file")


def crontab_line_of(night: ScheduledWatcher) -> bytes:
    """Return the line, without its end: quoted for sh, and with cron's own % (a line break to it) escaped.

    Raises:
        UsageError: it would be longer than every cron takes.
    """
    words = [f"{name}={shlex.quote(value)}" for name, value in night.environment.items()]
    words += map(shlex.quote, night.command)
    # Nothing is redirected: the watcher opens its log itself, and what keeps it from that is for cron's mail.
    words.append(_mark(night))
    command = os.fsencode(" ".join(words).replace("%", "\\%"))
    if len(command) > MAX_COMMAND_BYTES:
        raise UsageError(
            f"the line for cron would have {len(command)} bytes, and not every cron takes more than "
            f"{MAX_COMMAND_BYTES}: move the kit or '{night.runs}' to a shorter path"
        )
    return b"* * * * * " + command


def with_line(crontab: bytes, night: ScheduledWatcher) -> bytes:
    """Return the crontab with the line of a watcher in it, once, where an older one of the same folder stood."""
    line, kept, is_in = crontab_line_of(night) + b"\n", [], False
    for one in _lines(crontab):
        if not _is_own(one, night):
            kept.append(one)
        elif not is_in:
            kept.append(line)
            is_in = True
    if not is_in:
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        kept.append(line)
    return b"".join(kept)


def own_lines(crontab: bytes, night: ScheduledWatcher) -> list[bytes]:
    """Return the lines of a watcher as they stand there, of an older kit or Python maybe."""
    return [line.rstrip(b"\n") for line in _lines(crontab) if _is_own(line, night)]


def without_line(crontab: bytes, night: ScheduledWatcher) -> bytes:
    """Return the crontab without the line of a watcher, however often it stands there."""
    return b"".join(line for line in _lines(crontab) if not _is_own(line, night))


def read_crontab() -> bytes:
    """Return the user's crontab; b'' if there is none yet.

    Raises:
        ToolMissing: there is no crontab(1).
        KitError: it cannot be read; to take that for an empty one would lose it.
    """
    done = _crontab("-l")
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 1 and any(words in said.lower() for words in _NONE_YET):
        return b""
    raise KitError(f"the crontab cannot be read: 'crontab -l' ended with code {done.returncode}: {plain(said[-300:])}")


def write_crontab(crontab: bytes) -> None:
    """Replace the user's crontab.

    Raises:
        KitError: crontab(1) did not take it; the old one stands.
    """
    done = _crontab("-", crontab)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise KitError(
            f"the crontab was not taken: 'crontab -' ended with code {done.returncode}: {plain(said[-300:])}"
        )


def _crontab(argument: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        # In English, so that "no crontab for you" can be told from a failure.
        return subprocess.run(
            ["crontab", argument], input=given, capture_output=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        instead = plain(f"{os.environ.get(PREFIX, '')}install-systemd")
        raise ToolMissing(f"there is no 'crontab' on this machine: install cron, or use 'make {instead}'") from None


def _lines(crontab: bytes) -> list[bytes]:
    """Split at line feeds alone; what else may be in a line is its owner's."""
    *whole, rest = crontab.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _mark(night: ScheduledWatcher) -> str:
    # Quoted, so that no folder's mark is the end of another's. A comment to sh.
    return f"# {shlex.quote(night.mark)}"


def _is_own(line: bytes, night: ScheduledWatcher) -> bool:
    return line.rstrip().endswith(os.fsencode(f" {_mark(night)}".replace("%", "\\%")))


# The systemd user units that call the watcher every minute: the two templates in lib/systemd/, filled in.
#
# Writes into ~/.config/systemd/user ($XDG_CONFIG_HOME); only units that carry its own mark are replaced or removed.
# Try it: `make install-systemd`

TEMPLATES = KIT_ROOT / "lib" / "systemd"
NAME = "resumekit-watch"
KINDS = ("service", "timer")
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def units_folder() -> Path:
    """Return where the user's own units lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "systemd" / "user"


def unit_files(night: ScheduledWatcher, name: str | None = None) -> dict[Path, str]:
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
    return {units_folder() / f"{stem}.{kind}": _filled(TEMPLATES / f"{NAME}.{kind}", values) for kind in KINDS}


def check_own(wanted: dict[Path, str]) -> None:
    """Refuse to touch a unit that is not of the same watcher: the first line says whose it is.

    Raises:
        Refused: there is another one under this name.
    """
    for path, content in wanted.items():
        if os.path.lexists(path) and _first_line(path) != content.partition("\n")[0]:
            raise Refused(f"'{path}' is there and watches something else: say NAME=... for another name, or remove it")


def write_units(wanted: dict[Path, str]) -> None:
    """Write the units, which decide what is executed: for the caller alone, whatever the umask; their folder too."""
    for path, content in wanted.items():
        make_private(path.parent)
        write_atomic(path, content.encode(), mode=0o600)


def units_are_written(wanted: dict[Path, str]) -> bool:
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


# The installation. Writes a line of the user's crontab, or two systemd user units. Try it: `make install-cron`

PROG = "watch_installer.sh"


class Asked(NamedTuple):
    """What stood on the command line; `is_yes`: do not ask."""

    runs: Path | None = None
    config: Path | None = None
    name: str | None = None
    is_yes: bool = False


def main(arguments: Sequence[str]) -> int:
    """Do one of `--install-cron`, `--uninstall-cron`, `--install-systemd`, `--uninstall-systemd`."""
    actions = {
        "--install-cron": _install_cron, "--uninstall-cron": _uninstall_cron,
        "--install-systemd": _install_systemd, "--uninstall-systemd": _uninstall_systemd,
    }  # fmt: skip
    chosen = [word for word in arguments if word in actions]
    if len(chosen) != 1:
        raise UsageError(f"one of {', '.join(actions)} is to be done")
    asked = parse([word for word in arguments if word not in actions])
    if asked.name is not None and not chosen[0].endswith("systemd"):
        raise UsageError("only units have a name; the line in the crontab is known by its runs folder")
    night = scheduled_watcher(asked.runs, asked.config)
    return actions[chosen[0]](night, asked)


def parse(arguments: Sequence[str]) -> Asked:
    """Read `--runs=DIR`, `--config=FILE`, `--name=NAME` and `--yes`.

    Raises:
        UsageError: a word that means nothing here.
    """
    asked = Asked()
    for word in arguments:
        name, equals, value = word.partition("=")
        if name in ("--runs", "--config", "--name") and equals:
            if not value:
                raise UsageError(f"{name} is given with an empty name")
            given: dict[str, Any] = {name[2:]: value if name == "--name" else Path(value)}
            asked = asked._replace(**given)
        elif word == "--yes":
            asked = asked._replace(is_yes=True)
        else:
            raise UsageError(f"unknown option '{plain(word[:100])}'")
    return asked


def _install_cron(night: ScheduledWatcher, asked: Asked) -> int:
    _refuse_what_cannot_be_watched(night)
    line, before = crontab_line_of(night), read_crontab()
    after = with_line(before, night)
    if after == before:
        return _say(f"the crontab has this line already, nothing was changed: {_shown(line)}")
    if not _agreed(_shown(line), "put this line into your crontab", asked):
        return _say("nothing was changed")
    _make_runs_folder(night)
    write_crontab(after)
    # crontab(1) takes a line also where no cron daemon runs, as in most containers; who does run one has many names.
    log = watcher_files.of(night.runs, create=True).log
    return _say(f"the watcher looks every minute from now on, if cron runs on this machine; what it says is in '{log}'")


def _refuse_what_cannot_be_watched(night: ScheduledWatcher) -> None:
    """Refuse a runs folder in which the watcher could write nothing down: each of its passes would fail.

    Raises:
        KitError: the caller may not write there, or the folder of the caller's live markers is another user's.
    """
    folder = night.runs
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise KitError(
            f"'{plain(str(folder))}' cannot be written to by this user: a watcher of the runs in "
            f"'{plain(str(night.runs))}' could stop and take up nothing; nothing was installed"
        )
    markers = live_folder(night.runs)
    if os.path.lexists(markers) and not is_callers(markers, stat.S_IFDIR):
        raise KitError(f"'{plain(str(markers))}' is no folder of this user's: remove it first; nothing was installed")


def _make_runs_folder(night: ScheduledWatcher) -> None:
    night.runs.mkdir(parents=True, exist_ok=True)  # a watcher may be there before the first run


def _uninstall_cron(night: ScheduledWatcher, asked: Asked) -> int:
    before = read_crontab()
    lines = own_lines(before, night)
    if not lines:
        return _say(f"the crontab has no line of ours for '{night.runs}', nothing was changed")
    if not _agreed("\n".join(map(_shown, lines)), "take this line out of your crontab", asked):
        return _say("nothing was changed")
    write_crontab(without_line(before, night))
    return _say("the line is out of the crontab")


def _install_systemd(night: ScheduledWatcher, asked: Asked) -> int:
    _refuse_what_cannot_be_watched(night)
    wanted = unit_files(night, asked.name)
    check_own(wanted)
    if units_are_written(wanted):
        _say("both units are there already, nothing was changed")
    else:
        shown = "\n".join(f"--- {path}\n{content}" for path, content in wanted.items())
        if not _agreed(shown, "write these two files", asked):
            return _say("nothing was changed")
        _make_runs_folder(night)
        write_units(wanted)
    timer = next(path.name for path in wanted if path.suffix == ".timer")
    _say(f"what it says is in '{watcher_files.of(night.runs, create=True).log}'")
    _say("to begin with it, and to keep it when you have logged out:")
    show_text(f"systemctl --user daemon-reload && systemctl --user enable --now {timer}\nloginctl enable-linger")
    return DONE


def _uninstall_systemd(night: ScheduledWatcher, asked: Asked) -> int:
    wanted = unit_files(night, asked.name)
    there = [path for path in wanted if path.exists()]
    if not there:
        return _say(f"there is no unit '{next(iter(wanted))}', nothing was changed")
    check_own(wanted)
    if not _agreed("\n".join(map(str, there)), "stop the timer and remove these files", asked):
        return _say("nothing was changed")
    timer = next(path.name for path in wanted if path.suffix == ".timer")
    _systemctl("disable", "--now", timer)
    for path in there:
        path.unlink(missing_ok=True)
    _systemctl("daemon-reload")
    return _say("the units are gone")


def _systemctl(*words: str) -> None:
    """Ask the user's systemd; where it does not answer, that is said and no reason to leave the files."""
    if shutil.which("systemctl") is None:
        _say(f"there is no systemctl here; where there is: systemctl --user {' '.join(words)}")
        return
    done = subprocess.run(["systemctl", "--user", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        _say(f"'systemctl --user {' '.join(words)}' failed: {plain(done.stderr.strip()[-300:])}")


def _agreed(shown: str, what: str, asked: Asked) -> bool:
    """Show what is to be done and ask; only a 'y' is a yes.

    Raises:
        UsageError: there is no terminal to ask at.
    """
    show_text(shown)
    if asked.is_yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"nothing was changed: there is no terminal to ask on whether to {what}; YES=1 says yes")
    ask(f"{what}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _shown(line: bytes) -> str:
    return plain(line.decode("utf-8", "backslashreplace"))


def _say(sentence: str) -> int:
    say(PROG, sentence)
    return DONE
