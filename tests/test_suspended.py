"""A launcher, shim or sidecar that is suspended: named with the command that mends it, and a person is told once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import process_details, processes
from resumekit.run import liveness, status
from resumekit.run.journal_fold import fold, measured_speed
from resumekit.run.run_folder import open_run
from resumekit.run.state_types import is_sound
from resumekit.watch import acting, inspection
from resumekit.watch.inspection import HEALTHY
from resumekit.watch.rules import SICK, WARNING
from resumekit.watch.watcher_files import MAX_WAITS, Memory, Wait
from support.commands import Kit
from support.processes import wait_until
from support.recoveries import PATTERNS
from support.runs import events
from support.watched_runs import start
from support.wrappers import PYTHON, WRAPPERS, begun, last_step, saved_steps, wrapped

SINCE = "suspended_since_s"


@pytest.fixture
def watched(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A lab that is told of what needs it, by a line in `told`; a person is called after the second pass."""
    kit.config(
        "--delay", "0.05", trainer={"log_patterns": PATTERNS}, training={"max_steps": 20_000},
        recover={"enabled": True}, notify={"command": ["sh", "-c", 'cat >> "$0"', str(kit.folder / "told")]},
    )  # fmt: skip
    monkeypatch.setattr(acting, "STUCK_PASSES", 2)
    monkeypatch.setattr(acting, "STUCK_S", 0.0)
    monkeypatch.setattr(inspection, "SECOND_LOOK_S", 0.2)
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", kit.mark)
    return kit


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def one_pass(kit: Kit, memory: Memory) -> tuple[inspection.Report, list[acting.Action]]:
    looks = inspection.one_pass(kit.runs)
    return looks[0], acting.act(kit.runs, looks, memory)


def told(kit: Kit) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in (kit.folder / "told").read_text().splitlines()]
    return []


def test_a_stopped_process_is_told_from_a_running_and_from_another_one() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(process.kill)
        identity = processes.identify(process.pid)
        assert identity and not processes.is_stopped(identity)
        with stopped(process.pid):
            wait_until(lambda: processes.is_stopped(identity), "it is stopped")
            assert not processes.is_stopped(identity._replace(start_ticks=identity.start_ticks - 1))
            assert not processes.is_stopped(identity._replace(host="elsewhere", boot_id="of another kernel"))
        wait_until(lambda: not processes.is_stopped(identity), "it goes on")
        process.kill()
    assert not processes.is_stopped(identity) and not processes.is_stopped(None)


def test_a_launcher_that_is_suspended_while_its_trainer_is_dead_ends_in_a_person_who_is_told_once(
    watched: Kit,
) -> None:
    run = start(watched)
    (launched,) = events(run, "launched")
    launcher, trainer = launched["launcher"]["pid"], launched["trainer"]["pid"]
    memory = Memory()
    with stopped(launcher):
        os.kill(trainer, signal.SIGKILL)
        wait_until(lambda: events(run, "exited"), "its end is written down")
        look, deeds = one_pass(watched, memory)
        assert look.verdict == SICK and deeds == []
        command = f"kill -CONT {launcher}"
        assert f"its launcher (pid {launcher}) is suspended (state T): {command}" in look.evidence
        row = next(line for line in watched("runs").stdout.splitlines() if run.name in line)
        assert command in row and "failed" in row
        _, (deed,) = one_pass(watched, memory)
        assert deed.words.startswith("a person is told: the watcher could do nothing about it in 2 passes")
        (event,) = wait_until(lambda: told(watched), "a person is told")
        assert event["event"] == "recovery" and command in event["reason"] and "signal 9" in event["reason"]
        wait_until(lambda: status.current(open_run(run))["state"] == "needs_attention", "it needs attention")
        for _ in range(3):
            inspection.live_runs(watched.runs) and one_pass(watched, memory)
    assert len(told(watched)) == 1
    # The launcher goes on, and starts nothing beside what a person was called for.
    wait_until(lambda: processes.identify(launcher) is None, "the launcher ends")
    assert watched.run_dirs() == [run]


