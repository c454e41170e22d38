"""The plan of a resume: from which checkpoint, what happens to each component and why, and whether it may happen.

Joins a choice with what the checkpoint holds and with what differs on this machine. Beside what the choice
has read it reads the parent's status, and asks the trainer for its model where weights are loaded in part.
`page` shows it, `launch` writes it down, the trainer executes it.
Try it: `bin/resume.sh EXP-01 --set training.max_steps=4000 --dry-run`
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..basics import lr_scale
from ..basics.actions import ABSENT, LOAD, PARTIAL, SWAP
from ..basics.errors import InvalidFile, Refused
from ..basics.files import UnreadableFile, read_json
from ..basics.lr_scale import LrScale, Ramp
from ..configuration import config
from ..configuration.changes import Change
from ..configuration.schema import Schema
from ..proving.checkpoints import Candidate
from ..proving.weight_fit import WeightFit
from ..run_folder.recovery import Recovery
from . import components, description, environment, forecast, plan_rules, schedules
from .choice import CONTINUE, Choice, require_consent
from .code_state import Code
from .components import Component, Optimizers
from .forecast import Forecast
from .heads import holder_of
from .preflight import Ready

VERSION = 1
MAX_NAMES = 1000
MAX_PLAN_BYTES = 4 << 20
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
        return None if place is None else schedules.phase_of(self.choice.config, place)

    @property
    def said(self) -> list[str]:
        """What a start says of it: the components that are not simply loaded, and the warnings."""
        other = [one for one in self.components if one.action not in (LOAD, ABSENT)]
        lines = [f"{one.name}: {one.action} ({one.why})" for one in other]
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
        choice, candidate = self.choice, self.choice.candidate
        return {
            "version": VERSION,
            "relation": choice.relation,
            "experiment": choice.experiment,
            "parent_run_id": choice.parent.run_id if choice.parent else None,
            "step": choice.step,
            "checkpoint": {
                "path": str(candidate.path), "run_id": candidate.run_id, "step": candidate.step,
                "grade": candidate.grade, "reason": candidate.reason,
            },
            "passed_over": [
                {"path": str(one.path), "run_id": one.run_id, "step": one.step, "reason": one.reason}
                for one in choice.candidates if one.verdict == "passed"
            ],
            "changes": [_change_fields(change, "config") for change in choice.changed]
            + [_change_fields(change, "environment") for change in self.environment]
            + [_change_fields(change, "recovery") for change in self.measures],
            "components": {one.name: _component_fields(one, choice) for one in self.components},
            "weights": _match_fields(self.match),
            "new_params": config.get(choice.config, "resume.new_params", "module"),
            "lr_scale": self.lr_scale.as_fields(),
            "phase": self.phase,
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
        ready: the trainer's command and interpreter; it is asked for its model where weights are loaded in part.
        code: the state of the code now; None where git was not asked.

    Raises:
        InvalidFile: the checkpoint's learning rate scale is not one, or the trainer's description fails.
    """
    candidate, step = choice.candidate, choice.step or 0
    holder = holder_of(candidate, choice.parent, choice.table) if choice.parent else None
    record, versions = holder.record if holder else {}, ready.versions.comparable()
    differs = tuple(environment.changes(record, versions, code))
    inside = candidate.inside
    held = components.held_by(inside.keys, inside.counters, inside.optimizers)
    trained_with = components.optimizer_at(holder.config, holder.parent_step or 0) if holder and holder.config else None
    optimizers = Optimizers(trained_with, components.optimizer_at(choice.config, step))
    found = components.decide(held, (*choice.changed, *differs), optimizers, config.get(choice.config, "resume", {}))
    if "weights" not in held.components and not config.get(choice.config, "trainer.loads_with_kit"):
        found = components.of_its_own(found)
    held_scale, inherited = _held_scale(candidate), _inherited_scale(choice)
    scale = _with_ramp(inherited, choice.config, step) if any(one.action == SWAP for one in found) else inherited
    if choice.recovery is not None:
        scale = scale._replace(factor=scale.factor * choice.recovery.lr_factor)
    is_partial = any(one.name == "weights" and one.action == PARTIAL for one in found)
    match = description.ask(choice, ready) if is_partial else None
    is_parents = holder is None or holder.run_id == choice.parent.run_id
    settled = () if is_parents else _settled(choice, held, differs, optimizers)
    rules = plan_rules.judge(found, choice, held, optimizers, match, settled)
    ahead = forecast.of(choice, schema, held_scale, scale, found)
    measures = tuple(_measures(choice.recovery, held_scale, scale))
    of_this_machine = environment.consents(record, versions) if choice.recovery is None else ()
    consents = (*choice.consents, *rules.consents, *of_this_machine)
    return Plan(choice, found, differs, measures, scale, match, ahead, consents, rules.refusals)


