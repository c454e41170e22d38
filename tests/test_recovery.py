"""A run that is over by an incident is taken up, once, by its launcher or by the watcher; or a person is called."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal, processes
from resumekit.start import pipeline
from resumekit.watch import recovering
from support.commands import Kit
from support.lab_repo import Lab, git, make_lab
from support.places import LIVE
from support.processes import marked_pids, wait_until
from support.recoveries import (
    PATTERNS,
    answers_of,
    askers,
    configure,
    kill_trainer,
    live,
    over,
    reached,
    watch_as_cron,
)
from support.runs import age, events, reseal
from support.watched_runs import kill_all_of

# Of a trainer whose steps are not seen.
NO_STEPS = {"step": "^never ([0-9]+)"}


def plan_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "resume_plan.json").read_text())


def test_a_killed_trainer_is_taken_up_by_its_launcher_from_the_newest_checkpoint(recovered: Kit):
    launcher = recovered.popen("run", "T-1")
    first = recovered.started()
    wait_until(lambda: reached(first, 12), "step 12")
    kill_trainer(first)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, err  # the last trainer's own
    _, second = recovered.run_dirs()
    (abort,) = events(first, "abort")
    assert (abort["cause"], abort["evidence"][-8:]) == ("died", "signal 9")
    assert any(line.startswith("step 12 ") for line in abort["log_lines"]) and len(abort["log_lines"]) <= 20
    (left,), (right,) = events(first, "recovery"), events(second, "recovery")
    for event in (left, right):
        assert (event["outcome"], event["cause"], event["attempt"], event["lr_factor"]) == ("resumed", "died", 1, 1.0)
        assert (event["parent_run_id"], event["child_run_id"]) == (first.name, second.name)
    newest = max(int(p.stem.split("_")[-1]) for p in (first / "checkpoints").glob("*.pt"))
    assert left["step"] == newest == json.loads((second / "run.json").read_text())["parent_step"]
    assert recovered.status(first)["state"] == "failed" and recovered.status(second)["state"] == "finished"
    assert recovered.status(first)["recovery"]["child_run_id"] == second.name
    assert live(recovered) == []
    assert b"toy trainer, from step" in out and out.count(b"toy trainer, from step") == 2  # one terminal, both trainers


@pytest.mark.long
def test_a_loss_that_is_not_finite_is_replayed_from_before_it_at_a_lower_rate(recovered: Kit):
    """The toy's loss is NaN from step 32 on, the same again each time: three starts that bring nothing are enough."""
    notes = recovered.folder / "told"
    configure(
        recovered, "--nan-from", "32", notify={"command": ["tee", "-a", str(notes)]}, training={"max_steps": 9999}
    )
    done = recovered("run", "T-1", code=8)
    runs = recovered.run_dirs()
    aborts = [(event["cause"], event["first_bad_step"]) for run in runs for event in events(run, "abort")]
    assert aborts == [("nonfinite", 32)] * 4  # the first one got there; three more did not get beyond
    plans = [plan_of(run) for run in runs[1:]]
    assert [plan["step"] for plan in plans] == [20, 20, 20]  # at least 10 steps before step 32
    assert [plan["lr_scale"]["factor"] for plan in plans] == pytest.approx([0.8, 0.64, 0.512])
    assert [plan["recovery"]["skip_data_steps"] for plan in plans] == [0, 12, 12]
    assert {change["key"] for change in plans[1]["changes"]} == {"lr_scale", "data.skipped_steps"}
    assert recovered.status(runs[-1])["state"] == "needs_attention"
    (last,) = events(runs[-1], "recovery")[1:]
    assert last["outcome"] == "needs_attention" and "starts in a row brought nothing new" in last["reason"]
    noticed, told = notes.read_text().splitlines()
    assert json.loads(noticed)["kind"] == "same_end", "at the third equal end a person is told, and it goes on"
    assert json.loads(told)["reason"] == last["reason"] and json.loads(told)["run_id"] == runs[-1].name
    assert "needs attention" in done.stderr and live(recovered) == []


