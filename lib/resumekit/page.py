"""A choice, told to a person or to a program: what `--dry-run` prints."""

from __future__ import annotations

import json
from typing import Any

from .choice import CONTINUE, FRESH, Choice
from .terminal import plain

_SHOWN = 8


def headline(choice: Choice) -> str:
    """Say in one line what will be done."""
    if choice.relation == FRESH:
        return f"starting {choice.experiment} anew"
    candidate = choice.candidate
    origin = f"'{choice.parent.run_id}'" if choice.parent else f"'{candidate.path}'"
    verb = "continuing" if choice.relation == CONTINUE else "branching from"
    return f"{verb} {origin} at step {choice.step} ({candidate.grade}: {candidate.reason})"


def as_text(choice: Choice) -> str:
    """Return the page for a person: the checkpoint with its evidence, then what was passed over, then the rest."""
    lines = [headline(choice)]
    if choice.candidate is not None:
        lines += [f"  checkpoint  {choice.candidate.path}"]
    lines += [f"  {change.key}: {change.old!r} -> {change.new!r}" for change in choice.changed]
    lines += [f"  note: {sentence}" for sentence in choice.said]
    others = [c for c in choice.candidates if c is not choice.candidate]
    if others:
        lines.append("not taken:")
        width = max(len(c.path.name) for c in others[:_SHOWN])
        lines += [f"  {c.path.name:<{width}}  {c.reason}" for c in others[:_SHOWN]]
        if len(others) > _SHOWN:
            lines.append(f"  and {len(others) - _SHOWN} more (--json lists all)")
    lines.append("nothing was changed (--dry-run)")
    return "\n".join(map(plain, lines))


def as_json(choice: Choice) -> str:
    """Return the same for programs."""
    candidate = choice.candidate
    page: dict[str, Any] = {
        "relation": choice.relation,
        "experiment": choice.experiment,
        "parent_run_id": choice.parent.run_id if choice.parent else None,
        "checkpoint": _row(candidate) | {"grade": candidate.grade} if candidate else None,
        "candidates": [_row(c) for c in choice.candidates],
        "changes": [{"key": c.key, "old": c.old, "new": c.new, "actions": c.actions} for c in choice.changed],
        "notes": choice.said,
    }
    return json.dumps(page, indent=2)


def _row(candidate: Any) -> dict[str, Any]:
    return {"step": candidate.step, "path": str(candidate.path), "run_id": candidate.run_id,
            "verdict": candidate.verdict, "reason": candidate.reason}  # fmt: skip
