"""Section A of the catalogue, the trainer ends: each case a whole night under launcher, watcher and oracle."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from reliability import campaign_kills
from reliability.oracle import Oracle
from support import namespaces
from support.fork_server import ForkServer
from support.long_tests import long
from support.nights import HANG_MINUTES, Night, one, proven_steps, record, sidecar_supervisor_of
from support.places import LIB, TOY
from support.processes import DEADLINE_S, wait_until
from support.runs import events


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a launcher; returns (exit code, what it said)."""
    _, said = process.communicate(timeout=DEADLINE_S)
    return process.returncode, said.decode("utf-8", "replace")


@pytest.mark.fault("A1", by="launcher.sh: recover, in the same process; loading.py: bit for bit")
@pytest.mark.parametrize("seed", [11, long(12), long(13), long(14)])
def test_kill_nine_at_random_moments_loses_nothing_and_changes_no_bit(
    tmp_path: Path, warm_server: ForkServer, seed: int
) -> None:
    """25 kills of trainer, launcher, sidecar and watcher; `campaign_kills.py --kills 1000` is the long version."""
    nights = list(campaign_kills.nights(tmp_path, warm_server, random.Random(seed), kills=25))
    assert [fault for night in nights for fault in night.faults] == []
    assert sum(night.kills.total() for night in nights) == 25


@pytest.mark.long
def test_kill_nine_behind_a_script_loses_nothing_and_starts_nothing_beside_it(
    tmp_path: Path, warm_server: ForkServer
) -> None:
    """A train.sh stands before the trainer: the script is killed, or the Python inside it; a dozen of 300 kills."""
    nights = list(campaign_kills.nights(tmp_path, warm_server, random.Random(21), kills=12, has_wrapper=True))
    assert [fault for night in nights for fault in night.faults] == []
    assert sum(night.kills.total() for night in nights) == 12


@pytest.mark.fault("A1", by="launcher.sh: recover; restart_point.py: the newest proven checkpoint")
def test_a_killed_trainer_goes_on_from_its_newest_proven_checkpoint(warm_night: Night) -> None:
    warm_night.config("--delay", "0.01", training={"max_steps": 60})
    process = warm_night.popen("run", "T-1")
    first = warm_night.started()
    wait_until(lambda: len(proven_steps(first)) >= 2, "two checkpoints")
    os.kill(warm_night.who(first, "trainer"), signal.SIGKILL)
    child = warm_night.next_of(first)
    code, said = end(process)
    assert (code, warm_night.state(child)) == (0, "finished")
    assert f"by signal 9: continuing '{first.name}'" in said
    assert record(child)["parent_step"] == proven_steps(first)[-1]
    assert one(first, "abort")["cause"] == "died"


@pytest.mark.fault("A2", by="night_trainer: save_checkpoint; status.py: preempted; recovering.py: nothing to take up")
def test_a_preempted_trainer_has_saved_is_left_alone_and_loses_no_step(warm_night: Night) -> None:
    warm_night.env["SLURM_JOB_ID"] = "48123"
    warm_night.config("--delay", "0.01", "--every", "1000", training={"max_steps": 60})
    process = warm_night.popen("run", "T-1")
    first = warm_night.started()
    wait_until(lambda: len(events(first, "step")) > 5, "some steps")
    os.kill(warm_night.who(first, "trainer"), signal.SIGTERM)  # the scheduler's, not the launcher's
    assert end(process)[0] == 143
    assert (warm_night.state(first), len(warm_night.run_dirs())) == ("preempted", 1)
    warm_night.watch(code=0)
    assert not events(first, "abort")
    last = events(first, "step")[-1]["step"]
    assert proven_steps(first) == [last]
    warm_night("run", "T-1")
    assert events(warm_night.run_dirs()[-1], "step")[0]["step"] == last + 1


@pytest.mark.fault("A2", by="launcher.sh: which run it is, before the traps")
def test_term_is_heard_from_the_first_command_on_that_can_hear_it(night: Night, tmp_path: Path) -> None:
    """Bash sends it to itself, before the next command after the trap is there."""
    script = tmp_path / "bash_env"
    script.write_text(
        "unset BASH_ENV\nset -T\nKIT_SENT=0\ntrap '[[ $BASHPID != $$ || $KIT_SENT == 1 || -z $(trap -p TERM) ]] || "
        "{ KIT_SENT=1; kill -TERM $$; }' DEBUG\n"
    )
    night.config("--delay", "0.02", training={"max_steps": 100_000})
    process = night.popen("run", "T-1", env={"BASH_ENV": str(script)})
    assert end(process)[0] == 143
    (run,) = night.run_dirs()
    assert one(run, "stopped")["by"] == "TERM" and night.state(run) == "stopped"


