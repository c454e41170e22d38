"""Which process is ours, and whom a signal reaches: resumekit.base.processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.base import processes
from resumekit.base.processes import ALIVE, DEAD, UNKNOWN, Identity
from support.processes import wait_until

TOKEN = "6f1ed002ab5595859014ebf0951522d9"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    """A process with a session and a run token of its own."""
    process = start("import time; print(flush=True); time.sleep(300)")
    yield process
    process.kill()
    process.communicate()


def start(code: str, token: str | None = TOKEN, **options: object) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if k != processes.TOKEN_VARIABLE}
    if token:
        env[processes.TOKEN_VARIABLE] = token
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], env=env, start_new_session=True, stdout=subprocess.PIPE, **options
    )
    process.stdout.readline()  # it has begun
    return process


def identity(process: subprocess.Popen, token: str | None = TOKEN) -> Identity:
    found = processes.identify(process.pid, token)
    assert found is not None
    return found


def test_a_live_process_is_alive_and_hears(sleeper: subprocess.Popen) -> None:
    known = identity(sleeper)
    assert processes.probe(known) == ALIVE
    assert processes.send(known, signal.SIGTERM)
    assert processes.wait_for_end(known, 30)
    assert sleeper.wait() == -signal.SIGTERM


@pytest.mark.fault("K11", by="processes: start time, boot id, host, token")
@pytest.mark.parametrize(
    ("forged", "verdict"),
    [
        ({"start_ticks": 1}, DEAD),  # the pid was given to another
        ({"boot_id": "another boot"}, DEAD),
        ({"host": "elsewhere", "boot_id": "another boot"}, UNKNOWN),
        ({"token": "0" * 32}, DEAD),  # the same pid in the same clock tick
    ],
)
def test_another_process_is_never_signalled(sleeper: subprocess.Popen, forged: dict, verdict: str) -> None:
    other = identity(sleeper)._replace(**forged)
    assert processes.probe(other) == verdict
    assert not processes.send(other, signal.SIGKILL)
    assert processes.kill_session(other, 0.1) == 0
    assert sleeper.poll() is None


def test_a_host_that_was_renamed_is_the_same_kernel(sleeper: subprocess.Popen, monkeypatch: pytest.MonkeyPatch) -> None:
    known = identity(sleeper)
    monkeypatch.setattr(processes, "host_name", lambda: "renamed")
    assert processes.probe(known) == ALIVE and processes.session_members(known)
    monkeypatch.setattr(processes, "boot_id", lambda: "unknown")  # it cannot be read: its equality proves nothing
    assert processes.probe(known._replace(boot_id="unknown")) == UNKNOWN
    monkeypatch.undo()
    assert processes.send(known._replace(host="before"), signal.SIGTERM) and sleeper.wait() == -signal.SIGTERM


@pytest.mark.fault("K11", by="processes: unknown is not ours")
def test_a_process_without_any_token_is_unknown_and_never_signalled() -> None:
    """A trainer that has written its title over its environment is not dead, and not for sure ours."""
    process = start("import time; print(flush=True); time.sleep(300)", token=None)
    try:
        assert processes.probe(identity(process)) == UNKNOWN
        assert not processes.send(identity(process), signal.SIGKILL)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_process_in_the_middle_of_its_exec_is_looked_at_again(
    sleeper: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is empty for a moment: that is no reason to take it for another process."""
    known, empty = identity(sleeper), iter([True, True])
    read = open

    def open_now(path: str, *args: str, **more: str) -> object:
        return read("/dev/null" if str(path).endswith("/environ") and next(empty, False) else path, *args, **more)

    monkeypatch.setattr("builtins.open", open_now)
    assert processes.probe(known) == ALIVE


def test_a_zombie_is_dead() -> None:
    process = start("import time; print(flush=True); time.sleep(300)")
    known = identity(process)
    os.kill(process.pid, signal.SIGKILL)  # and it is not reaped
    wait_until(lambda: processes.probe(known) == DEAD, "the zombie counts as dead")
    os.kill(process.pid, 0)  # which `kill -0` does not see
    # A launcher has no token to be known by; what ends may have lost its environment a little before it is a zombie.
    wait_until(lambda: processes.probe(known._replace(token=None)) == DEAD, "so does one without a token")
    assert processes.wait_for_end(known, 0.0)
    process.communicate()


def test_waiting_for_an_end_gives_up_and_wakes_up(sleeper: subprocess.Popen) -> None:
    known = identity(sleeper)
    assert not processes.wait_for_end(known, 0.05)
    with processes.Alarm(known) as alarm:
        sleeper.kill()
        started = time.monotonic()
        alarm.wait(60)
        assert time.monotonic() - started < 50
        started = time.monotonic()
        alarm.wait(0.2)  # it rings once: a loop that waits on it does not spin
        assert time.monotonic() - started >= 0.19


