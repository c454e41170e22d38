"""Saves beside the training: what is saved is what was there at the call, and nothing of a blocking save's is lost."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reliability.save_crashes import in_child, kill_during_saves
from resumekit.base import claims, process_details
from resumekit.base.errors import KitError
from resumekit.checkpoint import manifest
from resumekit.checkpoint.selection import CheckpointFolder, select
from resumekit.run.journal_fold import fold, measured_speed
from resumekit.run.throughput import is_saving
from resumekit.trainer import background_save, saving
from resumekit.trainer.saving import save_checkpoint
from resumekit.watch import rules
from resumekit.watch.rules import SICK, Limits, Observation
from support.checkpoint_tools import IO_ERROR, NO_SPACE, failing, leftovers, os_calls, small_model, train
from support.journal_events import event
from support.places import LIB
from support.processes import DEADLINE_S, wait_until
from support.rank_groups import in_ranks
from support.runs import events
from support.schemas import assert_valid

pytestmark = pytest.mark.usefixtures("in_a_new_process")

KILLS = 10


@pytest.fixture(autouse=True)
def nothing_in_flight(in_a_new_process: None) -> Iterator[None]:
    background_save._forget()
    yield
    with contextlib.suppress(Exception):
        background_save.wait()
    background_save._forget()


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "T-1_x_20260101-0000"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", str(folder))
    monkeypatch.setenv("RESUMEKIT_RUN_ID", folder.name)
    return folder


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No save is written before it is open; it is at the end."""
    is_open, real = threading.Event(), saving._write

    def write(*arguments: Any) -> Any:
        assert is_open.wait(DEADLINE_S)
        return real(*arguments)

    monkeypatch.setattr(saving, "_write", write)
    yield is_open
    is_open.set()
    with contextlib.suppress(Exception):
        background_save.wait()


