"""The kit in a lab's own repository, after a commit and a fresh clone, with a trainer that knows nothing of it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Kit, events, wait_until
from lab_repo import CONFIG, KIT_PARTS, copy_kit, git, make_lab


class Lab:
    """A fresh clone of the lab, with everything that is started in it marked and killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kit, self.runs = folder, folder / "resumekit", folder / "runs"
        self.mark = secrets.token_hex(8)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RESUMEKIT_", "TOY_", "PYTHON"))}
        self.env = {**kept, "RESUMEKIT_TEST_MARK": self.mark, "PYTHON": sys.executable, "HOME": str(folder)}

    def popen(self, *argv: str, cwd: Path | None = None) -> subprocess.Popen:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(argv, cwd=cwd or self.folder, env=self.env, text=True, **streams)

    def __call__(self, *argv: str, code: int = 0, cwd: Path | None = None) -> str:
        """Run a command in the lab; return stdout and stderr together."""
        process = self.popen(*argv, cwd=cwd)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, f"exit {process.returncode}, not {code}\n{out}{err}"
        return out + err

    def bin(self, name: str) -> str:
        return str(self.kit / "bin" / f"{name}.sh")

    def run_dirs(self) -> list[Path]:
        found = [p.parent for p in self.runs.glob("*/run.json")]
        return sorted(found, key=lambda p: json.loads((p / "run.json").read_text())["created_at"])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A fresh clone of a lab's repository, in a folder with a space in its name."""
    origin = make_lab(tmp_path / "origin")
    git(tmp_path, "clone", "-q", str(origin), "a fresh clone")
    lab = Lab(tmp_path / "a fresh clone")
    yield lab
    Kit.clean_up(lab)


def losses(run: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in events(run, "step")}


def test_a_clone_has_every_file_of_the_kit_and_listing_runs_leaves_git_clean(lab: Lab):
    tracked = git(lab.folder, "ls-files", "resumekit").splitlines()
    assert {t.split("/")[1] for t in tracked} == set(KIT_PARTS)
    assert any(t.startswith("resumekit/lib/resumekit/") for t in tracked), "the lab's .gitignore did not swallow lib/"
    lab("make", "kit-runs")
    assert git(lab.folder, "status", "--porcelain") == ""


@pytest.mark.parametrize("way", ["bin", pytest.param("make", marks=pytest.mark.long)])
def test_start_status_kill_resume_finish_with_a_trainer_that_imports_nothing_of_ours(lab: Lab, way: str):
    hold = lab.folder / "hold"
    hold.touch()
    if way == "bin":
        start = [lab.bin("run"), "LAB-1", "--", "--hold", str(hold)]
        resume, runs, cwd = [lab.bin("resume"), "LAB-1"], [lab.bin("runs"), "LAB-1"], lab.folder / "lib"
    else:
        start = ["make", "kit-run", "EXP=LAB-1", "ARGS=--hold hold"]
        resume, runs, cwd = ["make", "kit-resume", "EXP=LAB-1"], ["make", "kit-runs", "EXP=LAB-1"], lab.folder
    process = lab.popen(*start, cwd=cwd)
    first = wait_until(lambda: next(iter(lab.run_dirs()), None), "a run")
    wait_until(lambda: 17 in losses(first), "step 17")
    assert "running" in lab(*runs, cwd=cwd) and "step 17/30" in lab(*runs, cwd=cwd)
    pid = wait_until(lambda: json.loads((first / "status.json").read_text())["pid"], "a status with a pid")
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == (137 if way == "bin" else 2)
    hold.unlink()
    said = lab(*resume, cwd=cwd)
    assert f"continuing '{first.name}' at step 15 (witnessed: newest stable)" in said and "resumed at step 15" in said
    second = lab.run_dirs()[-1]
    listed = lab(*runs, cwd=cwd).splitlines()
    assert listed[0].startswith(first.name) and "failed" in listed[0] and "exit 137" in listed[0]
    assert listed[1].startswith(f"└ {second.name}") and "finished" in listed[1] and "step 30/30" in listed[1]
    assert len({**losses(first), **losses(second)}) == 30
    assert git(lab.folder, "status", "--porcelain") == "", "a run's checkpoints do not get into the lab's git"
    if way == "make":
        assert "the lab's own run: the lab's own" in lab("make", "run")
    else:
        lab(lab.bin("run"), "LAB-1", "--fresh")
        whole = losses(lab.run_dirs()[-1])
        assert {**losses(first), **losses(second)} == whole, "spliced as if nothing had happened"


