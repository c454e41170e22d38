"""The content of a checkpoint whose every byte was proven, and its counters, checked before they are taken over."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from pathlib import Path

from ..base.errors import InvalidFile, NoStableCheckpoint
from ..base.files import UnreadableFile
from ..base.imports import Any
from ..base.paths import MAX_STEP, RunPaths
from ..base.terms import COUNTERS, RESET
from ..base.values import real
from ..checkpoint import archive, layout, proof
from ..policy.plan_file import PlanFile
from .trainer_env import run_dir


def counters_of(content: dict[str, Any], action: str, plan: PlanFile | None, path: Path) -> dict[str, Any]:
    """Return global_step, start_epoch and best_val_loss.

    Args:
        content: the checkpoint.
        action: what is done with the counters; 'reset' begins at 0.
        plan: the launcher's; None without.
        path: for messages.

    Raises:
        InvalidFile: one of them is not a number, or the step is not the plan's.
    """
    for name in (*COUNTERS, "lr_scale"):
        value = content.get(name)
        if value is not None and real(value) is None:
            raise InvalidFile(f"the checkpoint's '{name}' is a {type(value).__name__}, not a number")
        if name in ("global_step", "epoch") and value is not None and not 0 <= value < MAX_STEP:
            raise InvalidFile(f"the checkpoint's '{name}' is '{value}', not a count")
    step = content.get("global_step")
    planned = plan.step if plan is not None else None
    if plan is not None and planned is not None and step is not None and int(step) != planned:
        raise InvalidFile(
            f"the plan '{plan.path}' is for step {planned}, and checkpoint '{path}' is of step {int(step)}; nothing "
            f"was loaded: let bin/resume.sh write a new plan"
        )
    if action == RESET:
        content = {}
        planned = None
    step, best = content.get("global_step"), content.get("best_val_loss")
    return {
        "global_step": int(planned or 0) if step is None else int(step),
        "start_epoch": int(content.get("epoch") or 0),
        "best_val_loss": float(math.inf if best is None else best),
    }


# The content of a checkpoint whose every byte was proven through the descriptor that it is loaded from.
#
# Opens the file once, proves its bytes (or waits for the launcher's proof of the very same file) while torch maps
# it, and hands nothing out before the proof is good. Reads the checkpoint, its manifest and the run's proof.


def read_proven(path: Path) -> dict[str, Any]:
    """Return the content of the file.

    Raises:
        NoStableCheckpoint: the file is not whole or its bytes are not the proven ones.
        InvalidFile: it has no weights.
    """
    try:
        descriptor = layout.open_one(path)
    except UnreadableFile as error:
        raise NoStableCheckpoint(f"checkpoint '{path}' can't be resumed from: {error}") from error
    try:
        # Bombs and code are looked for before torch sees the file.
        inside = archive.summarize(descriptor)
        if inside.unsafe:
            raise UnreadableFile(f"it holds '{inside.unsafe[0]}', which loading with weights_only=True refuses")
        before = layout.identity(descriptor).version
        content = _load_beside_proof(descriptor, path)
        if layout.identity(descriptor).version != before:
            raise UnreadableFile("it changed while it was loaded")
    except UnreadableFile as error:
        raise NoStableCheckpoint(f"checkpoint '{path}' can't be resumed from: {error}") from error
    finally:
        os.close(descriptor)
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), dict):
        raise InvalidFile(f"checkpoint '{path}' has no 'model_state_dict'")
    return content


def read_again(path: Path, kept: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a file that was proven before, for a comparison; nothing of it is used to train.

    Args:
        kept: what was kept of it for that; None: the file is read.

    Raises:
        UnreadableFile: it is gone or not a regular file.
    """
    if kept is not None:
        return kept
    descriptor = layout.open_one(path)
    try:
        content: dict[str, Any] = _torch_load(descriptor)
        return content
    finally:
        os.close(descriptor)


def _load_beside_proof(descriptor: int, path: Path) -> Any:
    """Map the file with torch while a thread proves its bytes; nothing is handed out before the proof is good."""
    verdicts: list[proof.Proof] = []
    prover = threading.Thread(target=lambda: verdicts.append(_proof_of(descriptor, path)), name="resumekit-proof")
    prover.start()
    failure: Exception | None = None
    content = None
    try:
        content = _torch_load(descriptor)
    except Exception as error:  # torch raises many kinds for a bad file; the proof below says better what is wrong
        failure = error
    finally:
        prover.join()
    if not verdicts or not verdicts[0].is_good:
        raise UnreadableFile(verdicts[0].reason if verdicts else "its proof failed")
    if failure is not None:
        raise UnreadableFile(f"torch can't load it: {str(failure).splitlines()[0]}") from failure
    return content


def _torch_load(descriptor: int) -> Any:
    import torch  # the trainer has it already

    # mmap: only the pages that are used are read, and the optimizer's tensors need no copy.
    return torch.load(f"/proc/self/fd/{descriptor}", map_location="cpu", weights_only=True, mmap=True)


def _proof_of(descriptor: int, path: Path) -> proof.Proof:
    """Take the launcher's proof if it is of this very file; else compute one, and leave it a bad verdict."""
    folder = run_dir()
    target = RunPaths(folder).proof if folder else None
    found = proof.wait_for(target, descriptor) if target else None
    if found is None:
        found = proof.prove(descriptor, path)
        pending = proof.read(target) if target is not None else None
        is_ours = pending is None or os.path.realpath(pending.path) == os.path.realpath(path)
        if target is not None and not found.is_good and is_ours:
            with contextlib.suppress(OSError):  # the verdict holds all the same; the launcher computes its own
                proof.write(target, found)
    return found
