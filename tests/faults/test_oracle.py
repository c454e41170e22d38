"""The oracle of the fault catalogue is no rubber stamp: each invariant, broken on purpose, turns it red."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import wait_until
from faults.oracle import HZ, Oracle, trainers
from resumekit.basics import journal
from resumekit.proving import manifest
from toy_trainer import write_checkpoint

PARENT, CHILD = "T-1_toy_20261123-0100", "T-1_toy_resume@20_20261123-0200"


def at(hour: int) -> str:
    return f"2026-11-23T{hour:02}:00:00.000000Z"


def checkpoint(run: Path, step: int, **more: Any) -> Path:
    path = run / "checkpoints" / f"hrm_arc_step_{step}.pt"
    write_checkpoint(path, step)
    data = path.read_bytes()
    known = manifest.Manifest(
        "save_checkpoint", path.name, len(data), hashlib.sha256(data).hexdigest(), step, at(1), {}, run_id=run.name,
        **{"finite": True, "step_completed": True, **more},
    )  # fmt: skip
    manifest.write(path, known)
    return path


def run_of(runs: Path, name: str, **fields: Any) -> Path:
    run = runs / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "logs").mkdir()
    record = dict.fromkeys(("parent_run_id", "parent_step", "recovery", "checkpoint"))
    record.update(run_id=name, token=f"token of {name}", relation="fresh", created_at=at(1))
    (run / "run.json").write_text(json.dumps({**record, **fields}))
    (run / "resolved_config.json").write_text(json.dumps({"checkpoint": {"keep_last": 2}}))
    (run / "status.json").write_text(json.dumps({"run_id": name, "state": "running"}))
    (run / "logs" / "output.log").write_text("step 1\n")
    return run


def tell(run: Path, kind: str, **fields: Any) -> None:
    journal.append(run / "journal.jsonl", kind, run.name, **fields)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A night as it should be: a run that died at step 25, taken up at step 20 by one that lives."""
    runs = tmp_path / "lab" / "runs"
    parent = run_of(runs, PARENT)
    for step in (10, 20):
        checkpoint(parent, step)
    for step in range(1, 26):
        tell(parent, "step", step=step, loss=0.5)
    child = run_of(
        runs, CHILD, relation="continue", parent_run_id=PARENT, parent_step=20, created_at=at(2),
        checkpoint=f"../{PARENT}/checkpoints/hrm_arc_step_20.pt",
        recovery={"cause": "died", "attempt": 1, "first_bad_step": None, "lr_factor": 1.0},
    )  # fmt: skip
    tell(parent, "abort", cause="died", evidence="by signal 9")
    tell(child, "launched")
    for run in (parent, child):
        tell(run, "recovery", parent_run_id=PARENT, child_run_id=CHILD, step=20, outcome="resumed")
    tell(child, "step", step=21, loss=0.5)
    return runs


@contextlib.contextmanager
def trainer_of(*run_ids: str) -> Iterator[None]:
    """Live processes that lead a session of their own and carry these runs' tokens."""
    started = [
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], start_new_session=True,
            env={"RESUMEKIT_RUN_TOKEN": f"token of {run_id}"},
        )
        for run_id in run_ids
    ]  # fmt: skip
    tokens = {f"token of {run_id}" for run_id in run_ids}
    try:
        wait_until(lambda: tokens <= {token for _, token in trainers()}, "they are there")
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def found(runs: Path, breaks: Callable[[Path], Any] = lambda runs: None, **more: Any) -> str:
    """Return what an oracle says that looks before and after `breaks`, the child's trainer being alive."""
    with trainer_of(CHILD):
        oracle = Oracle(runs, **more)
        oracle.look()
        breaks(runs)
        oracle.look()
        return "\n".join(oracle.faults())


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite_manifest(path: Path, **fields: Any) -> None:
    manifest.write(path, manifest.read(path)._replace(**fields))


def test_a_night_as_it_should_be_is_clean_and_was_looked_at(runs: Path) -> None:
    assert found(runs) == ""
    with trainer_of(CHILD), Oracle(runs) as oracle:
        time.sleep(0.6)
        oracle.check()
    assert 0.25 * HZ * 0.6 <= oracle.looks <= 1.5 * HZ * 0.6 + 1
    assert oracle.most_at_once == 1


