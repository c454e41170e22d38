"""What differs between the machine that a checkpoint was trained on and this one, and what that costs a resumed run.

Compares run.json's record of versions, ranks and code with what the trainer's interpreter and git say now. Reads
nothing. Try it: `bin/resume.sh EXP-01 --dry-run` after an upgrade of torch
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..basics.redaction import redacted_text
from ..configuration.changes import Change
from .code_state import Code

# What a change of each does to a resumed run (protocol §1 for the scaler; a generator's state is one rank's).
EFFECTS: dict[str, dict[str, str]] = {
    "python": {},
    "torch": {"scaler": "reset"},
    "cuda": {"scaler": "reset"},
    "driver": {"scaler": "reset"},
    "world_size": {"rng": "reset"},
    "OMP_NUM_THREADS": {},
    "git.commit": {},
    "git.diff_sha256": {},
}
# Shown where they differ: what a shell that was not set up as the run's lacks. A change of one costs nothing by itself.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "VIRTUAL_ENV",
    "CONDA_PREFIX", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "CUBLAS_WORKSPACE_CONFIG", "MKL_NUM_THREADS",
    "PYTHONHASHSEED", "CUDA_HOME", "HF_HOME", "TORCH_HOME",
)  # fmt: skip


def changes(record: Mapping[str, Any], versions: Mapping[str, Any], code: Code | None) -> list[Change]:
    """Return what differs, in the order of EFFECTS and VARIABLES.

    Args:
        record: run.json of the run that the checkpoint comes from; {} where there is none: then nothing is compared.
        versions: of the trainer's interpreter now: python, torch, cuda, driver; None where it does not say.
        code: what git says now; None where it was not asked.
    """
    if not record:
        return []
    # A record holds no secret; what is compared with it, and shown, holds none either.
    own = {name: redacted_text(os.environ[name]) for name in VARIABLES if name in os.environ}
    before, now = _facts_of(record), {**versions, **_processes(os.environ), **_variables(own)}
    if code is not None:
        now |= {"git.commit": code.commit, "git.diff_sha256": code.diff_sha256}
    return [
        Change(key, before[key], now[key], EFFECTS.get(key, {}), None, None)
        for key in (*EFFECTS, *VARIABLES)
        if key in before and key in now and before[key] != now[key]
    ]


def consents(record: Mapping[str, Any], versions: Mapping[str, Any]) -> list[str]:
    """Return what a person must agree to: to start a trainer where it has no torch, and the run had one.

    Args:
        record, versions: as in `changes`; an interpreter that does not answer at all is no such thing.
    """
    had, here = _mapping(record.get("versions")).get("torch"), versions.get("torch")
    if not isinstance(had, str) or here is not None or versions.get("python") is None:
        return []
    values = _mapping(_mapping(record.get("environment")).get("values"))
    where = [f"{name} was '{values[name]}'" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if values.get(name)]
    advice = f"activate the run's environment ({', '.join(where)})" if where else "activate the run's environment"
    return [f"torch: {had} -> null (the trainer's interpreter has none here: {advice}, or name it in trainer.python)"]


def _facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    versions, git, environment = (_mapping(record.get(name)) for name in ("versions", "git", "environment"))
    values = _mapping(environment.get("values"))
    return {
        **{name: versions[name] for name in ("python", "torch", "cuda", "driver") if name in versions},
        **{f"git.{name}": git[name] for name in ("commit", "diff_sha256") if name in git},
        **({**_processes(values), **_variables(values)} if "values" in environment else {}),
    }


def _variables(environment: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: environment[name] if isinstance(environment.get(name), str) else None for name in VARIABLES}


def _processes(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many ranks and threads there are; other threads add up numbers in another order."""
    threads = environment.get("OMP_NUM_THREADS")
    return {"world_size": str(environment.get("WORLD_SIZE") or 1), "OMP_NUM_THREADS": threads and str(threads)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
