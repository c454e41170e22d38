"""Section J of the catalogue, several ranks: torchrun as a run's trainer, two processes of gloo on one machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.oracle import Oracle
from support.nights import HANG_MINUTES, Night, one, proven_steps, record
from support.places import TOY
from support.processes import wait_until
from support.runs import events

# Each step is one sum over both ranks; rank 0 tells it and saves. Where there is a file `hang` beside the script, rank
# 1 takes it away and sleeps for ever, and no TERM ends it, as none ends a rank whose interpreter waits for its device.
RANK = """
import datetime, os, signal, sys, time
from pathlib import Path

sys.path.append({toys!r})
import toy_trainer
import torch
import torch.distributed as dist

torch.set_num_threads(1)
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
begun = toy_trainer.read_step(Path(sys.argv[4])) if "--resume" in sys.argv else 0
dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
rank = dist.get_rank()
print(f"rank {{rank}} is {{os.getpid()}}\\n", end="", flush=True)  # in one piece: two of them print at once
hang = Path(__file__).with_name("hang")
for step in range(begun + 1, steps + 1):
    if rank == 1 and hang.exists():
        hang.unlink()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(10**6)
    both = torch.ones(1)
    dist.all_reduce(both)
    assert both.item() == 2.0
    if rank == 0:
        print("step", step, "loss", 1 / step, flush=True)
        if step % 10 == 0:
            toy_trainer.write_checkpoint(folder / f"hrm_arc_step_{{step}}.pt", step)
    time.sleep(0.02)
dist.destroy_process_group()
"""

# torchrun ends its ranks with TERM, and with KILL 30 s later: who gives it less leaves them behind.
GRACE_S = 45
RANKS_HANG_MINUTES = 4 * HANG_MINUTES


@pytest.fixture
def ranked(weird_tmp_path: Path) -> Iterator[Night]:
    """As `night`; to its oracle each rank is a trainer, and those of one run at once are no fault here."""
    night = Night(weird_tmp_path)
    try:
        with Oracle(night.runs, lambda: night("run", "T-1", "--dry-run", code=None)) as oracle:
            yield night

            def faults() -> list[str]:
                return [fault for fault in oracle.faults() if not is_one_run_s(fault)]

            deadline_s = time.monotonic() + 10
            while faults() and time.monotonic() < deadline_s:
                time.sleep(0.2)
            assert not faults() and oracle.looks
    finally:
        night.clean_up()


def is_one_run_s(fault: str) -> bool:
    """Whether the oracle says of one run alone that it has two trainers."""
    return fault.startswith("O5: two trainers at once") and len(set(re.findall(r"'(T-1_[^']+)'", fault))) == 1


def trains_under_torchrun(night: Night) -> Path:
    """Start a run of two ranks; return it when both train."""
    script = night.once / "rank.py"
    script.write_text(RANK.format(toys=str(TOY.parent)))
    start = ["{python}", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    night.config(
        trainer={"command": [*start, "{checkpoints_dir}", "{training.max_steps}"],
                 "resume_args": ["--resume", "{checkpoint}"]},
        training={"max_steps": 100_000}, abort={"hang_minutes": RANKS_HANG_MINUTES, "grace_s": GRACE_S},
    )  # fmt: skip
    night.popen("run", "T-1")
    run = night.started()
    wait_until(lambda: len(events(run, "step")) > 20, "both ranks train")
    return run


def ranks_of(run: Path) -> dict[int, int]:
    """Return rank -> pid, as each has said it."""
    said = re.findall(rb"rank (\d) is (\d+)", (run / "logs" / "output.log").read_bytes())
    return {int(rank): int(pid) for rank, pid in said}


def are_gone(*pids: int) -> bool:
    def is_gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except OSError:
            return True

    return all(map(is_gone, pids))


def ended(night: Night, run: Path) -> None:
    night("abort-watch", "--stop", "T-1")
    night.state_is(run, "stopped")
    assert are_gone(*ranks_of(run).values())


@pytest.mark.long
@pytest.mark.fault("J1", by="torchrun: one rank ends all; launcher.sh: recover, once")
@pytest.mark.fault("J6", by="torchrun --standalone: a port of its own, each time")
def test_when_one_rank_is_killed_all_end_and_one_child_goes_on_whatever_port_is_taken(ranked: Night) -> None:
    with socket.socket() as stale:
        with contextlib.suppress(OSError):  # else another process holds torch's usual port already
            stale.bind(("", 29500))
            stale.listen()
        run = trains_under_torchrun(ranked)
        ranks = ranks_of(run)
        os.kill(ranks[1], signal.SIGKILL)
        child = ranked.next_of(run)
    assert are_gone(*ranks.values()), "no process is left of the session that was"
    told = one(run, "abort")
    assert (told["cause"], one(run, "exited")["code"]) == ("died", 1)
    assert any("Signal 9 (SIGKILL)" in line for line in told["log_lines"]), "torchrun names it"
    assert record(child)["parent_step"] in range(10, 1000, 10) and sorted(ranks_of(child)) == [0, 1]
    ranked.watch(code=0)
    assert ranked.children(run) == [child]
    ended(ranked, child)


@pytest.mark.long
@pytest.mark.fault("J1", by="training_end.py: what has shown the steps lives on; launcher.sh: recover, when it ends")
def test_when_torchrun_itself_is_killed_its_ranks_train_on_and_one_child_takes_up_their_end(ranked: Night) -> None:
    """Each rank has a session of its own; nothing starts beside them, and none is left beside the child."""
    run = trains_under_torchrun(ranked)
    ranks = ranks_of(run)
    os.kill(ranked.who(run, "trainer"), signal.SIGKILL)
    before = events(run, "step")[-1]["step"]
    ranked.watched(lambda: events(run, "step")[-1]["step"] > before + 100, "the ranks train on")
    assert ranked.state(run) == "running" and ranked.run_dirs() == [run] and not events(run, "abort")
    assert "is alive" in ranked("resume", "T-1", code=6).stderr
    os.kill(ranks[1], signal.SIGKILL)
    child = ranked.next_of(run)
    assert are_gone(*ranks.values()) and one(run, "abort")["cause"] == "died"
    assert ranked.children(run) == [child]
    ended(ranked, child)


@pytest.mark.long
@pytest.mark.fault("J2", by="rules.py: hang, a step needs all ranks; stopping.py: a grace longer than torchrun's own")
def test_a_rank_that_hangs_is_found_by_the_step_that_does_not_come_and_all_are_ended(ranked: Night) -> None:
    """With `abort.grace_s` above the 30 s that torchrun waits for its ranks; they are in sessions of their own."""
    run = trains_under_torchrun(ranked)
    ranks = ranks_of(run)
    (ranked.once / "hang").touch()
    ranked.watched(lambda: events(run, "abort"), "it is stopped")
    assert one(run, "abort")["cause"] == "hang"
    child = ranked.next_of(run, deadline_s=2 * GRACE_S)
    assert are_gone(*ranks.values()), "the one that hears no TERM too"
    assert ranked.children(run) == [child]
    ended(ranked, child)


@pytest.mark.long
@pytest.mark.fault("J2", by="liveness.py: suspended_of_trainer; observe.py: no age of a suspended trainer counts")
def test_one_rank_that_is_suspended_is_named_and_all_train_on_when_it_is_let_go(ranked: Night) -> None:
    """A user's debugger holds it: the others wait for it, and no rank is ill."""
    run = trains_under_torchrun(ranked)
    ranks = ranks_of(run)
    os.kill(ranks[1], signal.SIGSTOP)
    said = ranked.watched_beyond_a_hang(RANKS_HANG_MINUTES)
    assert all(f"kill -CONT {ranks[1]} lets it go on" in line for line in said)
    before = events(run, "step")[-1]["step"]
    os.kill(ranks[1], signal.SIGCONT)
    ranked.watched(lambda: events(run, "step")[-1]["step"] > before + 20, "both train on")
    assert not events(run, "abort") and ranked.run_dirs() == [run] and ranks_of(run) == ranks
    ended(ranked, run)


