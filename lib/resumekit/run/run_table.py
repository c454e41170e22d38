"""The runs in a folder: which there are, which came from which, where the newest head stands, and which incident a
run recovers from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path

from ..base.errors import UsageError
from ..base.imports import Any, NamedTuple
from ..base.paths import RunPaths
from ..base.terms import CAUSES
from ..base.values import count, mapping, number, one_of, string
from .run_folder import NamedBy, Run, open_run, other_id
from .run_names import parse_run_name


class RunTable:
    """All runs of one `runs/` folder, read as they are asked for.

    Args:
        runs_dir: the folder.
        named_by: returns the config by which a run without a config of its own is read (`checkpoint.pattern`,
            `checkpoint.best_pattern`, `paths`); None for the kit's default names.
        experiments: those of the config, where it was read: a word that names one of them is no run id.
    """

    def __init__(self, runs_dir: Path, named_by: NamedBy | None = None, experiments: Collection[str] = ()) -> None:
        self.runs_dir = runs_dir
        self._named_by = named_by
        self.experiments = experiments
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
            self._runs[run_id].experiments = self.experiments
            if self._named_by is not None:
                self._runs[run_id].read_as(self._named_by)
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

    def is_experiment(self, word: str) -> bool:
        """Return whether a user's word names an experiment: the config or a run's record has it; else it is a run id.

        A run's id has an underscore at least; an experiment may have some.
        """
        if "_" not in word or word in self.experiments:
            return True
        return self.get(word) is None and bool(self.of_experiment(word))

    def is_named(self, run_id: str, words: Collection[str]) -> bool:
        """Return whether words of a user name a run: by its id, or by its experiment. Its folder may be gone."""
        if run_id in words:
            return True
        if not any(f"{run_id}_".startswith(f"{word}_") for word in words):
            return False
        run = self.get(run_id) or Run(RunPaths(self.runs_dir / run_id), {})
        return run.experiment in words

    def parent(self, run: Run) -> Run | None:
        """Return the run that `run` was resumed from, or None: it has none, or its folder is not here."""
        if run.is_ours:
            return self.get(string(run.record.get("parent_run_id")))
        parsed = parse_run_name(run.run_id)
        return self.get(parsed.base) if parsed and parsed.step is not None and parsed.base != run.run_id else None

    def missing_parent(self, run: Run) -> str | None:
        """Return the id of the nearest run in a run's ancestry whose folder is not here; None where none is missing."""
        oldest = self.history(run)[-1][0]
        if oldest.is_ours:
            parent = string(oldest.record.get("parent_run_id"))
        else:
            named = parse_run_name(oldest.run_id)
            parent = named.base if named and named.step is not None else None
        return parent if parent and self.get(parent) is None else None

    def heads(self, experiment: str, counts: Callable[[Run], bool] | None = None) -> list[Run]:
        """Return the started runs of an experiment that no started run of it came from, newest first.

        Args:
            experiment: its id.
            counts: whether a run counts; those that do not are as if they were not there. None for every run.

        A child is newer than its parent, whatever the clocks said; between branches `created_at` decides. A copy of a
        run beside it is no head: its name says that it is newer, and its checkpoints are another run's.
        """
        runs = (run for run in self.of_experiment(experiment) if counts is None or counts(run))
        started = [run for run in runs if run.copy_of is None and run.has_started]
        parents = {parent.run_id for run in started if (parent := self.parent(run))}
        leaves = [run for run in started if run.run_id not in parents]
        return sorted(leaves, key=lambda run: (run.created_at, run.run_id), reverse=True)

    def copies(self, experiment: str) -> list[Run]:
        """Return the folders of an experiment that are copies of runs beside them, sorted by name."""
        return [run for run in self.of_experiment(experiment) if run.copy_of is not None]

    def history(self, run: Run) -> list[tuple[Run, int | None]]:
        """Return (run, highest step that belongs to the history), newest first: the run, its parent, to the root.

        The run itself has no limit (None); a parent counts up to the step that its child was resumed at. A folder that
        the kit did not make is read by the config of the run that was resumed from it.
        """
        result: list[tuple[Run, int | None]] = [(run, None)]
        limit: int | None = None
        seen = {run.run_id}
        while (parent := self.parent(run)) and parent.run_id not in seen:
            step = run.parent_step
            limit = step if limit is None else min(limit, step) if step is not None else limit
            if not parent.is_ours:
                parent.read_as(run.naming)
            result.append((parent, limit))
            seen.add(parent.run_id)
            run = parent
        return result

    def root_id(self, run: Run) -> str:
        """Return the id of the run that a lineage began with, as its records say; where they do not, as parents lead.

        A parent whose folder is gone is named by its child's record all the same.
        """
        known = other_id({"run_id": run.record.get("root_run_id")})
        oldest = self.history(run)[-1][0]
        return known or other_id({"run_id": oldest.record.get("parent_run_id")}) or oldest.run_id


def run_around(table: RunTable, checkpoint: Path) -> Run | None:
    """Return the run that a checkpoint file lies in, if there is one: in this runs folder, or one of ours elsewhere."""
    path, runs_dir = Path(os.path.realpath(checkpoint.parent)), Path(os.path.realpath(table.runs_dir))
    for folder in (path, *path.parents):
        if folder.parent == runs_dir:
            return table.get(folder.name)
        if (folder / "run.json").is_file():
            return open_run(folder)
    return None


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


# What a run's record says of the incident that it recovers from: `recovery` in run.json, and nothing for other
# runs.
#
# Reads run.json, as the table of runs has it; a record may be another user's, so every value is checked. Try it:
# `grep -A9 '"recovery"' runs/<run_id>/run.json`

# A chain is followed so far back: more than any budget needs.
MAX_CHAIN = 64

_cause = one_of(CAUSES)


class Recovery(NamedTuple):
    """One recovery.

    Args:
        cause: of the incident, one of base/terms.
        attempt: 1 for the first one in a row without progress, 2 for the next.
        first_bad_step: of the incident; None where any step is as good.
        lr_factor: what the learning rate is multiplied by on top of what the run before had; 1.0 for no cut.
        skip_data_steps: optimizer steps whose data are left out after the checkpoint.
        skip_eval_step: the evaluation that is left out once, by the step it belongs to; None for none.
    """

    cause: str
    attempt: int = 1
    first_bad_step: int | None = None
    lr_factor: float = 1.0
    skip_data_steps: int = 0
    skip_eval_step: int | None = None

    def as_fields(self) -> dict[str, Any]:
        """Return it as run.json has it."""
        return self._asdict()


def recovery_of(run: Run) -> Recovery | None:
    """Return what a run recovers from; None where it was started by a person, or its record makes no sense."""
    fields = mapping(run.record.get("recovery"))
    if _cause(fields.get("cause")) is None or not count(fields.get("attempt")):
        return None
    factor = number(fields.get("lr_factor"))
    return Recovery(
        cause=fields["cause"], attempt=fields["attempt"], first_bad_step=count(fields.get("first_bad_step")),
        lr_factor=1.0 if factor is None else factor,
        skip_data_steps=count(fields.get("skip_data_steps")) or 0, skip_eval_step=count(fields.get("skip_eval_step")),
    )  # fmt: skip


def recovery_chain(run: Run, table: RunTable) -> Iterator[Run]:
    """Yield a run and those that it recovers, one after the other, up to the one that a person started."""
    seen: set[str] = set()
    while run.run_id not in seen and len(seen) < MAX_CHAIN:
        yield run
        seen.add(run.run_id)
        parent = table.parent(run)
        if recovery_of(run) is None or parent is None:
            return
        run = parent
