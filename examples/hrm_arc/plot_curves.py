"""Draw the loss and the evaluations of a run and all it was resumed from, spliced into one curve, as a PNG.

Reads `run.json` and `journal.jsonl` of the run folder, and of its parents beside it: up to the step at which a child
began, the curve is its parent's; from there on the child's. What a parent trained beyond that step is drawn beside it,
dotted. Of any trainer whose journal tells steps; evaluations are drawn where it tells some. Writes the picture.
Try it: `python examples/hrm_arc/plot_curves.py runs/EXP-01_20261122-1735 --out curve.png`
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20
MAX_GENERATIONS = 1000
WEIGHTS_STYLE = {"ema": "--", "swa": "-."}
# A mean is taken over so many of the usual ways between two steps that are told, and over a tenth of a run at most.
SMOOTHED = 50
# Of the example's evaluations these two are drawn, with what copying the input gives.
ARC = {"cell_accuracy": "cells", "accuracy": "whole grids"}
NO_METRICS = frozenset({"step", "mono_s", "loss", "examples", "epoch"})


@dataclass
class Curve:
    """What a run went through, by step.

    Args:
        label: what the legend says.
        losses: step -> loss.
        evals: (step, kind, weights) -> the eval event.
        joints: steps at which a child took over from its parent.
        tails: of each parent that trained beyond that step, step -> loss of what was left behind.
    """

    label: str
    losses: dict[int, float] = field(default_factory=dict)
    evals: dict[tuple[int, str, str], dict[str, Any]] = field(default_factory=dict)
    joints: list[int] = field(default_factory=list)
    tails: list[dict[int, float]] = field(default_factory=list)

    def metrics(self) -> list[str]:
        """Return what its evaluations measure: the example's shares, else every number that they tell but the loss."""
        told = {key for event in self.evals.values() for key, value in event.items() if _is_number(value)}
        return [name for name in ARC if name in told] if "cell_accuracy" in told else sorted(told - NO_METRICS)


def spliced(run_dir: Path) -> Curve:
    """Return the curve of a run along its lineage.

    Args:
        run_dir: the newest run's folder; parents are looked for beside it, and a missing one is said on stderr.

    Raises:
        ValueError: `run_dir` holds no journal.
    """
    if not (run_dir / "journal.jsonl").is_file():
        raise ValueError(f"no journal in '{run_dir}'; name a run folder")
    curve = Curve(run_dir.name)
    for folder, first_step, last_step in lineage(run_dir):
        if first_step:
            curve.joints.append(first_step)
        curve.tails.append({})
        for event in events(folder / "journal.jsonl"):
            _take(curve, event, first_step, last_step)
    curve.losses = dict(sorted(curve.losses.items()))
    curve.tails = [dict(sorted(tail.items())) for tail in curve.tails if tail]
    return curve


def lineage(run_dir: Path) -> list[tuple[Path, int, float]]:
    """Return (folder, step it began from, last step that counts), oldest first."""
    chain, last_step = [], float("inf")
    folder: Path | None = run_dir
    while folder and len(chain) < MAX_GENERATIONS:
        record = _run_json(folder)
        parent, began = record.get("parent_run_id"), record.get("parent_step") or 0
        chain.append((folder, began, last_step))
        last_step = min(last_step, began)
        folder = run_dir.parent / Path(parent).name if isinstance(parent, str) and parent else None
        if folder and not (folder / "journal.jsonl").is_file():
            print(f"plot_curves.py: the parent '{folder}' has no journal here; the curve begins later", file=sys.stderr)
            folder = None
    return chain[::-1]


