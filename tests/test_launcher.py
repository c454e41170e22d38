"""How a trainer is started, watched and ended by the commands: lib/launcher.sh, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resumekit.base import processes
from support.commands import Kit
from support.lab_repo import copy_kit
from support.long_tests import long
from support.places import LIB, LIVE, ROOT
from support.processes import marked_pids, wait_until
from support.recoveries import over
from support.runs import events
from support.terminal import Terminal

pytestmark = pytest.mark.usefixtures("valid_records")


@pytest.mark.fault("H6", by="shim: exit.json; no pipe")
@pytest.mark.parametrize(
    ("toy_args", "code", "state"),
    [
        (("--exit", "3"), 3, "failed"),
        (("--exit", "256"), 0, "finished"),
        (("--at", "2", "exit=0"), 0, "ended_early"),
        (("--at", "2", "exit=143"), 143, "stopped"),
        (("--at", "2", "kill"), 137, "failed"),
        long((), 0, "finished"),
        long(("--at", "2", "exit=256"), 0, "ended_early"),
        long(("--at", "2", "segv"), 139, "failed"),
        long(("--at", "2", "raise"), 1, "failed"),
    ],
)
@pytest.mark.fault("A10", by="shim.py: exit.json; status.py: the last step")
def test_the_trainer_s_exit_code_is_the_launcher_s(kit: Kit, toy_args: tuple, code: int, state: str) -> None:
    kit.config(*toy_args)
    kit("run", "T-1", code=code)
    (run,) = kit.run_dirs()
    assert (kit.status(run)["state"], kit.status(run)["exit_code"]) == (state, code)
    assert json.loads((run / "exit.json").read_text())["code"] == code
    assert not (kit.runs / LIVE / run.name).exists()
    last = (run / "logs" / "train.log").read_text().splitlines()[-1]
    by_signal = f"; signal {code - 128}" if code in (137, 139) else ""
    assert f"resumekit: ended (code {code}{by_signal}), elapsed " in last


@pytest.mark.fault("H17", by="shim: 127 in exit.json")
def test_a_program_that_goes_away_before_its_start_is_127(kit: Kit) -> None:
    program = kit.folder / "trainer"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    kit.config(trainer={"command": [str(program)]})
    kit("run", "T-1", code=127)
    (run,) = kit.run_dirs()
    assert kit.status(run)["state"] == "failed"
    assert "could not be started: No such file or directory" in (run / "logs" / "train.log").read_text()


@pytest.mark.fault("H21", by="shim: no stdin for any process")
def test_the_trainer_has_no_input_and_what_it_needs_in_its_environment(kit: Kit, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text("import json, os, sys; print(json.dumps([sys.stdin.read(), dict(os.environ), 'ä', os.getcwd()]))")
    kit.config(trainer={"command": ["{python}", str(script)]})
    env = {"LC_ALL": "C", "PYTHONPATH": "/somewhere", "PYTHONUTF8": ""}
    done = kit("run", "T-1", env=env, stdin=subprocess.PIPE)
    text, seen, umlaut, cwd = json.loads(done.stdout)
    (run,) = kit.run_dirs()
    record = json.loads((run / "run.json").read_text())
    assert (text, umlaut, cwd) == ("", "ä", record["cwd"])
    assert seen["PYTHONPATH"] == f"/somewhere:{LIB}"
    assert seen["PYTHONUNBUFFERED"] == seen["PYTHONUTF8"] == "1"
    assert seen["RESUMEKIT_RUN_DIR"] == str(run) and seen["RESUMEKIT_RUN_ID"] == run.name
    assert seen["RESUMEKIT_CONFIG_HASH"] == record["config_hash"] and seen["RESUMEKIT_RUN_TOKEN"] == record["token"]
    assert seen["TORCHELASTIC_ERROR_FILE"] == str(run / "torchrun_error.json")
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in seen  # the grace is no longer than torchrun's own
    assert "FORCE_COLOR" not in seen  # no terminal


@pytest.mark.parametrize("utf8", ["", "0"])
def test_command_sh_sets_what_the_launcher_sets(kit: Kit, tmp_path: Path, utf8: str) -> None:
    script = tmp_path / "trainer.py"
    script.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    kit.config(trainer={"command": ["{python}", str(script)]})
    env = {"PYTHONUTF8": utf8, "PYTHONPATH": "/somewhere"}
    by_launcher = json.loads(kit("run", "T-1", env=env).stdout)
    (run,) = kit.run_dirs()
    pasted = subprocess.run(["bash", str(run / "command.sh")], env=kit.env, capture_output=True, check=True)
    by_hand = json.loads(pasted.stdout)
    differs = {name for name, value in by_launcher.items() if by_hand.get(name) != value}
    # The mark by which a run's processes are known, what torchrun writes into the run's folder, and Bash's own.
    of_the_run = {"RESUMEKIT_RUN_TOKEN", "RESUMEKIT_OUTPUT_LOG", "TORCHELASTIC_ERROR_FILE"}
    assert differs - of_the_run - {"SHLVL", "_", "OLDPWD", "COLUMNS", "LINES"} == set()


@pytest.mark.parametrize("command", ["run", "resume", "runs", "abort-watch"])
def test_without_proc_each_command_is_one_sentence(kit: Kit, command: str) -> None:
    hidden = 'mount -t tmpfs none /proc && exec "$@"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", hidden, "-", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    argv = ["unshare", "-rm", "sh", "-c", hidden, "-", *kit.argv(command, "T-1")]
    done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 127 and not done.stdout and not kit.runs.exists()
    assert done.stderr.startswith(f"{command}.sh: there is no /proc here") and done.stderr.count("\n") == 1


def test_an_exported_cdpath_leads_no_script_elsewhere(tmp_path: Path) -> None:
    for name in ("lib", "tools"):
        (tmp_path / name).mkdir()
    script = 'source lib/command_line.sh && printf "%s\\n" "$KIT_LIB" "$KIT_ROOT"'
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "CDPATH": str(tmp_path)}, cwd=ROOT, capture_output=True
    )
    assert done.stdout.decode() == f"{LIB}\n{ROOT}\n"
    for path in [*(ROOT / "tools").glob("*.sh"), ROOT / ".ci" / "run"]:
        has_own_place = '\nSELF="$(readlink -f -- ' in path.read_text()
        assert (has_own_place or "\nCDPATH='' cd -- " in path.read_text()) and "\ncd " not in path.read_text(), path


def test_in_a_path_with_a_colon_a_trainer_runs_and_one_that_imports_the_helpers_is_refused(
    kit: Kit, tmp_path: Path
) -> None:
    copied = tmp_path / "a:b"
    copy_kit(copied)
    kit.config(trainer={"command": ["{python}", "-c", "import os; print(os.environ.get('PYTHONPATH'))"]})

    def run(*more: str) -> subprocess.CompletedProcess:
        argv = [str(copied / "bin" / "run.sh"), *kit.argv("run", "T-1", *more)[1:]]
        env = {name: value for name, value in kit.env.items() if name != "PYTHONPATH"}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)

    done = run()
    assert (done.returncode, done.stdout) == (0, "None\n") and "cannot import resume_helper" in done.stderr
    refused = run("--fresh", "--set", "trainer.loads_with_kit=true")
    assert refused.returncode == 4 and len(kit.run_dirs()) == 1
    assert "move the kit to a path without ':'" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_search_path_gets_no_empty_entry(kit: Kit) -> None:
    """An empty entry is the current folder."""
    kit.config(trainer={"command": ["{python}", "-c", "import os; print(os.environ['PYTHONPATH'])"]})
    env = {k: v for k, v in kit.env.items() if k != "PYTHONPATH"}
    done = subprocess.run(kit.argv("run", "T-1"), env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{LIB}\n"


@pytest.mark.fault("H22", by="launcher.sh: PYTHONUTF8=1")
def test_non_ascii_output_in_the_c_locale_kills_no_process(kit: Kit) -> None:
    kit.config(trainer={"command": ["{python}", "-c", "print('\\u2713 \\u00e4')"]})
    env = {"LC_ALL": "C", "PYTHONUTF8": "", "PYTHONIOENCODING": "", "PYTHONCOERCECLOCALE": "0"}
    assert kit("run", "T-1", env=env).stdout == "✓ ä\n"


@pytest.mark.fault("H22", by="launcher.sh: PYTHONUTF8=1")
def test_a_python_trainer_is_in_utf8_mode_whatever_the_locale_is(kit: Kit) -> None:
    """In the C locale Python sees to that by itself, in one of Latin-1 it does not; asked where it would not either."""
    kit.config(trainer={"command": ["{python}", "-c", "import sys; print(sys.flags.utf8_mode)"]})
    assert kit("run", "T-1", env={"LC_ALL": "C.UTF-8", "PYTHONUTF8": ""}).stdout == "1\n"


@pytest.mark.fault("H19", by="launcher.sh: umask o-w")
@pytest.mark.fault("K9", by="launcher.sh: umask o-w")
def test_under_an_open_umask_nothing_is_everybody_s_to_change(kit: Kit) -> None:
    kit("run", "T-1", umask=0)
    (run,) = kit.run_dirs()
    made = [run, *run.rglob("*"), *kit.runs.rglob("*")]
    assert [path for path in made if not path.is_symlink() and path.stat().st_mode & 0o002] == []


RICH = """
from rich.console import Console
console = Console()
console.print("[bold red]red[/] step 1")
console.print("width", console.width)
"""


def test_colour_reaches_the_terminal_and_not_the_log(kit: Kit) -> None:
    script = kit.folder / "rich_trainer.py"
    script.write_text(RICH)
    kit.config(trainer={"command": ["{python}", str(script)]})
    terminal = Terminal(kit, "run", "T-1")
    assert terminal.wait() == 0
    assert b"\x1b[1;31mred\x1b[0m" in terminal.shown and b"117" in terminal.shown
    log = next(kit.runs.glob("*/logs/train.log")).read_bytes()
    assert b" red step 1\n" in log and b"\x1b" not in log


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(kit: Kit, env: dict[str, str]) -> None:
    script = kit.folder / "rich_trainer.py"
    script.write_text(RICH)
    kit.config(trainer={"command": ["{python}", str(script)]})
    terminal = Terminal(kit, "run", "T-1", env=env)
    assert terminal.wait() == 0
    assert b"red step 1" in terminal.shown and b"\x1b[1;31m" not in terminal.shown


# A second Ctrl-C that comes sooner is the first one once more.
MOMENT_S = 1.2
LONG = {"training": {"max_steps": 10**6}, "abort": {"grace_s": 60}}


@pytest.mark.fault("A4", by="launcher.sh: kit_on_signal, once; stopping.py: INT to the trainer alone")
def test_ctrl_c_once_saves_and_ends(kit: Kit) -> None:
    kit.config("--delay", "0.02", **LONG)
    terminal = Terminal(kit, "run", "T-1")
    terminal.wait_for(b"step 3 ")
    terminal.press(b"\x03")
    assert terminal.wait() == 130
    assert b"INT: the trainer saves and ends; once more to end it now" in terminal.shown
    assert b"saved step " in terminal.shown
    (run,) = kit.run_dirs()
    assert kit.status(run)["state"] == "stopped"
    assert len(list((run / "checkpoints").glob("*.pt"))) == 1
    assert "saved step" in (run / "logs" / "train.log").read_text()


@pytest.mark.fault("A5", by="launcher.sh: kit_on_signal, twice; stopping.py: KILL to the session")
def test_ctrl_c_twice_ends_now(kit: Kit) -> None:
    kit.config("--delay", "0.02", "--ignore", "TERM,INT", "--save-every", "3", **LONG)
    terminal = Terminal(kit, "run", "T-1")
    terminal.wait_for(b"saved step 3")
    terminal.press(b"\x03")
    terminal.wait_for(b"once more to end it now")
    time.sleep(MOMENT_S)
    terminal.press(b"\x03")
    assert terminal.wait() == 137
    assert b"INT again: ending the trainer now" in terminal.shown
    (run,) = kit.run_dirs()
    assert kit.status(run)["state"] == "stopped"
    assert any(e["now"] for e in events(run, "stopped"))  # two processes write them, in whatever order
    assert (run / "checkpoints" / "hrm_arc_step_3.pt").exists()


def test_a_ctrl_c_that_bounces_is_one(kit: Kit) -> None:
    """Two of them within a second, or a job that gets INT twice: the trainer takes a second one for "now"."""
    kit.config("--delay", "0.3", **LONG)
    terminal = Terminal(kit, "run", "T-1")
    terminal.wait_for(b"step 3 ")
    terminal.press(b"\x03\x03")
    terminal.wait_for(b"once more")
    terminal.press(b"\x03")
    assert terminal.wait() == 130
    (run,) = kit.run_dirs()
    assert (kit.status(run)["state"], len(list((run / "checkpoints").glob("*.pt")))) == ("stopped", 1)
    assert b"ending the trainer now" not in terminal.shown


@pytest.mark.fault("H5", by="launcher.sh: background and wait, forwarded at once")
@pytest.mark.fault("J8", by="launcher.sh: forwarded at once; save_checkpoint is whole or absent")
def test_term_once_and_twice_to_the_launcher(kit: Kit) -> None:
    """A scheduler sends it again: it never means now, and the trainer gets one of them."""
    kit.config("--delay", "0.02", **LONG)
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")

    kit.config("--delay", "0.1", "--save-s", "2", **LONG)
    process = kit.popen("run", "T-1", "--fresh")
    run = kit.started(2)
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert b"TERM again: the same stop goes on" in said
    assert len(list((run / "checkpoints").glob("*.pt"))) == 1


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_to_every_process_of_the_job_is_one_stop(kit: Kit, name: str) -> None:
    """Slurm's linuxproc, systemd's control-group: the trainer has it from there; another one means "now" to it."""
    kit.config("--delay", "0.3", **LONG)
    for number in (1, 2):
        process = kit.popen("run", "T-1", "--fresh")
        run = kit.started(number)
        wait_until(lambda run=run: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
        for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[f"SIG{name}"])
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, kit.status(run)["state"]) == (128 + signal.Signals[f"SIG{name}"], "stopped")
        assert b"saved step" in out
        assert [event["by"] for event in events(run, "signalled")] == [name]


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_scheduler_s_warning_is_a_stop_that_is_said(kit: Kit, name: str) -> None:
    """Without this the launcher dies of it, and everything since the last checkpoint is lost."""
    kit.config("--delay", "0.1", **LONG)
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    for _ in range(3):
        process.send_signal(signal.Signals[f"SIG{name}"])
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (kit.status(run)["state"], kit.status(run)["stopped_by"]) == ("preempted", name)
    assert len(list((run / "checkpoints").glob("*.pt"))) == 1
    assert f"by {name}" in kit("runs", "T-1").stdout


@pytest.mark.parametrize("name", ["USR1", "USR2", "HUP"])
def test_every_process_of_ours_survives_a_scheduler_s_warning(kit: Kit, name: str) -> None:
    go = kit.folder / "go"
    kit.config("--at", "3", f"wait={go}", trainer={"pass_signals": ["USR1", "USR2"]}, training={"max_steps": 9})
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: (run / "status.json").exists() and b"step 3" in (run / "logs" / "output.log").read_bytes(), "3")
    trainer = events(run, "launched")[0]["trainer"]["pid"]
    before = {pid for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}") if pid != trainer}
    for pid in before - {process.pid}:
        os.kill(pid, signal.Signals[f"SIG{name}"])
    time.sleep(0.3)
    assert before <= set(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"))
    go.touch()
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (0, "finished")


KNOWS_USR1 = """
import os, signal, sys, time
got = []
signal.signal(signal.SIGUSR1, lambda *_: (got.append(1), print(f"checkpoint {len(got)} on USR1", flush=True)))
for step in range(1, 400):
    print(f"step {step} loss 1.0", flush=True)
    time.sleep(0.05)
    if len(got) == 2:
        sys.exit(0)
