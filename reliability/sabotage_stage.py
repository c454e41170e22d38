"""Real resumes at two seconds each: the launcher, plan and sidecar as they are, the trainers forked (fork_server.py).

A `Stage` has five experiments: EXAMPLE (examples/hrm_arc, small), SMALL (support/small_trainer.py), LAB
(support/lab_trainer.py, which knows nothing of the kit), WIRED (support/wired_trainer.py) and WRAPPED, which is WIRED
behind a wrapper that drops the environment. Shared by tests/test_sabotage.py and campaign_healthy_resumes.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from resumekit.base.terms import EXACT, FAILED, NAMES, PASSED, STEPWISE, WARNED, WHOLE, overall_verdict
from support.commands import REFUSALS, Kit
from support.fork_server import ForkServer
from support.runs import events

EXAMPLE, SMALL, LAB, WIRED, WRAPPED = "EX-1", "EX-2", "EX-3", "EX-4", "EX-5"
# `env -i` that keeps what names the fault, and the mark by which the tests find their processes.
BARE = (
    "sh", "-c", 'exec env -i PATH="$PATH" RESUMEKIT_TEST_MARK="$RESUMEKIT_TEST_MARK" SABOTAGE="$SABOTAGE" '
    'SABOTAGE_TWIN="$SABOTAGE_TWIN" "$@"', "sh",
)  # fmt: skip
CHECKPOINTS = {"every": 10, "keep_last": None}
# Small, with everything on that makes the next step. 12 steps before a checkpoint is what a median is taken of.
CONFIG: dict[str, Any] = {
    "data": {"max_grid": 4, "variants": 4},
    "model": {"seq_len": 16, "hidden_size": 16, "heads": 2, "layers": 1, "dropout": 0.1, "halt_exploration": 0.5,
              "halt_max_steps": 3, "puzzle_emb_dim": 16},
    "training": {"max_steps": 40, "batch_size": 3, "grad_accum_steps": 2, "log_every": 4, "device": "cpu",
                 "threads": 1},
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup_steps": 4, "min_lr_ratio": 0.1},
    "ema": {"enabled": True, "decay": 0.9},
    "validation": {"fast_eval_every": 10, "full_eval_every": 1000, "fast_fraction": 0.02},
    "checkpoint": CHECKPOINTS,
}  # fmt: skip
# The checks that see a fault: not the last one, and not the speed of runs that are too short for it.
SEEN_BY = frozenset(NAMES) - {WHOLE, "throughput"}
# What the server has imported beside the modules that it runs.
TRAINERS = ("arc_training", "train_arc_full_nova", "support.small_trainer", "support.wired_trainer")
CUT = ("--set", "recover.enabled=true", "--set", "recover.replay_steps=5")
FLAGS = (
    "--run_id", "{run_id}", "--config", "{config_json}", "--checkpoint_dir", "{checkpoints_dir}",
    "--status_json_path", "{heartbeat_json}", "--logdir", "{logs_dir}",
)  # fmt: skip
# Those of docs/adopting.md.
PATTERNS = {
    "step": r"(?i)(?:(?:step|iter(?:ation)?)[^0-9a-z,.;]{1,12}|[|[] *(?=[0-9]+/[0-9]+[] ]))([0-9]+)",
    "loss": r"(?i)loss[^0-9a-z-]{1,4}(-?[0-9.]+)",
}
IN_DIR = ("--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}")


class Outcome(NamedTuple):
    """A resume that is over.

    Args:
        run: its folder; None where the resume was refused before there was one.
        code: the exit code of bin/resume.sh.
        checks: name -> the last `check` event of that name.
        words: what was printed.
    """

    run: Path | None
    code: int
    checks: dict[str, dict[str, Any]]
    words: str

    def named(self, verdict: str) -> list[str]:
        """Return the names of the checks with this verdict, without the one on all of them."""
        return [name for name, one in self.checks.items() if one["verdict"] == verdict and name != "resume"]

    def answer(self) -> str:
        """Return what the resume said of itself, in the words of the table in docs/acceptance.md."""
        parts = {name: one["verdict"] for name, one in self.checks.items() if name in SEEN_BY}
        verdict = overall_verdict(parts, is_stepwise=self.checks.get("loss", {}).get("compared") in (EXACT, STEPWISE))
        if verdict in (FAILED, WARNED):
            return " ".join(name for name, one in parts.items() if one in (FAILED, WARNED))
        if self.run is None or (self.code and not events(self.run, "step")):
            return "refused"
        return verdict if verdict == PASSED else f"not told: {self.checks[WHOLE]['found'].partition('not told: ')[2]}"


class Stage:
    """The commands, a config with three experiments, and the server that forks their trainers."""

    def __init__(self, folder: Path) -> None:
        self.server = ForkServer("reliability.sabotage", "reliability.sabotage_lab", *TRAINERS)
        self.kit = Kit(folder)
        with_kit = {"resume_args": ["--resume", "{checkpoint}"], "loads_with_kit": True}
        example = {"command": self.server.command("reliability.sabotage", *FLAGS), "describe_args": ["--describe"],
                   "schedule_with_kit": True, **with_kit}  # fmt: skip
        small = {"command": self.server.command("reliability.sabotage", *IN_DIR), **with_kit}
        lab = {
            "command": self.server.command("reliability.sabotage_lab", "--out", *IN_DIR[1:]),
            "resume_args": ["--resume", "{checkpoint}"],
            "log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)", "lr": "lr ([0-9.]+)"},
        }
        wired_command = self.server.command("reliability.sabotage", "--out", *IN_DIR[1:], "--lr", "{optimizer.lr}")
        wired = {"command": wired_command, "log_patterns": PATTERNS,
                 **with_kit}  # fmt: skip
        plain = {"training": {"max_steps": 40}, "schedule": {"warmup_steps": 0}, "checkpoint": CHECKPOINTS}
        adam = {**plain, "optimizer": {"name": "adamw", "lr": 1e-2}}
        document = {
            "trainer": {"command": example["command"]},
            "recover": {"enabled": False},  # what a fault does to one resume is looked at, not what follows
            "experiments": {
                EXAMPLE: {"name": "example", "trainer": example, **CONFIG},
                SMALL: {"name": "small", "trainer": small, **plain},
                LAB: {"name": "lab", "trainer": lab, **plain},
                WIRED: {"name": "wired", "trainer": wired, **adam},
                WRAPPED: {"name": "wrapped", "trainer": {**wired, "command": [*BARE, *wired_command]}, **adam},
            },
        }
        self.kit.config_file.write_text(json.dumps(document, indent=1))

    def start(self, experiment: str, *args: str, code: int = 0, **environment: str) -> Path:
        """Run an experiment from its beginning; returns its folder."""
        before = set(self.kit.run_dirs())
        self.kit("run", experiment, "--fresh", *args, code=code, env=environment)
        (made,) = set(self.kit.run_dirs()) - before
        return made

    def resume(self, parent: Path, *args: str, **environment: str) -> Outcome:
        """Branch from a run and wait for the end; `args` are those of bin/resume.sh."""
        before = set(self.kit.run_dirs())
        experiment = json.loads((parent / "run.json").read_text())["experiment"]
        done = self.kit("resume", experiment, "--from", parent.name, *args, code=None, env=environment)
        made = set(self.kit.run_dirs()) - before
        assert len(made) == 1 or (not made and done.returncode in REFUSALS), done.stdout + done.stderr
        return outcome(made.pop() if made else None, done)

    def recovered(self, experiment: str, **environment: str) -> Outcome:
        """Run an experiment that is recovered from a loss that is NaN; returns the end of the recovery."""
        before = set(self.kit.run_dirs())
        done = self.kit("run", experiment, "--fresh", *CUT, code=None, env=environment)
        made = sorted(set(self.kit.run_dirs()) - before, key=lambda run: run.stat().st_mtime)
        (run,) = [one for one in made if events(one, "check")]
        return outcome(run, done)

    def close(self) -> None:
        self.kit.clean_up()


def outcome(run: Path | None, done: subprocess.CompletedProcess[str]) -> Outcome:
    """Return the outcome of a resume that has ended."""
    checks = {one["name"]: one for one in events(run, "check")} if run is not None else {}
    return Outcome(run, done.returncode, checks, done.stdout + done.stderr)


def misname(run: Path, step: int, name: int) -> None:
    """Put the file of one step in the place of another one, as if the trainer had saved it under that name."""
    folder = run / "checkpoints"
    paths = [next(folder.glob(f"*_step_{number}.pt")) for number in (step, name)]
    shutil.copy(*paths)
    for manifest in folder.glob(f"{paths[1].name}.*"):
        manifest.unlink()
