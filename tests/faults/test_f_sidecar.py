"""Section F of the catalogue, status and sidecar: who is gone, what is torn, what is not to be believed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.oracle import Oracle
from resumekit.base import journal
from resumekit.run import live_marker, status
from resumekit.run.run_folder import open_run
from support import another_user, namespaces
from support.commands import Kit
from support.nights import Night, one, record, sidecar_supervisor_of
from support.places import LIVE
from support.processes import wait_until
from support.runs import events


@pytest.mark.fault("F1", by="launcher.sh: kit_wait_for_last_lines; sidecar.py: the end, written down by any process")
def test_a_run_without_a_sidecar_under_a_living_launcher_is_written_down_at_its_end(warm_night: Night) -> None:
    warm_night.config("--delay", "0.02", training={"max_steps": 60})
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 12, "some steps")
    sidecar = wait_until(lambda: warm_night.sidecar(run), "its sidecar")
    os.kill(sidecar_supervisor_of(sidecar), signal.SIGKILL)
    os.kill(sidecar, signal.SIGKILL)
    os.kill(warm_night.who(run, "trainer"), signal.SIGKILL)
    child = warm_night.next_of(run)
    process.communicate(timeout=60)
    assert (one(run, "exited")["signal"], warm_night.state(run)) == (9, "failed")
    assert b"resumekit: ended (code 137; signal 9)" in (run / "logs" / "train.log").read_bytes().splitlines()[-1]
    assert one(run, "recovery")["child_run_id"] == child.name


@pytest.mark.fault("F1", by="acting.py: another sidecar for a run without one")
@pytest.mark.parametrize("has_launcher", [True, False])
def test_the_watcher_gives_a_run_without_a_sidecar_another_one_and_stops_no_run(
    night: Night, has_launcher: bool
) -> None:
    night.config("--delay", "0.02", training={"max_steps": 100_000})
    run = night.start()
    if has_launcher:
        sidecar = wait_until(lambda: night.sidecar(run), "its sidecar")
        os.kill(sidecar_supervisor_of(sidecar), signal.SIGKILL)
        os.kill(sidecar, signal.SIGKILL)
    else:
        night.kill_launcher(run)
    wait_until(lambda: night.sidecar(run) is None, "no sidecar follows it")
    if has_launcher:
        assert "a sidecar" not in night.watch(code=0).stderr, "its launcher may be about to start one"
        for name in ("run.json", ".sidecar.json"):
            with_age(run / name, 120)
    assert "it has one now" in night.watch(code=0).stderr
    told = len(events(run, "step"))
    wait_until(lambda: len(events(run, "step")) > told + 10, "its steps are told again")
    assert "a sidecar" not in night.watch(code=0).stderr
    assert not events(run, "abort") and night.run_dirs() == [run]


def with_age(path: Path, age_s: float) -> None:
    if path.exists():
        seen = os.stat(path).st_mtime - age_s
        os.utime(path, (seen, seen))


@pytest.mark.fault("F1", by="acting.py: a sidecar for an end that is not written down")
def test_a_run_that_finished_without_a_sidecar_is_written_down_by_the_watchers_next_pass(night: Night) -> None:
    night.config("--delay", "0.02", training={"max_steps": 50})
    run = night.start()
    night.kill_launcher(run)
    wait_until((run / "exit.json").exists, "its end")
    assert night.state(run) != "finished"
    night.watch(code=0)
    wait_until(lambda: night.state(run) == "finished", "its status says so")
    assert one(run, "exited")["code"] == 0
    wait_until(lambda: not (night.runs / LIVE / run.name).exists(), "the marker is gone")
    assert record(run)["run_id"] == run.name


@pytest.mark.fault("F2", by="files.py: write_atomic, a rename")
@pytest.mark.parametrize("reads", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_reader_of_thousands_sees_half_a_status(kit: Kit, reads: int) -> None:
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    opened = open_run(run)
    is_over, written = threading.Event(), []

    def write() -> None:
        while not is_over.is_set():
            # Of another length each time: a torn one would have the end of a longer one behind it.
            written.append(1)
            status.write(opened, {**status.current(opened), "last_warning": "x" * (len(written) % 5000)})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(reads):
            assert json.loads((run / "status.json").read_bytes())["run_id"] == run.name
    finally:
        is_over.set()
        thread.join()
    assert len(written) > 50


# What may lie in a run's folder under the name of a file of ours.
def no_file(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_hundred_megabytes(path: Path) -> None:
    os.truncate(path, 100 << 20)


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


DEEP = b'{"state":' * 50_000 + b"1" + b"}" * 50_000
SPOILED: dict[str, Callable[[Path], Any]] = {
    "empty": content(b""), "cut": content(b'{"run_id": "T-1_'), "binary": content(bytes(range(256)) * 64),
    "deep": content(DEEP), "a list": content(b"[1]"), "huge": a_hundred_megabytes,
    "gone": no_file, "a folder": a_folder, "a link": a_link, "a FIFO": a_fifo,
}  # fmt: skip
PAYLOAD = "a[$(touch pwned)]"
NO_NUMBERS = ["12", -1, 1e30, True, [3], {"a": 1}, None, PAYLOAD, "`touch pwned`", "1;touch pwned"]


@pytest.fixture
def lab(weird_tmp_path: Path) -> Iterator[Night]:
    """As `night`, without the oracle: what the test itself spoils is no fault of the kit. Another user may look too."""
    with tempfile.TemporaryDirectory() as place:  # pytest closes its own folders to others
        os.chmod(place, 0o755)
        night = Night(Path(place) / weird_tmp_path.name)
        yield night
        night.clean_up()


@pytest.fixture
def well(lab: Night) -> Path:
    """A healthy run that goes on for as long as the test, and that no sidecar follows: what is spoiled stays so."""
    lab.config("--delay", "0.02", training={"max_steps": 100_000})
    run = lab.start()
    wait_until(lambda: (run / "status.json").exists() and (run / ".sidecar.json").exists(), "its views", 30)
    sidecar = lab.sidecar(run)
    assert sidecar
    os.kill(sidecar_supervisor_of(sidecar), signal.SIGKILL)
    os.kill(sidecar, signal.SIGKILL)
    return run


@pytest.mark.fault("F3", by="files.py: a bounded read; status.json is a view, the journal the truth")
@pytest.mark.fault("F4", by="files.py: regular files only")
def test_a_spoiled_view_of_a_healthy_run_makes_no_reader_call_it_dead(lab: Night, well: Path) -> None:
    whole = {name: (well / name).read_bytes() for name in ("status.json", ".sidecar.json")}
    for how, spoil in SPOILED.items():
        for name in (*whole, "heartbeat.json"):
            shutil.rmtree(well / name, ignore_errors=True) if (well / name).is_dir() else None
            (well / name).unlink(missing_ok=True)
            (well / name).write_bytes(whole.get(name, b"{}"))
            spoil(well / name)
        begun = time.monotonic()
        assert lab.watch("--observe", code=0).stdout.split()[1] == "running", how
        (shown,) = json.loads(lab("runs", well.name, "--json").stdout)
        assert shown["state"] == "running", how
        assert time.monotonic() - begun < 15, how
        for name in (*whole, "heartbeat.json"):
            shutil.rmtree(well / name, ignore_errors=True) if (well / name).is_dir() else None
            (well / name).unlink(missing_ok=True)
    assert not events(well, "abort")


@pytest.mark.fault("F4", by="files.py: what may not be read is no view; status.py: the journal is the truth")
@pytest.mark.skipif(bool(another_user.why_not()), reason=str(another_user.why_not()))
def test_a_view_that_may_not_be_read_makes_no_reader_call_a_healthy_run_dead(lab: Night, well: Path) -> None:
    """Looked at by another user, for root may read whatever mode it has."""

    def seen(command: str, *words: str) -> tuple[int, str]:
        argv = [*another_user.SETPRIV, *lab.argv(command, *words)]
        env = {**lab.env, "PYTHON": str(another_user.python())}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout

    for name in ("status.json", ".sidecar.json"):
        (well / name).chmod(0)
    code, text = seen("abort-watch", "--observe")
    assert (code, text) == (0, ""), "a watcher looks at its own user's runs"
    code, text = seen("runs", well.name, "--json")
    assert (code, json.loads(text)[0]["state"]) == (0, "running")
    assert not events(well, "abort")


# Trains on whatever becomes of its log, as one that uses the helpers does.
DOES_NOT_CARE = """
import os, time

