"""The shell surface under odd circumstances, what the tests of the commands do not show of section H."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resumekit.base.paths import RunPaths
from resumekit.process.train_log import LineCleaner
from resumekit.run import log_patterns, log_tail
from resumekit.run.run_folder import Run
from support import lab_repo
from support.commands import Kit
from support.places import LIB, ROOT


def with_log(folder: Path) -> Run:
    run = Run(RunPaths(folder), {})
    run.paths.logs.mkdir()
    return run


@pytest.mark.fault("H12", by="log_tail: the last 64 KiB")
def test_h12_the_end_of_a_log_of_ten_gigabytes_is_read_in_no_time_and_no_memory(tmp_path: Path) -> None:
    run = with_log(tmp_path)
    with open(run.paths.output_log, "wb") as file:
        file.truncate(10 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\nstep 7 loss nan\nTraceback\nRuntimeError: boom\n")
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert log_tail.last_lines(run)[-2:] == ["Traceback", "RuntimeError: boom"]
    assert time.process_time() - started < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.fault("H13", by="log_tail: a carriage return ends a line too")
def test_h13_the_end_of_a_log_of_bars_without_a_newline_is_short(tmp_path: Path) -> None:
    run = with_log(tmp_path)
    run.paths.output_log.write_bytes(b"".join(b"\r%7d/999999 [00:01<00:02, 3.5it/s]" % i for i in range(500_000)))
    lines = log_tail.last_lines(run)
    assert len(lines) == 20 and max(map(len, lines)) < 60 and lines[-1].strip().startswith("499999/")


@pytest.mark.fault("H14", by="train_log, log_patterns: bytes, never decoded before they are clean")
def test_h14_a_nan_between_nul_bytes_and_bytes_that_are_no_text_is_found(tmp_path: Path) -> None:
    patterns = log_patterns.compiled({"step": "^step ([0-9]+)", "loss": "loss ([-0-9.naif]+)"})
    printed = bytes(range(256)) * 20 + b"\n\x00\x00step\x00 41 lo\x00ss nan\xff\n\xff\xfe\nstep 42 loss nan \x80\x00\n"
    cleaner = LineCleaner()
    found = log_patterns.found_steps(cleaner.feed(printed) + cleaner.flush(), patterns)
    assert [(step["step"], step["loss"] != step["loss"]) for step in found] == [(41, True), (42, True)]
    run = with_log(tmp_path)
    run.paths.output_log.write_bytes(printed)
    assert all(line.isprintable() for line in log_tail.last_lines(run))


@pytest.mark.fault("H15", by="log_tail: printable text only")
def test_h15_escape_sequences_at_the_end_of_a_log_reach_no_terminal(tmp_path: Path) -> None:
    run = with_log(tmp_path)
    run.paths.output_log.write_bytes(
        b"\x1b]0;title\x07\x1b[31mred\x1b[0m\n\xc2\x9b31m C1\n\xe2\x80\xae right to left\n"
    )
    assert all(line.isprintable() for line in log_tail.last_lines(run)) and len(log_tail.last_lines(run)) == 3


@pytest.mark.fault("H17", by="launcher.sh: looks for its Python first")
@pytest.mark.parametrize("command", ["run", "resume", "runs", "abort-watch"])
def test_h17_without_a_python_every_command_says_so_in_one_line(kit: Kit, command: str) -> None:
    done = kit(command, *(["T-1"] if command in ("run", "resume") else []), code=127, env={"PYTHON": "/no/such/python"})
    assert done.stderr == (
        f"{command}.sh: no Python at '/no/such/python': run 'make setup', or set PYTHON=/path/to/python "
        "(3.10 or newer)\n"
    )
    assert not kit.runs.exists()


def test_a_labs_copy_without_a_python_is_not_told_of_a_target_that_it_does_not_have(tmp_path: Path) -> None:
    lab_repo.copy_kit(tmp_path / "kit")
    command = [tmp_path / "kit" / "bin" / "runs.sh"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": "/no/such/python"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (127, "")
    said = "runs.sh: no Python at '/no/such/python': set PYTHON=/path/to/python (3.10 or newer)\n"
    assert done.stderr == said


@pytest.mark.fault("H18", by="bin/*.sh: the version of Bash is asked before anything newer is used")
@pytest.mark.parametrize("command", ["run", "resume", "runs", "abort-watch"])
@pytest.mark.parametrize("version", ["3 2 57", "4 3 48"])
def test_h18_an_old_bash_is_told_so_before_anything_else(tmp_path: Path, command: str, version: str) -> None:
    """The very lines, with another version put in: this machine has no old Bash."""
    text = (ROOT / "bin" / f"{command}.sh").read_text()
    check = text[text.index("if ((BASH_VERSINFO") : text.index("set -euo pipefail")]
    code = [line for line in text[: text.index("if ((BASH_VERSINFO")].splitlines() if line and line[0] != "#"]
    assert code == [], "nothing stands before it"
    script = tmp_path / f"{command}.sh"
    script.write_text(f"OLD=({version})\n{check.replace('BASH_VERSINFO', 'OLD')}\nexit 0\n")
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 127 and done.stderr.startswith(f"{command}.sh: needs Bash 4.4 or newer, this is ")
    script.write_text(f"OLD=(4 4 0)\n{check.replace('BASH_VERSINFO', 'OLD')}\nexit 0\n")
    assert subprocess.run(["bash", str(script)], check=False).returncode == 0


@pytest.mark.fault("H18", by="launcher.sh: Bash and Python do what flock, setsid and GNU tools would")
def test_h18_it_runs_with_four_tools_alone(kit: Kit) -> None:
    """bash, env, readlink, sleep; no flock, setsid, timeout, sed, awk, git: a small machine may not have them."""
    tools = kit.folder / "tools"
    tools.mkdir()
    for name in ("bash", "env", "readlink", "sleep"):
        (tools / name).symlink_to(shutil.which(name))
    kit.config("--save-every", "2")
    env = {"PATH": str(tools), "PYTHON": sys.executable}
    kit("run", "T-1", code=137, env={**env, "TOY_ARGS": "--at 5 kill"})
    assert "resume@4" in kit("run", "T-1", "--detach", env=env).stdout
    kit("runs", env=env)
    kit("abort-watch", "--observe", env=env)
    [child] = [run for run in kit.run_dirs() if "resume@" in run.name]
    assert (child / "run.json").exists()


@pytest.mark.fault("H19", by="launcher.sh: umask o-w, and nothing is opened wider than it says")
@pytest.mark.fault("K9", by="launcher.sh: umask o-w, and nothing is opened wider than it says")
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o000])
def test_h19_a_run_has_the_modes_that_the_umask_says_and_is_never_everybody_s_to_write(kit: Kit, umask: int) -> None:
    kit.config("--save-every", "2")
    kit("run", "T-1", umask=umask)
    made = [path for path in [*kit.runs.rglob("*"), kit.runs] if not path.is_symlink()]
    assert len(made) > 15
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & (umask | 0o002) == 0, f"{path.relative_to(kit.folder)} {mode:o}"
        assert mode & 0o400 and (not path.is_dir() or mode & 0o700 == 0o700), path


CLOSED = {"stdin": "<&-", "stdout": ">&-", "both": "<&- >&-"}


@pytest.mark.fault("H21", by="launcher.sh: the trainer writes to a file")
@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
def test_h21_with_closed_descriptors_a_run_is_whole(kit: Kit, closed: str) -> None:
    """As some schedulers and `cmd <&-` start it: what is opened next takes the number, and must not be written to."""
    kit.config("--save-every", "2")
    argv = ["bash", "-c", f'exec "$@" {closed}', "-", *kit.argv("run", "T-1")]
    done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, timeout=120, check=False)
    [run] = kit.run_dirs()
    assert done.returncode == 0, done.stderr
    assert kit.status(run)["state"] == "finished"
    assert "done at step 5" in (run / "logs" / "output.log").read_text()
    assert b"step 5" not in b"".join(p.read_bytes() for p in run.glob("*.json")), (
        "nothing was written into another file"
    )


@pytest.mark.fault("H21", by="launcher.sh: HUP is not for the trainer")
def test_h21_under_nohup_without_a_terminal_it_is_the_same(kit: Kit) -> None:
    argv = ["nohup", *kit.argv("run", "T-1")]
    with open(kit.folder / "nohup.out", "wb") as file:
        code = subprocess.run(
            argv, env=kit.env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, check=False
        ).returncode
    assert code == 0 and b"done at step 5" in (kit.folder / "nohup.out").read_bytes()
    assert kit.status(kit.run_dirs()[0])["state"] == "finished"


@pytest.mark.fault("H11", by="entry points: python -I, own folder last")
@pytest.mark.fault("K10", by="entry points: python -I, own folder last")
def test_h11_python_s_own_variables_and_folder_bring_nothing_in(kit: Kit) -> None:
    """PYTHONPATH, PYTHONSTARTUP, PYTHONHOME's kin and modules in the current folder: none is run by the kit."""
    hostile = kit.folder / "hostile"
    hostile.mkdir()
    for name in ("json", "yaml", "sitecustomize", "usercustomize", "resumekit", "signal", "re"):
        (hostile / f"{name}.py").write_text("import os\nos.close(os.open('pwned', os.O_CREAT | os.O_WRONLY))\n")
    kit.config(trainer={"command": ["sh", "-c", "echo step 5"]})
    env = {"PYTHONPATH": str(hostile), "PYTHONSTARTUP": str(hostile / "json.py"), "PYTHONUSERBASE": str(hostile)}
    for command in (["run", "T-1"], ["runs"], ["abort-watch", "--observe"], ["run", "T-1", "--fresh", "--dry-run"]):
        kit(*command, env=env, cwd=hostile)
    assert list(kit.folder.rglob("pwned")) == []
    assert str(LIB) not in os.environ.get("PYTHONPATH", "")


