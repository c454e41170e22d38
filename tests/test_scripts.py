"""The scripts of the kit: replaced while they run, by an update under a training of weeks; told INT as they begin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import Kit
from support.places import LIB, ROOT
from support.processes import wait_until
from support.runs import events

SCRIPTS = sorted([*(ROOT / "bin").glob("*.sh"), *(ROOT / "tools").glob("*.sh"), ROOT / "lib" / "watch_installer.sh",
                  ROOT / "lib" / "launcher.sh"])  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_read_behind_what_a_script_does(script: Path) -> None:
    """It ends in one compound command with an `exit` in it: Bash has read that whole before it runs."""
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert lines[-2] == "exit" and lines[-1] in ("}", "fi")
    assert lines[-3].split()[0] in ("main", "kit_main") and lines[-4].split()[0] in ("{", "if")


def copied_kit(folder: Path) -> Path:
    copy = folder / "kit"
    for name in ("bin", "lib", "schemas"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "VERSION", copy / "VERSION")
    return copy


@pytest.mark.parametrize("new", ["longer", "shorter"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_is_copied_over_while_it_runs_runs_once_and_keeps_its_code(
    kit: Kit, tmp_path: Path, new: str, code: int
) -> None:
    copy = copied_kit(tmp_path)
    go = kit.folder / "go"
    kit.config("--at", "2", f"wait={go}", "--exit", str(code))
    argv = kit.argv("run", "T-1")
    process = subprocess.Popen([str(copy / "bin" / "run.sh"), *argv[1:]], env=kit.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)  # fmt: skip
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    again = f'\nprintf again >>"{tmp_path}/again"\n'
    for script in (copy / "bin" / "run.sh", copy / "lib" / "launcher.sh"):
        text = script.read_text()
        # Over the same inode, as cp does it, with something to run wherever Bash would read on.
        script.write_text(text + again * 2000 if new == "longer" else again * (len(text) // len(again) - 5))
    go.touch()
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert not (tmp_path / "again").exists() and len(kit.run_dirs()) == 1


@pytest.mark.parametrize("how", [[], ["--detach"]], ids=["attached", "detached"])
def test_a_launcher_of_version_0_1_0_takes_up_its_run_after_the_kit_was_copied_over_it(
    kit: Kit, tmp_path: Path, how: list[str]
) -> None:
    """It asks as it always did, waits as it is told, and hands the new run to the new shim and sidecar."""
    copy = copied_kit(tmp_path)
    shutil.copy(ROOT / "tests" / "recorded" / "launcher_0_1_0.sh", copy / "lib" / "launcher.sh")
    kit.config(
        "--delay", "0.03", "--save-every", "5", training={"max_steps": 30}, checkpoint={"every": 5},
        trainer={"log_patterns": {"step": "^step ([0-9]+)"}, "loads_with_kit": True},
        recover={"enabled": True, "backoff_s": 1, "replay_steps": 10},
    )  # fmt: skip
    argv = [str(copy / "bin" / "run.sh"), *kit.argv("run", "T-1", *how)[1:]]
    process = subprocess.Popen(argv, env=kit.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    first = kit.started()
    wait_until(lambda: any(event["step"] >= 12 for event in events(first, "step")), "step 12")
    (copy / "lib" / "launcher.sh").write_text((ROOT / "lib" / "launcher.sh").read_text())
    os.kill(events(first, "launched")[0]["trainer"]["pid"], signal.SIGKILL)
    second = kit.started(2)
    wait_until(lambda: (second / "exit.json").exists(), "the end of the run that went on")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert json.loads((second / "exit.json").read_text())["code"] == 0
    assert events(second, "launched")[0]["launcher"] == events(first, "launched")[0]["launcher"]
    assert json.loads((second / "run.json").read_text())["relation"] == "continue" and len(kit.run_dirs()) == 2


READ = """
set -euo pipefail
KIT_COMMAND=x; source "$1/launcher.sh"
kit_read_answer "${@:2}" || { echo 'not whole'; exit; }
printf '<%s>' "${KIT_FIELD[RUN_ID]:-}" "${KIT_FIELD[CWD]:-}" "${KIT_FIELD[WAIT_S]:-}" "${KIT_ARGV[@]}"
"""
WHOLE = ["RUN_ID=a", "RUN_DIR=/r/a",
         "CWD=/with = and $(x)\n", "TOKEN=t", "CONFIG_HASH=h", "OUTPUT_LOG=/r/a/log", "CHECKPOINT=",
         "MADE=1:2:", "HEAD=", "NEW=of a later version"]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ([], "<><><>"),
        (["WAIT_S=60"], "<><><60>"),
        ([*WHOLE, "ARGV=3", "python", "RUN_ID=b", ""], "<a></with = and $(x)\n><><python><RUN_ID=b><>"),
        ([*WHOLE, "ARGV=3", "python", "RUN_ID=b"], "not whole\n"),
        (WHOLE, "not whole\n"),
        ([*WHOLE[1:], "ARGV=1", "python"], "not whole\n"),
        # By position, as version 0.1.0 answers.
        (["60"], "not whole\n"),
        (["T-1_20261122-1735", "/r/a", "/cwd", "t", "h", "/r/a/log", "", "1:2:/r/head", "python"], "not whole\n"),
    ],
)
def test_bash_reads_an_answer_by_name_and_takes_none_that_is_not_whole(answer: list[str], read: str) -> None:
    done = subprocess.run(["bash", "-c", READ, "x", LIB, *answer], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (read, "")


def test_an_answer_that_is_not_whole_is_said_and_nothing_is_started(kit: Kit, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf 'RUN_ID=a\\0RUN_DIR=/r\\0'\n")
    python.chmod(0o755)
    done = kit("run", "T-1", env={"PYTHON": str(python)}, code=1)
    assert "resumekit_cli.py start' is not whole: are the files of the kit of one version?" in done.stderr
    supervise = ["bash", LIB / "launcher.sh", "supervise", sys.executable, ROOT / "bin" / "run.sh", "0", "a", "/r/a"]
    done = subprocess.run(supervise, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "run.sh: what is to be supervised is not whole" in done.stderr


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_ctrl_c_while_the_door_still_imports_is_silent_and_not_heard_where_it_is_ignored(
    tmp_path: Path, is_ignored: bool
) -> None:
    """A command ends by it without a traceback; the sidecar, whose launcher ignores it, goes on."""
    (tmp_path / "resumekit").mkdir()
    shutil.copy(ROOT / "lib" / "resumekit_cli.py", tmp_path)
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndef main(): return print('went on') or 0\n"
    (tmp_path / "resumekit" / "commands.py").write_text(code)
    handler = signal.SIG_IGN if is_ignored else signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    try:
        argv = [sys.executable, "-I", "-S", tmp_path / "resumekit_cli.py"]
        done = subprocess.run(argv, capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    expected = (0, "went on\n", "") if is_ignored else (-signal.SIGINT, "", "")
    assert (done.returncode, done.stdout, done.stderr) == expected


def test_the_question_to_python_loads_no_packages_at_its_start(kit: Kit, tmp_path: Path) -> None:
    """A .pth file of the lab's may run for long before the kit's first line, and a Ctrl-C there ends in a traceback."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f'#!/bin/sh\necho "$1 $2" >>"{said}"\nexit 1\n')
    python.chmod(0o755)
    for words in (["run", "T-1"], ["run", "T-1", "--dry-run"], ["resume", "T-1"], ["runs"], ["abort-watch"]):
        subprocess.run(kit.argv(*words), env={**kit.env, "PYTHON": str(python)}, capture_output=True)
    assert said.read_text().splitlines() == ["-I -S"] * 5
