"""Installing the watcher for the nights, and taking it back: shows what it would do, asks, and does that alone.

Writes a line of the user's crontab, or two systemd user units.
Try it: `make install-cron`
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..basics.errors import DONE, KitError, UsageError
from ..basics.ownership import is_callers
from ..basics.paths import live_folder
from ..basics.terminal import ask, plain, say, show_text
from . import crontab, units, watcher_files
from .night import NightWatch, night_watch

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
    night = night_watch(asked.runs, asked.config)
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
            asked = asked._replace(**{name[2:]: value if name == "--name" else Path(value)})
        elif word == "--yes":
            asked = asked._replace(is_yes=True)
        else:
            raise UsageError(f"unknown option '{plain(word[:100])}'")
    return asked


def _install_cron(night: NightWatch, asked: Asked) -> int:
    _refuse_what_cannot_be_watched(night)
    line, before = crontab.line_of(night), crontab.read()
    after = crontab.with_line(before, night)
    if after == before:
        return _say(f"the crontab has this line already, nothing was changed: {_shown(line)}")
    if not _agreed(_shown(line), "put this line into your crontab", asked):
        return _say("nothing was changed")
    _make_runs_folder(night)
    crontab.write(after)
    # crontab(1) takes a line also where no cron daemon runs, as in most containers; who does run one has many names.
    log = watcher_files.of(night.runs, create=True).log
    return _say(f"the watcher looks every minute from now on, if cron runs on this machine; what it says is in '{log}'")


def _refuse_what_cannot_be_watched(night: NightWatch) -> None:
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


def _make_runs_folder(night: NightWatch) -> None:
    night.runs.mkdir(parents=True, exist_ok=True)  # a watcher may be there before the first run


def _uninstall_cron(night: NightWatch, asked: Asked) -> int:
    before = crontab.read()
    lines = crontab.own_lines(before, night)
    if not lines:
        return _say(f"the crontab has no line of ours for '{night.runs}', nothing was changed")
    if not _agreed("\n".join(map(_shown, lines)), "take this line out of your crontab", asked):
        return _say("nothing was changed")
    crontab.write(crontab.without_line(before, night))
    return _say("the line is out of the crontab")


def _install_systemd(night: NightWatch, asked: Asked) -> int:
    _refuse_what_cannot_be_watched(night)
    wanted = units.files(night, asked.name)
    units.check_own(wanted)
    if units.is_written(wanted):
        _say("both units are there already, nothing was changed")
    else:
        shown = "\n".join(f"--- {path}\n{content}" for path, content in wanted.items())
        if not _agreed(shown, "write these two files", asked):
            return _say("nothing was changed")
        _make_runs_folder(night)
        units.write(wanted)
    timer = next(path.name for path in wanted if path.suffix == ".timer")
    _say(f"what it says is in '{watcher_files.of(night.runs, create=True).log}'")
    _say("to begin with it, and to keep it when you have logged out:")
    show_text(f"systemctl --user daemon-reload && systemctl --user enable --now {timer}\nloginctl enable-linger")
    return DONE


def _uninstall_systemd(night: NightWatch, asked: Asked) -> int:
    wanted = units.files(night, asked.name)
    there = [path for path in wanted if path.exists()]
    if not there:
        return _say(f"there is no unit '{next(iter(wanted))}', nothing was changed")
    units.check_own(wanted)
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
