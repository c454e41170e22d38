"""What a plan does with each component of a checkpoint, and which plans may not be carried out, or only with
consent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..base.imports import Any, NamedTuple
from ..base.terms import ABSENT, KEYS, LOAD, PARTIAL, REDERIVE, RESET, SWAP
from ..base.values import count
from ..checkpoint import parameters
from ..checkpoint.grades import lacks
from ..checkpoint.parameters import WeightFit, plain_optimizer_name
from ..config import config
from ..policy import decide as table
from ..policy.config_diff import Change
from ..policy.decide import HELD, NOT_HELD, Asked, Case, Cost
from .choice import Choice

_NOT_OURS = "not seen under a name that is known; what the trainer saves it loads by itself"


class Component(NamedTuple):
    """What is done with one component.

    Args:
        name: a name of KEYS; with several optimizers 'optimizer.<name>' for each.
        action: one of base/terms.
        why: in a few words; empty where it is simply loaded.
        code: the same in one word, of policy/decide.
    """

    name: str
    action: str
    why: str = ""
    code: str = HELD


class Held(NamedTuple):
    """What a checkpoint holds, as far as the plan needs it.

    Args:
        components: the names of KEYS that are in it with a value.
        optimizers: name -> class in lower case, None where it does not say; the name is '' for a single one.
    """

    components: frozenset[str]
    optimizers: dict[str, str | None]


class Optimizers(NamedTuple):
    """Names as `optimizer.name` spells them: the one that the checkpoint's own run trained with, and the one wanted."""

    before: str | None
    wanted: str | None


def held_by(keys: Iterable[str], counters: dict[str, Any], optimizers: Iterable[str]) -> Held:
    """Return what a checkpoint holds.

    Args:
        keys: the names at its top level.
        counters: its plain values, None among them: a component that is None is absent.
        optimizers: the names of its optimizers, '' for a single one.
    """
    there = {key for key in keys if key not in counters or counters[key] is not None}
    present = frozenset(name for name, own in KEYS.items() if not there.isdisjoint(own))
    kinds = parameters.read_optimizer_names(counters.get("optimizer_name"), optimizers)
    return Held(present, {name: kind and plain_optimizer_name(kind) for name, kind in kinds.items()})


def optimizer_at(resolved: dict[str, Any], start_step: int) -> str | None:
    """Return the optimizer of a run that starts at `start_step`: past `optimizer.swap_at` it is `swap_to`.

    A swap happens at a resume only: a run that trains past swap_at keeps what it started with.

    Source: protocol §6.
    """
    swap_at = config.get(resolved, "optimizer.swap_at")
    is_past = swap_at is not None and start_step >= swap_at
    name: str | None = config.get(resolved, "optimizer.swap_to" if is_past else "optimizer.name")
    return name


def decide_components(
    held: Held, changed: Sequence[Change], optimizers: Optimizers, policies: dict[str, Any]
) -> tuple[Component, ...]:
    """Decide for every component.

    Args:
        held: what the checkpoint holds.
        changed: what differs from the parent, in config and environment.
        optimizers: the one that it was trained with, and the wanted one.
        policies: the `resume` section of the new config: component -> 'auto' or an action.

    Returns:
        One per component, in the order of KEYS; one per optimizer where there are several.

    Source: protocol §1, §2.
    """
    is_several = "" not in held.optimizers and bool(held.optimizers)
    names = {f"optimizer.{own}": own for own in held.optimizers} if is_several else {"optimizer": ""}
    swaps = {name: _swap(held.optimizers.get(own), optimizers, not is_several) for name, own in names.items()}
    holds: dict[str, bool] = {}
    for kind in KEYS:
        holds |= dict.fromkeys(names if kind == "optimizer" else (kind,), kind in held.components)
    asked = {kind: Asked(one, f"resume.{kind} is '{one}'") for kind, one in policies.items() if one != "auto"}
    case = Case(holds, [*map(cost_of, changed)], {name: why for name, why in swaps.items() if why}, asked)
    return tuple(Component(name, one.action, one.why, one.code) for name, one in table.decide(case).items())


