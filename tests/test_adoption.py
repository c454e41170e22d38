"""The kit in a lab's own repository, after a commit and a fresh clone, with a trainer that knows nothing of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumekit.config import config, yaml_document
from resumekit.run.journal_fold import fold
from resumekit.trainer.resume_bundle import ResumeBundle
from support.commands import Kit
from support.fork_server import ForkServer
from support.lab_repo import CONFIG, KIT_PARTS, PYTHON_GITIGNORE, Lab, copy_kit, git, make_lab
from support.places import ROOT
from support.processes import wait_until
from support.runs import events


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
    assert {t.split("/")[1] for t in tracked} == {*KIT_PARTS, ".gitignore"}
    assert any(t.startswith("resumekit/lib/resumekit/") for t in tracked), "the lab's .gitignore did not swallow lib/"
    lab("make", "kit-runs")
    assert git(lab.folder, "status", "--porcelain") == ""


@pytest.mark.parametrize("way", ["bin", pytest.param("make", marks=pytest.mark.long)])
def test_start_status_kill_resume_finish_with_a_trainer_that_imports_nothing_of_ours(
    lab: Lab, way: str, scripts: ForkServer
):
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
    assert f"continuing '{first.name}' at step 15 (attested: newest stable)" in said and "resumed at step 15" in said
    second = lab.run_dirs()[-1]
    listed = lab(*runs, cwd=cwd).splitlines()
    assert listed[0].startswith(first.name) and "failed" in listed[0] and "exit 137" in listed[0]
    assert listed[1].startswith(f"└ {second.name}") and "finished" in listed[1] and "step 30/30" in listed[1]
    assert len({**losses(first), **losses(second)}) == 30
    assert git(lab.folder, "status", "--porcelain") == "", "a run's checkpoints do not get into the lab's git"
    if way == "make":
        assert "the lab's own run: the lab's own" in lab("make", "run")
    else:
        whole = lab.folder.parent / "whole"
        assert scripts.run(whole, str(lab.folder / "train.py"), "--out", str(whole / "checkpoints")) == 0
        shown = re.findall("^step ([0-9]+) loss ([0-9.]+)", (whole / "output.log").read_text(), re.MULTILINE)
        expected = {int(step): float(loss) for step, loss in shown}
        assert {**losses(first), **losses(second)} == expected, "spliced as if nothing had happened"


@pytest.mark.parametrize("place", ["kit", "."])
def test_the_commands_that_the_page_shows_copy_the_kit_and_change_no_file_of_the_lab(place: str, tmp_path: Path):
    """Into the root of a repo, too, whose .gitignore leaves out every lib/."""
    page = (ROOT / "docs" / "adopting.md").read_text()
    (block,) = re.findall(r"^```\n(mkdir -p kit\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = re.sub(r"\bkit\b", place, block).replace("resumekit/{", f"{ROOT}/{{")
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / ".gitignore").write_text(PYTHON_GITIGNORE)
    git(lab, "init", "-q")
    git(lab, "add", ".")
    git(lab, "commit", "-q", "-m", "a lab")
    argv = ["bash", "-euc", commands]
    done = subprocess.run(argv, cwd=lab, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: run.sh EXP" in done.stdout, done.stderr
    assert f"A  {place}/lib/resumekit/commands.py".replace("./", "") in done.stdout
    assert (lab / ".gitignore").read_text().startswith(PYTHON_GITIGNORE)


def test_the_page_names_the_example_s_sections_and_the_rest_resolves_without_them():
    page = (ROOT / "docs" / "adopting.md").read_text()
    said = page.split("drop what is the example's: the sections ")[1].split("Of the dropped")[0]
    dropped, kept = (re.findall(r"`([a-z]+)`", part) for part in said.split("The others"))
    data = config.load_config().document.data
    assert {*dropped, *kept, "experiment"} == set(data), "each section of config.yaml is named"
    (own,) = re.findall(r"^```yaml\n(paths: .*?)^```$", page, re.MULTILINE | re.DOTALL)
    document = yaml_document.load(own, "config.yaml")
    defaults = config.resolve(document, "EXP-01")
    for name in kept:
        document.data[name] = {**data[name], **document.data.get(name, {})}
    assert config.resolve(document, "EXP-01") == defaults, "what is left out has the value that stands there"


def test_the_page_names_what_is_taken_from_a_heartbeat_and_where_extra_comes_back():
    page = (ROOT / "docs" / "adopting.md").read_text()
    names = re.findall(r"`([a-z_]+)`", page.split("taken over into status.json:")[1].split("Any other name")[0])
    values = {"optimizer": "AdamW", "scheduler_phase": "cosine", "lr": 0.5, "loss": 0.5, "steps_per_sec": 2.0}
    told = {"event": "heartbeat", **{name: values.get(name, 3) for name in names[1:]}}
    state = fold({}, [{**told, "global_step": step, "mono_s": float(step)} for step in (8, 9)])
    assert names[0] == "global_step" and state["step"] == 9
    assert [name for name in names[1:] if name not in state] == []
    assert "bundle.extra[" in page and "extra" in ResumeBundle.__dataclass_fields__


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
        ("include {mk}\nlabs:: ; @echo $@\n", "labs"),
        ("include {mk}\ninclude rules.mk\n", "labs"),
        ("include {mk}\n$(eval labs: ; @echo $$@)\n", "labs"),
        ("NAME := labs\ninclude {mk}\n$(NAME):\n\t@echo $@\n", "labs"),
    ],
)
def test_what_make_alone_does_stays_the_labs(makefile: str, goal: str, tmp_path: Path):
    mk = Path(__file__).resolve().parent.parent / "resumekit.mk"
    (tmp_path / "Makefile").write_text(makefile.format(mk=mk))
    (tmp_path / "rules.mk").write_text("labs:\n\t@echo $@\n")
    done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{goal}\n"), done.stderr


@pytest.mark.parametrize(
    ("makefile", "target"),
    [
        ("include {mk}\n", "make run "),
        (
            "# our kit: see docs\n\nRESUMEKIT_PREFIX := kit-   # ours\nLR ?= 1e-3\n\ninclude {mk}\nMORE := a:b\n",
            "make kit-run ",
        ),
        ("-include {mk}\n", "make run "),
    ],
)
def test_make_alone_in_a_lab_without_targets_lists_those_of_the_kit(makefile: str, target: str, tmp_path: Path):
    mk = Path(__file__).resolve().parent.parent / "resumekit.mk"
    (tmp_path / "Makefile").write_text(makefile.format(mk=mk))
    done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  {target}" in done.stdout and f"{mk.parent}/bin/, each with --help" in done.stdout


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
@pytest.mark.fault("H11", by="entry points: python -I, own folder last")
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


@pytest.mark.fault("H11", by="entry points: python -I")
@pytest.mark.fault("K10", by="entry points: python -I")
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
