"""A stop behind a script whose trap is put off, hands on another signal, or does neither."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from resumekit.base import process_details, processes
from resumekit.base.paths import RunPaths
from resumekit.process import survivors
from resumekit.process.stop_signals import SAVE_BYTES, SaveSigns
from resumekit.run.run_folder import Run, open_run
from support.commands import Kit
from support.long_tests import long
from support.places import TOY
from support.processes import wait_until
from support.runs import events
from support.wrappers import begun, last_step, saved_steps, wrapped

pytestmark = pytest.mark.usefixtures("valid_records")

# It tells two steps, then trains in silence; a second signal ends it without a save.
SILENT = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toy_trainer import write_checkpoint
folder, name, save_s = Path(sys.argv[2]), f"SIG{sys.argv[3]}", float(sys.argv[4])
asked = []
def ask(got, _frame):
    with open(folder.parent / "signals", "a") as told:
        told.write(f"{signal.Signals(got).name}\\n")
    os._exit(99) if asked else asked.append(got)
signal.signal(signal.Signals[name], ask)
is_saving = len(sys.argv) > 5  # it has been told already, by a person say
print("step 1 loss 1\\nstep 2 loss 1", flush=True)
until = None
while until is None or time.monotonic() < until:
    time.sleep(0.02)
    if asked or is_saving:
        until = until or time.monotonic() + save_s
        folder.mkdir(exist_ok=True)
        (folder / "growing.tmp").open("ab").write(b"x" * 100)
        (folder / "growing.tmp").touch()
(folder / "growing.tmp").unlink()
write_checkpoint(folder / "hrm_arc_step_2.pt", 2)
sys.exit(143)
"""


def silent(kit: Kit, script: str, name: str, save_s: float, *more: str, **sections: dict) -> None:
    (kit.folder / "silent.py").write_text(SILENT)
    command = f'"$PYTHON" "${{0%/*}}/silent.py" "{TOY.parent}" "$2" {name} {save_s} {" ".join(more)}'
    wrapped(kit, script.replace("TRAIN", command), **sections)


def signals(run: Path) -> list[str]:
    return (run / "signals").read_text().split()


@pytest.mark.parametrize(
    "script",
    [
        "trap 'sleep 0.1' TERM\nTRAIN",
        long("trap 'sleep 0.1' TERM\nTRAIN | tee \"$0.log\""),
    ],
)
def test_what_a_shell_waits_for_is_told_once_though_no_step_is_seen(kit: Kit, script: str) -> None:
    """The shell puts its trap off until the child ends: nothing but the kit can have told it."""
    silent(kit, script, "TERM", 0.2, abort={"grace_s": 8})
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (signals(run), saved_steps(run), kit.status(run)["state"]) == (["SIGTERM"], [2], "stopped")


def test_a_child_that_saves_is_not_told_while_it_does(kit: Kit) -> None:
    """It was told from elsewhere; its save takes longer than what may have heard is waited for."""
    silent(kit, "trap 'sleep 0.1' TERM\nTRAIN", "TERM", 4, "saving", abort={"grace_s": 8})
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (saved_steps(run), (run / "signals").exists()) == ([2], False)


def test_a_background_child_is_not_told_though_no_step_is_seen(kit: Kit) -> None:
    """The trap has told it; its save shows nothing."""
    script = "trap 'kill -TERM $pid; wait $pid' TERM\nTRAIN &\npid=$!\nwait $pid"
    silent(kit, script, "TERM", 3.5, abort={"grace_s": 8})
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (signals(run), saved_steps(run)) == (["SIGTERM"], [2])


def test_a_trap_that_hands_on_another_signal_leaves_the_save_alone(kit: Kit) -> None:
    """Slurm's way: the trainer saves on USR1, and would die of TERM; Bash's wait ends at once."""
    silent(kit, "trap 'kill -USR1 $pid' TERM\nTRAIN &\npid=$!\nwait $pid", "USR1", 4, abort={"grace_s": 8})
    process, run = begun(kit)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (signals(run), saved_steps(run), kit.status(run)["state"]) == (["SIGUSR1"], [2], "stopped")


def test_signs_of_a_save_are_changes_in_its_folder_and_many_bytes(kit: Kit) -> None:
    kit.config("--steps", "1", training={"max_steps": 1})
    kit("run", "T-1")
    (folder,) = kit.run_dirs()
    run, own = open_run(folder), processes.identify(os.getpid())
    assert own
    signs = SaveSigns(run, [own])
    assert not signs.look([own])
    os.makedirs(run.paths.checkpoints / "step_3", exist_ok=True)
    assert signs.look([own]) and not signs.look([own])
    (run.paths.checkpoints / "step_3" / "model.tmp").write_bytes(b"x")
    assert signs.look([own]) and not signs.look([own])
    (kit.folder / "elsewhere").write_bytes(b"x" * SAVE_BYTES)
    assert signs.look([own]) and not signs.look([own])