for step in range(1, 10**9):
    try:
        os.write(1, b"step %d loss 0.5%d" % (step, step) + b"." * 300 + b"\\n")
    except OSError:
        pass
    time.sleep(0.01)
"""


@pytest.mark.long
@pytest.mark.fault("F9", by="sidecar.py, train_log.py: what cannot be written is tried again; on a real tmpfs")
@pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))
def test_a_sidecar_survives_a_disk_that_is_really_full_and_catches_up_when_there_is_room(tmp_path: Path) -> None:
    def work() -> None:
        night, filler = Night(tmp_path / "night"), tmp_path / "filler"
        try:
            night.config(trainer={"command": ["{python}", "-c", DOES_NOT_CARE.replace("{", "{{").replace("}", "}}")]},
                         training={"max_steps": 10**9}, status={"interval_s": 1})  # fmt: skip
            with Oracle(night.runs) as oracle:
                follow_through_a_full_disk(night, filler)
                night("abort-watch", "--stop", "T-1")
                oracle.check()
        finally:
            night.clean_up()

    namespaces.on_small_disk(tmp_path, "size=6m", work)


def follow_through_a_full_disk(night: Night, filler: Path) -> None:
    run = night.start(steps=20)
    sidecar = wait_until(lambda: night.sidecar(run), "its sidecar")
    wait_until(lambda: (run / "status.json").exists() and night.status(run)["global_step"], "a status with a step")
    namespaces.fill(filler)
    time.sleep(2)
    stands_at = night.status(run)["global_step"]
    time.sleep(3)
    assert night.status(run)["global_step"] == stands_at, "the disk is full for it too"
    assert night.watch("--observe", code=0).stdout.split()[1] == "running"
    filler.unlink()
    told = len(events(run, "step"))
    wait_until(lambda: night.status(run)["global_step"] > stands_at + 100, "it has caught up")
    assert len(events(run, "step")) > told
    assert night.sidecar(run) == sidecar, "it is the same one"
    lines = (run / "logs" / "train.log").read_bytes().splitlines()
    assert len(lines) > 100 and not events(run, "abort")
    assert all(line.startswith(lines[0].split()[0]) for line in lines), "each line has the config's hash"


@pytest.mark.fault("F5", by="rules.py: ages are differences of the monotonic clock; journal_fold.py")
def test_times_in_the_future_and_of_another_boot_make_no_alarm_and_no_age(lab: Night, well: Path) -> None:
    """What an evil writer says with `at`; and a status that is a hundred years older or younger than now."""
    for year in (1970, 2099):
        for event in ({"step": 7, "loss": 0.5}, {"step": 8, "loss": 0.4}):
            line = {"event": "step", "at": f"{year}-01-01T00:00:00.000000Z", "run_id": well.name, **event}
            with open(well / "journal.jsonl", "a") as file:
                file.write(f"\n{json.dumps({**line, 'mono_s': time.monotonic()})}\n")
        os.utime(well / "status.json", (time.time() + 1e8, time.time() + 1e8))
        assert lab.watch("--observe", code=0).stdout.split()[1] == "running"
    assert not events(well, "abort")


@pytest.mark.fault("F6", by="runs.py: a copied folder under another name is not the run that it says it is")
def test_a_copied_folder_is_no_run(lab: Night, well: Path) -> None:
    copy = lab.runs / "T-1_copy_20261123-0101"
    shutil.copytree(well, copy, symlinks=True)
    live_marker.make(lab.runs / LIVE / copy.name)
    try:
        with open(copy / "journal.jsonl", "a") as file:
            file.write('\n{"event": "step", "step": 9, "loss": "nan", "mono_s": 1.0}\n')
        looks = json.loads(lab.watch("--json", code=0).stdout)
        by_id = {look["run_id"]: look for look in looks}
        assert by_id[copy.name]["verdict"] == "unknown"
        assert "says whose it is" in by_id[copy.name]["note"]
        assert by_id[well.name]["verdict"] == "well" and not events(copy, "abort")
    finally:
        shutil.rmtree(copy)
        (lab.runs / LIVE / copy.name).unlink()


@pytest.mark.fault("F7", by="values.py: each value only if it has the right type")
@pytest.mark.fault("F8", by="no Bash reads a number out of a file; values.py")
def test_what_is_no_number_is_not_counted_with_and_never_run(lab: Night, well: Path) -> None:
    for value in NO_NUMBERS:
        for kind in ("step", "heartbeat", "eval", "checkpoint", "phase", "oom", "eval_crashed"):
            fields = dict.fromkeys(("step", "global_step", "loss", "lr", "epoch", "size", "phase", "kind"), value)
            journal.append(well / "journal.jsonl", kind, well.name, **{k: v for k, v in fields.items() if k != "kind"})
        told = dict.fromkeys(("global_step", "steps_per_sec", "pid", "exit_code", "eta_s"), value)
        (well / "status.json").write_text(json.dumps({"run_id": well.name, **told}))
        (well / "heartbeat.json").write_text(json.dumps({"global_step": value, "loss": value}))
    say = lab.watch("--observe", "--json", code=None)
    (look,) = json.loads(say.stdout)
    assert look["state"] == "running" and type(look["step"]) is int and 0 <= look["step"] < 10**12
    lab("runs", "T-1")
    for folder in (Path.cwd(), lab.folder, lab.runs, well):
        assert not (folder / "pwned").exists()
