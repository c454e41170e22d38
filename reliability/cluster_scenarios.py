"""What a run has to survive on a Slurm: functions of a stage, which raise AssertionError where something is wrong.

Each is a row of the table in docs/reliability.md. Try it: `python -m reliability.cluster --scenario requeue`
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable

from reliability.cluster_stage import EVERY, LOOK_S, OVER, STEP_S, Stage
from support.nights import proven_steps, record
from support.processes import wait_until
from support.runs import events

# A job of the partition `high` that takes both nodes for a second.
URGENT = ("-p", "high", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")


# ---- a job that is ended, and goes on


def requeue(stage: Stage) -> None:
    """`scontrol requeue`, as a site does it: the last step is saved, the job goes on from there."""
    job = stage.submit()
    first = stage.reaches(25)
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage)
    stage.ended_as(first, "preempted", "requeued", "preempted")


def slow_steps(stage: Stage) -> None:
    """TERM for every process of a job whose steps take half a second: one stop is one stop, and no step is lost."""
    stage.config("--delay", "0.5", training={"max_steps": 20})
    job = stage.submit()
    first = stage.reaches(6)
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage)
    stage.ended_as(first, "preempted")


def usr1(stage: Stage) -> None:
    """USR1 for the batch script: saved, ended, requeued, gone on."""
    job = stage.submit()
    first = stage.reaches(25)
    stage.signal(job, "USR1")
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage)
    stage.ended_as(first, "preempted", "warned", "time_limit")


def preempted(stage: Stage) -> None:
    """A job of a higher partition takes the nodes: saved, requeued by Slurm, gone on."""
    job = stage.submit()
    first = stage.reaches(25)
    stage.sbatch(*URGENT)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage)
    stage.ended_as(first, "preempted", "preempted", "requeued")


def grace(stage: Stage) -> None:
    """The same with GraceTime, in which Slurm tells a batch script nothing: saved and requeued all the same."""
    stage.config(training={"max_steps": 250})
    job = stage.submit(sbatch=("-p", "grace"))
    first = stage.reaches(25)
    stage.sbatch(*URGENT)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage)
    stage.ended_as(first, "preempted", "preempted", "requeued")


def wall_time(stage: Stage) -> None:
    """A job of one minute: stopped before its end, requeued by the launcher, gone on."""
    stage.config(training={"max_steps": 700}, cluster={"margin_s": 20})
    job = stage.submit(sbatch=("--time=1", "--signal=B:USR1@5"))
    first = stage.reaches(25)
    stage.restarted(job)
    stage.ended_as(first, "preempted", "time_limit")
    lineage = stage.finishes(job)
    stage.goes_on(lineage)


def no_requeue(stage: Stage) -> None:
    """Where the site forbids a requeue, the job ends with 75, and the next job of the chain goes on."""
    job = stage.submit(sbatch=("--no-requeue",))
    stage.reaches(25)
    stage.signal(job, "USR1")
    found = stage.job_is(job, "FAILED", "COMPLETED", "CANCELLED")
    assert found["ExitCode"] == "75:0", stage.said(job)
    lineage = stage.finishes(stage.submit(sbatch=("--no-requeue", f"--dependency=afterany:{job}")), runs=2)
    stage.goes_on(lineage)


def long_last_step(stage: Stage) -> None:
    """A save longer than KillWait: the job is killed in it, requeued on the other node, and goes on."""
    slow = [word for what in ("deaf", "hang") for word in ("--at", "26", f"once={stage.folder / what}:{what}")]
    stage.config(*slow)
    job = stage.submit(sbatch=("-w", "node1"))
    stage.reaches(26)
    stage.cluster.ask("scontrol", "requeue", job)
    stage.moves_away(job, "node1")
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage, is_lossless=False)
    assert record(lineage[1])["host"] == "node2", record(lineage[1])["host"]


def no_exec(stage: Stage) -> None:
    """run.sh as a child of the batch script: the script dies first. No run is `running` for good, and it goes on."""
    stage.config("--save-s", "1")
    job = stage.submit(end="")
    first = stage.reaches(25)
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage, is_lossless=False)
    assert stage.shown(first)["state"] in ("preempted", "lost", "stopped", "failed"), stage.shown(first)["state"]


# ---- a node that is gone


def dead_node(stage: Stage) -> None:
    """A node loses its power: the job goes on at the other one, and nothing begins again when the node is back."""
    job = stage.submit()
    first = stage.reaches(25)
    node = stage.node_of(job)
    stage.cluster.cut(node)
    second = stage.reaches(30, count=2)
    stage.cluster.give_back(node)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage, is_lossless=False)
    assert record(second)["host"] != record(first)["host"] == node
    assert stage.shown(first)["state"] in ("lost", "preempted"), stage.shown(first)["state"]


def node_comes_back(stage: Stage) -> None:
    """A node that was only silent comes back beside its successor: its run ends, and leaves no newer checkpoint."""
    stage.config(training={"max_steps": 150})
    job = stage.submit()
    first = stage.reaches(25)
    node = stage.node_of(job)
    stage.cluster.freeze(node)
    stage.cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=silent")
    second = stage.reaches(30, count=2)
    stage.look.take()  # what is frozen trains nothing
    done = stage.last_step(first)
    stage.cluster.thaw(node)
    thawed_s = time.monotonic()
    wait_until(lambda: not stage.trains(first), f"the trainer of {first.name} has ended")
    both_s = time.monotonic() - thawed_s
    time.sleep(4 * LOOK_S)  # the look at which both were there is over
    stage.look.take()
    stage.finishes(job, runs=2)
    assert both_s < 15, f"both have trained for {both_s:.1f} s"
    assert stage.last_step(second) == 150 and stage.last_step(first) - done < 10 / STEP_S
    stage.cluster.ask("scontrol", "update", f"nodename={node}", "state=resume", code=None)


def gone_job(stage: Stage) -> None:
    """The node of a job that may not be requeued dies: another job goes on, by Slurm's word that the first is over."""
    job = stage.submit(sbatch=("--no-requeue", "-w", "node1"))
    first = stage.reaches(25)
    stage.cluster.cut("node1")
    stage.job_is(job, "NODE_FAIL", "FAILED", "CANCELLED")
    lineage = stage.finishes(stage.submit(sbatch=("-w", "node2")), runs=2)
    stage.goes_on(lineage, is_lossless=False)
    assert record(lineage[0])["run_id"] == first.name
    stage.cluster.give_back("node1")


