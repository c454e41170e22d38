"""A take-up waits while what came after the run's end computes on its GPUs; nvidia-smi is a script here."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.base.errors import KitError
from resumekit.base.files import utc_now
from resumekit.base.paths import RunPaths
from resumekit.run.run_folder import Run
from resumekit.watch import devices, recovering
from support.runs import events


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an nvidia-smi before every other program: two GPUs, and the processes that `apps` lists."""
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    apps = tmp_path / "apps"
    apps.write_text("")
    script.write_text(
        f"#!/bin/sh\ncase $1 in\n*compute-apps*) cat '{apps}' ;;\n*) printf '0, GPU-aa\\n1, GPU-bb\\n' ;;\nesac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return apps


@pytest.fixture
def other() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def a_run(tmp_path: Path, visible: str | None, ended_s: float) -> Run:
    """Return a run that ended so many seconds ago."""
    folder = tmp_path / "T-1_x"
    folder.mkdir(exist_ok=True)
    (folder / "exit.json").write_text(json.dumps({"code": 1, "at": utc_now(time.time() - ended_s)}))
    values = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return Run(RunPaths(folder), {"environment": {"values": values, "passed": []}})


@pytest.mark.parametrize(
    ("visible", "on", "is_free"),
    [("0", "GPU-aa", False), ("1", "GPU-aa", True), (None, "GPU-bb", False), ("GPU-b", "GPU-bb", False),
     ("", "GPU-aa", True), ("MIG-x", "GPU-aa", True)],
)  # fmt: skip
def test_only_the_run_s_own_gpus_are_looked_at(
    tmp_path: Path, smi: Path, other: subprocess.Popen, visible: str | None, on: str, is_free: bool
) -> None:
    smi.write_text(f"{on}, {other.pid}, python\n")
    run = a_run(tmp_path, visible, 30.0)
    if is_free:
        devices.require_free_gpus(run, {})
        return
    with pytest.raises(KitError, match=f"pid {other.pid} \\(python\\)") as caught:
        devices.require_free_gpus(run, {})
    assert type(caught.value) is KitError, "one that passes by itself"


def test_what_had_shared_the_gpu_with_the_run_is_no_obstacle(
    tmp_path: Path, smi: Path, other: subprocess.Popen
) -> None:
    smi.write_text(f"GPU-aa, {other.pid}, python\n")
    devices.require_free_gpus(a_run(tmp_path, "0", -30.0), {})


def test_without_nvidia_smi_and_where_it_hangs_nothing_is_asked(
    tmp_path: Path, smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path, "0", 30.0)
    monkeypatch.setattr(devices, "TIMEOUT_S", 0.2)
    (smi.parent / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    devices.require_free_gpus(run, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    devices.require_free_gpus(run, {})


def test_a_take_up_waits_and_says_so_once_until_the_gpu_is_free(
    sick: Path,
    smi: Path,
    other: subprocess.Popen,
) -> None:
    smi.write_text(f"GPU-aa, {other.pid}, python\n")
    for _ in range(2):
        outcome = recovering.recover(sick, os.getpid())
        assert outcome.ready is None and outcome.wait_s == recovering.TRY_AGAIN_S
    (waits,) = [event for event in events(sick, "warning") if event["kind"] == "recovery_waits"]
    assert f"GPU 0: pid {other.pid} (python)" in waits["message"]
    smi.write_text("")
    assert recovering.recover(sick, os.getpid()).ready is not None
