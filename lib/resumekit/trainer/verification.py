"""Whether the trainer's objects still hold, at their first step, what was to be loaded into them.

The checkpoint is read anew, matched anew and compared with the live weights, moments, averages, schedule and rates,
right before the first optimizer.step moves anything: whatever was dropped, mixed up or overwritten between the load and
here shows. Journals one `check` event for each component.
Source: protocol §4.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet

from ..base.errors import KitError
from ..base.imports import Any
from ..base.terms import FAILED, FRESH, LOAD, NOT_TOLD, PARTIAL, PASSED, REFIT, RESET, SWAP, WARNED, Check
from ..policy.decide import Decision
from ..policy.lr_scale import LrScale
from ..policy.plan_file import PlanFile, PlannedRate
from . import fit_check, learning_rate, sharded_state, weights
from .fit_check import Matched
from .optimizer_state import is_state, named_optimizers
from .proven_content import read_again
from .ranks import exchange, rank
from .trainer_env import journal_event
from .weights import MAX_NAMED, comparison_outcome, first_line, is_alike, is_same_state, plain_value

# The same formula computed elsewhere may differ in its last bits.
RATE_TOLERANCE = 1e-6
# How far a schedule that the kit cannot foresee may move in one step without a word.
UNFORESEEN_TOLERANCE = 0.1

# What a GradScaler that leaves a step out has moved on all the same, in most loops.
_MOVED_BY_SKIPS = ("averages", "scheduler", "lr")
# Of the verdicts of several ranks the last one here is that of all.
_GETS_WORSE = (PASSED, NOT_TOLD, WARNED, FAILED)

_waiting: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_checked_scalers: WeakSet[Any] = WeakSet()
_checked_models: WeakSet[Any] = WeakSet()
_FLAT = "FullyShardedDataParallel keeps flat pieces: no rank can compare its own with the checkpoint"
# BatchNorm's count of forward passes.
_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class Loaded:
    """What a load did, kept until it is verified.

    Args:
        path: the checkpoint.
        model: the trainer's.
        parts: 'optimizer', 'scheduler', ... -> the trainer's object.
        decided: component -> what was to be done, before it was matched.
        lion_wanted_by: as in fit_check.check.
        plan: the launcher's; None without.
        rate_factor: what makes of a saved rate, by its optimizer's name, the one that the next step uses.
        refitted: of a schedule that was refitted: what it has otherwise than its state in the checkpoint.
        outdated: of such a schedule: `outdated_rates`.
        is_of_all: every rank makes the load, and its first step.
        kept: of a state that is spread over ranks, what of its content is compared; None: the file is read again.
    """

    path: Path
    model: Any
    parts: dict[str, Any]
    decided: dict[str, Decision]
    lion_wanted_by: str | None
    plan: PlanFile | None
    rate_factor: Callable[[str], float]
    refitted: tuple[str, ...] = ()
    outdated: dict[str, list[float]] = field(default_factory=dict)
    is_of_all: bool = False
    kept: dict[str, Any] | None = None


def at_first_step(loaded: Loaded, log_fn: Callable[[str], Any]) -> None:
    """Verify the load once, when the first of its optimizers is about to step; nothing without one that has hooks.

    Args:
        log_fn: takes a line for each check that did not pass.
    """
    left, scale = [loaded], _loss_scale(loaded)
    with contextlib.suppress(TypeError):  # a model that nothing weak can refer to is looked at twice
        _checked_models.discard(loaded.model)

    def verify_once(stepping: Any, _args: Any, _kwargs: Any) -> None:
        if left:  # the hook stays, for torch is going through its hooks here; what it held is let go
            own = left.pop()
            checks = _but_for_skips(verify(own, stepping), scale, _loss_scale(own))
            report(_worst_of_all_ranks(list(checks), log_fn) if own.is_of_all else checks, log_fn)

    hooked = 0
    for one in named_optimizers(loaded.parts["optimizer"]).values():
        try:
            if one in _waiting:
                _waiting.pop(one).remove()  # a second load into the same optimizer: the first one's state is gone
            _waiting[one] = one.register_step_pre_hook(verify_once)
            hooked += 1
        except Exception:  # none of torch's, or a wrapper that inherits its methods without their state
            continue
    if not hooked and loaded.parts["optimizer"] is not None:
        names = ["weights"] if loaded.parts["ema"] is loaded.parts["swa"] is None else ["weights", "averages"]
        why = "the optimizer has no hooks: nothing can be compared"
        report([Check(name, NOT_TOLD, why=why) for name in names], log_fn)


def report(checks: Iterable[Check], log_fn: Callable[[str], Any]) -> None:
    """Journal the checks; say those that did not pass, and what there is to know of one that did."""
    for one in checks:
        journal_event("check", **one.as_fields())
        if one.verdict in (WARNED, FAILED):
            log_fn(f"[warn] {f'rank {rank()}: ' * (rank() > 0)}{one.sentence()}")
        elif one.verdict == PASSED and one.why and rank() == 0:
            log_fn(f"[resume] {one.name}: {one.why}")


def _worst_of_all_ranks(checks: list[Check], log_fn: Callable[[str], Any]) -> list[Check]:
    """Return in rank 0 each check as it went where it went worst; in the others none: rank 0 speaks for all."""
    try:
        told = exchange("the checks at the first step", [list(one) for one in checks], act=_worst_fields)
    except KitError as error:  # no check ends a training
        log_fn(f"[warn] the checks of this rank alone: {error}")
        return checks
    return [Check(*fields) for fields in told] if rank() == 0 else []


def _worst_fields(all_checks: list[list[list[Any]]]) -> list[list[Any]]:
    worst: dict[str, Check] = {}
    for number, own in enumerate(all_checks):
        for one in (Check(*fields) for fields in own):
            held = worst.get(one.name)
            if number and (held is None or _GETS_WORSE.index(one.verdict) > _GETS_WORSE.index(held.verdict)):
                one = one._replace(why="; ".join(filter(None, [f"rank {number}", one.why])))
                held = None
            worst[one.name] = held or one
    return [list(one) for one in worst.values()]


def _but_for_skips(checks: Iterable[Check], then: float | None, now: float | None) -> Iterator[Check]:
    """Soften what is no certain fault where a GradScaler has left steps out since the load: its scale has fallen."""
    has_skipped = then is not None and now is not None and now < then
    for one in checks:
        if has_skipped and one.verdict == FAILED and one.name in _MOVED_BY_SKIPS:
            why = "; ".join(filter(None, [one.why, f"the scaler fell from {then:g} to {now:g}: it left steps out"]))
            one = one._replace(verdict=WARNED, why=why)
        yield one


def _loss_scale(loaded: Loaded) -> float | None:
    try:
        return float(loaded.parts["scaler"].get_scale())
    except Exception:  # none, or one of the lab's own
        return None


def verify(loaded: Loaded, stepping: Any = None) -> Iterator[Check]:
    """Compare every loaded component with the checkpoint; no error of a comparison leaves this function.

    Args:
        stepping: the optimizer that is inside its step, where the kit's scale is in its rates already.
    """
    try:
        content = read_again(loaded.path, loaded.kept)
        found = fit_check.check(
            content, loaded.model, dict(loaded.decided), loaded.parts, loaded.lion_wanted_by, loaded.path
        )
    except Exception as error:
        yield Check("weights", NOT_TOLD, why=f"the checkpoint cannot be compared: {first_line(error)}")
        return
    for name, compare in (("weights", _weights), ("buffers", _buffers), ("optimizer", _optimizers),
                          ("averages", _averages), ("scheduler", _scheduler), ("scaler", _scaler)):  # fmt: skip
        if isinstance(loaded.model, sharded_state.FlatModel) and name in ("weights", "optimizer"):
            yield Check(name, NOT_TOLD, why=_FLAT)
            continue
        try:
            yield from compare(loaded, found, content)
        except Exception as error:  # an object of the lab's own that works otherwise than torch's
            yield Check(name, NOT_TOLD, why=f"cannot be compared: {first_line(error)}")
    try:
        yield from _rates(loaded, found, content, stepping)
    except Exception as error:
        yield Check("lr", NOT_TOLD, why=f"cannot be compared: {first_line(error)}")


def _weights(loaded: Loaded, found: Matched, content: dict[str, Any]) -> Iterator[Check]:
    if found.decisions["weights"].action not in (LOAD, PARTIAL):
        return
    saved = content["model_state_dict"]
    # Buffers have gone through a forward pass by now, and what takes no gradient may be moved by the trainer itself.
    pairs = [
        (name, saved[found.weights.pairs[name]], parameter)
        for name, parameter in loaded.model.named_parameters()
        if parameter.requires_grad and name in found.weights.pairs
    ]
    yield comparison_outcome("weights", pairs, "as in the checkpoint")


def buffers_were_compared(model: Any) -> None:
    """Keep that a model's buffers were compared before anything had gone through it."""
    with contextlib.suppress(TypeError):
        _checked_models.add(model)


