"""Section E of the catalogue, slow, stuck, out of memory: whole nights under launcher, watcher and oracle."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import processes
from resumekit.process import stopping
from support.commands import Kit
from support.nights import HANG_MINUTES, Night, one, proven_steps, record
from support.places import TOY
from support.processes import wait_until
from support.runs import events

SHORT = {"hang_minutes": HANG_MINUTES, "eval_minutes": HANG_MINUTES, "grace_s": 2}


def taken_up(night: Night, *at: str, **sections: Any) -> tuple[Path, Path]:
    """Start a run that falls sick, let the watcher pass until it is taken up; returns (the run, its successor)."""
    night.config("--delay", "0.01", *at, **{"abort": SHORT, "training": {"max_steps": 100_000}, **sections})
    run = night.start(steps=12)
    child = night.watched(lambda: night.child(run), "it is taken up")
    wait_until(lambda: events(child, "step"), "its successor trains")
    return run, child


# A trainer that tells, at once, what it did in the last eighteen minutes; its successor trains to the end.
REMEMBERS = """
import json, os, sys, time
from pathlib import Path

sys.path.append({toys!r})
import toy_trainer

folder, steps, once = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
begun = toy_trainer.read_step(Path(sys.argv[5])) if "--resume" in sys.argv else 0
try:
    (once / "remembered").touch(exist_ok=False)
except FileExistsError:
    for step in range(begun + 1, steps + 1):
        print(f"step {{step}} loss 0.5", flush=True)
    sys.exit()
at_s = [float(second) for second in range(1, 401)] + [400 + 2.5 * second for second in range(1, 265)]
now_s = time.monotonic()
run_id = os.environ["RESUMEKIT_RUN_ID"]
for step in (600, 650):
    toy_trainer.write_checkpoint(folder / f"hrm_arc_step_{{step}}.pt", step)
with open(os.path.join(os.environ["RESUMEKIT_RUN_DIR"], "journal.jsonl"), "a") as file:
    for step, second in enumerate(at_s, 1):
        told = {{"event": "step", "at": "2026-11-22T17:35:51.123456Z", "mono_s": now_s - at_s[-1] + second,
                "run_id": run_id, "step": step, "loss": 0.5 + 0.01 * (step % 7)}}
        file.write(chr(10) + json.dumps(told) + chr(10))
time.sleep(10**6)
"""


@pytest.mark.long
@pytest.mark.fault("E1", by="rules.py: throughput; restart_point.py: the newest, at its own rate")
def test_a_speed_of_four_tenths_for_eleven_minutes_is_stopped_and_taken_up_at_its_own_rate(night: Night) -> None:
    """The test does not wait for eleven minutes: the journal says on the clock of this boot that they have gone by."""
    if time.monotonic() < 1100:
        pytest.skip("the machine was started less than nineteen minutes ago: its clock has no such past")
    script = night.once / "trainer.py"
    script.write_text(REMEMBERS.format(toys=str(TOY.parent)))
    words = [str(script), "{checkpoints_dir}", "{training.max_steps}", str(night.once)]
    night.config(
        trainer={"command": ["{python}", *words], "resume_args": ["--resume", "{checkpoint}"]},
        training={"max_steps": 700}, abort={"grace_s": 2},
    )  # fmt: skip
    process = night.popen("run", "T-1")
    run = night.started()
    wait_until(lambda: len(events(run, "step")) == 664, "its last eighteen minutes")
    wait_until(lambda: proven_steps(run) == [600, 650], "its checkpoints are attested")
    night.watched(lambda: events(run, "abort"), "it is stopped")
    told = one(run, "abort")
    assert told["cause"] == "throughput" and "for 10 min of training, usual are 1.0" in told["evidence"], told
    child = night.next_of(run)
    assert (record(child)["parent_step"], record(child)["recovery"]["lr_factor"]) == (650, 1.0)
    process.communicate(timeout=60)
    assert (process.returncode, night.state(run), night.state(child)) == (0, "aborted", "finished")


@pytest.mark.long
@pytest.mark.fault("E4", by="liveness.py: suspended_of_trainer; observe.py: no age of a suspended trainer counts")
def test_a_trainer_in_state_t_is_named_for_as_long_as_it_stands_and_trains_on_when_it_is_let_go(
    warm_night: Night,
) -> None:
    warm_night.config("--delay", "0.01", training={"max_steps": 100_000}, abort=SHORT)
    run = warm_night.start(steps=12)
    trainer = warm_night.who(run, "trainer")
    # The client of the forked trainer and the fork are stopped: no process there hears anything.
    both = (trainer, forked_of(run))
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    said = warm_night.watched_beyond_a_hang(HANG_MINUTES)
    assert all(f"its trainer (pid {trainer}) is suspended (state T): kill -CONT {trainer}" in line for line in said)
    before = events(run, "step")[-1]["step"]
    for pid in both:
        os.kill(pid, signal.SIGCONT)
    warm_night.watched(lambda: events(run, "step")[-1]["step"] > before + 5, "it trains on")
    assert not events(run, "abort") and warm_night.run_dirs() == [run]


def forked_of(run: Path) -> int:
    """Return the pid of the process that holds a run's log open, beside shim and client: the forked trainer."""
    log = os.fsencode(run / "logs" / "output.log")
    known = {one(run, "launched")[who]["pid"] for who in ("trainer", "shim", "launcher")}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if pid not in known and os.readlink(f"/proc/{pid}/fd/1".encode()) == log:
                return pid
        except OSError:
            continue
    raise AssertionError("no forked trainer")


