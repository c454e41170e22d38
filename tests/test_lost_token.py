"""A trainer without the run's token: its wrapper, or `env -i`, has replaced the environment that carried it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resumekit.base import processes
from support.commands import Kit
from support.processes import marked_pids, wait_until
from support.runs import events
from support.wrappers import begun, last_step, saved_steps

pytestmark = pytest.mark.usefixtures("valid_records")

WRAPPER = """import os, subprocess, sys
env = {"PATH": os.environ["PATH"], "RESUMEKIT_TEST_MARK": os.environ["RESUMEKIT_TEST_MARK"]}
child = subprocess.Popen(sys.argv[1:], env=env)
sys.exit(0 if os.path.exists(__file__ + ".ends") else child.wait())
"""


def behind(kit: Kit, *command: str, **sections: dict) -> None:
    """Configure the toy trainer as the arguments of another command."""
    kit.config("--delay", "0.1", training={"max_steps": 10**6}, abort={"grace_s": 30}, **sections)
    config = json.loads(kit.config_file.read_text())
    braced = [part.replace("{", "{{").replace("}", "}}") for part in command]
    config["trainer"]["command"] = [*braced, *config["trainer"]["command"]]
    kit.config_file.write_text(json.dumps(config))


def wrapper(kit: Kit) -> Path:
    file = kit.folder / "wrap.py"
    file.write_text(WRAPPER)
    return file


def in_a_session_of_its_own(kit: Kit) -> Path:
    file = wrapper(kit)
    file.write_text(WRAPPER.replace("env=env", "env=env, start_new_session=True"))
    return file


def leader_of(run: Path) -> processes.Identity:
    (launched,) = events(run, "launched")
    found = processes.trainer_of(launched, run / "logs" / "output.log")
    assert found is not None
    return found


def assert_saved_once(kit: Kit, run: Path, state: str = "stopped") -> None:
    assert saved_steps(run) == [last_step(run)]
    assert kit.status(run)["state"] == state
    assert processes.session_members(leader_of(run)) == []


def test_a_stop_reaches_a_child_that_its_wrapper_gave_another_environment(kit: Kit) -> None:
    behind(kit, sys.executable, str(wrapper(kit)))
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert_saved_once(kit, run)


def test_no_second_trainer_starts_beside_a_child_without_the_token(tmp_path: Path) -> None:
    """Its wrapper is gone; it trains on, and is the run's: nothing is started, and a stop reaches it."""
    ends = ("killed", "ends by itself", "killed, in a session of its own")
    kits = [Kit(tmp_path / end) for end in ends]
    try:
        trainings = [without_its_wrapper(kit, end) for kit, end in zip(kits, ends, strict=True)]
        for kit, (process, run, begun_at) in zip(kits, trainings, strict=True):
            wait_until(lambda run=run, begun_at=begun_at: last_step(run) > begun_at + 40, "it trains on")
            assert process.poll() is None and kit.run_dirs() == [run] and not (run / "exit.json").exists()
            kit("run", "T-1", code=6)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert_saved_once(kit, run)
    finally:
        for kit in kits:
            kit.clean_up()


def without_its_wrapper(kit: Kit, end: str) -> tuple[subprocess.Popen, Path, int]:
    """Start a training and let its wrapper end; return the launcher, the run and the step at which it was alone."""
    file = in_a_session_of_its_own(kit) if "session" in end else wrapper(kit)
    if end == "ends by itself":
        Path(f"{file}.ends").touch()
    behind(kit, sys.executable, str(file), recover={"enabled": True, "backoff_s": 1})
    process, run = begun(kit)
    if end != "ends by itself":
        os.kill(leader_of(run).pid, signal.SIGKILL)
    return process, run, last_step(run)


@pytest.mark.parametrize("command", [["--stop"], ["--stop", "--now"], ["TERM"]])
def test_a_stop_reaches_a_child_with_neither_its_wrapper_s_environment_nor_its_session(
    kit: Kit, command: list[str]
) -> None:
    behind(kit, sys.executable, str(in_a_session_of_its_own(kit)))
    process, run = begun(kit)
    assert len(processes.session_members(leader_of(run))) == 2
    if command == ["TERM"]:
        process.send_signal(signal.SIGTERM)
    else:
        kit("abort-watch", *command, "T-1")
    process.communicate(timeout=60)
    if "--now" in command:
        assert kit.status(run)["state"] == "stopped" and processes.session_members(leader_of(run)) == []
    else:
        assert_saved_once(kit, run)


@pytest.mark.parametrize("dead", ["wrapper and shim", "shim"])
def test_a_child_in_a_session_of_its_own_is_known_by_its_output(kit: Kit, dead: str) -> None:
    """Without the shim nothing says whose child it is; a wrapper that lives still does."""
    behind(kit, "sh", "-c", f'env -i RESUMEKIT_TEST_MARK={kit.mark} setsid "$@"; true', "x")
    process, run = begun(kit)
    (launched,) = events(run, "launched")
    leader = leader_of(run)
    os.kill(launched["shim"]["pid"], signal.SIGKILL)
    if dead != "shim":
        os.kill(leader.pid, signal.SIGKILL)
        wait_until(lambda: processes.probe(leader) == processes.DEAD, "the wrapper is gone")
    left = [one for one in processes.session_members(leader) if one.pid != leader.pid]
    assert [b"toy_trainer" in Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in left] == [True]
    kit("run", "T-1", "--set", "training.max_steps=1000000", code=6)
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)
    assert processes.session_members(leader) == []


