"""A trainer behind a wrapper script: the training is its session and its token, not its first process.

The toy trainer takes a second signal for "now" and ends without a save, as many a lab's trainer does: a signal too many
shows as a step that is lost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from resumekit.base import journal, processes
from resumekit.process import stopping, training_end
from support.commands import Kit
from support.long_tests import long
from support.places import TOY
from support.processes import marked_pids, wait_until
from support.recoveries import over
from support.runs import events
from support.watched_runs import made, own_identity
from support.wrappers import PYTHON, WRAPPERS, begun, last_step, saved_steps, wrapped

pytestmark = pytest.mark.usefixtures("valid_records")


def assert_saved_and_attested(kit: Kit, run: Path) -> None:
    """The last step is saved, once; its file was attested before the end was written."""
    assert saved_steps(run) == [last_step(run)]
    assert (run / "checkpoints" / f"hrm_arc_step_{last_step(run)}.pt.json").exists()
    assert kit.status(run)["global_step"] == last_step(run)
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    assert processes.session_members(leader) == []


QUICK_FOR_INT = ("plain", "background", "forwards", "python", "tee")


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        *((one, "TERM") for one in WRAPPERS),
        *((one, "INT") if one in QUICK_FOR_INT else long(one, "INT") for one in WRAPPERS),
    ],
)
def test_a_stop_reaches_what_a_wrapper_wraps_once_and_its_end_is_waited_for(kit: Kit, wrapper: str, name: str) -> None:
    wrapped(kit, WRAPPERS[wrapper], "--delay", "0.3", abort={"grace_s": 30})
    process, run = begun(kit)
    process.send_signal(signal.Signals[f"SIG{name}"])
    process.communicate(timeout=60)
    assert_saved_and_attested(kit, run)
    assert kit.status(run)["state"] == "stopped"
    assert process.returncode in (130, 143) or wrapper in ("then", "twice", "python in a script")


# It finishes what it has begun, eighty steps, and takes a second signal for "now".
THOROUGH = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toy_trainer import write_checkpoint
asked = []
signal.signal(signal.SIGTERM, lambda got, _frame: os._exit(99) if asked else asked.append(got))
step = until = 0
while not asked or step < until:
    step += 1
    until = until or (step + 80 if asked else 0)
    print(f"step {step} loss 1", flush=True)
    time.sleep(0.05)
write_checkpoint(Path(sys.argv[2]) / f"hrm_arc_step_{step}.pt", step)
sys.exit(143)
"""


@pytest.mark.parametrize("wrapper", ["forwards", "forwards and waits", "kills its group"])
def test_what_goes_on_for_many_steps_after_its_wrapper_has_told_it_is_not_told_again(kit: Kit, wrapper: str) -> None:
    trainer = kit.folder / "thorough.py"
    trainer.write_text(THOROUGH)
    script = WRAPPERS[wrapper].replace(PYTHON, f'"$PYTHON" "{trainer.name}" "{TOY.parent}" "$2"')
    wrapped(kit, f'cd "${{0%/*}}"\n{script}', abort={"grace_s": 30})
    process, run = begun(kit)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert_saved_and_attested(kit, run)


def test_int_ends_a_shell_at_once_and_what_it_waited_for_is_told(kit: Kit) -> None:
    """Long before a part of the grace is over, after which the child of any shell that trains on is told."""
    wrapped(kit, WRAPPERS["plain"], "--delay", "0.1", abort={"grace_s": 3600})
    process, run = begun(kit)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (130, "stopped")
    assert_saved_and_attested(kit, run)


def test_the_state_during_the_wait_is_running(kit: Kit) -> None:
    """A wrapper is gone in a moment; the run is not over before its Python is."""
    go = kit.folder / "go"
    wrapped(kit, WRAPPERS["plain"], "--delay", "0.1", "--at", "6", f"wait={go}", abort={"grace_s": 60})
    process, run = begun(kit, step=6)
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: processes.probe(leader) == processes.DEAD, "the wrapper's end")
    assert json.loads(kit("runs", "T-1", "--json").stdout)[0]["state"] == "running"
    assert kit("run", "T-1", code=6).stderr  # and nothing starts beside it
    go.touch()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert_saved_and_attested(kit, run)


def test_the_watcher_s_stop_reaches_what_is_wrapped(kit: Kit) -> None:
    """`abort-watch.sh --stop`, which has nothing to do with the launcher."""
    wrapped(kit, WRAPPERS["plain"], "--delay", "0.3", abort={"grace_s": 30})
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert_saved_and_attested(kit, run)


