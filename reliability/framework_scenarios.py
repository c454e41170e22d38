"""What each recipe is put through: functions of its stage, which raise AssertionError where something is wrong.

Try it: `python -m reliability.frameworks --only plain_loop --scenario kills`
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reliability.framework_recipes import EVERY, STEPS
from reliability.framework_stage import LIVE, STARTS_S, Stage, torn
from support.nights import record
from support.places import ROOT
from support.processes import wait_until
from support.runs import events


class NotApplicable(Exception):
    """The recipe has nothing of the kind; the text says why."""


def first_run(stage: Stage) -> None:
    """Started, it trains to its end, and leaves every checkpoint that it wrote."""
    status = stage.status(stage.whole)
    assert status["state"] == "finished" and status["exit_code"] == 0, status
    found = stage.plan(stage.whole.name, "--set", f"training.max_steps={STEPS + EVERY}", code=None)
    assert found["step"] == STEPS, f"the newest is of step {found['step']}"


def live_status(stage: Stage) -> None:
    """While it trains, its status shows step, loss, rate and the time that is left."""
    run = stage.begin("live", pace_s=0.05)
    wanted = {"global_step", "eta_s", *stage.recipe.shows}
    seen: set[str] = set()

    def shows_all() -> bool:
        status = next(iter(json.loads(stage("runs", run.name, "--json").stdout)))
        if status["state"] == "running":
            seen.update(name for name in wanted if status[name] is not None)
            step = stage.step_of(run)
            assert (status["global_step"] or 0) <= step, f"step {status['global_step']} is told of, {step} was done"
        assert not events(run, "exited"), (
            f"at its end the status has shown {sorted(seen)}, never {sorted(wanted - seen)}"
        )
        return seen == wanted

    wait_until(shows_all, "a full status")
    stage.watch("--stop", "--now", run.name, code=0)


def candidates(stage: Stage) -> None:
    """The helper and resume.sh see the same checkpoints, in the same words, and choose the same."""
    checkpoints = stage.cut / "checkpoints"
    words = [
        sys.executable,
        str(ROOT / "lib" / "resume_helper.py"),
        "--ckpt_dir",
        str(checkpoints),
        "--dry-run",
        "--json",
    ]
    done = subprocess.run(words, capture_output=True, text=True, env=stage.env, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    helper, plan = json.loads(done.stdout), stage.plan(stage.cut.name)
    assert Path(str(helper["checkpoint"])).samefile(plan["checkpoint"]["path"]), (
        helper["checkpoint"],
        plan["checkpoint"],
    )

    def lines(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [(one["step"], Path(one["path"]).name, one["verdict"], one["reason"]) for one in found]

    assert lines(helper["candidates"]) == lines(plan["candidates"]), (helper["candidates"], plan["candidates"])
    written = {path.name for _, path in stage.recipe.checkpoints(stage.cut)}
    seen = {Path(one["path"]).name for one in plan["candidates"] if one["step"] is not None}
    assert plan["step"] == 5 * EVERY and seen <= written, f"step {plan['step']}; seen are {seen}, written {written}"


def dry_run(stage: Stage) -> None:
    """The page of a dry run names the newest checkpoint, and is ready."""
    page = stage("resume", stage.cut.name, "--dry-run").stdout
    assert f"at step {5 * EVERY}" in page and "verdict: ready" in page, page


def kills(stage: Stage) -> None:
    """Three KILLs of the trainer in a row: the launcher takes it up each time, and it comes to its end."""
    run = stage.begin("kills")
    for step in (2 * EVERY + 10, 4 * EVERY + 10, 6 * EVERY + 10):
        stage.reaches(run, step)
        os.kill(stage.who(run, "trainer"), signal.SIGKILL)
        killed, run = run, stage.successor(run)
        assert record(run)["parent_step"] == step - 10, f"{killed.name} was taken up at {record(run)['parent_step']}"
    stage.ends(run)
    is_equal(stage, run, is_journalled=True)


def torn_newest(stage: Stage) -> None:
    """Whatever is missing or cut in the newest checkpoint, the one before is taken; with and without digests."""
    faults = []
    for args, run in (
        ((stage.cut.name,), stage.cut),
        ((stage.whole.name, "--set", f"training.max_steps={STEPS + EVERY}"), stage.whole),
    ):
        if len(stage.recipe.checkpoints(run)) == 1:
            continue  # of a fixed name, trained too fast for a copy
        newest, checkpoint, before = stage.newest(run)
        for victim, how in ways_to_tear(stage, newest, checkpoint):
            with torn(checkpoint, victim, how, run.parent / "aside"):
                plan = stage.plan(*args, code=None)
            if plan["step"] != before:
                faults.append(f"{run.name}: {victim.name} {how}: step {plan['step']} is taken, not {before}")
    assert not faults, "\n".join(faults)


def torn_taken(stage: Stage) -> None:
    """With its newest checkpoint torn a run goes on from the one before, to the same end."""
    newest, checkpoint, before = stage.newest(stage.cut)
    victim = max(stage.recipe.files(newest, checkpoint), key=lambda path: path.stat().st_size)
    with torn(checkpoint, victim, "cut", stage.folder / "aside"):
        run = stage.branch("torn", stage.cut.name)
    assert record(run)["parent_step"] == before, record(run)["parent_step"]
    is_equal(stage, run)


def ways_to_tear(stage: Stage, step: int, checkpoint: Path) -> Iterator[tuple[Path, str]]:
    """Yield (a file of the checkpoint, 'missing' or 'cut'); the file that has its name is only cut."""
    for path in stage.recipe.files(step, checkpoint):
        if path != checkpoint:
            yield path, "missing"
        yield path, "cut"


def by_step(stage: Stage) -> None:
    """`--step` takes that step's, and comes to the same end."""
    step = max(step for step, _ in stage.recipe.checkpoints(stage.cut) if step < 5 * EVERY)
    run = stage.branch("step", stage.cut.name, "--step", str(step))
    assert record(run)["parent_step"] == step, record(run)["parent_step"]
    is_equal(stage, run)