def test_a_reader_of_the_log_and_a_process_of_another_run_are_not_taken_for_the_run_s(kit: Kit) -> None:
    """A person's `tail -f`, also one whose output is the log but cannot be written to; a run within the run."""
    other = f'env -i RESUMEKIT_TEST_MARK={kit.mark} RESUMEKIT_RUN_TOKEN={"0" * 32} setsid sh -c "sleep 300; true"'
    behind(kit, "sh", "-c", f'{other} & exec "$@"', "x")
    process, run = begun(kit)
    leader = leader_of(run)
    with (run / "logs" / "output.log").open("rb") as log:
        readers = [
            subprocess.Popen(["sleep", "300"], stdin=log, start_new_session=True),
            subprocess.Popen(["sleep", "300"], stdout=log, start_new_session=True, env={}),
        ]
    try:
        assert processes.session_members(leader) == [leader._replace(token=None, ties=None)]
        kit("abort-watch", "--stop", "--now", "T-1")
        process.communicate(timeout=60)
        assert [reader.poll() for reader in readers] == [None, None]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    (left,) = (
        pid
        for pid in marked_pids(f"RESUMEKIT_RUN_TOKEN={'0' * 32}")
        if processes.environment_variable(pid, "PWD") is None
    )
    os.kill(left, signal.SIGKILL)


def test_what_the_run_has_started_is_found_though_its_trainer_s_pid_is_another_s_by_now(kit: Kit) -> None:
    behind(kit, sys.executable, str(in_a_session_of_its_own(kit)))
    process, run = begun(kit)
    leader = leader_of(run)
    (found,) = processes.session_members(leader._replace(start_ticks=leader.start_ticks - 1))
    assert found.pid != leader.pid
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_a_child_without_the_token_is_killed_with_its_session(kit: Kit) -> None:
    """The shim is dead too: its output is the run's log, and that is enough."""
    behind(kit, sys.executable, str(wrapper(kit)))
    process, run = begun(kit)
    (launched,) = events(run, "launched")
    os.kill(launched["shim"]["pid"], signal.SIGKILL)
    os.kill(leader_of(run).pid, signal.SIGKILL)
    leader = leader_of(run)
    wait_until(lambda: processes.probe(leader) == processes.DEAD, "the wrapper is gone")
    (left,) = processes.session_members(leader)
    kit("run", "T-1", "--set", "training.max_steps=1000000", code=6)
    kit("abort-watch", "--stop", "--now", "T-1")
    assert processes.probe(left) == processes.DEAD
    process.communicate(timeout=60)


@pytest.mark.parametrize("command", [["--stop"], ["--stop", "--now"], ["TERM"]])
def test_a_first_process_without_its_environment_is_stopped(kit: Kit, command: list[str]) -> None:
    behind(kit, "env", "-i", f"RESUMEKIT_TEST_MARK={kit.mark}", f"PATH={os.environ['PATH']}")
    process, run = begun(kit)
    assert processes.probe(leader_of(run)) == processes.ALIVE
    assert processes.probe(leader_of(run)._replace(ties=None)) == processes.UNKNOWN
    if command == ["TERM"]:
        process.send_signal(signal.SIGTERM)
    else:
        kit("abort-watch", *command, "T-1")
    process.communicate(timeout=60)
    if "--now" in command:
        assert (process.returncode, kit.status(run)["state"]) == (137, "stopped")
    else:
        assert_saved_once(kit, run)


def test_a_first_process_without_environment_and_output_is_known_by_its_shim(kit: Kit) -> None:
    log = kit.folder / "own.log"
    script = f'exec env -i RESUMEKIT_TEST_MARK={kit.mark} "$@" > "$0" 2>&1'
    behind(kit, "sh", "-c", script, str(log))
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: log.exists() and "step 2 " in log.read_text(), "it steps")
    assert processes.probe(leader_of(run)) == processes.ALIVE
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert saved_steps(run) and kit.status(run)["state"] == "stopped"


def test_the_token_of_another_run_is_not_outweighed_by_ties(kit: Kit) -> None:
    kit.config("--delay", "0.1", training={"max_steps": 10**6})
    process, run = begun(kit)
    other = leader_of(run)._replace(token="0" * 32)
    assert processes.probe(other) == processes.DEAD and processes.session_members(other) == []
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_what_was_started_to_outlive_its_training_does_not_tie_its_session(kit: Kit) -> None:
    """`env -u RESUMEKIT_RUN_TOKEN tensorboard &`: it has the run's id, and writes into its log."""
    behind(kit, "sh", "-c", 'env -u RESUMEKIT_RUN_TOKEN sleep 300 & exec "$@"', "x")
    process, run = begun(kit)
    os.kill(leader_of(run).pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 137 and processes.session_members(leader_of(run)) == []


def test_the_ties_are_no_part_of_a_record() -> None:
    ties = processes.Ties("output.log")
    assert "ties" not in processes.Identity("h", "b", 7, 1, "t", ties).as_fields()
