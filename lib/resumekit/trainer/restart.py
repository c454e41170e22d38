"""A trainer that torchrun has started again in its place, with the arguments of its first start.

`torchrun --max-restarts` does so below the launcher, which sees one trainer: same run, same folder, same checkpoint to
resume from. The run's own newest checkpoint is the one to go on from, else every step would be trained, and saved, a
second time with other values. Reads TORCHELASTIC_RESTART_COUNT and the manifests in the run's own folder.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..base.errors import KitError
from ..base.files import UnreadableFile
from ..checkpoint import catalog, manifest
from ..policy import plan_file
from ..policy.plan_file import PlanFile
from ..run.run_folder import open_run
from .trainer_env import run_dir, run_id

VARIABLE = "TORCHELASTIC_RESTART_COUNT"
# Whether a load of this process has gone on from where its run stood, and in which folder which checkpoint was the
# newest when it was first asked: what this process saves itself is no earlier start's.
_goes_on = False
_before: dict[Path, tuple[int, Path] | None] = {}


def count() -> int:
    """Return how often torchrun has started this trainer again; 0 for the first start, and without it."""
    text = os.environ.get(VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def newest_own(ckpt_path: str | Path | None, planned: PlanFile | None) -> Path | None:
    """Return the checkpoint that a trainer goes on from in the place of the one that it was told; None for that one.

    It is the newest that this run has saved with a proof before this process began. It counts in a trainer that was
    started again, and in one that was told of no checkpoint though its own folder has some.

    Args:
        ckpt_path: what the trainer was told.
        planned: the launcher's plan of this run; None without. Another checkpoint than its own is a teacher's, say.
    """
    global _goes_on
    folder = run_dir()
    is_told = ckpt_path and not (
        count() and planned and plan_file.is_about(planned.checkpoint, Path(ckpt_path), folder)
    )
    newest = None if folder is None or is_told else _newest_before(folder)
    _goes_on = _goes_on or newest is not None
    return None if newest is None else newest[1]


def sentence(own: Path, ckpt_path: str | Path | None) -> str:
    """Say why and from where such a trainer goes on."""
    why = (
        f"torchrun has started this trainer again in its place (restart {count()})"
        if count()
        else "this run was begun before"
    )
    told = f"'{Path(ckpt_path).name}', as its arguments say" if ckpt_path else "nothing"
    return f"{why}: it goes on from its own newest checkpoint, '{own.name}', and not from {told}"


def refuse_second_content(step: int) -> None:
    """Refuse to save steps again that this run has saved before it was started again in place and began anew.

    Raises:
        KitError: this is such a step.
    """
    folder = run_dir()
    if _goes_on or folder is None or not count():
        return
    newest = _newest_before(folder)
    if newest is not None and step <= newest[0]:
        raise KitError(
            f"save_checkpoint: torchrun has started this trainer again in its place (restart {count()}), it did not go "
            f"on from its own checkpoint of step {newest[0]} and would save step {step} again with other values: "
            f"call load_resume_bundle at each start, with ckpt_path=None at the first, or start torchrun with "
            f"--max-restarts=0, so that the launcher recovers the run"
        )


def _newest_before(folder: Path) -> tuple[int, Path] | None:
    if folder not in _before:
        _before[folder] = _newest_in(folder)
    return _before[folder]


def _newest_in(folder: Path) -> tuple[int, Path] | None:
    """Return (step, path) of the newest checkpoint that this run's save_checkpoint has written whole and finite."""
    run = open_run(folder)
    checkpoints = run.paths.checkpoints
    with contextlib.suppress(OSError):
        for step, name in sorted(catalog.steps_in(checkpoints, run.form), reverse=True):
            with contextlib.suppress(UnreadableFile):
                known = manifest.read(checkpoints / name)
                is_whole = known.writer == manifest.SAVE_CHECKPOINT and known.step_completed and known.finite
                if is_whole and known.run_id == run_id() and known.step == step:
                    return step, checkpoints / name
    return None