def test_a_stop_after_the_wrapper_has_gone_reaches_what_it_has_left(kit: Kit) -> None:
    """A script that puts its training into the background, and ends: the run lives as long as that trains."""
    wrapped(kit, f"{PYTHON} &\nexit 0", "--delay", "0.1", abort={"grace_s": 30})
    process, run = begun(kit, step=15)
    assert process.poll() is None
    assert json.loads(kit("runs", "T-1", "--json").stdout)[0]["state"] == "running"
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert_saved_and_attested(kit, run)


def test_a_training_in_the_background_ends_the_run_with_its_own_code(kit: Kit) -> None:
    wrapped(kit, f"{PYTHON} &\nexit 0", "--delay", "0.05", "--steps", "40", "--exit", "3", abort={"grace_s": 30})
    process, run = begun(kit)
    process.communicate(timeout=60)
    assert (process.returncode, last_step(run), kit.status(run)["state"]) == (3, 40, "failed")


def ended(folder: Path) -> tuple[Path, processes.Identity]:
    """Make a run whose first process has shown two steps and has ended; return its folder and that process."""
    run = made(folder, "T-1_run_20261122-1735", resolved_config_json=b'{"training": {"max_steps": 1000000}}')
    (run / "logs").mkdir()
    (run / "logs" / "output.log").write_text("step 1\nstep 2\n")
    leader = processes.identity_from(own_identity())._replace(pid=4_000_001)
    journal.append(run / "journal.jsonl", "launched", run.name, trainer=leader.as_fields())
    for step in (1, 2):
        journal.append(run / "journal.jsonl", "step", run.name, step=step, loss=0.5, source="log")
    return run, leader


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for an end, in seconds, which have gone by without any wait."""
    seconds: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(seconds))
    monkeypatch.setattr(training_end, "time", clock)
    return seconds


def test_what_is_in_its_exec_when_its_wrapper_ends_is_not_overlooked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waited: list[float]
) -> None:
    """It has no environment for a moment, and shows no token: no process of the run can be seen then."""
    run, leader = ended(tmp_path)
    child = leader._replace(pid=4_000_000)
    looks = iter([[], [], [child], [child]])
    monkeypatch.setattr(processes, "session_members", lambda _leader: next(looks, []))
    shim_view = training_end.ShimView({}, waited.append, lambda: {child.pid: 3 << 8} if len(waited) == 4 else {})
    end = training_end.outlast(run, leader, {"code": 0, "signal": None, "pid": leader.pid}, shim_view)
    assert len(waited) >= 4 and end["code"] == 0


@pytest.mark.parametrize(("code", "state"), [long(0, "finished"), (3, "failed")])
def test_a_training_whose_wrapper_was_killed_ends_the_run_with_its_own_code(kit: Kit, code: int, state: str) -> None:
    wrapped(kit, WRAPPERS["then"], "--delay", "0.05", "--exit", str(code), abort={"grace_s": 30})
    config = json.loads(kit.config_file.read_text())
    config["training"]["max_steps"] = 80
    kit.config_file.write_text(json.dumps(config))
    process, run = begun(kit)
    assert processes.send(processes.identity_from(events(run, "launched")[0]["trainer"]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert (process.returncode, last_step(run), kit.status(run)["state"]) == (code, 80, state)


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (3, "failed")])
def test_a_wrapper_that_is_killed_in_the_last_save_of_its_training_does_not_decide_its_end(
    kit: Kit, code: int, state: str
) -> None:
    """The training shows no further step, and ends within a second: it has shown the steps, the wrapper none."""
    go = kit.folder / "go"
    wrapped(kit, WRAPPERS["then"], "--delay", "0.01", "--steps", "40", "--at", "40", f"wait={go}", "--exit", str(code))
    config = json.loads(kit.config_file.read_text())
    config["training"]["max_steps"] = 40
    kit.config_file.write_text(json.dumps(config))
    process, run = begun(kit, step=40)
    over(kit, run, "running")
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    assert processes.send(leader, signal.SIGKILL)
    wait_until(lambda: processes.probe(leader) == processes.DEAD, "the wrapper has ended")
    time.sleep(0.3)
    go.touch()
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (code, state)


@pytest.mark.parametrize(("told", "code"), [({}, 0), ({"source": "log"}, 137)], ids=["its own word", "read late"])
def test_a_step_that_the_trainer_tells_after_its_wrapper_s_end_shows_that_it_trains_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waited: list[float], told: dict[str, str], code: int
) -> None:
    """At once, and not only after the second in which the sidecar still reads what was printed before."""
    run, leader = ended(tmp_path)
    child = leader._replace(pid=4_000_000)
    looks = iter([[child], [child]])
    monkeypatch.setattr(processes, "session_members", lambda _leader: next(looks, []))
    reaped = iter([{}, {child.pid: 0}])

    def wait(timeout_s: float) -> None:
        waited.append(timeout_s)
        journal.append(run / "journal.jsonl", "step", run.name, step=10, loss=0.5, **told)

    shim_view = training_end.ShimView({}, wait, lambda: next(reaped, None))
    first = {"code": 137, "signal": 9, "pid": leader.pid}
    assert training_end.outlast(run, leader, first, shim_view)["code"] == code


@pytest.mark.parametrize(("told", "code"), [("saving", 0), (None, 137)], ids=["it has saved", "it is a helper"])
def test_what_ends_together_with_its_wrapper_decides_where_it_has_told_something_since(
    tmp_path: Path, waited: list[float], told: str | None, code: int
) -> None:
    run, leader = ended(tmp_path)
    ended_s = time.monotonic()
    if told:
        journal.append(run / "journal.jsonl", told, run.name, step=2)
    shim_view = training_end.ShimView({}, waited.append, lambda: None, None, ended_s, {4_000_000: 0})
    assert training_end.outlast(run, leader, {"code": 137, "signal": 9, "pid": leader.pid}, shim_view)["code"] == code


def test_what_is_left_behind_and_trains_nothing_does_not_hold_up_the_end(kit: Kit) -> None:
    """A TensorBoard: the run has ended with its training, and the journal names what is left."""
    wrapped(kit, f"sleep 300 &\n{PYTHON}", "--at", "3", "exit=4", abort={"grace_s": 600})
    process = kit.popen("run", "T-1")
    process.communicate(timeout=120)
    (run,) = kit.run_dirs()
    assert (process.returncode, kit.status(run)["state"]) == (4, "failed")
    [said] = [event["message"] for event in events(run, "warning") if event["kind"] == "left_behind"]
    assert re.fullmatch("what the trainer has started is left, and trains nothing: pid [0-9]+", said), said


def test_a_wrapper_that_is_killed_leaves_a_run_that_lives(kit: Kit) -> None:
    """Nothing that trains is ended, and nothing starts beside it, because a shell was killed."""
    wrapped(kit, WRAPPERS["then"], "--delay", "0.1", "--save-every", "10", abort={"grace_s": 30},
            recover={"enabled": True})  # fmt: skip
    process, run = begun(kit)
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    assert processes.send(leader, signal.SIGKILL)
    wait_until(lambda: last_step(run) > 40, "it trains on")
    assert process.poll() is None and len(kit.run_dirs()) == 1
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert kit.status(run)["state"] == "stopped"
    assert saved_steps(run)[-1] == last_step(run)


def silent_after(kit: Kit, end: str, hang_minutes: float) -> tuple[subprocess.Popen, Path, Path]:
    """Start a training that is silent from step 4 on, and let its wrapper end; returns the file that lets it go on."""
    go = kit.folder / "go"
    script = f'sleep 300 &\n{PYTHON} &\nuntil [ -e "$0.end" ]; do sleep 0.05; done\nexit {end}'
    wrapped(kit, script, "--delay", "0.02", "--at", "4", f"wait={go}", abort={"hang_minutes": hang_minutes},
            recover={"enabled": False})  # fmt: skip
    process, run = begun(kit, step=4)
    over(kit, run, "running")
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    if end == "killed":
        processes.send(leader, signal.SIGKILL)
    else:
        (kit.folder / "train.sh.end").touch()
    wait_until(lambda: processes.probe(leader) == processes.DEAD, "its wrapper has ended")
    return process, run, go


def test_a_silent_training_whose_wrapper_has_ended_is_not_over(tmp_path: Path) -> None:
    """An evaluation, a save, a rendezvous: it shows no step for a while, and may sleep."""
    kits = {end: Kit(tmp_path / end) for end in ("killed", "0", "3")}
    try:
        begun = [(kit, *silent_after(kit, end, hang_minutes=30)) for end, kit in kits.items()]
        time.sleep(training_end.QUIET_S + 3 * training_end.JOURNAL_S)
        for kit, process, run, go in begun:
            assert not (run / "exit.json").exists() and kit.status(run)["state"] == "running"
            go.touch()
            wait_until(lambda run=run: last_step(run) > 8, "it trains on")
            kit("abort-watch", "--stop", "T-1")
            process.communicate(timeout=60)
            assert kit.status(run)["state"] == "stopped"
            assert saved_steps(run) == [last_step(run)]
    finally:
        for kit in kits.values():
            kit.clean_up()


def test_the_death_of_a_training_that_its_script_has_left_is_taken_up(kit: Kit) -> None:
    """`python train.py & exit 0`: it is watched for as long as it trains, and its end is the run's."""
    wrapped(kit, f"{PYTHON} &\nsleep 0.3\nexit 0", "--delay", "0.05", "--save-every", "5",
            abort={"grace_s": 1}, recover={"enabled": True, "backoff_s": 1})  # fmt: skip
    process, run = begun(kit)
    leader = processes.identity_from(events(run, "launched")[0]["trainer"])
    wait_until(lambda: processes.probe(leader) == processes.DEAD, "its script has ended")
    before = last_step(run)
    wait_until(lambda: last_step(run) > before + 30, "it has trained for longer than the grace")
    assert not (run / "exit.json").exists() and kit.status(run)["state"] == "running"
    for member in processes.session_members(leader):
        processes.send(member, signal.SIGKILL)
    wait_until(lambda: len(kit.run_dirs()) == 2, "it is taken up")
    assert kit.status(run)["state"] == "failed"
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)