@pytest.mark.long
@pytest.mark.fault("A3", by="saving.py: deferred_signals; temp file and rename")
def test_term_in_the_middle_of_a_save_makes_no_half_of_one(warm_night: Night) -> None:
    warm_night.config("--delay", "0.005", "--every", "5", training={"max_steps": 2000})
    process = warm_night.popen("run", "T-1")
    first = warm_night.started()
    trainer = warm_night.who(first, "trainer")

    def in_a_save() -> bool:
        return any(name.startswith(".") for name in os.listdir(first / "checkpoints"))

    deadline = time.monotonic() + DEADLINE_S
    while not in_a_save():
        assert time.monotonic() < deadline
    os.kill(trainer, signal.SIGTERM)
    assert end(process)[0] == 143
    assert not in_a_save(), "no temp file is left"
    assert proven_steps(first)[-1] == events(first, "step")[-1]["step"]
    warm_night("run", "T-1", "--dry-run", code=0)


@pytest.mark.fault("A7", by="run_end.py: the end that was seen, and no guess at its cause")
@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory", os.W_OK), reason="no memory cgroup may be made here")
def test_a_trainer_that_the_kernel_kills_for_memory_is_taken_up(night: Night) -> None:
    """A real kill by a memory cgroup; without evidence in the log it is called what was seen: signal 9."""
    cgroup = Path("/sys/fs/cgroup/memory") / f"resumekit-{night.mark}"
    cgroup.mkdir()
    try:
        (cgroup / "memory.limit_in_bytes").write_text(str(48 << 20))
        script = night.once / "trainer.sh"
        grow = 'print("step 1 loss 1", flush=True); time.sleep(.3); x = bytearray(1 << 30)'
        script.write_text(
            f"""if [ ! -e "$1/grown" ]; then
  touch "$1/grown"; echo $$ > {cgroup}/cgroup.procs; exec python3 -c 'import time; {grow}'
fi
echo "step 1 loss 1"; echo "step 2 loss 1"
"""
        )
        night.config(
            trainer={"command": ["sh", str(script), str(night.once)], "resume_args": ["{checkpoint}"]},
            training={"max_steps": 2},
        )
        code, _ = end(night.popen("run", "T-1"))
        first, _child = night.run_dirs()
        assert "oom_kill 1" in (cgroup / "memory.oom_control").read_text()
    finally:
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), "no process is left in the cgroup")
        cgroup.rmdir()
    assert code == 0
    told = one(first, "abort")
    assert (told["cause"], "by signal 9" in told["evidence"]) == ("died", True)


@pytest.mark.fault("A8", by="shim.py: the signal in exit.json; launcher.sh: recover")
@pytest.mark.parametrize("name", ["SEGV", "ABRT", "BUS"])
def test_a_crash_by_signal_is_named_and_taken_up(warm_night: Night, name: str) -> None:
    warm_night.config("--at", "25", f"die={name}", training={"max_steps": 40})
    warm_night("run", "T-1", code=0)
    first, child = warm_night.run_dirs()
    number = int(signal.Signals[f"SIG{name}"])
    assert one(first, "abort")["evidence"] == f"the trainer ended at step 24 by signal {number}"
    assert (warm_night.state(child), record(child)["parent_step"]) == ("finished", 20)


@pytest.mark.fault("A9", by="aborting.py: the log's last lines; eligibility.py: the budget")
def test_an_exception_at_the_same_step_is_retried_inside_the_budget_and_its_last_words_are_kept(
    warm_night: Night,
) -> None:
    warm_night.config("--at", "25", "raise=no such luck", training={"max_steps": 40}, recover={"max_attempts": 2})
    done = warm_night("run", "T-1", code=1)
    runs = warm_night.run_dirs()
    assert [warm_night.state(run) for run in runs][-1] == "needs_attention"
    # The first came to step 24, and each after it no further.
    assert len(runs) == 3, done.stderr
    lines = one(runs[0], "abort")["log_lines"]
    assert len(lines) == 20 and "RuntimeError: no such luck" in lines[-1]
    assert "2 starts in a row" in one(runs[-1], "abort")["evidence"]


