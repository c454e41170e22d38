"""Which plans may not be carried out, and which only with a person's consent: the rules, each with its reason.

Pure: looks at decided components, changes and config; reads nothing. Source: protocol §0, §1, §7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..basics.actions import ABSENT, KEYS, LOAD, PARTIAL, REDERIVE, RESET, SWAP
from ..configuration import config
from ..configuration.changes import Change
from ..proving.grades import lacks
from ..proving.optimizer_names import plain_name
from ..proving.weight_fit import WeightFit
from .choice import Choice
from .components import Component, Held, Optimizers, show

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
    asked = [change for change in choice.changed if change.key not in choice.settled]
    consents = [f"{_named(change)} ({change.consent})" for change in asked if change.consent and _touches(change, held)]
    refusals = [f"{_named(change)}: {change.refuse}" for change in choice.changed if change.refuse]
    with_kit = bool(config.get(choice.config, "trainer.loads_with_kit"))
    refusals += _no_weights(found, choice) if with_kit else []
    refusals += filter(None, (rule(found, held, optimizers) for rule in _RULES))
    if _may_be_a_swap(asked, held, optimizers):
        consents.append(
            f"the checkpoint does not say which optimizer it holds, and {optimizers.wanted} is wanted: if it is "
            "another one, its state is loaded all the same; --set resume.optimizer=reset starts it anew"
        )
    if match is not None and (reason := match.refusal(is_forced=is_forced(choice))):
        force = ", or force it with --set resume.weights=partial" if match.pairs else ""
        refusals.append(f"the checkpoint does not fit: {reason}; start a fresh run{force}")
    if not with_kit:
        unseen, impossible = _of_a_trainer_that_loads_by_itself(found, _actions(settled))
        consents, refusals = consents + unseen, refusals + impossible
    return Judgement(tuple(consents), tuple(refusals))


def is_forced(choice: Choice) -> bool:
    """Whether a partial load was asked for by name, so that it holds however little fits."""
    return config.get(choice.config, "resume.weights") == PARTIAL


def _touches(change: Change, held: Held) -> bool:
    """Whether what a change is about is there: an average that the checkpoint does not hold loses nothing."""
    section = change.key.partition(".")[0]
    return section not in ("ema", "swa") or section in held.components


def _no_weights(found: Sequence[Component], choice: Choice) -> list[str]:
    """What the kit is to load has to be under the kit's name; what a trainer loads by itself is its own business."""
    if _actions(found)["weights"] != ABSENT:
        return []
    candidate = choice.candidate
    name, keys = (f"'{candidate.name}'", candidate.inside.keys) if candidate else ("the checkpoint", ())
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
        is_the_one = not own or (optimizers.before is not None and its == plain_name(optimizers.before))
        is_renamed = optimizers.before is not None and plain_name(optimizers.before) == plain_name(wanted)
        if is_the_one and its != plain_name(wanted) and not is_renamed:
            return (
                f"the checkpoint holds the state of {its} and the config wants {wanted}: it cannot be loaded into it; "
                "--set resume.optimizer=auto swaps, --set resume.optimizer=reset starts it anew"
            )
    return ""


def _swap_of_nobody(found: Sequence[Component], held: Held, optimizers: Optimizers) -> str:
    """Of several optimizers the one that `optimizer.name` is about must be found by its class."""
    before, wanted = optimizers
    if before is None or wanted is None or "" in held.optimizers or plain_name(before) == plain_name(wanted):
        return ""
    classes = held.optimizers.values()
    if not classes or plain_name(before) in classes or plain_name(wanted) in classes:
        return ""
    names = ", ".join(f"'{name}' ({its or 'class unknown'})" for name, its in held.optimizers.items())
    return (
        f"optimizer.name goes from {before} to {wanted}, and none of the checkpoint's optimizers is a {before}: "
        f"{names}; which one to swap cannot be told"
    )


_RULES = (_weights_left_out, _fresh_moments_at_full_rate, _state_of_another, _swap_of_nobody)


def _of_a_trainer_that_loads_by_itself(
    found: Sequence[Component], settled: dict[str, str]
) -> tuple[list[str], list[str]]:
    """A trainer without load_resume_bundle cannot be told what to do: that is said, and never pretended."""
    swapped = any(one.action == SWAP for one in found)
    asked = [
        f"{one.name}: {one.action}" for one in found
        if one.action not in (*_NEEDS_NO_HELP, SWAP) and settled.get(one.name) != one.action
    ]  # fmt: skip
    impossible = (
        "this trainer sets its own learning rate (trainer.loads_with_kit is false): the cut that a swap of the "
        "optimizer begins with cannot be made; wire in load_resume_bundle first"
    )
    consent = f"this trainer loads by itself: whether it does '{', '.join(asked)}' nobody can see"
    return [consent] if asked else [], [impossible] if swapped else []


def _may_be_a_swap(asked: Sequence[Change], held: Held, optimizers: Optimizers) -> bool:
    """Whether another optimizer is asked for, and neither checkpoint nor config say what it was before."""
    is_asked = any(change.key in ("optimizer.name", "optimizer.swap_at") for change in asked)
    is_unknown = optimizers.before is None and not any(held.optimizers.values())
    return is_asked and is_unknown and optimizers.wanted is not None and "optimizer" in held.components


def _actions(found: Sequence[Component]) -> dict[str, str]:
    return {one.name: one.action for one in found}


def _named(change: object) -> str:
    return f"{change.key}: {show(change.old)} -> {show(change.new)}"  # type: ignore[attr-defined]
