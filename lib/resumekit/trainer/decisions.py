"""What is done with each component, decided before anything is loaded: by the plan, through policy/decide."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import InvalidFile, KitError
from ..base.files import UnreadableFile
from ..base.imports import Any
from ..base.paths import RunPaths
from ..base.terms import ABSENT, COUNTERS, KEYS, LOAD, NEW_PARAMS, PARTIAL, REFIT, RESET, SWAP
from ..policy import decide as table
from ..policy import plan_file
from ..policy.decide import Asked, Case, Cost, Decision
from ..policy.plan_file import PlanFile
from .optimizer_state import LION, SavedOptimizer, held_optimizers, is_lion, match_optimizers, named_optimizers
from .resume_bundle import Skips
from .trainer_env import run_dir

VARIABLE = "RESUMEKIT_PLAN"


def read_plan() -> PlanFile | None:
    """Return the plan of this run; None of one that was not resumed by the launcher.

    Raises:
        InvalidFile: it can't be read, or a field is not what it must be.
    """
    name = file_name()
    if name is None:
        return None
    try:
        plan = plan_file.read(Path(name), follow_links=True)
        if plan.action("weights") == ABSENT:
            raise ValueError("it loads no weights")
        return plan
    except (UnreadableFile, ValueError) as error:
        raise InvalidFile(
            f"the plan '{name}' ({_named_by()}) can't be carried out, and nothing was loaded: {error}; "
            f"let bin/resume.sh write a new one"
        ) from error


def file_name() -> str | None:
    """Return the path of this run's plan; None of a run that was not resumed by the launcher."""
    if name := os.environ.get(VARIABLE):
        return name
    folder = run_dir()
    path = None if folder is None else RunPaths(folder).resume_plan
    return str(path) if path is not None and os.path.lexists(path) else None


def _named_by() -> str:
    return f"named by {VARIABLE}" if os.environ.get(VARIABLE) else "in the run's folder"


def skips_by(plan: PlanFile | None) -> Skips:
    """Return what a plan leaves out of data and evaluations."""
    if plan is None or not (plan.skip_data_steps or plan.skip_eval_step is not None):
        return Skips()
    return Skips(plan.step or 0, plan.skip_data_steps, plan.skip_eval_step)


# What is done with each component, decided before anything is loaded: policy/decide, asked by the trainer.
#
# The case is made of the checkpoint, of the trainer's objects and arguments, and of the plan. An argument that asks
# for something that the plan does not do is an error that names both. Pure: reads nothing.

OPTIMIZER_POLICIES = ("load", "reset", "swap_to_lion")
SCHEDULE_POLICIES = ("load", "reset")
NOT_USED = "not used here"
LEFT = "not used here, left in the checkpoint"
DISABLED = "not enabled here"
# The trainer's objects beside model and optimizer.
OBJECTS = ("scheduler", "scaler", "ema", "swa")


@dataclass(frozen=True)
class Wishes:
    """The trainer's explicit arguments (protocol §13)."""

    allow_partial: bool = False
    optimizer: str = "load"
    schedule: str = "load"
    new_params: str = "module"
    restore_rng: bool = True

    def check(self) -> None:
        """Raise KitError for a policy that there is not."""
        for name, value, known in (
            ("optimizer_policy", self.optimizer, OPTIMIZER_POLICIES),
            ("schedule_policy", self.schedule, SCHEDULE_POLICIES),
            ("new_params", self.new_params, NEW_PARAMS),
        ):
            if value not in known:
                raise KitError(f"unknown {name} '{value}': it is one of {', '.join(known)}")

    def as_asked(self) -> dict[str, Asked]:
        """Return the arguments that say something else than their default; a swap is none: the checkpoint decides."""
        asked = (
            ("weights", self.allow_partial, PARTIAL, "allow_partial_weights=True"),
            ("optimizer", self.optimizer == "reset", RESET, "optimizer_policy='reset'"),
            ("scheduler", self.schedule == "reset", REFIT, "schedule_policy='reset'"),
            ("rng", not self.restore_rng, RESET, "restore_rng=False"),
        )
        return {kind: Asked(action, where) for kind, is_asked, action, where in asked if is_asked}


