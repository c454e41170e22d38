"""A lab's repository with the kit in it, made for the tests: its own Makefile, lib/, schemas/, config.yaml, tests/."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from support.places import ROOT

KIT_PARTS = ("bin", "lib", "schemas", "config.yaml", "resumekit.mk", "VERSION")
TRAINER = Path(__file__).resolve().parent / "lab_trainer.py"

# The part of GitHub's Python.gitignore that bites: it ignores every lib/.
PYTHON_GITIGNORE = """\
# Byte-compiled / optimized / DLL files
__pycache__/
*.py[codz]
*$py.class

# C extensions
*.so

# Distribution / packaging
.Python
build/
develop-eggs/
dist/
downloads/
eggs/
.eggs/
lib/
lib64/
parts/
sdist/
var/
wheels/
share/python-wheels/
*.egg-info/
.installed.cfg
*.egg
MANIFEST

*.manifest
*.spec
pip-log.txt
htmlcov/
.coverage
*.log
.env
.envrc
.venv
env/
venv/
ENV/
"""

MAKEFILE = """\
NAME := the lab's own
RUNS := are something else here
RESUMEKIT_PREFIX := kit-
include resumekit/resumekit.mk

.PHONY: run
run:
	@echo "the lab's own run: $(NAME)"
"""

CONFIG = {
    "paths": {"root": "..", "runs": "runs"},
    "trainer": {
        "command": ["{python}", "train.py", "--out", "{checkpoints_dir}", "--steps", "{training.max_steps}"],
        "resume_args": ["--resume", "{checkpoint}"],
        "loads_with_kit": False,
        "log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)", "lr": "lr ([0-9.]+)"},
    },
    "training": {"max_steps": 30},
    "recover": {"enabled": False},  # the tests kill and resume by hand
    "schedule": {"warmup_steps": 0},
    "experiments": {"LAB-1": {"name": "first"}},
}


def copy_kit(target: Path) -> None:
    """Copy what goes into a lab's repository, and what Python has compiled of it: that costs a start a second."""
    target.mkdir(exist_ok=True)
    for part in KIT_PARTS:
        source = ROOT / part
        if source.is_dir():
            being_written = shutil.ignore_patterns("*.pyc.*")
            shutil.copytree(source, target / part, ignore=being_written, dirs_exist_ok=True)
        else:
            shutil.copy(source, target / part)
    with open(target / ".gitignore", "a") as file:
        file.write("!/lib/\n")


def git(folder: Path, *args: str) -> str:
    """Run git in a folder, with a name and without a user's settings."""
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": str(folder)}
    names = ["-c", "user.name=lab", "-c", "user.email=lab@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *names, *args], cwd=folder, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_lab(folder: Path) -> Path:
    """Make the repository, with the kit in resumekit/, and commit it; return its folder."""
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text(PYTHON_GITIGNORE)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "config.yaml").write_text("this: is\nthe: [lab's, own]\n")
    (folder / "train.py").write_bytes(TRAINER.read_bytes())
    for name in ("schemas", "tests", "lib"):
        (folder / name).mkdir()
    (folder / "schemas" / "config.schema.json").write_text("not ours")
    (folder / "tests" / "test_lab.py").write_text("def test_nothing():\n    pass\n")
    for name in ("queue", "yaml", "json", "schema"):
        (folder / "lib" / f"{name}.py").write_text(f"raise RuntimeError('the lab\\'s {name}.py is not for the kit')\n")
    (folder / "lib" / "config.py").write_text("DEFAULT_LR = 0.01\n")
    copy_kit(folder / "resumekit")
    (folder / "resumekit" / "config.yaml").write_text(json.dumps(CONFIG, indent=1))
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "add", "-f", "lib")  # the lab's own lib/, which its own .gitignore swallows
    git(folder, "commit", "-q", "-m", "a lab")
    return folder


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