@pytest.mark.fault("A10", by="status.py: code 0 alone proves nothing")
@pytest.mark.fault("A11", by="status.py: the last step; eligibility.py: said, not guessed at")
def test_exit_0_before_the_last_step_is_ended_early_and_no_run_goes_on(night: Night) -> None:
    night.config("--at", "7", "exit=256", "--save-every", "5", training={"max_steps": 20})
    night("run", "T-1", code=0)
    (run,) = night.run_dirs()
    assert (night.state(run), night.status(run)["exit_code"]) == ("ended_early", 0)
    night.watch(code=0)
    assert night.run_dirs() == [run] and not events(run, "abort")


@pytest.mark.fault("A12", by="nan_guard.py: no marker is left; recovering.py: nothing to take up")
def test_the_watcher_does_nothing_about_a_normal_end_for_ever(night: Night) -> None:
    night("run", "T-1", code=0)
    (run,) = night.run_dirs()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for _ in range(3):
        assert night.watch(code=0).stdout == ""
    night("abort-watch", "--stop", "T-1", code=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert night.run_dirs() == [run]


@pytest.mark.long
@pytest.mark.fault("A13", by="observe.py: fruitless starts; recovering.py: doubling waits")
def test_a_crash_loop_stops_after_three_starts_a_second_and_two_apart(night: Night) -> None:
    # An import that fails would not be tried again: the user who has started it waits for it.
    fails = "raise ConnectionError('the data server does not answer')"
    night.config(trainer={"command": ["{python}", "-c", fails]}, training={"max_steps": 20})
    begun = time.monotonic()
    done = night("run", "T-1", code=1)
    assert time.monotonic() - begun >= 3.0
    runs = night.run_dirs()
    assert len(runs) == 3 and night.state(runs[-1]) == "needs_attention", done.stderr
    at = [datetime.fromisoformat(one(run, "launched")["at"].replace("Z", "+00:00")).timestamp() for run in runs]
    ends = [datetime.fromisoformat(one(run, "exited")["at"].replace("Z", "+00:00")).timestamp() for run in runs]
    assert at[1] - ends[0] >= 0.9 and at[2] - ends[1] >= 1.9
    night.watch(code=0)
    assert len(night.run_dirs()) == 3


QUICK_TO_STOP = {"hang_minutes": 4 * HANG_MINUTES, "grace_s": 2}


@pytest.mark.long
@pytest.mark.fault("A15", by="launcher.sh: recover; rules.py: hang, where torch waits for ever for it")
def test_a_killed_data_worker_ends_the_trainer_with_a_sentence_and_it_goes_on(warm_night: Night) -> None:
    warm_night.config("--at", "25", "worker", training={"max_steps": 40}, abort=QUICK_TO_STOP)
    process = warm_night.popen("run", "T-1")
    first = warm_night.started()
    # One that was killed in a bad moment lets torch wait for it: then the hang rule ends it.
    child = warm_night.watched(lambda: warm_night.child(first), "it is taken up")
    assert end(process)[0] == 0
    if one(first, "abort")["cause"] == "died":
        assert one(first, "exited")["code"] == 1
        assert re.search(
            "DataLoader worker .* is killed by signal|Connection.*Error|EOFError",
            (first / "logs" / "output.log").read_text(),
        )
    else:
        assert one(first, "abort")["cause"] == "hang"
    assert warm_night.state(child) == "finished"


# A trainer with a data worker that stops in the middle, once, and goes on waiting for it.
WAITS_FOR_DATA = """
import sys, time
from pathlib import Path

sys.path.append({toys!r})
import toy_trainer
import torch

class Waits(torch.utils.data.Dataset):
    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        if index == 24 and not (once / "stopped").exists():
            (once / "stopped").touch()
            time.sleep(10**6)  # a network file system that does not answer
        return index

folder, steps, once = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
begun = toy_trainer.read_step(Path(sys.argv[5])) if "--resume" in sys.argv else 0
loading = iter(torch.utils.data.DataLoader(Waits(), num_workers=1))
print("worker", loading._workers[0].pid, flush=True)
for step in range(begun + 1, steps + 1):
    next(loading)
    print(f"step {{step}} loss {{1 / step:.4f}}", flush=True)
    if step % 10 == 0:
        toy_trainer.write_checkpoint(folder / f"hrm_arc_step_{{step}}.pt", step)
"""


@pytest.mark.long
@pytest.mark.fault("A15", by="rules.py: hang; stopping.py: KILL to the session, workers too")
def test_a_data_worker_that_hangs_is_found_by_the_hang_rule_and_ended_with_its_trainer(night: Night) -> None:
    script = night.once / "trainer.py"
    script.write_text(WAITS_FOR_DATA.format(toys=str(TOY.parent)))
    words = ["{python}", str(script), "{checkpoints_dir}", "{training.max_steps}", str(night.once)]
    night.config(
        trainer={"command": words, "resume_args": ["--resume", "{checkpoint}"]},
        training={"max_steps": 40}, abort=QUICK_TO_STOP,
    )  # fmt: skip
    process = night.popen("run", "T-1")
    first = night.started()
    wait_until(lambda: len(events(first, "step")) == 24, "it waits for its data")
    assert process.poll() is None
    child = night.watched(lambda: night.child(first), "it is taken up")
    told = one(first, "abort")
    assert told["cause"] == "hang" and told["evidence"].startswith("no step since step 24"), told
    worker = int(re.search(rb"worker (\d+)", (first / "logs" / "output.log").read_bytes())[1])
    assert not Path(f"/proc/{worker}").exists() or b") Z" in Path(f"/proc/{worker}/stat").read_bytes()
    assert end(process)[0] == 0
    assert (record(child)["parent_step"], night.state(child)) == (20, "finished")


@pytest.mark.fault("A16", by="aborting.py: the log's last lines; launcher.sh: recover")
def test_no_file_descriptors_left_is_named_and_taken_up(warm_night: Night) -> None:
    warm_night.config("--at", "25", "files", training={"max_steps": 40})
    warm_night("run", "T-1", code=0)
    first, child = warm_night.run_dirs()
    assert "Too many open files" in one(first, "abort")["log_lines"][-1]
    assert warm_night.state(child) == "finished"


@pytest.mark.fault("A17", by="rules.py: hang_minutes; observe.py: the monotonic clock")
def test_a_trainer_that_is_stopped_and_goes_on_is_not_touched(night: Night) -> None:
    night.config("--delay", "0.02", training={"max_steps": 100_000}, abort={"hang_minutes": 1, "grace_s": 20})
    run = night.start()
    trainer = night.who(run, "trainer")
    os.kill(trainer, signal.SIGSTOP)
    time.sleep(1.5)
    night.watch(code=0)
    os.kill(trainer, signal.SIGCONT)
    told = len(events(run, "step"))
    wait_until(lambda: len(events(run, "step")) > told + 20, "it goes on")
    assert night.watch(code=0).stdout.split()[1] == "running"
    assert not events(run, "abort") and night.run_dirs() == [run]


# Starts a run's sidecar for which a machine that does nothing for two seconds has slept.
LIGHT_SLEEPER = """
import sys
from pathlib import Path

sys.path.append(sys.argv[1])
from resumekit.process import sidecar, clock_gap

clock_gap.GAP_S = 2.0
sys.exit(sidecar.main(Path(sys.argv[2]), has_echo=False))
"""


@pytest.mark.long
@pytest.mark.fault("A17", by="clock_gap.py: clock_gap; journal_fold.py: all ages begin there anew")
def test_a_machine_that_sleeps_beyond_the_hang_limit_and_wakes_up_is_journaled_and_stops_no_run(night: Night) -> None:
    """Trainer and sidecar stand still and go on, the trainer a little later: until then its step stays as old."""
    limit_s = 6.0
    night.config("--delay", "0.02", training={"max_steps": 100_000}, abort={"hang_minutes": limit_s / 60})
    run = night.start()
    old, trainer = wait_until(lambda: night.sidecar(run), "its sidecar"), night.who(run, "trainer")
    _kill(sidecar_supervisor_of(old), old)
    sleeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", LIGHT_SLEEPER, str(LIB), str(run)], env=night.env)
    wait_until(lambda: one_more_step(run), "it is followed again")
    os.kill(trainer, signal.SIGSTOP)
    time.sleep(1)  # its last line is read: told after the sleep, it would be a step of that moment
    os.kill(sleeper.pid, signal.SIGSTOP)
    time.sleep(limit_s + 2)
    os.kill(sleeper.pid, signal.SIGCONT)
    gap = wait_until(lambda: [event for event in events(run, "warning") if event["kind"] == "clock_gap"], "it is said")
    assert gap[0]["seconds"] > limit_s
    done = night.watch(code=0)
    assert time.monotonic() - events(run, "step")[-1]["mono_s"] > limit_s and "suspended" in done.stdout, done.stdout
    os.kill(trainer, signal.SIGCONT)
    wait_until(lambda: one_more_step(run), "it goes on")
    assert night.watch(code=0).stdout.split()[1] == "running"
    assert len(gap) == 1 and not events(run, "abort") and night.run_dirs() == [run]


def one_more_step(run: Path) -> bool:
    """Whether a step is told that was not there a moment ago."""
    known = len(events(run, "step"))
    time.sleep(0.5)
    return len(events(run, "step")) > known


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.fault("A18", by="acting.py: a sidecar for what has lost its launcher, then recover")
def test_an_orphan_is_adopted_and_taken_up_when_it_dies(warm_night: Night) -> None:
    warm_night.config("--delay", "0.02", training={"max_steps": 100_000})
    run = warm_night.start(steps=25)
    warm_night.kill_launcher(run)
    wait_until(lambda: not warm_night.sidecar(run), "no sidecar follows it")
    refused = warm_night("run", "T-1", code=6)
    assert "is alive (unsupervised" in refused.stderr
    said = warm_night.watch(code=0)
    assert "it has one now" in said.stderr
    warm_night.state_is(run, "unsupervised")
    assert not events(run, "abort")
    os.kill(warm_night.who(run, "trainer"), signal.SIGKILL)
    child = warm_night.watched(lambda: warm_night.child(run), "it is taken up")
    wait_until(lambda: events(child, "step"), "it trains")
    assert record(child)["parent_step"] == proven_steps(run)[-1]
    launched = one(child, "launched")
    assert Path(f"/proc/{launched['launcher']['pid']}").exists(), "it has a launcher again"


@pytest.mark.fault("A14", by="shim.py: its output goes to a file; acting.py: another sidecar")
def test_a_log_follower_that_is_gone_for_good_stops_nothing(night: Night) -> None:
    night.config("--delay", "0.02", "--save-every", "10", training={"max_steps": 150})
    run = night.start()
    night.kill_launcher(run)
    night.watch(code=0)
    wait_until(lambda: night.state(run) == "finished", "its end is known")
    shown = [json.loads(line)["step"] for line in (run / "journal.jsonl").read_text().splitlines() if '"step"' in line]
    assert shown and max(shown) == 150
    assert len(night.run_dirs()) == 1


FOREIGN = """
import sys, time
from pathlib import Path

sys.path.append({toys!r})
import toy_trainer

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
begun = toy_trainer.read_step(Path(sys.argv[4])) if "--resume" in sys.argv else 0
for step in range(begun, steps):
    print(f"step {{step + 1}} loss {{1 / (step + 1):.4f}} {{'.' * 200}}", flush=True)
    time.sleep(0.0 if begun else 0.02)
    if step + 1 in (10, 20, 30):
        toy_trainer.write_checkpoint(folder / f"hrm_arc_step_{{step + 1}}.pt", step + 1)
"""


@pytest.mark.long  # the launcher asks again after a minute
@pytest.mark.fault("A14", by="recovering.py: what may pass is tried again, and the launcher says why it waits")
@pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))
def test_a_foreign_trainer_that_fails_in_its_own_print_on_a_full_disk_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    """Its traceback finds no room either: what names the disk is the launcher, on a terminal that is not full."""

    def work() -> None:
        night, filler = Night(tmp_path / "night"), tmp_path / "filler"
        script = night.once / "trainer.py"
        script.write_text(FOREIGN.format(toys=str(TOY.parent)))
        words = ["{python}", str(script), "{checkpoints_dir}", "{training.max_steps}"]
        night.config(
            trainer={"command": words, "resume_args": ["--resume", "{checkpoint}"]}, training={"max_steps": 2000},
            abort={"free_mb": 1},
        )  # fmt: skip
        try:
            with Oracle(night.runs, lambda: night("run", "T-1", "--dry-run", code=None)) as oracle:
                process = night.popen("run", "T-1")
                first = night.started()
                wait_until(lambda: proven_steps(first) == [10, 20, 30], "its checkpoints are attested")
                namespaces.fill(filler)
                wait_until((first / "exit.json").exists, "it has failed in its own print")
                said = waited_for(process, b"cannot be taken up now")
                assert (b"No space left" in said or b" full: " in said) and b"it is tried again" in said, said
                assert night.run_dirs() == [first] and not events(first, "abort")
                filler.unlink()
                child = night.next_of(first, deadline_s=100)
                assert end(process)[0] == 0
                assert (one(first, "abort")["cause"], one(first, "exited")["code"]) == ("died", 1)
                assert (night.state(child), record(child)["parent_step"]) == ("finished", 30)
                oracle.check()
        finally:
            night.clean_up()

    namespaces.on_small_disk(tmp_path, "size=40m", work)


def waited_for(process: subprocess.Popen, words: bytes) -> bytes:
    """Read what a launcher says until it has said this."""
    assert process.stderr
    said = b""
    while words not in said or not said.endswith(b"\n"):
        line = process.stderr.readline()
        assert line, f"it ended, and said {said!r}"
        said += line
    return said
