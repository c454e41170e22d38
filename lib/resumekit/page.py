"""A plan, told to a person or to a program: what `--dry-run` prints. Fits a terminal of 80 by 24.

What is simply loaded takes one line; what is not takes one each, with its reason. Reads nothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

from . import plan as plans
from .choice import CONTINUE, FRESH, Choice
from .components import ABSENT, LOAD, Component, show
from .description import Match
from .forecast import Rate
from .plan import Plan
from .terminal import plain

WIDTH = 80
_SHOWN = 4
_LABEL = 13


def headline(choice: Choice) -> str:
    """Say in one line what will be done."""
    if choice.relation == FRESH:
        return f"starting {choice.experiment} anew"
    candidate = choice.candidate
    origin = f"'{choice.parent.run_id}'" if choice.parent else f"'{candidate.path}'"
    verb = "continuing" if choice.relation == CONTINUE else "branching from"
    return f"{verb} {origin} at step {choice.step} ({candidate.grade}: {candidate.reason})"


def as_text(choice: Choice, plan: Plan | None) -> str:
    """Return the page for a person.

    Args:
        plan: None for a fresh start.
    """
    lines = [headline(choice)]
    if plan is not None:
        lines += _plan_lines(plan)
    lines += [line for sentence in choice.said if not _is_listed(sentence) for line in _row("note", sentence)]
    if plan is not None:
        lines += _verdict(plan)
    lines.append("nothing was changed (--dry-run)")
    return "\n".join(map(plain, lines))


def as_json(choice: Choice, plan: Plan | None) -> str:
    """Return the same for programs: the plan's fields, and every checkpoint that was thought of."""
    fields = plans.as_fields(plan) if plan else {"relation": choice.relation, "experiment": choice.experiment}
    candidates = [
        {"step": one.step, "path": str(one.path), "run_id": one.run_id, "verdict": one.verdict, "reason": one.reason}
        for one in choice.candidates
    ]
    return json.dumps(fields | {"candidates": candidates, "notes": list(choice.said)}, indent=2)


def _plan_lines(plan: Plan) -> Iterator[str]:
    choice = plan.choice
    yield from _row("checkpoint", str(choice.candidate.path), can_break=False)
    passed = [one for one in choice.candidates if one.verdict == "passed"]
    for one in passed[:_SHOWN]:
        yield from _row("passed over", f"{one.path.name}: {one.reason}")
    if len(passed) > _SHOWN:
        yield from _row("", f"and {len(passed) - _SHOWN} more (--json lists all)")
    yield from _changes(plan)
    yield from _components(plan.components)
    yield from _weights(plan.match)
    for rate in plan.forecast.rates:
        yield from _rate(rate)
    ramp = plan.lr_scale.ramp
    if ramp and ramp.from_step == choice.step:
        how = "a warm restart" if ramp.warm_restart else f"x {ramp.factor:g}"
        yield from _row("", f"{how} for {ramp.steps:,} steps, whole again from step {ramp.from_step + ramp.steps:,}")
    for sentence in plan.forecast.totals:
        yield from _row("totals", sentence)
    for sentence in plan.forecast.warnings:
        yield from _row("warning", sentence)


def _changes(plan: Plan) -> Iterator[str]:
    for change in plan.changes:
        effect = ", ".join(f"{name}: {action}" for name, action in change.actions.items()) or "costs nothing"
        if change.consent or change.refuse:
            effect = "refused" if change.refuse else "needs consent"
        yield from _row("changed", f"{change.key}: {show(change.old)} -> {show(change.new)} ({effect})")


def _components(components: Sequence[Component]) -> Iterator[str]:
    loaded = [one.name for one in components if one.action == LOAD and not one.why]
    if loaded:
        yield from _row(LOAD, ", ".join(loaded))
    absent: dict[str, list[str]] = {}
    for one in components:
        if one.action == ABSENT:
            absent.setdefault(one.why, []).append(one.name)
        elif one.name not in loaded:
            yield from _row(one.action, f"{one.name}: {one.why}")
    for why, names in absent.items():
        yield from _row(ABSENT, f"{', '.join(names)}: {why}")


def _weights(match: Match | None) -> Iterator[str]:
    if match is None:
        return
    yield from _row("", f"{len(match.matched)} tensors match, {match.fraction:.1%} of the checkpoint's weights")
    for word, names in (("new", match.new), ("left out", match.vanished), ("other shape", match.reshaped)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            yield from _row("", f"{len(names)} {word}: {', '.join(names[:_SHOWN])}{more}")


def _rate(rate: Rate) -> Iterator[str]:
    if rate.after is None:
        yield from _row("lr", f"{rate.key}: the trainer's own schedule decides; the kit cannot see it")
        return
    steps = f"steps {rate.first_step} to {rate.first_step + len(rate.after) - 1}"
    now = ", ".join(f"{value:.4g}" for value in rate.after)
    if rate.before == rate.after:
        yield from _row("lr", f"{rate.key}: {now} in {steps}, as before")
        return
    was = ", ".join(f"{value:.4g}" for value in rate.before) if rate.before else "not known"
    yield from _row("lr", f"{rate.key}: {was} -> {now} in {steps}")


def _verdict(plan: Plan) -> Iterator[str]:
    yield f"verdict: {plan.verdict}" + (", --accept gives it" if plan.verdict == plans.NEEDS_CONSENT else "")
    for reason in plan.refusals or plan.consents:
        yield from _row("because", reason)


def _row(label: str, text: str, *, can_break: bool = True) -> list[str]:
    """Return '  label        text', wrapped; a path is kept whole, so that it can be copied."""
    start = f"  {label:<{_LABEL}}"
    if not can_break:
        return [start + text]
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
        break_on_hyphens=False,
    ) or [start.rstrip()]  # fmt: skip


def _is_listed(sentence: str) -> bool:
    """What was passed over has its own lines on the page."""
    return sentence.startswith("passed over ")
