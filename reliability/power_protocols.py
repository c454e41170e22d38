"""What is recorded for the power cut, and what each disk that it could leave behind must still be good for.

Saves are recorded in a process with torch (see save_faults.py), the rest without.
Try it: `python -m reliability.campaign_saves --power`
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reliability import power_loss, syscalls
from reliability.save_crashes import in_child
from reliability.save_faults import SCENARIOS, Stage, environment
from reliability.save_judge import RUN_ID, chosen_in, names_in, torn_in
from resumekit.base import claims, journal, processes
from resumekit.base.errors import KitError
from resumekit.base.files import UnreadableFile, read_json, to_json, write_atomic
from resumekit.base.paths import MANIFEST_SUFFIX, RunPaths
from resumekit.checkpoint import pruning
from resumekit.checkpoint.grades import PROVEN
from resumekit.run import listing, status
from resumekit.run.run_folder import open_run
from resumekit.run.run_table import RunTable

LIB = Path(__file__).resolve().parents[1] / "lib"


class Recording(NamedTuple):
    """Calls on the folder `root`, and what was in it before; what it is about, and how a state is judged."""

    name: str
    root: Path
    before: power_loss.Tree
    calls: list[syscalls.Call]
    judge: Callable[[power_loss.State, Path], str]


class Found(NamedTuple):
    """What the replay of a recording found.

    Args:
        states, bad: how many there were, and how many of them were bad.
        examples: what was wrong with the first few.
        is_whole: whether every way was tried, and none drawn.
    """

    states: int
    bad: int
    examples: list[str]
    is_whole: bool


def replay(
    recording: Recording,
    folder: Path,
    *,
    is_thin: bool = False,
    seed: int = 1,
    stride: int = 1,
    until_bad: bool = False,
    go_on: Callable[[Path], str] | None = None,
    every: int = 1,
) -> Found:
    """Judge every `stride`-th state of a recording, in `folder`, which is overwritten.

    Args:
        until_bad: stop at the first bad one.
        go_on: called with the folder of every `every`-th good state: the work goes on there; '' where it does.
    """
    engine = power_loss.Replay(recording.root, recording.before, is_thin=is_thin, seed=seed)
    count, examples, bad = 0, [], 0
    for state in itertools.islice(engine.states(recording.calls), 0, None, stride):
        power_loss.materialize(state, folder)
        count += 1
        wrong = recording.judge(state, folder)
        if not wrong and go_on and count % every == 0:
            wrong = go_on(folder)
        bad += bool(wrong)
        if wrong and len(examples) < 5:
            examples.append(f"after {state.marks[-1:]}: {wrong}")
        if wrong and until_bad:
            break
    return Found(count, bad, examples, engine.is_whole)


def replay_some(recording: Recording, folder: Path, count: int, seed: int) -> Found:
    """Judge `count` states of a recording, drawn, in `folder`, which is overwritten."""
    engine = power_loss.Replay(recording.root, recording.before, is_thin=True, seed=seed)
    states, examples = 0, []
    for state in engine.drawn(recording.calls, count):
        power_loss.materialize(state, folder)
        states += 1
        if wrong := recording.judge(state, folder):
            examples.append(f"after {state.marks[-1:]}: {wrong}")
    return Found(states, len(examples), examples[:5], is_whole=False)


# ---- saves


def saves(stage: Stage, name: str, mistake: Callable[[], None] | None = None) -> Recording:
    """Record saves, each announced by a mark before and after it.

    Args:
        name: 'save' (one, without pruning), 'save and prune' (a best, and two older ones go), 'two with pruning' (the
            second beside the removals of the first), 'first save' (of a run whose folder was not made durable).
        mistake: called before.
    """
    scenario = SCENARIOS[0] if name == "first save" else SCENARIOS[1]
    options = scenario.options if "prun" in name else {}
    steps = (50, 60) if name == "two with pruning" else (50,)
    run_dir = stage.fresh(scenario)
    root = run_dir.parent
    if name == "first save":
        shutil.rmtree(run_dir)
    before = power_loss.scan(root)
    log = stage.folder / f"{root.name}.calls"

    def work() -> None:
        if mistake:
            mistake()
        stage.shim.watch(root, log)
        with environment(run_dir):
            if name == "first save":
                _as_launched(run_dir)
            for step in steps:
                stage.shim.mark(f"saving {step}")
                if stage.save(run_dir / "checkpoints", step, **options):
                    stage.shim.mark(f"saved {step}")

    assert in_child(work) == 0, "what was to be recorded failed"
    earlier = max(scenario.earlier, default=None)
    return Recording(name, root, before, syscalls.read_log(log), lambda state, at: judge_saves(state, at, earlier))


def _as_launched(run_dir: Path) -> None:
    """Make a run folder as the launcher leaves it."""
    run_dir.mkdir()
    write_atomic(run_dir / "run.json", to_json({"run_id": RUN_ID, "host": os.uname().nodename}), durable=True)
    (run_dir / "checkpoints").mkdir()
    journal.append(run_dir / "journal.jsonl", "launched", RUN_ID)


def judge_saves(state: power_loss.State, root: Path, earlier: int | None) -> str:
    """What was said to be saved is what is selected, proven; at least two are, once there were two."""
    run_dir = root / RUN_ID
    said = [int(word.split()[1]) for word in state.marks if word.startswith("saved")]
    begun = [int(word.split()[1]) for word in state.marks if word.startswith("saving")]
    last = said[-1] if said else earlier
    allowed = {last, *begun[-1:]} if begun and begun[-1:] != said[-1:] else {last}
    step, grade = chosen_in(run_dir)
    if step not in allowed:
        return f"step {step} is selected, not one of {allowed}" if step else "no usable checkpoint"
    if grade != PROVEN and last is not None:
        return f"step {step} is only {grade}"
    if torn := torn_in(run_dir / "checkpoints"):
        return torn
    if last is not None and not open_run(run_dir).has_started:
        return "a run with a checkpoint that counts as never started: no resume would take it"
    if earlier is not None and (count := _proven_count(run_dir / "checkpoints")) < pruning.MIN_PROVEN:
        return f"only {count} proven"
    told = [event["step"] for event, _ in journal.read(run_dir / "journal.jsonl") if event["event"] == "checkpoint"]
    return "" if not told or (step or 0) >= max(told) else f"the journal has step {max(told)}, and {step} is selected"


def _proven_count(folder: Path) -> int:
    names = names_in(folder)
    steps = [name for name in names if name.startswith("hrm_arc_step_") and name.endswith(".pt")]
    return sum(name + MANIFEST_SUFFIX in names for name in steps)  # none of them is torn: that was looked at before


# ---- the status


def status_writes(stage_folder: Path, shim: syscalls.Shim) -> Recording:
    """Record a status that is written again and again, as the sidecar does it, beside steps in the journal."""
    root = stage_folder / "status-runs"
    run_dir = root / RUN_ID
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text(json.dumps({"run_id": RUN_ID, "host": os.uname().nodename}))
    journal.append(run_dir / "journal.jsonl", "launched", RUN_ID, trainer=processes.identify(os.getpid()).as_fields())
    before = power_loss.scan(root)
    log = stage_folder / "status.calls"

    def work() -> None:
        shim.watch(root, log)
        run = open_run(run_dir)
        for step in (1, 2):
            journal.append(run.paths.journal, "step", RUN_ID, step=step, loss=0.5)
            status.write(run, status.current(run))
            shim.mark(f"told {step}")

    assert in_child(work) == 0, "what was to be recorded failed"
    return Recording("status", root, before, syscalls.read_log(log), judge_status)


def judge_status(_state: power_loss.State, root: Path) -> str:
    """The status is whole, or not there, or made anew from the journal without any hand."""
    run = open_run(root / RUN_ID)
    try:
        now = status.current(run)
        rows = listing.choose(RunTable(root), None)
        listing.as_text(RunTable(root), rows)
        status.write(run, now)
        read = read_json(run.paths.status)
    except (OSError, KitError, UnreadableFile) as error:
        return f"the status cannot be made anew: {error}"
    if now["global_step"] not in (None, 1, 2):
        return f"step {now['global_step']} was never told"
    return "" if read == now else "the status is not what was written"


def unreadable_statuses(recording: Recording) -> int:
    """Return in how many states status.json is there and holds no JSON (until it is written anew)."""
    bad = 0
    for state in power_loss.Replay(recording.root, recording.before).states(recording.calls):
        content = state.tree.get(f"{RUN_ID}/status.json")
        try:
            bad += content is not None and not isinstance(json.loads(content), dict)
        except ValueError:
            bad += 1
    return bad


# ---- a launch


def launch(runs: Path, config_file: Path, experiment: str, scratch: Path) -> Recording:
    """Record the planning Python of a resume: the claim on its parent, run.json and the rest of the run folder.

    Args:
        runs: with one run of the experiment in it that is dead and has checkpoints.
        scratch: for the log.
    """
    before = power_loss.scan(runs)
    [head] = [path.name for path in runs.iterdir() if (path / "run.json").exists()]
    log = scratch / "launch.calls"
    words = [f"--experiment={experiment}", f"--config={config_file}", f"--runs={runs}"]
    own = syscalls.environment(FAULTS_ROOT=str(runs), FAULTS_LOG=str(log))
    # As the launcher calls it, and as dead as that is after a power cut.
    door = [sys.executable, "-I", str(LIB / "resumekit_cli.py"), "resume", *words]
    command = ["/bin/sh", "-c", 'exec "$@" "--answer-to=$$"', "sh", *door]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step = chosen_in(runs / head, run_id=None)[0]
    return Recording(
        "launch", runs, before, syscalls.read_log(log),
        lambda _state, at: judge_launch(at, config_file, experiment, head, step),
    )  # fmt: skip


def judge_launch(runs: Path, config_file: Path, experiment: str, head: str, step: int | None) -> str:
    """The next resume continues the same head at the same step, and may claim it; every list shows what is there."""
    from resumekit.start.choice import CONTINUE, choose_resume
    from resumekit.start.request import parse

    try:
        words = [f"--experiment={experiment}", f"--config={config_file}", f"--runs={runs}"]
        choice = choose_resume(parse(words).request())
        listing.as_json(listing.choose(RunTable(runs), None))
        parent = choice.parent.run_id if choice.parent else None
        if (choice.relation, parent, choice.step) != (CONTINUE, head, step):
            return f"it would {choice.relation} '{parent}' at step {choice.step}"
        own = processes.identify(os.getpid())
        claims.claim_continuation(RunPaths(runs / head), "the-next-one", own, RunTable(runs).has_started)
        claims.pin_step(RunPaths(runs / head), step, "the-next-one")
    except (OSError, KitError) as error:
        return f"a hand is needed: {error}"
    return ""
