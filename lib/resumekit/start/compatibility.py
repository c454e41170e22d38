"""Whether the model that a config describes, and this machine, fit what a checkpoint was trained with."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base.errors import InvalidFile
from ..base.imports import Any
from ..base.paths import RunPaths
from ..base.redaction import redacted_text
from ..base.values import count, mapping
from ..checkpoint.manifest import Manifest
from ..checkpoint.parameters import WeightFit, compare_weights
from ..config import config
from ..policy.config_diff import Change
from ..policy.decide import MACHINE_COSTS
from . import preflight
from .choice import Choice
from .code_state import Code
from .preflight import Ready

# What is compared, in this order.
FACTS = ("python", "torch", "cuda", "driver", "world_size", "OMP_NUM_THREADS", "git.commit", "git.diff_sha256")
# Shown where they differ: what a shell that was not set up as the run's lacks. A change of one costs nothing by itself.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "VIRTUAL_ENV",
    "CONDA_PREFIX", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "CUBLAS_WORKSPACE_CONFIG", "MKL_NUM_THREADS",
    "PYTHONHASHSEED", "CUDA_HOME", "HF_HOME", "TORCH_HOME",
)  # fmt: skip


def machine_changes(record: Mapping[str, Any], versions: Mapping[str, Any], code: Code | None) -> list[Change]:
    """Return what differs, in the order of FACTS and VARIABLES.

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
        Change(key=key, old=before[key], new=now[key], actions=MACHINE_COSTS.get(key, {}), consent=None, refuse=None)
        for key in (*FACTS, *VARIABLES)
        if key in before and key in now and before[key] != now[key]
    ]


def machine_consents(record: Mapping[str, Any], versions: Mapping[str, Any]) -> list[str]:
    """Return what a person must agree to: to start a trainer where it has no torch, and the run had one.

    Args:
        record, versions: as in `machine_changes`; an interpreter that does not answer at all is no such thing.
    """
    had, here = mapping(record.get("versions")).get("torch"), versions.get("torch")
    if not isinstance(had, str) or here is not None or versions.get("python") is None:
        return []
    values = mapping(mapping(record.get("environment")).get("values"))
    where = [f"{name} was '{values[name]}'" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if values.get(name)]
    advice = f"activate the run's environment ({', '.join(where)})" if where else "activate the run's environment"
    return [f"torch: {had} -> null (the trainer's interpreter has none here: {advice}, or name it in trainer.python)"]


def of_ranks(known: Manifest | None, differs: Sequence[Change], resolved: dict[str, Any]) -> tuple[str, ...]:
    """Return what a person is told of a training of several ranks.

    Args:
        known: the checkpoint's manifest; None without one.
        differs: what differs on this machine.
        resolved: the new run's config.
    """
    found = []
    saved_by, with_rng = (count(known.versions.get("world_size")), known.rng_ranks) if known else (None, None)
    if saved_by is not None and with_rng is not None and with_rng < saved_by:
        found.append(
            f"the checkpoint of {saved_by} ranks holds the random number generators of {with_rng}: the others begin "
            f"with new ones, and the resume is not exact (save_checkpoint with ranks='all' holds those of all)"
        )
    batch = config.get(resolved, "training.global_batch")
    if batch is not None and any(one.key == "world_size" for one in differs):
        found.append(
            f"training.global_batch {batch} stays only if the trainer accumulates accordingly (`accumulation` of the "
            f"helpers): the number of ranks has changed"
        )
    return tuple(found)


def _facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    versions, git, environment = (mapping(record.get(name)) for name in ("versions", "git", "environment"))
    values = mapping(environment.get("values"))
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


# How a checkpoint's weights fit the model that the new config describes, asked of the trainer before anything
# starts.
#
# A trainer that offers it (`trainer.describe_args`, such as `[--describe]`) prints one JSON object with names and
# shapes of its parameters (and buffers), and trains nothing. Runs the trainer's command in a temporary folder;
# reads the checkpoint's summary. Try it: `bin/resume.sh EXP-03 --set model.aux_rule_head=true --dry-run`

TIMEOUT_S = 300.0
MAX_BYTES = 32 << 20


def ask_for_shapes(choice: Choice, ready: Ready) -> WeightFit | None:
    """Ask the trainer for its model and compare; None where it offers no description, or may not be started.

    Raises:
        InvalidFile: it offers one and does not give it, or gives something else.
    """
    arguments = config.get(choice.config, "trainer.describe_args")
    if not arguments or not ready.may_start:
        return None
    import tempfile  # late, as subprocess below: other starts need not pay for it

    with tempfile.TemporaryDirectory(prefix="resumekit-describe-") as folder:
        own = preflight.run_paths(choice, "RUN_ID")._replace(run_dir=Path(folder))
        config.write_resolved(own.run_dir, choice.config)
        shapes = _shapes(_run([*preflight.trainer_argv(choice, own, ready), *arguments], ready, own))
    saved = {name: tuple(shape) for name, (shape, _) in choice.chosen.content.tensors.items()}
    return compare_weights(saved, shapes)


def _run(argv: Sequence[str], ready: Ready, own: RunPaths) -> bytes:
    import subprocess  # late

    mine = {name: value for name, value in os.environ.items() if not name.startswith("RESUMEKIT_")}
    try:
        done = subprocess.run(
            argv, cwd=ready.cwd, env={**mine, "PYTHONPATH": ready.search_path}, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _no_answer(argv, f"it did not answer within {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise _no_answer(argv, str(error.strerror).lower()) from error
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise _no_answer(argv, f"exit code {done.returncode}: {last[0][:300]}")
    if len(done.stdout) > MAX_BYTES:
        raise _no_answer(argv, f"its answer has more than {MAX_BYTES:,} bytes")
    return done.stdout


def _shapes(answer: bytes) -> dict[str, tuple[int, ...]]:
    try:
        described = json.loads(answer)
        tensors = [*described["parameters"], *described.get("buffers", ())]
        shapes = {one["name"]: tuple(one["shape"]) for one in tensors}
        is_sound = all(count(size) is not None for shape in shapes.values() for size in shape)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidFile(f"the trainer's description (trainer.describe_args) is not one: {error}") from error
    if not is_sound or not all(isinstance(name, str) for name in shapes):
        raise InvalidFile("the trainer's description (trainer.describe_args) has a parameter of an impossible shape")
    return shapes


def _no_answer(argv: Sequence[str], why: str) -> InvalidFile:
    return InvalidFile(
        f"the trainer does not describe its model ({why}): '{shlex.join(argv)}' (trainer.describe_args); "
        "set it to null to plan without"
    )