def test_a_loss_that_is_not_finite_for_a_moment_is_not_stopped_for(recovered: Kit):
    """One line with a NaN, a second of nothing, then finite ones again; it takes two lines, and two seconds."""
    go = recovered.folder / "go"
    configure(recovered, "--nan-from", "8", "--nan-until", "8", "--at", "8", f"wait={go}", training={"max_steps": 70})
    launcher = recovered.popen("run", "T-1")
    only = recovered.started()
    wait_until(lambda: any(event["loss"] == "nan" for event in events(only, "step")), "a NaN in the journal")
    time.sleep(1)
    go.touch()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 0
    assert not events(only, "abort") and recovered.status(only)["state"] == "finished"


def test_three_starts_without_a_step_are_enough_and_the_pauses_double(recovered: Kit):
    configure(recovered, "--at", "1", "raise", trainer={"log_patterns": NO_STEPS})
    done = recovered("run", "T-1", code=1)
    runs = recovered.run_dirs()
    assert len(runs) == 3 and [recovered.status(run)["state"] for run in runs] == [
        "failed",
        "failed",
        "needs_attention",
    ]
    assert "3 starts in a row" in events(runs[2], "recovery")[-1]["reason"]
    began = [events(run, "launched")[0]["mono_s"] for run in runs]
    ended = [events(run, "abort")[0]["mono_s"] for run in runs]
    assert began[1] - ended[0] >= 1 and began[2] - ended[1] >= 2
    assert [json.loads((run / "run.json").read_text())["parent_step"] for run in runs] == [None, 0, 0]
    assert done.stderr.count("follows, not before") == 2


@pytest.mark.long
def test_a_run_that_creeps_towards_the_same_end_is_not_taken_up_for_ever(recovered: Kit):
    """Each start gets to the same step, with a checkpoint of its own behind it: that is no progress."""
    configure(recovered, "--at", "13", "raise")
    recovered("run", "T-1", code=1)
    runs = recovered.run_dirs()
    assert recovered.status(runs[-1])["state"] == "needs_attention"
    assert len(runs) == 4  # the first one got there; three more brought nothing


@pytest.mark.parametrize("how", ["TERM", "INT"])
def test_what_a_person_ends_is_not_taken_up(recovered: Kit, how: str):
    configure(recovered, training={"max_steps": 9999})
    launcher = recovered.popen("run", "T-1")
    run = recovered.started()
    wait_until(lambda: reached(run, 3), "step 3")
    launcher.send_signal(signal.Signals[f"SIG{how}"])
    launcher.communicate(timeout=60)
    assert recovered.status(run)["state"] == "stopped"
    watch_as_cron(recovered, code=0)
    assert recovered.run_dirs() == [run] and live(recovered) == []


def test_stop_ends_a_detached_run_for_good(recovered: Kit):
    configure(recovered, training={"max_steps": 9999})
    recovered("run", "T-1", "--detach")
    run = recovered.started()
    wait_until(lambda: reached(run, 3), "step 3")
    assert "stopped" in recovered("abort-watch", "--stop", "T-1").stderr
    over(recovered, run, "stopped")
    watch_as_cron(recovered, code=0)
    assert recovered.run_dirs() == [run]
    recovered("abort-watch", "--stop", code=2)
    recovered("abort-watch", "--stop", "T-1", "--observe", code=2)


def test_a_signal_in_the_pause_before_the_next_start_ends_the_run_for_good(recovered: Kit):
    configure(recovered, "--at", "1", "raise", recover={"backoff_s": 3600}, trainer={"log_patterns": NO_STEPS})
    launcher = recovered.popen("run", "T-1")
    run = recovered.started()
    wait_until(lambda: events(run, "abort"), "the incident")
    time.sleep(0.5)  # the launcher has its answer and waits
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert wait_until(lambda: events(run, "stopped"), "the stop is written down")
    assert recovered.run_dirs() == [run]
    watch_as_cron(recovered, code=0)
    assert recovered.run_dirs() == [run] and live(recovered) == []


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("exit=0", "ended_early"),
        ("exit=143", "stopped"),
        ("exit=130", "stopped"),
        ("term", "stopped"),
        ("int", "stopped"),
    ],
)
def test_an_end_that_is_no_incident_is_left_alone(recovered: Kit, end: str, state: str):
    configure(recovered, "--at", "7", end)
    recovered("run", "T-1", code=None)
    (run,) = recovered.run_dirs()
    assert recovered.status(run)["state"] == state
    watch_as_cron(recovered, code=0)
    assert recovered.run_dirs() == [run] and not events(run, "abort")