def test_a_session_is_killed_with_all_that_lives_in_it() -> None:
    """Children of a killed trainer leave its tree, not its session; one has no token, one forks on.

    A rank of torchrun opens a session of its own and carries the token; one that has put it off is not the run's.
    """
    code = (
        "import os, subprocess, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '300'], env={})\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; while :; do sleep 0.01; done'])\n"
        "time.sleep(0.05)\n"  # a start is told in hundredths of a second
        "subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "subprocess.Popen(['sleep', '300'], start_new_session=True, env={})\n"
        "print(flush=True)\n"
        "time.sleep(300)\n"
    )
    process = start(code)
    known = identity(process)
    members = wait_until(lambda: len(m := processes.session_members(known)) >= 5 and m, "all its children")
    away = [pid for pid in children(process.pid) if os.getsid(pid) != process.pid]
    process.kill()
    process.wait()
    assert processes.kill_session(known) == 0
    wait_until(lambda: all(processes.probe(m) == DEAD for m in members), "the session is empty")
    assert len(away) == 2
    os.kill(away[1], signal.SIGKILL)  # it had left on purpose, and still lives


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.fault("K11", by="processes: never the own process")
def test_a_process_does_not_signal_itself() -> None:
    own = processes.identify(os.getpid())
    assert own is not None
    assert not processes.send(own, signal.SIGTERM)


@pytest.mark.fault("K11", by="processes: a pid is above 1")
@pytest.mark.parametrize(
    "fields",
    [
        None, [], "1", {}, {"host": "h", "boot_id": "b", "pid": "7", "start_ticks": 1},
        {"host": "h", "boot_id": "b", "pid": True, "start_ticks": 1},
        {"host": "h", "boot_id": "b", "pid": 1, "start_ticks": 1},
        {"host": "h", "boot_id": "b", "pid": -7, "start_ticks": 1},
        {"host": "h", "boot_id": "b", "pid": 10**30, "start_ticks": 1},
        {"host": 1, "boot_id": "b", "pid": 7, "start_ticks": 1},
        {"host": "h", "boot_id": "b", "pid": 7, "start_ticks": 1.5},
        {"host": "h", "boot_id": "b", "pid": 7, "start_ticks": 1, "token": 5},
    ],
)  # fmt: skip
def test_an_identity_of_the_wrong_types_is_none(fields: object) -> None:
    assert processes.identity_from(fields) is None


def test_an_identity_goes_through_json(sleeper: subprocess.Popen) -> None:
    known = identity(sleeper)
    assert processes.identity_from(known.as_fields()) == known


def test_a_kernel_without_pidfds_will_do(sleeper: subprocess.Popen, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    known = identity(sleeper)
    assert not processes.send(known._replace(start_ticks=1), signal.SIGTERM)
    assert processes.send(known, signal.SIGTERM)
    sleeper.wait()
    assert processes.wait_for_end(known, 30)


def test_without_an_identity_nothing_is_known() -> None:
    assert processes.probe(None) == UNKNOWN


@pytest.mark.fault("G14", by="processes.py: _is_hidden")
def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen) -> None:
    """As under hidepid: there is nothing of it in /proc, and a signal to it is refused."""
    known = identity(sleeper)
    monkeypatch.setattr(processes, "_stat", lambda _pid: None)
    assert processes.probe(known) == UNKNOWN

    def refuse(_pid: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(processes.os, "kill", refuse)
    assert processes.probe(known) == UNKNOWN
    monkeypatch.undo()
    sleeper.kill()
    sleeper.wait()
    assert processes.probe(known) == DEAD


@pytest.mark.parametrize("token", [None, ""])
def test_a_trainer_without_a_token_is_never_alive(tmp_path: Path, token: str | None) -> None:
    one = processes.identify(os.getpid(), token)
    assert one is not None
    log = tmp_path / "output.log"
    log.touch()
    trainer = processes.trainer_of({"trainer": one.as_fields()}, log)
    assert trainer is not None and processes.probe(trainer) != ALIVE and not processes.session_members(trainer)
    assert not processes.session_members(one), "an empty token is none"
    known = processes.trainer_of({"trainer": one._replace(token="6f1e").as_fields()}, log)
    assert known is not None and known.token == "6f1e"
    assert processes.trainer_of(None, log) is processes.trainer_of({"trainer": 4}, log) is None


def test_a_process_that_a_journal_calls_the_shim_ties_nothing_to_the_run(tmp_path: Path) -> None:
    """A journal of another user's may name a shell of the caller's as the shim, and an editor in it as the trainer."""
    sleeper = subprocess.Popen(["env", "-i", "sleep", "60"])
    try:
        one = wait_until(lambda: processes.identify(sleeper.pid, "6f1e"), "it runs")
        parent = processes.identify(os.getpid())
        launched = {"trainer": one.as_fields(), "shim": parent.as_fields()}
        wait_until(lambda: not Path(f"/proc/{sleeper.pid}/environ").read_bytes(), "its environment is empty")
        assert processes.probe(processes.trainer_of(launched, tmp_path / "output.log")) == UNKNOWN
        assert processes.session_members(processes.trainer_of(launched, tmp_path / "output.log")) == []
    finally:
        sleeper.kill()
        sleeper.wait()