# What a lab submits with --signal=B:USR1@60: Bash hears it while it waits, and asks run.sh to save and end.
JOB = """
trap 'kill -TERM "$kit"' USR1
"$@" &
kit=$!
code=0
wait "$kit" || code=$?
while kill -0 "$kit" 2>/dev/null; do
  code=0
  wait "$kit" || code=$?
done
exit "$code"
"""


@pytest.mark.fault("J7", by="a job script that passes USR1 on as TERM; launcher.sh: the trainer's own code 143")
def test_a_job_that_is_told_usr1_saves_ends_with_143_and_goes_on_where_it_was_when_it_is_requeued(
    warm_night: Night,
) -> None:
    warm_night.config("--delay", "0.01", "--every", "1000", training={"max_steps": 60})
    job = ["bash", "-c", JOB, "bash", *warm_night.argv("run", "T-1")]
    first_time = subprocess.Popen(job, env=warm_night.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 5, "some steps")
    asked_s = time.monotonic()
    first_time.send_signal(signal.SIGUSR1)
    assert first_time.wait(60) == 143
    assert time.monotonic() - asked_s < 20, "in less than the grace"
    last = events(run, "step")[-1]["step"]
    assert proven_steps(run) == [last] and not events(run, "abort")
    warm_night.watch(code=0)
    assert warm_night.run_dirs() == [run], "the scheduler alone starts it again"
    assert subprocess.run(job, env=warm_night.env, capture_output=True, check=False, timeout=60).returncode == 0
    again = warm_night.run_dirs()[-1]
    assert (record(again)["parent_step"], warm_night.state(again)) == (last, "finished")
    assert [event["step"] for event in events(again, "step")] == list(range(last + 1, 61))


@pytest.mark.fault("J7", by="launcher.sh: kit_on_signal; stopping.py; status.py: preempted")
def test_a_launcher_that_is_told_usr1_has_its_trainer_saved_and_is_preempted(warm_night: Night) -> None:
    """`--signal=B:USR1@60` and `exec run.sh`: nothing is lost, nothing takes it up, the requeued job goes on."""
    warm_night.config("--delay", "0.01", "--every", "1000", training={"max_steps": 60})
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 5, "some steps")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    last = events(run, "step")[-1]["step"]
    assert (process.returncode, proven_steps(run)) == (143, [last])
    assert (warm_night.state(run), warm_night.status(run)["stopped_by"]) == ("preempted", "USR1")
    warm_night.watch(code=0)
    assert not events(run, "abort") and warm_night.run_dirs() == [run]
    warm_night("run", "T-1")
    assert events(warm_night.run_dirs()[-1], "step")[0]["step"] == last + 1
