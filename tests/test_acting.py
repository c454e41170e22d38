"""What the watcher does about what it has seen: resumekit.watch.acting, and its passes one after the other."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from resumekit.base import journal
from resumekit.base.paths import RunPaths
from resumekit.run import listing, status
from resumekit.run.run_folder import Run, open_run
from resumekit.start import run_record
from resumekit.watch import acting, inspection
from support.places import LIVE, ROOT
from support.processes import wait_until
from support.runs import events
from support.watched_runs import live_run

pytestmark = pytest.mark.usefixtures("its_own_process_may_stand_for_a_trainer")

LOSS_OF_NOTHING = [("step", {"step": number, "loss": 0.0}) for number in range(1, 30)]


@pytest.mark.fault("D7", by="acting.py: _note_warnings")
def test_a_kind_of_warning_is_journaled_once_however_often_it_is_seen(tmp_path: Path) -> None:
    run = live_run(tmp_path, *LOSS_OF_NOTHING)
    for _ in range(3):
        assert acting.act(tmp_path, inspection.one_pass(tmp_path)) == []
    (warning,) = events(run, "warning")
    assert (warning["kind"], "exactly 0" in warning["message"]) == ("zero", True)
    assert "exactly 0" in status.current(open_run(run))["last_warning"]


@pytest.mark.fault("G9", by="acting.py: time_limit")
def test_one_run_that_does_not_answer_takes_no_more_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_run(tmp_path, *LOSS_OF_NOTHING)
    looks = inspection.one_pass(tmp_path)

    def stuck(_run: Any) -> Any:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(acting, "LIMIT_S", 0.2)
    monkeypatch.setattr(acting.status, "read_state", stuck)
    (deed,) = acting.act(tmp_path, looks)
    assert (deed.words, deed.is_done) == ("nothing could be done within 0 s", False)


@pytest.mark.fault("G9", by="acting.py: a config that cannot be read now")
def test_a_config_that_cannot_be_read_for_a_moment_does_not_switch_recovery_off(tmp_path: Path) -> None:
    run = live_run(tmp_path)
    journal.append(run / "journal.jsonl", "exited", run.name, code=1, signal=None)
    end = {"code": 1, "signal": None, "pid": None, "at": None, "elapsed_s": 0}
    (run / "exit.json").write_text(json.dumps(end))
    (run / "resolved_config.json").rename(run / "away")
    acting.act(tmp_path, inspection.one_pass(tmp_path))
    assert (tmp_path / LIVE / run.name).exists()


@pytest.mark.fault("G9", by="watch/command.py: said, and tried again in the next pass")
def test_a_watcher_outlives_what_keeps_it_from_looking(tmp_path: Path) -> None:
    (tmp_path / LIVE).write_text("a file, for a while")
    words = [str(ROOT / "bin" / "abort-watch.sh"), "--runs", str(tmp_path), "--every", "1"]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert b"tried again in 1 s" in process.stderr.readline()
            (tmp_path / LIVE).unlink()
            wait_until(lambda: b"0 runs looked at" in process.stderr.readline(), "a pass")
        finally:
            process.kill()


@pytest.mark.fault("F5", by="status.py: told: what says that it is of the future is of now")
def test_an_event_of_the_future_does_not_switch_off_what_goes_by_ages(tmp_path: Path) -> None:
    """A trainer that writes lines of its own, by another clock."""
    run = live_run(tmp_path, ("step", {"step": 1, "loss": 0.5}))
    line = {"event": "step", "at": "2099-01-01T00:00:00.000000Z", "run_id": run.name, "step": 2, "loss": 0.4}
    with open(run / "journal.jsonl", "a") as file:
        file.write(f"\n{json.dumps({**line, 'mono_s': time.monotonic() + 1e9})}\n")
    state = status.read_state(open_run(run))
    assert state["step"] == 2 and state["active_mono_s"] <= time.monotonic()


@pytest.mark.fault("G9", by="journal.py: what cannot be read now is no empty journal")
def test_a_journal_that_cannot_be_read_for_a_moment_is_no_run_without_a_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale handle of a network drive: no process takes the marker away or starts a second trainer."""
    run = live_run(tmp_path, ("step", {"step": 1, "loss": 0.5}))
    os.utime(run / "run.json", (0, 0))
    real = os.open

    def stale(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith("journal.jsonl"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", stale)
    looks = inspection.one_pass(tmp_path)
    assert [one.verdict for one in looks] == [inspection.UNKNOWN] and acting.act(tmp_path, looks) == []
    assert (tmp_path / LIVE / run.name).exists()
    with pytest.raises(OSError):
        journal.newest(run / "journal.jsonl", "abort")
    assert open_run(run).has_started and listing.state_of(open_run(run))["state"] == "unknown"


HANDED_ON = (
    "NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_LOGS", "WANDB_MODE", "WANDB_PROJECT",
    "MASTER_PORT", "OMP_NUM_THREADS", "PYTHONHASHSEED", "PYTHONWARNINGS", "LC_ALL", "CUDA_VISIBLE_DEVICES", "HOME",
    "TOKENIZERS_PARALLELISM",
)  # fmt: skip
KEPT_BACK = ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "TERM", "MY_OWN", "RESUMEKIT_RUN_TOKEN")


def test_a_child_that_the_watcher_starts_has_the_variables_that_change_how_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*HANDED_ON, *KEPT_BACK):
        monkeypatch.setenv(name, "1")
    recorded = run_record.environment([])
    assert set(HANDED_ON) <= set(recorded["values"]) and not set(KEPT_BACK) & set(recorded["values"])
    for name in (*HANDED_ON, *KEPT_BACK):
        monkeypatch.delenv(name)
    more = {"values": {**recorded["values"], "MY_OWN": "1", "NCCL_DEBUG": 5}, "passed": []}
    handed = acting.environment_of(Run(RunPaths(tmp_path), {"environment": more}))
    assert set(HANDED_ON) - {"NCCL_DEBUG"} <= set(handed) and not set(KEPT_BACK) & set(handed)
    assert "NCCL_DEBUG" not in handed, "of a record that was edited"


def test_a_child_that_the_watcher_starts_is_of_the_watcher_s_job_and_never_of_the_record_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.setenv(name, "48123")
    recorded = run_record.environment([])
    assert recorded["values"]["SLURM_JOB_ID"] == "48123", "where it ran is kept"
    run = Run(RunPaths(tmp_path), {"environment": recorded})
    for name in ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name)
    assert not [name for name in acting.environment_of(run) if name.startswith("SLURM")]
    here = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "2", "PMI_RANK": "0", "PMIX_ID": "1", "PBS_JOBID": "7"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    assert {k: v for k, v in acting.environment_of(run).items() if k.startswith(("SLURM", "PMI", "PBS"))} == here
