"""From what a log and a metrics file tell to the journal: resumekit.process.told_numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from resumekit.base.paths import RunPaths
from resumekit.process.told_numbers import ToldNumbers
from resumekit.run.journal_fold import fold
from resumekit.run.run_folder import Run

EVAL = {"event": "eval", "metrics": {"eval_loss": 2.5, "eval_accuracy": 0.5}}


class Journal:
    """The events of one run, each folded before the next is made, as the sidecar does from beat to beat."""

    def __init__(self, folder: Path, saved: Any = None, repeats_until: int = 0, **validation: str) -> None:
        run = Run(RunPaths(folder), {"run_id": "r"})
        run.config = {"validation": validation}
        self.numbers, self.events, self.now_s = ToldNumbers(run, repeats_until, saved), [], 1.0
        self.state: dict[str, Any] = fold({}, [{"event": "launched", "mono_s": 1.0}])

    def log(self, *found: dict[str, Any], read_from: int = 0) -> Journal:
        return self.take(self.numbers.of_log(list(found), self.state, read_from))

    def file(self, *rows: dict[str, Any]) -> Journal:
        return self.take(self.numbers.of_file(rows, self.state))

    def take(self, made: Any) -> Journal:
        made = list(made)
        for event, fields in made:
            self.now_s += 1.0
            strict = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
            self.state = fold(self.state, [{"event": event, "mono_s": self.now_s, **strict, "source": "log"}])
        self.events += made
        return self

    def told(self, kind: str, *names: str) -> list[Any]:
        rows = [tuple(fields.get(name) for name in names) for event, fields in self.events if event == kind]
        return [row[0] for row in rows] if len(names) == 1 else rows


def values(step: int, **more: Any) -> dict[str, Any]:
    return {"event": "values", "step": step, **more}


def test_a_value_of_a_step_that_is_known_is_told_of_it_and_an_older_one_only_if_it_is_not_finite(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path).log(
        {"step": 5}, values(5, loss=2.0, lr=0.1), values(4, loss=1.0), values(4, loss=math.nan)
    )
    assert journal.told("step", "step", "loss") == [(5, None), (5, 2.0)]
    assert journal.told("heartbeat", "global_step", "loss") == [(4, pytest.approx(math.nan, nan_ok=True))]
    assert (journal.state["step"], journal.state["loss"], journal.state["lr"]) == (5, 2.0, 0.1)


@pytest.mark.parametrize("loss", [2.0, math.nan])
def test_what_a_predecessor_may_have_told_is_told_again_only_if_it_is_not_finite(tmp_path: Path, loss: float) -> None:
    journal = Journal(tmp_path, repeats_until=100).log({"step": 5}, values(5, loss=loss), read_from=50)
    assert len(journal.told("step", "step")) == (1 if math.isfinite(loss) else 2)


def test_a_loss_that_is_not_finite_in_two_steps_is_a_fault_of_the_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path).log(*(values(step, loss=math.nan) for step in (5, 10)))
    assert (journal.state["symptoms"]["bad"]["step"], journal.state["symptoms"]["bad"]["told"]) == (5, 2)


@pytest.mark.parametrize(
    ("state", "first"),
    [({}, 0), ({"step": 7}, 8), ({"step": 7, "last_checkpoint_step": 20}, 21), ({"resumed_step": 40}, 41)],
)
def test_a_fault_without_a_step_lies_behind_all_that_is_known(
    tmp_path: Path, state: dict[str, int], first: int
) -> None:
    journal = Journal(tmp_path)
    journal.state |= state
    journal.log({"event": "nonfinite", "after": None})
    assert journal.told("nonfinite", "step") == [first] and journal.state["symptoms"]["bad"]["told"] == 2


def test_values_of_no_step_are_told_now_and_then(tmp_path: Path) -> None:
    journal = Journal(tmp_path).log({"event": "live", "loss": 0.5, "epoch": 3}).log({"event": "live", "loss": 0.4})
    assert journal.told("heartbeat", "loss", "global_step") == [(0.5, None)]
    assert (journal.state["loss"], journal.state["epoch"], "step" in journal.state) == (0.5, 3, False)


@pytest.mark.parametrize(
    ("validation", "metric", "score", "bests"),
    [
        ({}, "eval_loss", 2.5, [2.5, 2.0]),
        ({"best_metric": "accuracy", "best_mode": "max"}, "eval_accuracy", 0.5, [0.5]),
        ({"best_metric": "eval_loss", "best_mode": "max"}, "eval_loss", 2.5, [2.5, 3.0]),
        ({"best_metric": "f1", "best_mode": "max"}, "eval_loss", 2.5, []),
    ],
)
def test_an_evaluation_is_scored_by_the_metric_of_the_config(
    tmp_path: Path, validation: dict[str, str], metric: str, score: float, bests: list[float]
) -> None:
    journal = Journal(tmp_path, **validation)
    for step, loss in ((10, 2.5), (20, 3.0), (30, 2.0)):
        journal.log({**EVAL, "step": step, "metrics": {**EVAL["metrics"], "eval_loss": loss}})
    assert journal.told("eval", "step", "metric", "score")[0] == (10, metric, score)
    assert journal.told("eval", "accuracy") == [0.5] * 3 and journal.state["last_full_eval_step"] == 30
    assert journal.told("best", "score") == bests and journal.state.get("best_eval_acc") == (bests or [None])[-1]


def test_an_evaluation_that_log_and_file_tell_is_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path).log({**EVAL, "step": 10}).file({**EVAL, "step": 10}).file({**EVAL, "step": 20})
    assert journal.told("eval", "step") == [10, 20]


def test_the_best_that_a_trainer_names_is_it_whatever_is_less(tmp_path: Path) -> None:
    journal = Journal(tmp_path).file(
        *({"event": "best", "step": step, "score": score} for step, score in ((5, 1.0), (9, 2.0)))
    )
    assert journal.told("best", "step", "score") == [(5, 1.0), (9, 2.0)] and journal.state["best_step"] == 9


def test_the_best_of_the_trainers_own_events_is_not_taken_back_by_its_log() -> None:
    own = {"event": "best", "step": 5, "score": 0.9, "mono_s": 2.0}
    state = fold(
        {}, [own, {"event": "best", "step": 9, "score": 0.1, "mono_s": 3.0, "source": "log", "metric": "eval_loss"}]
    )
    assert (state["best_step"], state["best_eval_acc"], "best_metric" in state) == (5, 0.9, False)


def test_a_files_steps_count_where_the_log_tells_none_and_its_values_where_the_log_has_none(tmp_path: Path) -> None:
    alone = Journal(tmp_path).file({"step": 3, "lr": 0.1}, {"step": 3, "loss": 2.0}, {"step": 7, "loss": 1.5})
    assert alone.told("step", "step", "loss") == [(3, None), (3, 2.0), (7, 1.5)]
    successor = Journal(tmp_path, alone.numbers.account)
    successor.state = alone.state
    assert successor.file({"step": 11, "loss": 1.0}).told("step", "step") == [11]
    beside = (
        Journal(tmp_path)
        .log({"step": 50, "lr": 0.3})
        .file({"step": 40, "loss": 2.0, "lr": 0.1}, {"step": 60, "loss": 1.9})
    )
    assert beside.told("step", "step") == [50], "of two that tell steps only one does"
    assert beside.told("heartbeat", "global_step", "loss", "lr") == [(40, 2.0, None), (50, 1.9, None)]
    assert (beside.state["step"], beside.state["loss"], beside.state["lr"]) == (50, 1.9, 0.3)


def test_steps_of_a_log_that_lie_behind_those_of_the_file_take_nothing_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path).file({"step": 20, "loss": 1.0}).log({"step": 12}).log({"step": 14}).log({"step": 16})
    assert journal.told("step", "step") == [20]