class Job:
    """A model, its optimizer, and a save of them into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.optimizer = small_model()
        self.lines: list[str] = []

    def save(self, step: int, **more: Any) -> Path | None:
        usual = {"data_state": {"at": [step]}, "log_fn": self.lines.append, "background": True}
        return save_checkpoint(self.folder, step, model=self.model, optimizer=self.optimizer, **{**usual, **more})

    def step(self) -> None:
        train(self.model, self.optimizer)


@pytest.fixture
def job(run_dir: Path) -> Job:
    return Job(run_dir / "checkpoints")


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("_")[2]) for path in folder.glob("hrm_arc_step_*.pt"))


def test_the_file_has_what_was_there_at_the_call_whatever_is_trained_meanwhile(
    job: Job, run_dir: Path, gate: threading.Event
) -> None:
    state, extra, fast = {"at": [1, 2]}, {"carry": torch.ones(2), "seen": [1]}, {"step": 1, "accuracy": 0.5}
    weights = copy.deepcopy(job.model.state_dict())
    moments = copy.deepcopy(job.optimizer.state_dict())
    draws = random.getstate(), torch.get_rng_state().clone()
    path = job.save(1, data_state=state, extra=extra, last_fast_eval=fast)
    for _ in range(3):
        job.step()
    random.random()
    state["at"].append(3)
    extra["seen"].append(2)
    extra["carry"].zero_()
    fast["accuracy"] = 0.9
    assert path == job.folder / "hrm_arc_step_1.pt" and not path.exists()
    assert [one["event"] for one in events(run_dir)] == ["saving"], "it is no checkpoint before its manifest is there"
    gate.set()
    background_save.wait()
    content = torch.load(path, weights_only=True)
    assert all(torch.equal(content["model_state_dict"][name], value) for name, value in weights.items())
    saved = content["optimizer_state_dict"]["state"]
    assert all(torch.equal(saved[n][key], value) for n, own in moments["state"].items() for key, value in own.items())
    assert content["data_state"] == {"at": [1, 2]} and content["seen"] == [1]
    assert torch.equal(content["carry"], torch.ones(2))
    assert content["rng_state"]["python"] == draws[0] and torch.equal(content["rng_state"]["torch"], draws[1])
    assert manifest.read(path).last_fast_eval == {"step": 1, "accuracy": 0.5}
    chosen = select([CheckpointFolder(job.folder)]).chosen
    assert chosen is not None and (chosen.step, chosen.grade) == (1, "proven")


def odd_values(model: torch.nn.Module) -> dict[str, Any]:
    whole = torch.arange(12.0)
    named: OrderedDict[str, Any] = OrderedDict(a=whole)
    vars(named)["_metadata"] = {"version": 1}
    return {
        "views": [whole[2:8:2], whole, model[0].weight.detach().T], "named": named, "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False), "buffer": torch.nn.Buffer(torch.ones(3)),
        "sparse": torch.eye(3).to_sparse(), "grown": torch.ones(2, requires_grad=True) * 2, "half": whole.bfloat16(),
        "plain": [1, 2.5, "a", b"b", None, {1, 2}, (1, (2,)), torch.float16, torch.Size([2]), torch.device("cpu")],
    }  # fmt: skip


def test_the_file_is_equal_bit_for_bit_to_that_of_a_blocking_save(tmp_path: Path) -> None:
    one, other = Job(tmp_path / "blocking"), Job(tmp_path / "background")
    for job, background in ((one, False), (other, True)):
        torch.manual_seed(7)
        random.seed(7)
        average = torch.optim.swa_utils.AveragedModel(job.model)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(job.optimizer, 10)
        for step in (1, 2):  # the second copy goes into the memory of the first
            job.save(step, background=background, ema=average, scheduler=schedule, extra=odd_values(job.model))
            job.step()
        background_save.wait()
    for name in ("hrm_arc_step_1.pt", "hrm_arc_step_2.pt"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_a_default_device_of_the_trainer_s_is_not_that_of_the_copy(job: Job) -> None:
    with torch.device("meta"):
        path = job.save(1)
        background_save.wait()
    assert path is not None and manifest.read(path).finite is True


def test_it_is_told_when_it_begins_and_when_it_is_durable(job: Job, run_dir: Path, gate: threading.Event) -> None:
    job.save(1)
    job.step()
    assert job.lines == []
    gate.set()
    wait_until(lambda: events(run_dir, "checkpoint"), "the step is durable")
    wait_until(lambda: background_save._in_flight.is_over, "the thread has ended")
    assert job.lines == [], "what it has to say comes from the thread of the training"
    job.step()
    assert len(job.lines) == 1 and "step=1 saved as hrm_arc_step_1.pt" in job.lines[0]
    begun, done = events(run_dir)
    assert (begun["event"], begun["background"]) == ("saving", True)
    assert 0 <= done["seconds"] <= done["written_s"], "training waited for the copy alone"
    for one in (begun, done):
        assert_valid("event", one)


@pytest.mark.fault("B3", by="background_save.py: a failure in the thread is journalled there, said at the next step")
@pytest.mark.parametrize("comes_next", ["step", "save"])
def test_a_failed_one_is_said_with_the_next_step_or_save(job: Job, run_dir: Path, comes_next: str) -> None:
    job.save(1, background=False)
    job.lines.clear()
    with os_calls(failing(NO_SPACE, "link")):
        assert job.save(2) is not None
        background_save._in_flight.thread.join()
    (warning,) = events(run_dir, "warning")
    assert warning["kind"] == "save_failed" and "step 2 was not saved" in warning["message"]
    assert job.lines == [] and steps_in(job.folder) == [1] and leftovers(job.folder) == []
    _ = job.step() if comes_next == "step" else job.save(3, background=False)
    assert "step 2 was not saved" in job.lines[0]
    assert job.save(4, background=False) is not None


@pytest.mark.fault("B6", by="background_save.py: what the thread raised ends the training at its next step")
@pytest.mark.parametrize("comes_next", ["step", "save"])
def test_two_input_output_errors_in_a_row_end_the_training(job: Job, comes_next: str) -> None:
    with os_calls(failing(IO_ERROR, "fsync")):
        job.save(1)
        background_save._in_flight.thread.join()
        job.step()
        job.save(2)
        background_save._in_flight.thread.join()
    with pytest.raises(KitError, match="that is 2 in a row, the disk is failing"):
        _ = job.step() if comes_next == "step" else job.save(3)
    job.step()  # it is said once


def test_what_is_no_error_of_the_disk_is_raised_at_the_next_step_and_journalled(
    job: Job, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "torch_save", lambda *_: 1 / 0)
    job.save(1)
    background_save._in_flight.thread.join()
    (warning,) = events(run_dir, "warning")
    assert warning["kind"] == "save_failed" and "ZeroDivisionError" in warning["message"]
    with pytest.raises(ZeroDivisionError):
        job.step()
    assert leftovers(job.folder) == []


def test_one_at_most_is_in_flight_and_who_waits_says_that_the_training_stands(
    job: Job, run_dir: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.save(1)
    job.step()
    state = fold({}, events(run_dir))
    assert not is_saving(state)
    seen: list[bool] = []

    def open_gate() -> None:
        wait_until(lambda: len(events(run_dir, "saving")) == 2, "the second save waits")
        seen.append(is_saving(fold({}, events(run_dir))))
        gate.set()

    helper = threading.Thread(target=open_gate)
    helper.start()
    job.save(2)
    helper.join()
    background_save.wait()
    assert seen == [True]
    told = [(one["event"], one["step"], one.get("background")) for one in events(run_dir) if "step" in one][:4]
    assert told == [("saving", 1, True), ("saving", 1, None), ("checkpoint", 1, None), ("saving", 2, True)]
    assert steps_in(job.folder) == [1, 2]


def test_beside_a_background_save_no_step_is_a_hang_and_its_time_is_training() -> None:
    def told(**more: Any) -> list[dict[str, Any]]:
        steps = [event("step", float(n), step=n, loss=0.5 + 0.01 * (n % 7), source="log") for n in range(1, 101)]
        return [event("launched", 0.0), *steps, event("saving", 100.5, step=100, **more)]

    limits = Limits(hang_minutes=5, save_minutes=30)
    for more, expected in (({}, set()), ({"background": True}, {"hang"})):
        found = rules.findings(fold({}, told(**more)), limits, Observation(100.5 + 10 * 60, "running"))
        assert {one.cause for one in found if one.verdict == SICK} == expected
    durable = event("checkpoint", 149.0, step=100, path="a", sha256="0" * 64, size=1, seconds=0.1, written_s=48.5)
    later = [event("step", 50.0 * n, step=98 + n, loss=0.5 + n % 7, source="log") for n in range(3, 60)]
    assert measured_speed(fold({}, [*told(background=True), durable, *later])) == pytest.approx(0.05, rel=0.2)


def test_the_best_is_linked_and_old_ones_are_pruned_beside_the_training(job: Job) -> None:
    for step in range(1, 7):
        job.save(step, keep_last=2, best={"score": 0.5} if step == 3 else None)
        job.step()
    background_save.wait()
    assert steps_in(job.folder) == [3, 5, 6]
    best = manifest.read(job.folder / "hrm_arc_best.pt")
    assert (best.step, best.best_score) == (3, 0.5)


def test_a_step_that_is_saved_again_waits_for_it_and_gets_the_newer_manifest(job: Job) -> None:
    path = job.save(5)
    assert job.save(5, background=False, last_fast_eval={"step": 5, "accuracy": 0.5}) == path
    assert path is not None and manifest.read(path).last_fast_eval == {"step": 5, "accuracy": 0.5}
    assert steps_in(job.folder) == [5]


def test_what_could_not_be_loaded_again_is_refused_at_the_call(job: Job) -> None:
    with pytest.raises(KitError, match=r"'odd' is a 'pathlib\.PosixPath'"):
        job.save(1, extra={"odd": Path("x")})
    assert background_save._in_flight is None and steps_in(job.folder) == []


def test_another_rank_than_0_copies_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert job.save(1) is None
    assert background_save._in_flight is None and background_save._kept == {}


def test_what_all_ranks_save_is_written_by_rank_0_beside_the_training_with_what_each_has(tmp_path: Path) -> None:
    def act(rank: int) -> Any:
        real, is_open = saving._write, threading.Event()
        saving._write = lambda *arguments: is_open.wait(DEADLINE_S) and real(*arguments)
        state, own = {"of": [rank]}, Job(tmp_path)
        path = own.save(3, ranks="all", data_state=state)
        state["of"].append("later")
        seen = path.exists(), background_save._in_flight is not None
        is_open.set()
        background_save.wait()
        return seen

    assert in_ranks(2, act) == [(False, True), (False, False)]
    states = torch.load(tmp_path / "hrm_arc_step_3.pt", weights_only=True)["rank_states"]
    assert [one["data_state"] for one in states] == [{"of": [0]}, {"of": [1]}]


def test_a_disk_that_fails_twice_in_the_thread_of_rank_0_ends_all_ranks_at_their_next_save(tmp_path: Path) -> None:
    def act(rank: int) -> Any:
        def fail(*_arguments: Any) -> None:
            raise OSError(IO_ERROR, "Input/output error")

        saving._write, own = fail, Job(tmp_path)
        for step in (1, 2):
            own.save(step, ranks="all")
            own.step()  # no rank ends alone
        try:
            own.save(3, ranks="all")
        except KitError as error:
            return str(error)

    answers = in_ranks(2, act)
    assert answers[0] == answers[1] and "that is 2 in a row, the disk is failing" in answers[0]


def test_the_memory_of_a_copy_is_kept_for_the_next_and_let_go_where_the_state_has_shrunk(job: Job) -> None:
    def kept() -> list[int]:
        return sorted(memory.data_ptr() for own in background_save._kept.values() for memory in own if memory.nbytes())

    job.save(1, extra={"large": torch.ones(1000)})
    first = kept()
    job.save(2, extra={"large": torch.ones(1000)})
    assert kept() == first
    job.save(3)
    assert len(kept()) == len(first) - 1 and set(kept()) < set(first)


def test_where_memory_has_no_room_for_the_copy_it_is_said_once_and_the_save_blocks(
    job: Job, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_details, "available_bytes", lambda: background_save.RESERVE_BYTES)
    for step in (1, 2):
        path = job.save(step)
        assert path is not None and manifest.read(path).step == step, "it is there when the call returns"
    (warning,) = events(run_dir, "warning")
    assert warning["kind"] == "background_memory" and "268 MB are to stay free" in warning["message"]
    assert background_save._kept == {}
    told = [(one["step"], one.get("background")) for one in events(run_dir, "saving")]
    assert told == [(1, True), (1, None), (2, True), (2, None)]
    monkeypatch.setattr(process_details, "available_bytes", lambda: 1 << 40)
    job.save(3)
    assert background_save._in_flight is not None


def test_kept_memory_asks_for_none(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.save(1)
    monkeypatch.setattr(process_details, "available_bytes", lambda: 0)
    job.save(2)
    assert background_save._in_flight is not None


def test_memory_that_cannot_be_had_is_as_too_little(job: Job, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't allocate memory")

    background_save._prepare()
    monkeypatch.setattr(torch, "empty", no_room)
    path = job.save(1)
    assert path is not None and manifest.read(path).step == 1
    assert [one["kind"] for one in events(run_dir, "warning")] == ["background_memory"]


def test_where_there_can_be_no_more_threads_it_is_saved_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    background_save._prepare()
    monkeypatch.setattr(threading.Thread, "start", no_more)
    path = job.save(1)
    assert path is not None and manifest.read(path).step == 1
    job.step()
    assert "step=1 saved" in job.lines[0]


def test_a_fork_during_a_write_has_nothing_in_flight_and_saves_its_own(job: Job, gate: threading.Event) -> None:
    job.save(1)
    background_save._settling.acquire()  # as a save that is just being settled

    def child() -> None:
        signal.alarm(20)  # what waits for a thread that is not there, or for a lock of one, waits for ever
        background_save.wait()  # for nothing: the thread is the parent's
        assert background_save._in_flight is None and background_save._kept == {}
        gate.set()
        own = Job(job.folder.parent / "child")
        own.save(7)
        background_save.wait()
        assert steps_in(own.folder) == [7]

    try:
        assert in_child(child) == 0
    finally:
        background_save._settling.release()
    assert not gate.is_set()
    gate.set()
    background_save.wait()
    assert steps_in(job.folder) == [1]


def test_a_process_that_was_forked_while_a_lock_was_held_does_not_keep_it(tmp_path: Path) -> None:
    """A data worker that begins while a background save prunes lives for hours."""
    reader, writer = os.pipe()
    with claims.locked(tmp_path / "lock"):
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        assert not claims.is_held(tmp_path / "lock")
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
        os.close(reader)


TRAINER = """
import os, signal, sys, threading, time
sys.path[:0] = [{lib!r}]
imported = []

