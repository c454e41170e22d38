"""The plan of a resume: from which checkpoint, what happens to each component and why, and whether it may happen.

Joins a choice with what the checkpoint holds and with what differs on this machine. Beside what the choice
has read it reads the parent's status, and asks the trainer for its model where weights are loaded.
`plan_report` shows it, `make_folder` writes it down, the trainer executes it.
Try it: `bin/resume.sh EXP-01 --set training.max_steps=4000 --dry-run`
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from ..base.errors import InvalidFile, Refused
from ..base.files import UnreadableFile
from ..base.imports import Any, NamedTuple
from ..base.terms import ABSENT, LOAD, PARTIAL, SWAP
from ..base.values import mapping
from ..checkpoint.parameters import WeightFit
from ..checkpoint.selection import Candidate
from ..config import config
from ..config.schema import Schema
from ..policy import lr_scale, plan_file
from ..policy.config_diff import Change
from ..policy.decide import NOT_HELD
from ..policy.lr_scale import SWAP_FACTOR, SWAP_STEPS, LrScale, Ramp
from ..policy.plan_file import CONFIG, ENVIRONMENT, RECOVERY, VERSION
from ..run.run_folder import Run
from ..run.run_table import Recovery
from . import compatibility, forecast, handed_rate, init_base, plan_rules
from .choice import CONTINUE, Choice, require_consent
from .code_state import Code
from .forecast import Forecast
from .handed_rate import HandedRate
from .init_base import InitBase
from .plan_rules import Component, Optimizers
from .preflight import Ready

MAX_NAMES = 1000
_HINT = "--dry-run shows it whole"
READY, NEEDS_CONSENT, REFUSED = "ready", "needs consent", "refused"


class Plan(NamedTuple):
    """What a resume will do.

    Args:
        choice: checkpoint, parent and config.
        components: what is done with each.
        environment: what differs on this machine.
        measures: what a recovery changes.
        lr_scale: what the schedule's rate is multiplied by from here on.
        match: how the weights fit the new model; None where the trainer was not asked.
        forecast: learning rates, totals and warnings.
        consents: what a person must agree to, with the reason.
        refusals: what makes it impossible, with the rule and what would have to change.
        optimizer: the one that the run is to train with; None where the config does not say.
        handed: the rate that the trainer is handed as an argument; None where it is not.
    """

    choice: Choice
    components: tuple[Component, ...]
    environment: tuple[Change, ...]
    measures: tuple[Change, ...]
    lr_scale: LrScale
    match: WeightFit | None
    forecast: Forecast
    consents: tuple[str, ...]
    refusals: tuple[str, ...]
    optimizer: str | None = None
    handed: HandedRate | None = None

    @property
    def verdict(self) -> str:
        if self.refusals:
            return REFUSED
        return NEEDS_CONSENT if self.consents else READY

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every difference from the run that holds the checkpoint, the config's first."""
        return (*self.choice.changed, *self.environment, *self.measures)

    @property
    def phase(self) -> str | None:
        """The schedule's phase in the next step; None where the trainer's own schedule decides."""
        place = self.forecast.place
        return None if place is None else forecast.phase_of(self.choice.config, place)

    @property
    def said(self) -> list[str]:
        """What a start says of it: the components that are not simply loaded, and the warnings."""
        other = [one for one in self.components if one.action not in (LOAD, ABSENT)]
        lines = [f"{one.name}: {one.action} ({one.why})" for one in other]
        lines += [f"lr: {self.handed.words}; {handed_rate.UNDO}"] if self.handed else []
        return lines + [f"warning: {sentence}" for sentence in self.forecast.warnings]

    def require(self, is_accepted: bool) -> None:
        """Let the plan pass, or say why not.

        Args:
            is_accepted: `--accept` was given.

        Raises:
            Refused: it cannot be done.
            NeedsAccept: a person has to agree first.
        """
        if self.refusals:
            raise Refused(f"the plan is refused: {'; '.join(self.refusals)} ({_HINT})")
        require_consent(self.consents, is_accepted=is_accepted)

    def as_fields(self) -> dict[str, Any]:
        """Return the plan by schemas/plan.schema.json, without the run that will carry it out."""
        choice, candidate = self.choice, self.choice.chosen
        return {
            "version": VERSION,
            "relation": choice.relation,
            "experiment": choice.experiment,
            "parent_run_id": choice.parent.run_id if choice.parent else None,
            "step": (candidate.step or 0) if choice.init else choice.step,
            "init_from": choice.init.as_fields() if choice.init else None,
            "checkpoint": {
                "path": str(candidate.path), "run_id": candidate.run_id, "step": candidate.step,
                "grade": candidate.grade, "reason": candidate.reason,
            },
            "passed_over": [
                {"path": str(one.path), "run_id": one.run_id, "step": one.step, "reason": one.reason}
                for one in choice.candidates if one.verdict == "passed"
            ],
            "changes": [_change_fields(change, CONFIG) for change in choice.changed]
            + [_change_fields(change, ENVIRONMENT) for change in self.environment]
            + [_change_fields(change, RECOVERY) for change in self.measures],
            "components": {one.name: _component_fields(one, choice) for one in self.components},
            "weights": _match_fields(self.match),
            "optimizer": self.optimizer,
            "new_params": config.get(choice.config, "resume.new_params", "module"),
            "lr_scale": self.lr_scale.as_fields(),
            "phase": self.phase,
            "handed_rate": self.handed.as_fields() if self.handed else None,
            "learning_rates": [rate._asdict() for rate in self.forecast.rates],
            "totals": list(self.forecast.totals),
            "warnings": list(self.forecast.warnings),
            "notes": list(choice.said),
            "recovery": choice.recovery.as_fields() if choice.recovery else None,
            "verdict": self.verdict,
            "consents": list(self.consents),
            "refusals": list(self.refusals),
        }  # fmt: skip


