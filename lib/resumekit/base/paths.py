"""Where everything of a run lies. Every path is made here; no other module joins strings."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from . import files
from .errors import InvalidFile
from .imports import NamedTuple

KIT_ROOT = Path(__file__).resolve().parents[3]
LIB = KIT_ROOT / "lib"
SCHEMAS = KIT_ROOT / "schemas"

MANIFEST_SUFFIX = ".json"
# Beside the folder of checkpoints: the manifests of those that are folders themselves. Inside one it would change the
# time by which its framework tells the oldest, and beside one be counted as one.
MANIFESTS = "manifests"
# In a run's folder: hard links to the checkpoint of its parent's that it was resumed from, and their manifest.
HELD = "held"
# Beside the runs: the folders of submitted jobs (`run/job_folder`).
JOBS = ".jobs"
# In checkpoint.pattern: where the step's number stands, and what may be anything.
STEP, ANYTHING = "{step}", "{*}"
# Beside the runs: `.live.<uid>/` with the live markers of one user.
SHARED_LIVE = ".live"
# A step has no more digits than this: a time in milliseconds has 13, and every reader of JSON takes 15 exactly.
STEP_DIGITS = 15
MAX_STEP = 10**STEP_DIGITS
_SCHEMA_BYTES = 1 << 20
# Only ASCII digits: `\d` also matches Arabic ones.
_STEP = f"([0-9]{{1,{STEP_DIGITS}}})"
# What a shell or OmegaConf puts a value in the place of. Compiled at first use: only messages ask.
_HOME = r"(?s)(?:^|/)(~.*)"
_VARIABLE = r"\$(?:\{|[A-Za-z_])"
_OF_OMEGACONF = r"\$\{(?:oc\.)?env:([A-Za-z_][A-Za-z0-9_]*)(?:,[^}]*)?\}"


class _Parts(NamedTuple):
    run_dir: Path
    checkpoints_name: str = "checkpoints"
    logs_name: str = "logs"
    status_name: str = "status.json"


class RunPaths(_Parts):
    """The files of one run folder; each path is made once, when it is asked for.

    Args:
        run_dir: the run's own folder, `runs/<run_id>`.
        checkpoints_name, logs_name, status_name: `paths.checkpoints`, `paths.logs`, `paths.status` of the config,
            relative to the run folder.
    """

    @functools.cached_property
    def run_json(self) -> Path:
        return self.run_dir / "run.json"

    @functools.cached_property
    def config_copy(self) -> Path:
        return self.run_dir / "config.yaml"

    @functools.cached_property
    def resolved_yaml(self) -> Path:
        return self.run_dir / "resolved_config.yaml"

    @functools.cached_property
    def resume_plan(self) -> Path:
        return self.run_dir / "resume_plan.json"

    @functools.cached_property
    def resolved_json(self) -> Path:
        return self.run_dir / "resolved_config.json"

    @functools.cached_property
    def journal(self) -> Path:
        return self.run_dir / "journal.jsonl"

    @functools.cached_property
    def status(self) -> Path:
        return self.run_dir / self.status_name

    @functools.cached_property
    def checkpoints(self) -> Path:
        return self.run_dir / self.checkpoints_name

    @functools.cached_property
    def manifests(self) -> Path:
        """The manifests of checkpoints that are folders (`manifest_path`)."""
        return self.checkpoints.parent / MANIFESTS

    @functools.cached_property
    def held(self) -> Path:
        """The checkpoint of its parent's that the run holds (`run/held`)."""
        return self.run_dir / HELD

    @functools.cached_property
    def logs(self) -> Path:
        return self.run_dir / self.logs_name

    @functools.cached_property
    def output_log(self) -> Path:
        return self.logs / "output.log"

    @functools.cached_property
    def train_log(self) -> Path:
        return self.logs / "train.log"

    @functools.cached_property
    def command_sh(self) -> Path:
        return self.run_dir / "command.sh"

    @functools.cached_property
    def data_files(self) -> Path:
        return self.run_dir / "data_files.json"

    @functools.cached_property
    def code_patch(self) -> Path:
        return self.run_dir / "code.patch"

    @functools.cached_property
    def lock(self) -> Path:
        return self.run_dir / "lock"

    @functools.cached_property
    def status_lock(self) -> Path:
        return self.run_dir / ".status.lock"

    @functools.cached_property
    def stop_lock(self) -> Path:
        """Held by the process that stops a run which a rule has ended."""
        return self.run_dir / ".stop.lock"

    @functools.cached_property
    def session_lock(self) -> Path:
        """Held by the trainer and its children, through a descriptor that they inherit; free when all have ended."""
        return self.run_dir / "trainer.lock"

    @functools.cached_property
    def stop_request(self) -> Path:
        """A stop that another user, host or container asks for; the run's own sidecar obeys."""
        return self.run_dir / "stop_request.json"

    @functools.cached_property
    def continuation(self) -> Path:
        """The claim of the run that continues this one."""
        return self.claims / "continued.json"

    @functools.cached_property
    def sidecar_state(self) -> Path:
        return self.run_dir / ".sidecar.json"

    @functools.cached_property
    def claims(self) -> Path:
        return self.run_dir / "claims"

    @functools.cached_property
    def quarantine(self) -> Path:
        return self.run_dir / "quarantine.json"

    @functools.cached_property
    def proof(self) -> Path:
        """The verdict on the digest of the checkpoint that this run starts from (see proof.py)."""
        return self.run_dir / "checkpoint_proof.json"

    @functools.cached_property
    def exit_json(self) -> Path:
        return self.run_dir / "exit.json"

    @functools.cached_property
    def heartbeat_json(self) -> Path:
        return self.run_dir / "heartbeat.json"

    @functools.cached_property
    def paused(self) -> Path:
        """A person's "hands off": while it is there, no watcher judges the run."""
        return self.run_dir / "paused"

    @functools.cached_property
    def dataset(self) -> Path:
        return self.run_dir / "dataset"

    @functools.cached_property
    def artifacts(self) -> Path:
        """Snapshots of the best, `best@<step>/` each."""
        return self.run_dir / "artifacts"

    @functools.cached_property
    def live_marker(self) -> Path:
        """The caller's marker of the run: each user has a folder of markers of their own (live_marker.py)."""
        return live_folder(self.run_dir.parent) / self.run_dir.name

    @functools.cached_property
    def shared_marker(self) -> Path:
        """Where earlier versions put the marker: in one folder for all users. Still read, never made."""
        return self.run_dir.parent / SHARED_LIVE / self.run_dir.name


