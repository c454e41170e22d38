"""Where everything of a run lies. Every path is made here; no other module joins strings."""

from __future__ import annotations

import functools
import os
import re
from collections import namedtuple
from pathlib import Path

KIT_ROOT = Path(__file__).resolve().parents[3]
LIB = KIT_ROOT / "lib"
SCHEMAS = KIT_ROOT / "schemas"

STEP_PATTERN = "hrm_arc_step_{step}.pt"
BEST_PATTERN = "hrm_arc_best.pt"
MANIFEST_SUFFIX = ".json"
# Beside the runs: `.live.<uid>/` with the live markers of one user.
SHARED_LIVE = ".live"
# No more than 12 digits, and only ASCII ones: `\d` also matches Arabic digits, and 20 digits are no step.
_STEP = "([0-9]{1,12})"


_PARTS = {"checkpoints_name": "checkpoints", "logs_name": "logs", "status_name": "status.json"}


class RunPaths(namedtuple("RunPaths", ["run_dir", *_PARTS], defaults=_PARTS.values())):
    """The files of one run folder. (Importing dataclasses costs every start of a run 10 ms, typing the shim's 4.)

    Args:
        run_dir: the run's own folder, `runs/<run_id>`, a Path.
        checkpoints_name, logs_name, status_name: `paths.checkpoints`, `paths.logs`, `paths.status` of the config,
            relative to the run folder.
    """

    __slots__ = ()

    @property
    def run_json(self) -> Path:
        return self.run_dir / "run.json"

    @property
    def config_copy(self) -> Path:
        return self.run_dir / "config.yaml"

    @property
    def resolved_yaml(self) -> Path:
        return self.run_dir / "resolved_config.yaml"

    @property
    def resume_plan(self) -> Path:
        return self.run_dir / "resume_plan.json"

    @property
    def resolved_json(self) -> Path:
        return self.run_dir / "resolved_config.json"

    @property
    def journal(self) -> Path:
        return self.run_dir / "journal.jsonl"

    @property
    def status(self) -> Path:
        return self.run_dir / self.status_name

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / self.checkpoints_name

    @property
    def logs(self) -> Path:
        return self.run_dir / self.logs_name

    @property
    def output_log(self) -> Path:
        return self.logs / "output.log"

    @property
    def train_log(self) -> Path:
        return self.logs / "train.log"

    @property
    def command_sh(self) -> Path:
        return self.run_dir / "command.sh"

    @property
    def code_patch(self) -> Path:
        return self.run_dir / "code.patch"

    @property
    def lock(self) -> Path:
        return self.run_dir / "lock"

    @property
    def status_lock(self) -> Path:
        return self.run_dir / ".status.lock"

    @property
    def stop_lock(self) -> Path:
        """Held by the process that stops a run which a rule has ended."""
        return self.run_dir / ".stop.lock"

    @property
    def session_lock(self) -> Path:
        """Held by the trainer and its children, through a descriptor that they inherit; free when all have ended."""
        return self.run_dir / "trainer.lock"

    @property
    def stop_request(self) -> Path:
        """A stop that another user, host or container asks for; the run's own sidecar obeys."""
        return self.run_dir / "stop_request.json"

    @property
    def continuation(self) -> Path:
        """The claim of the run that continues this one."""
        return self.claims / "continued.json"

    @property
    def sidecar_state(self) -> Path:
        return self.run_dir / ".sidecar.json"

    @property
    def claims(self) -> Path:
        return self.run_dir / "claims"

    @property
    def quarantine(self) -> Path:
        return self.run_dir / "quarantine.json"

    @property
    def proof(self) -> Path:
        """The verdict on the digest of the checkpoint that this run starts from (see proof.py)."""
        return self.run_dir / "checkpoint_proof.json"

    @property
    def exit_json(self) -> Path:
        return self.run_dir / "exit.json"

    @property
    def heartbeat_json(self) -> Path:
        return self.run_dir / "heartbeat.json"

    @property
    def paused(self) -> Path:
        """A person's "hands off": while it is there, no watcher judges the run."""
        return self.run_dir / "paused"

    @property
    def dataset(self) -> Path:
        return self.run_dir / "dataset"

    @property
    def artifacts(self) -> Path:
        """Snapshots of the best, `best@<step>/` each."""
        return self.run_dir / "artifacts"

    @property
    def live_marker(self) -> Path:
        """The caller's marker of the run: each user has a folder of markers of their own (live_marker.py)."""
        return live_folder(self.run_dir.parent) / self.run_dir.name

    @property
    def shared_marker(self) -> Path:
        """Where earlier versions put the marker: in one folder for all users. Still read, never made."""
        return self.run_dir.parent / SHARED_LIVE / self.run_dir.name


def live_folder(runs_dir: Path) -> Path:
    """Return the folder of the caller's own live markers: two users of one runs folder do not share one."""
    return runs_dir / f"{SHARED_LIVE}.{os.geteuid()}"


def manifest_path(checkpoint: Path) -> Path:
    """Return the manifest's name beside a checkpoint: `X.pt` -> `X.pt.json`."""
    return checkpoint.with_name(checkpoint.name + MANIFEST_SUFFIX)


def checkpoint_name(pattern: str, step: int) -> str:
    """Return the file name of the checkpoint of `step` under `checkpoint.pattern`."""
    return pattern.replace("{step}", str(step))


def step_of_name(name: str, pattern: str) -> int | None:
    """Return the step in a checkpoint's file name, or None if the whole name does not match `checkpoint.pattern`."""
    match = step_form(pattern).fullmatch(name)
    return int(match[1]) if match else None


@functools.lru_cache(maxsize=16)
def step_form(pattern: str) -> re.Pattern[str]:
    """Return the form of a step checkpoint's whole name under `checkpoint.pattern`; its first group is the step."""
    before, _, after = pattern.partition("{step}")
    return re.compile(re.escape(before) + _STEP + re.escape(after))


def find_program(program: str, search_path: str | None = None) -> str | None:
    """Return the path of an executable, as `shutil.which` does, whose import costs a start 2 ms; None without one.

    Args:
        program: a name that is searched for, or a path.
        search_path: folders with `:` between them; by default $PATH.
    """
    folders = [""] if "/" in program else (search_path or os.environ.get("PATH", os.defpath)).split(":")
    for folder in folders:
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def relative_to_run(path: Path, run_dir: Path) -> str:
    """Return `path` as written into a run's own files: relative to the run folder, so that the folder may move."""
    return os.path.relpath(path, run_dir)
