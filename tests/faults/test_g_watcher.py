"""Section G of the catalogue, the watcher: overlapping, blind, unable to write, looking at other users' processes."""

from __future__ import annotations

import calendar
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from reliability.oracle import Oracle
from resumekit.base import journal, processes
from resumekit.process import aborting, stop_request, stopping
from resumekit.run import live_marker
from resumekit.run.run_folder import open_run
from resumekit.watch import acting, inspection
from resumekit.watch.inspection import Report
from resumekit.watch.rules import SICK, Finding
from support import another_user
from support.commands import Kit
from support.nights import HANG_MINUTES, Night, one, proven_steps, record
from support.places import LIB, LIVE, ROOT
from support.processes import wait_until
from support.runs import events

needs_another_user = pytest.mark.skipif(bool(another_user.why_not()), reason=str(another_user.why_not()))
SICK_OF_A_HANG = (Finding("hang", SICK, "no step since step 3"),)


def live(night: Night, *toy_args: str, **sections: Any) -> Path:
    """Start a healthy run that goes on for as long as the test."""
    night.config("--delay", "0.02", *toy_args, training={"max_steps": 100_000}, **sections)
    return night.start()


def is_free(lock: Path) -> bool:
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.fault("G1", by="acting.py: one_pass_at_a_time")
def test_of_two_passes_at_once_the_second_one_leaves_with_one_line(night: Night) -> None:
    run = live(night)
    os.kill(night.who(run, "trainer"), signal.SIGSTOP)
    with acting.one_pass_at_a_time(night.runs) as is_ours:
        assert is_ours
        begun = time.monotonic()
        done = night.watch(code=0)
        assert (done.stdout, done.stderr) == ("", "abort-watch.sh: another pass is at work\n")
        assert time.monotonic() - begun < 10
    assert night.watch(code=0).stdout.split()[0] == run.name


@pytest.mark.fault("G3", by="acting.py, claims.py: descriptors that are closed on exec")
def test_a_process_that_a_watcher_started_holds_none_of_its_locks(warm_night: Night) -> None:
    run = live(warm_night)
    warm_night.kill_all_of(run)
    child = warm_night.watched(lambda: warm_night.child(run), "it is taken up")
    wait_until(lambda: events(child, "step"), "it trains")
    for lock in (
        warm_night.runs / LIVE / ".watch.lock",
        run / "lock",
        child / "lock",
        warm_night.config_file,
    ):
        assert is_free(lock), lock
    assert not is_free(child / ".status.lock"), "its own sidecar's, for comparison"


@pytest.mark.fault("G4", by="acting.py: a lock of its own descriptor, never `flock FILE COMMAND`")
def test_a_watcher_that_is_killed_takes_its_lock_with_it_while_its_children_live(warm_night: Night) -> None:
    run = live(warm_night)
    warm_night.kill_all_of(run)
    lock = warm_night.runs / LIVE / ".watch.lock"
    watcher = warm_night.popen("abort-watch", "--every", "1")
    child = warm_night.next_of(run)
    watcher.kill()
    watcher.communicate()
    assert events(child, "launched") and is_free(lock)


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen]:
    """A process that is no trainer of the kit's, whose pid a run's journal names."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def forge(night: Night, trainer: dict[str, Any], *more: tuple[str, dict[str, Any]]) -> Path:
    """Make a run that ended long ago into one whose journal names another process as its trainer."""
    night("run", "T-1")
    (run,) = night.run_dirs()
    for name in ("exit.json", ".sidecar.json", "status.json", "journal.jsonl"):
        (run / name).unlink(missing_ok=True)
    trainer = {**trainer, "token": json.loads((run / "run.json").read_bytes())["token"]}
    gone = {**trainer, "boot_id": "another"}
    journal.append(run / "journal.jsonl", "launched", run.name, trainer=trainer, shim=gone, launcher=gone)
    for kind, fields in more:
        journal.append(run / "journal.jsonl", kind, run.name, **fields)
    live_marker.make(night.runs / LIVE / run.name)
    return run


BAD = [("step", {"step": number, "loss": "nan"}) for number in range(3, 6)]


@pytest.mark.fault("G5", by="processes.py: start time and run token, checked on the pidfd")
@pytest.mark.parametrize("tick", ["another", "the same"])
def test_a_pid_that_another_process_has_by_now_is_never_signalled(
    night: Night, other_process: subprocess.Popen, tick: str
) -> None:
    """With the very start time of the trainer, too: the token in its environment is not the run's."""
    night.config(recover={"enabled": False})
    found = processes.identify(other_process.pid, "the run's token")
    assert found
    ticks = found.start_ticks - (tick == "another")
    run = forge(night, found._replace(start_ticks=ticks).as_fields(), *BAD)
    night.watch()
    night("abort-watch", "--stop", run.name, code=None)
    subprocess.run([sys.executable, "-I", "-S", str(LIB / "resumekit_cli.py"), "stop", str(run), "TERM", "--now"],
                   check=False, capture_output=True, timeout=60)  # fmt: skip
    time.sleep(0.2)
    assert other_process.poll() is None


