"""The oracle of the fault catalogue is no rubber stamp: each invariant, broken on purpose, turns it red."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reliability.live_trainers import trainers
from reliability.oracle import HZ, HZ_OVER_S, SEEN_AFTER_S, Oracle
from resumekit.base import journal
from resumekit.checkpoint import manifest
from support.processes import wait_until
from support.toy_trainer import write_checkpoint

SLEEP = "import time; time.sleep(600)"
# As a trainer with a worker.
FORK = """import os, time
parent = os.getpid()
if os.fork():
    time.sleep(600)
while os.getppid() == parent:
    time.sleep(0.02)
"""
PARENT, CHILD = "T-1_toy_20261123-0100", "T-1_toy_resume@20_20261123-0200"


def token_of(run_id: str) -> str:
    """Return the token of a run; the same test may run beside this one in another process."""
    return f"token of {run_id} in {os.getpid()}"


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
    record.update(run_id=name, token=token_of(name), relation="fresh", created_at=at(1))
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
            [sys.executable, "-I", "-S", "-c", SLEEP], start_new_session=True,
            env={"RESUMEKIT_RUN_TOKEN": token_of(run_id)},
        )
        for run_id in run_ids
    ]  # fmt: skip
    # Each of them, not each token: two may have one.
    expected = {(process.pid, token_of(run_id)) for process, run_id in zip(started, run_ids, strict=True)}
    try:
        wait_until(lambda: expected <= set(trainers()), "they are there")
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextlib.contextmanager
def fork_of(runs: Path, *run_ids: str) -> Iterator[None]:
    """Live processes as a warm server's forks are: neither session nor token of their own, known by their log."""
    with contextlib.ExitStack() as stack:
        for run_id in run_ids:
            log = stack.enter_context((runs / run_id / "logs" / "output.log").open("ab"))
            started = subprocess.Popen([sys.executable, "-I", "-S", "-c", FORK], stdout=log, env={})
            stack.callback(started.wait)
            stack.callback(started.kill)
        yield


def found(
    runs: Path, breaks: Callable[[Path], Any] = lambda runs: None, *, leaders: tuple[str, ...] = (CHILD,),
    forks: tuple[str, ...] = (), **more: Any,
) -> str:  # fmt: skip
    """Return what an oracle says that looks before and after `breaks`, while these runs have a trainer."""
    with trainer_of(*leaders), fork_of(runs, *forks):
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


class Break(NamedTuple):
    """One invariant broken on purpose.

    Args:
        says: how the line begins that the oracle must have for it.
        breaks: what is done in the runs folder.
        is_before: it is done before the oracle has looked: what is written once is read once.
        found: more for `found`.
    """

    says: str
    breaks: Callable[[Path], Any] = lambda runs: None
    is_before: bool = False
    found: dict[str, Any] = {}  # noqa: RUF012 - it is not changed


def train(run: Path, begun: int = 21) -> None:
    """Tell steps for as long as who trains must have been seen."""
    tell(run, "step", step=begun, loss=0.5)
    time.sleep(SEEN_AFTER_S)
    tell(run, "step", step=begun + 1, loss=0.5)


def give_up(run: Path, aborts: int = 1, recoveries: int = 1, state: str = "needs_attention") -> None:
    """End a run as one that a person has to look at."""
    for _ in range(aborts):
        tell(run, "abort", cause="died", evidence="by signal 9")
    for _ in range(recoveries):
        tell(run, "recovery", parent_run_id=run.name, child_run_id=None, step=21, outcome="needs_attention")
    (run / "status.json").write_text(json.dumps({"run_id": run.name, "state": state}))


def journal_of(runs: Path, name: str) -> Path:
    return runs / name / "journal.jsonl"


def without(path: Path, word: str) -> None:
    """Take the lines with a word out of a file."""
    path.write_text("".join(line for line in path.read_text().splitlines(True) if word not in line))


