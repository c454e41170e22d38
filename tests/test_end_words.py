"""How a training has ended where its code does not say so: wrappers that end with 1, 241, 254 or 0."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import process_details
from resumekit.run import log_end, status
from resumekit.run.status import View
from support.commands import Kit
from support.last_words import BANNER, TRACEBACK
from support.long_tests import long
from support.processes import wait_until
from support.recoveries import configure, live, reached, watch_as_cron
from support.runs import events

pytestmark = pytest.mark.usefixtures("valid_records")

CALLED = f"{TRACEBACK}subprocess.CalledProcessError: Command '['python', 'train.py']' "
RANK = BANNER.replace("exitcode  : 1 (pid: 4711)", "exitcode  : {} (pid: 4711)\n  error_file: <N/A>\n  traceback : {}")


def lines(log: str) -> list[bytes]:
    return [line for line in log.encode().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("log", "code", "name"),
    [
        (f"{CALLED}returned non-zero exit status 143.\n", 1, "TERM"),
        (f"{CALLED}returned non-zero exit status 130.\n", 1, "INT"),
        (f"{CALLED}died with <Signals.SIGTERM: 15>.\n", 1, "TERM"),
        (f"{TRACEBACK}KeyboardInterrupt\n{CALLED}died with <Signals.SIGINT: 2>.\n", 1, "INT"),
        (RANK.format("-15", "Signal 15 (SIGTERM) received by PID 4711"), 1, "TERM"),
        (RANK.format("143", "To enable traceback see: https://pytorch.org"), 1, "TERM"),
        (f"{TRACEBACK}x.api.SignalException: Process 7 got signal: 2\n", 1, "INT"),
        ("torch.multiprocessing.spawn.ProcessExitedException: process 0 terminated with signal SIGTERM\n", 1, "TERM"),
        ("[2026-01-01] [ERROR] [launch.py:325:sigkill_handler] [...] exits with return code = -15\n", 241, "TERM"),
        ("step 12 loss 0.3\n", 241, "TERM"),
        ("step 12 loss 0.3\n", 254, "INT"),
        (f"{TRACEBACK}KeyboardInterrupt\n", 254, "INT"),
        (f"{TRACEBACK}KeyboardInterrupt\nthe script goes on\n", 0, "INT"),
        (f"{CALLED}{'x' * 2000}returned non-zero exit status 143.\n", 1, "TERM"),
        ("Epoch 3: 40%\n[rank: 0] Received SIGTERM: 15\n", 0, "TERM"),  # Lightning's
        # A KILL is an incident, and so is every error.
        (f"{CALLED}returned non-zero exit status 137.\n", 1, None),
        (f"{CALLED}died with <Signals.SIGKILL: 9>.\n", 1, None),
        (RANK.format("-9", "Signal 9 (SIGKILL) received by PID 4711"), 1, None),
        ("step 12 loss 0.3\n", 247, None),
        (f"{TRACEBACK}KeyError: 'lr'\n{CALLED}returned non-zero exit status 1.\n", 1, None),
        (f"{TRACEBACK}KeyError: 'lr'\n", 241, None),
        ("step 12 loss 0.3\n", 1, None),
        # That was got over: another end came behind it.
        (f"{CALLED}returned non-zero exit status 143.\n{TRACEBACK}KeyError: 'lr'\n", 1, None),
        (f"{CALLED}returned non-zero exit status 143.\n" + "step 12 loss 0.3\n" * 20, 1, None),
    ],
)
def test_which_stop_a_wrapper_s_code_and_the_log_s_last_words_mean(log: str, code: int, name: str | None) -> None:
    assert log_end.stop_words(lines(log), code) == name


CUDA = """RuntimeError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (f"step 7\n{TRACEBACK}RuntimeError: no such luck\n", "RuntimeError: no such luck"),
        (f"{TRACEBACK}{CUDA}the script goes on\n", CUDA.partition("\n")[0]),
        ("step 7\ntrain.sh: line 2:  4711 Killed                  python train.py\ndone\n", "train.sh: line 2:"),
        ("step 7\nSegmentation fault (core dumped)\n", "Segmentation fault (core dumped)"),
        ("terminate called after throwing an instance of 'c10::Error'\n" + "frame #1: f\n" * 30, "terminate called"),
        (f"{CALLED}returned non-zero exit status 1.\n", "subprocess.CalledProcessError: "),
        ("step 7\ndone\n", None),
        (f"{TRACEBACK}RuntimeError: no such luck\n" + "skipped\n" * 9, None),
        (f"Exception ignored in: <function f.__del__ at 0x7>\n{TRACEBACK}AssertionError: x\n", None),
        (f"Exception in thread Thread-1 (f):\n{TRACEBACK}ValueError: x\n", None),
        (f"{TRACEBACK}ValueError: x\nstep 8\nMeanSquaredError: 0.3\n", None),
        ("the last batch: ValueError: x\nValueError: y\n", None),
        ("train.sh: line 9:  4711 Terminated              tensorboard\n", None),
    ],
)
def test_which_last_words_belie_code_0(log: str, found: str | None) -> None:
    at = log_end.error_words(lines(log))
    assert (at is None) if found is None else lines(log)[at].decode().startswith(found)


