"""The process beside the trainer: train.log, status.json, and what happens when it or its neighbours are killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from resumekit.base.files import UnreadableFile
from resumekit.base.paths import RunPaths, manifest_path
from resumekit.process import attest, output_log, sidecar, sidecar_state, train_log
from resumekit.process.sidecar import Sidecar
from resumekit.process.sidecar_state import StepOrder
from resumekit.process.train_log import LineCleaner, LogFollower, stamp
from resumekit.run.run_folder import Run, open_run
from support.checkpoint_tools import NO_SPACE, failing, os_calls
from support.commands import Kit, sidecar_of
from support.followed_logs import HASH
from support.places import LIB, LIVE, ROOT
from support.processes import marked_pids, wait_until
from support.recoveries import over
from support.runs import events
from support.toy_trainer import write_checkpoint

pytestmark = pytest.mark.usefixtures("valid_records")


def undisturbed_log(run: Path) -> bytes:
    """Return what train.log is to hold: head, the clean lines of all that was printed, the end."""
    record = json.loads((run / "run.json").read_text())
    prefix = record["config_hash"][:12].encode() + b" "
    cleaner = LineCleaner()
    printed = (run / "logs" / "output.log").read_bytes()
    lines = cleaner.feed(printed) + cleaner.flush()
    log = (run / "logs" / "train.log").read_bytes()
    last = log.splitlines(keepends=True)[-1]
    assert b" resumekit: ended " in last
    return stamp(train_log.head_lines(open_run(run)) + lines, prefix) + last


ODD = b"".join(
    [
        b"\rcr\rline\r\n",
        b"\x1b[31mred\x1b[0m \x1b]0;title\x07\n",
        b"nul\0\xff\xfe\n",
        "ümlaut\n".encode(),
        b"\n",
        b"\tx\n",
    ]
)


@pytest.mark.parametrize(
    "actions",
    [["raw=" + ODD.hex()], ["long=1000000"], ["bar=10000"], ["raw=" + b"no newline at its end".hex()], ["lines=20000"]],
    ids=["odd bytes", "a megabyte", "a bar", "no newline", "a flood"],
)
def test_every_line_of_the_log_begins_with_the_config_hash(kit: Kit, actions: list[str]) -> None:
    kit.config(*(f for action in actions for f in ("--at", "3", action)), training={"max_steps": 3})
    shown = kit("run", "T-1").stdout
    (run,) = kit.run_dirs()
    log, record = (run / "logs" / "train.log").read_bytes(), json.loads((run / "run.json").read_text())
    assert log == undisturbed_log(run)
    assert all(line.startswith(record["config_hash"][:12].encode() + b" ") for line in log[:-1].split(b"\n"))
    assert shown == (run / "logs" / "output.log").read_bytes().decode("utf-8", "replace").replace("\r\n", "\r\n")
    assert kit.status(run)["state"] == "finished"
    if actions == ["bar=10000"]:
        assert log.count(b"\n") < 20


def test_the_log_opens_with_what_makes_its_curves_comparable(kit: Kit) -> None:
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    head = (run / "logs" / "train.log").read_text().splitlines()[:4]
    for word in (f"run_id={run.name}", "parent_run_id=-", "parent_step=-", "seed=", "python=", "torch=", "batch_size=",
                 "grad_accum_steps=", "fast_eval_every=", "full_eval_every=", "started at 2"):  # fmt: skip
        assert word in "".join(head)
    assert "None" not in "".join(head)


@pytest.mark.long
@pytest.mark.fault("A14", by="sidecar_state.py: goes on where the last one stood")
@pytest.mark.fault("F1", by="launcher.sh: kit_keep_sidecar")
def test_a_sidecar_that_is_killed_again_and_again_loses_no_line(kit: Kit) -> None:
    """In the middle of a flood; train.log is what an undisturbed sidecar would have written, to the byte."""
    go = kit.folder / "go"
    flood = [x for step in range(2, 40) for x in ("--at", str(step), "lines=3000")]
    kit.config("--delay", "0.2", *flood, "--at", "39", f"wait={go}", training={"max_steps": 40})
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run, killed = kit.started(), []

    def kill_another() -> bool:
        """Not just after it has saved its account: its successor has to read lines again that are dealt with."""
        account, steps = run / ".sidecar.json", len(events(run, "step"))
        is_late = account.exists() and time.time() - account.stat().st_mtime > 0.3
        if is_late and steps >= (killed[-1][1] if killed else 0) + 5 and (pid := sidecar_of(kit, run)):
            os.kill(pid, signal.SIGKILL)
            killed.append((pid, steps))
        return len(killed) == 3

    wait_until(kill_another, "three sidecars killed")
    wait_until(lambda: sidecar_of(kit, run) not in (None, *(pid for pid, _ in killed)), "a fourth one")
    go.touch()
    assert process.wait() == 0
    assert (run / "logs" / "train.log").read_bytes() == undisturbed_log(run)
    assert (kit.status(run)["state"], kit.status(run)["global_step"]) == ("finished", 40)
    assert [e["step"] for e in events(run, "step")] == list(range(1, 41))
    assert not list(run.glob(".*.tmp-*"))


def test_a_trainer_that_prints_steps_anew_in_each_epoch_goes_on_in_the_journal(kit: Kit) -> None:
    """Else it would hang, for the watcher, from its second epoch on."""
    epoch = b"".join(b"step %d loss 0.5\n" % number for number in range(1, 5))
    kit.config("--at", "5", f"raw={epoch.hex()}", training={"max_steps": 6})
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    assert [e["step"] for e in events(run, "step")] == [1, 2, 3, 4, 5, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("told", "journaled"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([2, 4, 1, 5], [2, 4, 5]),
        ([5, 5, 6, 6, 5, 5, 6, 7], [5, 6, 7]),
        ([8, 9, 0, 1, 2, 0, 1], [8, 9, 1, 2, 1]),
    ],
)
def test_a_step_behind_the_last_one_counts_once_the_next_goes_on_from_there(
    told: list[int], journaled: list[int]
) -> None:
    found = [{"step": step} for step in told]
    assert [one["step"] for one in StepOrder(0).new(found, -1, 0)] == journaled


def test_a_line_that_names_the_step_resumed_at_tells_no_step() -> None:
    """'resumed from model_40.pt at step 40': the acceptance warned that the trainer did its last step again."""
    said, trained = {"step": 40}, {"step": 41}
    assert StepOrder(0, 40).new([said, trained], -1, 0) == [trained]
    assert StepOrder(0, None).new([said, trained], -1, 0) == [said, trained]
    again = {"step": 40, "loss": 0.5}
    assert StepOrder(0, 40).new([again, trained], -1, 0) == [again, trained], "that step was trained again"


def test_steps_that_a_predecessor_may_have_told_are_not_told_again() -> None:
    order = StepOrder(100)
    assert order.new([{"step": step} for step in (7, 8, 9, 10)], 9, 40) == [{"step": 10}]
    assert order.new([{"step": step} for step in (0, 1, 2)], 10, 100) == [{"step": 1}, {"step": 2}]


@pytest.mark.fault("F1", by="sidecar_state.py: the saved fold")
def test_the_status_goes_on_where_a_killed_sidecar_left_it(kit: Kit) -> None:
    kit.config("--delay", "0.05", status={"interval_s": 1}, training={"max_steps": 10**6})
    kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = kit.started()
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["eta_s"], "an ETA")
    first = kit.status(run)
    old = sidecar_of(kit, run)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: kit.status(run)["global_step"] > first["global_step"] + 20, "the status going on")
    later = kit.status(run)
    assert sidecar_of(kit, run) != old
    assert later["started_at"] == first["started_at"]
    # Measured from the first step on, not from the new sidecar's: 0.05 s a step and a little.
    state = json.loads((run / ".sidecar.json").read_text())["state"]
    assert state["first_step"] == 1
    assert later["eta_s"] == pytest.approx((10**6 - later["global_step"]) / later["steps_per_sec"])


def test_a_second_sidecar_leaves_at_once(kit: Kit) -> None:
    kit.config("--delay", "0.05", training={"max_steps": 10**6})
    kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = kit.started()
    wait_until((run / ".sidecar.json").exists, "the sidecar's account")
    second = [sys.executable, "-I", "-S", str(LIB / "resumekit_cli.py"), "sidecar", str(run)]
    assert subprocess.run(second, timeout=60, check=False).returncode == 0
    assert sidecar_of(kit, run)


@pytest.mark.parametrize("also_sidecar", [False, True])
@pytest.mark.fault("A18", by="shim.py: exit.json, whatever process is gone")
def test_a_killed_launcher_leaves_a_run_whose_end_is_known(kit: Kit, also_sidecar: bool) -> None:
    go = kit.folder / "go"
    kit.config("--at", "3", f"wait={go}", "--delay", "0.01")
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = kit.started()
    sidecar = wait_until(lambda: sidecar_of(kit, run), "the sidecar")
    process.kill()
    process.wait()
    if also_sidecar:
        for pid in set(marked_pids(f"RESUMEKIT_TEST_MARK={kit.mark}")):
            if b"launcher" not in (argv := Path(f"/proc/{pid}/cmdline").read_bytes()) and b"run.sh" in argv:
                os.kill(pid, signal.SIGKILL)  # the loop that would start it again
        os.kill(sidecar, signal.SIGKILL)
        assert state_of(kit, run) == "unsupervised"
    else:
        wait_until(
            lambda: (run / "status.json").exists() and kit.status(run)["state"] == "unsupervised", "unsupervised"
        )
    go.touch()
    wait_until((run / "exit.json").exists, "the end of the trainer")
    wait_until(lambda: state_of(kit, run) in ("finished", "ended_early"), "its end is known")
    if not also_sidecar:
        over(kit, run, "finished")
        assert (run / "logs" / "train.log").read_bytes() == undisturbed_log(run)
        wait_until(lambda: not (kit.runs / LIVE / run.name).exists(), "the live marker is gone")


def state_of(kit: Kit, run: Path) -> str:
    (seen,) = json.loads(kit("runs", run.name, "--json").stdout)
    return seen["state"]


@pytest.mark.fault("A18", by="launcher.sh: follows the run until the trainer ends")
def test_a_killed_shim_is_a_run_that_is_lost(kit: Kit) -> None:
    """The trainer lives on; no process will see how it ends."""
    go = kit.folder / "go"
    kit.config("--at", "3", f"wait={go}")
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL)
    run = kit.started()
    (launched,) = events(run, "launched")
    os.kill(launched["shim"]["pid"], signal.SIGKILL)
    wait_until(lambda: (run / "status.json").exists() and kit.status(run)["state"] == "running", "running, it is alive")
    go.touch()
    said = process.communicate()[1].decode()
    assert process.returncode == 1
    assert "the process that watches the trainer was killed" in said
    assert (kit.status(run)["state"], kit.status(run)["exit_code"]) == ("lost", None)
    (exited,) = events(run, "exited")
    assert (exited["code"], exited["signal"]) == (None, None)
    assert "how is not known" in (run / "logs" / "train.log").read_text().splitlines()[-1]
    assert (kit.runs / LIVE / run.name).exists()  # a watcher has to look at it
    assert not list(run.glob(".exit.json.tmp-*"))


def test_a_trainer_that_journals_its_steps_is_not_heard_twice(kit: Kit, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "import resumekit.trainer.trainer_env as kit, time\n"
        "for i in range(1, 6):\n"
        "    print(f'step {i} loss 9' if i > 1 else 'begins', flush=True)\n"
        "    time.sleep(0.3)\n"
        "    kit.journal_event('step', step=i, loss=1 / 3)\n"
    )
    kit.config(trainer={"command": ["{python}", str(script)]})
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    assert [(e["step"], e["loss"]) for e in events(run, "step")] == [(i, 1 / 3) for i in range(1, 6)]


def test_a_status_that_the_trainer_writes_itself_is_folded_in(kit: Kit, tmp_path: Path) -> None:
    """Whatever its keys are called."""
    script = tmp_path / "trainer.py"
    payload = {
        "run_id": None,
        "global_step": 7,
        "best_eval_acc": 0.5,
        "self": 1,
        "path": "x",
        "event": "exited",
        "at": 3,
    }
    go = tmp_path / "go"
    script.write_text(
        "import sys, time, os\n"
        f"open(sys.argv[1], 'w').write('''{json.dumps(payload)}''')\n"
        f"while not os.path.exists('{go}'): time.sleep(0.01)\n"
    )
    kit.config(trainer={"command": ["{python}", str(script), "{heartbeat_json}"]}, training={"max_steps": 7})
    process = kit.popen("run", "T-1")
    run = kit.started()
    (beat,) = wait_until(lambda: events(run, "heartbeat"), "a heartbeat event")
    assert (beat["global_step"], beat["path"]) == (7, "x")
    go.touch()
    process.communicate()
    assert (kit.status(run)["global_step"], kit.status(run)["best_eval_acc"]) == (7, 0.5)
    assert kit.status(run)["state"] == "finished"


@pytest.mark.fault("A14", by="train_log.py: blocked, tried again")
@pytest.mark.fault("F9", by="sidecar.py: what cannot be written is tried again")
def test_a_log_that_cannot_be_written_is_made_up_for_later(kit: Kit) -> None:
    """Its file system is full (here: a limit on the sidecar's files); the training does not notice."""
    go = kit.folder / "go"
    kit.config("--delay", "0.01", "--at", "4", "lines=5000", "--at", "5", f"wait={go}")
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = kit.started()
    pid = wait_until(lambda: sidecar_of(kit, run), "the sidecar")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    go.touch()
    wait_until((run / "exit.json").exists, "the trainer ended, whatever the log does")
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert not events(run, "exited")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.wait() == 0
    wait_until(lambda: not sidecar_of(kit, run), "the sidecar has written it all down")
    assert (run / "logs" / "train.log").read_bytes() == undisturbed_log(run)
    assert kit.status(run)["state"] == "finished" and len(events(run, "exited")) == 1


def test_a_step_that_a_full_disk_has_no_room_for_is_journaled_when_there_is(tmp_path: Path) -> None:
    one = Sidecar(open_run(tmp_path), has_echo=False)
    with os_calls(failing(NO_SPACE, "write")):
        one._append_told([("step", {"step": 4}), ("step", {"step": 5})])
    assert not events(tmp_path, "step")
    one._append_told([("step", {"step": 6})])
    assert [event["step"] for event in events(tmp_path, "step")] == [4, 5, 6]


GUARDED = """
import os, sys
from resumekit.trainer.trainer_env import guard_output
guard_output()
ballast = os.path.join(sys.argv[1], "ballast")
with open(ballast, "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
for i in range(20000):
    print("dropped or not", i)
sys.stdout.flush()
os.unlink(ballast)
print("step 5 loss 0.5", flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system of one's own needs root or a user namespace")
@pytest.mark.fault("A14", by="trainer_env.py: a print that fails ends nothing")
def test_a_full_disk_does_not_stop_a_guarded_trainer(kit: Kit) -> None:
    script = kit.folder / "guarded.py"
    script.write_text(GUARDED)
    kit.runs.mkdir()
    kit.config(trainer={"command": ["{python}", str(script), "{run_dir}"]})
    small = 'mount -t tmpfs -o size=2m none "$0" && "$@"; code=$?; cd "$0"/T-1*; cat status.json logs/train.log'
    small += '; exit "$code"'
    argv = ["unshare", "-m", "sh", "-c", small, str(kit.runs), *kit.argv("run", "T-1")]
    done = subprocess.run(argv, env=kit.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert '"state": "finished"' in done.stdout
    assert " step 5 loss 0.5\n" in done.stdout and " resumekit: ended (code 0)" in done.stdout


def follower(tmp_path: Path, printed: bytes, saved: dict | None = None) -> LogFollower:
    paths = RunPaths(tmp_path)
    paths.logs.mkdir(exist_ok=True)
    paths.output_log.write_bytes(printed)
    return LogFollower(Run(paths, {"config_hash": HASH, "run_id": tmp_path.name}), saved or {})


@pytest.mark.fault("K4", by="train_log: no link is followed")
def test_a_planted_link_is_not_written_through_and_gives_way_to_the_log(tmp_path: Path) -> None:
    log = follower(tmp_path, b"a line\n")
    (tmp_path / "victim").write_text("precious")
    log._run.paths.train_log.symlink_to(tmp_path / "victim")
    log.pump(1)
    log.pump(1)
    assert (tmp_path / "victim").read_text() == "precious" and not log._run.paths.train_log.is_symlink()
    assert log._run.paths.train_log.read_bytes().endswith(b"9a537e838eda a line\n")


def test_what_a_predecessor_wrote_behind_its_account_is_written_anew(tmp_path: Path) -> None:
    log = follower(tmp_path, b"one\n")
    log.pump(1)
    account = log.account
    with open(log._run.paths.train_log, "ab") as file:
        file.write(b"9a537e838eda a snapshot of a bar, and half a li")
    successor = follower(tmp_path, b"one\ntwo\n", account)
    successor.pump(1)
    assert successor._run.paths.train_log.read_bytes().endswith(b"9a537e838eda one\n9a537e838eda two\n")


@pytest.mark.parametrize(
    "saved",
    [{"output_offset": "7", "train_log_bytes": 7}, {"output_offset": 7, "train_log_bytes": 10**9},
     {"output_offset": -1, "train_log_bytes": 0}, {"output_offset": True, "train_log_bytes": 3}],
)  # fmt: skip
def test_an_account_that_does_not_fit_is_begun_anew(tmp_path: Path, saved: dict) -> None:
    log = follower(tmp_path, b"a line\n", saved)
    log.pump(1)
    assert log._run.paths.train_log.read_bytes().count(b"a line") == 1


def test_a_bar_that_runs_for_minutes_is_shown_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_log, "BAR_SNAPSHOT_S", 0.0)
    log = follower(tmp_path, b"\r 10%\r 20%")
    log.pump(1)
    with open(log._run.paths.output_log, "ab") as file:
        file.write(b"\r 30%")
    log.pump(1)
    lines = log._run.paths.train_log.read_bytes().splitlines()
    assert lines[-2:] == [b"9a537e838eda  20%", b"9a537e838eda  30%"]


def test_a_log_that_cannot_be_opened_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps it from being read: no descriptor is left, a rule of the system, a drive that fails."""
    follower(tmp_path, b"step 1\n")
    watcher = Sidecar(open_run(tmp_path), has_echo=False)

    def refuse(*_args: object, **_more: object) -> int:
        raise UnreadableFile("no")

    pauses: list[float] = []
    clock = iter(range(10**6))
    monkeypatch.setattr(output_log, "open_regular", refuse)
    monkeypatch.setattr(sidecar, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=pauses.append))
    assert watcher._read_last_lines()
    assert pauses and set(pauses) == {sidecar.POLL_S}
    assert b"7 bytes of logs/output.log cannot be read" in (tmp_path / "logs" / "train.log").read_bytes()
    waited: list[float] = []
    watcher._alarm = SimpleNamespace(wait=waited.append)
    watcher._sleep()
    assert waited == [sidecar.POLL_S]


