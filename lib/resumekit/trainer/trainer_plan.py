"""The plan of this resume, as the launcher wrote it and the trainer carries it out.

Reads the file that RESUMEKIT_PLAN names, checks every field that it uses, and takes nothing of a broken one. Without
the variable there is no plan, and the trainer's own arguments decide.
Try it: `RESUMEKIT_PLAN=FILE PYTHONPATH=lib python -c "from resumekit.trainer import trainer_plan; trainer_plan.read()"`
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..basics import lr_scale
from ..basics.actions import ALLOWED
from ..basics.errors import InvalidFile
from ..basics.files import UnreadableFile, read_json
from ..basics.lr_scale import LrScale
from .left_out import LeftOut
from .partial_weights import NEW_PARAMS
from .trainer_env import run_dir

VARIABLE = "RESUMEKIT_PLAN"
VERSION = 1
MAX_PLAN_BYTES = 4 << 20
MAX_WHY = 500


class PlannedRate(NamedTuple):
    """A base learning rate and what the plan makes of it in the next steps; after is empty where it is not known."""

    key: str
    base: float | None
    after: tuple[float, ...]


class Decision(NamedTuple):
    """What is done with a component, and why; the reason is empty where it is simply loaded.

    Forced: a partial load that a person asked for by name, however little fits.
    """

    action: str
    why: str = ""
    forced: bool = False

    def __str__(self) -> str:
        return f"{self.action}: {self.why}" if self.why else self.action


@dataclass(frozen=True)
class TrainerPlan:
    """What a trainer needs of the plan.

    Args:
        path: the plan's own file, for messages.
        checkpoint: the file that it is about; None where it does not say.
        step: optimizer steps done in that checkpoint; None where it does not say.
        components: 'weights', 'optimizer' or 'optimizer.<name>', ... -> decision.
        new_params: 'module' or 'kaiming'.
        lr_scale: from here on; None where it does not say.
        rates: the learning rates of the next steps, to check them by.
        left_out: what a recovery leaves out.
    """

    path: str
    checkpoint: str | None
    step: int | None
    components: dict[str, Decision]
    new_params: str
    lr_scale: LrScale | None
    rates: tuple[PlannedRate, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)

    def is_about(self, ckpt_path: Path) -> bool:
        """Whether it plans the load of this file.

        A copy inside the run's own folder counts (for trainers that resume from a fixed name); a teacher's checkpoint
        that the trainer loads besides does not.
        """
        if self.checkpoint is None:
            return True
        found, folder = os.path.realpath(ckpt_path), run_dir()
        inside = folder is not None and found.startswith(os.path.join(os.path.realpath(folder), ""))
        return inside or found == os.path.realpath(self.checkpoint)


def read() -> TrainerPlan | None:
    """Return the plan that RESUMEKIT_PLAN names; None without it.

    Raises:
        InvalidFile: it can't be read, or a field is not what it must be.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        return _parse(name, read_json(Path(name), MAX_PLAN_BYTES, follow_links=True))
    except (UnreadableFile, ValueError) as error:
        raise InvalidFile(
            f"the plan '{name}' (named by {VARIABLE}) can't be carried out, and nothing was loaded: {error}; "
            f"let bin/resume.sh write a new one"
        ) from error


def _parse(name: str, fields: Any) -> TrainerPlan:
    _require(isinstance(fields, dict), "it is not an object")
    version, step, params = fields.get("version"), fields.get("step"), fields.get("new_params", "module")
    _require(type(version) is int and version == VERSION, f"its version is {_short(version)}, not {VERSION}")
    _require(
        step is None or (type(step) is int and 0 <= step < 10**12), f"its step {_short(step)} is not a whole number"
    )
    _require(params in NEW_PARAMS, f"its new_params {_short(params)} is not one of {', '.join(NEW_PARAMS)}")
    components = fields.get("components")
    _require(isinstance(components, dict) and "weights" in components, "its components do not name the weights")
    scale = fields.get("lr_scale")
    _require(scale is None or isinstance(scale, dict), "its lr_scale is not an object")
    return TrainerPlan(
        name,
        _checkpoint(fields.get("checkpoint")),
        step,
        {str(key): _decision(str(key), value) for key, value in components.items()},
        params,
        None if scale is None else lr_scale.from_fields(scale.get("factor"), scale.get("ramp")),
        tuple(_rate(one) for one in _list(fields.get("learning_rates"), "its learning_rates are not a list")),
        _left_out(fields.get("recovery"), step or 0),
    )


def _left_out(recovery: Any, step: int) -> LeftOut:
    if recovery is None:
        return LeftOut()
    _require(isinstance(recovery, dict), "its recovery is not an object")
    steps, skipped = recovery.get("skip_data_steps"), recovery.get("skip_eval_step")
    for value in (steps, skipped):
        is_count = value is None or (type(value) is int and 0 <= value < 10**12)
        _require(is_count, f"what its recovery leaves out, {_short(value)}, is not a whole number")
    return LeftOut(step, steps or 0, skipped)


def _rate(value: Any) -> PlannedRate:
    _require(isinstance(value, dict), "one of its learning_rates is not an object")
    not_numbers = f"the rates of {_short(value.get('key'))} are not numbers"
    base, after = value.get("base"), _list(value.get("after"), not_numbers)
    numbers = [*after, *([] if base is None else [base])]
    _require(all(type(one) in (int, float) and abs(one) < 1e300 for one in numbers), not_numbers)
    return PlannedRate(str(value.get("key"))[:MAX_WHY], base, tuple(map(float, after)))


def _list(value: Any, otherwise: str) -> list[Any]:
    _require(value is None or isinstance(value, list), otherwise)
    return value or []


def _decision(name: str, value: Any) -> Decision:
    kind, dot, _ = name.partition(".")
    _require(
        kind in ALLOWED and (not dot or kind == "optimizer"), f"it has a component {_short(name)}, which there is not"
    )
    _require(isinstance(value, dict), f"its component {_short(name)} is not an object")
    action, why = value.get("action"), value.get("why", "")
    _require(
        action in ALLOWED[kind],
        f"its action {_short(action)} of {_short(name)} is not one of {', '.join(ALLOWED[kind])}",
    )
    _require(isinstance(why, str), f"its reason for {_short(name)} is not a text")
    # It goes to a terminal and into the journal.
    return Decision(
        action,
        "".join(letter if letter.isprintable() else " " for letter in why[:MAX_WHY]),
        value.get("forced") is True,
    )


def _checkpoint(value: Any) -> str | None:
    path = value.get("path") if isinstance(value, dict) else None
    return path if isinstance(path, str) and path and "\0" not in path else None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _short(value: Any) -> str:
    text = str(value)
    return f"'{text if len(text) <= 40 else text[:40] + '...'}'"