def make(choice: Choice, schema: Schema, ready: Ready, code: Code | None) -> Plan:
    """Make the plan of a choice that starts from a checkpoint.

    Args:
        schema: of the new config.
        ready: the trainer's command and interpreter; it is asked for its model where weights are loaded.
        code: the state of the code now; None where git was not asked.

    Raises:
        InvalidFile: the checkpoint's learning rate scale is not one, or the trainer's description fails.
    """
    candidate, parent, step = choice.chosen, choice.parent, choice.step or 0
    holder = choice.holder
    record, versions = holder.record if holder else {}, ready.versions.comparable()
    differs = tuple(compatibility.machine_changes(record, versions, code))
    with_kit, inside = bool(config.get(choice.config, "trainer.loads_with_kit")), candidate.content
    keys = inside.keys if with_kit else (*inside.keys, *inside.known_as)
    held = plan_rules.held_by(keys, inside.counters, inside.optimizers)
    trained_with = plan_rules.optimizer_at(holder.config, holder.parent_step or 0) if holder and holder.config else None
    optimizers = Optimizers(trained_with, plan_rules.optimizer_at(choice.config, step))
    found = plan_rules.decide_components(
        held, (*choice.changed, *differs), optimizers, config.get(choice.config, "resume", {})
    )
    if not with_kit and "model_state_dict" not in inside.keys:
        found = plan_rules.of_its_own(found)
    held_scale = _held_scale(candidate, holder, choice.config)
    scale = _inherited_scale(choice, held_scale)
    swaps = [one.name.partition(".")[2] for one in found if one.action == SWAP]
    scale = _with_ramp(scale, choice.config, step, swaps) if swaps else scale
    if choice.recovery is not None:
        scale = scale._replace(factor=scale.factor * choice.recovery.lr_factor)
    if not with_kit and not handed_rate.is_taken(choice.config):
        scale = LrScale()  # nothing cuts the rate of such a trainer
    is_asked = choice.recovery is None and not _has_the_same_model(choice, holder, differs, code)
    handed = handed_rate.of(choice.config, schema, step, scale, (holder.config if holder else None, held_scale))
    match, unanswered = _compared(found, choice, ready, is_asked=is_asked)
    settled: tuple[Component, ...] = ()
    if parent is not None and holder is not None and holder.run_id != parent.run_id:
        settled = _settled(choice, parent, held, differs, optimizers)
    rules = plan_rules.judge(found, choice, held, optimizers, match, settled)
    constant = LrScale(handed.factor) if handed else scale  # an argument is one number
    ahead = forecast.of(choice, schema, held_scale, constant, found)
    of_this_machine = compatibility.machine_consents(record, versions) if choice.recovery is None else ()
    of_ranks = compatibility.of_ranks(candidate.known, differs, choice.config) if with_kit else ()
    return Plan(
        choice=choice, components=found, environment=differs, lr_scale=scale, match=match,
        forecast=ahead._replace(warnings=(*ahead.warnings, *_of_data(holder, ready), *unanswered, *of_ranks)),
        measures=tuple(_measures(choice.recovery, held_scale, scale)), optimizer=optimizers.wanted, handed=handed,
        consents=(*choice.consents, *rules.consents, *of_this_machine),
        refusals=(*rules.refusals, *filter(None, [handed_rate.refusal(choice.config, scale, step)])),
    )  # fmt: skip


