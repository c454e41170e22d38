"""The runs in a folder: which there are, which came from which, and where the newest head stands.

Reads folder names and each run's run.json; opens no checkpoint. Folders in the protocol's form that the kit did not
make are runs too: what they are is taken from their name.
Try it: `bin/runs.sh`
"""

from __future__ import annotations

import contextlib
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Any

from ..basics import claims, processes
from ..basics.errors import UsageError
from ..basics.files import UnreadableFile, read_json
from ..basics.journal import read as read_journal
from ..basics.paths import BEST_PATTERN, STEP_PATTERN, RunPaths, step_of_name
from .lineage import parse_run_name

MAX_CONFIG_BYTES = 4 << 20
_FIRST_EVENTS_BYTES = 64 * 1024
# A trainer may be given a long command line: it stands in run.json.
MAX_RECORD_BYTES = 1 << 20


class Run:
    """One run folder. (No dataclass: importing those costs the sidecar, and so every short run, 10 ms.)

    Args:
        paths: where its files lie.
        record: run.json, or {} in a folder that the kit did not make (or that was left before it was written).
        other_id: the run that its run.json says it is, where that is not the folder's name: a copy, or renamed.
        foreign_link: a link in the place of one of its folders, which another user has put there; such a run counts as
            none of the kit's, since what is written into it would land elsewhere.
    """

    def __init__(
        self, paths: RunPaths, record: dict[str, Any], other_id: str | None = None, foreign_link: str | None = None
    ) -> None:
        self.paths = paths
        self.record = record
        self.other_id = other_id
        self.foreign_link = foreign_link

    @property
    def run_id(self) -> str:
        return self.paths.run_dir.name

    @property
    def is_ours(self) -> bool:
        return bool(self.record)

    @property
    def copy_of(self) -> str | None:
        """The run beside it that this folder is a copy of; None for any other, renamed ones too."""
        is_beside = self.other_id is not None and os.path.isdir(self.paths.run_dir.parent / self.other_id)
        return self.other_id if is_beside else None

    @cached_property
    def experiment(self) -> str | None:
        name = parse_run_name(self.run_id)
        return _text(self.record.get("experiment")) or (name.experiment if name else None)

    @cached_property
    def name(self) -> str | None:
        if self.is_ours:
            return _text(self.record.get("name"))
        parsed = parse_run_name(self.run_id)
        return parsed.name if parsed else None

    @property
    def parent_step(self) -> int | None:
        if self.is_ours:
            step = self.record.get("parent_step")
            return step if type(step) is int else None
        parsed = parse_run_name(self.run_id)
        return parsed.step if parsed else None

    @property
    def is_in_our_namespace(self) -> bool:
        """Whether its pids are ours: of one that was started in another container no process can be seen here."""
        return self.record.get("pid_namespace") in (None, processes.pid_namespace())

    def trainer_of(self, launched: object) -> processes.Identity | None:
        """Return the trainer that a `launched` event of its journal names; None where that is no trainer of this run.

        Other users may be able to write into the journal: a trainer carries the token that stands in run.json.
        """
        trainer = processes.trainer_of(launched, self.paths.output_log)
        own, told = self.record.get("token"), launched["trainer"].get("token") if trainer else None
        return None if told and isinstance(own, str) and told != own else trainer

    @property
    def settings(self) -> tuple[str, ...]:
        """Every `--set` that its config is made with, its ancestors' first."""
        settings = self.record.get("settings")
        return tuple(filter(_text, settings)) if isinstance(settings, list) else ()

    @cached_property
    def has_started(self) -> bool:
        """Whether it ever had a trainer: its journal says `launched`; of a folder of another program anything.

        A journal that was lost is outvoted by what else only a trainer leaves (`_has_signs_of_a_trainer`).
        One that has an end alone had none: its shim could not start it. It is never taken up; its parent is.

        A folder of ours without even a run.json is what is left of a launch that was killed right after its mkdir.
        """
        own = self.paths
        theirs = (own.checkpoints, own.logs, own.status)
        if not self.is_ours:
            return any(map(os.path.lexists, theirs))
        return _was_launched(own.journal) or self._has_signs_of_a_trainer()

    def _has_signs_of_a_trainer(self) -> bool:
        """Whether there is what only a run with a trainer has, where its journal does not say so: locks, pid, steps.

        An exit.json is no such sign: a shim that could not start a trainer writes one, with a pid too. What was copied
        into the folder for the trainer to resume from is of no step after that of its parent.
        """
        own = self.paths
        if claims.lock_state(own.session_lock) == claims.HELD or (
            claims.lock_state(own.status_lock) == claims.HELD and not os.path.lexists(own.exit_json)
        ):
            return True
        with contextlib.suppress(UnreadableFile):
            told = read_json(own.status)
            if isinstance(told, dict) and told.get("pid") is not None:
                return True
        begun_at = -1 if self.parent_step is None else self.parent_step
        with contextlib.suppress(OSError):
            steps = (step_of_name(name, self.step_pattern) for name in os.listdir(own.checkpoints))
            return any(step is not None and step > begun_at for step in steps)
        return False

    @cached_property
    def created_at(self) -> str:
        """When it was made (UTC, ISO 8601); for a folder that the kit did not make the stamp in its name, else ''."""
        if self.is_ours:
            return _text(self.record.get("created_at")) or ""
        parsed = parse_run_name(self.run_id)
        if not parsed or not parsed.stamp:
            return ""
        day = parsed.stamp
        return f"{day[:4]}-{day[4:6]}-{day[6:8]}T{day[9:11]}:{day[11:13]}:00.000000Z"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run; {} where there is none that can be read."""
        try:
            config = read_json(self.paths.resolved_json, MAX_CONFIG_BYTES)
        except UnreadableFile:
            return {}
        return config if isinstance(config, dict) else {}

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """Return one value of the run's resolved config."""
        values = self.config.get(section)
        return values.get(key, default) if isinstance(values, dict) else default

    @property
    def step_pattern(self) -> str:
        pattern = _text(self.setting("checkpoint", "pattern"))
        return pattern if pattern and "{step}" in pattern and "/" not in pattern else STEP_PATTERN

    @property
    def best_pattern(self) -> str:
        pattern = _text(self.setting("checkpoint", "best_pattern"))
        return pattern if pattern and "/" not in pattern else BEST_PATTERN


