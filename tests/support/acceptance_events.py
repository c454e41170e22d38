"""A resume's journal, healthy until a test changes it, and the verdicts of the acceptance rules on it."""

from __future__ import annotations

from typing import Any

from resumekit.base import terms
from resumekit.checks.expectations import Expected
from resumekit.checks.journal_rules import WINDOW_S, Rules

STEP = 100
LOSSES = {step: 2.0 + 0.01 * (step % 7) for step in range(STEP - 60, STEP + 30)}
PARENT = Expected(
    STEP, "cosine", ((0.0010, 0.0009, 0.0008),), LOSSES, (0.1,) * 40, "f00d", counts_from_0=False, is_counted=True
)


def step_event(step: int, mono_s: float, **fields: Any) -> dict[str, Any]:
    rates = {STEP + 1: 0.0010, STEP + 2: 0.0009, STEP + 3: 0.0008}
    told = {"loss": LOSSES.get(step, 2.0), "lr": rates.get(step, 0.0007), **fields}
    return {"event": "step", "step": step, "mono_s": mono_s, **told}


def healthy(count: int = 60, seconds: float = 0.1, first: int = STEP + 1) -> list[dict[str, Any]]:
    begin = [{"event": "resumed", "step": STEP, "mono_s": 9.0}, {"event": "data", "fingerprint": "f00d", "mono_s": 9.1}]
    return begin + [step_event(first + index, 10 + index * seconds) for index in range(count)]


def judged(
    told: list[dict[str, Any]], expected: Expected = PARENT, *, band: float = 0.15, loss_band: float | None = None,
    now_s: float = 10 + WINDOW_S, has_ended: bool = False, known: dict[str, str] | None = None,
) -> dict[str, terms.Check]:  # fmt: skip
    rules = Rules(expected, band, loss_band, known or {})
    for event in told:
        rules.see(event)
    return {one.name: one for one in rules.verdicts(now_s, has_ended=has_ended)}
