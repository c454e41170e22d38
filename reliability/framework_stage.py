"""A recipe of examples/ copied into a folder of its own, and the ways to start, kill and compare its runs.

A pace, a count of steps and a NaN come from `framework_hooks/sitecustomize.py`, on the trainer's path: no recipe has a
line for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reliability.framework_recipes import EVERY, Recipe
from support.nights import Night, record
from support.places import ROOT
from support.processes import wait_until
from support.runs import events

HOOKS = Path(__file__).resolve().parent / "framework_hooks"
SETTINGS = (
    "status.interval_s=1",
    "recover.backoff_s=1",
    "recover.max_per_hour=null",
    "trainer.env=[RESUMEKIT_TEST_MARK, PYTHONPATH, RECIPE_STEPS, RECIPE_PACE_S, RECIPE_NAN]",
)
LIVE = {"", "never_started", "starting", "running", "unsupervised"}
STARTS_S = 120.0  # the slowest import of a framework, on a loaded machine


class Stage(Night):
    """A recipe with runs of its own.

    Args:
        folder: an empty folder for it.
        recipe: which one.
        python: the interpreter that has its packages.
    """

    def __init__(self, folder: Path, recipe: Recipe, python: str) -> None:
        self.recipe = recipe
        super().__init__(folder)
        lab = folder / "examples" / recipe.name
        shutil.copytree(ROOT / "examples" / recipe.name, lab, ignore=shutil.ignore_patterns("__pycache__"))
        self.config_file = lab / "config.yaml"
        self.steps_folder = folder / "steps"
        self.steps_folder.mkdir()
        self.env.update(
            RESUMEKIT_TRAINER_PYTHON=python,
            PYTHONPATH=str(HOOKS),
            RECIPE_STEPS=str(self.steps_folder),
            RECIPE_PACE_S="",
            RECIPE_NAN="0:",
        )

    def config(self, *_: str, **__: Any) -> None:
        """Write nothing: the recipe's config.yaml is used as it is."""

    def watch(self, *args: str, code: int | None = None, **more: Any) -> subprocess.CompletedProcess:
        """One pass of bin/abort-watch.sh itself, as cron makes it."""
        return self("abort-watch", *args, code=code, **more)

    def begin(self, name: str, *, pace_s: float = 0.02, nan_step: int = 0, args: tuple[str, ...] = ()) -> Path:
        """Start the experiment anew under a name, detached; return its folder when it has a trainer."""
        env = {"RECIPE_PACE_S": str(pace_s), "RECIPE_NAN": f"{nan_step}:{self.once / name}"}
        words = [word for setting in SETTINGS for word in ("--set", setting)]
        done = self("run", self.recipe.experiment, "--fresh", "--detach", "--name", name, *words, "--", *args, env=env)
        run = self.runs / done.stdout.strip()
        wait_until(lambda: events(run, "launched"), f"{run.name} has a trainer", STARTS_S)
        return run

    @functools.cached_property
    def whole(self) -> Path:
        """The run that nothing disturbs."""
        run = self.begin("whole")
        self.ends(run)
        return run

    @functools.cached_property
    def cut(self) -> Path:
        """A run of which every process was killed at once, behind the fifth of its saves; none is attested."""
        run = self.begin("cut", pace_s=self.recipe.pace_s)
        self.reaches(run, 5 * EVERY + 10)
        self.kill_all_of(run)
        # What the kernel has not buried yet is no death: two commands would be told different things.
        wait_until(lambda: self.shown(run) not in LIVE | {"unknown"}, f"{run.name} is seen to be dead")
        # Where the machine is slow, some are: five seconds at rest are enough.
        for manifest in [*run.glob("manifests/*.json"), *run.glob("checkpoints/*.json")]:
            manifest.unlink()
        return run

    def shown(self, run: Path) -> str:
        """Return the state of a run as runs.sh shows it."""
        return json.loads(self("runs", run.name, "--json").stdout)[0]["state"]

    def step_of(self, run: Path) -> int:
        """Return the last step that a run's trainer has done, by its own count."""
        launched = events(run, "launched")
        with contextlib.suppress(OSError):
            if launched:
                count = (self.steps_folder / str(launched[0]["trainer"]["pid"])).stat().st_size
                return count + (record(run).get("parent_step") or 0)
        return 0

    def reaches(self, run: Path, step: int) -> None:
        """Wait until a run's trainer has done a step."""

        def has_done() -> bool:
            assert not events(run, "exited"), f"{run.name} has ended: {self.tail(run)}"
            return self.step_of(run) >= step

        wait_until(has_done, f"{run.name} does step {step}", STARTS_S)

    def ends(self, run: Path, state: str = "finished") -> None:
        """Wait until a run has ended, and hold that it has ended well."""
        wait_until(lambda: events(run, "exited"), f"{run.name} ends", STARTS_S)
        wait_until(lambda: self.state(run) not in LIVE, "its status has ended")
        assert self.state(run) == state, f"{self.state(run)}: {self.tail(run)}"

    def successor(self, run: Path) -> Path:
        """Wait until a run is taken up by itself; return what goes on, when it has done a step."""

        def child_of_it() -> Path | None:
            refused = [one["reason"] for one in events(run, "recovery") if one["outcome"] == "needs_attention"]
            assert not refused, f"{run.name} is not taken up: {refused[0]}"
            return self.child(run)

        child = wait_until(child_of_it, f"{run.name} is taken up", STARTS_S)
        wait_until(lambda: self.step_of(child) > (record(child).get("parent_step") or 0), "its first step", STARTS_S)
        return child

    def plan(self, *args: str, code: int | None = 0) -> dict[str, Any]:
        """Return what `resume.sh EXP ... --dry-run --json` says."""
        return json.loads(self("resume", *args, "--dry-run", "--json", code=code).stdout)

    def newest(self, run: Path) -> tuple[int, Path, int]:
        """Return (step, checkpoint) of the newest that a run has, and the step of the newest of the others."""
        *others, (step, path) = self.recipe.checkpoints(run)
        return step, path, max(of_other for of_other, _ in others)

    def branch(self, name: str, *args: str) -> Path:
        """Resume as a branch of this name, in the foreground and at full speed; return its folder."""
        self("resume", *args, "--name", name, "--accept", env={"RECIPE_PACE_S": ""})
        (run,) = (path for path in self.run_dirs() if f"_{name}_" in path.name)
        return run

    def tail(self, run: Path) -> str:
        """Return the end of what a run's trainer has printed."""
        with contextlib.suppress(OSError):
            return (run / "logs" / "output.log").read_text(errors="replace")[-300:]
        return "it has no log"


@contextlib.contextmanager
def torn(checkpoint: Path, victim: Path, how: str, aside: Path) -> Iterator[None]:
    """Let a file of a checkpoint be 'missing' or 'cut' to its half, for a while; the very file comes back.

    Args:
        checkpoint: the file or folder, whose times are put back.
        victim: the file in it, or itself.
        how: 'missing' or 'cut'.
        aside: a path on the same disk that nothing has.
    """
    times = [(path, path.stat()) for path in {checkpoint.parent, checkpoint} if path != victim]
    victim.rename(aside)
    if how == "cut":
        data = aside.read_bytes()
        victim.write_bytes(data[: len(data) // 2])
        shutil.copystat(aside, victim)
    try:
        yield
    finally:
        aside.replace(victim)
        for path, stat in times:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