@pytest.mark.parametrize("why", ["paused", "disabled"])
def test_hands_off_is_hands_off(recovered: Kit, why: str):
    configure(recovered, "--at", "12", f"wait={recovered.folder}/go", recover={"enabled": why != "disabled"})
    launcher = recovered.popen("run", "T-1")
    run = recovered.started()
    wait_until(lambda: reached(run, 12), "step 12")
    if why == "paused":
        (run / "paused").touch()
    kill_trainer(run)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 137
    watch_as_cron(recovered)
    assert recovered.run_dirs() == [run] and not events(run, "recovery")


@pytest.mark.long
def test_many_who_want_to_take_up_the_same_run_make_one_child_with_one_cut(
    recovered: Kit, monkeypatch: pytest.MonkeyPatch
):
    """Twelve processes ask at once, each as a launcher of its own; the rate is cut once."""
    run = nonfinite_without_a_launcher(recovered)
    asked = askers(recovered, run, 12)
    children = answers_of(asked)
    for asker in asked:
        asker.communicate("")
    assert len(children) == 1
    assert plan_of(recovered.runs / children[0])["lr_scale"]["factor"] == pytest.approx(0.8)
    assert len(events(run, "abort")) == 1
    # Those askers are dead, and their child never had a trainer: the next one makes it again, at the same rate.
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", recovered.mark)
    again = recovering.recover(run, os.getpid()).ready
    assert again is not None and again.run_id not in children
    assert plan_of(recovered.runs / again.run_id)["lr_scale"]["factor"] == pytest.approx(0.8)
    assert len(events(run, "abort")) == 1


def nonfinite_without_a_launcher(kit: Kit) -> Path:
    """Leave a run that was stopped for a loss that is not finite, and whose launcher was killed before it acted."""
    configure(kit, "--nan-from", "32", "--ignore", "TERM", training={"max_steps": 9999}, abort={"grace_s": 3})
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: events(run, "abort"), "the stop")
    os.kill(events(run, "launched")[0]["launcher"]["pid"], signal.SIGKILL)
    over(kit, run, "aborted")
    return run


def test_the_watcher_takes_up_a_run_that_lost_everything_in_the_environment_that_it_had(recovered: Kit):
    recovered("run", "T-1", "--detach", env={"CUDA_VISIBLE_DEVICES": "3,1", "VIRTUAL_ENV": "/lab/venv", "HOME": "/lab"})
    first = recovered.started()
    wait_until(lambda: reached(first, 12), "step 12")
    kill_all_of(first)
    done = watch_as_cron(recovered, code=8)
    assert "taking it up" in done.stderr
    second = recovered.started(2)
    launched = events(second, "launched")[0]
    environ = Path(f"/proc/{launched['trainer']['pid']}/environ")
    environment = wait_until(environ.read_bytes, "the trainer's exec is over: in the middle of it it has none").split(
        b"\0"
    )
    assert {b"CUDA_VISIBLE_DEVICES=3,1", b"VIRTUAL_ENV=/lab/venv", b"HOME=/lab"} <= set(environment)
    assert not any(word.startswith(b"TERM=") for word in environment)
    over(recovered, second, "finished")
    (left,), (right,) = events(first, "recovery"), events(second, "recovery")
    assert left["child_run_id"] == right["child_run_id"] == second.name
    watch_as_cron(recovered, code=0)
    assert len(recovered.run_dirs()) == 2 and live(recovered) == []


def test_the_watcher_leaves_a_run_to_a_launcher_that_lives(recovered: Kit):
    configure(recovered, "--at", "1", "raise", recover={"backoff_s": 3600}, trainer={"log_patterns": NO_STEPS})
    launcher = recovered.popen("run", "T-1")
    run = recovered.started()
    wait_until(lambda: events(run, "abort"), "the incident")
    assert "taking it up" not in watch_as_cron(recovered, code=8).stderr
    assert recovered.run_dirs() == [run] and launcher.poll() is None
    launcher.kill()
    launcher.communicate()
    watch_as_cron(recovered, code=8)  # takes it up now, but the pause is not over
    assert recovered.run_dirs() == [run] and live(recovered) == [run.name]


