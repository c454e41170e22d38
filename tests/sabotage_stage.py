"""Real resumes at two seconds each: the launcher, plan and sidecar as they are, the trainers forked (warm_trainer.py).

A `Stage` has three experiments: EXAMPLE (examples/hrm_arc, small), SMALL (tests/sabotage_trainer.py) and LAB
(tests/lab_trainer.py, which knows nothing of the kit). Shared by tests/test_sabotage.py and
tests/campaign_healthy_resumes.py.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from conftest import Kit, events
from warm_trainer import Server

EXAMPLE, SMALL, LAB = "EX-1", "EX-2", "EX-3"
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
FLAGS = (
    "--run_id", "{run_id}", "--config", "{config_json}", "--checkpoint_dir", "{checkpoints_dir}",
    "--status_json_path", "{heartbeat_json}", "--logdir", "{logs_dir}",
)  # fmt: skip
IN_DIR = ("--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}")


class Outcome(NamedTuple):
    """A resume that is over.

    Args:
        run: its folder.
        code: the exit code of bin/resume.sh.
        checks: name -> the last `check` event of that name.
        words: what was printed.
    """

    run: Path
    code: int
    checks: dict[str, dict[str, Any]]
    words: str

    def named(self, verdict: str) -> list[str]:
        """Return the names of the checks with this verdict, without the one on all of them."""
        return [name for name, one in self.checks.items() if one["verdict"] == verdict and name != "resume"]


class Stage:
    """The commands, a config with three experiments, and the server that forks their trainers."""

    def __init__(self, folder: Path) -> None:
        self._place = tempfile.TemporaryDirectory()  # a socket's path has to be short
        self.server = Server(self._place.name, "sabotage", "sabotage_lab")
        self.kit = Kit(folder)
        with_kit = {"resume_args": ["--resume", "{checkpoint}"], "loads_with_kit": True}
        example = {"command": self.server.command("sabotage", *FLAGS), "describe_args": ["--describe"],
                   "schedule_with_kit": True, **with_kit}  # fmt: skip
        small = {"command": self.server.command("sabotage", *IN_DIR), **with_kit}
        lab = {
            "command": self.server.command("sabotage_lab", "--out", *IN_DIR[1:]),
            "resume_args": ["--resume", "{checkpoint}"],
            "log_patterns": {"step": "^step ([0-9]+)", "loss": "loss ([0-9.]+)", "lr": "lr ([0-9.]+)"},
        }
        plain = {"training": {"max_steps": 40}, "schedule": {"warmup_steps": 0}, "checkpoint": CHECKPOINTS}
        document = {
            "trainer": {"command": example["command"]},
            "recover": {"enabled": False},  # what a fault does to one resume is looked at, not what follows
            "experiments": {
                EXAMPLE: {"name": "example", "trainer": example, **CONFIG},
                SMALL: {"name": "small", "trainer": small, **plain},
                LAB: {"name": "lab", "trainer": lab, **plain},
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
        words = done.stdout + done.stderr
        assert len(made) == 1, words
        run = made.pop()
        return Outcome(run, done.returncode, {one["name"]: one for one in events(run, "check")}, words)

    def close(self) -> None:
        self.kit.clean_up()
        self.server.close()
        self._place.cleanup()
