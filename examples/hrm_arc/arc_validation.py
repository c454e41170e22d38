"""When to evaluate, what counts as progress, and what of it a checkpoint must remember.

All evaluations of a step are journalled together, after the last of them: one that a signal broke off leaves no trace
but `evals_pending`, and the resumed run does it first. So an interrupted run journals what an uninterrupted one does.
Try it: `python -m pytest tests/test_example_trainer.py -k eval`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

from arc_eval import Score


@dataclass
class Progress:
    """Where a run stands; all of it goes into the checkpoint.

    Args:
        step: completed optimizer steps.
        best_score, best_step, best_weights: the best full evaluation so far, by validation.best_metric.
        best_val_loss: the lowest loss of a full evaluation so far.
        fast_best: the best fast evaluation so far.
        fast_improved: whether a fast evaluation got better since the last full one (opens the gate).
        fast_stalled: fast evaluations in a row, up to now, that were no new best.
        last_fast: step and score of the last fast evaluation, this one under the name of validation.best_metric.
        evals_pending: evaluations that are due at `step` and not done yet: 'fast', 'full'.
        optimizer: kind of the model's optimizer, such as 'adamw'.
        swap_from_step: the step at which it took over from another one; None where it never did.
        swa_from_step: the step at which an SWA tail began; None before.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    best_weights: str | None = None
    best_val_loss: float = float("inf")
    fast_best: float | None = None
    fast_improved: bool = False
    fast_stalled: int = 0
    last_fast: dict[str, Any] | None = None
    last_full_step: int | None = None
    evals_pending: list[str] = field(default_factory=list)
    optimizer: str | None = None
    swap_from_step: int | None = None
    swa_from_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, as they go into a checkpoint."""
        return asdict(self)


def evals_due(step: int, cfg: SimpleNamespace) -> list[str]:
    """Return which evaluations follow `step`; `cfg` is the config's `validation` section."""
    cadence = (("fast", cfg.fast_eval_every), ("full", cfg.full_eval_every))
    return [kind for kind, every in cadence if step % every == 0]


def run_pending(
    progress: Progress,
    cfg: SimpleNamespace,
    evaluate: Callable[[str, str], Score | None],
    weights: tuple[str, ...],
    journal: Callable[..., None],
) -> dict[str, Any] | None:
    """Do the pending evaluations, journal them and bring `progress` up to date.

    Args:
        evaluate: (kind, weights) -> score, None where it was asked to stop: then nothing is journalled.
        weights: kinds of weights to evaluate, each on its own ('raw', 'ema', 'swa').
        journal: (event, **fields).

    Returns:
        {"score", "weights"} if a full evaluation is a new best, else None.
    """
    done: dict[str, dict[str, Score]] = {}
    for kind in progress.evals_pending:
        if kind == "full" and cfg.gate_full_eval_on_fast_improvement and not _gate_open(progress, done, cfg):
            print(f"full eval of step {progress.step} left out: no fast eval improved since the last one", flush=True)
            continue
        for name in weights:
            score = evaluate(kind, name)
            if score is None:
                return None
            done.setdefault(kind, {})[name] = score
    progress.evals_pending = []
    for kind, scores in done.items():
        for name, score in scores.items():
            _say(journal, progress.step, kind, name, score)
    if "fast" in done:
        _note_fast(progress, done["fast"], cfg)
    return _note_full(progress, done["full"], cfg, journal) if "full" in done else None


def _gate_open(progress: Progress, done: dict[str, dict[str, Score]], cfg: SimpleNamespace) -> bool:
    if progress.fast_improved or "fast" not in done:
        return progress.fast_improved
    return _better(best_of(done["fast"], cfg)[1], progress.fast_best, cfg)


def _note_fast(progress: Progress, scores: dict[str, Score], cfg: SimpleNamespace) -> None:
    _, value = best_of(scores, cfg)
    progress.last_fast = {"step": progress.step, cfg.best_metric: value}
    if _better(value, progress.fast_best, cfg):
        progress.fast_best, progress.fast_improved, progress.fast_stalled = value, True, 0
    else:
        progress.fast_stalled += 1


def _note_full(
    progress: Progress, scores: dict[str, Score], cfg: SimpleNamespace, journal: Callable[..., None]
) -> dict[str, Any] | None:
    progress.last_full_step, progress.fast_improved = progress.step, False
    progress.best_val_loss = min(progress.best_val_loss, *(score.loss for score in scores.values()))
    name, value = best_of(scores, cfg)
    if not _better(value, progress.best_score, cfg):
        return None
    progress.best_score, progress.best_step, progress.best_weights = value, progress.step, name
    journal("best", step=progress.step, score=value, weights=name)
    return {"score": value, "weights": name}


def _say(journal: Callable[..., None], step: int, kind: str, weights: str, score: Score) -> None:
    journal("eval", step=step, kind=kind, weights=weights, **asdict(score))
    print(
        f"eval {kind} {weights} step {step}: {score.accuracy:.1%} of {score.examples} grids, "
        f"{score.cell_accuracy:.1%} of cells, loss {score.loss:.4f}",
        flush=True,
    )


def best_of(scores: dict[str, Score], cfg: SimpleNamespace) -> tuple[str, float]:
    """Return the kind of weights that did best, and its value of the metric; raw where they are level."""
    values = {name: getattr(score, cfg.best_metric) for name, score in scores.items()}
    name = (max if cfg.best_mode == "max" else min)(values, key=values.__getitem__)
    return name, values[name]


def _better(value: float, than: float | None, cfg: SimpleNamespace) -> bool:
    if than is None:
        return True
    return value > than if cfg.best_mode == "max" else value < than