def decide(
    content: Mapping[str, Any], parts: dict[str, Any], wishes: Wishes, plan: PlanFile | None, costs: Sequence[Cost]
) -> dict[str, Decision]:
    """Decide for every component.

    Args:
        content: the checkpoint.
        parts: 'optimizer', 'scheduler', 'scaler', 'ema', 'swa' -> the trainer's object, None where there is none.
        wishes: the trainer's arguments.
        plan: the launcher's plan of this load; None without.
        costs: of what differs between the machine of the checkpoint and this one.

    Returns:
        'weights', 'optimizer' (or 'optimizer.<name>' for each of several), 'scheduler', ... -> decision.

    Raises:
        KitError: plan and arguments contradict each other.
        InvalidFile: the plan loads what the checkpoint does not hold.
    """
    saved = match_optimizers(dict(content), parts["optimizer"])
    if plan is not None:
        _refuse_contradictions(wishes, plan, held_optimizers(dict(content)))
    holds = {several(parts["optimizer"], key): one is not None for key, one in saved.items()}
    unused = _unused(content, parts, saved)
    holds = {"weights": True, **holds, **dict.fromkeys(unused, False)}
    holds |= {name: bool(content.get(f"{name}_state_dict")) for name in OBJECTS}
    holds |= {"counters": True, "rng": content.get("rng_state") is not None}
    holds["data_position"] = content.get("data_state") is not None
    case = Case(
        holds=holds, costs=costs, swaps=_swaps(parts["optimizer"], saved, wishes), asked=wishes.as_asked(),
        unfit=_unfit(content, parts), unused=unused,
        planned=_planned(content, parts["optimizer"], saved, plan, unused),
    )  # fmt: skip
    found = table.decide(case)
    if found["counters"].action == LOAD and (absent := [key for key in COUNTERS if content.get(key) is None]):
        words = f"but for {', '.join(absent)}, which the checkpoint does not have"
        found["counters"] = found["counters"]._replace(why=words)
    return found


def several(optimizer: Any, key: str) -> str:
    """Return the component's name of an optimizer: 'optimizer', or 'optimizer.<name>' of several."""
    return f"optimizer.{key}" if isinstance(optimizer, dict) else "optimizer"


def _unused(
    content: Mapping[str, Any], parts: dict[str, Any], saved: Mapping[str, SavedOptimizer | None]
) -> dict[str, str]:
    """Return what the trainer does not use, and whether the checkpoint has it all the same."""
    in_checkpoint = held_optimizers(dict(content))
    found = {} if saved else {"optimizer": LEFT if in_checkpoint else NOT_USED}
    if parts["optimizer"] is not None:
        taken = {one.key for one in saved.values() if one is not None}
        found |= {f"optimizer.{key}": LEFT for key in in_checkpoint if key and key not in taken}
    for name in OBJECTS:
        if parts[name] is None:
            found[name] = LEFT if content.get(f"{name}_state_dict") else NOT_USED
    if parts["scaler"] is not None and not getattr(parts["scaler"], "is_enabled", lambda: True)():
        found["scaler"] = DISABLED
    return found


def _swaps(optimizer: Any, saved: Mapping[str, SavedOptimizer | None], wishes: Wishes) -> dict[str, str]:
    """Return the optimizers that a Lion takes over from, as the argument wants it.

    A swap happens once: the next checkpoint holds the new optimizer, and its state is loaded.
    """
    if wishes.optimizer != "swap_to_lion":
        return {}
    return {
        several(optimizer, key): f"optimizer_policy='swap_to_lion', the checkpoint holds {one.kind or 'another one'}"
        for key, one in saved.items()
        if one is not None and is_lion(own := named_optimizers(optimizer)[key]) and not _is_lions(one, own)
    }


def _is_lions(saved: SavedOptimizer, own: Any) -> bool:
    return saved.kind == type(own).__name__ or (saved.kind is None and saved.family == LION)


def _unfit(content: Mapping[str, Any], parts: dict[str, Any]) -> dict[str, str]:
    is_unfit = lacks_scale(content.get("scaler_state_dict"), parts["scaler"])
    return {"scaler": "the checkpoint's scaler has no 'scale'"} if is_unfit else {}