def test_a_comment_behind_the_prefix_is_not_part_of_it(tmp_path: Path):
    mk = Path(__file__).resolve().parent.parent / "resumekit.mk"
    (tmp_path / "Makefile").write_text(
        f"RESUMEKIT_PREFIX := kit-   # ours is taken\ninclude {mk}\nrun:\n\t@echo theirs\n"
    )
    done = subprocess.run(["make", "-n", "kit-runs", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "echo theirs" in done.stdout


@pytest.mark.parametrize(
    ("makefile", "goal"),
    [
        ("include {mk}\nlabs:\n\t@echo $@\nother:\n", "labs"),
        ("labs:\n\t@echo $@\ninclude {mk}\nother:\n", "labs"),
        (".DEFAULT_GOAL := labs\ninclude {mk}\nother:\nlabs:\n\t@echo $@\n", "labs"),
        ("RESUMEKIT_PREFIX := kit-\ninclude {mk}\nrun:\n\t@echo $@\n", "run"),
    ],
)
def test_what_make_alone_does_stays_the_labs(makefile: str, goal: str, tmp_path: Path):
    mk = Path(__file__).resolve().parent.parent / "resumekit.mk"
    (tmp_path / "Makefile").write_text(makefile.format(mk=mk))
    done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{goal}\n"), done.stderr


def test_merged_into_the_root_of_a_lab_that_has_no_such_folders(tmp_path: Path):
    folder = tmp_path / "merged lab"
    copy_kit(folder)
    (folder / "Makefile").write_text("include resumekit.mk\n")
    config = {**CONFIG, "paths": {"root": "."}, "trainer": {**CONFIG["trainer"], "command": ["echo", "step 30 loss 1"]}}
    (folder / "config.yaml").write_text(json.dumps(config))
    lab = Lab(folder)
    assert "step 30 loss 1" in lab("make", "run", "EXP=LAB-1")
    assert "finished" in lab("bin/runs.sh")
    assert [p.parent for p in lab.run_dirs()] == [folder / "runs"]


@pytest.mark.fault("H10", by="launcher.sh: its own place resolved, everything quoted")
@pytest.mark.fault("H11", by="doors: python -I, own folder last")
def test_works_through_a_link_to_the_kit_from_any_folder_whatever_its_name(kit: Kit, weird_tmp_path: Path):
    real = weird_tmp_path / 'the kit\'s \n "own" $(touch pwned) place'
    copy_kit(real)
    link = weird_tmp_path / "a link"
    link.symlink_to(real)
    (weird_tmp_path / "elsewhere").mkdir()
    hostile = weird_tmp_path / "elsewhere"
    for name in ("json", "argparse", "resumekit"):
        (hostile / f"{name}.py").write_text("raise RuntimeError('run out of the current folder')\n")
    for command in ("run", "runs"):
        argv = [str(link / "bin" / f"{command}.sh"), *kit.argv(command, "T-1")[1:]]
        done = subprocess.run(argv, cwd=hostile, env=kit.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (link / "run").symlink_to(real / "bin" / "run.sh")
    done = subprocess.run([str(link / "run"), "--help"], cwd=hostile, env=kit.env, capture_output=True, text=True)
    assert done.stdout.startswith("Summary: start an experiment") and not list(weird_tmp_path.rglob("pwned"))
    assert len(kit.run_dirs()) == 1


@pytest.mark.fault("H11", by="doors: python -I")
@pytest.mark.fault("K10", by="doors: python -I")
def test_nothing_of_a_lab_s_python_path_or_current_folder_is_run(lab: Lab):
    lab.env["PYTHONPATH"] = str(lab.folder / "lib")  # full of modules that fail when they are imported
    assert "no runs" in lab(lab.bin("runs"), cwd=lab.folder / "lib")


@pytest.mark.fault("K10", by="launcher.sh: PYTHONPATH is appended to")
def test_the_trainer_s_path_is_the_lab_s_first_and_never_has_an_empty_entry(kit: Kit):
    kit.config(trainer={"command": ["sh", "-c", 'echo "step 5 path=$PYTHONPATH"']})
    for given, expected in ((None, ""), ("", ""), ("/a:/b", "/a:/b:")):
        env = {} if given is None else {"PYTHONPATH": given}
        lib = str(Path(__file__).resolve().parent.parent / "lib")
        assert f"path={expected}{lib}\n" in kit("run", "T-1", "--fresh", env=env).stdout
