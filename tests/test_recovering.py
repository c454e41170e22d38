"""What comes of a recovery that another process gets in the way of: resumekit.watch.recovering, in this process."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from resumekit.base import claims, journal, processes
from resumekit.base.errors import DiskFull, KitError
from resumekit.base.paths import RunPaths
from resumekit.config import schema
from resumekit.process import aborting, stop_request, stopping
from resumekit.run.run_folder import Run, open_run
from resumekit.start import code_change, pipeline, plan
from resumekit.watch import budget, eligibility, escalation, incident, recovering, restart_point
from support.commands import Kit
from support.processes import wait_until
from support.recoveries import configure, over
from support.runs import age, events, reseal


def false_start(kit: Kit, run: Path) -> Path:
    """Let a recovery begin, and its shim end without a trainer."""
    ready = recovering.recover(run, os.getpid()).ready
    assert ready is not None
    end = {"code": 6, "signal": None, "pid": None, "at": None, "elapsed_s": 0}
    (ready.paths.run_dir / "exit.json").write_text(json.dumps(end))
    return ready.paths.run_dir


@pytest.mark.fault("G2", by="budget.py: the claim is given back, the parent taken up again")
def test_where_a_recovery_could_not_start_its_trainer_the_run_before_it_is_taken_up_again(kit: Kit, sick: Path) -> None:
    child = false_start(kit, sick)
    assert recovering.recover(child, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    again = recovering.recover(child, os.getpid()).ready
    assert again is not None and again.head == sick and again.run_id != child.name
    assert not (child / "claims").exists()


def test_a_kit_that_is_just_being_copied_over_is_waited_for(
    sick: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "CONFIG_SCHEMA", sick / "no.schema.json")
        assert recovering.recover(sick, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    assert "is the kit copied whole?" in capfd.readouterr().err
    assert not events(sick, "recovery"), "no user is called for what passes by itself"
    assert recovering.recover(sick, os.getpid()).ready is not None


@pytest.mark.fault("A1", by="nan_guard.py: record_recovery, by the next recovery where no sidecar lived to do it")
def test_a_recovery_whose_sidecar_was_killed_before_its_first_look_is_written_down_by_the_next_one(
    kit: Kit, sick: Path
) -> None:
    child = recovering.recover(sick, os.getpid()).ready
    assert child is not None
    # Trainer and sidecar of the child are killed before the sidecar has looked once.
    trainer = {"pid": 4_000_000, "boot_id": processes.boot_id(), "start_time": 1, "node": "here"}
    journal.append(child.paths.journal, "launched", child.run_id, trainer=trainer, launcher=trainer, shim=trainer)
    (child.paths.run_dir / "exit.json").write_text(
        json.dumps({"code": 137, "signal": 9, "pid": 4_000_000, "at": "2026-01-01T00:00:00Z", "elapsed_s": 1})
    )
    for _ in range(2):
        recovering.recover(child.paths.run_dir, os.getpid())
    told = [
        [one["child_run_id"] for one in events(run, "recovery") if one["outcome"] == "resumed"]
        for run in (sick, child.paths.run_dir)
    ]
    assert told == [[child.run_id], [child.run_id]]


@pytest.mark.parametrize(
    ("module", "rule", "answer"),
    [
        (eligibility, "in_the_code", "train.py has changed"),
        (eligibility, "in_the_versions", "the machine has changed"),
        (plan, "make", SimpleNamespace(refusals=("it cannot be",), consents=())),
        (budget, "spent", SimpleNamespace(wait_s=None, reason="it was taken up 24 times")),
        (budget, "count_failed_spawns", 3),
    ],
)
def test_the_next_start_is_announced_only_where_nothing_that_can_be_seen_stands_against_it(
    sick: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    module: ModuleType,
    rule: str,
    answer: Any,
) -> None:
    monkeypatch.setattr(recovering, "_backoff_left_s", lambda *_: 30.0)
    assert recovering.recover(sick, os.getpid()).wait_s == 30.0
    assert "follows, not before 30 s from now" in capfd.readouterr().err
    assert not (sick / "claims" / "continued.json").exists(), "announced, and not yet made"
    monkeypatch.setattr(module, rule, lambda *_: answer)
    assert recovering.recover(sick, os.getpid()) == recovering.NOTHING
    said = capfd.readouterr().err
    assert "needs attention" in said and "follows" not in said


def test_after_three_false_starts_a_person_is_called(kit: Kit, sick: Path) -> None:
    for _ in range(3):
        child = false_start(kit, sick)
        assert recovering.recover(child, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    assert recovering.recover(child, os.getpid()) == recovering.NOTHING
    reason = events(sick, "recovery")[-1]["reason"]
    assert "3 runs that were to go on could not start" in reason
    assert len((kit.folder / "told").read_text().splitlines()) == 1


@pytest.mark.fault("G2", by="make_folder.py: Busy, the next who asks may have a launcher")
def test_a_launcher_that_ends_while_it_asks_leaves_the_run_to_the_next(
    kit: Kit, sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    real = pipeline.preflight.check

    def check(*args: Any) -> Any:
        launcher.kill()
        launcher.wait()
        return real(*args)

    monkeypatch.setattr(pipeline.preflight, "check", check)
    assert recovering.recover(sick, launcher.pid).wait_s == recovering.TRY_AGAIN_S
    assert not events(sick, "recovery") and kit.run_dirs() == [sick]
    monkeypatch.setattr(pipeline.preflight, "check", real)
    assert recovering.recover(sick, os.getpid()).ready is not None


def test_where_the_disk_has_no_locks_a_person_is_told_all_the_same(
    kit: Kit, sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(escalation, "try_lock", refuse)
    monkeypatch.setattr(recovering.eligibility, "before_a_choice", lambda *_: "for a reason")
    assert recovering.recover(sick, os.getpid()) == recovering.NOTHING
    assert json.loads((kit.folder / "told").read_text())["reason"] == "for a reason"


def test_the_marker_is_opened_so_that_nfs_locks_it(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def try_lock(descriptor: int) -> bool:
        seen.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        return True

    monkeypatch.setattr(escalation, "try_lock", try_lock)
    monkeypatch.setattr(recovering.eligibility, "before_a_choice", lambda *_: "for a reason")
    recovering.recover(sick, os.getpid())
    assert seen == [os.O_RDWR]


def refused_now(*_: Any) -> str:
    raise KitError("git does not answer")


def test_what_cannot_be_done_now_is_tried_again_and_after_an_hour_a_person_is_called(
    kit: Kit, sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovering.eligibility, "before_a_choice", refused_now)
    assert recovering.recover(sick, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    assert not (kit.folder / "told").exists()
    monkeypatch.setattr(recovering, "GIVE_UP_S", 0.001)
    assert recovering.recover(sick, os.getpid()) == recovering.NOTHING
    told = json.loads((kit.folder / "told").read_text())
    assert "could not be taken up: git does not answer" in told["reason"]
    assert recovering.recover(sick, os.getpid()) == recovering.NOTHING
    assert len((kit.folder / "told").read_text().splitlines()) == 1


def test_a_wait_is_journaled_once_for_each_code_whatever_numbers_its_sentence_tells(
    sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(sick / "journal.jsonl", "warning", sick.name, kind="recovery_waits", message="of version 0.1.0")
    errors = [DiskFull("7 MiB left"), DiskFull("6 MiB left"), KitError("no answer"), OSError(37, "No locks"),
              OSError(37, "No locks"), code_change.CodeUnknown("git does not say")]  # fmt: skip

    def refuse(*_: Any) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(eligibility, "before_a_choice", refuse)
    while errors:
        assert recovering.recover(sick, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    told = [event.get("code") for event in events(sick, "warning") if event["kind"] == "recovery_waits"]
    assert told == [None, "disk_full", "failed", "os_error", "code_unknown"]


def test_a_git_that_does_not_answer_has_a_code_of_its_own(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((sick / "run.json").read_text())
    record["git"] = {"commit": "a" * 40}
    (sick / "run.json").write_text(json.dumps(record))
    reseal(sick)
    monkeypatch.setattr(code_change.code_state, "changed_files", lambda *_: None)
    assert recovering.recover(sick, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    (told,) = [event for event in events(sick, "warning") if event["kind"] == "recovery_waits"]
    assert told["code"] == "code_unknown"


def test_a_disk_that_stays_full_is_told_though_nothing_can_be_written(
    kit: Kit, sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recovering.eligibility, "before_a_choice", refused_now)
    monkeypatch.setattr(recovering, "GIVE_UP_S", 0.001)
    monkeypatch.setattr(escalation.journal, "append", full)
    assert recovering.recover(sick, os.getpid()).wait_s == recovering.TRY_AGAIN_S
    assert "could not be taken up" in (kit.folder / "told").read_text()


def test_a_sidecar_that_still_proves_the_last_checkpoint_is_waited_for(
    sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is not written down yet, and another process has the lock of its account: `exited` is waited for."""
    text = (sick / "journal.jsonl").read_text()
    lines = [line for line in text.splitlines() if line and json.loads(line)["event"] != "exited"]
    (sick / "journal.jsonl").write_text("".join(f"\n{line}\n" for line in lines))
    (sick / ".sidecar.json").unlink(missing_ok=True)
    run, waited = open_run(sick), []

    def sleep(_seconds: float) -> None:
        waited.append(1)
        if len(waited) == 3:
            journal.append(sick / "journal.jsonl", "exited", sick.name, code=143, signal=None)

    monkeypatch.setattr(recovering.time, "sleep", sleep)
    monkeypatch.setattr(recovering, "SIDECAR_START_S", 0.0)
    with claims.locked(run.paths.status_lock):
        assert "exited" in recovering._state_at_the_end(run)
    assert len(waited) == 3