def _buffers(loaded: Loaded, found: Matched, content: dict[str, Any]) -> Iterator[Check]:
    """Look at buffers that a forward pass has moved by now: it makes nothing of them infinite, and counts on."""
    if found.decisions["weights"].action not in (LOAD, PARTIAL):
        return
    saved, kept, places = content["model_state_dict"], sharded_state.form_of(loaded.model), found.weights.pairs
    pairs = [
        (name, saved[places[name]], buffer) for name, buffer in loaded.model.named_buffers()
        if name in kept and name in places
    ]  # fmt: skip
    broken = [
        name for name, then, now in pairs
        if (bool(then.isfinite().all()) and not bool(now.isfinite().all()))
        or (name.endswith(_COUNT) and plain_value(now) < plain_value(then))
    ]  # fmt: skip
    if broken:
        found_whole, why = f"{len(pairs) - len(broken)} of {len(pairs)}", ", ".join(broken[:MAX_NAMED])
        yield Check("buffers", FAILED, f"{len(pairs)} finite, and counted on from the checkpoint", found_whole, why)
    elif pairs and loaded.model not in _checked_models:
        moved = [name for name, then, now in pairs if not is_alike(then, now)]
        why = f"a forward pass has moved {', '.join(moved[:MAX_NAMED])}: check_resume compares them before it"
        yield (
            Check("buffers", NOT_TOLD, why=why)
            if moved
            else comparison_outcome("buffers", pairs, "as in the checkpoint")
        )