def with_weights_alone(choice: Choice, init: InitBase, schema: Schema, ready: Ready) -> Plan:
    """Make the plan of a new lineage that takes the weights of a checkpoint, and nothing else of it.

    Args:
        init: that checkpoint.
        schema, ready: as in `make`.

    Raises:
        Refused: the config asks for a run without them.
        InvalidFile: the trainer's description fails.
    """
    inside = init.candidate.content
    held = plan_rules.held_by(inside.keys, inside.counters, inside.optimizers)
    policies = {kind: one for kind, one in init_base.policies(choice.config).items() if kind in held.components}
    found = plan_rules.decide_components(held, (), Optimizers(None, None), policies)
    found = tuple(one if one.code == NOT_HELD else one._replace(why=init_base.WHY) for one in found)
    if "weights" not in held.components:
        found = plan_rules.of_its_own(found)
    match, unanswered = _compared(found, choice, ready, is_asked=choice.recovery is None)
    # What a trainer that loads by itself does with them, `--init-from` itself has asked of it.
    rules = plan_rules.judge(found, choice, held, Optimizers(None, None), match, settled=found)
    ahead = forecast.of(choice, schema, LrScale(), LrScale(), found)
    rates = tuple(one._replace(before=None) for one in ahead.rates)
    return Plan(
        choice=choice, components=found, environment=(), measures=(), lr_scale=LrScale(), match=match,
        forecast=ahead._replace(rates=rates, warnings=(*ahead.warnings, *unanswered)),
        consents=(*choice.consents, *rules.consents), refusals=rules.refusals,
    )  # fmt: skip


def _of_data(holder: Run | None, ready: Ready) -> list[str]:
    if holder is None or ready.data is None:
        return []
    from . import data_state  # late, as where they are looked at

    return data_state.differences(holder, ready.data)


def _has_the_same_model(choice: Choice, holder: Run | None, differs: Sequence[Change], code: Code | None) -> bool:
    """Whether the trainer makes the model of the run that holds the checkpoint: by the same code and settings."""
    if holder is None or code is None or code.commit is None or code.left_out is None or code.left_out:
        return False
    is_known = mapping(holder.record.get("git")).get("commit") is not None
    changed = [one.key for one in (*differs, *choice.changed)]
    return is_known and not any(key.startswith(("git.", "model.", "trainer.", "data.")) for key in changed)


def _compared(
    found: Sequence[Component], choice: Choice, ready: Ready, *, is_asked: bool
) -> tuple[WeightFit | None, tuple[str, ...]]:
    """Compare the weights with the trainer's own description of its model, where it offers one.

    Args:
        found: what is done with each component.
        choice, ready: as in `make`.
        is_asked: weights that are loaded whole are compared too. A recovery waits for no such answer, and what makes
            the model of the checkpoint's own run needs none.

    Returns:
        (how they fit; None where it was not asked or did not answer, what is to be said of that). A load in part
        stands on the answer, and is an error without; any other is none.
    """
    action = next(one.action for one in found if one.name == "weights")
    if action not in (LOAD, PARTIAL) or (action == LOAD and not is_asked):
        return None, ()
    try:
        return compatibility.ask_for_shapes(choice, ready), ()
    except InvalidFile as error:
        if action == PARTIAL:
            raise
        return None, (str(error),)


