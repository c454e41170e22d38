"""When a sidecar stops its run for a loss that is not finite: two tellings, and two seconds from the first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumekit.process import aborting, nan_guard
from resumekit.run.journal_fold import fold
from support.journal_events import event, step


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The stops that are asked for: evidence and first bad step."""
    found: list[tuple[str, int]] = []

    def abort(_run: Any, _cause: str, evidence: str, *, first_bad_step: int) -> bool:
        found.append((evidence, first_bad_step))
        return True

    monkeypatch.setattr(aborting, "abort", abort)
    return found


def watched(tmp_path: Path, losses: list[Any], step_s: float, looks_until_s: float) -> None:
    """Let a sidecar look four times a second at a trainer that tells these losses, one in each step."""
    one = nan_guard.NanGuard(SimpleNamespace(paths=SimpleNamespace(paused=tmp_path / "paused")))
    waiting = [step(number, number * step_s, loss) for number, loss in enumerate(losses, 1)]
    state, now_s = fold({}, [event("launched", 0.0)]), 0.0
    while now_s < looks_until_s:
        now_s += 0.25
        due = [told for told in waiting if told["mono_s"] <= now_s]
        waiting = waiting[len(due) :]
        state = fold(state, due)
        one.stop_if_nonfinite(state, now_s)


@pytest.mark.parametrize("step_s", [0.1, 1.0, 4.0, 60.0])
def test_one_nan_that_the_trainer_skips_stops_nothing(
    tmp_path: Path, stops: list[tuple[str, int]], step_s: float
) -> None:
    watched(tmp_path, [1.0, 1.0, "nan", *[1.0] * 5], step_s, 8 * step_s)
    assert stops == []


@pytest.mark.parametrize("step_s, after_s", [(0.1, 2.0), (0.5, 2.0), (4.0, 4.0), (60.0, 60.0)])
def test_a_nan_that_stays_stops_the_run_two_seconds_after_the_first_and_with_the_second(
    tmp_path: Path, stops: list[tuple[str, int]], step_s: float, after_s: float
) -> None:
    losses = [1.0, 1.0, *["nan"] * int(4 + 4 / step_s)]
    watched(tmp_path, losses, step_s, 3 * step_s + after_s - 0.5)
    assert stops == []
    watched(tmp_path, losses, step_s, 3 * step_s + after_s + 0.5)
    assert stops[0] == ("loss nan in step 3", 3)


def test_one_nan_and_then_silence_is_left_to_the_watcher(tmp_path: Path, stops: list[tuple[str, int]]) -> None:
    watched(tmp_path, [1.0, "nan"], 1.0, 600.0)
    assert stops == []
