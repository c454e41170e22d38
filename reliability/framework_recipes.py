"""The recipes of examples/ that `reliability.frameworks` runs: what each one's checkpoints are, and what it can.

Try it: `python -m reliability.frameworks --list`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

STEPS, EVERY = 200, 25


class Recipe(NamedTuple):
    """A trainer of another project's kind.

    Args:
        name: its folder in examples/.
        experiment: the one in its config.yaml.
        checkpoint: name of a step's checkpoint in the run's checkpoint folder, as a regular expression with the step.
        needs: packages beside torch.
        is_exact: whether its end equals that of an uninterrupted run bit for bit, by its own means.
        has_line_per_step: its journal has each step and its loss, so that two of them can be compared; of a bar that is
            drawn anew some steps are seen, and which ones hangs on the clock.
        shows: what its log tells of a step, of 'loss' and 'lr'.
        best_step: run folder -> the step of the best checkpoint by the framework's own word; None: it has no best.
        beside: names of files that belong to a checkpoint, with {step}.
        pace_s: how long a step takes at least, in seconds: so that what has to come to rest between two saves does.
        seals: arguments with which it seals its checkpoints, and keeps but a few of them where it can; (): it does not.
    """

    name: str
    experiment: str
    checkpoint: str
    needs: tuple[str, ...] = ()
    is_exact: bool = True
    has_line_per_step: bool = True
    shows: tuple[str, ...] = ("loss", "lr")
    best_step: Callable[[Path], int] | None = None
    beside: tuple[str, ...] = ()
    pace_s: float = 0.02
    seals: tuple[str, ...] = ()

    def checkpoints(self, run: Path) -> list[tuple[int, Path]]:
        """Return (step, checkpoint) of a run's own, oldest first; of a fixed name the step stands inside."""
        named = ((re.fullmatch(self.checkpoint, path.name), path) for path in (run / "checkpoints").glob("*"))
        found = ((match[1] or _loaded(path)["iter_num"], path) for match, path in named if match)
        return sorted((int(step), path) for step, path in found)

    def files(self, step: int, checkpoint: Path) -> list[Path]:
        """Return the files of a checkpoint, in the folder that it is or beside the file that it is."""
        if checkpoint.is_dir():
            return sorted(checkpoint.iterdir())
        return [checkpoint, *(checkpoint.with_name(name.format(step=step)) for name in self.beside)]


def _loaded(path: Path) -> dict[str, Any]:
    import torch  # late: --list needs none

    return torch.load(path, map_location="cpu", weights_only=True)


def _plain_best(run: Path) -> int:
    return _loaded(run / "checkpoints" / "snapshot_best.pt")["step"]


def _newest(run: Path, pattern: str) -> Path:
    return max((run / "checkpoints").glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def _hf_best(run: Path) -> int:
    return json.loads((_newest(run, "checkpoint-*") / "trainer_state.json").read_bytes())["best_global_step"]


def _lightning_best(run: Path) -> int:
    (state,) = _loaded(_newest(run, "epoch=*.ckpt"))["callbacks"].values()
    return int(re.findall(r"step=([0-9]+)", state["best_model_path"])[0])


RECIPES = (
    Recipe("plain_loop", "PLAIN", r"snapshot_([0-9]+)\.pt", best_step=_plain_best),
    Recipe("fixed_name", "FIXED", r"ckpt(?:@([0-9]+))?\.pt", is_exact=False, shows=("loss",), pace_s=0.3),
    Recipe("weights_only", "WEIGHTS", "step_([0-9]+)", beside=("train_state_{step}",)),
    Recipe(
        "hf_trainer", "HF", "checkpoint-([0-9]+)", ("transformers", "accelerate"), has_line_per_step=False,
        best_step=_hf_best,
        seals=("--seal", "--save_total_limit", "3"),
    ),
    Recipe(
        "lightning", "LIGHTNING", r"epoch=[0-9]+-step=([0-9]+)\.ckpt", ("lightning",), is_exact=False,
        best_step=_lightning_best, seals=("--seal",),
    ),
    Recipe("accelerate", "ACCELERATE", "step_([0-9]+)", ("accelerate",), has_line_per_step=False, seals=("--seal",)),
    Recipe("dcp_fsdp", "DCP", "step-([0-9]+)", seals=("--seal",)),
)  # fmt: skip
