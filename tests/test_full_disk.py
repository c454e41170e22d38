"""A disk that is full when a training ends: what waits for it is bounded, and what is missing is said."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support import namespaces
from support.commands import Kit
from support.processes import wait_until
from support.runs import events

FILLS = """
import sys
print("step 1 loss 1.0", flush=True)
try:
    with open(sys.argv[1], "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
except OSError:
    pass
try:
    with open(sys.argv[1], "ab", buffering=0) as ballast:
        while True:
            ballast.write(b"x")
except OSError:
    pass
sys.exit(3)
"""


def ended(kit: Kit, run: Path) -> str | None:
    return kit.status(run)["state"] if (run / "status.json").exists() else None


@pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))
def test_a_command_on_a_full_disk_returns_and_its_reader_too(tmp_path: Path) -> None:
    """`run.sh EXP | cat`: whatever goes on trying to write the end down holds no pipe; with room it is written."""

    def work() -> None:
        kit = Kit(tmp_path)
        kit.runs = tmp_path / "small"
        script = tmp_path / "fills.py"
        script.write_text(FILLS)
        ballast = kit.runs / "ballast"
        kit.config(trainer={"command": ["{python}", str(script), str(ballast)]})
        try:
            line = 'set -o pipefail; "$@" 2>&1 | cat'
            done = subprocess.run(["bash", "-c", line, "x", *kit.argv("run", "T-1")], env=kit.env, timeout=100,
                                  capture_output=True, check=False)  # fmt: skip
            assert done.returncode == 3, done.stdout
            assert b"cannot be written down" in done.stdout and b"(is the disk full?)" in done.stdout, done.stdout
            (run,) = kit.run_dirs()
            ballast.unlink()
            wait_until(lambda: ended(kit, run) == "failed", "the end, once there is room")
            assert events(run, "exited")
        finally:
            kit.clean_up()

    (tmp_path / "small").mkdir()
    namespaces.on_small_disk(tmp_path / "small", "size=4m", work)