def _optimizers(loaded: Loaded, found: Matched, content: dict[str, Any]) -> Iterator[Check]:
    pairs, anew, differs = [], [], []
    for key, one in named_optimizers(loaded.parts["optimizer"]).items():
        prefix = f"{key}: " if key else ""
        refitted = found.optimizers.get(key)
        decision = found.decisions[f"optimizer.{key}" if key else "optimizer"]
        if refitted is None:
            if decision.action in (RESET, SWAP):
                anew += [
                    f"{prefix}step {_step_of(state):g}"
                    for state in sharded_state.live_state(one).values()
                    if _step_of(state)
                ]
            continue
        # The trainer may have set its own values behind the load: only now it is known what it trains with.
        differs += [f"{prefix}{refitted.differs}"] if refitted.differs else []
        parameters = [parameter for group in one.param_groups for parameter in group["params"]]
        for index, state in refitted.kept["state"].items():
            live = sharded_state.live_state(one).get(parameters[index], {}) if isinstance(index, int) else {}
            pairs += [(f"{prefix}{key} of parameter {index}", value, live.get(key)) for key, value in state.items()]
    if anew:
        yield Check("optimizer", FAILED, "a state that begins anew", anew[0], "an old optimizer's state is in it")
    elif pairs or differs:
        found_same = comparison_outcome("optimizer", pairs, "as in the checkpoint")
        yield found_same._replace(why="; ".join(filter(None, [found_same.why, *differs])))


def _averages(loaded: Loaded, found: Matched, content: dict[str, Any]) -> Iterator[Check]:
    pairs = []
    for name in ("ema", "swa"):
        action, own = found.decisions[name].action, loaded.parts[name]
        if own is None or not isinstance(own.state_dict(), Mapping):
            continue
        live = own.state_dict()
        if action in (LOAD, PARTIAL):
            saved = content[f"{name}_state_dict"]
            fit = weights.fit_weights(saved, live)
            pairs += [(f"{name}: {key}", saved[old], live[key]) for key, old in fit.pairs.items()]
        elif action in (FRESH, RESET):
            fresh = weights.current_average(own, loaded.model)
            # Some count the weights that an average begins with as its first update.
            pairs += [
                (f"{name}: {key}", value, live[key]) for key, value in fresh.items()
                if key in live and not (key in weights.COUNTS and plain_value(live[key]) == 1)
            ]  # fmt: skip
    if pairs:
        yield comparison_outcome("averages", pairs, "as planned")


