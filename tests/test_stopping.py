"""Ending a run on purpose: resumekit.process.stopping, asked for by the launcher's traps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import processes
from resumekit.base.paths import RunPaths
from resumekit.process import aborting, stop_request, stopping
from resumekit.run import status
from resumekit.run.run_folder import Run, open_run
from resumekit.watch import inspection
from support.commands import Kit
from support.processes import marked_pids, wait_until
from support.runs import events

pytestmark = pytest.mark.usefixtures("valid_records")


def trainer_of(run: Path) -> processes.Identity:
    (launched,) = events(run, "launched")
    found = processes.identity_from(launched["trainer"])
    assert found is not None
    return found


def started(kit: Kit, *toy_args: str, **sections: dict) -> tuple[subprocess.Popen, Path]:
    """Start a run that goes on for ever; return when it steps."""
    kit.config("--delay", "0.02", *toy_args, training={"max_steps": 10**6}, **sections)
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    return process, run


@pytest.mark.parametrize("name", ["TERM", "INT"])
@pytest.mark.fault("A2", by="stopping.py: one signal, to the trainer alone")
def test_a_trainer_that_is_stopped_saves_and_ends(kit: Kit, name: str) -> None:
    process, run = started(kit)
    assert stopping.stop(run, name) == 0
    process.communicate()
    code = 128 + signal.Signals[f"SIG{name}"]
    assert process.returncode == code
    (stopped,) = events(run, "stopped")
    (exited,) = events(run, "exited")
    assert (stopped["by"], stopped["now"], exited["code"], exited["signal"]) == (name, False, code, None)
    assert kit.status(run)["state"] == "stopped"
    assert list((run / "checkpoints").glob("*.pt"))


TAKES_ITS_TIME = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
print("step 1", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
sys.exit(5)
"""


def test_through_three_signals_the_trainers_end_is_waited_for_and_its_code_is_the_launchers(kit: Kit) -> None:
    """Each one ends one `wait` of Bash: the third comes when the launcher has gone on from two of them."""
    script, go, said = (kit.folder / name for name in ("trainer.py", "go", "said"))
    script.write_text(TAKES_ITS_TIME)
    kit.config(trainer={"command": ["{python}", str(script), str(go)], "resume_args": []}, abort={"grace_s": 60})
    with said.open("wb") as stderr:
        process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=stderr)
    run = kit.started()
    wait_until(lambda: events(run, "step"), "a step")
    for number in range(1, 4):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda n=number: said.read_bytes().count(b": TERM") == n, f"signal {number} is handled")
        time.sleep(0.2)  # the launcher waits again: a signal before that would only be held until it does
    assert process.poll() is None and processes.probe(trainer_of(run)) == processes.ALIVE
    go.touch()
    assert process.wait(60) == 5
    assert "cannot be written down" not in said.read_text()
    assert json.loads((run / "exit.json").read_text())["code"] == 5 and kit.status(run)["state"] == "stopped"


@pytest.mark.fault("G13", by="stopping.py: KILL after the grace")
def test_a_trainer_that_does_not_listen_is_killed_after_its_grace(kit: Kit) -> None:
    process, run = started(kit, "--ignore", "TERM,INT", "--at", "1", "child", abort={"grace_s": 0.5})
    trainer = trainer_of(run)
    members = wait_until(lambda: len(m := processes.session_members(trainer)) > 1 and m, "its worker")
    began = time.monotonic()
    assert stopping.stop(run, "TERM") == 0
    assert time.monotonic() - began >= 0.5
    process.communicate()
    assert (process.returncode, kit.status(run)["state"]) == (137, "stopped")
    assert [processes.probe(m) for m in members] == [processes.DEAD] * len(members)


@pytest.mark.fault("A5", by="processes.py: kill_session")
def test_now_means_now_with_everything_in_its_session(kit: Kit) -> None:
    process, run = started(kit, "--at", "1", "child")
    trainer = trainer_of(run)
    members = wait_until(lambda: len(m := processes.session_members(trainer)) > 1 and m, "its worker")
    assert stopping.stop(run, "INT", is_now=True) == 0
    process.communicate()
    assert process.returncode == 137
    assert [processes.probe(m) for m in members] == [processes.DEAD] * len(members)
    assert not list((run / "checkpoints").glob("*.pt"))


@pytest.mark.fault("G13", by="processes.py: kill_session")
def test_a_worker_that_outlives_its_trainer_is_killed_too(kit: Kit) -> None:
    """The trainer saves and ends; what it has left behind has until the end of the grace."""
    process, run = started(kit, "--at", "1", "child", abort={"grace_s": 1})
    trainer = trainer_of(run)
    wait_until(lambda: len(processes.session_members(trainer)) > 1, "its worker")
    assert stopping.stop(run, "TERM") == 0
    process.communicate()
    assert process.returncode == 143
    assert processes.session_members(trainer) == []


@pytest.mark.fault("E4", by="stopping.py: CONT after the signal, KILL after the grace")
def test_a_trainer_in_state_t_goes_on_to_save(kit: Kit) -> None:
    """TERM has no effect on a stopped process before it is let go on."""
    process, run = started(kit)
    trainer = trainer_of(run)
    assert processes.send(trainer, signal.SIGSTOP)
    assert stopping.stop(run, "TERM") == 0
    process.communicate()
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert list((run / "checkpoints").glob("*.pt"))