@pytest.mark.fault("G12", by="stopping.py: _stop_the_next; recovering.py: looks again after its claim")
def test_who_stops_a_run_that_is_just_taken_up_stops_the_next_one_too(
    kit: Kit, sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between the last look and the claim is seen after the claim; one after it finds the child."""
    real = recovering.make_folder.prepare

    def prepare(*args: Any) -> Any:
        assert stopping.stop(sick, "TERM") == 0
        return real(*args)

    monkeypatch.setattr(recovering.make_folder, "prepare", prepare)
    assert recovering.recover(sick, os.getpid()) == recovering.NOTHING
    assert [open_run(run).has_started for run in kit.run_dirs()] == [True, False]


def test_a_stop_follows_the_claim_to_the_run_that_goes_on(kit: Kit, sick: Path) -> None:
    config = json.loads((sick / "resolved_config.json").read_text())
    config["trainer"]["command"] = [*config["trainer"]["command"], "--at", "13", "hang"]
    config["trainer"]["command"][config["trainer"]["command"].index("exit=5")] = "raw="
    (sick / "resolved_config.json").write_text(json.dumps(config))
    reseal(sick)
    kit("abort-watch", code=None)
    child = kit.started(2)
    wait_until(lambda: events(child, "step"), "a step of the next one")
    assert stopping.stop(sick, "TERM", is_now=True) == 0
    over(kit, child, "stopped")


def test_a_trainer_that_cannot_be_seen_from_here_is_not_written_down_as_stopped(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked for; the sidecar knows its trainer by another host's name, and does not obey for that one."""
    configure(kit, training={"max_steps": 9999})
    kit("run", "T-1", "--detach")
    run = kit.started()
    wait_until(lambda: events(run, "step"), "its sidecar knows it")
    text = (run / "journal.jsonl").read_text()
    text = text.replace(f'"host":"{processes.host_name()}"', '"host":"another"')
    (run / "journal.jsonl").write_text(text.replace(processes.boot_id(), "another boot"))
    monkeypatch.setattr(stop_request, "OBEY_WAIT_S", 1.0)
    assert stopping.stop(run, "TERM") == 1
    assert not events(run, "stopped") and "cannot be signalled from here" in capsys.readouterr().err


def without_its_end(run: Path) -> None:
    """Let a run be as it is while its trainer lives, or when its end was not seen."""
    (run / "exit.json").unlink()
    (run / ".sidecar.json").unlink()
    lines = (run / "journal.jsonl").read_text().splitlines()
    (run / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines if '"exited"' not in line))