@pytest.mark.long
@pytest.mark.fault("E5", by="rules.py: no step, whatever the heartbeat says")
def test_a_deadlock_under_a_living_heartbeat_is_found_by_the_age_of_its_step(warm_night: Night) -> None:
    run, child = taken_up(warm_night, "--at", "25", "hang")
    told = one(run, "abort")
    assert (told["cause"], record(child)["parent_step"]) == ("hang", 20)
    assert told["evidence"].startswith("no step since step 24")
    beats = [event for event in events(run, "heartbeat") if event["mono_s"] > told["mono_s"] - 1]
    assert beats, "it was beating when it was stopped"


@pytest.mark.fault("E5", by="own_watcher.py: the launcher's own watcher, where nothing calls another one")
def test_a_hang_is_ended_and_taken_up_where_no_cron_calls_a_watcher(warm_night: Night) -> None:
    abort = {**SHORT, "watch_every_s": 1}
    warm_night.config("--delay", "0.01", "--at", "25", "hang", abort=abort, training={"max_steps": 60})
    warm_night("run", "T-1", code=0)
    run, child = warm_night.run_dirs()
    assert (one(run, "abort")["cause"], record(child)["parent_step"]) == ("hang", 20)
    assert (warm_night.state(run), warm_night.state(child)) == ("aborted", "finished")


