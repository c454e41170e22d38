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
from support.processes import wait_until
from support.ranks import GRACE_S, are_gone, ranks_of, sections_of
from support.runs import events

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


def trains_under_torchrun(night: Night, *, is_launched: bool = False) -> Path:
    """Start a run of two ranks, by a command of the lab's or by trainer.launcher; return it when both train."""
    config = sections_of(night.once / "rank.py", is_launched=is_launched)
    config["abort"]["hang_minutes"] = RANKS_HANG_MINUTES
    night.config(**config)
    night.popen("run", "T-1")
    run = night.started()
    wait_until(lambda: len(events(run, "step")) > 20, "both ranks train")
    return run


def ended(night: Night, run: Path) -> None:
    night("abort-watch", "--stop", "T-1")
    night.state_is(run, "stopped")
    assert are_gone(*ranks_of(run).values())


@pytest.mark.long
@pytest.mark.fault("J1", by="torchrun: one rank ends all; launcher.sh: recover, once")
@pytest.mark.fault("J6", by="torchrun --standalone: a port of its own, each time")
@pytest.mark.parametrize("is_launched", [False, True])
def test_when_one_rank_is_killed_all_end_and_one_child_goes_on_whatever_port_is_taken(
    ranked: Night, is_launched: bool
) -> None:
    with socket.socket() as stale:
        with contextlib.suppress(OSError):  # else another process holds torch's usual port already
            stale.bind(("", 29500))
            stale.listen()
        run = trains_under_torchrun(ranked, is_launched=is_launched)
        ranks = ranks_of(run)
        os.kill(ranks[1], signal.SIGKILL)
        child = ranked.next_of(run)
    assert are_gone(*ranks.values()), "no process is left of the session that was"
    told = one(run, "abort")
    assert (told["cause"], one(run, "exited")["code"]) == ("died", 1)
    assert "with code 1: rank 1 was killed by signal 9" in told["evidence"]
    assert one(run, "exited")["failed_rank"] == {"rank": 1, "signal": 9}
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
@pytest.mark.fault("J1", by="training_end.py: silent for as long as a hang takes; incident.py: what is left is killed")
def test_ranks_whose_torchrun_of_the_kit_s_is_killed_are_ended_before_their_one_child_begins(ranked: Night) -> None:
    """Their lines went through torchrun; of a training that nothing is seen of any more, nothing may be left."""
    run = trains_under_torchrun(ranked, is_launched=True)
    ranks = ranks_of(run)
    os.kill(ranked.who(run, "trainer"), signal.SIGKILL)
    before = events(run, "step")[-1]["step"]

    def shows_or_is_over() -> bool:
        return ranked.child(run) is not None or any(one["step"] > before + 100 for one in events(run, "checkpoint"))

    ranked.watched(shows_or_is_over, "their checkpoints show that they train, or they are ended")
    if ranked.child(run) is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(ranks[1], signal.SIGKILL)
    ranked.watched(lambda: ranked.child(run), "it is taken up", 150)  # it is asked again after a minute
    child = ranked.next_of(run)
    assert are_gone(*ranks.values()) and one(run, "abort")["cause"] == "died"
    assert ranked.children(run) == [child]
    ended(ranked, child)


@pytest.mark.long
@pytest.mark.fault("J2", by="rules.py: hang, a step needs all ranks; stopping.py: a grace longer than torchrun's own")
@pytest.mark.parametrize("is_launched", [False, True])
def test_a_rank_that_hangs_is_found_by_the_step_that_does_not_come_and_all_are_ended(
    ranked: Night, is_launched: bool
) -> None:
    """With `abort.grace_s` above the 30 s that torchrun waits for its ranks; they are in sessions of their own."""
    run = trains_under_torchrun(ranked, is_launched=is_launched)
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