def test_a_training_that_is_silent_for_longer_than_a_hang_is_over(kit: Kit) -> None:
    process, run, _ = silent_after(kit, "killed", hang_minutes=0.02)
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (137, "failed")
    assert "left_behind" in [event["kind"] for event in events(run, "warning")]


def test_a_second_stop_and_now_end_what_is_wrapped_too(kit: Kit) -> None:
    wrapped(kit, WRAPPERS["plain"], "--delay", "0.05", "--ignore", "TERM,INT", abort={"grace_s": 60})
    process, run = begun(kit)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: events(run, "stopped"), "the stop")
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (137, "stopped")
    assert saved_steps(run) == []


def test_without_a_subreaper_what_is_left_is_found_all_the_same(kit: Kit) -> None:
    """A kernel or a libc without prctl: the orphans go to init, and are found by session and token."""
    python = kit.folder / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'if [[ $* == *shim.py* ]]; then exec "$REAL" -S -c \'import sys, runpy\n'
        'sys.modules["_ctypes"] = None; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")\' '
        '"${@:3}"; fi\nexec "$REAL" "$@"\n'
    )
    python.chmod(0o755)
    kit.env |= {"REAL": sys.executable, "PYTHON": str(python)}
    wrapped(kit, '"$REAL" "$TOY" "$@"', "--delay", "0.3", abort={"grace_s": 30})
    process, run = begun(kit)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert_saved_and_attested(kit, run)