BROKEN: dict[str, Break] = {
    "a checkpoint altered": Break("O1: ", lambda runs: (runs / SAVED).write_bytes(b"x")),
    "a checkpoint gone": Break("O1: ", lambda runs: (runs / SAVED).unlink()),
    "a pinned one pruned": Break(
        "O1: ",
        lambda runs: [
            (runs / PARENT / "claims").mkdir(),
            (runs / PARENT / "claims" / "pin_10_x.json").touch(),
            checkpoint(runs / PARENT, 22),
            (runs / PARENT / "checkpoints" / "hrm_arc_step_10.pt").unlink(),
        ],
    ),
    "no manifest": Break("O2: ", lambda runs: (runs / f"{SAVED}.json").unlink()),
    "not finite": Break("O2: ", lambda runs: rewrite_manifest(runs / SAVED, finite=False)),
    "taken from behind the first bad step, by its record": Break(
        "O2: ",
        lambda runs: rewrite(
            runs / CHILD / "run.json", lambda it: it["recovery"].update(cause="nonfinite", first_bad_step=15)
        ),
        is_before=True,
    ),
    "a newer one was there": Break("O3: ", lambda runs: checkpoint(runs / PARENT, 24)),
    "another first step than its record's": Break(
        "O3: ",
        lambda runs: rewrite(runs / CHILD / "run.json", lambda it: it.update(parent_step=19)),
        is_before=True,
    ),
    "back in its own journal": Break("O3: ", lambda runs: tell(runs / CHILD, "step", step=21)),
    "half a status": Break("O4: ", lambda runs: (runs / CHILD / "status.json").write_text('{"run_id": ')),
    "another's status": Break("O4: ", lambda runs: (runs / CHILD / "status.json").write_text('{"run_id": "x"}')),
    "two sessions with one run's token": Break("O5: two trainers at once", found={"leaders": (CHILD, CHILD)}),
    "two forks behind one client": Break("O5: two trainers at once", found={"forks": (CHILD, CHILD)}),
    "the parent's fork trains on, its client gone": Break("O5: two trainers at once", found={"forks": (PARENT, CHILD)}),
    "no trainer was seen": Break("O5: the trainer", lambda runs: train(runs / CHILD), found={"leaders": ()}),
    "only a client was seen, where a fork trains": Break(
        "O5: the fork", lambda runs: train(runs / CHILD), found={"is_forked": True}
    ),
    "a parent's config changed": Break("O7: ", lambda runs: (runs / PARENT / "config.yaml").write_text("a: 1")),
    "a parent's log changed": Break("O7: ", lambda runs: (runs / PARENT / "logs" / "output.log").write_text("x")),
    "a file beside runs/": Break("O7: ", lambda runs: (runs.parent / "mine").touch()),
    "the canary": Break("O8: ", lambda runs: (runs / "pwned").touch()),
    "two abort events": Break("O9: ", lambda runs: tell(runs / PARENT, "abort", cause="died", evidence="")),
    "two recovery events": Break(
        "O9: ",
        lambda runs: tell(runs / PARENT, "recovery", parent_run_id=PARENT, child_run_id=CHILD, step=20),
    ),
    "a cause that is no class": Break(
        "O9: ",
        lambda runs: journal_of(runs, PARENT).write_text(
            journal_of(runs, PARENT).read_text().replace('"died"', '"bad luck"')
        ),
    ),
    "taken up without an abort event": Break(
        "O9: 0 abort events", lambda runs: without(journal_of(runs, PARENT), '"abort"')
    ),
    "taken up by one that never began, without an abort event": Break(
        "O9: 0 abort events",
        lambda runs: (
            without(journal_of(runs, PARENT), '"abort"'),
            without(journal_of(runs, CHILD), '"launched"'),
        ),
    ),
    "taken up, and its parent does not say so": Break(
        "O9: 0 recovery events", lambda runs: without(journal_of(runs, PARENT), '"recovery"')
    ),
    "given up without an abort event": Break("O9: 0 abort events", lambda runs: give_up(runs / CHILD, aborts=0)),
    "given up with two": Break("O9: 2 abort events", lambda runs: give_up(runs / CHILD, aborts=2)),
    "given up twice": Break("O9: 2 recovery events", lambda runs: give_up(runs / CHILD, recoveries=2)),
    "given up, and only its status says so": Break("O9: ", lambda runs: give_up(runs / CHILD, recoveries=0)),
    "given up, and its status does not say so": Break("O9: ", lambda runs: give_up(runs / CHILD, state="failed")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_invariant_broken_on_purpose_turns_it_red(runs: Path, name: str) -> None:
    says, breaks, is_before, more = BROKEN[name]
    if is_before:
        breaks(runs)
        assert said(found(runs, **more), says)
    else:
        assert said(found(runs, breaks, **more), says)


def said(text: str, begin: str) -> bool:
    return any(line.startswith(begin) for line in text.splitlines())


def test_who_trains_and_is_seen_is_no_fault(runs: Path) -> None:
    """Client and fork are one trainer, and what a fork has started is no other one."""
    with trainer_of(CHILD), fork_of(runs, CHILD), Oracle(runs, is_forked=True) as oracle:
        wait_until(lambda: oracle.looks > 2, "it looks")
        train(runs / CHILD, 22)
        oracle.check()
    assert oracle.most_at_once == 1


def test_a_run_that_is_given_up_with_its_two_events_is_no_fault(runs: Path) -> None:
    assert found(runs, lambda runs: give_up(runs / CHILD)) == ""


def test_an_oracle_that_looked_too_seldom_is_red(runs: Path) -> None:
    oracle = Oracle(runs)
    oracle.look()
    oracle.began_s -= HZ_OVER_S + 1
    assert said("\n".join(oracle.faults()), "O5: looked 1 times")


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


# As a script that starts a trainer, with its token and its output.
SCRIPT = '"$@" & echo "$!" >"$PID"; wait'


@contextlib.contextmanager
def behind_a_dead_script(runs: Path, run_id: str) -> Iterator[None]:
    """A live process of a session whose leader, a script, was killed."""
    file = runs.parent.parent / f"pid of {run_id}"
    with (runs / run_id / "logs" / "output.log").open("ab") as log:
        script = subprocess.Popen(
            ["bash", "-c", SCRIPT, "bash", sys.executable, "-I", "-S", "-c", SLEEP], start_new_session=True, stdout=log,
            env={"RESUMEKIT_RUN_TOKEN": token_of(run_id), "PID": str(file)},
        )  # fmt: skip
    try:
        wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "it is there")
        pid = int(file.read_text())
        wait_until(lambda: b"time.sleep" in Path(f"/proc/{pid}/cmdline").read_bytes(), "it is itself")
        script.kill()
        script.wait()
        yield
    finally:
        script.kill()
        script.wait()
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def test_a_trainer_whose_script_was_killed_is_seen_and_is_one(runs: Path) -> None:
    with behind_a_dead_script(runs, CHILD):
        assert "O5" not in found(runs, lambda runs: train(runs / CHILD), leaders=())
        assert "O5: two trainers at once" in found(runs, leaders=(PARENT,))
    with behind_a_dead_script(runs, PARENT):
        assert "O5: two trainers at once" in found(runs)


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
