"""What a resume does with each component of a checkpoint, and why: one table, asked by the launcher and the trainer.

Five sources, each of which outvotes those before it:

1. the checkpoint: what it holds is loaded, what it lacks is absent (an average starts from the weights);
2. what has changed, in the config and on the machine: of several costs the one that keeps less of the checkpoint;
3. a user: `resume.*` in the config, or an argument of `load_resume_bundle`;
4. a plan, in the trainer that carries it out; but what only the trainer sees of its machine outvotes a plan that
   loads, unless a user asked for it by name;
5. the trainer's objects: what it does not use is absent.

What no source speaks of follows what it depends on: a schedule its swapped optimizer, an average its weights.
Pure: reads nothing. Source: protocol §1, §6, §7, §9.
Try it: `bin/resume.sh EXP-01 --set optimizer.lr=5e-4 --dry-run`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..base.imports import NamedTuple
from ..base.terms import ABSENT, FRESH, KEEPS_LESS, LOAD, PARTIAL, REDERIVE, REFIT, RESET, SWAP

# Why, in one word: what is decided further on goes by these, never by a sentence.
HELD, NOT_HELD, CHANGED, SWAPPED, ASKED = "held", "not_held", "changed", "swapped", "asked"
FOLLOWS, UNUSED, UNFIT = "follows", "unused", "unfit"
# A plan's decision, in the trainer; and one that a user asked for by name.
PLANNED, PLANNED_AS_ASKED = "planned", "planned_as_asked"
# What a difference between the machine of the checkpoint and this one costs: a scaler belongs to its versions
# (protocol §1), a generator's state to one rank of so many, of which each takes its part of the data.
MACHINE_COSTS: dict[str, dict[str, str]] = {
    "torch": {"scaler": RESET},
    "cuda": {"scaler": RESET},
    "driver": {"scaler": RESET},
    "world_size": {"rng": RESET, "data_position": REDERIVE},
}
AVERAGES = ("ema", "swa")


class Decision(NamedTuple):
    """What is done with a component.

    Args:
        action: one of base/terms.
        why: in a few words; empty where it is simply loaded.
        code: the same in one word, one of those above.
        forced: a partial load that a user asked for by name, however little fits.
    """

    action: str
    why: str = ""
    code: str = HELD
    forced: bool = False

    def __str__(self) -> str:
        return f"{self.action}: {self.why}" if self.why else self.action


class Cost(NamedTuple):
    """What has changed, in words, and what that costs: component -> action."""

    words: str
    actions: Mapping[str, str]


class Asked(NamedTuple):
    """What a user asked for, and where: "resume.rng is 'reset'", "restore_rng=False"."""

    action: str
    where: str


class Case(NamedTuple):
    """What a decision is made from; components are 'weights', 'optimizer' or 'optimizer.<name>' for each of several.

    Args:
        holds: component -> whether the checkpoint has it; every component that is to be decided.
        costs: of what has changed.
        swaps: component -> why this optimizer is swapped.
        asked: the first part of a component's name -> what a user asked for.
        unfit: component -> why the state in the checkpoint is none that can be loaded.
        unused: component -> why the trainer does not use it; None where only the trainer knows (the launcher).
        planned: component -> the plan's decision; None without a plan.
    """

    holds: Mapping[str, bool]
    costs: Sequence[Cost] = ()
    swaps: Mapping[str, str] = {}
    asked: Mapping[str, Asked] = {}
    unfit: Mapping[str, str] = {}
    unused: Mapping[str, str] | None = None
    planned: Mapping[str, Decision] | None = None


def decide(case: Case) -> dict[str, Decision]:
    """Return what is done with every component of a case, in the order of `holds`."""
    own = {name: _asked(name, _from_checkpoint(name, case), case) for name in case.holds}
    own = {name: _following(name, decision, own) for name, decision in own.items()}
    planned = case.planned or {}
    found = {name: _planned(decision, planned.get(name)) for name, decision in own.items()}
    unused = case.unused or {}
    return {name: Decision(ABSENT, unused[name], UNUSED) if name in unused else one for name, one in found.items()}


def _from_checkpoint(name: str, case: Case) -> Decision:
    """Return what checkpoint and changes say of a component."""
    kind, is_held = kind_of(name), case.holds[name]
    decision = Decision(LOAD) if is_held else Decision(ABSENT, _lacking(kind, case), NOT_HELD)
    for cost in case.costs:
        action = cost.actions.get(kind, LOAD)
        if action == SWAP:
            continue  # whether there is one, the checkpoint says
        is_dearer = decision.action != ABSENT and keeps_less(action, decision.action)
        if action == FRESH or is_dearer:
            decision = Decision(action, cost.words, CHANGED)
        elif action == decision.action not in (LOAD, ABSENT):
            decision = decision._replace(why=f"{decision.why}; {cost.words}")
    if not is_held and decision.code == NOT_HELD and kind in AVERAGES and case.unused is not None:
        return Decision(FRESH, "the checkpoint has none", NOT_HELD)  # protocol §9
    if decision.action == LOAD and name in case.unfit:
        return Decision(RESET, case.unfit[name], UNFIT)
    if name in case.swaps and decision.action != ABSENT:
        return Decision(SWAP, case.swaps[name], SWAPPED)
    return decision


def _asked(name: str, decision: Decision, case: Case) -> Decision:
    asked = case.asked.get(kind_of(name))
    if asked is None or (decision.action == ABSENT and asked.action == LOAD):
        return decision
    if asked.action == decision.action:
        return decision._replace(why=decision.why or asked.where, code=ASKED)
    instead = f" (without it: {decision.action})" if decision.action not in (LOAD, ABSENT) else ""
    return Decision(asked.action, asked.where + instead, ASKED)


def _following(name: str, decision: Decision, found: Mapping[str, Decision]) -> Decision:
    """Return a component that is simply loaded as what it depends on asks for it."""
    if decision.action != LOAD or decision.code != HELD:
        return decision
    if name == "scheduler" and any(other.action == SWAP for other in found.values()):
        # The old schedule's state has nothing to stand on: it is evaluated anew at the kept step.
        return Decision(REFIT, "the optimizer is swapped; the schedule keeps its phase", FOLLOWS)
    if name in AVERAGES and found["weights"].action == PARTIAL:
        return Decision(PARTIAL, "as the weights; what is new in them starts from them", FOLLOWS)
    return decision


def _planned(own: Decision, planned: Decision | None) -> Decision:
    if planned is None or (own.action == planned.action and own.action in (LOAD, ABSENT)):
        return own
    if own.code == CHANGED and planned.code != PLANNED_AS_ASKED and keeps_less(own.action, planned.action):
        return own
    return planned


def keeps_less(action: str, than: str) -> bool:
    """Whether an action uses less of the checkpoint than another one."""
    return KEEPS_LESS.index(action) > KEEPS_LESS.index(than)


def keeps_the_plans_words(decision: Decision) -> bool:
    """Whether a decision is said as it was planned, whatever the trainer's objects make of it."""
    return decision.code in (PLANNED, PLANNED_AS_ASKED) and bool(decision.why)


def kind_of(component: str) -> str:
    """Return what a component is: 'optimizer' of 'optimizer.puzzles'."""
    return component.partition(".")[0]


def _lacking(kind: str, case: Case) -> str:
    if case.unused is not None:
        return "the checkpoint has none, " + ("continues from the seed" if kind == "rng" else "starts as made")
    begins = "begins with the weights just loaded" if kind in AVERAGES else "stays as the trainer has made it"
    return f"not in the checkpoint: {begins}, where it is used"
