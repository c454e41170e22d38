"""A script of the kit that is replaced while it runs: an update of a lab's copy under a training of weeks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, Kit, wait_until

SCRIPTS = sorted([*(ROOT / "bin").glob("*.sh"), *(ROOT / "tools").glob("*.sh"), ROOT / "lib" / "watch_installer.sh",
                  ROOT / "lib" / "launcher.sh"])  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_read_behind_what_a_script_does(script: Path) -> None:
    """It ends in one compound command with an `exit` in it: Bash has read that whole before it runs."""
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert lines[-2] == "exit" and lines[-1] in ("}", "fi")
    assert lines[-3].split()[0] in ("main", "kit_main") and lines[-4].split()[0] in ("{", "if")


@pytest.mark.parametrize("new", ["longer", "shorter"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_is_copied_over_while_it_runs_runs_once_and_keeps_its_code(
    kit: Kit, tmp_path: Path, new: str, code: int
) -> None:
    copy = tmp_path / "kit"
    for name in ("bin", "lib", "schemas"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "VERSION", copy / "VERSION")
    go = kit.folder / "go"
    kit.config("--at", "2", f"wait={go}", "--exit", str(code))
    argv = kit.argv("run", "T-1")
    process = subprocess.Popen([str(copy / "bin" / "run.sh"), *argv[1:]], env=kit.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)  # fmt: skip
    run = kit.started()
    wait_until(lambda: b"step 2 " in (run / "logs" / "output.log").read_bytes(), "the second step")
    again = f'\nprintf again >>"{tmp_path}/again"\n'
    for script in (copy / "bin" / "run.sh", copy / "lib" / "launcher.sh"):
        text = script.read_text()
        # Over the same inode, as cp does it, with something to run wherever Bash would read on.
        script.write_text(text + again * 2000 if new == "longer" else again * (len(text) // len(again) - 5))
    go.touch()
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert not (tmp_path / "again").exists() and len(kit.run_dirs()) == 1
