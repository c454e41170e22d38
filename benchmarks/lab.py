"""A lab to measure in: a folder with a git repo, the kit's own config with an experiment of ours on top, and runs/.

Everything lies under one scratch folder that is removed at the end.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from processes import BenchmarkError, clean_environment, timed

KIT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
RUN_SH, RESUME_SH = KIT / "bin" / "run.sh", KIT / "bin" / "resume.sh"
MIN_KEYS = 100


class Lab:
    """The folder, its config, and the commands that work in it.

    Args:
        folder: made here; it must not exist.
        experiments: name -> the keys that it changes, sections as in config.yaml.
    """

    def __init__(self, folder: Path, experiments: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.config = folder / "config.yaml"
        folder.mkdir(parents=True)
        self.config.write_text(_config_text(experiments), encoding="utf-8")
        (folder / ".gitignore").write_text("/runs/\n/outputs/\n", encoding="utf-8")
        self._become_repo()

    def run(self, experiment: str, *arguments: str) -> list[str]:
        """Return the command that starts an experiment anew."""
        return [str(RUN_SH), experiment, "--fresh", "--config", str(self.config), *arguments]

    def resume(self, experiment: str, *arguments: str) -> list[str]:
        """Return the command that continues an experiment."""
        return [str(RESUME_SH), experiment, "--config", str(self.config), *arguments]

    def run_killed(self, experiment: str) -> None:
        """Run an experiment whose trainer saves and kills itself; it is not taken up."""
        command = [*self.run(experiment), "--set", "recover.enabled=false"]
        timed(command, cwd=self.folder, env=clean_environment(), codes=(128 + signal.SIGKILL,))

    def run_folders(self) -> set[Path]:
        """Return the folders of all runs."""
        found = self.runs.iterdir() if self.runs.is_dir() else ()
        return {path for path in found if not path.name.startswith(".")}

    def forget_runs(self, but: set[Path] = frozenset()) -> None:  # type: ignore[assignment]
        """Remove every run but those in `but`, and what the others claimed in these: each measurement starts alike."""
        for path in self.run_folders() - but:
            shutil.rmtree(path)
        for path in but:
            shutil.rmtree(path / "claims", ignore_errors=True)

    def _become_repo(self) -> None:
        """Commit what is there: a run records the commit and the diff, and that takes its time."""
        if shutil.which("git") is None:
            return
        who = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
        for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "lab")):
            done = subprocess.run(["git", *words], cwd=self.folder, env=clean_environment(), capture_output=True)
            if done.returncode:
                raise BenchmarkError(f"git {words[0]} failed in '{self.folder}': {done.stderr.decode()}")


def count_keys(section: Any) -> int:
    """Return the number of leaves of a nested dict."""
    return sum(count_keys(value) for value in section.values()) if isinstance(section, dict) else 1


def _config_text(experiments: dict[str, dict[str, Any]]) -> str:
    """Return the shipped config, comments and all, with our experiments at the end of its last section."""
    import yaml  # late: the rows that need no lab need no PyYAML

    text = (KIT / "config.yaml").read_text(encoding="utf-8").rstrip() + "\n"
    document = yaml.safe_load(text)
    if next(reversed(document)) != "experiments":
        raise BenchmarkError("config.yaml does not end with its 'experiments': nothing can be appended to it")
    keys = count_keys({name: value for name, value in document.items() if name != "experiments"})
    if keys < MIN_KEYS:
        raise BenchmarkError(f"config.yaml has {keys} keys, the comparison asks for {MIN_KEYS}")
    # JSON is YAML: any value is written safely.
    return text + "".join(f"  {name}: {json.dumps(changes)}\n" for name, changes in experiments.items())