def _was_launched(journal: Path) -> bool:
    """Whether a journal begins with the `launched` event; it is the first that a run with a trainer has.

    The whole line: half of one is what a power cut leaves of a start, and everybody else reads it as none. On doubt it
    was: a second trainer beside one that cannot be seen now would be worse.
    """
    try:
        for event, offset in read_journal(journal):
            if event["event"] == "launched" or offset > _FIRST_EVENTS_BYTES:
                return event["event"] == "launched"
    except OSError:
        return True
    return False


def open_run(run_dir: Path) -> Run:
    """Read one run folder's run.json; a missing or broken one makes it a run that is known by its name alone."""
    paths = RunPaths(run_dir)
    try:
        record = read_json(paths.run_json, MAX_RECORD_BYTES)
    except UnreadableFile:
        return Run(paths, {})
    return run_of(run_dir, record)


def run_of(run_dir: Path, record: Any) -> Run:
    """Return the run of a folder whose run.json has been read."""
    paths = RunPaths(run_dir)
    if not isinstance(record, dict) or record.get("run_id") != run_dir.name:
        # A copied folder under another name is not the run that it says it is.
        return Run(paths, {}, _other_id(record))
    folders = record.get("paths")
    if isinstance(folders, dict):
        names = [folders.get(key) for key in ("checkpoints", "logs", "status")]
        if all(isinstance(name, str) and _is_inside(name) for name in names) and _is_view(names[2]):
            paths = RunPaths(run_dir, *names)
    for folder in (paths.checkpoints, paths.logs, paths.status.parent):
        if (link := _link_of_another(run_dir, folder)) is not None:
            return Run(RunPaths(run_dir), {}, foreign_link=link)
    return Run(paths, record)