@pytest.mark.fault("G5", by="processes.py: start time and run token, checked on the pidfd")
def test_a_pid_that_the_kernel_has_given_out_again_is_never_signalled(night: Night) -> None:
    """The real thing, where the kernel lets a test say which pid comes next."""
    night.config(recover={"enabled": False})
    run = live(night, recover={"enabled": False})
    trainer = night.who(run, "trainer")
    night.kill_all_of(run)
    wait_until(lambda: not Path(f"/proc/{trainer}").exists(), "its pid is free")
    other = None
    for _ in range(50):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(trainer - 1))
        except OSError:
            pytest.skip("the next pid cannot be chosen here")
        other = subprocess.Popen(["sleep", "1000"])
        if other.pid == trainer:
            break
        other.kill()
        other.wait()
    else:
        pytest.skip("another process was faster, fifty times")
    try:
        assert "died" in night.watch(code=8).stdout
        night("abort-watch", "--stop", run.name, code=None)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.fault("G6", by="processes.py: state Z is dead")
def test_a_zombie_is_dead(night: Night) -> None:
    zombie = subprocess.Popen(["sleep", "0"])
    wait_until(lambda: b") Z" in Path(f"/proc/{zombie.pid}/stat").read_bytes(), "a zombie")
    found = processes.identify(zombie.pid, "a token")
    assert found
    night.config(recover={"enabled": False})
    run = forge(night, found.as_fields(), ("step", {"step": 3, "loss": 0.5}))
    said = night.watch(code=8).stdout.split()
    zombie.wait()
    assert (said[0], said[1]) == (run.name, "lost")


@pytest.mark.long
@pytest.mark.fault("G7", by="rules.py: ages are differences of the monotonic clock")
@pytest.mark.parametrize("hours", [-2, 2, 24 * 365])
def test_a_clock_that_jumps_makes_no_alarm_and_hides_none(night: Night, hours: int, tmp_path: Path) -> None:
    """The watcher's own clock is moved, for Bash and Python alike, by a library that is loaded before the C library."""
    moved, shift = clock_library(tmp_path)
    well = live(night)
    shift.write_text(str(hours * 3600))
    seen = subprocess.run(["date", "+%s"], env={**os.environ, **moved}, capture_output=True, check=True).stdout
    assert abs(int(seen) - time.time() - hours * 3600) < 60, "the clock is moved"
    assert night.watch(code=0, env=moved).stdout.split()[1] == "running"
    assert not events(well, "abort")
    night("abort-watch", "--stop", "T-1", env=moved)
    hung = {"hang_minutes": HANG_MINUTES, "grace_s": 2}
    night.config("--at", "5", "hang", "--delay", "0.02", training={"max_steps": 100_000}, abort=hung)
    run = night.start("--name", "hung")
    wait_until(lambda: len(events(run, "step")) == 5, "it hangs")
    time.sleep(HANG_MINUTES * 60 + 0.5)
    night.watch(code=8, env=moved)
    assert one(run, "abort")["cause"] == "hang"


YEAR_H = 24 * 365


