"""What is done with each component of a checkpoint, decided before anything is loaded: by the plan, else by the
trainer's arguments, else by what the checkpoint holds.

An argument that asks for something that the plan does not do is an error that names both. Pure: reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..basics.actions import ABSENT, COUNTERS, FRESH, KEYS, LOAD, PARTIAL, REFIT, RESET, SWAP
from ..basics.errors import InvalidFile, KitError
from .partial_weights import NEW_PARAMS
from .saved_optimizers import SavedOptimizer, held, is_lion, match, named
from .trainer_plan import Decision, TrainerPlan

OPTIMIZER_POLICIES = ("load", "reset", "swap_to_lion")
SCHEDULE_POLICIES = ("load", "reset")
UNUSED = Decision(ABSENT, "not used here")
LEFT = Decision(ABSENT, "not used here, left in the checkpoint")
DISABLED = Decision(ABSENT, "not enabled here")
NOT_HELD = Decision(ABSENT, "the checkpoint has none, starts as made")


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


def decide(
    content: Mapping[str, Any], parts: dict[str, Any], wishes: Wishes, plan: TrainerPlan | None, changes: list[str]
) -> dict[str, Decision]:
    """Decide for every component.

    Args:
        content: the checkpoint.
        parts: 'optimizer', 'scheduler', 'scaler', 'ema', 'swa' -> the trainer's object, None where there is none.
        wishes: the trainer's arguments.
        plan: the launcher's plan of this load; None without.
        changes: what an AMP scaler depends on and is another version now, in words.

    Returns:
        'weights', 'optimizer' (or 'optimizer.<name>' for each of several), 'scheduler', ... -> decision.

    Raises:
        KitError: plan and arguments contradict each other.
        InvalidFile: the plan loads what the checkpoint does not hold.
    """
    found = {"weights": Decision(PARTIAL if wishes.allow_partial else LOAD)}
    found |= _optimizers(dict(content), parts["optimizer"], wishes, plan)
    for name in ("scheduler", "scaler", "ema", "swa"):
        found[name] = _component(name, content.get(f"{name}_state_dict"), parts[name])
    if found["scheduler"].action == LOAD:
        found["scheduler"] = _schedule(found, wishes)
    elif wishes.schedule == "reset" and parts["scheduler"] is not None:
        found["scheduler"] = Decision(REFIT, "schedule_policy='reset'")
    if found["scaler"].action == LOAD:
        found["scaler"] = _scaler(content["scaler_state_dict"], parts["scaler"], changes)
    found["counters"] = _counters(content)
    found["rng"] = _rng(content, wishes)
    found["data_position"] = Decision(LOAD) if content.get("data_state") is not None else NOT_HELD
    if plan is None:
        return found
    _refuse_contradictions(wishes, plan, held(dict(content)))
    return {name: _planned(name, own, content, plan) for name, own in found.items()}


def several(optimizer: Any, key: str) -> str:
    """Return the component's name of an optimizer: 'optimizer', or 'optimizer.<name>' of several."""
    return f"optimizer.{key}" if isinstance(optimizer, dict) else "optimizer"


def _optimizers(content: dict[str, Any], optimizer: Any, wishes: Wishes, plan: Any) -> dict[str, Decision]:
    saved = match(content, optimizer)
    if plan is not None and saved and not held(content):
        _refuse_absent("optimizer", _of_optimizer(plan, "", None), plan)
    found: dict[str, Decision] = {} if saved else {"optimizer": LEFT if held(content) else UNUSED}
    for key, one in saved.items():
        found[several(optimizer, key)] = _optimizer(named(optimizer)[key], one, wishes, _of_optimizer(plan, key, one))
    used = {one.key for one in saved.values() if one is not None}
    if optimizer is not None:
        found |= {f"optimizer.{key}": LEFT for key in held(content) if key and key not in used}
    return found


