"""Draw the loss and accuracy of a run and all it was resumed from, spliced into one curve, as a PNG.

Reads `run.json` and `journal.jsonl` of the run folder, and of its parents beside it: up to the step at which a child
began, the curve is its parent's; from there on the child's. Writes the picture.
Try it: `python examples/hrm_arc/plot_curves.py runs/EXP-01_20261122-1735 --out curve.png`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20
MAX_GENERATIONS = 1000
WEIGHTS_STYLE = {"raw": "-", "ema": "--"}


@dataclass
class Curve:
    """What a run went through, by step.

    Args:
        label: what the legend says.
        losses: step -> loss.
        evals: (step, kind, weights) -> the eval event.
        joints: steps at which a child took over from its parent.
    """

    label: str
    losses: dict[int, float] = field(default_factory=dict)
    evals: dict[tuple[int, str, str], dict[str, Any]] = field(default_factory=dict)
    joints: list[int] = field(default_factory=list)


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
        for event in events(folder / "journal.jsonl"):
            _take(curve, event, first_step, last_step)
    curve.losses = dict(sorted(curve.losses.items()))
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
    """Draw loss above, accuracy beside the copy-the-input baseline below."""
    import matplotlib  # late: splicing needs no picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from arc_data import load_arc
    from arc_eval import copy_the_input

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(9, 8), sharex=True, layout="constrained")
    for number, curve in enumerate(curves):
        _draw_losses(upper, curve, f"C{number}")
        _draw_accuracy(lower, curve, f"C{number}")
    baseline = copy_the_input(load_arc())
    lower.axhline(baseline.cell_accuracy, color="black", linestyle=":", label="copy the input: cells")
    lower.axhline(baseline.accuracy, color="grey", linestyle=":", label="copy the input: whole grids")
    upper.set_ylabel("training loss")
    lower.set_ylabel("share right, test pairs")
    lower.set_xlabel("optimizer step")
    upper.legend(fontsize="small")
    lower.legend(fontsize="small")
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def smoothed(values: list[float], window: int) -> list[float]:
    """Return the mean over the last `window` values at each place."""
    sums, means = 0.0, []
    for index, value in enumerate(values):
        sums += value - (values[index - window] if index >= window else 0.0)
        means.append(sums / min(index + 1, window))
    return means


def _draw_losses(axes: Any, curve: Curve, colour: str) -> None:
    steps, losses = list(curve.losses), list(curve.losses.values())
    axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(steps, smoothed(losses, 50), color=colour, label=f"{curve.label}, mean of 50 steps")
    for joint in curve.joints:
        axes.axvline(joint, color=colour, linewidth=0.8, linestyle="-.", label=f"resumed at step {joint}")


def _draw_accuracy(axes: Any, curve: Curve, colour: str) -> None:
    for weights, style in WEIGHTS_STYLE.items():
        full = [event for (_, kind, name), event in sorted(curve.evals.items()) if kind == "full" and name == weights]
        if not full:
            continue
        steps = [event["step"] for event in full]
        cells, grids = ([event[key] for event in full] for key in ("cell_accuracy", "accuracy"))
        axes.plot(steps, cells, style, color=colour, marker=".", label=f"{curve.label}: cells ({weights})")
        axes.plot(steps, grids, style, color=colour, marker="x", alpha=0.5, label=f"whole grids ({weights})")


def _take(curve: Curve, event: dict[str, Any], first_step: int, last_step: float) -> None:
    step = event.get("step")
    if not isinstance(step, int) or not first_step <= step <= last_step:
        return
    if event["event"] == "step" and step > first_step and isinstance(event.get("loss"), float):
        curve.losses[step] = event["loss"]
    elif event["event"] == "eval":
        curve.evals[step, str(event.get("kind")), str(event.get("weights"))] = event


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