"""


def test_a_signal_that_a_trainer_knows_is_handed_on_each_time_and_stops_nothing(kit: Kit) -> None:
    script = kit.folder / "knows.py"
    script.write_text(KNOWS_USR1)
    kit.config(trainer={"command": ["{python}", str(script)], "pass_signals": ["USR1"]}, **LONG)
    process = kit.popen("run", "T-1")
    run = kit.started()
    log = run / "logs" / "output.log"
    wait_until(lambda: b"step 2 " in log.read_bytes(), "the second step")
    for number in (1, 2):
        process.send_signal(signal.SIGUSR1)
        wait_until(
            lambda number=number: f"checkpoint {number} on USR1".encode() in log.read_bytes(), "it was handed on"
        )
    process.communicate(timeout=60)
    assert (process.returncode, events(run, "stopped")) == (0, [])


def test_the_trainer_gets_the_signal_that_it_saves_on(kit: Kit) -> None:
    script = kit.folder / "knows.py"
    script.write_text(KNOWS_USR1.replace("== 2", "== 1"))
    kit.config(trainer={"command": ["{python}", str(script)], "stop_signal": "USR1"}, **LONG)
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (0, "stopped")
    assert b"checkpoint 1 on USR1" in (run / "logs" / "output.log").read_bytes()


def test_term_to_the_launcher_s_process_group_is_term_once(kit: Kit) -> None:
    """The trainer has a session of its own, and has not got it."""
    kit.config("--delay", "0.02", **LONG)
    process = kit.popen("run", "T-1", start_new_session=True)
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, kit.status(run)["state"]) == (143, "stopped")
    assert b"saved step" in out


@pytest.mark.fault("H5", by="launcher.sh: traps before the start")
@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_signal_while_the_trainer_is_just_starting_is_not_lost(kit: Kit, name: str) -> None:
    kit.config("--delay", "0.02", **LONG)
    process = kit.popen("run", "T-1")
    wait_until(lambda: list(kit.runs.glob("*/logs/output.log")), "the run folder")
    wait_until(lambda: catches(process.pid, signal.Signals[f"SIG{name}"]), "the launcher's traps")
    process.send_signal(signal.Signals[f"SIG{name}"])
    process.communicate(timeout=60)
    assert process.returncode == 143


def catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.fault("A6", by="launcher.sh: kit_on_hangup; a session of its own")
def test_closing_the_terminal_stops_nothing(kit: Kit) -> None:
    go = kit.folder / "go"
    kit.config("--delay", "0.01", "--at", "4", f"wait={go}", training={"max_steps": 9})
    terminal = Terminal(kit, "run", "T-1")
    terminal.wait_for(b"step 3 ")
    os.close(terminal.master)
    (run,) = kit.run_dirs()
    time.sleep(0.2)  # for the HUP to come through; if it did harm later, the end below would show it
    assert os.waitpid(terminal.pid, os.WNOHANG) == (0, 0)
    go.touch()
    wait_until((run / "exit.json").exists, "the trainer's end")
    _, status = wait_until(lambda: (w := os.waitpid(terminal.pid, os.WNOHANG))[0] and w, "the launcher's end")
    assert os.waitstatus_to_exitcode(status) == 0
    assert kit.status(run)["state"] == "finished"
    assert " step 9 " in (run / "logs" / "train.log").read_text()


HANGUPS = [
    pytest.param(signal.SIG_DFL, id="by hand"),
    pytest.param(signal.SIG_IGN, id="under nohup", marks=pytest.mark.long),
]


@pytest.mark.parametrize("hangup", HANGUPS)
def test_a_terminal_that_is_not_read_stops_nothing(kit: Kit, hangup: signal.Handlers) -> None:
    """Ctrl-S: train.log and status go on, a TERM still reaches the trainer, and nothing is left behind."""
    kit.config("--delay", "0.005", "--at", "2", "lines=5000", **LONG)
    terminal = Terminal(kit, "run", "T-1", hangup=hangup)
    run = kit.started()
    log = run / "logs" / "train.log"
    wait_until(lambda: log.exists() and " step 50 " in log.read_text(), "the log goes on")
    over(kit, run, "running")
    os.kill(terminal.pid, signal.SIGTERM)
    over(kit, run, "stopped")
    assert json.loads((run / "exit.json").read_text())["code"] == 143
    mark = f"RESUMEKIT_TEST_MARK={kit.mark}"
    wait_until(lambda: not list(marked_pids(mark)), "nothing of it waits for the terminal any more")
    assert terminal.wait() == 143


def test_a_pipe_that_is_not_read_keeps_no_process(kit: Kit) -> None:
    """`run.sh EXP 2>&1 | less`, left alone: no HUP ever comes to what still has something to say."""
    kit.config("--delay", "0.005", **LONG)
    reader, writer = os.pipe()
    process = kit.popen("run", "T-1", stdout=writer, stderr=writer)
    run = kit.started()
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == "running", "running")
    mine = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)  # of its own: the others' writes block
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(mine, b"." * size)
    process.terminate()
    assert process.wait(timeout=60) == 143
    wait_until(lambda: not list(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}")), "nothing of it waits", 10)
    for descriptor in (reader, writer, mine):
        os.close(descriptor)


def test_a_reader_that_leaves_ends_nothing(kit: Kit) -> None:
    """`run.sh EXP | head -1`"""
    kit.config("--delay", "0.01", training={"max_steps": 30})
    process = kit.popen("run", "T-1")
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    (run,) = kit.run_dirs()
    assert (kit.status(run)["state"], kit.status(run)["global_step"]) == ("finished", 30)


def test_a_launcher_whose_output_has_no_reader_does_not_end(kit: Kit) -> None:
    """It has something to say (its shim was killed), and the pipe is closed: it follows the run all the same."""
    go = kit.folder / "go"
    kit.config("--at", "2", f"wait={go}")
    process = kit.popen("run", "T-1")
    run = kit.started()
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == "running", "running")
    process.stdout.close()
    process.stderr.close()
    (launched,) = events(run, "launched")
    os.kill(launched["shim"]["pid"], signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    go.touch()
    assert process.wait(timeout=60) == 1
    assert kit.status(run)["state"] == "lost"


def test_a_grandchild_that_holds_the_log_does_not_hold_the_launcher(kit: Kit) -> None:
    kit.config("--at", "2", "child")
    process = kit.popen("run", "T-1")
    process.wait(timeout=60)
    (run,) = kit.run_dirs()
    assert (process.returncode, kit.status(run)["state"]) == (0, "finished")


@pytest.mark.fault("K14", by="launcher.sh: the wait for a sidecar in a pattern without end is bounded")
@pytest.mark.fault("A14", by="launcher.sh: a bounded wait for the last lines")
def test_a_sidecar_that_hangs_does_not_hold_the_launcher_for_ever(kit: Kit) -> None:
    go = kit.folder / "go"
    kit.config("--at", "2", f"wait={go}")
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = kit.started()

    def sidecar() -> int | None:
        for pid in marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}"):
            if b"sidecar\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    os.kill(wait_until(sidecar, "the sidecar"), signal.SIGSTOP)
    go.touch()
    began = time.monotonic()
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - began < 50
    assert json.loads((run / "exit.json").read_text())["code"] == 0


@pytest.mark.fault("H21", by="launcher.sh: a session of its own")
def test_detached_it_has_left_the_terminal(kit: Kit) -> None:
    go = kit.folder / "go"
    kit.config("--at", "3", f"wait={go}")
    done = kit("run", "T-1", "--detach", start_new_session=True)
    (run,) = kit.run_dirs()
    assert done.stdout == f"{run.name}\n"
    trainer = processes.identity_from(events(run, "launched")[0]["trainer"])
    launcher = processes.identity_from(events(run, "launched")[0]["launcher"])
    assert processes.probe(trainer) == processes.probe(launcher) == processes.ALIVE
    for known in (trainer, launcher):
        stat = Path(f"/proc/{known.pid}/stat").read_text().rpartition(")")[2].split()
        assert (int(stat[3]), stat[4]) == (known.pid, "0")  # a session of its own, no terminal
    links = [os.readlink(f"/proc/{launcher.pid}/fd/{n}") for n in (0, 1, 2)]
    assert links == ["/dev/null"] * 3
    go.touch()
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == "finished", "it ends by itself")
    wait_until(lambda: processes.probe(launcher) == processes.DEAD, "its launcher too")


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_detached_launcher_passes_signals_on(kit: Kit, name: str) -> None:
    kit.config("--delay", "0.02", **LONG)
    kit("run", "T-1", "--detach")
    (run,) = kit.run_dirs()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    launcher = processes.identity_from(events(run, "launched")[0]["launcher"])
    assert processes.send(launcher, signal.Signals[f"SIG{name}"])
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == "stopped", "it was stopped")


def test_detached_it_keeps_no_descriptor_of_its_caller(kit: Kit) -> None:
    """A pipe that it held open would keep its reader waiting (make, bats, CI)."""
    kit.config("--at", "2", "hang")
    read, write = os.pipe()
    kit("run", "T-1", "--detach", pass_fds=[write])
    os.close(write)
    assert select.select([read], [], [], 30)[0] and os.read(read, 1) == b""
    os.close(read)


WAIT_TEST = """
set -euo pipefail
KIT_COMMAND=x; source "$1/launcher.sh"
trap 'sleep 0.3' TERM
for code in 3 143; do
  (sleep 0.1; kill -TERM "$$"; sleep 0.05; exit "$code") &
  got=0; kit_wait_for "$!" || got=$?
  printf '%s ' "$got"
