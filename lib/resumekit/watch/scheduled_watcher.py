"""What calls the watcher when no person is there: the words of the command, the same for cron and for systemd.

Reads the config for where the runs lie; writes nothing.
Try it: `make install-cron`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..base.errors import UsageError
from ..base.imports import NamedTuple
from ..base.paths import KIT_ROOT
from ..base.terminal import plain

# cron's is /usr/bin:/bin; a python3 that was built by hand is often in the first of these.
PATH = "/usr/local/bin:/usr/bin:/bin"


class ScheduledWatcher(NamedTuple):
    """One watcher that is called every minute.

    Args:
        runs: the folder of all runs, absolute.
        config: the config file, absolute.
        python: the Python that the kit runs under now; None where it would find the same one by itself.
        state: XDG_STATE_HOME, where it is set: what the launchers keep of their runs lies there.
    """

    runs: Path
    config: Path
    python: Path | None = None
    state: Path | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The command, to be quoted where it is written down."""
        return (
            str(KIT_ROOT / "bin" / "abort-watch.sh"),
            "--quiet",
            "--log",
            "--runs",
            str(self.runs),
            "--config",
            str(self.config),
        )

    @property
    def environment(self) -> dict[str, str]:
        """What it needs: neither cron nor systemd hands on a shell's environment."""
        python = {"PYTHON": str(self.python)} if self.python else {}
        return {"PATH": PATH, **python, **({"XDG_STATE_HOME": str(self.state)} if self.state else {})}

    @property
    def mark(self) -> str:
        """The sentence by which its own line or unit is known again."""
        return f"resumekit watches {self.runs}"


def scheduled_watcher(runs: Path | None, config: Path | None) -> ScheduledWatcher:
    """Return the watcher of a runs folder.

    Args:
        runs: what --runs named, else None: that of the config.
        config: what --config named, else None: the kit's own.

    Raises:
        UsageError: there is no such folder, or a name that cron or systemd would not take as it is.
        InvalidFile: the config cannot be read.
    """
    if runs is None:
        runs = _runs_of(config)
    elif not runs.is_dir():
        raise UsageError(f"there is no runs folder '{runs}' (given with --runs)")
    found = ScheduledWatcher(runs.absolute(), (config or KIT_ROOT / "config.yaml").absolute(), _python(), _state())
    for word in (*found.command, *found.environment.values()):
        _check_is_writable(word)
    return found


def _runs_of(config: Path | None) -> Path:
    from ..config.config import load_config, resolve  # late: with --runs they are not needed
    from ..start.request import runs_folder

    file = load_config(config)
    return runs_folder(resolve(file.document, schema=file.schema), file)


def _python() -> Path | None:
    python = Path(sys.executable)
    return None if python == KIT_ROOT / ".venv" / "bin" / "python" else Path(os.path.abspath(python))


def _state() -> Path | None:
    value = os.environ.get("XDG_STATE_HOME", "")
    return Path(value) if value.startswith("/") else None  # as base/ownership.py takes it


def _check_is_writable(word: str) -> None:
    """Refuse what ends a line of a crontab, and the backslash: crons do not agree on what one means."""
    if "\\" in word or not word.isprintable():
        raise UsageError(
            f"a line for cron or systemd cannot hold the path '{plain(word)}': "
            "it has a line break, a backslash or another character that is not printable in it; rename the folder"
        )
