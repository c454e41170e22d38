"""Rows 1 and 2: what run.sh costs before and after the trainer, with one that does nothing and one that imports torch.

A run made here is a whole one: planned from a config of over 100 keys with full validation, in a git repo, with its
folder, snapshots, sidecar and log.
Try it: `python benchmarks/bench.py 1 2 --quick`
"""

from __future__ import annotations

import sys
from pathlib import Path

import peers
from comparison import compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, measure
from lab import PROGRAMS, Lab
from processes import clean_environment, timed
from settings import Findings, Settings

GOAL_HYDRA, GOAL_TORCHRUN, GOAL_BARE = 0.6, 0.10, 1.12
# The slow peers of row 2 are shown, not judged: every third round is enough.
PEER_EVERY = 3
HYDRA, BARE = "Hydra hello-world", "the trainer started bare"


class _Starts:
    """The commands of one row, each as something that can be timed."""

    def __init__(self, settings: Settings, folder: str, program: str, hydra_app: str) -> None:
        self.program = PROGRAMS / program
        command = ["{python}", str(self.program)]
        self.lab = Lab(settings.scratch / folder, {"BENCH-1": {"trainer": {"command": command, "resume_args": []}}})
        self.env = clean_environment()
        self._hydra = peers.hydra(hydra_app)

    def ours(self) -> Sample:
        return self._timed(self.lab.run("BENCH-1"))

    def bare(self) -> Sample:
        return self._timed([sys.executable, str(self.program)])

    def hydra(self) -> Sample:
        return self._timed(self._hydra)

    def launchers(self, every: int) -> list[Variant]:
        found = peers.launchers(self.program)
        return [Variant(name, lambda words=words: self._timed(words), every) for name, words in found.items()]

    def launcher(self, name: str) -> Sample:
        return self._timed(peers.launchers(self.program)[name])

    def _timed(self, command: list[str]) -> Sample:
        return timed(command, cwd=self.lab.folder, env=self.env)


def run_nothing(settings: Settings) -> Findings:
    """Row 1: a trainer that does nothing, against Hydra's hello-world and against torchrun."""
    starts, found = _Starts(settings, "start", "nothing.py", "my_app.py"), Findings()
    variants = [Variant(OURS, starts.ours), Variant(BARE, starts.bare)]
    has_torchrun = "torchrun" in peers.launchers(Path())
    if settings.has_peers:
        variants += [Variant(THEIRS, starts.hydra), Variant(AGAIN, starts.hydra)]
        variants += [v for v in starts.launchers(PEER_EVERY) if v.name != "torchrun"]
    if has_torchrun:
        variants += [Variant(name, lambda: starts.launcher("torchrun")) for name in ("torchrun", "torchrun again")]
    samples = measure(variants, settings.rounds, "row 1", starts.lab.forget_runs)
    found.samples["row 1"] = samples
    if settings.has_peers:
        title = f"run.sh, a trainer that does nothing, against {HYDRA}"
        slow = ("torchrun", "accelerate launch")
        found.comparisons.append(compare("1a", title, samples, GOAL_HYDRA, limit=BARE, peers=slow))
    else:
        found.remarks.append(f"row 1: {HYDRA} is not installed: that comparison is missing")
    if has_torchrun:
        title = "the same against torchrun"
        line = compare("1b", title, samples, GOAL_TORCHRUN, theirs="torchrun", null="torchrun again", limit=BARE)
        found.comparisons.append(line)
    else:
        found.remarks.append("row 1: torchrun is not installed: that comparison is missing")
    return found


def run_torch(settings: Settings) -> Findings:
    """Row 2: a trainer that imports torch, against starting it bare."""
    starts, found = _Starts(settings, "start-torch", "imports_torch.py", "my_torch_app.py"), Findings()
    variants = [Variant(OURS, starts.ours), Variant(THEIRS, starts.bare), Variant(AGAIN, starts.bare)]
    if settings.has_peers:
        variants.append(Variant(HYDRA, starts.hydra, PEER_EVERY))
    variants += starts.launchers(PEER_EVERY)
    samples = measure(variants, settings.rounds, "row 2", starts.lab.forget_runs)
    found.samples["row 2"] = samples
    names = [v.name for v in variants[3:]]
    title = f"run.sh, a trainer that imports torch, against {BARE}"
    found.comparisons.append(compare("2", title, samples, GOAL_BARE, peers=names))
    return found
