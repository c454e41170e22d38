"""What the Trainer of transformers says of a checkpoint in its `trainer_state.json`, the last file of a save.

It is written in place: one that is cut short, or not there, is of a save that was not completed. Reads no file itself,
writes nothing.
"""

from __future__ import annotations

from ..base import values
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from . import bounded_json

NAME = "trainer_state.json"
MAX_BYTES = bounded_json.MAX_BYTES


class TrainerState(NamedTuple):
    """What it says.

    Args:
        step: `global_step`, in optimizer steps.
        epoch: with its fraction; None where it has none.
        best_metric, best_step: of the best evaluation so far; None before the first one, and from versions that do not
            write them.
        best_checkpoint: the name of that folder, without where it lies; None as these.
        loss, loss_step: the last loss of the training in its log, NaN and infinity too, and the step that it is of.
    """

    step: int
    epoch: float | None
    best_metric: float | None
    best_step: int | None
    best_checkpoint: str | None
    loss: float | None
    loss_step: int | None


def read(data: bytes) -> TrainerState:
    """Read the whole content of a `trainer_state.json`. Raises UnreadableFile: it is none, or cut short."""
    state = bounded_json.parse(data, NAME)
    step = values.count(state.get("global_step"))
    if step is None:
        raise UnreadableFile(f"its {NAME} has no global_step")
    loss, loss_step = _last_loss(values.items(state.get("log_history")))
    return TrainerState(
        step=step,
        epoch=values.speed(state.get("epoch")),
        best_metric=values.finite(state.get("best_metric")),
        best_step=values.count(state.get("best_global_step")),
        best_checkpoint=_folder_name(state.get("best_model_checkpoint")),
        loss=loss,
        loss_step=loss_step,
    )


def _last_loss(history: list[Any]) -> tuple[float | None, int | None]:
    for entry in reversed(history):
        loss = values.real(values.mapping(entry).get("loss"))
        if loss is not None:
            return loss, values.count(entry.get("step"))
    return None, None


def _folder_name(path: Any) -> str | None:
    """Return the last name of a path, which may be of another machine: it is compared with names, and never opened."""
    name = (values.path_text(path) or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") and name.isprintable() else None