def other_job_lives(stage: Stage) -> None:
    """A second job of the same run, while the first one trains: refused, and the first one is left alone."""
    job = stage.submit(sbatch=("-w", "node1"))
    stage.reaches(25)
    other = stage.submit(sbatch=("-w", "node2"))
    found = stage.job_is(other, "FAILED", "COMPLETED")
    assert found["ExitCode"] == "6:0", stage.said(other)
    stage.finishes(job, runs=1)


# ---- a job that is over for good


def scancel(stage: Stage) -> None:
    """scancel: the last step is saved, the job is cancelled, and nothing follows. A person starts it again."""
    job = stage.submit()
    first = stage.reaches(25)
    stage.cluster.ask("scancel", job)
    stage.job_is(job, "CANCELLED")
    wait_until(lambda: not stage.cluster.queue(), "the queue is empty")
    stage.ended_as(first, "stopped", "cancelled")
    stage.goes_on(stage.finishes(stage.submit(), runs=2))


def scancel_in_any_state(stage: Stage) -> None:
    """scancel ends a job that trains, saves, hangs, stops for a USR1, or waits to begin again."""
    stage.config("--save-s", "2", "--at", "33", "hang", training={"max_steps": 400})
    for moment in ("step", "save", "usr1", "held", "hang"):
        job = stage.submit("--fresh", "--name", moment)
        step = {"hang": 33, "save": EVERY}.get(moment, 3)
        run = stage.reaches(step, name=moment)
        if moment in ("usr1", "held"):
            stage.signal(job, "USR1")
        if moment == "held":
            stage.look.released = False
            wait_until(lambda job=job: stage.cluster.job(job)["JobState"] == "PENDING", "it waits to begin again")
        stage.cluster.ask("scancel", job)
        stage.job_is(job, "CANCELLED")
        stage.look.released = True
        wait_until(lambda: not stage.cluster.queue(), f"the queue is empty ({moment})")
        wait_until(lambda run=run: not stage.trains(run), f"its trainer has ended ({moment})")
        assert len(stage.lineage(moment)) == 1, f"{moment}: it was taken up"


def finished(stage: Stage) -> None:
    """A finished run requeued, and the next job of a chain: 0, 'finished', and no other run."""
    stage.config(training={"max_steps": 15})
    job = stage.submit()
    stage.finishes(job, runs=1)
    stage.cluster.ask("scontrol", "requeue", job)
    wait_until(lambda: stage.cluster.job(job)["Restarts"] == "1", "it is requeued")
    stage.finishes(job, runs=1)
    again = stage.submit()
    stage.finishes(again, runs=1)
    assert "finished" in stage.outputs(), stage.outputs()