def lacks_scale(state: Any, own: Any) -> bool:
    """Whether a scaler's state has no scale where the trainer's keeps one (facebookresearch/fairseq2#1346)."""
    keeps_one = hasattr(own, "state_dict") and "scale" in own.state_dict()
    return keeps_one and not (isinstance(state, dict) and isinstance(state.get("scale"), (int, float)))


def _planned(
    content: Mapping[str, Any], optimizer: Any, saved: Mapping[str, SavedOptimizer | None], plan: PlanFile | None,
    unused: Mapping[str, str],
) -> dict[str, Decision] | None:  # fmt: skip
    """Return the plan's decisions by the trainer's names; None without a plan. Raises InvalidFile as `decide`."""
    if plan is None:
        return None
    found: dict[str, Decision] = {}
    if saved and not held_optimizers(dict(content)):
        _refuse_absent("optimizer", _of_optimizer(plan, "", None), plan)
    for key, one in saved.items():
        decision = _of_optimizer(plan, key, one)
        if decision is not None and (one is not None or decision.action in (RESET, SWAP)):
            found[several(optimizer, key)] = decision
    for name, decision in plan.components.items():
        if name.startswith("optimizer") or name in unused:
            continue
        found[name] = decision
        # Counters that it lacks begin anew, or are the plan's.
        if name != "counters" and not any(content.get(key) for key in KEYS[name]):
            _refuse_absent(name, decision, plan)
    return found


def _of_optimizer(plan: PlanFile, key: str, saved: SavedOptimizer | None) -> Decision | None:
    """Return what the plan does with an optimizer; the launcher knows it by its name in the checkpoint."""
    names = [f"optimizer.{saved.key}"] if saved is not None and saved.key else []
    names += [f"optimizer.{key}", "optimizer"]
    return next((plan.components[name] for name in names if name in plan.components), None)


def _refuse_absent(name: str, planned: Decision | None, plan: PlanFile) -> None:
    if planned is not None and planned.action in (LOAD, PARTIAL):
        raise InvalidFile(
            f"the plan '{plan.path}' loads {name}, and the checkpoint has none; nothing was loaded: "
            f"let bin/resume.sh write a new plan"
        )


def _refuse_contradictions(wishes: Wishes, plan: PlanFile, saved: dict[str, SavedOptimizer]) -> None:
    """An argument that says something else than its default, and something else than the plan, is never passed over."""
    actions = {name: one.action for name, one in plan.components.items()}
    of_optimizers = {action for name, action in actions.items() if name.partition(".")[0] == "optimizer"}
    holds_lion = any("lion" in (one.kind or "").lower() for one in saved.values())
    scheduler = actions.get("scheduler", REFIT)
    asked = (
        ("allow_partial_weights=True", wishes.allow_partial, actions["weights"] != RESET, "weights"),
        ("optimizer_policy='reset'", wishes.optimizer == "reset", of_optimizers <= {RESET, ABSENT}, "optimizer"),
        ("optimizer_policy='swap_to_lion'", wishes.optimizer == "swap_to_lion", SWAP in of_optimizers or holds_lion,
         "optimizer"),
        ("schedule_policy='reset'", wishes.schedule == "reset", scheduler in (REFIT, RESET, ABSENT), "scheduler"),
        ("restore_rng=False", not wishes.restore_rng, actions.get("rng", RESET) != LOAD, "rng"),
        (f"new_params='{wishes.new_params}'", wishes.new_params != "module", wishes.new_params == plan.new_params,
         "new_params"),
    )  # fmt: skip
    for argument, is_asked, agrees, name in asked:
        if is_asked and not agrees:
            planned = [f"{key}: {action}" for key, action in actions.items() if key.partition(".")[0] == name]
            raise KitError(
                f"the trainer calls load_resume_bundle with {argument}, and the plan '{plan.path}' says "
                f"{', '.join(planned) or f'new_params: {plan.new_params}'}; nothing was loaded: leave the argument "
                f"out, or plan it (resume.{name} in the config)"
            )