def test_a_hang_is_stopped_by_the_watcher_and_the_launcher_goes_on(recovered: Kit):
    held = recovered.folder / "go"
    configure(recovered, "--at", "17", f"wait={held}", abort={"hang_minutes": 0.02, "grace_s": 2})
    launcher = recovered.popen("run", "T-1")
    first = recovered.started()
    wait_until(lambda: reached(first, 17), "step 17")
    time.sleep(1.5)
    assert "hang" in watch_as_cron(recovered, code=8).stderr
    second = recovered.started(2)
    assert events(first, "abort")[0]["cause"] == "hang" and len(events(first, "abort")) == 1
    assert plan_of(second)["lr_scale"]["factor"] == 1.0
    held.touch()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 0 and recovered.status(second)["state"] == "finished"


def test_two_passes_at_once_are_one(recovered: Kit):
    recovered("run", "T-1", "--detach")
    recovered.started()
    watch_as_cron(recovered, code=0)
    import fcntl

    with open(recovered.runs / LIVE / ".watch.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another pass is at work" in watch_as_cron(recovered, code=0).stderr


def test_a_launcher_that_was_killed_leaves_a_run_that_the_watcher_adopts(recovered: Kit):
    configure(recovered, training={"max_steps": 9999})
    recovered("run", "T-1", "--detach")
    run = recovered.started()
    wait_until(lambda: reached(run, 3), "step 3")
    pids = [int(p) for p in os.listdir("/proc") if p.isdigit() and is_sidecar_of(run, p)]
    os.kill(events(run, "launched")[0]["launcher"]["pid"], signal.SIGKILL)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_sidecar_of(run, p) for p in os.listdir("/proc") if p.isdigit()), "no sidecar")
    assert "it has one now" in watch_as_cron(recovered, code=0).stderr
    step = len(events(run, "step"))
    wait_until(lambda: len(events(run, "step")) > step, "its steps are journaled again")
    assert not events(run, "abort") and "sidecar" not in watch_as_cron(recovered, code=0).stderr


