"""A lab on the two-node Slurm: its batch scripts, its runs, and a look at both nodes twenty times a second.

Its trainer is support/toy_trainer.py at ten steps a second, or where states are compared support/night_trainer.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reliability import live_trainers
from reliability.cluster_slurm import NODES, Cluster
from support.lab_repo import copy_kit, git
from support.nights import Night, record
from support.places import ROOT, TOY
from support.processes import marked_pids, wait_until
from support.runs import events

STEP_S, EVERY = 0.1, 10
LOOK_S, RELEASE_S = 0.05, 0.3
STARTS_S = 90.0
# What `sbatch` of a site that requeues is told; USR1 half a minute before the end of the time.
SBATCH = ("--requeue", "--signal=B:USR1@30", "--open-mode=append")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
NIGHT_TRAINER = ROOT / "tests" / "support" / "night_trainer.py"


class Stage(Night):
    """A lab with runs of its own.

    Args:
        folder: an empty folder for it.
        cluster: the Slurm that is up.
        look: who sees the trainers of both nodes.
    """

    def __init__(self, folder: Path, cluster: Cluster, look: Look) -> None:
        self.cluster, self.look, self.kit_root = cluster, look, ROOT
        super().__init__(folder)
        self.env.update(cluster.env)
        look.watch(self.runs)

    def config(self, *toy_args: str, **sections: dict[str, Any]) -> None:
        """Write a config for a cluster: short times, and the toy trainer at ten steps a second."""
        own: dict[str, dict[str, Any]] = {
            "trainer": {"loads_with_kit": True},
            "training": {"max_steps": 100},
            "checkpoint": {"every": EVERY, "keep_last": None},
            "status": {"interval_s": 1},
            "cluster": {"margin_s": 15, "poll_s": 1},
        }
        for name, section in sections.items():
            own[name] = {**own.get(name, {}), **section}
        super().config("--delay", str(STEP_S), "--save-every", str(EVERY), *toy_args, **own)

    def trains_really(self, steps: int, delay_s: float = STEP_S) -> None:
        """Let the trainer be one whose whole state is compared: weights, moments, random numbers, data."""
        where = ["--dir", "{checkpoints_dir}", "--once", str(self.once), "--steps", "{training.max_steps}"]
        pace = ["--every", str(EVERY), "--delay", str(delay_s)]
        command = ["{python}", str(NIGHT_TRAINER), *where, *pace]
        self.config(trainer={"command": command, "loads_with_kit": True}, training={"max_steps": steps})

    def makes_lab(self) -> Path:
        """Make a lab's repository with a trainer and a copy of the kit, whose commands are called from now on."""
        lab = self.folder / "lab"
        lab.mkdir()
        copy_kit(lab / "kit")
        shutil.copy(TOY, lab / "train.py")
        for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "a lab")):
            git(lab, *words)
        config = json.loads(self.config_file.read_text())
        config["trainer"]["command"][1] = "train.py"
        config["paths"] = {"root": ".."}
        self.config_file, self.kit_root = lab / "kit" / "config.yaml", lab / "kit"
        self.config_file.write_text(json.dumps(config))
        git(lab, "commit", "-q", "-a", "-m", "its config")
        return lab

    def argv(self, command: str, *args: str) -> list[str]:
        words = super().argv(command, *args)
        return [str(self.kit_root / "bin" / f"{command}.sh"), *words[1:]]

    # ---- jobs

    def submit(self, *args: str, sbatch: tuple[str, ...] = (), body: str | None = None, end: str = "exec ") -> str:
        """Submit a batch script that starts T-1; return the job.

        Args:
            args: more arguments of run.sh.
            sbatch: more options of sbatch, behind the site's own.
            body: the script's lines; `{run}` is the command.
            end: what stands before the command.
        """
        command = shlex.join(self.argv("run", "T-1", *args))
        lines = (body or f"{end}{{run}}").replace("{run}", command)
        options = " ".join((*SBATCH, f"--output={self.folder}/job-%j.out", *sbatch))
        script = self.folder / "job.sh"
        script.write_text(f"#!/usr/bin/env bash\n#SBATCH {options}\n{lines}\n")
        return self.sbatch(str(script))

    def submits_ranks(self) -> str:
        """Submit T-1 with a rank on each of both nodes, under torchrun; return the job."""
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        ranks = [*torchrun, f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id={run_id}", str(TOY), "--kind", "ranks"]
        where = ["--dir", "{checkpoints_dir}", "--steps", "{training.max_steps}"]
        pace = ["--delay", str(STEP_S), "--save-every", str(EVERY)]
        srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "{python}"]
        self.config(trainer={"command": [*srun, *ranks, *where, *pace]})
        return self.submit(sbatch=("-N2", "--ntasks-per-node=1"))

    def kills_rank(self, rank: int) -> None:
        """KILL the process of a rank of T-1."""
        of_rank = set(marked_pids(f"RESUMEKIT_TEST_MARK={self.mark}")) & set(marked_pids(f"RANK={rank}"))
        assert of_rank, f"no process of rank {rank} is there"
        for pid in of_rank:
            os.kill(pid, signal.SIGKILL)

    def sbatch(self, *words: str) -> str:
        return self.cluster.ask("sbatch", "--parsable", *words, env=self.env).strip()

    def job_is(self, job: str, *states: str, deadline_s: float = STARTS_S) -> dict[str, str]:
        """Wait until a job is in one of these states; return what Slurm says of it."""

        def found() -> dict[str, str] | None:
            now = self.cluster.job(job)
            return now if now.get("JobState") in states else None

        return wait_until(found, f"job {job} is {states}", deadline_s)

    def restarted(self, job: str, times: int = 1) -> None:
        """Wait until a job was requeued so often, and runs again."""

        def runs_again() -> bool:
            now = self.cluster.job(job)
            assert now.get("JobState") not in OVER, self.said(job)
            return now.get("JobState") == "RUNNING" and int(now["Restarts"]) >= times

        wait_until(runs_again, f"job {job} is requeued", STARTS_S)

    def allocation_ends(self, job: str, number: int) -> dict[str, str]:
        """Wait until a job is over, or was requeued so often; return what Slurm says of it."""

        def has_ended() -> dict[str, str] | None:
            now = self.cluster.job(job)
            return now if now.get("JobState") in OVER or int(now.get("Restarts", 0)) >= number else None

        return wait_until(has_ended, f"allocation {number} of job {job} is over", STARTS_S)

    def signal(self, job: str, name: str) -> None:
        """Send a signal to a job's batch script alone, as `--signal=B:` does before the end of its time."""
        self.cluster.ask("scancel", "--batch", f"--signal={name}", job)

    def signal_all(self, job: str, number: signal.Signals) -> None:
        """Send a signal to every process of a job, whatever the tracker knows of it."""
        of_job = set(marked_pids(f"SLURM_JOB_ID={job}")) & set(marked_pids(f"RESUMEKIT_TEST_MARK={self.mark}"))
        for pid in of_job:  # another Slurm beside this one has a job of the same number
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def moves_away(self, job: str, node: str) -> None:
        """Let a job that is being requeued begin again on the other node."""
        (other,) = set(NODES) - {node}
        with held(self.look):
            self.job_is(job, "PENDING")
            self.cluster.ask("scontrol", "update", f"JobId={job}", f"ReqNodeList={other}")

    def node_of(self, job: str) -> str:
        return self.cluster.job(job)["NodeList"]

    def said(self, job: str) -> str:
        """Return what Slurm says of a job, for the sentence of a failure."""
        now = self.cluster.job(job)
        return " ".join(f"{name}={now.get(name)}" for name in ("JobId", "JobState", "Reason", "Restarts", "ExitCode"))

    # ---- runs

    def reaches(self, step: int, count: int = 1, name: str = "toy") -> Path:
        """Wait until the newest of `count` runs has done a step; return its folder."""

        def newest() -> Path | None:
            found = [run for run in self.lineage(name) if events(run, "launched")]
            return found[-1] if len(found) >= count and self.last_step(found[-1]) >= step else None

        return wait_until(newest, f"run {count} of '{name}' does step {step}", STARTS_S)

    def lineage(self, name: str = "toy") -> list[Path]:
        """Return the runs of a name, oldest first."""
        return [run for run in self.run_dirs() if record(run).get("name") == name]

    def names(self) -> list[str]:
        """Return the names of the runs that there are."""
        return sorted({record(run)["name"] for run in self.run_dirs()})

    def last_step(self, run: Path) -> int:
        """Return the last step that a run's trainer has printed."""
        with contextlib.suppress(OSError):
            lines = (run / "logs" / "output.log").read_text(errors="replace").splitlines()
            steps = [line.split()[1] for line in lines if line.startswith("step ") and " loss " in line]
            return int(steps[-1]) if steps else 0
        return 0

    def outputs(self) -> str:
        """Return the last lines of what the jobs have printed, but for the steps."""
        texts = [path.read_text(errors="replace").splitlines() for path in sorted(self.folder.glob("job-*.out"))]
        return " / ".join(line for text in texts for line in text if not line.startswith(("step ", "saved step ")))[
            -900:
        ]

    def finishes(self, job: str, runs: int | None = None, name: str = "toy") -> list[Path]:
        """Wait until a job is COMPLETED, and hold that its last run has finished; return the lineage."""
        state = self.job_is(job, *OVER)["JobState"]
        found = self.lineage(name)
        assert state == "COMPLETED", self.said(job)
        assert found and self.state(found[-1]) == "finished", f"{self.state(found[-1])}; {self.said(job)}"
        if runs is not None:
            assert len(found) == runs, f"{len(found)} runs, not {runs}: {[run.name for run in found]}"
        return found

    def goes_on(self, lineage: list[Path], *, is_lossless: bool = True) -> None:
        """Hold that each run goes on from the one before it, from the last step that was done, or at least saved."""
        for before, after in itertools.pairwise(lineage):
            found = record(after)
            assert found["parent_run_id"] == before.name, f"{after.name} goes on from {found['parent_run_id']}"
            done, begun = self.last_step(before), found["parent_step"]
            assert begun == done or (not is_lossless and done - begun <= 2 * EVERY), (
                f"{before.name} has done step {done}, {after.name} begins at {begun}"
            )

    def ended_as(self, run: Path, state: str, *causes: str) -> None:
        """Hold the state of a run, as the login node shows it, and why its job was ended."""
        wait_until(lambda: self.shown(run)["state"] not in ("running", "starting"), f"{run.name} has ended")
        found = self.shown(run)
        assert found["state"] == state, f"{run.name} is {found['state']} ({found.get('job_cause')}), not {state}"
        assert not causes or found.get("job_cause") in causes, f"its job's cause is {found.get('job_cause')}"

    def shown(self, run: Path) -> dict[str, Any]:
        """Return what runs.sh says of a run at the login node."""
        found = json.loads(self("runs", run.name, "--json").stdout)  # with its lineage
        return next(one for one in found if one["run_id"] == run.name)

    def trains(self, run: Path) -> bool:
        """Whether a run has a trainer on any node."""
        return record(run).get("token") in {token for _, token in live_trainers.trainers()}


