"""A log that is cut, renamed, removed or replaced under a live run: resumekit.process.output_log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.process import output_log
from support.commands import Kit, sidecar_of
from support.followed_logs import HASH, Lab
from support.processes import wait_until
from support.runs import events

PATTERNS = {"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)"}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(output_log, "NAME_LOOK_S", 0.0)
    made = Lab(tmp_path / "run")
    yield made
    made.trainer.close()


@pytest.fixture
def writer(lab: Lab) -> Iterator[subprocess.Popen]:
    """A process whose standard output is the log, as a trainer's is."""
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=lab.trainer, text=True, bufsize=1
    )
    lab.pid = process.pid
    yield process
    process.stdin.close()
    process.wait()


def say(writer: subprocess.Popen, lab: Lab, line: str) -> None:
    before = os.fstat(lab.trainer.fileno()).st_size
    writer.stdin.write(line)
    wait_until(lambda: os.fstat(lab.trainer.fileno()).st_size > before, "the line is written")


def test_a_log_that_is_cut_is_read_from_its_beginning(lab: Lab) -> None:
    lab.prints(b"step 1\nstep 2\n" + b"x" * 50_000 + b"\nstep 3, and half a l")
    assert lab.steps() == [1, 2]
    os.truncate(lab.paths.output_log, 0)
    assert lab.steps() == []
    lab.prints(b"step 4\nstep 5\n")
    assert lab.steps() == [4, 5]
    (notice,) = lab.log.notices()
    assert "output.log' was cut from 500" in notice and lab.log.notices() == []
    assert [line[:20] for line in lab.train_log] == [
        b"step 1", b"step 2", b"x" * 20, b"step 3, and half a l", b"step 4", b"step 5",
    ]  # fmt: skip


def test_a_cut_is_no_reason_to_be_behind(lab: Lab) -> None:
    lab.prints(b"step 1\n" * 1000)
    lab.steps()
    os.truncate(lab.paths.output_log, 0)
    now = time.monotonic()
    lab.steps()
    lab.steps()
    assert lab.log.account["caught_up_s"] >= now


def test_a_successor_reads_a_log_that_was_cut_meanwhile(lab: Lab) -> None:
    lab.prints(b"step 1\nstep 2\n")
    assert lab.steps() == [1, 2]
    account = lab.log.account
    os.truncate(lab.paths.output_log, 0)
    lab.prints(b"step 3\n")
    lab.log = lab.follower(account)
    assert lab.steps() == [3]
    assert len(lab.log.notices()) == 1
    assert lab.train_log == [b"step 1", b"step 2", b"step 3"]


def test_a_log_that_was_cut_and_has_grown_since_is_known_by_what_stood_before(lab: Lab) -> None:
    """For the follower itself, which may have been suspended, and for its successor."""
    lab.prints(b"step 1\n")
    assert lab.steps() == [1]
    account = lab.log.account
    os.truncate(lab.paths.output_log, 0)
    lab.prints(b"step 2\nstep 3\n")
    assert lab.steps() == [2, 3]
    (notice,) = lab.log.notices()
    assert "has grown since" in notice
    lab.log = lab.follower(account)
    assert lab.steps() == [2, 3]


def test_a_successor_keeps_the_lines_of_a_log_that_is_no_more(lab: Lab) -> None:
    """Else it would cut train.log to where its account ends, and read the rest again: from a file that has lost it."""
    lab.prints(b"step 1\n")
    lab.steps()
    account = lab.log.account
    lab.prints(b"step 2\nstep 3\n")
    lab.steps()
    with open(lab.paths.train_log, "ab") as file:
        file.write(b"half a l")
    os.truncate(lab.paths.output_log, 0)
    lab.prints(b"4\n")
    lab.log = lab.follower(account)
    lab.steps()
    assert lab.paths.train_log.read_bytes().endswith(b"step 3\nhalf a l\n" + HASH[:12].encode() + b" 4\n")