def test_a_flood_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    log = follower(tmp_path, b"x" * 99 + b"\n" * 20_000_000)
    log.pump(0.0)
    assert log.left_bytes > 0


def test_a_foreign_trainer_s_checkpoints_are_attested(kit: Kit) -> None:
    kit.config("--save-every", "2", training={"max_steps": 5})
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    manifests = {p.name: json.loads(p.read_text()) for p in (run / "checkpoints").glob("*.json")}
    assert sorted(manifests) == ["hrm_arc_step_2.pt.json", "hrm_arc_step_4.pt.json"]
    assert {m["writer"] for m in manifests.values()} == {"sidecar"}
    assert [(e["step"], e["writer"]) for e in events(run, "checkpoint")] == [(2, "sidecar"), (4, "sidecar")]
    assert kit.status(run)["last_checkpoint_step"] == 4


def test_a_file_is_attested_only_when_it_is_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(attest.time, "monotonic", lambda: clock[0])
    run = Run(RunPaths(tmp_path), {"run_id": tmp_path.name})
    path = run.paths.checkpoints / "hrm_arc_step_2.pt"
    write_checkpoint(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    looker = attest.Attester(run)
    looker.look()
    clock[0] += attest.REST_S - 1
    looker.look()
    with open(path, "ab") as file:  # its writer had only paused
        file.write(whole[-40:])
    clock[0] += 2
    looker.look()
    clock[0] += attest.REST_S - 1
    looker.look()
    assert not manifest_path(path).exists()
    clock[0] += 1
    looker.look()
    looker.settle()
    assert json.loads(manifest_path(path).read_text())["size"] == len(whole)


def test_what_is_no_whole_checkpoint_gets_no_manifest(tmp_path: Path) -> None:
    run = Run(RunPaths(tmp_path), {"run_id": tmp_path.name})
    run.paths.checkpoints.mkdir()
    (run.paths.checkpoints / "hrm_arc_step_2.pt").write_bytes(b"not a checkpoint")
    os.mkfifo(run.paths.checkpoints / "hrm_arc_step_3.pt")
    attest.Attester(run).look_last()
    assert not list(run.paths.checkpoints.glob("*.json"))
    assert events(tmp_path) == []


def test_a_sidecar_imports_little() -> None:
    """It stands in the way of a short run's end; each of these costs between 3 and 75 ms."""
    code = "import sys; sys.path.append(sys.argv[1]); import resumekit.process.sidecar; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT / "lib")]
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    costly = {"argparse", "dataclasses", "inspect", "hashlib", "subprocess", "socket", "yaml", "jsonschema", "torch",
              "zipfile", "secrets", "resumekit.config.config", "resumekit.config.schema",
              "resumekit.checkpoint.archive"}  # fmt: skip
    assert loaded & costly == set()


@pytest.mark.fault("K4", by="sidecar: heartbeat.json and output.log are not read through a link")
def test_a_private_file_behind_a_planted_link_does_not_get_into_the_runs_files(tmp_path: Path) -> None:
    private = tmp_path / "private.json"
    private.write_text('{"password": "hunter2"}\n')
    run_dir = tmp_path / "T-1_x"
    run_dir.mkdir()
    log = follower(run_dir, b"")
    (run_dir / "logs/output.log").unlink()
    (run_dir / "logs/output.log").symlink_to(private)
    log.pump(1)
    assert log.left_bytes == 0, "what is not read is not waited for at the end"
    paths = RunPaths(run_dir)
    paths.heartbeat_json.parent.mkdir(exist_ok=True)
    paths.heartbeat_json.symlink_to(private)
    watcher = Sidecar(Run(paths, {"config_hash": HASH, "run_id": run_dir.name}), has_echo=False)
    watcher._fold_heartbeat_file()
    assert not events(run_dir, "heartbeat")
    for path in run_dir.rglob("*"):
        assert path.is_symlink() or not path.is_file() or b"hunter2" not in path.read_bytes(), path
    paths.heartbeat_json.unlink()
    paths.heartbeat_json.write_bytes(private.read_bytes())
    watcher._fold_heartbeat_file()
    assert events(run_dir, "heartbeat"), "a trainer's own file is told"


@pytest.mark.fault("K4", by="sidecar: of records that were edited since, no paths, settings or patterns")
def test_a_sidecar_takes_nothing_from_records_that_were_edited_since_the_launch(kit: Kit) -> None:
    """One who may write in the run's folder can have a regular expression there, or another place for its status."""
    go = kit.folder / "go"
    kit.config("--at", "2", f"wait={go}")
    process = kit.popen("run", "T-1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = kit.started()
    first = wait_until(lambda: events(run, "step") and sidecar_of(kit, run), "a sidecar that has seen a step")
    record, config = (json.loads((run / name).read_text()) for name in ("run.json", "resolved_config.json"))
    (run / "run.json").write_text(json.dumps(record | {"paths": {**record["paths"], "status": "x/status.json"}}))
    config["trainer"]["log_patterns"]["step"] = "^(step|X)"
    (run / "resolved_config.json").write_text(json.dumps(config))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: sidecar_of(kit, run) not in (None, first), "another sidecar")
    go.touch()
    process.wait()
    (warning,) = events(run, "warning")
    assert warning["kind"] == "records_edited" and warning["message"] == (
        "its records are not as its launcher wrote them: its sidecar uses the default paths, and no setting and no log "
        "pattern of it"
    )
    assert kit.status(run)["exit_code"] == 0 and not (run / "x").exists()


def test_who_keeps_no_seals_gets_a_sidecar_from_the_watcher_all_the_same(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a HOME, and under umask 0002; where seals are kept, a run whose group may write needs one."""
    kit("run", "T-1")
    (run,) = kit.run_dirs()
    for path in (run, *run.glob("*.json")):
        path.chmod(path.stat().st_mode | 0o020)
    assert sidecar_state.followed(run, None)[1] == "", "it is sealed"
    (run / "resolved_config.json").write_text((run / "resolved_config.json").read_text() + " ")
    found, doubt = sidecar_state.followed(run, None)
    assert doubt.startswith("its resolved_config.json is not as this user's launcher sealed it: ")
    assert found.setting("trainer", "log_patterns") is None
    monkeypatch.setenv("XDG_STATE_HOME", "nowhere")
    monkeypatch.delenv("HOME", raising=False)
    found, doubt = sidecar_state.followed(run, None)
    assert doubt == "" and found.setting("trainer", "log_patterns") is not None
