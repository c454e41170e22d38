"""The folder of a submitted job, `runs/.jobs/<EXP>_<name>_<stamp>/`: job.sh, job.json, the frozen code, what it prints.

`start/submit` makes it before the job waits; each start of the job reads it, and the runs that it starts name it in
their run.json. Nothing removes it: what is requeued or taken up a month later runs from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..base import file_identity
from ..base.errors import InvalidFile, KitError
from ..base.files import UnreadableFile, read_json, to_json, write_atomic
from ..base.imports import Any, NamedTuple
from ..base.paths import jobs_folder, relative_to_run
from ..base.values import mapping, string, strings
from . import new_folder
from .run_folder import Run

_MOST_NUMBERS = 10_000
# The list of consents is made of sentences with values of the config in them.
MAX_BYTES = 4 << 20


class JobFolder(NamedTuple):
    """The files of one job's folder."""

    path: Path

    @property
    def script(self) -> Path:
        return self.path / "job.sh"

    @property
    def record(self) -> Path:
        return self.path / "job.json"

    @property
    def code(self) -> Path:
        """The frozen copy of the lab's code."""
        return self.path / "code"

    @property
    def kit(self) -> Path:
        """The frozen copy of the kit, where it lies outside of the lab's code."""
        return self.path / "kit"

    def output(self, ids: str) -> Path:
        """What the job prints, of all its starts; `ids` are sbatch's placeholders of a job's id."""
        return self.path / f"output-{ids}.log"

    def held(self, name: str | None) -> Path:
        """Says that a start waits for consent, and that a user was told; one for each name of a sweep."""
        return self.path / (f"held_{name}.json" if name else "held.json")

    def read(self) -> dict[str, Any]:
        """Return job.json. Raises InvalidFile where it cannot be read."""
        try:
            return dict(mapping(read_json(self.record, MAX_BYTES)))
        except UnreadableFile as error:
            raise InvalidFile(f"the job's record '{self.record}' cannot be read: {error}") from error

    def write(self, fields: dict[str, Any]) -> None:
        """Write job.json. Raises OSError."""
        write_atomic(self.record, to_json(fields))

    def agreed(self, digest: str) -> frozenset[str]:
        """Return what was agreed to when the job was submitted.

        Args:
            digest: of it, as job.sh has it, of which Slurm keeps its own copy.

        Raises:
            InvalidFile: job.json does not say what it said then.
        """
        consents = strings(self.read().get("consents"))
        if digest_of(consents) != digest:
            raise InvalidFile(
                f"the consents in '{self.record}' are not those that the job was submitted with: submit it anew"
            )
        return frozenset(consents)

    @property
    def config_file(self) -> Path | None:
        """The lab's own config, whose lock every start of the experiment holds; None where it is not known."""
        try:
            path = string(self.read().get("config_file"))
        except InvalidFile:
            return None
        return None if path is None else Path(path)


def digest_of(consents: Sequence[str]) -> str:
    """Return the SHA-256 of sentences, in whatever order, as 64 hex digits."""
    return file_identity.sha256("\n".join(sorted(consents)).encode("utf-8", "surrogateescape"))


def make(runs_dir: Path, name: str) -> JobFolder:
    """Make the folder of a new job, under its name or with a number behind it.

    Raises:
        KitError: it cannot be made.
    """
    folder = jobs_folder(runs_dir)
    try:
        new_folder.make_runs_dir(runs_dir)
        folder.mkdir(exist_ok=True)
        for number in range(1, _MOST_NUMBERS):
            path = folder / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return JobFolder(path)
    except OSError as error:
        raise KitError(f"no folder for the job can be made in '{folder}': {error.strerror}") from error
    raise KitError(f"no free name for the job '{name}' in '{folder}'")


def of_run(run: Run) -> JobFolder | None:
    """Return the folder of the job that started a run, by its run.json; None where none did."""
    name = string(run.record.get("job_folder"))
    if name is None or "\0" in name:
        return None
    path = Path(os.path.normpath(run.paths.run_dir / name))
    return JobFolder(path) if path.parent == jobs_folder(run.paths.run_dir.parent) else None


def as_recorded(folder: Path, run_dir: Path) -> str:
    """Return a job's folder as run.json has it: relative to the run, so that the runs folder may move."""
    return relative_to_run(folder, run_dir)
