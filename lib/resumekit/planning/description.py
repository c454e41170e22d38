"""How a checkpoint's weights fit the model that the new config describes, asked of the trainer before anything starts.

A trainer that offers it (`trainer.describe_args`, such as `[--describe]`) prints one JSON object with names and shapes
of its parameters (and buffers), and trains nothing. Runs the trainer's command in a temporary folder; reads the
checkpoint's summary.
Try it: `bin/resume.sh EXP-03 --set model.aux_rule_head=true --dry-run`
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..basics.errors import InvalidFile
from ..basics.paths import RunPaths
from ..configuration import config
from ..proving.weight_fit import WeightFit, compare
from . import preflight
from .choice import Choice
from .preflight import Ready

TIMEOUT_S = 300.0
MAX_BYTES = 32 << 20


def ask(choice: Choice, ready: Ready) -> WeightFit | None:
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
    saved = {name: tuple(shape) for name, (shape, _) in choice.candidate.inside.tensors.items()}
    return compare(saved, shapes)


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
        is_sound = all(type(size) is int and size >= 0 for shape in shapes.values() for size in shape)
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