def by_best(stage: Stage) -> None:
    """`--best` takes what the framework calls the best."""
    if stage.recipe.best_step is None:
        raise NotApplicable("it has no best of its own")
    best = stage.recipe.best_step(stage.cut)
    run = stage.branch("best", stage.cut.name, "--best")
    assert record(run)["parent_step"] == best, f"{record(run)['parent_step']}, not {best}"
    is_equal(stage, run)


def watcher(stage: Stage) -> None:
    """Launcher, shim, sidecar and trainer killed: the watcher takes it up, to the same end."""
    stage.watched(lambda: stage.child(stage.cut), "the watcher takes it up")
    run = stage.successor(stage.cut)
    assert record(run)["parent_step"] == 5 * EVERY, record(run)["parent_step"]
    stage.ends(run)
    is_equal(stage, run)


def nan(stage: Stage) -> None:
    """A loss that turns NaN: stopped, taken up before it, and well to its end."""
    run = stage.begin("nan", pace_s=max(0.05, stage.recipe.pace_s), nan_step=4 * EVERY + 10)
    wait_until(lambda: events(run, "exited"), f"{run.name} ends", STARTS_S)
    wait_until(lambda: stage.state(run) not in LIVE, "its status has ended")
    assert stage.state(run) != "finished", "it trained on to its end"
    child = stage.successor(run)
    assert record(child)["recovery"]["cause"] == "nonfinite", record(child)["recovery"]
    assert record(child)["parent_step"] <= 4 * EVERY, record(child)["parent_step"]
    stage.ends(child)


def sealed(stage: Stage) -> None:
    """Sealed by a few lines each checkpoint is proven, beside the framework's own rotation, and one is gone on from."""
    if not stage.recipe.seals:
        raise NotApplicable("it has no line of ours")
    run = stage.begin("sealed", args=stage.recipe.seals)
    stage.ends(run)
    plan = stage.plan(run.name, "--set", f"training.max_steps={STEPS + EVERY}", code=None)
    assert (plan["step"], plan["checkpoint"]["grade"]) == (STEPS, "proven"), plan["checkpoint"]
    is_equal(stage, run, is_journalled=True)
    for step, _ in stage.recipe.checkpoints(run):
        plan = stage.plan(run.name, "--step", str(step), code=None)
        assert plan["checkpoint"]["grade"] == "proven", plan["checkpoint"]


def is_equal(stage: Stage, run: Path, *, is_journalled: bool = False) -> None:
    """Hold the end of a run against that of the undisturbed one, where the framework is exact.

    Args:
        is_journalled: no sidecar was killed, so each step is in a journal: these are compared too.
    """
    from resumekit.trainer.comparison import compare  # late: torch

    if not stage.recipe.is_exact:
        return
    if is_journalled and stage.recipe.has_line_per_step:
        pairs = [(run, stage.whole)]
    else:
        (step, one, _), (_, other, _) = stage.newest(run), stage.newest(stage.whole)
        pairs = (
            [(one, other)] if one.is_dir() else zip(*(stage.recipe.files(step, x) for x in (one, other)), strict=True)
        )
    for one, other in pairs:
        found = compare(one, other)
        assert found.is_equal, f"{one}: {found.sentence()}"


SCENARIOS = {
    "first-run": first_run, "live": live_status, "candidates": candidates, "dry-run": dry_run, "kills": kills,
    "sealed": sealed, "torn": torn_newest, "torn-taken": torn_taken, "step": by_step, "best": by_best,
    "watcher": watcher, "nan": nan,
}  # fmt: skip