def test_a_suspended_group_of_a_healthy_run_is_named_whole_and_told_of_once(watched: Kit) -> None:
    run = start(watched)
    (launched,) = events(run, "launched")
    launcher, shim = launched["launcher"]["pid"], launched["shim"]["pid"]
    account = wait_until(lambda: json.loads((run / ".sidecar.json").read_text()), "an account")
    sidecar = account["sidecar"]["pid"]
    memory = Memory()
    group = os.getpgid(launcher)
    os.killpg(group, signal.SIGSTOP)
    try:
        wait_until(lambda: len(liveness.suspended_of(open_run(run), status.read_state(open_run(run)))) >= 2, "all are")
        look, _ = one_pass(watched, memory)
        (found,) = [one for one in look.findings if one.cause == "suspended"]
        assert found.verdict == WARNING
        assert f"its launcher (pid {launcher}) is suspended" in found.evidence
        one_pass(watched, memory)
        (event,) = wait_until(lambda: told(watched), "a person is told")
        assert (event["event"], event["kind"]) == ("warning", "unattended")
        for _ in range(3):
            one_pass(watched, memory)
        named = status.current(open_run(run))["suspended"]
        pids = {one["process"]: one["pid"] for one in named}
        assert pids["launcher"] == launcher
        assert not {shim, sidecar} & set(pids.values()), "each has a process group of its own"
        # The command that is shown mends all of it, the launcher's subshells too.
        words = found.evidence.partition(": ")[2].partition(" lets")[0].split()
        subprocess.run(words, check=True)
    finally:
        os.killpg(group, signal.SIGCONT)
    wait_until(lambda: not status.current(open_run(run))["suspended"], "they go on")
    look, _ = one_pass(watched, memory)
    assert look.stuck == "" and memory.waits == {}
    kinds = [event["kind"] for event in events(run, "warning")]
    assert kinds.count("suspended") == kinds.count("unattended") == len(told(watched)) == 1
    assert status.current(open_run(run))["state"] == "running" and not events(run, "abort")


def test_how_long_nothing_could_be_done_outlives_the_watcher_and_ends_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    first = Memory(path)
    first.waits["T-1_a"] = Wait(time.time() - 700, 9)
    first.waits["T-1_b"] = Wait(time.time(), 1, is_told=True)
    first.save()
    again = Memory(path)
    assert again.waits == first.waits and path.stat().st_mode & 0o777 == 0o600
    again.forget_waits(["T-1_b", "T-1_c"])
    assert list(again.waits) == ["T-1_a"]
    again.waits = {f"T-1_{number}": Wait(float(number)) for number in range(MAX_WAITS + 5)}
    again.forget_waits([])
    assert len(again.waits) == MAX_WAITS and "T-1_4" not in again.waits and "T-1_5" in again.waits