@pytest.mark.long
@pytest.mark.fault("G7", by="sidecar.py, launcher.sh, recovering.py: waits and ages on the monotonic clock")
@pytest.mark.parametrize("hours", [1, -1, 20 * YEAR_H, 0], ids=["an hour", "an hour back", "twenty years", "DST"])
def test_a_clock_that_jumps_under_launcher_and_sidecar_changes_nothing_for_them(
    night: Night, hours: int, tmp_path: Path
) -> None:
    """It jumps for all of them while they run, trainer and watcher too; 0: summer time begins meanwhile."""
    moved, shift = clock_library(tmp_path)
    summer = time.gmtime(time.time() + 8)
    rule = f"J{summer.tm_yday - (summer.tm_yday > 59 and calendar.isleap(summer.tm_year))}"
    moved["TZ"] = f"WIN0SUM,{rule}/{summer.tm_hour}:{summer.tm_min}:{summer.tm_sec},J365/23" if hours == 0 else "UTC0"
    night.config(
        "--delay", "0.02", "--save-every", "10", training={"max_steps": 100_000}, status={"interval_s": 1},
        abort={"hang_minutes": 2 * HANG_MINUTES, "grace_s": 2},
    )  # fmt: skip
    run = night.start(env=moved)
    shift.write_text(str(hours * 3600))

    def has_jumped() -> bool:
        seen = datetime.fromisoformat(night.status(run)["heartbeat_at"].replace("Z", "+00:00")).timestamp()
        return abs(seen - time.time() - hours * 3600) < 300

    wait_until(has_jumped, "the sidecar's clock has jumped")
    if hours == 0:
        wait_until(lambda: subprocess.check_output(["date", "+%Z"], env={**os.environ, **moved}) == b"SUM\n", "summer")
    for _ in range(2):
        told = len(events(run, "step"))
        wait_until(lambda told=told: len(events(run, "step")) > told + 20, "it trains on, and is followed")
        assert night.watch(code=0, env=moved).stdout.split()[1] == "running"
    assert not [event for event in events(run) if event["event"] in ("abort", "warning")]
    wait_until(lambda: proven_steps(run), "a checkpoint")
    os.kill(night.who(run, "trainer"), signal.SIGKILL)
    child = night.next_of(run)
    shift.write_text("0")
    told = len(events(child, "step"))
    wait_until(lambda: len(events(child, "step")) > told + 20, "it trains on")
    assert night.watch(code=0, env=moved).stdout.split()[:2] == [child.name, "running"]
    assert record(child)["parent_step"] in proven_steps(run) and not events(child, "abort")


def clock_library(folder: Path) -> tuple[dict[str, str], Path]:
    """Compile a library under which every clock but the monotonic ones is off by what a file says, in seconds.

    Returns:
        What the environment of a process needs for it, and the file; it may be written anew at any time.
    """
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    shift = folder / "shift"
    shift.write_text("0")
    source = folder / "clock.c"
    source.write_text("""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long shift(void) {
  static char path[4096]; /* a copy: Bash has a getenv of its own, which may free what it returned */
  char text[32] = "";
  const char *said = *path ? NULL : getenv("CLOCK_SHIFT");
  if (said) strncpy(path, said, sizeof path - 1);
  long file = *path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
  if (file >= 0) {
    if (syscall(SYS_read, file, text, sizeof text - 1) < 0) text[0] = 0;
    syscall(SYS_close, file);
  }
  return atol(text);
}
int clock_gettime(clockid_t id, struct timespec *to) {
  int code = syscall(SYS_clock_gettime, id, to);
  if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) to->tv_sec += shift();
  return code;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  to->tv_sec = now.tv_sec;
  to->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *to) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}
""")
    library = folder / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}, shift