def of_its_own(found: Sequence[Component]) -> tuple[Component, ...]:
    """Return what was decided about a checkpoint whose trainer loads by itself, with the weights under its own name."""
    return tuple(one._replace(why=_NOT_OURS) if one.code == NOT_HELD else one for one in found)


def cost_of(change: Change) -> Cost:
    """Return what a change costs, as the table takes it."""
    return Cost(f"{change.key}: {show_component(change.old)} -> {show_component(change.new)}", change.actions)


def _swap(held: str | None, optimizers: Optimizers, is_only: bool) -> str:
    """Return why this optimizer is swapped, '' if it is not.

    Of several optimizers only the one is swapped that `optimizer.name` was about. What the checkpoint holds decides,
    so that a swap happens once: a later resume finds the new optimizer's state in it.
    """
    wanted = optimizers.wanted
    before = optimizers.before or held
    if (
        wanted is None
        or before is None
        or held == plain_optimizer_name(wanted)
        or plain_optimizer_name(before) == plain_optimizer_name(wanted)
    ):
        return ""
    if not is_only and held != plain_optimizer_name(before):
        return ""
    return f"the checkpoint holds {before}, whose state is left out; {wanted} starts anew"


def show_component(value: Any) -> str:
    """Return a config value in the form of a config file, short enough for a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value) or '""'
    return text if len(text) <= 40 else f"{text[:37]}..."


# Which plans may not be carried out, and which only with a person's consent: the rules, each with its reason.
#
# Pure: looks at decided components, changes and config; reads nothing. Source: protocol §0, §1, §7.

# Of a changed list no more places are shown.
_MAX_PARTS = 4
# Done without asking the trainer: it loads what is there, or works the position out from the step.
_NEEDS_NO_HELP = (LOAD, ABSENT, REDERIVE)


class Judgement(NamedTuple):
    """Why a plan needs consent, and why it is refused; both empty for a plan that is ready."""

    consents: tuple[str, ...]
    refusals: tuple[str, ...]


def judge(
    found: Sequence[Component], choice: Choice, held: Held, optimizers: Optimizers, match: WeightFit | None = None,
    settled: Sequence[Component] = (),
) -> Judgement:  # fmt: skip
    """Apply every rule to a plan's components and changes.

    Args:
        settled: what the parent alone would get from this checkpoint: a person has agreed to it already.
    """
    asked = [change for change in choice.changed if change.key not in choice.already_accepted]
    consents = [
        f"{difference(change)} ({change.consent})" for change in asked if change.consent and _touches(change, held)
    ]
    refusals = [f"{difference(change)}: {change.refuse}" for change in choice.changed if change.refuse]
    with_kit = bool(config.get(choice.config, "trainer.loads_with_kit"))
    refusals += _no_weights(found, choice) if with_kit else []
    refusals += filter(None, (rule(found, held, optimizers) for rule in _RULES))
    if _may_be_a_swap(asked, held, optimizers):
        consents.append(
            f"the checkpoint does not say which optimizer it holds, and {optimizers.wanted} is wanted: if it is "
            "another one, its state is loaded all the same; --set resume.optimizer=reset starts it anew"
        )
    unfit, foreign = _of_the_fit(found, choice, match)
    consents, refusals = consents + unfit, refusals + foreign
    consents += _exhausted(found, choice)
    if not with_kit:
        can_cut = bool(config.get(choice.config, "recover.lr_args"))
        unseen, impossible = _of_a_trainer_that_loads_by_itself(found, _actions(settled), can_cut=can_cut)
        consents, refusals = consents + unseen, refusals + impossible
    return Judgement(tuple(consents), tuple(refusals))


def _of_the_fit(found: Sequence[Component], choice: Choice, match: WeightFit | None) -> tuple[list[str], list[str]]:
    """Judge how the weights fit the model that the trainer describes: another model's are refused.

    Weights that are to be loaded whole and fit in part alone: a trainer that allows it itself loads what fits.
    """
    if match is None:
        return [], []
    if reason := match.refusal(is_forced=is_forced(choice)):
        force = ", or force it with --set resume.weights=partial" if match.pairs else ""
        return [], [f"the checkpoint does not fit: {reason}; start a fresh run{force}"]
    if match.is_whole or _actions(found)["weights"] != LOAD:
        return [], []
    return [
        f"the checkpoint does not fit the trainer's model whole ({match.counts()}), and is to be loaded whole: "
        "--set resume.weights=partial loads what fits"
    ], []


def _exhausted(found: Sequence[Component], choice: Choice) -> list[str]:
    """Ask where nothing is left to train: the trainer would end at once, and all of it would look well.

    A recovery, and `run.sh` where it goes on with a run at its own end, are not asked: they finish what is left.
    """
    step, max_steps = choice.step or 0, config.get(choice.config, "training.max_steps")
    is_over = count(max_steps) is not None and step >= max_steps and _actions(found)["counters"] != RESET
    if not is_over or choice.recovery is not None or choice.is_chained:
        return []
    return [
        f"the schedule is exhausted at step {step} of {max_steps}, nothing would be trained: --set max_steps=N goes on"
    ]


def is_forced(choice: Choice) -> bool:
    """Whether a partial load was asked for by name, so that it holds however little fits."""
    policy: str | None = config.get(choice.config, "resume.weights")
    return policy == PARTIAL


def _touches(change: Change, held: Held) -> bool:
    """Whether what a change is about is there: an average that the checkpoint does not hold loses nothing."""
    section = change.key.partition(".")[0]
    return section not in ("ema", "swa") or section in held.components


def _no_weights(found: Sequence[Component], choice: Choice) -> list[str]:
    """What the kit is to load has to be under the kit's name; what a trainer loads by itself is its own business."""
    if _actions(found)["weights"] != ABSENT:
        return []
    candidate = choice.init.candidate if choice.init else choice.candidate
    name, keys = (f"'{candidate.name}'", candidate.content.keys) if candidate else ("the checkpoint", ())
    return [f"{name} has {lacks(KEYS['weights'][0], keys)}"]