def live_folder(runs_dir: Path) -> Path:
    """Return the folder of the caller's own live markers: two users of one runs folder do not share one."""
    return runs_dir / f"{SHARED_LIVE}.{os.geteuid()}"


def jobs_folder(runs_dir: Path) -> Path:
    """Return where the folders of submitted jobs lie, beside the runs that they start."""
    return runs_dir / JOBS


def manifest_path(checkpoint: Path) -> Path:
    """Return where a checkpoint's manifest lies: of a file beside it, `X.pt` -> `X.pt.json`.

    That of a folder lies in `manifests/`, beside the folder of checkpoints; of one that is held (`held/`, where no
    framework counts what is there) beside it too.
    """
    name = checkpoint.name + MANIFEST_SUFFIX
    is_beside = checkpoint.parent.name == HELD or not os.path.isdir(checkpoint)
    return checkpoint.with_name(name) if is_beside else checkpoint.parent.parent / MANIFESTS / name


@functools.lru_cache(maxsize=1)
def default_patterns() -> tuple[str, str]:
    """Return the defaults of `checkpoint.pattern` and `checkpoint.best_pattern`: file names where no config says any.

    They stand in the config's schema. One small file is read, at the first call.

    Raises:
        InvalidFile: the schema cannot be read.
    """
    path = SCHEMAS / "config.schema.json"
    try:
        keys = files.read_json(path, _SCHEMA_BYTES, follow_links=True)["properties"]["checkpoint"]["properties"]
        return str(keys["pattern"]["default"]), str(keys["best_pattern"]["default"])
    except (files.UnreadableFile, KeyError, TypeError) as error:
        raise InvalidFile(
            f"the names of checkpoints are not known: '{path}' cannot be read ({error}); copy the kit's schemas/ there,"
            " or say the pattern"
        ) from None


def checkpoint_name(pattern: str, step: int) -> str:
    """Return the file name of the checkpoint of `step` under `checkpoint.pattern`."""
    return pattern.replace(STEP, str(step))


def step_of_name(name: str, pattern: str) -> int | None:
    """Return the step in a checkpoint's file name, or None if the whole name does not match `checkpoint.pattern`."""
    match = step_form(pattern).fullmatch(name)
    return int(match[1]) if match else None


@functools.lru_cache(maxsize=16)
def step_form(pattern: str) -> re.Pattern[str]:
    """Return the form of a step checkpoint's whole name under `checkpoint.pattern`; its first group is the step."""
    before, _, after = pattern.partition(STEP)
    return re.compile(_form(before) + _STEP + _form(after))


def _form(part: str) -> str:
    return "[^/]*?".join(map(re.escape, part.split(ANYTHING)))


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


def unexpanded(text: str) -> str:
    """Return what to write instead of a path that a shell or OmegaConf would expand, as the end of a sentence, or ''.

    Taken as it stands it is the very name of a file or folder, and is never expanded.
    """
    if home := re.search(_HOME, text):
        text = home[1]  # trainer.python has the root before it by now
    elif not re.search(_VARIABLE, text):
        return ""
    meant = os.path.expandvars(os.path.expanduser(re.sub(_OF_OMEGACONF, r"${\1}", text)))
    is_known = not (meant.startswith("~") or re.search(_VARIABLE, meant))
    return f"; '~' and '$NAME' are not expanded here: write {repr(meant) if is_known else 'the whole path'}"


def relative_to_run(path: Path, run_dir: Path) -> str:
    """Return `path` as written into a run's own files: relative to the run folder, so that the folder may move."""
    return os.path.relpath(path, run_dir)