def python_wrapper(kit: Kit, script: str) -> None:
    """Have the configured trainer started by a Python script of one line."""
    file = kit.folder / "launch.py"
    file.write_text(f"import subprocess, sys\n{script}\n")
    config = json.loads(kit.config_file.read_text())
    braced = str(file).replace("{", "{{").replace("}", "}}")
    config["trainer"]["command"][:0] = [sys.executable, braced]
    kit.config_file.write_text(json.dumps(config))


def shell_wrapper(kit: Kit, script: str) -> None:
    """Have the configured trainer started by a script in Bash."""
    config = json.loads(kit.config_file.read_text())
    config["trainer"]["command"][:0] = ["bash", "-c", script.replace("{", "{{").replace("}", "}}"), "train.sh"]
    kit.config_file.write_text(json.dumps(config))


def run_until_killed(kit: Kit, number: signal.Signals, step: int = 8) -> tuple[int, Path]:
    """Start a run and send its Python a signal, the pid that a person sees; returns (exit code, run)."""
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: reached(run, step), f"step {step}")
    (child, *_) = process_details.children_of(events(run, "launched")[0]["trainer"]["pid"])
    os.kill(child, number)
    process.communicate(timeout=60)
    return process.returncode, run


CHECK, HAND_ON = "subprocess.run(sys.argv[1:], check=True)", "sys.exit(subprocess.run(sys.argv[1:]).returncode)"


@pytest.mark.parametrize(
    ("script", "toy_args", "number", "code"),
    [
        (CHECK, (), signal.SIGTERM, 1),
        (CHECK, ("--at", "9", "term"), None, 1),
        (HAND_ON, ("--at", "12", "term"), None, 241),
        (HAND_ON, ("--at", "12", "int"), None, 254),
        (CHECK, ("--at", "12", "int"), None, 1),
    ],
)
def test_a_trainer_that_a_person_ends_inside_a_wrapper_in_python_is_not_taken_up(
    recovered: Kit,
    script: str,
    toy_args: tuple[str, ...],
    number: signal.Signals | None,
    code: int,
) -> None:
    configure(recovered, *toy_args)
    python_wrapper(recovered, script)
    if number == signal.SIGTERM:
        ended, run = run_until_killed(recovered, number)
    else:
        ended = recovered("run", "T-1", code=None).returncode
        (run,) = recovered.run_dirs()
    assert (ended, recovered.status(run)["state"], recovered.run_dirs()) == (code, "stopped", [run])
    assert json.loads((run / "exit.json").read_text())["by"] == ("INT" if "int" in toy_args else "TERM")
    assert live(recovered) == []


@pytest.mark.parametrize("script", [CHECK, long(HAND_ON)])
def test_a_trainer_that_is_killed_inside_a_wrapper_in_python_is_taken_up(recovered: Kit, script: str) -> None:
    configure(recovered)
    python_wrapper(recovered, script)
    assert run_until_killed(recovered, signal.SIGKILL)[0] == 0
    first, second = recovered.run_dirs()
    assert [recovered.status(run)["state"] for run in (first, second)] == ["failed", "finished"]


def test_a_code_that_the_lab_calls_an_incident_is_one_though_its_words_say_a_stop(recovered: Kit) -> None:
    configure(recovered, recover={"always_codes": [1]})
    python_wrapper(recovered, CHECK)
    assert run_until_killed(recovered, signal.SIGTERM)[0] == 0
    assert [recovered.status(run)["state"] for run in recovered.run_dirs()] == ["failed", "finished"]