def is_sidecar_of(run: Path, pid: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"sidecar" in words and os.fsencode(run) in words


def test_memory_that_runs_out_goes_on_with_the_smaller_settings_once(recovered: Kit):
    line = b"RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n".hex()
    configure(
        recovered, "--at", "12", f"raw={line}", "--at", "12", "exit=1",
        training={"batch_size": 8}, abort={"oom_set": ["training.batch_size=4"]},
    )  # fmt: skip
    recovered("run", "T-1", code=1)
    first, second = recovered.run_dirs()
    assert events(first, "abort")[0]["cause"] == "oom"
    assert json.loads((second / "resolved_config.json").read_text())["training"]["batch_size"] == 4
    assert json.loads((second / "run.json").read_text())["settings"] == ["training.batch_size=4"]
    assert "in force already" in events(second, "recovery")[-1]["reason"]


def test_without_smaller_settings_memory_that_runs_out_is_a_person_s(recovered: Kit):
    line = b"torch.OutOfMemoryError: out of memory\n".hex()
    configure(recovered, "--at", "12", f"raw={line}", "--at", "12", "exit=1")
    recovered("run", "T-1", code=1)
    (only,) = recovered.run_dirs()
    assert "abort.oom_set" in events(only, "recovery")[-1]["reason"]


def test_a_trainer_that_sets_its_own_rate_is_not_pretended_to_be_cut(recovered: Kit):
    configure(recovered, "--nan-from", "32", training={"max_steps": 9999}, trainer={"loads_with_kit": False})
    recovered("run", "T-1", code=8)
    (only,) = recovered.run_dirs()
    assert "sets its own learning rate" in events(only, "recovery")[-1]["reason"]


def test_a_trainer_that_takes_its_rate_as_an_argument_is_handed_a_cut_one(recovered: Kit):
    """NaN at a rate of 0.7 or more: the second cut, of 1.0 to 0.64, heals it, and a resume by hand keeps that."""
    configure(
        recovered, "--nan-from", "22", "--nan-lr", "0.7", "--lr", "{optimizer.lr}", optimizer={"lr": 1.0},
        recover={"lr_args": ["--lr", "{lr}"]}, training={"max_steps": 130},
        trainer={"loads_with_kit": False, "log_patterns": {**PATTERNS, "lr": "lr ([0-9.e-]+)"}},
    )  # fmt: skip
    done = recovered("run", "T-1")
    runs = recovered.run_dirs()
    handed = [json.loads((run / "run.json").read_text())["handed_rate"] for run in runs]
    assert [one and (one["before"], one["factor"], one["args"]) for one in handed] == [
        None,
        (1.0, 0.8, ["--lr", "0.8"]),
        (1.0, pytest.approx(0.64), ["--lr", "0.64"]),
    ]
    argv = [json.loads((run / "run.json").read_text())["argv"] for run in runs]
    assert [one[-2:] for one in argv[1:]] == [["--lr", "0.8"], ["--lr", "0.64"]]
    assert "--lr 0.64" in (runs[-1] / "command.sh").read_text()
    assert "--lr 0.64 (recover.lr_args): optimizer.lr 1 x 0.64, cut by recoveries" in done.stderr
    rates = {check["name"]: check for check in events(runs[-1], "check")}["lr"]
    assert (rates["verdict"], recovered.status(runs[-1])["lr_scale"]) == ("passed", pytest.approx(0.64))
    page = recovered("resume", "T-1", "--step", "100", "--dry-run").stdout
    assert "lr handed    --lr 0.64" in page and "lr_scale" not in page
    undone = recovered("resume", "T-1", "--step", "100", "--set", "recover.lr_args=null", "--dry-run").stdout
    assert "lr_scale: 0.64 -> 1" in undone and "lr handed" not in undone


def test_a_run_that_fails_behind_its_last_step_is_a_person_s(recovered: Kit):
    configure(recovered, "--exit", "3")
    recovered("run", "T-1", code=3)
    (only,) = recovered.run_dirs()
    assert "had done its last step" in events(only, "recovery")[-1]["reason"]


def test_what_a_dead_trainer_left_running_is_ended_before_the_next_one_starts(recovered: Kit):
    configure(recovered, "--at", "11", "child", "--at", "12", "kill", training={"max_steps": 30})
    recovered.popen("run", "T-1")
    second = recovered.started(2)
    left, warning = events(recovered.run_dirs()[0], "warning")
    assert (left["kind"], warning["kind"]) == ("left_behind", "orphans_killed")
    assert "killed" in warning["message"] and "do not end" not in warning["message"]
    assert wait_until(lambda: events(second, "recovery"), "its first event")[0]["cause"] == "died"


def test_a_stop_that_comes_while_a_recovery_is_made_holds(recovered: Kit, monkeypatch: pytest.MonkeyPatch):
    run = nonfinite_without_a_launcher(recovered)
    monkeypatch.setenv("RESUMEKIT_TEST_MARK", recovered.mark)
    real = pipeline.preflight.check

    def check(*args: Any) -> Any:
        recovered("abort-watch", "--stop", "T-1")
        return real(*args)

    monkeypatch.setattr(pipeline.preflight, "check", check)
    assert recovering.recover(run, os.getpid()) == recovering.NOTHING
    assert recovered.run_dirs() == [run] and recovered.status(run)["state"] in ("aborted", "stopped")
    monkeypatch.setattr(pipeline.preflight, "check", real)
    assert recovering.recover(run, os.getpid()) == recovering.NOTHING


def test_checkpoints_that_cannot_be_listed_are_no_reason_to_begin_anew(recovered: Kit):
    recovered("run", "T-1", "--detach")
    run = recovered.started()
    wait_until(lambda: reached(run, 12), "step 12")
    kill_all_of(run)
    journal.append(run / "journal.jsonl", "checkpoint", run.name, step=10, path="x", finite=True)
    shutil.rmtree(run / "checkpoints")
    watch_as_cron(recovered, code=8)
    reason = over(recovered, run, "needs_attention")["recovery"]["reason"]
    assert "no checkpoint" in reason and recovered.run_dirs() == [run]


def test_a_run_of_another_container_is_taken_up_when_its_lock_and_its_files_say_that_it_is_dead(recovered: Kit):
    recovered("run", "T-1", "--detach")
    run = recovered.started()
    wait_until(lambda: reached(run, 3), "step 3")
    family = list(marked_pids(f"RESUMEKIT_TEST_MARK={recovered.mark}"))
    for number in (signal.SIGSTOP, signal.SIGKILL):  # as with a container: nothing of it starts a sidecar again
        for pid in family:
            os.kill(pid, number)
    record = json.loads((run / "run.json").read_text())
    record["pid_namespace"] = "pid:[1]"
    (run / "run.json").write_text(json.dumps(record))
    reseal(run)
    said = watch_as_cron(recovered, code=0).stdout
    assert "its files are changing" in said and "look again once nothing has changed" in said
    assert recovered.run_dirs() == [run] and live(recovered) == [run.name]
    age(run)
    with open(run / "trainer.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "remote" in watch_as_cron(recovered, code=0).stdout
    assert recovered.run_dirs() == [run] and live(recovered) == [run.name]
    (run / "trainer.lock").rename(run / "kept")  # a run of the version before: nothing proves its death
    said = watch_as_cron(recovered, code=0).stdout
    assert "unknown" in said and "--take-over" in said and recovered.run_dirs() == [run]
    (run / "kept").rename(run / "trainer.lock")
    age(run)
    assert "lost" in recovered("runs", "T-1").stdout
    watch_as_cron(recovered, code=8)
    wait_until(lambda: len(recovered.run_dirs()) == 2, "it is taken up")
    (child,) = [one for one in recovered.run_dirs() if one != run]
    wait_until(lambda: events(child, "recovery"), "it trains")


@pytest.mark.fault("K2", by="live_marker.py: a marker holds its own inode number")
def test_a_copied_tree_of_runs_is_looked_at_and_nothing_in_it_is_started(recovered: Kit, tmp_path: Path):
    recovered("run", "T-1", "--detach")
    run = recovered.started()
    wait_until(lambda: reached(run, 12), "step 12")
    kill_all_of(run)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(recovered.runs), str(copy)], check=True)
    shutil.rmtree(recovered.runs)
    recovered.runs = copy
    assert "left alone: its marker" in watch_as_cron(recovered, code=8).stderr
    time.sleep(1)
    assert [path.name for path in recovered.run_dirs()] == [run.name]
    assert not events(copy / run.name, "abort")


