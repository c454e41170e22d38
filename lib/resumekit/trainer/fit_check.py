"""Whether a checkpoint's content fits the objects that it is to be loaded into; asked before anything is loaded.

Works out for each component what exactly will be loaded, and puts all that stands against it into one message. Changes
none of the trainer's objects; reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import InvalidFile
from ..base.imports import Any
from ..base.terminal import first_few
from ..base.terms import ABSENT, FRESH, LOAD, PARTIAL, REFIT, RESET, SWAP
from ..checkpoint import parameters
from ..checkpoint.parameters import WeightFit
from ..policy.decide import NOT_HELD, Decision, keeps_the_plans_words
from . import learning_rate, optimizer_state, sharded_state, weights
from .checkpoint_content import parameter_names
from .decisions import lacks_scale, several
from .optimizer_state import Refitted, SavedOptimizer, is_lion, is_state, match_optimizers, named_optimizers

MAX_SHOWN = 8
_SWAP_HINT = (
    "a swap leaves that state out (optimizer.name in the config, or optimizer_policy='swap_to_lion'), "
    "optimizer_policy='reset' does too"
)


@dataclass(frozen=True)
class Matched:
    """What will be loaded.

    Args:
        weights: how the checkpoint's weights fit the model.
        optimizers: name among several, '' for one -> the state for it; only those that are loaded.
        decisions: component -> what is done, with its counts.
    """

    weights: WeightFit
    optimizers: dict[str, Refitted] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)


def check(
    content: dict[str, Any], model: Any, decided: dict[str, Decision], parts: dict[str, Any],
    lion_wanted_by: str | None, path: Path,
) -> Matched:  # fmt: skip
    """Compare the checkpoint with the trainer's objects.

    Args:
        content: the checkpoint.
        decided: component -> what is to be done with it.
        parts: component -> object.
        lion_wanted_by: what wants a Lion in the place of another optimizer, for a message; None where nothing does.
        path: for the message.

    Raises:
        InvalidFile: names are missing or unexpected, shapes differ, too little fits, the optimizer is another one, or a
            component can't be brought to what is decided.
    """
    found = Matched(weights.fit_weights(content["model_state_dict"], sharded_state.form_of(model)), {}, dict(decided))
    problems = _weights(found)
    problems += _optimizers(found, content, model, parts["optimizer"], lion_wanted_by)
    if _groups_have_changed(found, content, parts) and not learning_rate.refit_refusal(parts["scheduler"]):
        # Its state has one entry per group; the same schedule placed at the same step is as good.
        found.decisions["scheduler"] = Decision(REFIT, "the optimizer has other groups than in the checkpoint")
        found.decisions.update({name: one for name, one in decided.items() if name.startswith("optimizer")})
        _optimizers(found, content, model, parts["optimizer"], lion_wanted_by)
    if decided["scheduler"].action == REFIT and (reason := learning_rate.refit_refusal(parts["scheduler"])):
        problems.append(reason)
    if decided["scaler"].action == LOAD and lacks_scale(content["scaler_state_dict"], parts["scaler"]):
        problems.append("its scaler has no 'scale'; reset it (resume.scaler=reset), it finds its scale again by itself")
    for name in ("ema", "swa"):
        problems += _average(name, found, content, model, parts[name])
    if problems:
        raise InvalidFile(f"checkpoint '{path}' does not fit, and nothing was loaded: " + "; ".join(problems))
    return found


def differences(fit: WeightFit) -> list[str]:
    """Return what keeps a state from being loaded strictly, one line per kind."""
    lines = []
    if fit.missing:
        lines.append(f"missing in it: {_listed(fit.missing)}")
    if fit.unexpected:
        lines.append(f"unexpected in it: {_listed(fit.unexpected)}")
    if fit.reshaped:
        lines.append(f"other shapes: {_listed(tuple(f'{name} {shapes}' for name, shapes in fit.reshaped.items()))}")
    return lines


def _weights(found: Matched) -> list[str]:
    decision, fit = found.decisions["weights"], found.weights
    if decision.action == LOAD:
        lines = differences(fit)
        return [*lines, "allow_partial_weights=True, or resume.weights=partial, loads what fits"] if lines else []
    if decision.action == PARTIAL:
        # Allowed by the trainer and not needed: loaded whole. Planned: said as it was planned.
        is_needed = keeps_the_plans_words(decision) or not fit.is_whole
        found.decisions["weights"] = decision._replace(why=fit.counts()) if is_needed else Decision(LOAD)
        return list(filter(None, [fit.refusal(is_forced=decision.forced)]))
    return []


def _optimizers(found: Matched, content: Any, model: Any, optimizer: Any, lion_wanted_by: str | None) -> list[str]:
    own, saved = named_optimizers(optimizer), match_optimizers(content, optimizer)
    problems = []
    if lion_wanted_by is not None and own and not any(map(is_lion, own.values())):
        classes = ", ".join(type(one).__name__ for one in own.values())
        problems.append(
            f"{lion_wanted_by} needs a Lion, and the trainer passes {classes}: make "
            f"lion_pytorch.Lion(parameters, lr=..., weight_decay=0.01) in its place and pass that"
        )
    shapes = {name: getattr(value, "shape", None) for name, value in content["model_state_dict"].items()}
    for key, one in own.items():
        name = several(optimizer, key)
        problems += _optimizer(found, name, key, one, saved[key], model, shapes)
    return problems


def _is_the_same(saved: SavedOptimizer, kind: str) -> bool:
    if saved.kind is not None:
        return saved.kind == kind
    return saved.family is not None and saved.family == parameters.family_of_class(kind)


def _groups_have_changed(found: Matched, content: Any, parts: dict[str, Any]) -> bool:
    """Whether a schedule is to be loaded into an optimizer whose groups are not those that it was made for."""
    if found.decisions["scheduler"].action != LOAD:
        return False
    own, saved = named_optimizers(parts["optimizer"]), match_optimizers(content, parts["optimizer"])
    counts = [
        len(one.state["param_groups"]) != len(own[key].param_groups)
        for key, one in saved.items()
        if one is not None and is_state(one.state)
    ]
    return any(counts) or not all(one.has_same_groups for one in found.optimizers.values())


def _optimizer(
    found: Matched, name: str, key: str, own: Any, saved: SavedOptimizer | None, model: Any, shapes: dict[str, Any]
) -> list[str]:
    decision, kind = found.decisions[name], sharded_state.class_name(own)
    label = f"optimizer '{key}'" if key else "optimizer"
    if decision.action == SWAP and saved is not None and _is_the_same(saved, kind):
        return [f"{label}: the plan swaps {kind} for another one, and the trainer passes {kind} again"]
    if decision.action not in (LOAD, PARTIAL) or saved is None:
        return []
    if saved.kind is not None and saved.kind not in (kind, type(own).__name__):
        # Moments of one are meaningless in another one (pytorch/pytorch#7499).
        return [f"{label}: it holds the state of {saved.kind}, the trainer uses {kind}; {_SWAP_HINT}"]
    if not is_state(saved.state):
        return [f"{label}: no state in it"]
    families = saved.family, parameters.family_of_class(kind)
    if None not in families and families[0] != families[1]:
        return [f"{label}: by its entries it holds the state of {families[0]}, the trainer uses {kind}; {_SWAP_HINT}"]
    is_loaded = found.decisions["scheduler"].action == LOAD
    whole, names = sharded_state.with_whole_shapes(own, model), parameter_names(model, own)
    refitted = optimizer_state.fit_state(saved, whole, names, shapes, schedule_is_loaded=is_loaded)
    if refitted.reshaped and found.weights.is_whole:
        return [
            f"{label}: {refitted.reshaped} of its parameters have another shape than the model's weights, which fit: "
            f"this rank's optimizer holds a part of them, in a form that the kit does not know; load it without the kit"
        ]
    found.decisions[name] = Decision(refitted.action, refitted.why)
    if decision.action == PARTIAL and refitted.action == LOAD:
        found.decisions[name] = Decision(PARTIAL, refitted.why or "every parameter")
    if refitted.state is not None:
        found.optimizers[key] = refitted
    return []


def _average(name: str, found: Matched, content: Any, model: Any, own: Any) -> list[str]:
    decision, saved = found.decisions[name], content.get(f"{name}_state_dict")
    if decision.action in (FRESH, RESET):
        if hasattr(own, "state_dict") and weights.average_can_hold(own, model):
            return []
        if decision.code == NOT_HELD:  # it was not asked for by name: as it was made, and that is said
            found.decisions[name] = Decision(ABSENT, f"the checkpoint has none, and the weights can't be put into a "
                                                     f"'{type(own).__name__}': starts as made")  # fmt: skip
            return []
        return [f"{name}: the weights can't be put into a '{type(own).__name__}', whose state does not name them all"]
    if decision.action not in (LOAD, PARTIAL) or not hasattr(own, "state_dict"):
        return []
    if not isinstance(saved, Mapping) or not isinstance(own.state_dict(), Mapping):
        return []  # a class of the lab's own that keeps no names: it knows what it loads
    fit = weights.fit_weights(saved, own.state_dict())
    if fit.is_whole and not (decision.action == PARTIAL and keeps_the_plans_words(decision)):
        found.decisions[name] = Decision(LOAD)
        return []
    if decision.action == LOAD and found.decisions["weights"].action != PARTIAL:
        return [f"{name}: {line}" for line in differences(fit)]
    found.decisions[name] = Decision(PARTIAL, fit.counts())
    reason = fit.refusal(is_forced=found.decisions["weights"].forced)
    return [f"{name}: {reason}"] if reason else []


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({first_few(names, MAX_SHOWN)})"
