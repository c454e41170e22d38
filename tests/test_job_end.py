"""A run in a job of Slurm: why the job ends, what follows, and what a requeued job goes on with.

Slurm is a script that answers what the test says (support/fake_slurm.py); `make cluster` tries the same on a real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import claims, processes, slurm
from resumekit.base.errors import REFUSED, TO_BE_CONTINUED
from resumekit.base.paths import RunPaths
from resumekit.base.slurm import Allocation, Job
from resumekit.process import job_end, stopping
from support.commands import Kit
from support.fake_slurm import LINE, FakeSlurm
from support.places import TOY
from support.processes import wait_until
from support.runs import events

NOW_S = 1_796_081_500.0


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    found = FakeSlurm(tmp_path / "slurm")
    found.says()
    return found


def trains(kit: Kit, env: dict[str, str], *args: str, **sections: Any) -> tuple[subprocess.Popen, Path]:
    """Start T-1 for ever, in a job; return when it has trained for some steps."""
    count = len(kit.run_dirs()) + 1
    kit.config("--delay", "0.02", "--save-every", "5", training={"max_steps": 10**6}, **sections)
    process = kit.popen("run", "T-1", *args, env=env)
    run = kit.started(count)
    wait_until(lambda: len(events(run, "checkpoint")) > 0, "a checkpoint")
    return process, run


def ended(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate(timeout=60)[1].decode()
    return process.returncode, said


@pytest.mark.parametrize(
    ("job", "signal_name", "cause"),
    [
        (Job("7", "COMPLETING"), "TERM", "cancelled"),
        (Job("7", "COMPLETING", restarts=1), "TERM", "requeued"),
        (Job("7", "COMPLETING", reason="TimeLimit"), "TERM", "time_limit"),
        (Job("7", "COMPLETING", restarts=1, preempt_s=NOW_S), "TERM", "requeued"),
        (Job("7", "RUNNING", preempt_s=NOW_S, end_s=NOW_S + 9000), "TERM", "preempted"),
        (Job("7", "PREEMPTED", preempt_s=NOW_S), "TERM", "preempted"),
        (Job("7", "RUNNING", end_s=NOW_S + 60), "USR1", "time_limit"),
        (Job("7", "RUNNING", end_s=NOW_S + 9000), "USR1", "warned"),
        (Job("7", "RUNNING", end_s=NOW_S + 9000), "TERM", "signalled"),
        (Job("7", "RUNNING", end_s=NOW_S + 60), "TERM", "time_limit"),
        (Job("7", "CANCELLED"), None, "cancelled"),
        (None, "USR1", "warned"),
        (None, "TERM", "unknown"),
    ],
)
def test_what_slurm_says_tells_why_a_job_ends(job: Job | None, signal_name: str | None, cause: str) -> None:
    assert job_end.cause_of(job, 0, signal_name, NOW_S) == cause


def test_a_job_is_read_out_of_what_scontrol_prints(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    fake.says(state="COMPLETING", reason="TimeLimit", restarts=2, end=1796081442, preempt=1796081440)
    assert slurm.ask("77") == Job(
        "77", "COMPLETING", 2, "TimeLimit", True, 1796081442.0, 1796081440.0, 1796081441.0, 1001
    )
    # Of an array's first task the whole array is listed, and the task asked for is not the first line.
    lines = [LINE.format(job=job, state="RUNNING", reason="None", restarts=0, requeue=1, submit=1, end="Unknown",
                         preempt="None").replace(f"JobId={job}", f"JobId={job} ArrayJobId=3 ArrayTaskId=1")
             for job in ("4", "3")]  # fmt: skip
    (fake.folder / "jobs" / "3").write_text("".join(lines))
    assert slurm.ask("3") == Job("3", "RUNNING", may_requeue=True, submit_s=1.0, uid=1001, array_task="3_1")
    assert slurm.ask("9") == Job("9", slurm.GONE)
    fake.is_down()
    assert slurm.ask("77") is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.ask("77") is None and not slurm.requeue("77")


def test_one_task_of_an_array_is_named_as_one(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The array's last task has the id of the whole array."""
    environment = fake.environment("10", SLURM_ARRAY_JOB_ID="10", SLURM_ARRAY_TASK_ID="2")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert slurm.requeue("10")
    for name in environment.keys() - {"PATH"}:
        monkeypatch.delenv(name)
    line = LINE.format(job="10", state="RUNNING", reason="None", restarts=0, requeue=1, submit=1, end=2, preempt="None")
    (fake.folder / "jobs" / "10").write_text(line.replace("JobId=10 ", "JobId=10 ArrayJobId=10 ArrayTaskId=2 "))
    assert slurm.cancel("10") and slurm.cancel("77")
    assert fake.told == ["scontrol requeue 10_2", "scancel 10_2", "scancel 77"]