def detach(stage: Stage) -> None:
    """`run.sh --detach` as a job's command: refused, and nothing begins."""
    job = stage.submit("--detach")
    found = stage.job_is(job, "FAILED", "COMPLETED")
    assert found["ExitCode"] == "6:0" and "--detach" in stage.outputs(), stage.said(job)
    assert not stage.run_dirs()


def no_progress(stage: Stage) -> None:
    """A job that saves no step in three allocations is not requeued a third time, and a person is asked."""
    stage.config("--at", "3", "hang", training={"max_steps": 50}, abort={"grace_s": 1})
    job = stage.submit()
    for count in range(1, 7):
        stage.reaches(3, count=count)
        stage.signal(job, "USR1")
        wait_until(lambda count=count: not stage.trains(stage.lineage()[count - 1]), "its trainer has ended")
        found = stage.allocation_ends(job, count)
        if found["JobState"] in OVER:
            break
    assert found["JobState"] == "FAILED" and count == 3, f"after {count} allocations: {stage.said(job)}"
    assert stage.shown(stage.lineage()[-1])["state"] == "needs_attention", stage.shown(stage.lineage()[-1])["state"]


# ---- the same command again


def fresh_again(stage: Stage) -> None:
    """A requeued job whose script says --fresh goes on with its own run."""
    stage.config(training={"max_steps": 20})
    stage.finishes(stage.submit(), runs=1)
    stage.config(training={"max_steps": 80})
    job = stage.submit("--fresh")
    stage.reaches(25, count=2)
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=3)
    stage.goes_on(lineage[1:])


def branch_again(stage: Stage) -> None:
    """And one that says resume.sh --step."""
    stage.config(training={"max_steps": 30})
    stage.finishes(stage.submit(), runs=1)
    more = ("--set", "training.max_steps=80", "--accept")
    words = " ".join(stage.argv("resume", "T-1", "--step", "20", "--name", "branch", *more))
    job = stage.submit(body=f"exec {words}")
    stage.reaches(45, name="branch")
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=2, name="branch")
    stage.goes_on(lineage)


def two_tasks(stage: Stage) -> None:
    """`srun -N2 run.sh EXP`: one begins, the other says so and ends with 0."""
    stage.config(training={"max_steps": 30})
    job = stage.submit(sbatch=("-N2",), body="exec srun -N2 {run}")
    stage.finishes(job, runs=1)


def two_nodes(stage: Stage) -> None:
    """One launcher in the batch script, with `srun torchrun` below it over both nodes: requeued, it goes on."""
    job = stage.submits_ranks()
    first = stage.reaches(25)
    stage.cluster.ask("scontrol", "requeue", job)
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage)
    stage.ended_as(first, "preempted")


def rank_killed(stage: Stage) -> None:
    """The same, and the rank of the other node is killed, at which srun ends the rest: taken up in the allocation."""
    job = stage.submits_ranks()
    stage.reaches(25)
    stage.kills_rank(1)
    lineage = stage.finishes(job)
    assert len(lineage) == 2 and stage.cluster.job(job)["Restarts"] == "0", [run.name for run in lineage]
    stage.goes_on(lineage, is_lossless=False)


def names(stage: Stage) -> None:
    """Another --name begins anew, beside a run that has finished and one that was stopped."""
    stage.config(training={"max_steps": 20})
    for name in ("lr3", "lr4"):
        stage.finishes(stage.submit("--name", name), runs=1, name=name)
        (run,) = stage.lineage(name)
        assert record(run)["parent_run_id"] is None


def frozen(stage: Stage) -> None:
    """bin/submit.sh: the checkout is broken while the job trains; it goes on with the code of its submission."""
    lab = stage.makes_lab()
    job = stage("submit", "T-1").stdout.strip()
    stage.reaches(25)
    (lab / "train.py").write_text("raise SystemExit('this is not the code that was submitted')\n")
    shutil.rmtree(lab / "kit" / "lib")
    stage.cluster.ask("scontrol", "requeue", job)
    stage.goes_on(stage.finishes(job, runs=2))


def sweep(stage: Stage) -> None:
    """bin/submit.sh --array-set: a lineage for each value, each requeued once."""
    stage.config("--lr", "{optimizer.lr}", training={"max_steps": 80})
    job = stage("submit", "T-1", "--array-set", "optimizer.lr=1e-3,3e-4").stdout.strip()
    names = wait_until(lambda: found if len(found := stage.names()) == 2 else None, "both tasks have begun")
    for number, name in enumerate(names):
        stage.reaches(15, name=name)
        stage.cluster.ask("scontrol", "requeue", f"{job}_{number}")
    wait_until(lambda: not stage.cluster.queue(), "the array is over")
    for name in names:
        lineage = stage.lineage(name)
        assert len(lineage) == 2 and stage.state(lineage[-1]) == "finished", [run.name for run in lineage]
        stage.goes_on(lineage)