def events(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a journal; lines that are torn or no objects are passed over."""
    with open(journal, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def draw(curves: list[Curve], out: Path) -> None:
    """Draw the losses, and below them the evaluations, where there are any."""
    import matplotlib  # late: splicing needs no picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    has_evals = any(curve.metrics() for curve in curves)
    rows = 2 if has_evals else 1
    figure, axes = pyplot.subplots(rows, 1, figsize=(9, 4 * rows), sharex=True, layout="constrained", squeeze=False)
    upper, lower = axes[0][0], axes[-1][0]
    for number, curve in enumerate(curves):
        _draw_losses(upper, curve, f"C{number}")
        if has_evals:
            _draw_evals(lower, curve, f"C{number}")
    if any("cell_accuracy" in curve.metrics() for curve in curves):
        _draw_baseline(lower)
    upper.set_ylabel("training loss")
    lower.set_xlabel("optimizer step")
    for panel in {upper, lower}:
        panel.legend(fontsize="small")
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def window_of(steps: list[int]) -> int:
    """Return how many steps a mean is taken over: SMOOTHED usual ways from one told step to the next.

    Of a short run fewer: a mean of nearly all of its steps would show nothing of its course.
    """
    ways = sorted(later - step for step, later in pairwise(steps))
    return min(SMOOTHED, max(1, len(steps) // 10)) * (ways[len(ways) // 2] if ways else 1)


def smoothed(losses: dict[int, float], window: int) -> list[float]:
    """Return at each step the mean over the last `window` steps, of those that were told; steps rise."""
    steps, values = list(losses), list(losses.values())
    total, first, means = 0.0, 0, []
    for index, value in enumerate(values):
        total += value
        while steps[first] <= steps[index] - window:
            total -= values[first]
            first += 1
        means.append(total / (index + 1 - first))
    return means


def _draw_losses(axes: Any, curve: Curve, colour: str) -> None:
    steps, window = list(curve.losses), window_of(list(curve.losses))
    axes.plot(steps, list(curve.losses.values()), color=colour, alpha=0.25, linewidth=0.6)
    means = smoothed(curve.losses, window)
    is_mean = means != list(curve.losses.values())
    axes.plot(steps, means, color=colour, label=f"{curve.label}, mean of {window} steps" if is_mean else curve.label)
    for joint in curve.joints:
        axes.axvline(joint, color=colour, linewidth=0.8, linestyle="-.", label=f"resumed at step {joint}")
    for number, tail in enumerate(curve.tails):
        label = "trained by a parent, not gone on from" if number == 0 else None
        axes.plot(list(tail), list(tail.values()), color="black", linestyle=":", linewidth=1.0, label=label)


def _draw_evals(axes: Any, curve: Curve, colour: str) -> None:
    """Draw each metric of each kind of weights: of full evaluations, or of fast ones where there is no full one."""
    kinds = {kind for _, kind, _ in curve.evals}
    what = "share right, test pairs" if "cell_accuracy" in curve.metrics() else "evaluation"
    axes.set_ylabel(what if "full" in kinds else f"{what} (fast)")
    shown = {(step, name): event for (step, kind, name), event in sorted(curve.evals.items())
             if kind == "full" or "full" not in kinds}  # fmt: skip
    for weights in sorted({name for _, name in shown}):
        for number, metric in enumerate(curve.metrics()):
            points = [(step, event[metric]) for (step, name), event in shown.items()
                      if name == weights and _is_number(event.get(metric))]  # fmt: skip
            style, label = WEIGHTS_STYLE.get(weights, "-"), f"{curve.label}: {ARC.get(metric, metric)} ({weights})"
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=".x+1"[number % 4], label=label)


def _draw_baseline(axes: Any) -> None:
    from arc_data import load_arc
    from arc_eval import copy_the_input

    baseline = copy_the_input(load_arc())
    axes.axhline(baseline.cell_accuracy, color="black", linestyle=":", label="copy the input: cells")
    axes.axhline(baseline.accuracy, color="grey", linestyle=":", label="copy the input: whole grids")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _take(curve: Curve, event: dict[str, Any], first_step: int, last_step: float) -> None:
    step, kind = event.get("step"), event.get("event")
    if type(step) is not int or step < first_step:
        return
    if kind == "step" and step > first_step and _is_number(event.get("loss")):
        (curve.losses if step <= last_step else curve.tails[-1])[step] = event["loss"]
    elif kind == "eval" and step <= last_step:
        curve.evals[step, str(event.get("kind")), str(event.get("weights", "raw"))] = event


def _run_json(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def main(argv: list[str] | None = None) -> int:
    """Draw the named runs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folder; its parents are found beside it")
    parser.add_argument("--out", default="curve.png", metavar="PNG", help="the picture (default curve.png)")
    args = parser.parse_args(argv)
    try:
        draw([spliced(Path(run)) for run in args.runs], Path(args.out))
    except (OSError, ValueError) as error:
        print(f"plot_curves.py: {error}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