class RunTable:
    """All runs of one `runs/` folder, read as they are asked for."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._runs: dict[str, Run] = {}

    @cached_property
    def names(self) -> list[str]:
        """The folder names that may be runs, sorted; one directory listing."""
        try:
            entries = list(os.scandir(self.runs_dir))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"the runs folder '{self.runs_dir}' cannot be read: {error.strerror}") from error
        return sorted(e.name for e in entries if parse_run_name(e.name) and _is_run_folder(e))

    def get(self, run_id: str | None) -> Run | None:
        """Return the run of that id, or None."""
        if not run_id or len(run_id) > 255 or parse_run_name(run_id) is None:
            return None
        if run_id not in self._runs:
            path = self.runs_dir / run_id
            if not os.path.isdir(path) or (os.path.islink(path) and not _leads_to_its_owners(path)):
                return None
            self._runs[run_id] = open_run(self.runs_dir / run_id)
        return self._runs[run_id]

    def put(self, run: Run) -> None:
        """Take a run as it was read already: whatever is asked of it here is answered from that."""
        self._runs[run.run_id] = run

    def has_started(self, run_id: str) -> bool:
        """Return whether there is a run of that id that ever had a trainer; looks again each time."""
        self._runs.pop(run_id, None)
        run = self.get(run_id)
        return run is not None and run.has_started

    def all(self) -> list[Run]:
        """Return every run, sorted by folder name."""
        return [run for name in self.names if (run := self.get(name))]

    def of_experiment(self, experiment: str) -> list[Run]:
        """Return the runs of one experiment; opens only folders whose name begins with it."""
        mine = [n for n in self.names if n == experiment or n.startswith(experiment + "_")]
        return [run for name in mine if (run := self.get(name)) and run.experiment == experiment]

    def parent(self, run: Run) -> Run | None:
        """Return the run that `run` was resumed from, or None: it has none, or its folder is not here."""
        if run.is_ours:
            return self.get(_text(run.record.get("parent_run_id")))
        parsed = parse_run_name(run.run_id)
        return self.get(parsed.base) if parsed and parsed.step is not None and parsed.base != run.run_id else None

    def heads(self, experiment: str) -> list[Run]:
        """Return the started runs of an experiment that no started run of it came from, newest first.

        A child is newer than its parent, whatever the clocks said; between branches `created_at` decides. A copy of a
        run beside it is no head: its name says that it is newer, and its checkpoints are another run's.
        """
        started = [run for run in self.of_experiment(experiment) if run.copy_of is None and run.has_started]
        parents = {parent.run_id for run in started if (parent := self.parent(run))}
        leaves = [run for run in started if run.run_id not in parents]
        return sorted(leaves, key=lambda run: (run.created_at, run.run_id), reverse=True)

    def copies(self, experiment: str) -> list[Run]:
        """Return the folders of an experiment that are copies of runs beside them, sorted by name."""
        return [run for run in self.of_experiment(experiment) if run.copy_of is not None]

    def history(self, run: Run) -> list[tuple[Run, int | None]]:
        """Return (run, highest step that belongs to the history), newest first: the run, its parent, to the root.

        The run itself has no limit (None); a parent counts up to the step that its child was resumed at.
        """
        result: list[tuple[Run, int | None]] = [(run, None)]
        limit: int | None = None
        seen = {run.run_id}
        while (parent := self.parent(run)) and parent.run_id not in seen:
            step = run.parent_step
            limit = step if limit is None else min(limit, step) if step is not None else limit
            result.append((parent, limit))
            seen.add(parent.run_id)
            run = parent
        return result


def run_around(table: RunTable, checkpoint: Path) -> Run | None:
    """Return the run that a checkpoint file lies in, if there is one: in this runs folder, or one of ours elsewhere."""
    path, runs_dir = Path(os.path.realpath(checkpoint.parent)), Path(os.path.realpath(table.runs_dir))
    for folder in (path, *path.parents):
        if folder.parent == runs_dir:
            return table.get(folder.name)
        if (folder / "run.json").is_file():
            return open_run(folder)
    return None


def _other_id(record: Any) -> str | None:
    run_id = record.get("run_id") if isinstance(record, dict) else None
    is_name = isinstance(run_id, str) and len(run_id) <= 255 and parse_run_name(run_id) is not None
    return run_id if is_name else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_run_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=True) and (not entry.is_symlink() or _leads_to_its_owners(Path(entry.path)))


def _leads_to_its_owners(link: Path) -> bool:
    """Whether a link to a run is the caller's, or leads to a folder of its own owner's, moved to another disk.

    Another user's link to a run of the caller's, which may be a private one, is no run of this folder.
    """
    try:
        owner = os.lstat(link).st_uid
        return owner in (0, os.geteuid(), os.stat(link).st_uid)
    except OSError:
        return False


def _is_view(name: str) -> bool:
    """Whether a file may be written as a run's status: no hidden file, and none of a kind that anything executes."""
    last = name.rpartition("/")[2]
    return last.endswith(".json") and not last.startswith(".")


def _link_of_another(run_dir: Path, folder: Path) -> str | None:
    """Return the path, relative to the run, of a link of another user's that leads to one of its folders, if any."""
    while len(folder.parts) > len(run_dir.parts):
        with contextlib.suppress(OSError):
            found = os.lstat(folder)
            if stat.S_ISLNK(found.st_mode) and found.st_uid != os.geteuid():
                return os.path.relpath(folder, run_dir)
        folder = folder.parent
    return None


def _is_inside(name: str) -> bool:
    """Whether a relative path stays inside the folder that it is relative to."""
    parts = Path(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name
