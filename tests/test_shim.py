"""The process that starts a trainer, waits for it and writes exit.json: resumekit.process.shim."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from resumekit.base import ownership, processes
from resumekit.base.paths import RunPaths
from resumekit.process import shim
from support import another_user
from support.places import LIB
from support.processes import wait_until
from support.runs import events
from support.schemas import assert_valid

SHIM = LIB / "resumekit" / "process" / "shim.py"


def argv(run_dir: Path, *command: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(SHIM), str(run_dir), str(os.getpid()), "--", *command]


def start(run_dir: Path, *command: str, **options: object) -> subprocess.Popen:
    env = {**os.environ, "RESUMEKIT_RUN_ID": "EXP-01_x", "RESUMEKIT_RUN_TOKEN": "6f1ed002"}
    return subprocess.Popen(argv(run_dir, *command), env=env, **{"stderr": subprocess.PIPE, **options})


def end_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "exit.json").read_text())


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("kill -9 $$", 137, 9),
        ("kill -SEGV $$", 139, 11),
        ("kill -TERM $$", 143, 15),
        ("exit 143", 143, None),
    ],
)
@pytest.mark.fault("A8", by="shim.py: the signal in exit.json")
def test_the_end_is_passed_on_and_written_down(
    weird_tmp_path: Path, script: str, code: int, number: int | None
) -> None:
    shim = start(weird_tmp_path, "sh", "-c", script)
    shim.communicate()
    end = end_of(weird_tmp_path)
    assert (shim.returncode, end["code"], end["signal"]) == (code, code, number)
    assert end["elapsed_s"] >= 0 and end["pid"] > 1
    (launched,) = events(weird_tmp_path, "launched")
    assert_valid("event", launched)
    assert launched["trainer"]["pid"] == end["pid"] and launched["trainer"]["token"] == "6f1ed002"
    assert sorted(os.listdir(weird_tmp_path)) == ["exit.json", "journal.jsonl", "trainer.lock"]


@pytest.mark.parametrize(("python", "code"), [("sys.exit(256)", 0), ("sys.exit(-1)", 255), ("raise OSError", 1)])
@pytest.mark.fault("A10", by="shim.py: the code as it came; status.py judges by the last step")
def test_a_python_trainer_s_code_is_what_the_system_makes_of_it(tmp_path: Path, python: str, code: int) -> None:
    shim = start(tmp_path, sys.executable, "-S", "-c", f"import sys; {python}")
    shim.communicate()
    assert (shim.returncode, end_of(tmp_path)["code"]) == (code, code)


@pytest.mark.parametrize("program", ["no-such-program", "./not-executable", "/", ""])
def test_a_program_that_cannot_be_started_is_127_and_named(tmp_path: Path, program: str) -> None:
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    shim = start(tmp_path, program, cwd=tmp_path)
    _, said = shim.communicate()
    assert (shim.returncode, end_of(tmp_path)["code"]) == (127, 127)
    assert said.decode().startswith("resumekit: the trainer could not be started: ")
    assert said.decode().endswith(f": '{program}'\n") and said.count(b"\n") == 1


def test_the_trainer_has_a_session_of_its_own_and_plain_signals(tmp_path: Path) -> None:
    """A background job of Bash ignores INT, Python ignores PIPE: a trainer must not inherit that."""
    script = "grep SigIgn /proc/self/status; ps -o sid= -p $$; echo $$"
    ignored, session, pid = subprocess.run(
        ["sh", "-c", 'trap "" INT QUIT HUP TERM; exec "$@"', "sh", *argv(tmp_path, "sh", "-c", script)],
        env={**os.environ, "RESUMEKIT_RUN_ID": "r", "RESUMEKIT_RUN_TOKEN": "t"},
        stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    named = (1 << 31) - 1  # signals 1 to 31; 32 and on are the C library's, and what started us may ignore them
    assert int(ignored.split()[1], 16) & named == 0
    assert session.strip() == pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_nothing_but_kill_ends_the_shim(tmp_path: Path, number: int) -> None:
    shim = start(tmp_path, "sh", "-c", f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.01; done; exit 5")
    wait_until(lambda: events(tmp_path, "launched"), "the trainer was launched")
    shim.send_signal(number)
    (tmp_path / "go").touch()
    shim.communicate()
    assert end_of(tmp_path)["code"] == shim.returncode == 5


def test_the_launch_is_on_disk_before_the_trainer_begins(tmp_path: Path) -> None:
    shim = start(tmp_path, "cat", str(tmp_path / "journal.jsonl"), stdout=subprocess.PIPE)
    seen, _ = shim.communicate()
    assert json.loads(seen)["event"] == "launched"


@pytest.mark.parametrize(("claimed_by", "code"), [("EXP-01_x", 0), ("EXP-01_y", 6), (None, 6)])
def test_a_continuation_whose_head_was_taken_over_is_not_started(
    tmp_path: Path, claimed_by: str | None, code: int
) -> None:
    """A launcher killed before its trainer started counts as dead; what it left must not start beside a second one."""
    head, run_dir = tmp_path / "head", tmp_path / "run"
    (head / "claims").mkdir(parents=True)
    run_dir.mkdir()
    if claimed_by:
        (head / "claims" / "continued.json").write_text(json.dumps({"run_id": claimed_by}))
    env = {**os.environ, "RESUMEKIT_RUN_ID": "EXP-01_x", "RESUMEKIT_RUN_TOKEN": "6f1ed002"}
    line = [sys.executable, "-I", "-S", SHIM, run_dir, str(os.getpid()), head, "--", "touch", run_dir / "trained"]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == code
    assert (run_dir / "trained").exists() == (run_dir / "journal.jsonl").exists() == (code == 0)
    assert ("taken over by another continuation" in done.stderr) == (code == 6)


def test_the_identity_in_the_journal_is_the_trainer_s(tmp_path: Path) -> None:
    shim = start(tmp_path, "sleep", "300")
    (launched,) = wait_until(lambda: events(tmp_path, "launched"), "the trainer was launched")
    trainer = processes.identity_from(launched["trainer"])
    assert processes.probe(trainer) == processes.ALIVE
    assert processes.probe(processes.identity_from(launched["shim"])) == processes.ALIVE
    assert processes.probe(processes.identity_from(launched["launcher"])) == processes.ALIVE
    assert processes.send(trainer, signal.SIGKILL)
    shim.communicate()
    assert processes.probe(trainer) == processes.DEAD


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system of one's own needs root or a user namespace")
def test_a_disk_that_fills_up_does_not_hide_the_end(tmp_path: Path) -> None:
    """The space for exit.json is set aside at the start."""
    script = 'mount -t tmpfs -o size=64k none "$0" && "$@"; cat "$0/exit.json"'
    fill = f'cat /dev/zero >"{tmp_path}/ballast" 2>/dev/null; exit 7'
    wrapped = ["unshare", "-m", "sh", "-c", script, str(tmp_path), *argv(tmp_path, "sh", "-c", fill)]
    env = {**os.environ, "RESUMEKIT_RUN_ID": "r", "RESUMEKIT_RUN_TOKEN": "t"}
    assert json.loads(subprocess.run(wrapped, stdout=subprocess.PIPE, check=True, env=env).stdout)["code"] == 7


@pytest.mark.fault("A16", by="shim.py: the limit named, a code of its own")
def test_no_process_left_is_said() -> None:
    """`ulimit -u 0`; where root runs the tests, for another user: root is above the limit."""
    is_root = os.geteuid() == 0
    if is_root and (reason := another_user.why_not()):
        pytest.skip(reason)
    # Set by the user it is for: on the way from root to another user it would end setpriv.
    limited = [*(another_user.SETPRIV if is_root else ()), "bash", "-c", 'ulimit -u 0; exec "$@"', "bash"]
    env = {**os.environ, "RESUMEKIT_RUN_ID": "EXP-01_x", "RESUMEKIT_RUN_TOKEN": "6f1ed002"}
    with another_user.folder() if is_root else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        python = another_user.python() if is_root else sys.executable
        line = [*limited, str(python), *argv(folder, "touch", str(folder / "trained"))[1:]]
        done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
        end = end_of(folder)
        assert not (folder / "trained").exists() and not (folder / "journal.jsonl").exists()
    assert "no process for the trainer: Resource temporarily unavailable (see 'ulimit -u'" in done.stderr
    assert (done.returncode, end["code"], end["pid"]) == (1, 1, None)


@pytest.mark.fault("A2", by="shim.py: blocked until the exec, not ignored")
def test_a_signal_between_the_launched_event_and_the_exec_is_not_lost(tmp_path: Path) -> None:
    """Thirty stops as early as a stop can come: the pid is sent a TERM as soon as it stands in the journal."""
    ends = []
    for number in range(30):
        run = tmp_path / str(number)
        run.mkdir()
        shim = start(run, "sleep", "5")
        while b"launched" not in (content := _journal(run)):
            pass
        os.kill(json.loads(content)["trainer"]["pid"], signal.SIGTERM)
        shim.communicate()
        ends.append(end_of(run)["signal"])
    assert ends == [signal.SIGTERM] * 30


def _journal(run: Path) -> bytes:
    try:
        content = (run / "journal.jsonl").read_bytes()
    except FileNotFoundError:
        return b""
    return content if content.endswith(b"}\n") else b""


def said_of_log(run_dir: Path, log: Path, command: str = "echo trained; echo aside >&2") -> subprocess.CompletedProcess:
    env = {**os.environ, "RESUMEKIT_RUN_ID": "r", "RESUMEKIT_RUN_TOKEN": "t", "RESUMEKIT_OUTPUT_LOG": str(log)}
    return subprocess.run(argv(run_dir, "sh", "-c", command), env=env, capture_output=True, text=True, timeout=60)


def test_the_trainer_speaks_into_the_log_that_is_named_and_knows_nothing_of_it(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_text("before\n")
    done = said_of_log(tmp_path, log, 'echo "${RESUMEKIT_OUTPUT_LOG-none}"; echo aside >&2; cat /proc/self/fdinfo/1')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before, name, aside, _, flags, *_ = log.read_text().splitlines()
    assert (before, name, aside) == ("before", "none", "aside")
    assert int(flags.split()[1], 8) & os.O_NONBLOCK == 0 and int(flags.split()[1], 8) & os.O_APPEND


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_the_log_is_both_outputs_where_the_launcher_has_none(tmp_path: Path, closed: str) -> None:
    log = tmp_path / "output.log"
    log.touch()
    env = {**os.environ, "RESUMEKIT_RUN_ID": "r", "RESUMEKIT_RUN_TOKEN": "t", "RESUMEKIT_OUTPUT_LOG": str(log)}
    line = ["sh", "-c", f'"$@" {closed}', "-", *argv(tmp_path, "sh", "-c", "echo trained; echo aside >&2")]
    assert subprocess.run(line, env=env, stdin=subprocess.DEVNULL, timeout=60).returncode == 0
    assert log.read_text() == "trained\naside\n"


def a_link(log: Path) -> None:
    log.symlink_to(log.with_name("private"))


def a_hard_link(log: Path) -> None:
    os.link(log.with_name("private"), log)


def anothers(log: Path) -> None:
    if another_user.why_not():
        pytest.skip(str(another_user.why_not()))
    log.touch()
    os.chown(log, another_user.UID, another_user.GID)


@pytest.mark.fault("K4", by="shim.py: the log is opened without following a link")
@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (a_link, "it is a link"),
        (a_hard_link, "has another name"),
        (os.mkfifo, "No such device"),
        (os.mkdir, "directory"),
        (anothers, "belongs to another user"),
        (lambda log: None, "No such file"),
    ],
    ids=["a link", "a hard link", "a FIFO", "a folder", "another user's", "nothing"],
)
def test_a_log_that_is_not_the_runs_own_takes_no_output_and_no_trainer_is_started(
    tmp_path: Path, plant: Callable[[Path], object], says: str
) -> None:
    log, private = tmp_path / "output.log", tmp_path / "private"
    private.write_text("precious")
    plant(log)
    done = said_of_log(tmp_path, log)
    assert done.returncode == 127 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"resumekit: '{log}' cannot take the trainer's output") and says in done.stderr
    assert private.read_text() == "precious" and not (tmp_path / "journal.jsonl").exists()


def exchanged_for_anothers(run: Path) -> Path:
    """Rename a run's folder away, and put a copy in its place; returns the run's own."""
    aside = run.with_name("aside")
    run.rename(aside)
    run.mkdir()
    (run / "output.log").touch()
    return aside


def said_of_made(run: Path, made: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "RESUMEKIT_RUN_ID": "r", "RESUMEKIT_RUN_TOKEN": "t"}
    env["RESUMEKIT_OUTPUT_LOG"] = str(run / "output.log")
    line = [sys.executable, "-I", "-S", SHIM, run, str(os.getpid()), made, "--", "touch", run / "trained"]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.fault("K4", by="shim.py: the folder that the launcher has made, or none")
def test_in_a_folder_that_was_exchanged_no_trainer_is_started(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "output.log").touch()
    made = str(ownership.made_folder_of(run.stat()))
    assert said_of_made(run, made).returncode == 0 and (run / "trained").exists()
    (run / "trained").unlink()
    aside = exchanged_for_anothers(run)
    done = said_of_made(run, made)
    assert done.returncode == 127 and done.stderr == (
        f"resumekit: '{run}' is not the folder that was made for this run: it was moved, removed or exchanged; "
        "the trainer was not started\n"
    )
    assert os.listdir(run) == ["output.log"] and not (run / "output.log").read_bytes()
    assert not (aside / "trained").exists()


def test_a_folder_that_is_exchanged_right_before_the_exec_gets_no_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    made = ownership.made_folder_of(run.stat())
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "r")
    monkeypatch.setenv("RESUMEKIT_RUN_TOKEN", "t")
    pid = os.fork()
    if pid == 0:
        shim.session_lock.take = lambda _path: exchanged_for_anothers(run)
        shim._become_trainer(RunPaths(run), os.getppid(), made, "", ["touch", str(run / "trained")], set())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127
    assert not (run / "trained").exists()


def test_a_trainer_that_is_not_seen_in_proc_is_said_not_to_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESUMEKIT_RUN_ID", "r")
    monkeypatch.setenv("RESUMEKIT_RUN_TOKEN", "t")
    monkeypatch.setattr(shim.processes, "identify", lambda *_: None)
    pid = os.fork()
    if pid == 0:
        shim._become_trainer(RunPaths(tmp_path), os.getppid(), None, "", ["touch", str(tmp_path / "trained")], set())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127
    assert capfd.readouterr().err == (
        "resumekit: the trainer could not be started: its process is not seen in /proc: 'touch'\n"
    )
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
def test_the_owner_of_a_runs_folder_counts_only_where_it_is_the_one_that_was_made(tmp_path: Path) -> None:
    """A drive may show every file as one user's; but who owns an exchanged folder owns the log in it too."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "output.log").touch()
    made = str(ownership.made_folder_of(run.stat()))
    for path in (run, run / "output.log"):
        os.chown(path, 65534, 65534)
    assert said_of_made(run, made).returncode == 0
    assert "belongs to another user" in said_of_made(run, "").stderr