def _settled(
    choice: Choice, held: components.Held, differs: Sequence[Change], optimizers: Optimizers
) -> tuple[Component, ...]:
    """Return what the parent, as it was started, would get from the checkpoint: with what it was told and had changed.

    An environment that has changed since then is not decided yet.
    """
    parent = choice.parent
    here = {one.key: one.new for one in differs}
    since = {one.key for one in environment.changes(parent.record, here, None)}
    changed = [one for one in choice.changed if one.key in choice.settled]
    policies = dict(config.get(choice.config, "resume", {}))
    for one in choice.changed:
        section, _, name = one.key.partition(".")
        if section == "resume" and one.key not in choice.settled:
            policies[name] = one.old
    wanted = components.optimizer_at(parent.config, choice.step or 0)
    kept = [one for one in differs if one.key not in since]
    return components.decide(held, (*changed, *kept), Optimizers(optimizers.before, wanted), policies)


def _measures(recovery: Recovery | None, held: LrScale, scale: LrScale) -> Iterator[Change]:
    """Yield what makes the training another one than the checkpoint's, though no key of the config says so."""
    if held.factor != scale.factor:
        yield Change("lr_scale", held.factor, scale.factor, {"lr": "scale"}, None, None)
    if recovery is not None and recovery.skip_data_steps:
        yield Change("data.skipped_steps", 0, recovery.skip_data_steps, {"data_position": "skip"}, None, None)


def _inherited_scale(choice: Choice) -> LrScale:
    """Return what the learning rate is multiplied by before anything new.

    The checkpoint says it. But a run that was cut, and died before its first checkpoint, has said it in its plan only:
    a run that continues it from its parent's checkpoint must not undo the cut.
    """
    parent, candidate = choice.parent, choice.candidate
    if choice.relation == CONTINUE and parent is not None and candidate.run_id != parent.run_id:
        try:
            fields = read_json(parent.paths.resume_plan, MAX_PLAN_BYTES)["lr_scale"]
            return lr_scale.from_fields(fields["factor"], fields["ramp"])
        except (UnreadableFile, ValueError, TypeError, KeyError) as error:
            if os.path.lexists(parent.paths.resume_plan):
                raise InvalidFile(
                    f"'{parent.paths.resume_plan}' cannot be read ({error}), and whether its run had its learning rate "
                    "cut stands there alone; name a step with --step to branch from before it"
                ) from error
    return _held_scale(candidate)


def _held_scale(candidate: Candidate) -> LrScale:
    try:
        return lr_scale.from_fields(candidate.inside.counters.get("lr_scale"), candidate.inside.lr_ramp)
    except ValueError as error:
        raise InvalidFile(f"checkpoint '{candidate.path}': {error}") from error


def _with_ramp(inherited: LrScale, resolved: dict[str, Any], step: int) -> LrScale:
    """Put a new ramp in the place of an old one: a swap happens at `step`."""
    section = config.get(resolved, "optimizer", {})
    ramp = Ramp(
        step, section.get("swap_lr_steps", 1000), float(section.get("swap_lr_factor", 0.8)),
        bool(section.get("swap_warm_restart")),
    )  # fmt: skip
    return inherited._replace(ramp=ramp)


def _component_fields(one: Component, choice: Choice) -> dict[str, Any]:
    forced = {"forced": True} if one.name == "weights" and plan_rules.is_forced(choice) else {}
    return {"action": one.action, "why": one.why, **forced}


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