def test_stopped_is_in_the_journal_before_the_signal(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was ended on purpose is never recovered, whatever process is killed in between."""
    process, run = started(kit)
    seen = []
    monkeypatch.setattr(processes, "send", lambda *_: seen.append(len(events(run, "stopped"))) or True)
    monkeypatch.setattr(processes, "wait_for_end", lambda *_: False)
    monkeypatch.setattr(processes, "kill_session", lambda *_: 0)
    monkeypatch.setattr(stopping, "END_WAIT_S", 0.1)
    stopping.stop(run, "TERM")
    assert seen[0] == 1
    process.kill()  # the rest of it is killed when the test is over
    process.wait()


@pytest.mark.fault("G12", by="stopping.py: exit.json first")
def test_what_has_ended_is_not_stopped(kit: Kit) -> None:
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    assert stopping.stop(run, "TERM") == 1
    assert events(run, "stopped") == []


@pytest.mark.fault("G8", by="stop_request.py: a host that cannot signal asks, the run's own sidecar obeys")
def test_a_trainer_of_another_host_is_stopped_by_its_own_sidecar(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    process, run = started(kit)
    monkeypatch.setattr(processes, "host_name", lambda: "elsewhere")
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    sent: list[Any] = []
    monkeypatch.setattr(processes, "send", lambda *args: sent.append(args))
    assert stopping.stop(run, "TERM") == stopping.ASKED
    process.communicate()
    assert process.returncode == 143 and not sent, "nothing was signalled from here"
    (stopped,) = events(run, "stopped")
    assert stopped["asked_by"].endswith(f"(uid {os.getuid()}) on host elsewhere")
    assert kit.status(run)["state"] == "stopped"


def test_a_request_whose_sidecar_is_dead_is_not_obeyed_and_that_is_said(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process, run = started(kit)
    trainer = trainer_of(run)
    spared = {events(run, "launched")[0][name]["pid"] for name in ("trainer", "shim")}
    family = [pid for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}") if pid not in spared]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none of them starts another
        for pid in family:
            os.kill(pid, number)
    process.wait()
    monkeypatch.setattr(processes, "host_name", lambda: "elsewhere")
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    monkeypatch.setattr(stop_request, "OBEY_WAIT_S", 0.5)
    assert stopping.stop(run, "TERM") == 1
    said = capsys.readouterr().err
    assert "its sidecar" in said and "--take-over" in said
    monkeypatch.undo()
    assert not events(run, "stopped") and processes.probe(trainer) == processes.ALIVE


def test_a_request_about_another_trainer_counts_for_nothing(kit: Kit) -> None:
    """One of before this trainer's start, or from a copied folder; and one that is a link, a FIFO or no JSON."""
    process, run = started(kit)
    launched = events(run, "launched")[0]["trainer"]
    state = {"launched": {"trainer": launched}}
    request = open_run(run).paths.stop_request
    obedience = stop_request.Obedience(open_run(run))
    stop_request.ask(open_run(run), {"launched": {"trainer": {**launched, "start_ticks": 1}}})
    assert obedience._asked(state) is None
    request.unlink()
    os.mkfifo(request)
    assert obedience._asked(state) is None
    request.unlink()
    request.symlink_to("/etc/passwd")
    assert obedience._asked(state) is None
    request.unlink()
    request.write_text('{"trainer": ' + "[" * 5000)
    assert obedience._asked(state) is None
    time.sleep(1.5)  # its own sidecar looks each second
    assert not events(run, "stopped") and process.poll() is None
    stop_request.ask(open_run(run), state)
    process.communicate()
    assert process.returncode == 143


@pytest.mark.fault("K4", by="stop_request: the mode is set before the rename")
def test_a_link_in_the_place_of_a_request_keeps_the_mode_of_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, run = tmp_path / "private", Run(RunPaths(tmp_path), {"run_id": tmp_path.name})
    private.touch(mode=0o600)

    def move(temp: str, path: str, **_dirs: object) -> None:
        os.rename(temp, tmp_path / "moved")
        os.symlink(private, path)  # another user is as quick as that

    monkeypatch.setattr(os, "replace", move)
    old = os.umask(0o077)
    try:
        stop_request.ask(run, {})
    finally:
        os.umask(old)
    assert private.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "moved").stat().st_mode & 0o777 == 0o644, "its reader is another user"


@pytest.mark.parametrize(("grace", "seconds"), [(5, 5.0), ("5", 60.0), (-1, 60.0), (True, 60.0), (None, 60.0)])
def test_a_grace_that_is_no_number_does_not_take_the_grace_away(kit: Kit, grace: object, seconds: float) -> None:
    kit.runs.mkdir()
    run = Run(RunPaths(kit.runs), {})
    run.paths.resolved_json.write_text(json.dumps({"abort": {"grace_s": grace}}))
    assert stopping.grace_s(run) == seconds


def test_a_host_that_is_renamed_while_a_run_lives_is_no_other_host(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    process, run = started(kit)
    monkeypatch.setattr(processes, "host_name", lambda: "renamed")
    assert inspection.look_at(kit.runs, run.name).verdict == "well"
    assert stopping.stop(run, "TERM") == 0
    process.communicate()
    (stopped,) = events(run, "stopped")
    assert process.returncode == 143 and "asked_by" not in stopped


def test_a_sidecar_that_cannot_signal_either_does_not_say_that_it_stops(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, run = started(kit)
    state = status.read_state(open_run(run))
    stop_request.ask(open_run(run), state)
    monkeypatch.setattr(aborting, "stop_aborted", lambda _run: pytest.fail("it has nothing to signal"))
    monkeypatch.setattr(processes, "host_name", lambda: "elsewhere")
    monkeypatch.setattr(processes, "boot_id", lambda: "another boot")
    monkeypatch.setattr(stop_request.journal, "append", lambda *_args, **_more: pytest.fail("nor to write down"))
    stop_request.Obedience(open_run(run)).look({"launched": state["launched"]}, 1e6)
    monkeypatch.undo()
    process.terminate()
    process.communicate()