done
(kill -KILL "$BASHPID") & got=0; kit_wait_for "$!" || got=$?
printf '%s\\n' "$got"
"""


def test_a_child_that_ends_while_a_trap_runs_keeps_its_code() -> None:
    """The trap ends `wait` with 143; the child has ended by the time it is over."""
    done = subprocess.run(
        ["bash", "-c", WAIT_TEST, "x", str(LIB)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "3 143 137\n"


def test_no_process_is_left_behind(kit: Kit) -> None:
    kit("run", "T-1")
    wait_until(lambda: not list(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}")), "nothing of it runs any more", 10)


def test_the_tests_python_is_the_trainer_s(kit: Kit) -> None:
    kit.config(trainer={"command": ["{python}", "-c", "import sys; print(sys.executable)"]})
    assert kit("run", "T-1").stdout == f"{sys.executable}\n"


@pytest.mark.long
@pytest.mark.fault("K4", by="shim.py: the log is opened without following a link")
def test_a_link_that_takes_the_logs_place_before_the_trainer_starts_is_not_written_through(kit: Kit) -> None:
    private, python = kit.folder / "private", kit.folder / "python"
    private.write_text("precious")
    python.write_text(
        f"""#!/bin/sh
case "$*" in *process/shim.py*)
  ln -sf {shlex.quote(str(private))} "$RESUMEKIT_RUN_DIR/logs/output.log" ;;
