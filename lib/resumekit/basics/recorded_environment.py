"""Which variables of the environment a run's record keeps: where it ran, and no secret; nothing else is written down.

The watcher sets them again when it takes a run up. Reads nothing.
Try it: `grep -A40 '"environment"' runs/<run_id>/run.json`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = (
    "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "PYTHON", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG", "LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NCCL_DEBUG",
    "PATH", "PYTHONHASHSEED", "PYTHONPATH", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID",
    "SLURM_JOB_PARTITION", "VIRTUAL_ENV", "CONDA_PREFIX", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LANG", "LC_ALL", "TZ",
    "XDG_STATE_HOME", "RESUMEKIT_TRAINER_PYTHON",
)  # fmt: skip

# Which variable a scheduler names its job with, the first that is set; Kubernetes names none.
_JOBS = {
    "slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "lsf": "LSB_JOBID", "flux": "FLUX_JOB_ID", "oar": "OAR_JOB_ID",
    "cobalt": "COBALT_JOBID", "condor": "_CONDOR_SLOT", "kubernetes": "KUBERNETES_SERVICE_HOST",
}  # fmt: skip
_GRID_ENGINE = ("SGE_TASK_ID", "JOB_ID")  # JOB_ID alone may be anybody's
_MAX_JOB_CHARACTERS = 100


def scheduler(environment: Mapping[str, str]) -> dict[str, str | None] | None:
    """Return which scheduler's job this environment is of, as {name, job}; None outside of any."""
    for name, variable in _JOBS.items():
        if job := environment.get(variable):
            return {"name": name, "job": None if name == "kubernetes" else job[:_MAX_JOB_CHARACTERS]}
    if all(environment.get(variable) for variable in _GRID_ENGINE):
        return {"name": "grid_engine", "job": environment["JOB_ID"][:_MAX_JOB_CHARACTERS]}
    return None


def passed_names(recorded: Any) -> list[str]:
    """Return which variables of `trainer.env` a run had, from run.json's `environment`; their values are not kept."""
    passed = recorded.get("passed") if isinstance(recorded, dict) else None
    return [name for name in passed if isinstance(name, str)] if isinstance(passed, list) else []
