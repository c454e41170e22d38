"""Journal events as a trainer writes them, made without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AT = "2026-11-22T17:35:51.123456Z"


def event(kind: str, mono_s: float, /, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "at": AT, "mono_s": mono_s, "run_id": "r", **fields}


def step(number: int, mono_s: float, loss: Any = 0.5, **fields: Any) -> dict[str, Any]:
    return event("step", mono_s, step=number, loss=loss, **fields)


def steady(first: int, last: int, from_s: float, step_s: float = 1.0) -> Iterator[dict[str, Any]]:
    """Steps at an even speed; the loss moves."""
    for number in range(first, last + 1):
        yield step(number, from_s + (number - first + 1) * step_s, 0.5 + 0.01 * (number % 7))