SAVED = Path(PARENT) / "checkpoints" / "hrm_arc_step_20.pt"
BROKEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a checkpoint altered": ("O1", lambda runs: (runs / SAVED).write_bytes(b"x")),
    "a checkpoint gone": ("O1", lambda runs: (runs / SAVED).unlink()),
    "a pinned one pruned": (
        "O1",
        lambda runs: [
            (runs / PARENT / "claims").mkdir(),
            (runs / PARENT / "claims" / "pin_10_x.json").touch(),
            checkpoint(runs / PARENT, 22),
            (runs / PARENT / "checkpoints" / "hrm_arc_step_10.pt").unlink(),
        ],
    ),
    "no manifest": ("O2", lambda runs: (runs / f"{SAVED}.json").unlink()),
    "not finite": ("O2", lambda runs: rewrite_manifest(runs / SAVED, finite=False)),
    "taken from behind the first bad step, by its record": (
        "O2",
        lambda runs: rewrite(
            runs / CHILD / "run.json", lambda it: it["recovery"].update(cause="nonfinite", first_bad_step=15)
        ),
    ),
    "a newer one was there": ("O3", lambda runs: checkpoint(runs / PARENT, 24)),
    "another first step than its record's": (
        "O3",
        lambda runs: rewrite(runs / CHILD / "run.json", lambda it: it.update(parent_step=19)),
    ),
    "back in its own journal": ("O3", lambda runs: tell(runs / CHILD, "step", step=21)),
    "half a status": ("O4", lambda runs: (runs / CHILD / "status.json").write_text('{"run_id": ')),
    "another's status": ("O4", lambda runs: (runs / CHILD / "status.json").write_text('{"run_id": "x"}')),
    "a parent's config changed": ("O7", lambda runs: (runs / PARENT / "config.yaml").write_text("a: 1")),
    "a parent's log changed": ("O7", lambda runs: (runs / PARENT / "logs" / "output.log").write_text("x")),
    "a file beside runs/": ("O7", lambda runs: (runs.parent / "mine").touch()),
    "the canary": ("O8", lambda runs: (runs / "pwned").touch()),
    "two abort events": ("O9", lambda runs: tell(runs / PARENT, "abort", cause="died", evidence="")),
    "two recovery events": (
        "O9",
        lambda runs: tell(runs / PARENT, "recovery", parent_run_id=PARENT, child_run_id=CHILD, step=20),
    ),
    "a cause that is no class": (
        "O9",
        lambda runs: (runs / PARENT / "journal.jsonl").write_text(
            (runs / PARENT / "journal.jsonl").read_text().replace('"died"', '"bad luck"')
        ),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_invariant_broken_on_purpose_turns_it_red(runs: Path, name: str) -> None:
    number, breaks = BROKEN[name]
    if "record" in name:  # it is written once, and read once
        breaks(runs)
        assert f"{number}: " in found(runs)
    else:
        assert f"{number}: " in found(runs, breaks)


def test_what_pruning_may_remove_is_no_fault(runs: Path) -> None:
    for step in (5, 7):
        checkpoint(runs / PARENT, step)
    assert found(runs, lambda runs: (runs / PARENT / "checkpoints" / "hrm_arc_step_5.pt").unlink()) == ""


def test_two_trainers_at_once_are_seen_by_their_tokens(runs: Path) -> None:
    with trainer_of(PARENT):
        assert "O5: two trainers at once" in found(runs)
    rewrite(runs / CHILD / "run.json", lambda it: it.update(relation="branch"))
    with trainer_of(PARENT):
        assert "O5" not in found(runs), "a branch beside its parent is free"


def test_a_launch_that_needs_a_hand_is_seen(runs: Path) -> None:
    def refused() -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess([], 6, "", "run.sh: 'x' is continued already by 'y'")

    assert "O10: the next launch would end with 6" in found(runs, next_launch=refused)


def test_an_oracle_that_cannot_look_is_red(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asleep(_self: Oracle) -> None:
        raise RuntimeError("asleep")

    monkeypatch.setattr(Oracle, "look", asleep)
    with Oracle(runs) as oracle:
        time.sleep(0.2)
        with pytest.raises(AssertionError, match="oracle: RuntimeError: asleep"):
            oracle.check(wait_s=0)
    assert os.path.isdir(runs)
