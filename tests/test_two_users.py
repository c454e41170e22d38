"""Two users of one runs folder: each starts, each watches, neither is in the other's way or in the other's hands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.run import live_marker
from resumekit.run.live_view import LiveView
from support import another_user
from support.commands import Kit
from support.long_tests import long
from support.processes import wait_until
from support.runs import events
from support.watched_runs import kill_all_of

pytestmark = pytest.mark.skipif(another_user.why_not() is not None, reason=str(another_user.why_not()))
ANN, BOB = another_user.UID, another_user.UID - 1


class SharedLab(Kit):
    """A runs folder of one group's, and the commands as one of its users calls them."""

    def call(self, uid: int, command: str, *args: str, umask: int = 0o022, **more: Any) -> subprocess.CompletedProcess:
        """Run a command as a user with a HOME of their own; the rest as `Kit`'s own."""
        home = self.folder / f"home-{uid}"
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, uid, another_user.GID)
        env = {"HOME": str(home), "XDG_STATE_HOME": "", "PYTHON": str(another_user.python()), **more.pop("env", {})}
        return self(
            command, *args, user=uid, group=another_user.GID, extra_groups=[], umask=umask, env=env, **more
        )  # fmt: skip

    def start(self, uid: int, experiment: str, umask: int = 0o022) -> Path:
        done = self.call(uid, "run", experiment, "--detach", umask=umask)
        run = self.runs / done.stdout.strip()
        wait_until(lambda: events(run, "step"), "a first step")
        return run

    def looks(self, uid: int, *args: str, code: int = 0) -> dict[str, dict[str, Any]]:
        done = self.call(uid, "abort-watch", "--json", *args, code=code)
        return {one["run_id"]: one for one in json.loads(done.stdout)}


@pytest.fixture
def lab() -> Iterator[SharedLab]:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        lab = SharedLab(Path(place) / "lab")
        lab.config("--delay", "0.05", "--save-every", "10", training={"max_steps": 20_000}, recover={"enabled": True})
        lab.folder.chmod(0o755)
        lab.runs.mkdir()
        os.chown(lab.runs, 0, another_user.GID)
        lab.runs.chmod(0o2777)
        yield lab
        lab.clean_up()


@pytest.mark.parametrize(
    ("mode", "umask"),
    [
        long(0o2777, 0o022, id="022"),
        pytest.param(0o2777, 0o077, id="077"),
        pytest.param(0o2775, 0o027, id="2775 and 027"),
    ],
)
def test_two_users_start_and_watch_in_one_runs_folder(lab: SharedLab, mode: int, umask: int) -> None:
    lab.runs.chmod(mode)
    anns, bobs = lab.start(ANN, "T-1", umask), lab.start(BOB, "T-2", umask)
    for uid, run in ((ANN, anns), (BOB, bobs)):
        assert (lab.runs / f".live.{uid}").stat().st_uid == uid
        for _ in range(2):
            done = lab.call(uid, "abort-watch", umask=umask)
            assert done.stdout.split()[0] == run.name and "well" in done.stdout and len(done.stdout.splitlines()) == 1
            assert done.stderr.count("\n") == 1 and "1 run looked at, 0 sick" in done.stderr
    # runs.sh --watch shows the runs of both, the live ones first.
    live, _, total = LiveView(lab.runs).look(24)
    assert ({one.run.run_id for one in live}, total) == ({anns.name, bobs.name}, 2)


def test_each_watcher_takes_up_its_own_run_and_the_others_stays_as_it_is(lab: SharedLab) -> None:
    anns, bobs = lab.start(ANN, "T-1"), lab.start(BOB, "T-2")
    for run in (anns, bobs):
        wait_until(lambda run=run: list((run / "checkpoints").glob("*.pt")), "a checkpoint")
        kill_all_of(run)
    done = lab.call(ANN, "abort-watch", code=8)
    assert f"{anns.name}: taking it up" in done.stderr and bobs.name not in done.stderr + done.stdout
    child = wait_until(lambda: next(iter(lab.runs.glob("T-1_toy_resume@*")), None), "Ann's run goes on")
    wait_until(lambda: events(child, "step"), "it trains")
    assert child.stat().st_uid == ANN
    wait_until(lambda: not (lab.runs / f".live.{ANN}" / anns.name).exists(), "the old marker is removed")
    assert [event["event"] for event in events(bobs)].count("abort") == 0
    assert (lab.runs / f".live.{BOB}" / bobs.name).exists() and not list(lab.runs.glob("T-2_other_resume@*"))