def test_a_run_that_another_container_follows_is_not_continued(
    kit: Kit, sick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((sick / "run.json").read_text())
    (sick / "run.json").write_text(json.dumps({**record, "pid_namespace": "pid:[1]"}))
    reseal(sick)
    run = open_run(sick)
    without_its_end(sick)
    monkeypatch.setattr(stop_request, "OBEY_WAIT_S", 0.5)
    assert stopping.stop(sick, "TERM") == 1 and not events(sick, "stopped")
    with claims.locked(run.paths.status_lock):
        assert "is alive" in kit("resume", "T-1", "--dry-run", code=6).stderr


def test_a_run_of_a_container_that_is_gone_can_be_stopped_for_good(kit: Kit, sick: Path) -> None:
    """It is dead by proof and awaits a recovery: a person's stop keeps it from being taken up, as for one of here."""
    record = json.loads((sick / "run.json").read_text())
    (sick / "run.json").write_text(json.dumps({**record, "pid_namespace": "pid:[1]"}))
    without_its_end(sick)
    age(sick)
    assert stopping.stop(sick, "TERM") == 0
    assert events(sick, "stopped") and not (sick / "stop_request.json").exists()
    age(sick)  # what the stop has written is a change as well
    assert kit("runs", "T-1").stdout.split()[1] == "stopped"


@pytest.mark.parametrize(
    ("before", "chosen_in", "data_steps", "eval_step"),
    [
        # A run that was to leave out the data up to step 34 died before its first checkpoint, once, and once more.
        ({"cause": "nonfinite", "first_bad_step": 34, "skip_data_steps": 10}, "its parent", 10, None),
        ({"cause": "died", "first_bad_step": None, "skip_data_steps": 10}, "its parent", 10, None),
        ({"cause": "died", "first_bad_step": None, "skip_data_steps": 10}, "itself", 0, None),
        ({"cause": "eval", "first_bad_step": None, "skip_eval_step": 30}, "its parent", 0, 30),
        ({"cause": "eval", "first_bad_step": None, "skip_eval_step": 30}, "itself", 0, None),
    ],
)
@pytest.mark.fault("D8", by="restart_point.py: what was left out stays so until a checkpoint has taken it in")
def test_what_is_left_out_stays_left_out_until_a_checkpoint_lies_behind_it(
    tmp_path: Path, before: dict[str, Any], chosen_in: str, data_steps: int, eval_step: int | None
) -> None:
    record = {"run_id": "run", "parent_step": 24, "recovery": {"attempt": 1, **before}}
    run = Run(RunPaths(tmp_path / "run"), record)
    selection: Any = SimpleNamespace(
        chosen=SimpleNamespace(run_id="run" if chosen_in == "itself" else "parent", step=24)
    )
    died = incident.Incident("died", "by signal 11")
    assert restart_point._left_out(run, died, selection) == data_steps
    assert restart_point._eval_step(run, {}, died, selection) == eval_step


@pytest.mark.fault("K7", by="escalation.py, aborting.py: redact")
def test_a_key_in_what_a_notifier_or_a_trainer_says_is_in_no_event(kit: Kit, sick: Path) -> None:
    key = "hf_" + "NotifierNotifierNotifier31"
    config = json.loads((sick / "resolved_config.json").read_text())
    config["notify"]["command"] = ["sh", "-c", f"echo no answer from https://hook/?token={key} >&2; exit 3"]
    config["trainer"]["env"] = ["NOT_HERE"]
    (sick / "resolved_config.json").write_text(json.dumps(config))
    reseal(sick)
    run = open_run(sick)
    escalation.call_a_person(run, incident.Incident("died", "by signal 9"), "for a reason")
    assert aborting.note(run, "eval", f"the evaluation crashed: cannot log in with {key}")
    told = events(sick, "warning")[-1]
    assert told["kind"] == "notify_failed" and "ended with code 3" in told["message"]
    assert key.encode() not in (sick / "journal.jsonl").read_bytes()


def test_a_recovery_attests_what_a_dead_sidecar_has_left_without_a_manifest(sick: Path) -> None:
    for beside in (sick / "checkpoints").glob("*.json"):
        beside.unlink()
    ready = recovering.recover(sick, os.getpid()).ready
    assert ready is not None and "resume@10" in ready.run_id
    assert (sick / "checkpoints" / "hrm_arc_step_10.pt.json").exists()