def _settled(
    choice: Choice, parent: Run, held: plan_rules.Held, differs: Sequence[Change], optimizers: Optimizers
) -> tuple[Component, ...]:
    """Return what the parent, as it was started, would get from the checkpoint: with what it was told and had changed.

    An environment that has changed since then is not decided yet.
    """
    here = {one.key: one.new for one in differs}
    since = {one.key for one in compatibility.machine_changes(parent.record, here, None)}
    changed = [one for one in choice.changed if one.key in choice.already_accepted]
    policies = dict(config.get(choice.config, "resume", {}))
    for one in choice.changed:
        section, _, name = one.key.partition(".")
        if section == "resume" and one.key not in choice.already_accepted:
            policies[name] = one.old
    wanted = plan_rules.optimizer_at(parent.config, choice.step or 0)
    kept = [one for one in differs if one.key not in since]
    return plan_rules.decide_components(held, (*changed, *kept), Optimizers(optimizers.before, wanted), policies)


def _measures(recovery: Recovery | None, held: LrScale, scale: LrScale) -> Iterator[Change]:
    """Yield what makes the training another one than the checkpoint's, though no key of the config says so."""
    if held.factor != scale.factor:
        yield Change(
            key="lr_scale", old=held.factor, new=scale.factor, actions={"lr": "scale"}, consent=None, refuse=None
        )
    if recovery is not None and recovery.skip_data_steps:
        skipped = recovery.skip_data_steps
        action = {"data_position": "skip"}
        yield Change(key="data.skipped_steps", old=0, new=skipped, actions=action, consent=None, refuse=None)


def _inherited_scale(choice: Choice, held: LrScale) -> LrScale:
    """Return what the learning rate is multiplied by before anything new.

    The checkpoint says it (`held`). But a run that was cut, and died before its first checkpoint, has said it in its
    plan only: a run that continues it from its parent's checkpoint must not undo the cut.
    """
    parent, candidate = choice.parent, choice.chosen
    if choice.relation == CONTINUE and parent is not None and candidate.run_id != parent.run_id:
        try:
            if (scale := plan_file.read(parent.paths.resume_plan).lr_scale) is None:
                raise ValueError("it has no lr_scale")
            return scale
        except (UnreadableFile, ValueError) as error:
            if os.path.lexists(parent.paths.resume_plan):
                raise InvalidFile(
                    f"'{parent.paths.resume_plan}' cannot be read ({error}), and whether its run had its learning rate "
                    "cut stands there alone; resume.sh --step N branches from before it"
                ) from error
    return held


def _held_scale(candidate: Candidate, holder: Run | None, resolved: dict[str, Any]) -> LrScale:
    """Return what the rate was multiplied by in a checkpoint: it says so itself, else the plan of its run."""
    inside = candidate.content
    if holder is not None and inside.counters.get("lr_scale") is None and inside.lr_ramp is None:
        return handed_rate.held_scale(holder, resolved)
    try:
        return lr_scale.from_fields(inside.counters.get("lr_scale"), inside.lr_ramp)
    except ValueError as error:
        raise InvalidFile(f"checkpoint '{candidate.path}': {error}") from error


def _with_ramp(inherited: LrScale, resolved: dict[str, Any], step: int, swaps: Sequence[str]) -> LrScale:
    """Put a new ramp in the place of an old one: the optimizers named by `swaps` are swapped at `step`."""
    section = config.get(resolved, "optimizer", {})
    ramp = Ramp(
        step, section.get("swap_lr_steps", SWAP_STEPS), float(section.get("swap_lr_factor", SWAP_FACTOR)),
        bool(section.get("swap_warm_restart")), lr_scale.swapped(swaps),
    )  # fmt: skip
    return inherited._replace(ramp=ramp)


def _component_fields(one: Component, choice: Choice) -> dict[str, Any]:
    forced = {"forced": True} if one.name == "weights" and plan_rules.is_forced(choice) else {}
    return {"action": one.action, "why": one.why, "code": one.code, **forced}


def _match_fields(match: WeightFit | None) -> dict[str, Any] | None:
    if match is None:
        return None
    names = {"new": match.missing, "vanished": match.unexpected, "reshaped": match.reshaped}
    shown = {kind: list(own)[:MAX_NAMES] for kind, own in names.items()}
    return {"matched": len(match.pairs), "fraction": match.matched_share, **shown}


def _change_fields(change: Change, origin: str) -> dict[str, Any]:
    return {
        "key": change.key, "old": change.old, "new": change.new, "origin": origin, "effect": change.actions,
        "consent": change.consent, "refuse": change.refuse,
    }  # fmt: skip