def test_a_value_of_trainer_env_that_is_not_here_is_asked_for(recovered: Kit):
    configure(recovered, trainer={"env": ["RESUMEKIT_TEST_MARK", "LAB_TOKEN"]})
    recovered("run", "T-1", "--detach", env={"LAB_TOKEN": "s3cret-value"})
    run = recovered.started()
    wait_until(lambda: reached(run, 12), "step 12")
    kill_all_of(run)
    watch_as_cron(recovered, code=8)
    reason = over(recovered, run, "needs_attention")["recovery"]["reason"]
    assert "LAB_TOKEN" in reason and "s3cret-value" not in reason
    assert recovered.run_dirs() == [run]


def test_a_notify_command_that_fails_is_written_down(recovered: Kit):
    configure(
        recovered, "--at", "1", "raise", recover={"max_attempts": 1}, notify={"command": ["false"]},
        trainer={"log_patterns": NO_STEPS},
    )  # fmt: skip
    recovered("run", "T-1", code=1)
    (run,) = recovered.run_dirs()
    assert events(run, "warning")[-1]["kind"] == "notify_failed"


def test_a_checkpoint_that_two_starts_died_of_is_left_alone(recovered: Kit):
    """The toy dies of a signal when it loads step 10: the third start takes step 5."""
    configure(recovered, "--at", "12", "kill")
    launcher = recovered.popen("run", "T-1", env={"TOY_ARGS": "--die-on-load 10"})
    launcher.communicate(timeout=90)
    runs = recovered.run_dirs()
    starts = [json.loads((run / "run.json").read_text())["parent_step"] for run in runs]
    assert starts[:4] == [None, 10, 10, 5]
    (entry,) = json.loads((runs[0] / "quarantine.json").read_text())
    assert entry["file"] == "hrm_arc_step_10.pt" and "two starts" in entry["reason"]


