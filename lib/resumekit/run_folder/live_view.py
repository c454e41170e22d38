"""The runs as a picture that is drawn anew every two seconds: the live ones first, then the newest.

Of a finished run run.json is read once, and the rest once it is to be seen; then only whether its journal has grown.
So a picture costs what the live runs cost and those that fit on the screen. Writes nothing.
Try it: `bin/runs.sh --watch`
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..basics.errors import DONE
from ..basics.files import utc_now
from ..basics.screen import Screen
from . import listing, live_marker, status
from .run_state import State, fold
from .runs import Run, RunTable, open_run

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
        marked = [self._see(name) for name in markers if name in self._made]
        marked.sort(key=lambda one: (one.run.created_at, one.run.run_id), reverse=True)
        marked.sort(key=lambda one: one.status["state"] not in status.LIVE)
        marked = marked[: max(0, room)]
        others = []
        for name in self._newest_first:
            if len(marked) + len(others) >= room:
                break
            if name not in markers:
                others.append(self._see(name))
        shown = {one.run.run_id for one in (*marked, *others)}
        self._ended = {name: seen for name, seen in self._ended.items() if name in shown}
        self._folds = {name: known for name, known in self._folds.items() if name in shown}
        return marked, others, len(self._made)

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
    return tuple(map(_time_and_size, (run.paths.journal, run.paths.exit_json)))


def _time_and_size(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
