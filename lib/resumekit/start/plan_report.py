"""A decided start, told to a person or to a program: what `--dry-run` prints. Fits a terminal of 80 by 24.

What is simply loaded takes one line; what is not takes one each, with its reason. Reads nothing.
Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from collections.abc import Iterator, Sequence

from ..base.errors import DONE, NEEDS_ACCEPT, REFUSED
from ..base.imports import Any
from ..base.terminal import (
    COMPARED,
    HELD,
    PASSED_OVER,
    WARNING,
    first_few,
    kind_of,
    plain,
    show_json,
    show_text,
)  # fmt: skip
from ..base.terms import KEEPS_LESS, PARTIAL
from ..checkpoint import manifest
from ..checkpoint.parameters import WeightFit
from ..checkpoint.selection import Candidate
from ..config import config
from . import plan as plans
from . import preflight
from .choice import Choice
from .forecast import STEPS_SHOWN, Rate
from .pipeline import Planned
from .plan import Plan
from .plan_rules import Component, difference, show_component

WIDTH = 80
_SHOWN = 4
_LABEL = 13
# What was passed over has its own lines on the page, and so has what the changes are about; what is held is evidence.
_LISTED = (PASSED_OVER, COMPARED, HELD)


def print_report(planned: Planned, *, is_json: bool) -> int:
    """Print what a start would do, for a person or as JSON; return the exit code that says whether it may."""
    choice, plan = planned.choice, planned.plan
    warnings = planned.code.warnings if planned.code else ()
    if is_json:
        page = as_json(choice, plan, warnings)
        show_json(page)
    else:
        command: Sequence[str] = ()
        if plan is None and planned.ready is not None:
            command = preflight.trainer_argv(choice, preflight.run_paths(choice, "RUN_ID"), planned.ready)
        page = as_text(choice, plan, command, warnings)
        show_text(page)
    if plan is None:
        return NEEDS_ACCEPT if choice.consents else DONE
    return REFUSED if plan.refusals else NEEDS_ACCEPT if plan.consents else DONE


def as_text(choice: Choice, plan: Plan | None, command: Sequence[str] = (), warnings: Sequence[str] = ()) -> str:
    """Return the page for a person.

    Args:
        plan: None where it begins anew.
        command: the trainer's, which is shown where there is no plan.
        warnings: sentences about the code.
    """
    lines = [choice.title]
    if plan is not None:
        lines += _plan_lines(plan)
    elif command:
        lines += _row("command", shlex.join(command))
    lines += [line for sentence in choice.said if kind_of(sentence) not in _LISTED for line in _noted(sentence)]
    lines += [line for sentence in warnings for line in _noted(sentence)]
    if plan is not None:
        lines += _verdict(plan.verdict, plan.refusals or plan.consents)
    elif choice.consents:
        lines += _verdict(plans.NEEDS_CONSENT, choice.consents)
    lines.append("nothing was changed (--dry-run)")
    return "\n".join(map(plain, lines))


def as_json(choice: Choice, plan: Plan | None, warnings: Sequence[str] = ()) -> str:
    """Return the same for programs: the plan's fields, and every checkpoint that was thought of."""
    parent = choice.parent.run_id if choice.parent else None
    anew: dict[str, Any] = {
        "relation": choice.relation, "experiment": choice.experiment, "parent_run_id": parent, "checkpoint": None,
    }  # fmt: skip
    if choice.consents:
        anew |= {"verdict": plans.NEEDS_CONSENT, "consents": list(choice.consents)}
    fields = plan.as_fields() if plan else anew
    candidates = [
        {"step": one.step, "path": str(one.path), "run_id": one.run_id, "verdict": one.verdict, "reason": one.reason}
        for one in choice.candidates
    ]
    return json.dumps(fields | {"candidates": candidates, "notes": [*choice.said, *warnings]}, indent=2)


def _plan_lines(plan: Plan) -> Iterator[str]:
    choice, candidate = plan.choice, plan.choice.chosen
    yield from _row("checkpoint", min(str(candidate.path), _from_here(candidate), key=len), can_break=False)
    held = [
        sentence.removeprefix("the checkpoint is ").partition(", until")[0]
        for sentence in choice.said
        if kind_of(sentence) == HELD
    ]
    yield from _row("evidence", ", ".join((_evidence(candidate), *held)))
    if choice.init:
        yield from _row("init from", f"its weights alone, at step 0; SHA-256 {choice.init.sha256[:12]}")
    passed = [one for one in choice.candidates if one.verdict == "passed"]
    for one in passed[:_SHOWN]:
        yield from _row("passed over", f"{one.path.name}: {one.reason}")
    if len(passed) > _SHOWN:
        yield from _row("", f"and {len(passed) - _SHOWN} more (--json lists all)")
    yield from _changes(plan)
    yield from _components(plan.components, plan.match)
    yield from _rates(plan.forecast.rates)
    if plan.handed:
        yield from _row("lr handed", plan.handed.words)
    if plan.phase:
        yield from _row("", f"phase of the schedule: {plan.phase}")
    ramp = plan.lr_scale.ramp
    if ramp and ramp.from_step == choice.step:
        how = "a warm restart" if ramp.warm_restart else f"x {ramp.factor:g}"
        whose = f" of {', '.join(ramp.optimizers)} alone" if ramp.optimizers else ""
        end = ramp.from_step + ramp.steps + 1
        yield from _row("", f"{how} for {ramp.steps:,} steps{whose}, whole again in step {end:,}")
        decay = config.get(choice.config, "optimizer.swap_weight_decay")
        if decay is not None:
            yield from _row("", f"weight decay of the new optimizer: {decay:g} (optimizer.swap_weight_decay)")
    if plan.forecast.totals:
        yield from _row("totals", "; ".join(plan.forecast.totals))
    for sentence in plan.forecast.warnings:
        yield from _row("warning", sentence)