def test_a_user_without_a_home_and_without_a_passwd_entry_starts_watches_and_has_a_log(lab: SharedLab) -> None:
    uid = 54321
    env = {"PATH": "/usr/bin:/bin", "PYTHON": str(another_user.python()), "RESUMEKIT_TEST_MARK": lab.mark}

    def call(command: str, *args: str, code: int) -> subprocess.CompletedProcess[str]:
        argv = lab.argv(command, *args)
        done = subprocess.run(argv, env=env, user=uid, group=uid, extra_groups=[], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, cwd="/", timeout=60)  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    run = lab.runs / call("run", "T-1", "--detach", code=0).stdout.strip()
    wait_until(lambda: events(run, "step"), "a first step")
    assert run.name in call("abort-watch", code=0).stdout
    kill_all_of(run)
    call("abort-watch", "--quiet", "--log", code=8)
    log = lab.runs / f".watch.{uid}.log"
    assert f"{run.name}: taking it up" in log.read_text()
    assert log.stat().st_uid == uid and log.stat().st_mode & 0o777 == 0o600


def test_a_run_that_another_user_put_there_under_the_victims_name_is_never_taken_up(lab: SharedLab) -> None:
    """Bob owns a copy of what Ann has made; she links it into the runs folder and marks it as live."""
    evil = lab.start(ANN, "T-1")
    wait_until(lambda: list((evil / "checkpoints").glob("*.pt")), "a checkpoint")
    kill_all_of(evil)
    copy = lab.folder / f"home-{BOB}" / evil.name
    lab.call(BOB, "runs")
    subprocess.run(["cp", "-r", str(evil), str(copy)], check=False)  # a temp file may go meanwhile
    for path in (copy, *copy.rglob("*")):
        os.chown(path, BOB, another_user.GID)
    (lab.folder / f"home-{BOB}").chmod(0o755)
    evil.rename(evil.with_name("away"))
    evil.symlink_to(copy)
    for folder in (f".live.{BOB}", ".live"):  # the first one before Bob has one of his own
        marker = lab.runs / folder / evil.name
        live_marker.make(marker)
        for path in (marker, marker.parent):
            os.chown(path, ANN, another_user.GID, follow_symlinks=False)
        done = lab.call(BOB, "abort-watch", code=None)
        assert "taking it up" not in done.stderr and "stopping it" not in done.stderr
        assert "left alone:" in done.stdout or "live markers" in done.stderr, done.stdout + done.stderr
        shutil.rmtree(marker.parent)
    assert not list(lab.runs.glob("T-1_*resume*")) and not events(copy, "abort")


def test_a_colleagues_live_run_is_not_called_gone_by_stop(lab: SharedLab) -> None:
    anns = lab.start(ANN, "T-1")
    done = lab.call(BOB, "abort-watch", "--stop", "T-1", code=None)
    assert "nothing to stop" not in done.stderr and anns.name in done.stderr
    assert lab.looks(BOB) == {} and list(lab.looks(ANN)) == [anns.name]
    (launched,) = events(anns, "launched")
    os.kill(launched["launcher"]["pid"], signal.SIGTERM)
    wait_until(lambda: not (lab.runs / f".live.{ANN}" / anns.name).exists(), "its own marker goes with it")


@pytest.mark.parametrize("home", ["own", "none", "shared"])
def test_cron_s_line_of_each_of_two_users_says_nothing_and_has_a_log_of_its_own(lab: SharedLab, home: str) -> None:
    """The line redirects nothing: what it said on stderr, cron would mail each minute."""
    shared = lab.folder / "state"
    shared.mkdir()
    shared.chmod(0o777)
    env = {"own": {}, "none": {"HOME": ""}, "shared": {"XDG_STATE_HOME": str(shared)}}[home]
    logs = []
    for uid, experiment in ((ANN, "T-1"), (BOB, "T-2")):
        lab.start(uid, experiment)
        for _ in range(2):
            done = lab.call(uid, "abort-watch", "--quiet", "--log", env=env)
            assert (done.stdout, done.stderr) == ("", "")
        logs += [path for path in lab.folder.parent.rglob("*.log") if path.stat().st_uid == uid and is_watchers(path)]
    assert [log.stat().st_uid for log in logs] == [ANN, BOB]


def is_watchers(path: Path) -> bool:
    return path.parent.name == "watch" or path.name.startswith(".watch.")
