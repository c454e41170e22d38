"""resume_plan.json, read back: by the trainer that carries it out, by the sidecar that checks it, by a later plan.

Every field that any of them uses is checked, and nothing is taken of a file in which one is broken. Its writer is
start/plan, its form schemas/plan.schema.json.
Try it: `PYTHONPATH=lib python -c "from resumekit.policy import plan_file; from pathlib import Path;
print(plan_file.read(Path('runs/RUN_ID/resume_plan.json')))"`
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base.files import read_json
from ..base.imports import Any, NamedTuple
from ..base.terms import ABSENT, ALLOWED, NEW_PARAMS
from ..base.values import count, finite, integer, listed, mapping, string
from . import lr_scale
from .decide import ASKED, PLANNED, PLANNED_AS_ASKED, Decision, kind_of
from .lr_scale import LrScale

VERSION = 1
MAX_PLAN_BYTES = 4 << 20
MAX_WHY = 500
# Where a change comes from.
CONFIG, ENVIRONMENT, RECOVERY = "config", "environment", "recovery"


class PlannedRate(NamedTuple):
    """A base learning rate and what the plan makes of it in the next steps; after is empty where it is not known.

    `optimizer` names the one of several whose rate it is; None for that of `optimizer.name`.
    """

    key: str
    base: float | None
    after: tuple[float, ...]
    optimizer: str | None = None


class PlannedHandedRate(NamedTuple):
    """The rate that a trainer is handed as an argument, and the one before it; None where that was not known."""

    lr: float
    before: float | None


class PlannedChange(NamedTuple):
    """A key that differs from the run that holds the checkpoint, and whether by CONFIG, ENVIRONMENT or RECOVERY."""

    key: str
    origin: str = CONFIG


class PlanFile(NamedTuple):
    """A plan.

    Args:
        path: its own file, for messages.
        step: optimizer steps done in the checkpoint; None where it does not say.
        checkpoint: the file that it is about; None where it does not say.
        holder: the run that the file lies in; None where it does not say.
        components: 'weights', 'optimizer' or 'optimizer.<name>', ... -> decision.
        changes: what differs.
        new_params: 'module' or 'kaiming'.
        lr_scale: from here on; None where it does not say.
        rates: the learning rates of the next steps, to check them by.
        phase: of the schedule in the next step; None where it cannot be known.
        optimizer: the one that the run is to train with, as the config spells it; None where it does not say.
        skip_data_steps, skip_eval_step: what a recovery leaves out; 0 and None for nothing.
        handed: the rate that the trainer is handed as an argument; None for none.
    """

    path: str
    step: int | None
    checkpoint: str | None
    holder: str | None
    components: dict[str, Decision]
    changes: tuple[PlannedChange, ...] = ()
    new_params: str = "module"
    lr_scale: LrScale | None = None
    rates: tuple[PlannedRate, ...] = ()
    phase: str | None = None
    optimizer: str | None = None
    skip_data_steps: int = 0
    skip_eval_step: int | None = None
    handed: PlannedHandedRate | None = None

    def action(self, component: str) -> str | None:
        """Return what is done with a component; None where the plan does not name it."""
        decision = self.components.get(component)
        return decision and decision.action


def read(path: Path, *, follow_links: bool = False) -> PlanFile:
    """Read a plan; the last argument is `files.read_json`'s.

    Raises:
        UnreadableFile: there is none that can be read.
        ValueError: a field is not what it must be; the message says which.
    """
    return parse(str(path), read_json(path, MAX_PLAN_BYTES, follow_links=follow_links))


def is_about(planned: str | None, found: Any, run_dir: Path | None) -> bool:
    """Whether a loaded file is the planned one; also where the plan, or the load, does not say which it is.

    A copy inside the run's own folder counts (for trainers that resume from a fixed name); a teacher's checkpoint that
    the trainer loads besides does not.

    Args:
        planned: a plan's `checkpoint`.
        found: the path that was loaded, as the trainer or its journal names it.
        run_dir: the run's folder; None where it is not known.
    """
    path = _path(os.fspath(found)) if isinstance(found, (str, os.PathLike)) else None
    if planned is None or path is None:
        return True
    try:
        place, own = os.path.realpath(path), os.path.join(os.path.realpath(run_dir), "") if run_dir else None
        return (own is not None and place.startswith(own)) or place == os.path.realpath(planned)
    except ValueError:  # half of a character
        return True


def parse(name: str, fields: Any) -> PlanFile:
    """Return the plan that a file holds. Raises ValueError as `read`."""
    _require(isinstance(fields, dict), "it is not an object")
    version, step, params = fields.get("version"), fields.get("step"), fields.get("new_params", "module")
    _require(integer(version) == VERSION, f"its version is {_short(version)}, not {VERSION}")
    _require(step is None or count(step) is not None, f"its step {_short(step)} is not a whole number")
    _require(params in NEW_PARAMS, f"its new_params {_short(params)} is not one of {', '.join(NEW_PARAMS)}")
    components = fields.get("components")
    _require(isinstance(components, dict) and "weights" in components, "its components do not name the weights")
    scale, checkpoint = fields.get("lr_scale"), mapping(fields.get("checkpoint"))
    _require(scale is None or isinstance(scale, dict), "its lr_scale is not an object")
    return PlanFile(
        path=name,
        step=step,
        checkpoint=_path(checkpoint.get("path")),
        holder=_text(checkpoint.get("run_id")),
        components={str(key): _decision(str(key), value) for key, value in components.items()},
        changes=tuple(map(_change, _list(fields.get("changes"), "its changes are not a list"))),
        new_params=params,
        lr_scale=None if scale is None else lr_scale.from_fields(scale.get("factor"), scale.get("ramp")),
        rates=tuple(_rate(one) for one in _list(fields.get("learning_rates"), "its learning_rates are not a list")),
        phase=_text(fields.get("phase")),
        optimizer=_text(fields.get("optimizer")),
        handed=_handed(fields.get("handed_rate")),
        **_left_out(fields.get("recovery")),
    )


def _left_out(recovery: Any) -> dict[str, Any]:
    if recovery is None:
        return {}
    _require(isinstance(recovery, dict), "its recovery is not an object")
    steps, skipped = recovery.get("skip_data_steps"), recovery.get("skip_eval_step")
    for value in (steps, skipped):
        _require(
            value is None or count(value) is not None,
            f"what its recovery leaves out, {_short(value)}, is not a whole number",
        )
    return {"skip_data_steps": steps or 0, "skip_eval_step": skipped}


def _change(value: Any) -> PlannedChange:
    _require(isinstance(value, dict), "one of its changes is not an object")
    return PlannedChange(str(value.get("key"))[:MAX_WHY], str(value.get("origin", CONFIG)))


def _rate(value: Any) -> PlannedRate:
    _require(isinstance(value, dict), "one of its learning_rates is not an object")
    not_numbers = f"the rates of {_short(value.get('key'))} are not numbers"
    base, after = value.get("base"), _list(value.get("after"), not_numbers)
    _require((base is None or finite(base) is not None) and listed(finite)(after) is not None, not_numbers)
    owner = value.get("optimizer")
    _require(owner is None or string(owner) is not None, f"the optimizer of {_short(value.get('key'))} is not a name")
    return PlannedRate(str(value.get("key"))[:MAX_WHY], base, tuple(map(float, after)), owner)


def _handed(value: Any) -> PlannedHandedRate | None:
    if value is None:
        return None
    _require(isinstance(value, dict), "its handed_rate is not an object")
    lr, before = value.get("lr"), value.get("before")
    is_sound = finite(lr) is not None and (before is None or finite(before) is not None)
    _require(is_sound, "its handed_rate has no rate")
    return PlannedHandedRate(float(lr), None if before is None else float(before))


def _decision(name: str, value: Any) -> Decision:
    kind, is_one = kind_of(name), "." not in name or name.startswith("optimizer.")
    _require(kind in ALLOWED and is_one, f"it has a component {_short(name)}, which there is not")
    _require(isinstance(value, dict), f"its component {_short(name)} is not an object")
    action, why = value.get("action"), value.get("why", "")
    # Of a trainer that loads by itself the weights may lie under a name of its own.
    allowed = (*ALLOWED[kind], ABSENT) if kind == "weights" else ALLOWED[kind]
    choices = ", ".join(ALLOWED[kind])
    _require(action in allowed, f"its action {_short(action)} of {_short(name)} is not one of {choices}")
    _require(string(why) is not None, f"its reason for {_short(name)} is not a text")
    # It goes to a terminal and into the journal.
    words = "".join(letter if letter.isprintable() else " " for letter in why[:MAX_WHY])
    code = PLANNED_AS_ASKED if value.get("code") == ASKED else PLANNED
    return Decision(action, words, code, value.get("forced") is True)


def _list(value: Any, otherwise: str) -> list[Any]:
    _require(value is None or isinstance(value, list), otherwise)
    return value or []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isprintable() else None


def _path(value: Any) -> str | None:
    return value if isinstance(value, str) and value and "\0" not in value else None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _short(value: Any) -> str:
    text = str(value)
    return f"'{text if len(text) <= 40 else text[:40] + '...'}'"