@pytest.mark.fault("G9", by="inspection.py: what cannot be read is unknown, never dead")
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_disk_that_fails_makes_a_run_unknown_and_the_next_pass_looks_again(
    night: Night, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live(night)
    real = journal.read

    def stale(path: Path, *rest: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(journal, "read", stale)
    (look,) = inspection.one_pass(night.runs)
    assert (look.verdict, os.strerror(number) in look.note) == (inspection.UNKNOWN, True)
    assert acting.act(night.runs, [look]) == []
    monkeypatch.setattr(journal, "read", real)
    assert inspection.one_pass(night.runs)[0].verdict == inspection.HEALTHY
    assert not events(run, "abort")


@pytest.mark.fault("G10", by="acting.py: environment_of, what run.json recorded")
def test_from_cron_a_run_is_taken_up_in_the_environment_that_it_had(warm_night: Night) -> None:
    warm_night.env["HF_HOME"] = "/somewhere"
    run = live(warm_night)
    warm_night.kill_all_of(run)
    argv = [str(ROOT / "bin" / "abort-watch.sh"), "--config", str(warm_night.config_file)]
    mark = {"RESUMEKIT_TEST_MARK": warm_night.mark}  # of trainer.env only names are kept: these must be set for it too
    cron = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "SHELL": "/bin/sh", **mark}
    done = subprocess.run([*argv, "--runs", str(warm_night.runs)], env=cron, cwd="/", capture_output=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60)  # fmt: skip
    assert done.returncode == 8, done.stderr
    child = warm_night.next_of(run)
    environment = Path(f"/proc/{warm_night.who(child, 'trainer')}/environ").read_bytes().split(b"\0")
    assert b"HF_HOME=/somewhere" in environment
    assert b"HOME=" + os.fsencode(warm_night.env["HOME"]) in environment
    assert record(child)["environment"]["values"]["PATH"] == warm_night.env["PATH"]


@pytest.mark.fault("G12", by="aborting.py: the end is looked for once more; processes.py: identity before each signal")
def test_a_run_that_ends_between_decision_and_signal_is_left_alone(night: Night) -> None:
    night.config(training={"max_steps": 5})
    night("run", "T-1")
    (run,) = night.run_dirs()
    before = (run / "journal.jsonl").read_bytes()
    live_marker.make(night.runs / LIVE / run.name)  # as it still was when it was looked at
    assert aborting.abort(open_run(run), "hang", "no step") is False
    assert acting.act(night.runs, [Report(run.name, "running", SICK, findings=SICK_OF_A_HANG)]) == []
    assert (run / "journal.jsonl").read_bytes() == before
    assert night.state(run) == "finished"


@pytest.mark.long
@pytest.mark.fault("G13", by="stopping.py: KILL after the grace, to its whole session")
def test_a_trainer_that_ignores_term_is_killed_with_its_workers_and_taken_up(night: Night) -> None:
    night.config(
        "--ignore", "TERM", "--delay", "0.02", "--save-every", "3", "--at", "4", "child", "--at", "20", "hang",
        training={"max_steps": 100_000}, abort={"hang_minutes": HANG_MINUTES, "grace_s": 1},
    )  # fmt: skip
    run = night.start()
    leader = processes.identity_from(one(run, "launched")["trainer"])
    assert leader
    wait_until(lambda: len(processes.session_members(leader)) > 1, "its worker")
    child = night.watched(lambda: night.child(run), "it is taken up")
    assert processes.session_members(leader) == []
    assert (one(run, "abort")["cause"], one(run, "exited")["signal"]) == ("hang", signal.SIGKILL)
    assert record(child)["parent_step"] == 18


@pytest.fixture
def lab() -> Iterator[Night]:
    """As `night`, where another user may look, without the oracle: files given away are no fault of the kit."""
    with another_user.folder() as place:
        night = Night(place / "night")
        yield night
        night.clean_up()


@pytest.mark.long
@pytest.mark.fault("G14", by="own_runs.py: a watcher has the markers of its own user, and asks who owns the folder")
@needs_another_user
def test_another_users_run_is_neither_stopped_nor_taken_up(lab: Night) -> None:
    hung = {"hang_minutes": HANG_MINUTES, "grace_s": 1}
    run = live(lab, "--at", "5", "hang", abort=hung)
    wait_until(lambda: len(events(run, "step")) == 5, "it hangs")
    time.sleep(HANG_MINUTES * 60 + 0.5)
    lab.runs.chmod(0o777)
    with Oracle(lab.runs) as oracle:
        done = as_another_user(lab, "abort-watch")
        assert "0 runs looked at" in done.stderr and done.returncode == 0, done.stderr
        # A marker of that user's own, for a folder that is not.
        marker = lab.runs / f".live.{another_user.UID}" / run.name
        live_marker.make(lab.runs / LIVE / "T-1_other_20261122-1735")
        (lab.runs / LIVE / "T-1_other_20261122-1735").rename(marker)
        os.chown(marker, another_user.UID, another_user.GID)
        done = as_another_user(lab, "abort-watch")
        oracle.check()
    assert "left alone: its folder belongs to another user" in done.stdout, done.stdout
    assert Path(f"/proc/{lab.who(run, 'trainer')}").exists()
    assert not events(run, "abort") and lab.run_dirs() == [run]


def as_another_user(night: Kit, *words: str) -> subprocess.CompletedProcess:
    """Run a command as another user."""
    argv = [*another_user.SETPRIV, *night.argv(*words)]
    env = {**night.env, "PYTHON": str(another_user.python())}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.long
@needs_another_user
@pytest.mark.fault("G14", by="processes.py: who may not be looked at is unknown, never dead")
def test_a_trainer_that_answers_permission_denied_is_neither_dead_nor_signalled_nor_replaced(lab: Night) -> None:
    """The folder is the watcher's own, the trainer in it another user's: nothing but the process says no."""
    run = live(lab, "--at", "40", "hang", abort={"hang_minutes": HANG_MINUTES, "grace_s": 1})
    lab.kill_launcher(run)  # of the run's owner only the trainer and its shim are left
    given_away = [lab.runs, *lab.runs.rglob("*")]
    for path in given_away:
        os.chown(path, another_user.UID, another_user.GID)
    (lab.runs / LIVE).rename(lab.runs / f".live.{another_user.UID}")
    done = as_another_user(lab, "abort-watch", "--observe")
    assert done.stdout.split()[:2] == [run.name, "unsupervised"] and "died" not in done.stdout, done.stdout

    def is_said() -> list[dict[str, Any]]:
        as_another_user(lab, "abort-watch")
        return [event for event in events(run, "warning") if event["kind"] == "not_signalled"]

    (said, *_) = wait_until(is_said, "it hangs, and cannot be stopped")
    trainer = lab.who(run, "trainer")
    assert f"pid {trainer} on" in said["message"] and "cannot be seen to be this run's trainer" in said["message"]
    assert "died" not in as_another_user(lab, "abort-watch", "--observe").stdout
    assert processes.probe(processes.identity_from(one(run, "launched")["trainer"])) == processes.ALIVE
    assert lab.run_dirs() == [run]


@pytest.mark.fault("G15", by="acting.py: a lock that cannot be made; aborting.py: the event first")
def test_a_watcher_that_cannot_write_stops_no_run_and_says_so(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    run = live(night, "--at", "5", "hang")
    lock = night.runs / LIVE / ".watch.lock"
    lock.mkdir()
    done = night.watch(code=1)
    assert "nothing is stopped that cannot be written down" in done.stderr
    lock.rmdir()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "append", full)
    (deed,) = acting.act(night.runs, [Report(run.name, "running", SICK, findings=SICK_OF_A_HANG)])
    assert (deed.is_done, "No space left" in deed.words) == (False, True)
    time.sleep(0.3)
    assert Path(f"/proc/{night.who(run, 'trainer')}").exists()
    assert not events(run, "abort")


@pytest.mark.long
@pytest.mark.fault("G16", by="claims.py: one claim of the head, for every process that asks")
def test_of_a_person_who_resumes_and_a_watcher_that_recovers_one_wins(warm_night: Night) -> None:
    for number in range(6):
        warm_night.config("--delay", "0.005", training={"max_steps": 100_000})
        run = warm_night.start("--name", f"race{number}", steps=12)
        warm_night.kill_all_of(run)
        recovers = subprocess.Popen(
            ["bash", str(LIB / "launcher.sh"), "recover", str(run)], env=warm_night.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(0.04 * number)  # a person who is as fast, and one who is a little later
        resumes = warm_night.popen("resume", run.name, "--detach")
        _, said = resumes.communicate(timeout=60)

        def begun(run: Path = run) -> list[Path]:
            runs = [one_ for one_ in warm_night.run_dirs() if record(one_).get("parent_run_id") == run.name]
            return [one_ for one_ in runs if events(one_, "step")]

        wait_until(begun, "one of them trains")
        time.sleep(0.5)
        (winner,) = begun()
        assert (resumes.returncode == 0) == (record(winner)["recovery"] is None), said
        os.kill(warm_night.who(winner, "launcher"), signal.SIGTERM)
        recovers.wait(timeout=60)
        warm_night.state_is(winner, "stopped", "preempted")


@pytest.mark.fault("G17", by="recovering.py, inspection.py: the file `paused`")
def test_hands_off_means_launcher_and_watcher_and_ends_when_the_file_goes(warm_night: Night) -> None:
    warm_night.config("--delay", "0.02", training={"max_steps": 100_000})
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 12, "some steps")
    (run / "paused").touch()
    os.kill(warm_night.who(run, "trainer"), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert warm_night.watch(code=0).stdout.split()[4] == "paused"
    assert warm_night.run_dirs() == [run] and not events(run, "abort")
    (run / "paused").unlink()
    warm_night.watched(lambda: warm_night.child(run), "it is taken up")


@pytest.mark.fault("G8", by="processes.py: another host is unknown, never signalled")
def test_a_run_of_another_host_is_said_and_left_alone(
    kit: Kit, other_process: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have its pid here."""
    monkeypatch.setattr(stop_request, "OBEY_WAIT_S", 0.5)
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    for name in ("exit.json", ".sidecar.json", "journal.jsonl"):
        (run / name).unlink(missing_ok=True)
    found = processes.identify(other_process.pid, "its token")
    assert found
    who = {**found.as_fields(), "host": "elsewhere", "boot_id": "another boot"}
    journal.append(run / "journal.jsonl", "launched", run.name, trainer=who, shim=who, launcher=who)
    journal.append(run / "journal.jsonl", "step", run.name, step=3, loss="nan")
    live_marker.make(kit.runs / LIVE / run.name)
    said = kit("abort-watch", "--json", code=0)
    (look,) = json.loads(said.stdout)
    assert (look["verdict"], look["note"]) == ("remote", "not looked at: its trainer is on 'elsewhere'")
    assert stopping.stop(run, "TERM") == 1
    assert other_process.poll() is None and not events(run, "abort")