def _optimizer(own: Any, saved: SavedOptimizer | None, wishes: Wishes, planned: Decision | None) -> Decision:
    if planned is not None and (saved is not None or planned.action in (RESET, SWAP)):
        return planned
    if wishes.optimizer == "reset":
        return Decision(RESET, "optimizer_policy='reset'")
    if saved is None:
        return NOT_HELD
    kind = type(own).__name__
    # A swap happens once: the next checkpoint holds the new optimizer, and its state is loaded.
    if wishes.optimizer == "swap_to_lion" and is_lion(own) and saved.kind != kind:
        return Decision(SWAP, f"optimizer_policy='swap_to_lion', the checkpoint holds {saved.kind or 'another one'}")
    return Decision(LOAD)


def _of_optimizer(plan: TrainerPlan | None, key: str, saved: SavedOptimizer | None) -> Decision | None:
    """Return what the plan does with an optimizer; the launcher knows it by its name in the checkpoint."""
    if plan is None:
        return None
    names = [f"optimizer.{saved.key}"] if saved is not None and saved.key else []
    names += [f"optimizer.{key}", "optimizer"]
    return next((plan.components[name] for name in names if name in plan.components), None)


def _component(name: str, state: Any, own: Any) -> Decision:
    if own is None:
        return LEFT if state else UNUSED
    if name == "scaler" and not getattr(own, "is_enabled", lambda: True)():
        return DISABLED
    if state:
        return Decision(LOAD)
    # Protocol §9: enabled in the middle of a run, it starts from the current weights.
    return Decision(FRESH, "the checkpoint has none") if name in ("ema", "swa") else NOT_HELD


def _schedule(found: Mapping[str, Decision], wishes: Wishes) -> Decision:
    if wishes.schedule == "reset":
        return Decision(REFIT, "schedule_policy='reset'")
    if any(one.action == SWAP for name, one in found.items() if name.startswith("optimizer")):
        return Decision(REFIT, "the optimizer is swapped; the schedule keeps its phase")
    return Decision(LOAD)


def _scaler(state: Any, own: Any, changes: list[str]) -> Decision:
    if changes:
        return Decision(RESET, "; ".join(changes))
    if lacks_scale(state, own):
        return Decision(RESET, "the checkpoint's scaler has no 'scale'")
    return Decision(LOAD)


def lacks_scale(state: Any, own: Any) -> bool:
    """Whether a scaler's state has no scale where the trainer's keeps one (facebookresearch/fairseq2#1346)."""
    keeps_one = hasattr(own, "state_dict") and "scale" in own.state_dict()
    return keeps_one and not (isinstance(state, dict) and isinstance(state.get("scale"), (int, float)))


def _counters(content: Mapping[str, Any]) -> Decision:
    absent = [key for key in COUNTERS if content.get(key) is None]
    return Decision(LOAD, f"but for {', '.join(absent)}, which the checkpoint does not have" if absent else "")


def _rng(content: Mapping[str, Any], wishes: Wishes) -> Decision:
    if not wishes.restore_rng:
        return Decision(RESET, "restore_rng=False")
    if content.get("rng_state") is None:
        return Decision(ABSENT, "the checkpoint has none, continues from the seed")
    return Decision(LOAD)


def _planned(name: str, own: Decision, content: Mapping[str, Any], plan: TrainerPlan) -> Decision:
    """Return the plan's decision; what the trainer does not use at all stays absent, whatever the plan says."""
    planned = plan.components.get(name)
    if name.startswith("optimizer") or planned is None:
        return own  # the plan has been asked for each optimizer already
    if own in (UNUSED, LEFT, DISABLED) or (own.action == ABSENT and planned.action == ABSENT):
        return own
    if planned.action == LOAD and own.action == LOAD:
        return own
    if not any(content.get(key) for key in KEYS[name]):
        _refuse_absent(name, planned, plan)
    return planned


def _refuse_absent(name: str, planned: Decision | None, plan: TrainerPlan) -> None:
    if planned is not None and planned.action in (LOAD, PARTIAL):
        raise InvalidFile(
            f"the plan '{plan.path}' loads {name}, and the checkpoint has none; nothing was loaded: "
            f"let bin/resume.sh write a new plan"
        )


def _refuse_contradictions(wishes: Wishes, plan: TrainerPlan, saved: dict[str, SavedOptimizer]) -> None:
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
