"""`runs.sh --watch`: the table of runs, drawn again and again on a terminal that is as it was before when that
ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..base import slurm
from ..base.errors import DONE, UsageError
from ..base.file_identity import identity_at
from ..base.files import utc_now
from ..base.imports import Any, NamedTuple
from ..base.terminal import plain
from . import life_signs, listing, live_marker, status
from .journal_fold import State, fold
from .run_folder import Run, open_run
from .run_table import RunTable

# Second page, no cursor, and a line that is too long ends at the edge; then the way back.
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[?7l", b"\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END_OF_PAGE = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """The terminal of stdout, for as long as the `with` lasts; INT, TERM and Ctrl-Z leave it as it was."""

    def __enter__(self) -> Screen:
        if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            raise UsageError("--watch draws on a terminal, and there is none: leave it out to list the runs once")
        self._has_keys = sys.stdin is not None and sys.stdin.isatty()
        self._wakes, self._wake = os.pipe()
        for end in (self._wakes, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, handler) for number, handler in self._handlers().items()}
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            self._give_back()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._wakes)
        os.close(self._wake)

    @property
    def height(self) -> int:
        """How many lines there are now; a terminal that does not say has 24."""
        return self._size().lines or 24

    def show(self, lines: Sequence[str]) -> None:
        """Draw the lines over those of before; what does not fit is not shown, control characters neither."""
        size = self._size()
        width = size.columns or 80
        shown = [_cut(plain(line), width) + _TO_END_OF_LINE for line in lines[: size.lines or 24]]
        frame = (_HOME + "\r\n".join(shown) + _TO_END_OF_PAGE).encode(sys.stdout.encoding or "utf-8", "replace")
        _write(frame)

    def wait(self, seconds: float) -> bool:
        """Wait, or until the window has another size; False if a person has typed 'q'."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._wakes, *([0] if self._has_keys else [])], [], [], left_s)
            if self._wakes in ready:
                os.read(self._wakes, 4096)
                return True
            if 0 in ready:
                typed = os.read(0, 4096)
                self._has_keys = bool(typed)
                if b"q" in typed or b"Q" in typed:
                    return False
        return True

    def _handlers(self) -> dict[int, Any]:
        return {
            signal.SIGWINCH: lambda *_: None,  # to be woken by it is enough
            signal.SIGTERM: lambda number, _frame: sys.exit(128 + number),
            signal.SIGTSTP: self._stop,
        }

    def _stop(self, number: int, _frame: object) -> None:
        """Ctrl-Z: the shell gets its terminal as it was, and on `fg` we take it again."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stop)
        self._take()

    def _take(self) -> None:
        if self._has_keys:
            self._modes = termios.tcgetattr(0)
            modes = termios.tcgetattr(0)
            modes[3] &= ~(termios.ECHO | termios.ICANON)  # what is typed is not to be seen, and comes at once
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
        _write(_ENTER)

    def _give_back(self) -> None:
        _write(_LEAVE)
        if self._has_keys:
            termios.tcsetattr(0, termios.TCSADRAIN, self._modes)

    def _size(self) -> os.terminal_size:
        try:
            return os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return os.terminal_size((80, 24))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _write(data: bytes) -> None:
    descriptor, view = sys.stdout.fileno(), memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# The runs as a picture that is drawn anew every two seconds: the live ones first, then the newest.
#
# Of a finished run run.json is read once, and the rest once it is to be seen; then only whether its journal has
# grown. So a picture costs what the live runs cost and those that fit on the screen. Writes nothing. Try it:
# `bin/runs.sh --watch`

EVERY_S = 2.0
# A folder's time has the grain of the kernel's clock: one that has just changed may change again without its showing.
GRAIN_S = 2.0


class Seen(NamedTuple):
    """A run that was looked at: its status, and the sizes and times of the files that it was read from."""

    run: Run
    status: dict[str, Any]
    stamp: tuple[Any, ...]


def main(runs_dir: Path, wanted: str | None) -> int:
    """Draw until INT or 'q'; returns 0 for 'q', INT is raised.

    Args:
        runs_dir: the folder of all runs.
        wanted: None for all, an experiment, or a run id for that run with its ancestors and descendants.

    Raises:
        UsageError: there is no such run, or no terminal.
    """
    view = LiveView(runs_dir, wanted)
    with Screen() as screen:
        screen.show([f"reading the runs in {runs_dir} ..."])  # two seconds where there are ten thousand
        while True:
            screen.show(view.picture(screen.height))
            if not screen.wait(EVERY_S):
                return DONE


class LiveView:
    """What there is to be seen of a runs folder, kept from one look to the next."""

    def __init__(self, runs_dir: Path, wanted: str | None = None) -> None:
        self.runs_dir, self.wanted = runs_dir, wanted
        self._made: dict[str, str] = {}  # run id -> when it was made
        self._newest_first: list[str] = []
        self._listed_at: int | None = None
        self._marked_at: int | None = None
        self._folders: list[Path] = []
        self._passed_over: set[str] = set()  # markers of runs that are not wanted, or gone
        self._ended: dict[str, Seen] = {}
        self._folds: dict[str, tuple[State, int]] = {}
        self._asked_at = float("-inf")  # of Slurm, by the monotonic clock
        if wanted:
            listing.runs_of(RunTable(runs_dir), wanted)  # a misspelt name is said before anything is drawn

    def picture(self, height: int) -> list[str]:
        """Return the lines of one picture: a headline, the live runs, the newest others, how many more there are."""
        live, others, total = self.look(height - 2)
        shown = [*live, *others]
        running = sum(one.status["state"] in status.LIVE for one in live)
        lines = [f"{utc_now()[:19]}Z  {running} live of {total} runs in {self.runs_dir}  (q ends it)"]
        lines += listing.in_columns([(one.run.run_id, *listing.cells(one.run, one.status)) for one in shown])
        if total > len(shown):
            lines.append(f"... and {total - len(shown)} more")
        return lines

    def look(self, room: int) -> tuple[list[Seen], list[Seen], int]:
        """Look once.

        Args:
            room: how many runs can be shown.

        Returns:
            Those with a live marker of any user's, the live before the dead; the newest of the others; how many there
            are.
        """
        markers = self._markers()
        self._list(markers)
        self._ask_about_jobs(markers)
        marked = [self._see(name) for name in markers if name in self._made]
        marked.sort(key=lambda one: (one.run.created_at, one.run.run_id), reverse=True)
        marked.sort(key=lambda one: one.status["state"] not in status.LIVE)
        marked = marked[: max(0, room)]
        others: list[Seen] = []
        for name in self._newest_first:
            if len(marked) + len(others) >= room:
                break
            if name not in markers:
                others.append(self._see(name))
        shown = {one.run.run_id for one in (*marked, *others)}
        self._ended = {name: seen for name, seen in self._ended.items() if name in shown}
        self._folds = {name: known for name, known in self._folds.items() if name in shown}
        return marked, others, len(self._made)

    def _ask_about_jobs(self, markers: set[str]) -> None:
        """Ask Slurm of the live runs of other hosts, all at once, as often as what it has said grows old."""
        if time.monotonic() - self._asked_at < slurm.KEPT_S:
            return
        life_signs.ask_about_jobs(open_run(self.runs_dir / name) for name in markers if name in self._made)
        self._asked_at = time.monotonic()

    def _markers(self) -> set[str]:
        """The ids with a marker of any user's; who has a folder of markers changes with the runs folder alone."""
        with contextlib.suppress(OSError):
            changed_at = os.stat(self.runs_dir).st_mtime_ns
            if changed_at != self._marked_at:
                self._folders = live_marker.folders(self.runs_dir)
                self._marked_at = changed_at if abs(time.time() - changed_at / 1e9) > GRAIN_S else None
            return live_marker.run_ids_in(self._folders)
        return set()

    def _list(self, markers: set[str]) -> None:
        """Read the names of the runs where the folder has changed, and of the new ones when they were made."""
        changed_at = os.stat(self.runs_dir).st_mtime_ns
        if changed_at == self._listed_at and markers <= self._made.keys() | self._passed_over:
            return
        table = RunTable(self.runs_dir)
        names = set(self._names(table))
        self._passed_over = markers - names
        self._made = {name: made for name, made in self._made.items() if name in names}
        for name in names:
            if not self._made.get(name):  # new, or read before its run.json was there
                self._made[name] = open_run(self.runs_dir / name).created_at
        self._newest_first = sorted(self._made, key=lambda name: (self._made[name], name), reverse=True)
        is_at_rest = abs(time.time() - changed_at / 1e9) > GRAIN_S
        self._listed_at = changed_at if is_at_rest else None

    def _names(self, table: RunTable) -> list[str]:
        if self.wanted is None:
            return table.names
        if "_" not in self.wanted:
            return [run.run_id for run in table.of_experiment(self.wanted)]
        return [run.run_id for run in listing.runs_of(table, self.wanted)]

    def _see(self, name: str) -> Seen:
        """Return a run's status: as it was, where it had ended and nothing was written since."""
        known = self._ended.get(name)
        if known and known.stamp == _stamp(known.run):
            return known
        run = open_run(self.runs_dir / name)
        stamp = _stamp(run)
        seen = Seen(run, self._status(run), stamp)
        self._made[name] = run.created_at
        if seen.status["state"] in status.ENDED:
            self._ended[name] = seen
        return seen

    def _status(self, run: Run) -> dict[str, Any]:
        try:
            return self._folded(run) if run.is_ours else listing.state_of(run)
        except OSError:  # it cannot be read now
            return listing.state_of(run)

    def _folded(self, run: Run) -> dict[str, Any]:
        # From where we were, or the sidecar: a dead one must not make us read the whole journal each time.
        state, offset = max(status.saved_state(run), self._folds.get(run.run_id, ({}, 0)), key=lambda known: known[1])

        def events() -> Iterator[dict[str, Any]]:
            nonlocal offset
            for event, behind in status.told(run, offset):
                offset = behind
                yield event

        state = fold(state, events())
        self._folds[run.run_id] = state, offset
        return status.observe(run, state, status.look(run, state))


def _stamp(run: Run) -> tuple[Any, ...]:
    return tuple(map(identity_at, (run.paths.journal, run.paths.exit_json)))