@pytest.mark.long
@pytest.mark.fault("E6", by="rules.py: hang; stopping.py: KILL to its session")
def test_a_hang_that_holds_the_interpreters_lock_is_found_and_killed(warm_night: Night) -> None:
    run, _ = taken_up(warm_night, "--at", "25", "gil")
    assert one(run, "abort")["cause"] == "hang"
    assert one(run, "exited")["signal"] == signal.SIGKILL, "it cannot have heard TERM"


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.long
@pytest.mark.fault("E7", by="stopping.py: cannot_be_killed; choice.py: refuse while its processes live")
@pytest.mark.skipif(not os.access(FREEZER, os.W_OK), reason="no freezer cgroup may be made here")
def test_a_process_that_no_signal_ends_is_said_and_gets_no_second_trainer(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process takes KILL as one in uninterruptible sleep does: not before it is thawed."""
    cgroup = FREEZER / f"resumekit-{night.mark}"
    cgroup.mkdir()
    night.config("--delay", "0.02", training={"max_steps": 100_000}, abort=SHORT)
    run = night.start()
    try:
        (cgroup / "cgroup.procs").write_text(str(night.who(run, "trainer")))
        (cgroup / "freezer.state").write_text("FROZEN")
        night.watched(lambda: events(run, "abort"), "it is stopped")
        found = wait_until(
            lambda: [event for event in events(run, "warning") if event["kind"] == "cannot_be_killed"], "it is said"
        )
        assert "does not end on KILL" in found[0]["message"]
        night.watch(code=8)
        assert night.run_dirs() == [run]
        assert "is alive" in night("run", "T-1", code=6).stderr
    finally:
        (cgroup / "freezer.state").write_text("THAWED")
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), "it has ended")
        cgroup.rmdir()
    night.next_of(run)


@pytest.mark.fault("E7", by="stopping.py: cannot_be_killed")
def test_what_no_kill_ends_is_a_failure_and_a_warning(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.config("--delay", "0.05", training={"max_steps": 100_000}, abort={"grace_s": 0})
    kit("run", "T-1", "--detach")
    run = kit.started()
    monkeypatch.setattr(processes, "kill_session", lambda _leader, _wait_s: 1)
    assert stopping.stop(run, "TERM", is_aborted=True) == 1
    assert events(run, "warning")[-1]["kind"] == "cannot_be_killed"


@pytest.mark.fault("E8", by="rules.py: oom_count in oom_minutes; eligibility.py: abort.oom_set")
def test_a_memory_loop_without_a_smaller_batch_to_take_needs_a_person(warm_night: Night) -> None:
    warm_night.config("--delay", "0.01", "--at", "25", "oom=3", training={"max_steps": 100_000}, abort=SHORT)
    run = warm_night.start(steps=12)
    warm_night.watched(lambda: warm_night.state(run) == "needs_attention", "a person is called")
    assert one(run, "abort")["cause"] == "oom"
    reason = one(run, "recovery")["reason"]
    assert reason.startswith("out of memory 3 times") and "abort.oom_set" in reason
    assert warm_night.run_dirs() == [run]


@pytest.mark.long
@pytest.mark.fault("E8", by="recovering.py: abort.oom_set")
def test_a_memory_loop_goes_on_with_the_smaller_batch_that_was_named(warm_night: Night) -> None:
    smaller = ["training.batch_size=4", "training.grad_accum_steps=2"]
    run, child = taken_up(
        warm_night, "--at", "25", "oom=3", abort={**SHORT, "oom_set": smaller},
        training={"max_steps": 100_000, "batch_size": 8, "grad_accum_steps": 1},
    )  # fmt: skip
    config = json.loads((child / "resolved_config.json").read_text())
    assert (config["training"]["batch_size"], config["training"]["grad_accum_steps"]) == (4, 2)
    assert (one(run, "abort")["cause"], record(child)["recovery"]["lr_factor"]) == ("oom", 1.0)


@pytest.mark.fault("E9", by="observe.py: memory in the log's last lines")
def test_a_leak_of_the_hosts_memory_is_named(warm_night: Night) -> None:
    warm_night.config("--at", "25", "memory", training={"max_steps": 40})
    warm_night("run", "T-1", code=1)
    (run,) = warm_night.run_dirs()
    told = one(run, "abort")
    assert told["cause"] == "oom" and "speak of memory" in told["evidence"]
    assert told["log_lines"][-1] == "MemoryError"
    assert warm_night.state(run) == "needs_attention" and "abort.oom_set" in one(run, "recovery")["reason"]


@pytest.mark.fault("E10", by="health.py: eval_crash; restart_point.py: that evaluation is left out once")
def test_an_evaluation_that_crashes_is_left_out_once(warm_night: Night) -> None:
    warm_night.config("--at", "31", "eval", training={"max_steps": 60})
    warm_night("run", "T-1", code=0)
    run, child = warm_night.run_dirs()
    assert (one(run, "abort")["cause"], record(child)["parent_step"]) == ("eval", 30), "the one before the evaluation"
    assert record(child)["recovery"]["skip_eval_step"] == 30
    assert warm_night.state(child) == "finished"


@pytest.mark.long
@pytest.mark.fault("E11", by="rules.py: abort.eval_minutes")
def test_an_evaluation_that_hangs_has_a_limit_of_its_own(warm_night: Night) -> None:
    run, child = taken_up(warm_night, "--at", "31", "evalhang", abort={**SHORT, "hang_minutes": 60})
    told = one(run, "abort")
    assert told["cause"] == "eval" and "an evaluation has been going on" in told["evidence"]
    assert record(child)["recovery"]["skip_eval_step"] == 30


@pytest.mark.long
@pytest.mark.fault("E11", by="own_watcher.py: the launcher's own watcher, where nothing calls another one")
def test_an_evaluation_that_hangs_is_ended_where_no_cron_calls_a_watcher(warm_night: Night) -> None:
    abort = {**SHORT, "hang_minutes": 60, "watch_every_s": 1}
    warm_night.config("--delay", "0.01", "--at", "31", "evalhang", abort=abort, training={"max_steps": 60})
    warm_night("run", "T-1", code=0)
    run, child = warm_night.run_dirs()
    assert (one(run, "abort")["cause"], warm_night.state(child)) == ("eval", "finished")


@pytest.mark.long
@pytest.mark.fault("E12", by="aborting.py: the log's last lines; recovering.py: the budget's waits")
def test_data_that_cannot_be_read_for_a_while_are_named_and_read_again(warm_night: Night, tmp_path: Path) -> None:
    data, away = tmp_path / "data.bin", tmp_path / "away"
    data.write_bytes(b"x")
    every_step = [word for step in range(20, 60) for word in ("--at", str(step), f"read={data}")]
    warm_night.config(
        *every_step, "--delay", "0.05", training={"max_steps": 60}, recover={"max_attempts": 20, "backoff_s": 1}
    )
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 30, "it reads them")
    data.rename(away)
    wait_until(lambda: len(warm_night.run_dirs()) > 1, "its first successor")
    assert str(data) in one(run, "abort")["log_lines"][-1]
    time.sleep(1)
    away.rename(data)
    process.communicate(timeout=60)
    assert (process.returncode, warm_night.state(warm_night.run_dirs()[-1])) == (0, "finished")


@pytest.mark.fault("E12", by="preflight.py: the data are not there")
def test_data_that_are_gone_need_a_person_and_their_path_is_said(warm_night: Night, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    warm_night.config("--delay", "0.01", data={"path": str(data)}, training={"max_steps": 100_000})
    process = warm_night.popen("run", "T-1")
    run = warm_night.started()
    wait_until(lambda: len(events(run, "step")) > 12, "some steps")
    data.rmdir()
    os.kill(warm_night.who(run, "trainer"), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert warm_night.state(run) == "needs_attention"
    assert f"the data are not there: data.path is '{data}'" in one(run, "recovery")["reason"]
    data.mkdir()