# ---- without cron, and from the login node


def hang(stage: Stage) -> None:
    """A hang: ended by the launcher's own watcher, and taken up in the same allocation."""
    stage.config(
        "--at",
        "25",
        f"once={stage.folder / 'hung'}:hang",
        abort={"hang_minutes": 0.05, "watch_every_s": 1, "grace_s": 3},
    )
    job = stage.submit()
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage, is_lossless=False)
    assert stage.cluster.job(job)["Restarts"] == "0", stage.said(job)
    assert [event["cause"] for event in events(lineage[0], "abort")] == ["hang"]


def hang_at_the_end(stage: Stage) -> None:
    """A hang that is not found before the job's time is over: the job is requeued, and goes on."""
    hung = ("--at", "25", f"once={stage.folder / 'hung'}:hang")
    stage.config(*hung, abort={"grace_s": 3}, cluster={"margin_s": 30})
    job = stage.submit(sbatch=("--time=1", "--signal=B:USR1@5"))
    lineage = stage.finishes(job, runs=2)
    stage.goes_on(lineage, is_lossless=False)
    assert stage.cluster.job(job)["Restarts"] == "1", stage.said(job)


def login_node(stage: Stage) -> None:
    """runs.sh at the login node shows host, job and last sign of life; its watcher leaves the run alone."""
    job = stage.submit()
    run = stage.reaches(15)
    found = stage.shown(run)
    assert found["state"] == "running" and found["host"] == stage.node_of(job), found
    page = stage("runs", run.name).stdout
    assert job in page and stage.node_of(job) in page, page
    stage.watch(run.name)
    stage.finishes(job, runs=1)


def dead_at_login(stage: Stage) -> None:
    """A job that died with its node and is not requeued: the login node tells that it is dead."""
    job = stage.submit(sbatch=("--no-requeue", "-w", "node1"))
    run = stage.reaches(15)
    stage.cluster.cut("node1")
    stage.job_is(job, "NODE_FAIL", "FAILED", "CANCELLED")
    assert stage.shown(run)["state"] == "lost", stage.shown(run)["state"]
    stage.watch()
    assert len(stage.lineage()) == 1, "the watcher of the login node has taken it up"
    stage.cluster.give_back("node1")


def stop_at_login(stage: Stage) -> None:
    """`abort-watch.sh --stop` at the login node: saved, the job is over, and nothing follows."""
    job = stage.submit()
    run = stage.reaches(25)
    stage("abort-watch", "--stop", run.name)
    stage.job_is(job, "CANCELLED", "COMPLETED", "FAILED")
    wait_until(lambda: not stage.cluster.queue(), "the queue is empty")
    stage.ended_as(run, "stopped")
    assert stage.last_step(run) in proven_steps(run), f"step {stage.last_step(run)} of {proven_steps(run)}"
    assert len(stage.lineage()) == 1


def others_watcher(stage: Stage) -> None:
    """A job's watcher takes up nothing of another job: a run that was killed there is that job's."""
    stage.config(training={"max_steps": 150}, abort={"watch_every_s": 1})
    stage.submit("--name", "other", sbatch=("-w", "node2"))
    job = stage.submit("--name", "dead", sbatch=("--no-requeue", "-w", "node1"))
    stage.reaches(25, name="dead")
    stage.reaches(5, name="other")
    stage.signal_all(job, signal.SIGKILL)
    stage.job_is(job, "FAILED", "COMPLETED", "CANCELLED")
    time.sleep(8)  # some passes of the other one
    assert len(stage.lineage("dead")) == 1, record(stage.lineage("dead")[-1])["host"]


SCENARIOS: dict[str, Callable[[Stage], None]] = {
    one.__name__: one
    for one in (
        requeue, slow_steps, usr1, preempted, grace, wall_time, no_requeue, long_last_step, no_exec, dead_node,
        node_comes_back, gone_job, other_job_lives, scancel, scancel_in_any_state, finished, detach, no_progress,
        fresh_again, branch_again, two_tasks, two_nodes, rank_killed, names, frozen, sweep, hang, hang_at_the_end,
        login_node, dead_at_login, stop_at_login, others_watcher,
    )
}  # fmt: skip