class Look:
    """A thread that looks at all trainers of both nodes twenty times a second, and releases held jobs.

    `overlaps` says of each lineage for how many seconds more than one of its runs had a trainer.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._folders: list[Path] = []
        self._runs: dict[str, tuple[str, str]] = {}
        self._ended = threading.Event()
        self.overlaps: dict[str, float] = {}
        self.looks, self.released = 0, True
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._look_on, self._release_on)]
        for one in self._threads:
            one.start()

    def watch(self, runs: Path) -> None:
        self._folders.append(runs)

    def end(self) -> None:
        self._ended.set()
        for one in self._threads:
            one.join()

    def take(self) -> dict[str, float]:
        """Return the overlaps, and forget them."""
        found, self.overlaps = self.overlaps, {}
        return found

    def _look_on(self) -> None:
        before_s = time.monotonic()
        while not self._ended.wait(LOOK_S):
            now_s = time.monotonic()
            self._look(now_s - before_s)
            before_s = now_s

    def _look(self, passed_s: float) -> None:
        training = live_trainers.trainers()
        tokens = {token for _, token in training}
        if tokens - set(self._runs):
            self._read_tokens()
        alive = {self._runs[token] for token in tokens if token in self._runs}
        self.looks += 1
        for root in several(alive):
            self.overlaps[root] = self.overlaps.get(root, 0.0) + passed_s

    def _read_tokens(self) -> None:
        for folder in self._folders:
            for run in folder.glob("*/run.json"):
                with contextlib.suppress(OSError, ValueError):
                    found = json.loads(run.read_bytes())
                    self._runs[found["token"]] = (found.get("root_run_id") or found["run_id"], found["run_id"])

    def _release_on(self) -> None:
        while not self._ended.wait(RELEASE_S):
            if self.released:
                with contextlib.suppress(Exception):  # the controller is busy: the next time
                    self._cluster.release()


def several(alive: set[tuple[str, str]]) -> list[str]:
    """Return the lineages of which more than one run trains; `alive` has (lineage, run)."""
    roots = [root for root, _ in alive]
    return sorted({root for root in roots if roots.count(root) > 1})


@contextlib.contextmanager
def held(look: Look) -> Iterator[None]:
    """Let requeued jobs wait, as Slurm has them wait."""
    look.released = False
    try:
        yield
    finally:
        look.released = True
