"""One run folder: what its records say it is, where its files lie, by which names its checkpoints are known.

Reads run.json, the config and the first events of the journal; opens no checkpoint. A folder in the protocol's
form that the kit did not make is a run too: what it is is taken from its name.
Try it: `bin/runs.sh`
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path

from ..base import claims, processes
from ..base.file_identity import FileIdentity, identity_of
from ..base.files import UnreadableFile, read_json
from ..base.imports import TYPE_CHECKING, Any
from ..base.journal import read as read_journal
from ..base.paths import RunPaths
from ..base.values import above_zero, count, mapping, string, strings
from ..checkpoint.form import Form
from ..checkpoint.form import of as form_of
from .run_names import parse_run_name

if TYPE_CHECKING:
    from .log_patterns import Patterns

MAX_CONFIG_BYTES = 4 << 20
_FIRST_EVENTS_BYTES = 64 * 1024
# A trainer may be given a long command line: it stands in run.json.
MAX_RECORD_BYTES = 1 << 20
NamedBy = Callable[[], dict[str, Any]]


class Run:
    """One run folder. (No dataclass: importing those costs the sidecar, and so every short run, 10 ms.)

    Args:
        paths: where its files lie.
        record: run.json, or {} in a folder that the kit did not make (or that was left before it was written).
        other_id: the run that its run.json says it is, where that is not the folder's name: a copy, or renamed.
        foreign_link: a link in the place of one of its folders, which another user has put there; such a run counts as
            none of the kit's, since what is written into it would land elsewhere.
    """

    # The known experiments, by which the name of a folder without a run.json is read.
    experiments: Collection[str] = ()

    def __init__(
        self, paths: RunPaths, record: dict[str, Any], other_id: str | None = None, foreign_link: str | None = None
    ) -> None:
        self.paths = paths
        self.record = record
        self.other_id = other_id
        self.foreign_link = foreign_link
        self._account: tuple[FileIdentity, dict[str, Any]] | None = None
        self._named_by: NamedBy = dict

    def read_as(self, named_by: NamedBy) -> None:
        """Take the names of the files from another config where this run has none of its own.

        Args:
            named_by: returns that config. It is asked when a name is needed, and at once for a folder that the kit did
                not make: there `paths.checkpoints` says where they lie, if that is there.
        """
        self._named_by = named_by
        if self.is_ours or self.foreign_link is not None:
            return
        config, run_dir = named_by(), self.paths.run_dir
        self._named_by = lambda: config
        section = self.naming().get("paths")
        name = string(mapping(section).get("checkpoints"))
        if name and _is_inside(name) and os.path.isdir(run_dir / name):
            self.paths = RunPaths(run_dir, name)
        else:
            self.paths = RunPaths(run_dir)

    def naming(self) -> dict[str, Any]:
        """Return the config that says how the run's files are named: its own, else the one that it is read by."""
        return self.config or self._named_by()

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
        name = parse_run_name(self.run_id, self.experiments)
        return string(self.record.get("experiment")) or (name.experiment if name else None)

    @cached_property
    def name(self) -> str | None:
        if self.is_ours:
            return string(self.record.get("name"))
        parsed = parse_run_name(self.run_id, self.experiments)
        return parsed.name if parsed else None

    @property
    def parent_step(self) -> int | None:
        if self.is_ours:
            return count(self.record.get("parent_step"))
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
        if trainer is None or not isinstance(launched, dict):
            return None
        own, told = self.record.get("token"), launched["trainer"].get("token")
        return None if told and isinstance(own, str) and told != own else trainer

    @property
    def settings(self) -> tuple[str, ...]:
        """Every `--set` that its config is made with, its ancestors' first."""
        return tuple(filter(None, strings(self.record.get("settings"))))

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
            if mapping(read_json(own.status)).get("pid") is not None:
                return True
        from ..checkpoint import catalog  # late: of few runs the journal is lost

        begun_at = -1 if self.parent_step is None else self.parent_step
        with contextlib.suppress(OSError):
            return any(step > begun_at for step, _ in catalog.steps_in(own.checkpoints, self.form))
        return False

    @cached_property
    def created_at(self) -> str:
        """When it was made (UTC, ISO 8601); for a folder that the kit did not make the stamp in its name, else ''."""
        if self.is_ours:
            return string(self.record.get("created_at")) or ""
        parsed = parse_run_name(self.run_id)
        if not parsed or not parsed.stamp:
            return ""
        day = parsed.stamp
        return f"{day[:4]}-{day[4:6]}-{day[6:8]}T{day[9:11]}:{day[11:13]}:00.000000Z"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run; {} where there is none that can be read."""
        try:
            return mapping(read_json(self.paths.resolved_json, MAX_CONFIG_BYTES))
        except UnreadableFile:
            return {}

    @property
    def sidecar_account(self) -> dict[str, Any]:
        """What the run's sidecar has saved (.sidecar.json), not to be changed; {} without one of this run.

        Parsed once for each file that the sidecar puts there: a look at a run asks three times.
        """
        try:
            known = identity_of(os.lstat(self.paths.sidecar_state))
            if self._account is None or self._account[0] != known:
                account = mapping(read_json(self.paths.sidecar_state))
                self._account = (known, account if account.get("run_id") == self.run_id else {})
        except (OSError, UnreadableFile):
            return {}
        return self._account[1]

    @property
    def max_read_mb_per_s(self) -> float | None:
        """`checkpoint.max_read_mb_per_s`: how fast its checkpoints are read to be proven; None for no limit."""
        value = above_zero(self.setting("checkpoint", "max_read_mb_per_s"))
        return None if value is None else float(value)

    @cached_property
    def log_patterns(self) -> Patterns:
        """`trainer.log_patterns`, ready for use; empty where it has none."""
        patterns = self.setting("trainer", "log_patterns")
        if not patterns:
            return {}
        from . import log_patterns  # late: it compiles a dozen regular expressions, and most trainers need none

        return log_patterns.compiled(patterns)

    @property
    def log_format(self) -> str:
        """How its log is read beside `trainer.log_patterns`, which goes before: `trainer.log_format`.

        `auto` in the config of an older kit; of a trainer that loads with the kit, and journals its steps, `none`.
        """
        if mapping(self.setting("trainer", "log_patterns")):
            return "none"
        name = string(self.setting("trainer", "log_format")) or "auto"
        return "none" if name == "auto" and self.setting("trainer", "loads_with_kit") is True else name

    @property
    def step_patterns(self) -> Patterns:
        """What finds the steps in its log: `trainer.log_patterns`, else those of its format, given or found."""
        if self.log_patterns or self.log_format == "none":
            return self.log_patterns
        from . import log_formats, log_patterns  # late, as above

        found = mapping(self.sidecar_account.get("log")).get("format")
        name = self.log_format if self.log_format != log_formats.AUTO else string(found)
        return log_patterns.compiled(log_formats.step_patterns(name or ""))

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """Return one value of the run's resolved config."""
        return mapping(self.config.get(section)).get(key, default)

    @cached_property
    def form(self) -> Form:
        """How its checkpoints are named and what each consists of: by its config, or by the one that it is read by."""
        return form_of(self.naming().get("checkpoint"))


