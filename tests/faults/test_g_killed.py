"""G2 and D11: the process that recovers a run is killed at every point of it, and the next one finishes what was begun.

A run whose loss turned NaN, stopped, with no process left to take it up, is copied once for each point. `long` has
every point of the launcher and of the verbs `recover` and `watch`; `make test` a few of each.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from reliability import kill_points
from reliability.oracle import Oracle
from resumekit.run import live_marker
from support.nights import HANG_MINUTES, Night, one, record
from support.places import LIB, LIVE
from support.processes import wait_until
from support.runs import events

STEPS = 60
MOST = 1000  # points: a loop that does not end is a fault of the test


@pytest.fixture
def stopped(warm_night: Night) -> Path:
    """A run with NaN from step 33 on, with its abort event, killed with every process around it."""
    warm_night.config(
        "--delay", "0.005", "--at", "33", "loss=nan", training={"max_steps": STEPS},
        trainer={"python": warm_night.env["PYTHON"]},
    )  # fmt: skip
    (warm_night.once / "loss.done").unlink(missing_ok=True)
    run = warm_night.start(env={"NIGHT": "--steps 100000"}, steps=40)
    warm_night.kill_all_of(run)
    assert not events(run, "abort")
    return run


class Copies:
    """Copies of a runs folder, each for one death."""

    def __init__(self, night: Night, run: Path) -> None:
        self.night, self.run = night, run
        self._plain = night.runs

    def next(self) -> Path:
        """Make a copy and let the night's commands look at it; returns the run in it."""
        copy = self._plain.parent.parent / "copy" / "runs"
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        shutil.copytree(self._plain, copy, symlinks=True)
        for marker in (copy / LIVE).iterdir():
            live_marker.make(marker)  # one that was only copied starts nothing
        self.night.runs = copy
        return copy / self.run.name

    def restore(self) -> None:
        self.night.runs = self._plain