ONCE = '[ -e "$DONE" ] || { touch "$DONE"; set -- "$@" --at 12 raise; }\n'


PIPE, THEN = '"$@" 2>&1 | cat', '"$@"\necho "the script goes on"'


@pytest.mark.parametrize(("script", "max_steps"), [(PIPE, 60), (THEN, None), long(PIPE, None), long(THEN, 60)])
def test_a_trainer_that_dies_behind_code_0_is_taken_up(
    recovered: Kit,
    script: str,
    max_steps: int | None,
) -> None:
    configure(recovered)
    if max_steps is None:
        text = recovered.config_file.read_text().replace("{training.max_steps}", "30")
        config = json.loads(text)
        config["training"].pop("max_steps")
        recovered.config_file.write_text(json.dumps(config))
    done = shlex.quote(str(recovered.folder / "died"))
    shell_wrapper(recovered, f"DONE={done}\n{ONCE}{script}")
    recovered("run", "T-1", code=0)
    first, second = recovered.run_dirs()
    assert recovered.status(first)["state"] == "failed" and recovered.status(first)["exit_code"] == 0
    assert events(first, "exited")[0]["error"] == "RuntimeError: the toy trainer was told to fail"
    assert "RuntimeError: the toy trainer was told to fail" in events(first, "abort")[0]["evidence"]
    assert recovered.status(second)["parent_run_id"] == first.name


def test_the_command_ends_with_1_where_a_trainer_that_died_behind_code_0_is_not_taken_up(recovered: Kit) -> None:
    configure(recovered, "--at", "12", "raise", recover={"enabled": False})
    shell_wrapper(recovered, '"$@" 2>&1 | cat')
    recovered("run", "T-1", code=1)
    (run,) = recovered.run_dirs()
    assert recovered.status(run)["state"] == "failed"


@pytest.mark.parametrize("has_launcher", [True, False])
def test_of_a_run_that_ended_early_a_person_is_told_once(recovered: Kit, has_launcher: bool) -> None:
    """Killed behind a pipe it leaves no words at all: nothing is guessed, and nothing goes on by itself."""
    notes, go = recovered.folder / "notes", recovered.folder / "go"
    configure(recovered, "--at", "7", f"wait={go}", "--at", "7", "kill", notify={"command": ["tee", "-a", str(notes)]})
    shell_wrapper(recovered, '"$@" 2>&1 | cat')
    process = recovered.popen("run", "T-1")
    run = recovered.started()
    wait_until(lambda: reached(run, 7), "step 7")
    if not has_launcher:
        process.kill()
    go.touch()
    process.communicate(timeout=60)
    wait_until(lambda: events(run, "exited"), "its end")
    for _ in range(2):
        watch_as_cron(recovered, code=0)
        wait_until(lambda: notes.exists() and notes.read_text(), "a person is told")
    (told,) = (json.loads(line) for line in notes.read_text().splitlines())
    assert (told["event"], told["kind"], told["run_id"]) == ("warning", "ended_early", run.name)
    assert "at step 7 of 60, with code 0" in told["message"]
    wait_until(lambda: live(recovered) == [], "its marker is gone")
    assert recovered.status(run)["state"] == "ended_early" and recovered.run_dirs() == [run]
    assert [event["kind"] for event in events(run, "warning")] == ["ended_early"]


@pytest.mark.parametrize(
    ("end", "max_steps", "step", "state"),
    [
        ({"code": 0, "error": "RuntimeError: x"}, 50, 50, "finished"),
        ({"code": 0, "error": "RuntimeError: x"}, 50, 20, "failed"),
        ({"code": 0, "error": "RuntimeError: x"}, None, 20, "failed"),
        ({"code": 0, "by": "INT"}, 50, 20, "stopped"),
        ({"code": 241}, 50, 20, "failed"),  # as a version wrote it that did not read the words
        ({"code": 1}, 50, 20, "failed"),
        ({"code": 0}, None, 20, "finished"),
    ],
)
def test_the_state_is_by_what_exit_json_says_never_by_the_log(
    end: dict[str, Any], max_steps: int | None, step: int, state: str
) -> None:
    known: Any = {"launched": {"trainer": {}}, "step": step}
    assert status.state_of(known, View("dead", "dead", {"signal": None, **end}, 0.0), max_steps) == state