KNOWS_USR1 = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: print(f"USR1 in {os.getpid()}", flush=True))
worker = os.fork()
print(f"pid {os.getpid()}", flush=True) if worker else None
for step in range(1, 10_000):
    if worker:
        print(f"step {step} loss 1.0", flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("trap", ["", "trap : USR1\n"])
def test_a_signal_that_is_passed_on_goes_to_what_has_a_handler_for_it(kit: Kit, trap: str) -> None:
    """Not to the shell, which would die of it, nor to a data worker."""
    (kit.folder / "knows.py").write_text(KNOWS_USR1)
    wrapped(kit, f'{trap}"$PYTHON" "${{0%/*}}/knows.py"\necho done', abort={"grace_s": 8})
    kit.config_file.write_text(kit.config_file.read_text().replace('"env":', '"pass_signals": ["USR1"], "env":'))
    process, run = begun(kit)
    process.send_signal(signal.SIGUSR1)
    log = run / "logs" / "output.log"
    wait_until(lambda: b"USR1 in" in log.read_bytes(), "it was handed on")
    before = last_step(run)
    wait_until(lambda: last_step(run) > before + 5, "it trains on")
    said = log.read_text().splitlines()
    pid = next(line.split()[1] for line in said if line.startswith("pid "))
    assert [line for line in said if line.startswith("USR1 in")] == [f"USR1 in {pid}"]
    assert processes.probe(processes.identity_from(events(run, "launched")[0]["trainer"])) == processes.ALIVE
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)


def test_a_signal_that_nothing_has_a_handler_for_is_not_passed_on(kit: Kit) -> None:
    wrapped(kit, '"$PYTHON" "$TOY" "$@"\necho done', "--delay", "0.05", abort={"grace_s": 8})
    kit.config_file.write_text(kit.config_file.read_text().replace('"env":', '"pass_signals": ["USR1"], "env":'))
    process, run = begun(kit)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: [one for one in events(run, "warning") if one["kind"] == "not_passed_on"], "it is said")
    before = last_step(run)
    wait_until(lambda: last_step(run) > before + 5, "it trains on")
    assert process.poll() is None and not events(run, "stopped")
    kit("abort-watch", "--stop", "--now", "T-1")
    process.communicate(timeout=60)


SPAWNS = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toy_trainer import write_checkpoint
def train(rank, folder):
    asked = []
    signal.signal(signal.SIGTERM, lambda got, _frame: os._exit(99) if asked else asked.append(got))
    pid = os.getpid()
    if rank == 0 and os.fork() == 0:  # a data worker
        while os.getppid() == pid:
            time.sleep(0.05)
            asked and os.getppid() == pid and print("the worker was told", flush=True)
        os._exit(0)
    step = 0
    while True:
        step += 1
        if rank == 0:
            print(f"step {step} loss 1.0", flush=True)
        time.sleep(0.05)
        if asked:
            time.sleep(0.5)
            if rank == 0:
                write_checkpoint(folder / f"hrm_arc_step_{step}.pt", step)
            os._exit(143)
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[3])
    os.write(os.open(os.devnull, os.O_WRONLY), b"x" * 4096)  # as much as its ranks' arguments
    ranks = [context.Process(target=train, args=(rank, Path(sys.argv[2])), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    if sys.argv[4] == "stays":
        time.sleep(1000)
    sys.exit(1)
"""


FEEDS = """
import time, torch
class Data(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield 0
if __name__ == "__main__":
    batches = iter(torch.utils.data.DataLoader(Data(), num_workers=1))
    next(batches)
    print("step 1 loss 1\\nstep 2 loss 1", flush=True)
    time.sleep(1000)
"""


def test_data_workers_are_no_ranks(kit: Kit) -> None:
    """Torch gives each a handler for TERM, and their trainer may have none."""
    (kit.folder / "feeds.py").write_text(FEEDS)
    wrapped(kit, 'exec "$PYTHON" "${0%/*}/feeds.py"', abort={"grace_s": 20})
    process, run = begun(kit)
    trainer = processes.trainer_of(events(run, "launched")[0], run / "logs" / "output.log")
    members = processes.session_members(trainer)
    workers = [one for one in members if one.pid != trainer.pid and process_details.catches(one.pid, signal.SIGTERM)]
    assert workers and survivors.spawned_ranks_of(open_run(run), trainer.pid, signal.SIGTERM, members) == []
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert kit.status(run)["state"] == "stopped"


@pytest.mark.parametrize(("how", "script", "then"), [
    long("fork", "exec TRAIN", "ends"), ("spawn", "exec TRAIN", "ends"),
    long("spawn", "TRAIN", "ends"), ("fork", "exec TRAIN", "stays"),
])  # fmt: skip
def test_spawned_ranks_are_told_instead_of_the_parent_that_waits_for_them(
    kit: Kit, how: str, script: str, then: str
) -> None:
    """It has no handler: it would die, and its ranks with it."""
    (kit.folder / "spawns.py").write_text(SPAWNS)
    command = f'"$PYTHON" "${{0%/*}}/spawns.py" "{TOY.parent}" "$2" {how} {then}'
    wrapped(kit, script.replace("TRAIN", command), abort={"grace_s": 20})
    process, run = begun(kit, step=30)
    kit("abort-watch", "--stop", "T-1")
    process.communicate(timeout=60)
    assert (saved_steps(run), kit.status(run)["state"]) == ([last_step(run)], "stopped")
    assert b"the worker was told" not in (run / "logs" / "output.log").read_bytes()


@pytest.mark.parametrize("script", ["sleep 60; true", "trap : TERM; sleep 60; true"])
def test_a_shell_gets_term_for_int_before_any_step_is_seen_and_with_a_trap(tmp_path: Path, script: str) -> None:
    """It puts INT off until its child has ended, which has not got it."""
    shell = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    try:
        wait_until(lambda: process_details.children_of(shell.pid), "its child")
        assert survivors.signal_for(Run(RunPaths(tmp_path), {}), shell.pid, signal.SIGINT, []) == signal.SIGTERM
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