@pytest.mark.parametrize(
    ("job", "is_same_cluster", "is_over"),
    [
        (Job("7", "RUNNING"), True, False),
        (Job("7", "COMPLETING", restarts=1), True, False),
        (Job("7", "PENDING", restarts=1), True, True),
        (Job("7", "RUNNING", restarts=1), True, True),
        (Job("7", "RUNNING", restarts=1), False, False),
        (Job("7", "NODE_FAIL"), True, True),
        (Job("7", "CANCELLED"), True, True),
        (Job("7", slurm.GONE), True, True),
        (Job("7", slurm.GONE), False, False),
        # By the controller's clock it was submitted after the run began: clocks differ.
        (Job("7", "RUNNING", submit_s=NOW_S + 3600), True, False),
    ],
)
def test_what_a_job_ran_has_ended_by_slurm_s_word_alone(job: Job, is_same_cluster: bool, is_over: bool) -> None:
    assert slurm.is_over(job, restarts=0, is_same_cluster=is_same_cluster) is is_over


@pytest.mark.parametrize(
    ("environment", "known"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Allocation("7")),
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            Allocation("7", task=1, tasks=2),
        ),
        ({"SLURM_JOB_ID": "7; rm"}, None),
        ({}, None),
    ],
)
def test_the_job_of_a_process_is_in_its_environment(environment: dict[str, str], known: Allocation | None) -> None:
    assert slurm.allocation(environment) == known


@pytest.mark.parametrize(
    ("name", "says", "state", "cause", "code", "told"),
    [
        ("TERM", {"state": "COMPLETING"}, "stopped", "cancelled", 143, []),
        ("TERM", {"state": "COMPLETING", "restarts": 1}, "preempted", "requeued", TO_BE_CONTINUED, []),
        ("USR1", {}, "preempted", "warned", TO_BE_CONTINUED, ["scontrol requeue 77"]),
        ("USR1", {"requeue": 0}, "preempted", "warned", TO_BE_CONTINUED, []),
        ("TERM", {"preempt": 1796081440}, "preempted", "preempted", TO_BE_CONTINUED, ["scontrol requeue 77"]),
        ("TERM", {"state": "COMPLETING", "reason": "TimeLimit"}, "preempted", "time_limit", TO_BE_CONTINUED,
         ["scontrol requeue 77"]),
        ("TERM", {}, "stopped", "signalled", 143, []),
        ("INT", {}, "stopped", None, 130, []),
    ],
)  # fmt: skip
def test_a_signal_in_a_job_is_what_slurm_says_that_it_is(
    kit: Kit, fake: FakeSlurm, name: str, says: dict, state: str, cause: str | None, code: int, told: list[str]
) -> None:
    process, run = trains(kit, fake.environment())
    fake.says(**says)
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert ended(process)[0] == code
    status = kit.status(run)
    assert (status["state"], status["job_cause"]) == (state, cause)
    assert fake.told == told
    assert [event["is_done"] for event in events(run, "requeued")] == (
        [bool(told)] if told or "requeue" in says else []
    )