class Seen:
    def find_spec(self, name, *_):
        if threading.current_thread() is not threading.main_thread():
            imported.append(name)

import torch
import resume_helper as kit
from resumekit.trainer import saving

is_open, real = threading.Event(), saving._write

def write(*arguments):
    sys.meta_path.insert(0, Seen())
    is_open.wait()
    time.sleep(0.2)
    return real(*arguments)

saving._write = write
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 3)).sum().backward()
optimizer.step()

def stop(*_):
    is_open.set()
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
kit.save_checkpoint(sys.argv[1], 5, model=model, optimizer=optimizer, data_state={{"at": 5}}, background=True)
how = sys.argv[2]
if how == "term":
    print("saving", flush=True)
    time.sleep(60)
is_open.set()
if how == "end":
    kit_thread = [one for one in threading.enumerate() if one.name == "resumekit-background-save"][0]
    kit_thread.join()
    print("imported", *imported, flush=True)
    kit.save_checkpoint(sys.argv[1], 6, model=model, optimizer=optimizer, data_state={{"at": 6}}, background=True)
if how == "raise":
    raise ValueError("the training has a fault")
"""


def trainer(tmp_path: Path, how: str) -> subprocess.Popen[str]:
    script = tmp_path / "train.py"
    script.write_text(TRAINER.format(lib=str(LIB)))
    command = [sys.executable, str(script), str(tmp_path / "checkpoints"), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def proven_steps(folder: Path) -> list[int]:
    return sorted(one.step for one in select([CheckpointFolder(folder)]).candidates if one.grade == "proven")


def test_the_end_of_the_trainer_waits_and_the_thread_imports_nothing(tmp_path: Path) -> None:
    """A module that the thread were importing at a fork would be locked in the child for ever."""
    said, errors = trainer(tmp_path, "end").communicate(timeout=DEADLINE_S)
    assert said.splitlines()[0] == "imported", said + errors
    assert (tmp_path / "checkpoints" / "hrm_arc_step_6.pt.json").exists(), errors
    assert "step=6 saved as" in said and leftovers(tmp_path / "checkpoints") == []


def test_a_trainer_that_raises_has_saved_its_step(tmp_path: Path) -> None:
    process = trainer(tmp_path, "raise")
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1 and "the training has a fault" in errors
    assert "step=5 saved as" in said and (tmp_path / "checkpoints" / "hrm_arc_step_5.pt.json").exists()


@pytest.mark.fault("A4", by="background_save.py: the end of the interpreter waits for the save in flight")
def test_a_term_during_one_waits_for_it(tmp_path: Path) -> None:
    process = trainer(tmp_path, "term")
    assert process.stdout is not None and process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143, errors
    assert "step=5 saved as" in said and (tmp_path / "checkpoints" / "hrm_arc_step_5.pt.json").exists()


def test_a_signal_while_it_is_waited_for_is_handed_on_when_it_is_over(
    job: Job, gate: threading.Event, run_dir: Path
) -> None:
    order: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: order.append(f"TERM, {steps_in(job.folder)}"))
    try:
        job.save(1)

        def stop() -> None:
            wait_until(lambda: len(events(run_dir, "saving")) == 2, "it is waited for")
            os.kill(os.getpid(), signal.SIGTERM)
            gate.set()

        helper = threading.Thread(target=stop)
        helper.start()
        background_save.wait()
        helper.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert order == ["TERM, [1]"]


def test_a_kill_at_any_moment_leaves_no_torn_candidate(tmp_path: Path) -> None:
    found = kill_during_saves(tmp_path / "checkpoints", KILLS, seed=3, background=True)
    assert (found["torn"], found["lost"], found["mixed"], found["left"]) == (0, 0, 0, 0), found


def test_a_gpu_s_memory_is_pinned_and_counted_as_torch_takes_it() -> None:
    assert background_save._cost((5 << 20, False)) == 5 << 20
    assert background_save._cost((5 << 20, True)) == 8 << 20 and background_save._cost((8, True)) == 8
    assert background_save._cost((0, True)) == 0