def _weights_left_out(found: Sequence[Component], held: Held, optimizers: Optimizers) -> str:
    """Only a from-scratch control leaves the weights out, and then nothing else of the run may stay."""
    stands_on_them = ("optimizer", "ema", "swa")
    kept = [one.name for one in found if one.action == LOAD and one.name.partition(".")[0] in stands_on_them]
    if _actions(found)["weights"] == RESET and kept:
        return (
            f"resume.weights=reset would put the {' and '.join(kept)} of the old weights on new ones; "
            f"reset {'that' if len(kept) == 1 else 'those'} too, or start anew with run.sh --fresh"
        )
    return ""


def _fresh_moments_at_full_rate(found: Sequence[Component], held: Held, optimizers: Optimizers) -> str:
    """An optimizer without moments takes steps of full size in every direction: it needs a schedule that knows."""
    resets = [one.name for one in found if one.name.startswith("optimizer") and one.action == RESET]
    if resets and _actions(found)["scheduler"] == LOAD:
        return (
            f"{' and '.join(resets)}: reset, while the old schedule goes on at its full learning rate: the first steps "
            "without moments would be as large as any; --set resume.scheduler=reset (warm-up again), or keep the "
            "optimizer's state"
        )
    return ""


def _state_of_another(found: Sequence[Component], held: Held, optimizers: Optimizers) -> str:
    """One optimizer's state means nothing in another one (pytorch/pytorch#7499)."""
    wanted = optimizers.wanted
    for one in found:
        kind, _, own = one.name.partition(".")
        its = held.optimizers.get(own)
        if kind != "optimizer" or one.action not in (LOAD, PARTIAL) or wanted is None or its is None:
            continue
        is_the_one = not own or (optimizers.before is not None and its == plain_optimizer_name(optimizers.before))
        is_renamed = optimizers.before is not None and plain_optimizer_name(optimizers.before) == plain_optimizer_name(
            wanted
        )
        if is_the_one and its != plain_optimizer_name(wanted) and not is_renamed:
            return (
                f"the checkpoint holds the state of {its} and the config wants {wanted}: it cannot be loaded into it; "
                "--set resume.optimizer=auto swaps, --set resume.optimizer=reset starts it anew"
            )
    return ""