@pytest.mark.parametrize(("code", "max_steps"), [(143, 10**6), (0, 10**6), (0, None)])
def test_a_trainer_that_ends_before_its_launcher_has_asked_was_stopped_for_the_same_cause(
    kit: Kit, fake: FakeSlurm, code: int, max_steps: int | None
) -> None:
    """A scheduler signals every process of a job at once; a trainer that saves fast may end with success."""
    script = kit.folder / "fast.py"
    script.write_text(
        f"import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: os._exit({code}))\n"
        "for step in range(1, 10**6):\n    print(f'step {step}', flush=True)\n    time.sleep(0.05)\n"
    )
    kit.config(trainer={"command": ["{python}", str(script)], "resume_args": []}, training={"max_steps": max_steps})
    if max_steps is None:  # a lab that has not said it
        document = json.loads(kit.config_file.read_text())
        del document["training"]
        kit.config_file.write_text(json.dumps(document))
    process = kit.popen("run", "T-1", env=fake.environment())
    run = kit.started()
    wait_until(lambda: len(events(run, "step")) > 2, "it steps")
    fake.says(state="COMPLETING", reason="TimeLimit")
    launched = events(run, "launched")[0]
    for pid in (launched["shim"]["pid"], launched["trainer"]["pid"], process.pid):
        os.kill(pid, signal.SIGTERM)
    assert ended(process)[0] == TO_BE_CONTINUED
    status = kit.status(run)
    assert (status["state"], status["job_cause"], fake.told) == ("preempted", "time_limit", ["scontrol requeue 77"])