@pytest.mark.long
def test_a_person_s_resume_keeps_the_cut_of_a_child_that_had_no_checkpoint(recovered: Kit):
    run = nonfinite_without_a_launcher(recovered)
    watch_as_cron(recovered, code=8)
    child = recovered.started(2)
    kill_all_of(child)
    shown = json.loads(recovered("resume", "T-1", "--dry-run", "--json", code=None).stdout)
    assert (shown["parent_run_id"], shown["checkpoint"]["run_id"]) == (child.name, run.name)
    assert shown["lr_scale"]["factor"] == pytest.approx(0.8)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab's repository with the kit in a subfolder, its trainer knows nothing of us, and recovery is on."""
    lab = Lab(make_lab(tmp_path / "a lab"))
    config = json.loads((lab.kit / "config.yaml").read_text())
    config["recover"] = {"enabled": True, "backoff_s": 1, "replay_steps": 5}
    config["trainer"]["env"] = ["RESUMEKIT_TEST_MARK"]
    config["trainer"]["command"] += ["--hold", str(tmp_path / "hold")]
    (lab.kit / "config.yaml").write_text(json.dumps(config, indent=1))
    git(lab.folder, "commit", "-qam", "our settings")
    (tmp_path / "hold").touch()
    yield lab
    Kit.clean_up(lab)


@pytest.mark.parametrize(
    "change", ["config", "code", *(pytest.param(one, marks=pytest.mark.long) for one in ("allowed", "nothing"))]
)
def test_the_night_at_three_in_a_lab_s_repository(lab: Lab, tmp_path: Path, change: str):
    """The watcher, from an empty environment: the child has the parent's environment and config, or it says why not."""
    config = lab.kit / "config.yaml"
    if change == "allowed":
        document = json.loads(config.read_text())
        document["recover"]["allow_code_change"] = True
        config.write_text(json.dumps(document, indent=1))
        git(lab.folder, "commit", "-qam", "may change")
    started = {**lab.env, "CUDA_VISIBLE_DEVICES": "5", "VIRTUAL_ENV": str(Path(sys.executable).parent.parent)}
    subprocess.run([lab.bin("run"), "LAB-1", "--detach"], env=started, cwd=lab.folder, check=True, capture_output=True)
    (first,) = lab.run_dirs()
    wait_until(lambda: reached(first, 17), "step 17")
    kill_all_of(first)
    (tmp_path / "hold").unlink()
    document = json.loads(config.read_text())
    document["training"]["max_steps"] = 999
    config.write_text(json.dumps(document))
    git(lab.folder, "update-index", "--assume-unchanged", "resumekit/config.yaml")
    if change in ("code", "allowed"):
        trainer = lab.folder / "train.py"
        trainer.write_text(trainer.read_text() + "\n# edited meanwhile\n")
    elif change == "config":
        config.write_text("this: [is no config")

    cron = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "RESUMEKIT_TEST_MARK": lab.mark}
    watch = [lab.bin("abort-watch"), "--runs", str(lab.runs)]
    subprocess.run(watch, env=cron, cwd="/", check=False, capture_output=True, timeout=120)
    if change == "code":
        wait_until(lambda: events(first, "recovery"), "the reason")
        reason = events(first, "recovery")[-1]["reason"]
        assert "the code has changed since the run began" in reason and len(lab.run_dirs()) == 1
        return
    wait_until(lambda: len(lab.run_dirs()) == 2 and events(lab.run_dirs()[1], "exited"), "the child has ended")
    second = lab.run_dirs()[1]
    old, new = (json.loads((run / "resolved_config.json").read_text()) for run in (first, second))
    assert old == new and new["training"]["max_steps"] == 30
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    records = [json.loads((run / "run.json").read_text()) for run in (first, second)]
    values = [{k: v for k, v in record["environment"]["values"].items() if k != "PYTHONPATH"} for record in records]
    assert values[0] == values[1] and values[1]["CUDA_VISIBLE_DEVICES"] == "5"
    assert records[0]["argv"][0] == records[1]["argv"][0] and records[0]["cwd"] == records[1]["cwd"]
    assert max(event["step"] for event in events(second, "step")) == 30


def test_the_launcher_s_identity_is_the_child_s_too(recovered: Kit):
    """The launcher goes on in the same process: the process that supervised the parent supervises the child."""
    launcher = recovered.popen("run", "T-1")
    first = recovered.started()
    wait_until(lambda: reached(first, 6), "step 6")
    kill_trainer(first)
    second = recovered.started(2)
    who = [processes.identity_from(events(run, "launched")[0]["launcher"]) for run in (first, second)]
    assert who[0] == who[1] and who[0].pid == launcher.pid
    launcher.communicate(timeout=60)