def recover(night: Night, run: Path, **environment: str) -> int:
    """Do what the watcher starts for a run that has lost its launcher; wait for its end."""
    done = subprocess.run(
        ["bash", str(LIB / "launcher.sh"), "recover", str(run)], env={**night.env, **environment}, cwd="/",
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    print(done.returncode, done.stderr.decode("utf-8", "replace"))
    return done.returncode


def finish(night: Night, run: Path) -> Path:
    """Let the next passes finish it, whatever is left; returns the child that came to the end."""

    def is_over() -> bool:
        if alive(night, run):
            return False
        if not finished(night, run):
            # What the watcher would start; where a child has ended and that is not written down, the watcher itself.
            if any(events(child, "launched") for child in night.children(run)):
                night.watch()
            else:
                recover(night, run)
        return bool(finished(night, run))

    wait_until(is_over, "the end")
    return finished(night, run)[0]


def finished(night: Night, run: Path) -> list[Path]:
    return [child for child in night.children(run) if night.state(child) == "finished"]


def alive(night: Night, run: Path) -> bool:
    """Whether a child has a trainer that is still at it, or a sidecar that is."""
    return any(
        events(child, "launched") and not (child / "exit.json").exists() for child in night.children(run)
    ) or any(night.sidecar(child) for child in night.children(run))


def judge(night: Night, run: Path, child: Path) -> None:
    """One child with a trainer, one cut of the rate, one event of each kind."""
    assert [one_ for one_ in night.children(run) if events(one_, "launched")] == [child]
    assert one(run, "abort")["cause"] == "nonfinite"
    assert record(child)["recovery"]["lr_factor"] == 0.8
    assert one(child, "resumed")["lr_scale"] == 0.8, "not 0.64"
    claim = json.loads((run / "claims" / "continued.json").read_text())
    assert claim["run_id"] == child.name


def die_and_finish(night: Night, run: Path, **environment: str) -> int:
    with Oracle(night.runs) as oracle:
        code = recover(night, run, **environment)
        judge(night, run, finish(night, run))
        oracle.check()
    return code


def launcher_dies(night: Night, stopped: Path, point: int) -> bool:
    """Whether the launcher had that many commands."""
    copies = Copies(night, stopped)
    try:
        return (
            die_and_finish(night, copies.next(), **kill_points.launcher(night.folder.parent, point)) == -signal.SIGKILL
        )
    finally:
        copies.restore()


def helper_dies(night: Night, stopped: Path, point: int, *, launcher_too: bool) -> bool:
    """Whether the helper had that many deeds."""
    copies = Copies(night, stopped)
    try:
        run = copies.next()
        python = kill_points.python(night.once, "recover", point, launcher_too=launcher_too)
        die_and_finish(night, run, PYTHON=str(python))
        return len((night.once / "points").read_text().splitlines()) == point
    finally:
        copies.restore()


@pytest.mark.fault("G2", by="claims.py: one claim, worth nothing without a trainer; aborting.py: one event")
@pytest.mark.fault("D11", by="plan.py: the rate is worked out anew from the parent's each time")
@pytest.mark.parametrize("point", [9, pytest.param(41, marks=pytest.mark.long), 98])
def test_a_launcher_killed_at_a_command_of_its_recovery_is_made_up_for(
    warm_night: Night, stopped: Path, point: int
) -> None:
    assert launcher_dies(warm_night, stopped, point)


@pytest.mark.long
@pytest.mark.fault("G2", by="claims.py: one claim, worth nothing without a trainer; aborting.py: one event")
@pytest.mark.fault("D11", by="plan.py: the rate is worked out anew from the parent's each time")
def test_a_launcher_killed_at_every_command_of_its_recovery_is_made_up_for(warm_night: Night, stopped: Path) -> None:
    points = 0
    while launcher_dies(warm_night, stopped, points + 1):
        points += 1
        assert points < MOST
    assert points > 50, "the commands are counted"


@pytest.mark.fault("G2", by="claims.py; make_folder.py: a folder that never started counts for nothing")
@pytest.mark.fault("D11", by="plan.py: the rate is worked out anew from the parent's each time")
@pytest.mark.parametrize("point", [3, pytest.param(12, marks=pytest.mark.long), 25])
def test_a_helper_killed_at_a_deed_of_its_recovery_is_made_up_for(warm_night: Night, stopped: Path, point: int) -> None:
    assert helper_dies(warm_night, stopped, point, launcher_too=point == 12)


@pytest.mark.long
@pytest.mark.fault("G2", by="claims.py; make_folder.py: a folder that never started counts for nothing")
@pytest.mark.fault("D11", by="plan.py: the rate is worked out anew from the parent's each time")
@pytest.mark.parametrize("launcher_too", [False, True])
def test_a_helper_killed_at_every_deed_of_its_recovery_is_made_up_for(
    warm_night: Night, stopped: Path, launcher_too: bool
) -> None:
    points = 0
    while helper_dies(warm_night, stopped, points + 1, launcher_too=launcher_too):
        points += 1
        assert points < MOST
    assert points > 20, "the deeds are counted"


@pytest.mark.long
@pytest.mark.fault("G2", by="aborting.py: one event, and a stop that the next pass takes up again")
def test_a_watcher_killed_at_every_deed_of_a_stop_is_made_up_for(warm_night: Night) -> None:
    """A run that hangs, and a watcher that dies at each deed of its pass: the next passes stop it once."""
    points, has_died = 0, True
    while has_died:
        points += 1
        hung = {"hang_minutes": HANG_MINUTES, "grace_s": 2}
        warm_night.config("--delay", "0.005", "--at", "25", "hang", training={"max_steps": STEPS}, abort=hung)
        (warm_night.once / "hang.done").unlink(missing_ok=True)
        run = warm_night.start(steps=24)
        time.sleep(HANG_MINUTES * 60)
        python = kill_points.python(warm_night.once, "watch", points)
        has_died = warm_night.watch(env={"PYTHON": str(python)}).returncode == -signal.SIGKILL
        child = warm_night.watched(lambda run=run: warm_night.child(run), "it is stopped and taken up", 30)
        warm_night.state_is(child, "finished")
        assert one(run, "abort")["cause"] == "hang"
    assert points > 5, "the deeds are counted"