def test_why_is_told_of_a_trainer_too_that_has_ended_before_its_launcher_could_stop_it(
    kit: Kit, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = fake.environment()
    kit.config("--save-every", "2")
    kit("run", "T-1", code=137, env={**env, "TOY_ARGS": "--at 3 kill"})
    [run] = kit.run_dirs()
    assert not events(run, "job_ends")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    fake.says(state="COMPLETING", restarts=1)
    stopping.stop(run, "TERM", is_launcher_s=True)
    assert [event["cause"] for event in events(run, "job_ends")] == ["requeued"]


def test_a_controller_that_does_not_answer_makes_no_requeue(kit: Kit, fake: FakeSlurm) -> None:
    process, run = trains(kit, fake.environment())
    fake.is_down()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    status = kit.status(run)
    assert (status["state"], status["job_cause"], fake.told) == ("preempted", "unknown", [])


def test_a_run_is_stopped_before_its_job_s_time_is_over(kit: Kit, fake: FakeSlurm) -> None:
    """The end may be moved while it trains: the last word of Slurm counts."""
    process, run = trains(kit, fake.environment(), cluster={"margin_s": 3600, "poll_s": 0.2})
    fake.says(end=int(time.time()) + 1800)
    code, said = ended(process)
    assert (code, fake.told) == (TO_BE_CONTINUED, ["scontrol requeue 77"]), said
    status = kit.status(run)
    assert (status["state"], status["job_cause"], status["stopped_by"]) == ("preempted", "time_limit", "USR1")
    assert status["last_checkpoint_step"] == status["global_step"]


def test_a_preemption_with_a_grace_is_seen_though_no_signal_comes(kit: Kit, fake: FakeSlurm) -> None:
    process, run = trains(kit, fake.environment(), cluster={"poll_s": 0.2})
    fake.says(preempt=int(time.time()))
    assert ended(process)[0] == TO_BE_CONTINUED
    assert (kit.status(run)["job_cause"], fake.told) == ("preempted", ["scontrol requeue 77"])


def test_a_job_without_polls_is_not_asked(kit: Kit, fake: FakeSlurm) -> None:
    process, run = trains(kit, fake.environment(), cluster={"margin_s": 3600, "poll_s": 0})
    fake.says(end=int(time.time()) + 60)
    steps = len(events(run, "step"))
    wait_until(lambda: len(events(run, "step")) > steps + 100, "it trains on")
    assert not events(run, "job_ends")
    process.send_signal(signal.SIGINT)
    ended(process)


@pytest.mark.parametrize("words", [("run", "--fresh"), ("resume", "--step", "5")])
def test_a_requeued_job_goes_on_with_its_own_run(kit: Kit, fake: FakeSlurm, words: tuple[str, ...]) -> None:
    """A job script begins at its first line again: --fresh and --step were meant for its first start."""
    if words[0] == "resume":  # what it branches from
        process, _ = trains(kit, {})
        process.send_signal(signal.SIGINT)
        ended(process)
    kit.config("--delay", "0.02", "--save-every", "5", training={"max_steps": 10**6})
    count = len(kit.run_dirs())
    process = kit.popen(words[0], "T-1", *words[1:], env=fake.environment())
    first = kit.started(count + 1)
    wait_until(lambda: len(events(first, "checkpoint")) > 1, "a second checkpoint")
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[0] == TO_BE_CONTINUED
    process = kit.popen(words[0], "T-1", *words[1:], env=fake.environment(restarts=1))
    second = kit.started(count + 2)
    process.send_signal(signal.SIGINT)
    ended(process)
    record = json.loads((second / "run.json").read_text())
    assert (record["parent_run_id"], record["relation"]) == (first.name, "continue")
    assert record["parent_step"] == kit.status(first)["last_checkpoint_step"]
    assert record["scheduler"] == {"name": "slurm", "job": "77", "restarts": 1, "cluster": "fake"}


def test_a_requeued_job_that_has_saved_nothing_begins_its_own_name_anew(kit: Kit, fake: FakeSlurm) -> None:
    kit.config("--delay", "0.02", training={"max_steps": 10**6})
    for restarts in (0, 1):
        process = kit.popen(
            "run", "T-1", "--name", "lr3", env={**fake.environment(restarts=restarts), "TOY_ARGS": "--at 9 hang"}
        )
        run = kit.started(1 + restarts)
        wait_until(lambda run=run: any(event["step"] == 9 for event in events(run, "step")), "the ninth step")
        launched = events(run, "launched")[0]
        for pid in (process.pid, launched["trainer"]["pid"], launched["shim"]["pid"]):
            os.kill(pid, signal.SIGKILL)
        process.wait(timeout=60)
    records = [json.loads((run / "run.json").read_text()) for run in kit.run_dirs()]
    assert [record["name"] for record in records] == ["lr3", "lr3"]
    assert records[1]["parent_run_id"] == records[0]["run_id"]


def test_another_job_s_word_is_its_own(kit: Kit, fake: FakeSlurm) -> None:
    """--fresh of a new job begins anew, whatever another job has trained."""
    process, _ = trains(kit, fake.environment())
    process.send_signal(signal.SIGUSR1)
    ended(process)
    fake.says("78")
    process = kit.popen("run", "T-1", "--fresh", env=fake.environment("78", restarts=1))
    second = kit.started(2)
    process.send_signal(signal.SIGINT)
    ended(process)
    assert json.loads((second / "run.json").read_text())["parent_run_id"] is None


def test_finished_is_no_failure_in_a_job(kit: Kit, fake: FakeSlurm) -> None:
    kit.config("--save-every", "5", training={"max_steps": 10})
    kit("run", "T-1", env=fake.environment())
    again = kit("run", "T-1", env=fake.environment(restarts=1))
    assert "has finished at step 10" in again.stderr
    assert "has finished at step 10" in kit("run", "T-1", env=fake.environment("78")).stderr
    kit("run", "T-1", code=REFUSED)
    assert len(kit.run_dirs()) == 1


def test_allocations_that_bring_no_step_end_in_attention(kit: Kit, fake: FakeSlurm) -> None:
    """A job that is put back for ever, and never trains, holds a place that others wait for."""
    script = kit.folder / "waits.sh"
    script.write_text(f"""if [[ $* == *--resume* ]]; then trap 'kill $!; exit 143' TERM; sleep 600 & wait; fi
exec "$PYTHON" {TOY} --delay 0.02 --save-every 5 --steps 1000000 "$@"
""")
    command = ["bash", str(script), "--dir", "{checkpoints_dir}"]
    kit.config(trainer={"command": command}, training={"max_steps": 10**6}, cluster={"max_fruitless": 2})
    codes = []
    for restarts in range(3):
        fake.says(restarts=restarts)
        process = kit.popen("run", "T-1", env=fake.environment(restarts=restarts))
        run = kit.started(1 + restarts)
        if restarts == 0:
            wait_until(lambda run=run: events(run, "checkpoint"), "a checkpoint")
        process.send_signal(signal.SIGUSR1)
        codes.append(ended(process)[0])
    assert codes == [TO_BE_CONTINUED, TO_BE_CONTINUED, 143]
    assert len(fake.told) == 2
    assert kit.status(run)["state"] == "needs_attention"
    refused = kit("run", "T-1", env=fake.environment(restarts=3), code=REFUSED)
    assert "needs attention" in refused.stderr


def test_a_job_that_never_saves_a_step_is_not_requeued_for_ever(kit: Kit, fake: FakeSlurm) -> None:
    """Each allocation begins anew, without a parent, and does the same steps again."""
    never = ("--at", "3", "hang")
    kit.config(
        "--delay", "0.02", *never, training={"max_steps": 100}, cluster={"max_fruitless": 2}, abort={"grace_s": 1}
    )
    codes = []
    for restarts in range(2):
        fake.says(restarts=restarts)
        process = kit.popen("run", "T-1", env=fake.environment(restarts=restarts))
        run = kit.started(1 + restarts)
        wait_until(lambda run=run: any(event["step"] == 3 for event in events(run, "step")), "the third step")
        process.send_signal(signal.SIGUSR1)
        codes.append(ended(process)[0])
    assert codes[0] == TO_BE_CONTINUED != codes[1]
    assert len(fake.told) == 1 and kit.status(run)["state"] == "needs_attention"


def scripted(kit: Kit, text: str) -> None:
    """Let the trainer be a script of the test's own."""
    script = kit.folder / "own.py"
    script.write_text(text)
    kit.config(trainer={"command": ["{python}", str(script)], "resume_args": []}, training={"max_steps": 10**6})


def test_a_controller_that_does_not_know_yet_that_it_ends_the_job_is_asked_again(kit: Kit, fake: FakeSlurm) -> None:
    """A TERM comes while `scontrol` still says RUNNING, which would be a user's."""
    fake.says(state="COMPLETING", restarts=1)
    later = (fake.folder / "jobs" / "77").rename(fake.folder / "later")
    fake.says()
    scripted(
        kit,
        f"""import os, signal, sys, time
def stop(*_):
    os.replace({str(later)!r}, {str(fake.folder / "jobs" / "77")!r})
    os._exit(143)
signal.signal(signal.SIGTERM, stop)
for step in range(1, 10**6):
    print(f"step {{step}}", flush=True)
    time.sleep(0.05)
""",
    )
    process = kit.popen("run", "T-1", env=fake.environment())
    run = kit.started()
    wait_until(lambda: len(events(run, "step")) > 2, "it steps")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == TO_BE_CONTINUED
    assert [event["cause"] for event in events(run, "job_ends")] == ["requeued"]


def test_a_step_that_srun_has_ended_because_a_task_failed_is_no_stop(kit: Kit, fake: FakeSlurm) -> None:
    lines = [
        "srun: error: n1: task 0: Exited with exit code 1",
        "srun: launch/slurm: _step_signal: Terminating StepId=1.0",
        "srun: error: n2: task 1: Terminated",
    ]
    text = "print('step 1', flush=True)\n" + "".join(f"print({line!r})\n" for line in lines) + "raise SystemExit(143)\n"
    scripted(kit, text)
    kit("run", "T-1", env=fake.environment(), code=1)
    (run,) = kit.run_dirs()
    assert (kit.status(run)["state"], kit.status(run)["exit_code"]) == ("failed", 1)
    scripted(kit, text.replace("Exited with exit code 1", "Exited with exit code 143"))
    kit("run", "T-1", "--fresh", env=fake.environment(), code=143)
    assert kit.status(kit.run_dirs()[-1])["state"] == "stopped"


def test_a_stop_by_a_user_s_command_is_not_requeued_however_near_the_end_is(
    kit: Kit, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, run = trains(kit, fake.environment(), cluster={"margin_s": 1})
    fake.says(end=int(time.time()) + 300)
    kit("abort-watch", "--stop", run.name)
    assert ended(process)[0] == 143
    assert (kit.status(run)["state"], kit.status(run)["job_cause"], fake.told) == ("stopped", None, [])


def test_detach_is_refused_in_a_batch_job(kit: Kit, fake: FakeSlurm) -> None:
    refused = kit("run", "T-1", "--detach", env=fake.environment(), code=REFUSED)
    assert "--detach in a batch job" in refused.stderr
    assert not kit.run_dirs()


def test_one_task_of_a_step_begins(kit: Kit, fake: FakeSlurm) -> None:
    task = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    process, run = trains(kit, fake.environment(**task, SLURM_PROCID="0"))
    second = kit("run", "T-1", env=fake.environment(**task, SLURM_PROCID="1"))
    assert f"task 1 of 2 of job 77 does nothing: another one trains '{run.name}'" in second.stderr
    # Beside a run of another job it is refused, as anywhere.
    kit("run", "T-1", env=fake.environment("78", **task, SLURM_PROCID="1"), code=REFUSED)
    process.send_signal(signal.SIGINT)
    ended(process)


def test_a_run_of_a_node_that_has_died_is_continued_by_slurm_s_word(
    kit: Kit, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have just changed, and no process of it can be seen: the restart count of the job is proof."""
    process, first = trains(kit, fake.environment())
    kit.clean_up()  # its power is cut
    process.wait(timeout=60)
    elsewhere(first)
    refused = kit("run", "T-1", env=fake.environment("78"), code=REFUSED)  # the job still runs, by Slurm's word
    assert first.name in refused.stderr
    fake.says(restarts=1)
    process = kit.popen("run", "T-1", env=fake.environment(restarts=1))
    second = kit.started(2)
    process.send_signal(signal.SIGINT)
    ended(process)
    assert json.loads((second / "run.json").read_text())["parent_run_id"] == first.name
    (word,) = events(first, "taken_over")
    assert (word["by"], word["child_run_id"]) == ("slurm (job 77)", second.name)


def test_a_claim_that_a_dead_node_has_left_counts_for_nothing(
    kit: Kit, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node died when the next run had its folder and its claim, and no trainer."""
    process, first = trains(kit, fake.environment())
    process.send_signal(signal.SIGUSR1)
    ended(process)
    for name, value in fake.environment(restarts=1).items():
        monkeypatch.setenv(name, value)
    claimer = processes.Identity("n9", "00000000-0000-4000-8000-000000000000", 4711, 1, None)
    claims.claim_continuation(RunPaths(first), "T-1_toy_resume@5_20261130-2342", claimer, lambda _: False)
    fake.says(restarts=1)
    sentence = claims.held_by_other(RunPaths(first), lambda _: False)
    assert sentence and "n9" in sentence, "of its own allocation it may be starting"
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert claims.held_by_other(RunPaths(first), lambda _: False), "its job runs"
    fake.says(restarts=2)
    assert claims.held_by_other(RunPaths(first), lambda _: False) is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    fake.is_down()
    assert claims.held_by_other(RunPaths(first), lambda _: False) is None


def elsewhere(run: Path) -> None:
    """Let a run be one of another host: of another name, kernel and machine."""
    host = {"host": "n9", "boot_id": "00000000-0000-4000-8000-000000000000"}
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **host, "machine_id": "0" * 32}))
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines() if line]
    for event in lines:
        if event["event"] == "launched":
            for who in ("trainer", "shim", "launcher"):
                event[who] |= host
    (run / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    (run / "exit.json").unlink(missing_ok=True)