def _swap_that_cannot_be_told(found: Sequence[Component], held: Held, optimizers: Optimizers) -> str:
    """Of several optimizers the one that `optimizer.name` is about must be found by its class."""
    before, wanted = optimizers
    if (
        before is None
        or wanted is None
        or "" in held.optimizers
        or plain_optimizer_name(before) == plain_optimizer_name(wanted)
    ):
        return ""
    classes = held.optimizers.values()
    if not classes or plain_optimizer_name(before) in classes or plain_optimizer_name(wanted) in classes:
        return ""
    names = ", ".join(f"'{name}' ({its or 'class unknown'})" for name, its in held.optimizers.items())
    return (
        f"optimizer.name goes from {before} to {wanted}, and none of the checkpoint's optimizers is a {before}: "
        f"{names}; which one to swap cannot be told"
    )


_RULES = (_weights_left_out, _fresh_moments_at_full_rate, _state_of_another, _swap_that_cannot_be_told)


def _of_a_trainer_that_loads_by_itself(
    found: Sequence[Component], settled: dict[str, str], *, can_cut: bool
) -> tuple[list[str], list[str]]:
    """A trainer without load_resume_bundle cannot be told what to do: that is said, and never pretended.

    Args:
        can_cut: it takes its rate as an argument (recover.lr_args), so that of a swap the cut at least is sure.
    """
    swapped = not can_cut and any(one.action == SWAP for one in found)
    needs_no_help = _NEEDS_NO_HELP if can_cut else (*_NEEDS_NO_HELP, SWAP)
    asked = [
        f"{one.name}: {one.action}" for one in found
        if one.action not in needs_no_help and settled.get(one.name) != one.action
    ]  # fmt: skip
    impossible = (
        "this trainer sets its own learning rate (trainer.loads_with_kit is false): the cut that a swap of the "
        "optimizer begins with cannot be made; set recover.lr_args where it takes its rate as an argument, or wire in "
        "load_resume_bundle"
    )
    consent = f"this trainer loads by itself: whether it does '{', '.join(asked)}' cannot be seen"
    return [consent] if asked else [], [impossible] if swapped else []


def _may_be_a_swap(asked: Sequence[Change], held: Held, optimizers: Optimizers) -> bool:
    """Whether another optimizer is asked for, and neither checkpoint nor config say what it was before."""
    is_asked = any(change.key in ("optimizer.name", "optimizer.swap_at") for change in asked)
    is_unknown = optimizers.before is None and not any(held.optimizers.values())
    return is_asked and is_unknown and optimizers.wanted is not None and "optimizer" in held.components


def _actions(found: Sequence[Component]) -> dict[str, str]:
    return {one.name: one.action for one in found}


def difference(change: Change, shown: Callable[[Any], str] = show_component) -> str:
    """Return what differs, 'key: old -> new'; of two lists the elements that do, numbered from 0.

    Args:
        change: of a config or an environment.
        shown: how a value is written.
    """
    old, new = change.old, change.new
    if not (isinstance(old, list) and isinstance(new, list)):
        return f"{change.key}: {shown(old)} -> {shown(new)}"
    import difflib  # only where a list differs

    found = difflib.SequenceMatcher(a=list(map(repr, old)), b=list(map(repr, new)), autojunk=False).get_opcodes()
    parts = [_elements(old[a:b], new[c:d], a, shown) for tag, a, b, c, d in found if tag != "equal"]
    more = f", and {len(parts) - _MAX_PARTS} more" if len(parts) > _MAX_PARTS else ""
    return ", ".join(f"{change.key}{part}" for part in parts[:_MAX_PARTS]) + more


def _elements(old: list[Any], new: list[Any], at: int, shown: Callable[[Any], str]) -> str:
    """Return what differs at one place of a list, behind the list's name."""
    was, now = (" ".join(map(shown, one)) for one in (old, new))
    if not old:
        return f"[{at}]: '{now}' is put in"
    return f"[{at}]: {was} -> {now}" if new else f"[{at}]: '{was}' is taken out"