def test_what_a_trainer_writes_is_followed_through_a_rotation_by_rename(lab: Lab, writer: subprocess.Popen) -> None:
    """It holds a descriptor: logrotate's new file under the old name stays empty, or is of a user's making."""
    say(writer, lab, "step 1\n")
    assert lab.steps() == [1]
    os.rename(lab.paths.output_log, lab.paths.logs / "output.log.1")
    lab.paths.output_log.write_bytes(b"")
    say(writer, lab, "step 2\n")
    assert lab.steps() == [2]
    lab.paths.output_log.write_bytes(b"step 999 by a user\n")
    assert lab.steps() == []
    say(writer, lab, "step 3\n")
    assert (lab.steps(), lab.log.notices()) == ([3], [])


def test_a_successor_finds_what_the_trainer_writes_by_the_trainer_itself(lab: Lab, writer: subprocess.Popen) -> None:
    """A file that is removed or renamed has no name to be found by, but the trainer's own descriptor."""
    say(writer, lab, "step 1\n")
    assert lab.steps() == [1]
    os.unlink(lab.paths.output_log)
    lab.paths.output_log.write_bytes(b"step 999 by a user\n")
    say(writer, lab, "step 2\n")
    lab.log = lab.follower(lab.log.account)
    assert (lab.steps(), lab.log.notices()) == ([2], [])


def test_another_file_in_the_place_of_a_dead_trainers_log_is_read_from_its_beginning(lab: Lab) -> None:
    lab.prints(b"step 1\nstep 2\n")
    assert lab.steps() == [1, 2]
    new = lab.paths.logs / "new"
    new.write_bytes(b"step 3\n")
    os.replace(new, lab.paths.output_log)
    assert lab.steps() == [3]
    (notice,) = lab.log.notices()
    assert "another file took the place of 'output.log'" in notice


def test_a_fifo_in_the_place_of_the_log_stops_nothing(lab: Lab) -> None:
    lab.prints(b"step 1\n")
    assert lab.steps() == [1]
    os.unlink(lab.paths.output_log)
    os.mkfifo(lab.paths.output_log)
    lab.prints(b"step 2\n")
    assert lab.steps() == [2]
    lab.log = lab.follower(lab.log.account)
    assert lab.steps() == []


def test_a_train_log_that_is_cut_gets_no_hole(lab: Lab) -> None:
    lab.prints(b"step 1\n" * 100)
    lab.steps()
    os.truncate(lab.paths.train_log, 0)
    lab.prints(b"step 2\n")
    lab.steps()
    assert lab.paths.train_log.read_bytes() == HASH[:12].encode() + b" step 2\n"


@pytest.mark.parametrize("identity", [None, "x", [1], [1, -2], [1, True], [1.0, 2], {}])
def test_an_identity_that_is_none_counts_for_nothing(lab: Lab, identity: object) -> None:
    lab.prints(b"step 1\n")
    lab.log = lab.follower({"log_file": identity})
    assert (lab.steps(), lab.log.notices()) == ([1], [])


def test_steps_go_on_being_read_when_the_log_of_a_live_run_is_cut(kit: Kit) -> None:
    """As logrotate's copytruncate does it; the terminal goes on too, and so does the next sidecar."""
    stop = kit.folder / "stop"
    kit.config("--delay", "0.03", "--at", "60", f"wait={stop}", training={"max_steps": 80})
    process = kit.popen("run", "T-1")
    run = kit.started()
    log = run / "logs" / "output.log"

    def has(step: int) -> bool:
        return any(one["step"] >= step for one in events(run, "step"))

    wait_until(lambda: has(20), "step 20")
    os.truncate(log, 0)
    wait_until(lambda: has(40), "step 40")
    (warning,) = [one for one in events(run, "warning") if one["kind"] == "log_truncated"]
    assert "read from its beginning" in warning["message"]
    wait_until(lambda: has(60), "step 60")
    os.truncate(log, 0)
    os.kill(sidecar_of(kit, run), 9)
    stop.touch()
    out, _ = process.communicate(timeout=60)
    assert kit.status(run)["global_step"] == 80
    train_log = (run / "logs" / "train.log").read_bytes()
    assert b"\0" not in train_log and train_log.count(b" step 45 ") == 1 and b" step 80 " in train_log
    assert b"step 55 " in out and b"step 80 " in out