def test_ten_passes_and_ten_minutes_have_to_go_by(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.watched_runs import live_run

    kit.runs.mkdir()
    run = live_run(kit.runs)
    begun: list[list[str]] = []
    monkeypatch.setattr(acting, "_start", lambda command, *_: begun.append(command))
    look = inspection.look_at(kit.runs, run.name)._replace(is_at_rest=False, stuck="it cannot be read")
    memory = Memory()
    for number in range(acting.STUCK_PASSES + 5):
        acting.act(kit.runs, [look], memory)
        assert [command for command in begun if "escalate" in command] == [], number
    wait = memory.waits[run.name]
    memory.waits[run.name] = wait._replace(since_s=wait.since_s - acting.STUCK_S)
    for _ in range(30):
        acting.act(kit.runs, [look], memory)
    (command,) = [command for command in begun if "escalate" in command]
    assert command[-2] == str(run) and "it cannot be read" in command[-1]


def test_a_suspended_trainer_is_named_and_does_not_hang(watched: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's debugger holds it: what stands for longer than `hang_minutes` is a warning, and nothing is stopped."""
    watched.config("--delay", "0.05", trainer={"log_patterns": PATTERNS}, training={"max_steps": 20_000},
                   abort={"hang_minutes": 0.03})  # fmt: skip
    run = start(watched)
    trainer = events(run, "launched")[0]["trainer"]["pid"]
    with stopped(trainer):
        wait_until(lambda: liveness.suspended_of(open_run(run), status.read_state(open_run(run))), "it is suspended")
        time.sleep(4)
        look, deeds = one_pass(watched, Memory())
        assert look.verdict == WARNING and deeds == []
        assert f"its trainer (pid {trainer}) is suspended (state T): kill -CONT {trainer}" in look.evidence
        row = next(line for line in watched("runs").stdout.splitlines() if run.name in line)
        assert f"kill -CONT {trainer}" in row
        wait_until(lambda: any(one["kind"] == "trainer_suspended" for one in events(run, "warning")), "it is journaled")
        state = status.read_state(open_run(run))
        with monkeypatch.context() as patch:  # it would have been one
            patch.setattr(liveness, "suspended_of_trainer", lambda *_: [])
            patch.setattr(status, "read_state", lambda _run: {k: v for k, v in state.items() if k != SINCE})
            assert "hang" in inspection.look_at(watched.runs, run.name).evidence
        # The first look after CONT, before the sidecar has seen it go on.
        sidecar = json.loads((run / ".sidecar.json").read_text())["sidecar"]["pid"]
        os.kill(sidecar, signal.SIGSTOP)
    try:
        look = inspection.look_at(watched.runs, run.name)
        assert look.verdict != SICK and "hang" not in look.evidence
    finally:
        os.kill(sidecar, signal.SIGCONT)
    wait_until(lambda: any(one["kind"] == "clock_gap" for one in events(run, "warning")), "it goes on")
    look, deeds = one_pass(watched, Memory())
    assert look.verdict == HEALTHY and deeds == [] and not events(run, "abort")


def test_each_rank_of_a_machine_is_seen_when_it_alone_is_suspended() -> None:
    """A script, torchrun, sixteen ranks, and the workers of each: the ranks are nearer than the workers."""
    rank = "sleep 1000 & sleep 1000 & wait"
    ranks = f"for rank in $(seq 16); do bash -c '{rank}' & done; wait"
    script = ["bash", "-c", 'bash -c "$1"; true', "script", ranks]
    with subprocess.Popen(script, start_new_session=True) as process, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(os.killpg, process.pid, signal.SIGKILL)
        trainer = processes.identify(process.pid)
        below = lambda: process_details.children_of(process_details.children_of(process.pid)[0])  # noqa: E731
        wait_until(lambda: process_details.children_of(process.pid) and len(below()) == 16, "sixteen ranks")
        wait_until(lambda: all(len(process_details.children_of(pid)) == 2 for pid in below()), "their workers")
        last = below()[-1]
        with stopped(last):
            wait_until(lambda: liveness.suspended_of_trainer(trainer) == [last], "it is seen")


def test_the_time_in_which_a_trainer_was_suspended_is_neither_silence_nor_slowness() -> None:
    def told(name: str, mono_s: float, **more: Any) -> dict[str, Any]:
        return {"event": name, "mono_s": mono_s, **more}

    steps = [told("step", float(at), step=at, source="log") for at in range(1, 20)]
    pause = [told("warning", 20.0, kind="trainer_suspended", message="")]
    before = fold({}, [*steps, *pause])
    assert before["suspended_since_s"] == 20.0
    after = fold(before, [told("step", 4000.0, step=20, source="log"),
                          told("warning", 4000.5, kind="clock_gap", message="", seconds=3980.0),
                          told("step", 4001.0, step=21, source="log")])  # fmt: skip
    assert after["active_mono_s"] >= 4000.5 and after.get("longest_stand_s", 0.0) < 10 and SINCE not in after
    assert measured_speed(after) == pytest.approx(1.0, rel=0.1)
    assert is_sound(before) and is_sound(after)


def test_a_suspended_trainer_behind_its_wrapper_is_found_and_let_go_on_by_a_stop(kit: Kit) -> None:
    wrapped(kit, WRAPPERS["forwards and waits"], "--delay", "0.1", abort={"grace_s": 20})
    process, run = begun(kit)
    shell = events(run, "launched")[0]["trainer"]["pid"]
    (python,) = process_details.children_of(shell)
    os.kill(python, signal.SIGSTOP)
    seen = lambda: liveness.suspended_of(open_run(run), status.read_state(open_run(run)))  # noqa: E731
    wait_until(lambda: [one.pid for one in seen()] == [python],
               "it is suspended")  # fmt: skip
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert saved_steps(run) == [last_step(run)]


def test_a_suspended_training_whose_script_has_ended_is_named_and_is_not_over(kit: Kit) -> None:
    """`python train.py & exit 0`: what the script has left may be held by a user for longer than a hang takes."""
    wrapped(kit, f"{PYTHON} &\nsleep 0.3\nexit 0", "--delay", "0.05",
            abort={"grace_s": 1, "hang_minutes": 0.03}, recover={"enabled": False})  # fmt: skip
    process, run = begun(kit)
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    wait_until(lambda: processes.probe(leader) == processes.DEAD and last_step(run) > 40, "it trains on")
    (python,) = [member.pid for member in processes.session_members(leader)]
    with stopped(python):
        seen = lambda: liveness.suspended_of(open_run(run), status.read_state(open_run(run)))  # noqa: E731
        wait_until(lambda: [one.pid for one in seen()] == [python], "it is suspended")
        wait_until(lambda: any(one["kind"] == "trainer_suspended" for one in events(run, "warning")), "it is journaled")
        before = last_step(run)
        time.sleep(6)
        assert f"kill -CONT {python}" in kit("abort-watch").stdout and not (run / "exit.json").exists()
    wait_until(lambda: last_step(run) > before + 10, "it trains on")
    assert not events(run, "abort")
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert saved_steps(run) == [last_step(run)]


def test_the_first_pass_after_a_pause_counts_none_of_it(kit: Kit) -> None:
    """A person held the trainer and has let it go: the silence of that time is no hang."""
    go = kit.folder / "go"
    kit.config("--delay", "0.05", "--at", "9", f"wait={go}", trainer={"log_patterns": PATTERNS},
               training={"max_steps": 20_000}, abort={"hang_minutes": 0.05})  # fmt: skip
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: b"step 9" in (run / "logs" / "output.log").read_bytes(), "the ninth step")
    (run / "paused").touch()
    state = status.read_state(open_run(run))
    wait_until(lambda: status.clock(open_run(run), state) - state["active_mono_s"] > 4, "it is as old as a hang")
    (run / "paused").unlink()
    assert "hang" not in kit("abort-watch").stdout
    assert events(run, "abort") == []
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)
