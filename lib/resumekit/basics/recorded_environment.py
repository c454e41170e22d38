"""Which variables of the environment a run's record keeps: where it ran, and no secret; nothing else is written down.

The watcher sets them again when it takes a run up. Reads nothing.
Try it: `grep -A40 '"environment"' runs/<run_id>/run.json`
"""

from __future__ import annotations

from typing import Any

NAMES = (
    "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "PYTHON", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG", "LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NCCL_DEBUG",
    "PATH", "PYTHONHASHSEED", "PYTHONPATH", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID",
    "SLURM_JOB_PARTITION", "VIRTUAL_ENV", "CONDA_PREFIX", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LANG", "LC_ALL", "TZ",
    "XDG_STATE_HOME", "RESUMEKIT_TRAINER_PYTHON",
)  # fmt: skip


def passed_names(recorded: Any) -> list[str]:
    """Return which variables of `trainer.env` a run had, from run.json's `environment`; their values are not kept."""
    passed = recorded.get("passed") if isinstance(recorded, dict) else None
    return [name for name in passed if isinstance(name, str)] if isinstance(passed, list) else []