def _was_launched(journal: Path) -> bool:
    """Whether a journal begins with the `launched` event; it is the first that a run with a trainer has.

    The whole line: half of one is what a power cut leaves of a start, and everybody else reads it as none. On doubt it
    was: a second trainer beside one that cannot be seen now would be worse.
    """
    try:
        for event, offset in read_journal(journal):
            is_launched: bool = event["event"] == "launched"
            if is_launched or offset > _FIRST_EVENTS_BYTES:
                return is_launched
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
        return Run(paths, {}, other_id(record))
    folders, keys = mapping(record.get("paths")), ("checkpoints", "logs", "status")
    names = [name for name in strings([folders.get(key) for key in keys]) if _is_inside(name)]
    if len(names) == len(keys) and _is_view(names[2]):
        paths = RunPaths(run_dir, *names)
    for folder in (paths.checkpoints, paths.manifests, paths.held, paths.logs, paths.status.parent):
        if (link := _link_of_another(run_dir, folder)) is not None:
            return Run(RunPaths(run_dir), {}, foreign_link=link)
    return Run(paths, record)


def other_id(record: Any) -> str | None:
    """Return the run that a record says it is of; None where that can be no run's id."""
    run_id = string(mapping(record).get("run_id"))
    return run_id if run_id is not None and len(run_id) <= 255 and parse_run_name(run_id) is not None else None


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
