"""What run.json records at a run's start: where it came from, what code, which versions, which machine.

Asks git and the trainer's interpreter; never imports torch. Everything that costs a process runs beside the rest:
`start_snapshot` first, the answers when they are needed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .redaction import redact

MAX_PATCH_BYTES = 10 << 20
GIT_TIMEOUT_S = 20.0

# Values that say where a run ran and are no secrets; nothing else of the environment is written down.
RECORDED_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NCCL_DEBUG", "PATH", "PYTHONHASHSEED",
    "PYTHONPATH", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURM_JOB_PARTITION", "VIRTUAL_ENV", "CONDA_PREFIX",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LANG", "LC_ALL", "TZ",
)  # fmt: skip


@dataclass
class Snapshot:
    """The git questions under way."""

    head: subprocess.Popen[bytes] | None
    diff: subprocess.Popen[bytes] | None


@dataclass(frozen=True)
class Code:
    """The state of the lab's code.

    Args:
        commit: git commit, or None outside a repository.
        patch: the uncommitted diff of tracked files, secrets taken out; b'' if there is none.
        diff_sha256: of the diff as it was; None without one.
        redacted: how many secrets were taken out.
    """

    commit: str | None
    patch: bytes
    diff_sha256: str | None
    redacted: int


def start_snapshot(root: Path) -> Snapshot:
    """Start asking git about the repository that `root` lies in; untracked files are never looked at."""
    # No external diff or text conversion: a repository's own settings must not run programs here.
    diff = ["diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--", "."]
    return Snapshot(_git(root, ["rev-parse", "HEAD"]), _git(root, diff))


def finish_snapshot(snapshot: Snapshot) -> Code:
    """Wait for git's answers; a git that is missing, fails or takes too long is 'unknown', not an error."""
    commit = _answer(snapshot.head).strip().decode("ascii", "replace") or None
    diff = _answer(snapshot.diff)
    if not diff:
        return Code(commit, b"", None, 0)
    digest = hashlib.sha256(diff).hexdigest()
    if len(diff) > MAX_PATCH_BYTES:
        note = f"# the diff has {len(diff)} bytes, more than {MAX_PATCH_BYTES}: not kept; its SHA-256 is in run.json\n"
        return Code(commit, note.encode(), digest, 0)
    patch, redacted = redact(diff)
    return Code(commit, patch, digest, redacted)


def environment(extra_names: Sequence[str]) -> dict[str, Any]:
    """Return the recorded part of the environment; of `trainer.env` the names that are set, never the values."""
    kept = {name: os.environ[name] for name in RECORDED_ENVIRONMENT if name in os.environ}
    return {"values": kept, "passed": [name for name in extra_names if name in os.environ]}


def versions(python: str, search_path: str) -> dict[str, str | None]:
    """Return python, torch, cuda and driver versions as the trainer's interpreter has them, without importing torch.

    Args:
        python: the trainer's interpreter.
        search_path: the PYTHONPATH that the trainer gets.
    """
    if os.path.realpath(python) == os.path.realpath(sys.executable) and _same_prefix(python):
        version, folders = platform.python_version(), [*search_path.split(os.pathsep), *sys.path]
    else:
        version, folders = _ask_interpreter(python)
    torch, cuda = _torch_version(folders)
    return {"python": version, "torch": torch, "cuda": cuda, "driver": _driver_version()}


def _git(root: Path, arguments: list[str]) -> subprocess.Popen[bytes] | None:
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
        )
    except OSError:
        return None


def _answer(process: subprocess.Popen[bytes] | None) -> bytes:
    if process is None:
        return b""
    try:
        output, _ = process.communicate(timeout=GIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return b""
    return output if process.returncode == 0 else b""


def _same_prefix(python: str) -> bool:
    """Whether `python` is this interpreter and not another venv's link to the same program."""
    return os.path.abspath(python) == os.path.abspath(sys.executable)


def _ask_interpreter(python: str) -> tuple[str | None, list[str]]:
    script = "import sys, platform; print(platform.python_version(), *sys.path, sep='\\0', end='')"
    try:
        answer = subprocess.run([python, "-c", script], capture_output=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None, []
    version, *folders = answer.stdout.decode("utf-8", "surrogateescape").split("\0")
    return version or None, folders


def _torch_version(folders: Sequence[str]) -> tuple[str | None, str | None]:
    """Read torch/version.py as text: importing torch costs more than all the rest of a launch."""
    for folder in folders:
        try:
            text = (Path(folder) / "torch" / "version.py").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        found = {
            name: re.search(rf"^{name}\b[^=\n]*=\s*'([^']*)'", text, re.MULTILINE) for name in ("__version__", "cuda")
        }
        return tuple(match[1] if match else None for match in found.values())
    return None, None


def _driver_version() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def describe(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return run.json's content in its stated order, by schemas/run.schema.json."""
    return {key: fields[key] for key in _ORDER}


_ORDER = (
    "run_id", "experiment", "name", "notes", "parent_run_id", "parent_step", "checkpoint", "relation", "config_hash",
    "config_file", "config_sha256", "argv", "kit_argv", "cwd", "root", "paths", "git", "host", "boot_id", "token",
    "launcher", "versions", "environment", "seed", "created_at", "kit_version",
)  # fmt: skip