esac
exec {shlex.quote(sys.executable)} "$@"
"""
    )
    python.chmod(0o755)
    done = kit("run", "T-1", env={"PYTHON": str(python)}, code=127)
    assert "cannot take the trainer's output, and it was not started: it is a link" in done.stderr
    assert "the trainer was never started: the lines above say why" in done.stderr
    assert private.read_text() == "precious" and not events(kit.run_dirs()[0], "launched")


EXCHANGING = """#!/bin/sh
case "$*" in *process/shim.py*)
  mv "$4" "$4.aside" && cp -a "$4.aside" "$4"
  echo >"$4/journal.jsonl"
  echo '{}' >"$4/resolved_config.json"
  echo '{"code":0}' >"$4/exit.json" ;;
esac
exec %s "$@"
"""


@pytest.mark.fault("K4", by="shim, sidecar, launcher.sh: the folder that was made, or none")
def test_a_folder_that_is_exchanged_right_after_the_launch_is_not_used(kit: Kit) -> None:
    """In a runs folder without the sticky bit another user renames the new run away, and puts an own one there."""
    python = kit.folder / "python"
    python.write_text(EXCHANGING % shlex.quote(sys.executable))
    python.chmod(0o755)
    said = kit("run", "T-1", code=127, env={"PYTHON": str(python)})
    (run,) = (path for path in kit.run_dirs() if not path.name.endswith(".aside"))
    assert said.stderr.count(f"{run.name}' is not the folder that was made for this run") >= 2, said.stderr
    assert "the trainer was not started" in said.stderr and said.stdout == ""
    assert (run / "journal.jsonl").read_text() == "\n" and not list(run.glob("checkpoints/*"))