def test_a_dead_shim_leaves_the_stop_to_the_process_that_stops(kit: Kit) -> None:
    wrapped(kit, WRAPPERS["plain"], "--delay", "0.3", abort={"grace_s": 30})
    process, run = begun(kit)
    (launched,) = events(run, "launched")
    os.kill(launched["shim"]["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert stopping.stop(run, "TERM") == 0
    process.communicate(timeout=60)
    assert saved_steps(run) == [last_step(run)]


def test_a_data_worker_is_not_told(kit: Kit) -> None:
    """Its parent lives, and needs it for its last step; it ends when that has."""
    wrapped(kit, WRAPPERS["plain"], "--delay", "0.3", "--at", "2", "child", abort={"grace_s": 4})
    process, run = begun(kit, step=3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert kit.status(run)["state"] == "stopped"
    assert_saved_and_attested(kit, run)
    assert not list(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"))


@pytest.mark.parametrize("inner", [PYTHON, long(f'{PYTHON} | tee "$0.log"')])
def test_a_trap_that_a_foreground_child_holds_back_does_not_lose_the_last_steps(kit: Kit, inner: str) -> None:
    """Bash acts on TERM when its child has ended, and the child is not told; the script's cleanup runs all the same."""
    wrapped(kit, f"trap 'touch \"$0.cleaned\"; exit 143' TERM\n{inner}", "--delay", "0.1", abort={"grace_s": 12})
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert (kit.folder / "train.sh.cleaned").exists()
    assert_saved_and_attested(kit, run)


def test_a_child_that_its_shell_has_told_is_not_told_again(kit: Kit) -> None:
    """Its save takes longer than the shell's share of the grace: a second signal would end it without one."""
    script = f'trap \'kill -TERM "$pid"; wait "$pid"\' TERM\n{PYTHON} &\npid=$!\nwait "$pid"'
    wrapped(kit, script, "--delay", "3", abort={"grace_s": 4})
    process, run = begun(kit, step=1)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert saved_steps(run) == [last_step(run)]