def _evidence(candidate: Candidate) -> str:
    """Say what makes the checkpoint stable."""
    known, begin = candidate.known, f"{candidate.grade}: {candidate.reason}"
    if known is None:
        return begin
    said = [f"{begin}; SHA-256 as in its manifest"]
    said += ["optimizer step completed"] if known.step_completed else []
    what = "loss and weights" if known.writer == manifest.SAVE_CHECKPOINT else "weights"
    said += [f"{what} finite"] if known.finite else []
    said += [f"saved {known.created_at[:16].replace('T', ' ')} UTC"]
    if last := manifest.fast_eval_of(known.last_fast_eval):
        step, metric, score = last
        said.append(f"fast eval at step {step}: {metric} {score:.4g}")
    return ", ".join(said)


def _from_here(candidate: Candidate) -> str:
    try:
        return os.path.relpath(candidate.path)
    except OSError:  # the current folder is gone
        return str(candidate.path)


def _changes(plan: Plan) -> Iterator[str]:
    for sentence in plan.choice.said:
        if kind_of(sentence) == COMPARED:
            yield from _row("compared", sentence.removeprefix("compared "))
    free = []
    # What a run is called costs nothing and is plain from the first line.
    for change in (one for one in plan.changes if not one.key.startswith("experiment.")):
        effect = ", ".join(f"{name}: {action}" for name, action in change.actions.items())
        if change.consent or change.refuse:
            effect = "refused" if change.refuse else "needs consent"
        elif not effect:
            free.append(difference(change, _value))
            continue
        yield from _row("changed", f"{difference(change, _value)} ({effect})")
    if free:
        yield from _row("at no cost", "; ".join(free))


def _value(value: Any) -> str:
    """Return a value for the page; of a commit or digest its beginning, as git shows it."""
    is_hash = isinstance(value, str) and len(value) in (40, 64) and set(value) <= set("0123456789abcdef")
    return value[:12] if is_hash else show_component(value)


def _components(components: Sequence[Component], match: WeightFit | None) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for one in components:
        groups.setdefault((one.action, one.why), []).append(one.name)
    for (action, why), names in sorted(groups.items(), key=lambda item: KEEPS_LESS.index(item[0][0])):
        yield from _row(action, ", ".join(names) + (f": {why}" if why else ""))
        if "weights" in names:
            yield from _weights(match, is_partial=action == PARTIAL)


def _weights(match: WeightFit | None, *, is_partial: bool) -> Iterator[str]:
    if match is None:
        return
    yield from _row(
        "", f"{len(match.pairs)} tensors match: {match.matched_share:.1%} of the checkpoint's weights are kept"
    )
    if match.is_whole and is_partial:
        yield from _row("", "nothing is new, left out or reshaped: does the trainer read what was changed?")
    for word, names in (("new", match.missing), ("left out", match.unexpected), ("other shape", match.reshaped)):
        if names:
            yield from _row("", f"{len(names)} {word}: {first_few(names, _SHOWN)}")


def _rates(rates: Sequence[Rate]) -> Iterator[str]:
    unknown = [rate.key for rate in rates if rate.after is None]
    if unknown:
        yield from _row("lr", f"{', '.join(unknown)}: the trainer's own schedule decides; the kit cannot see it")
    foretold = [(rate, rate.after) for rate in rates if rate.after is not None]
    kept = [(rate, after) for rate, after in foretold if rate.before == after]
    if kept:
        shown = "; ".join(f"{rate.key} {_numbers(after)}" for rate, after in kept)
        yield from _row("lr", f"as before in {_steps(kept[0][0])}: {shown}")
    for rate, after in foretold:
        if rate.before != after:
            was = _numbers(rate.before) if rate.before else "not known"
            yield from _row("lr", f"{rate.key} in {_steps(rate)}: {was} -> {_numbers(after)}")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _steps(rate: Rate) -> str:
    return f"steps {rate.first_step} to {rate.first_step + STEPS_SHOWN - 1}"


def _verdict(verdict: str, reasons: Sequence[str]) -> Iterator[str]:
    yield f"verdict: {verdict}" + (", --accept gives it" if verdict == plans.NEEDS_CONSENT else "")
    for reason in reasons:
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


def _noted(sentence: str) -> list[str]:
    if kind_of(sentence) == WARNING:
        return _row("warning", sentence.removeprefix("warning: "))
    return _row("note", sentence)