def _scheduler(loaded: Loaded, found: Matched, content: dict[str, Any]) -> Iterator[Check]:
    part = loaded.parts["scheduler"]
    if found.decisions["scheduler"].action == REFIT and loaded.refitted:
        now = learning_rate.schedule_differences(content.get("scheduler_state_dict"), part)
        lost = [line for line in loaded.refitted if line not in now]
        expected = "; ".join(loaded.refitted[:MAX_NAMED])
        yield Check("scheduler", FAILED if lost else PASSED, expected, "; ".join(now[:MAX_NAMED]) or "as in it",
                    "the old schedule's state was put back behind the load" if lost else "")  # fmt: skip
    if found.decisions["scheduler"].action != LOAD:
        return
    live = {key: one.state_dict() for key, one in part.items()} if isinstance(part, dict) else part.state_dict()
    places = list(_places(content["scheduler_state_dict"], live))
    # Some trainers advance their schedule before the optimizer's step.
    wrong = [one for one in places if one[1] not in (one[0], one[0] + 1)]
    if places:
        then, now = wrong[0] if wrong else places[0]
        yield Check("scheduler", FAILED if wrong else PASSED, f"place {then}", f"place {now}")


def _places(saved: Any, live: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (place in the checkpoint, place now) of a schedule, or of each of several."""
    if isinstance(saved, Mapping) and isinstance(live, Mapping):
        if "last_epoch" in saved and "last_epoch" in live:
            yield saved["last_epoch"], live["last_epoch"]
        else:
            for key in saved.keys() & live.keys():
                yield from _places(saved[key], live[key])


def _scaler(loaded: Loaded, found: Matched, content: dict[str, Any]) -> Iterator[Check]:
    scaler = loaded.parts["scaler"]
    if found.decisions["scaler"].action == LOAD and scaler not in _checked_scalers:
        then, now = (state.get("scale") for state in (content["scaler_state_dict"], scaler.state_dict()))
        # Each step that it left out halved it. Whether it did only `check_resume` can tell, before there was one.
        has_fallen = then is not None and now is not None and 0 < now < then
        verdict = PASSED if then == now else WARNED if has_fallen else FAILED
        yield Check("scaler", verdict, f"scale {then}", f"scale {now}")


def loaded_scaler(loaded: Loaded) -> Iterator[Check]:
    """Compare the scaler before anything has gone through it; the first step has no more to say of it then."""
    scaler = loaded.parts["scaler"]
    if scaler is None or loaded.decided["scaler"].action != LOAD:
        return
    saved, now = read_again(loaded.path, loaded.kept)["scaler_state_dict"], scaler.state_dict()
    wrong = [key for key in saved if not is_same_state(saved[key], now.get(key))]
    _checked_scalers.add(scaler)
    yield Check("scaler", FAILED if wrong else PASSED, f"scale {saved.get('scale')}", f"scale {now.get('scale')}",
                ", ".join(wrong[:MAX_NAMED]))  # fmt: skip


def _rates(loaded: Loaded, found: Matched, content: dict[str, Any], stepping: Any) -> Iterator[Check]:
    """Compare every group's rate with the plan's; without one, with what the schedule left in the checkpoint."""
    groups = [
        (f"{key}[{index}]" if key else f"[{index}]", rate, group, key)
        for key, one in named_optimizers(loaded.parts["optimizer"]).items()
        for index, (rate, group) in enumerate(
            zip(learning_rate.rates(one, is_stepping=one is stepping), one.param_groups, strict=True)
        )
    ]
    shown = ", ".join(f"{name} {rate:.6g}" for name, rate, *_ in groups)
    planned = [one for one in loaded.plan.rates if one.after] if loaded.plan else []
    if planned:
        bases = _saved_bases(found) if found.decisions["scheduler"].action == LOAD else {}
        curves = {key: _curves_of(key, planned, loaded) for key in named_optimizers(loaded.parts["optimizer"])}
        wrong = [
            name for name, rate, group, key in groups if not _is_planned(rate, group, curves[key], bases.get(name))
        ]
        said = "; ".join(f"{one.key} {one.after[0]:.6g}" for one in planned)
        why = f"group {', '.join(wrong[:MAX_NAMED])}" if wrong else ""
        yield Check("lr", FAILED if wrong else PASSED, said, shown, why)
    elif found.decisions["scheduler"].action == LOAD and found.optimizers:
        near = {
            key: [float(old["lr"]) * loaded.rate_factor(key) for old in refitted.kept["param_groups"]]
            for key, refitted in found.optimizers.items()
        }
        moved = [name for name, rate, old in _beside(groups, near) if not _is_near(rate, old)]
        why = f"group {', '.join(moved[:MAX_NAMED])} is not near the checkpoint's rate" if moved else ""
        yield Check("lr", WARNED if moved else PASSED, "near the checkpoint's", shown, why)
    elif loaded.outdated:
        kept = [
            name for name, rate, old in _beside(groups, loaded.outdated)
            if math.isclose(rate, old, rel_tol=RATE_TOLERANCE)
        ]  # fmt: skip
        why = f"group {', '.join(kept[:MAX_NAMED])} has the checkpoint's rate, and the schedule was refitted"
        yield Check("lr", WARNED if kept else PASSED, "the refitted schedule's", shown, why if kept else "")


def _beside(
    groups: list[tuple[str, float, dict[str, Any], str]], rates: dict[str, list[float]]
) -> Iterator[tuple[str, float, float]]:
    """Yield each group's name, its rate and the one at its place in `rates`, by the optimizer's name."""
    for key, wanted in rates.items():
        own = [one for one in groups if one[3] == key]
        yield from ((name, rate, other) for (name, rate, *_), other in zip(own, wanted, strict=False))


def _is_near(rate: float, other: float) -> bool:
    return math.isclose(rate, other, rel_tol=UNFORESEEN_TOLERANCE)


def outdated_rates(
    loaded: Loaded, saved: Mapping[str, Any], own_factor: Callable[[str], float]
) -> dict[str, list[float]]:
    """Return the checkpoint's rates that a refitted schedule has moved far from, by the optimizer's name.

    Args:
        loaded: what the load did; nothing has stepped since.
        saved: the optimizer's name -> its state in the checkpoint; None where there is none.
        own_factor: what the trainer multiplies a rate by itself, by the optimizer's name.
    """
    found = {}
    for key, one in named_optimizers(loaded.parts["optimizer"]).items():
        groups = saved[key].state["param_groups"] if saved.get(key) and is_state(saved[key].state) else []
        olds = [float(group["lr"]) * loaded.rate_factor(key) for group in groups]
        now = [rate * own_factor(key) for rate in learning_rate.rates(one, is_stepping=False)]
        found[key] = [math.nan if _is_near(rate, old) else old for rate, old in zip(now, olds, strict=False)]
    return {key: rates for key, rates in found.items() if any(map(math.isfinite, rates))}


def _saved_bases(found: Matched) -> dict[str, float]:
    """Return each group's base rate in the checkpoint, by the group's name."""
    return {
        f"{key}[{index}]" if key else f"[{index}]": float(old["initial_lr"])
        for key, refitted in found.optimizers.items()
        for index, old in enumerate(refitted.kept["param_groups"]) if "initial_lr" in old
    }  # fmt: skip


def _curves_of(name: str, planned: list[PlannedRate], loaded: Loaded) -> list[PlannedRate]:
    """Return the planned rates as the optimizer `name` follows them: a ramp is that of the swapped one alone."""
    plan = loaded.plan
    if plan is None:
        return planned
    scale = plan.lr_scale or LrScale()
    step = 0 if loaded.decided["counters"].action == RESET else plan.step or 0

    def of_this(one: PlannedRate) -> tuple[float, ...]:
        steps = range(step, step + len(one.after))
        factors = [scale(at, name) / scale(at, one.optimizer) for at in steps]
        return tuple(value * factor for value, factor in zip(one.after, factors, strict=True))

    return [one._replace(after=of_this(one)) for one in planned]


def _is_planned(
    rate: float, group: dict[str, Any], planned: list[PlannedRate], saved_base: float | None = None
) -> bool:
    """Whether a rate is one of the plan's next ones; a group with a base rate of its own follows the same curve.

    Args:
        saved_base: the group's in the checkpoint, where its schedule goes on unchanged: if the plan knows it, only its
            curve counts, so that two groups that got each other's rate are seen.
    """
    of_this = [one for one in planned if saved_base is not None and one.base == saved_base]
    wanted = [value for one in of_this or planned for value in one.after]
    own = group.get("initial_lr")
    if own is not None and not of_this:
        wanted += [float(own) * value / one.base for one in planned if one.base for value in one.after]
    return any(math.isclose(rate, value, rel_tol=RATE_TOLERANCE, abs_tol=1e-18) for value in wanted)


def _step_of(state: dict[str, Any]) -> float:
    return float(plain_value(state.get("step", 0)) or 0)