@pytest.mark.fault("K10", by="make_folder: PATH, PYTHONPATH and LD_PRELOAD are written down")
def test_k10_what_could_change_every_program_is_recorded(kit: Kit) -> None:
    import json

    given = {"PYTHONPATH": "/some/where", "LD_LIBRARY_PATH": "/opt/lib", "LD_PRELOAD": "/no/such/lib.so"}
    kit.config(trainer={"command": ["sh", "-c", "echo step 5"]})
    kit("run", "T-1", env=given)
    [run] = kit.run_dirs()
    kept = json.loads((run / "run.json").read_text())["environment"]["values"]
    assert {name: kept[name] for name in given} == given and kept["PATH"] == kit.env["PATH"]


@pytest.mark.long
@pytest.mark.fault("H10", by="launcher.sh: its own place resolved, everything quoted")
@pytest.mark.parametrize("tests", ["test_run.py", "test_resume.py", "test_stopping.py", "test_watch.py"])
def test_h10_the_tests_of_the_commands_pass_in_a_folder_with_an_odd_name(weird_tmp_path: Path, tests: str) -> None:
    """The whole repository copied to a place with spaces, quotes, a dollar, a newline and an umlaut in its name."""
    place = weird_tmp_path / "the kït's own"
    place.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", ".git", ".venv", "runs", "benchmarks", ".pytest_cache", "docs")
    for name in os.listdir(ROOT):
        if name not in (".git", ".venv", "runs", "benchmarks", "docs"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, place / name, **({"ignore": left_out} if source.is_dir() else {}))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{tests}"],
        cwd=place, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert not list(weird_tmp_path.rglob("pwned"))
