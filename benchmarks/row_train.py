"""Row 6: what the kit takes while training runs: CPU of its own processes, steps per second, and the way of the log.

The trainer is the embedded example on one thread, with its evaluations and checkpoints. The log's way is that of a
million lines to `train.log` and a terminal, against `| tee`.
Try it: `python benchmarks/bench.py 6 --quick`
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass

from arithmetic import AT_LEAST, spread
from comparison import Comparison, compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, measure
from lab import KIT, PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed
from row_lines import run_lines
from settings import Findings, Settings

GOAL_CPU, GOAL_SPEED = 0.01, 0.98
# Steps per run: enough for saves and a fast evaluation, few enough for 21 rounds in some minutes.
STEPS, QUICK_STEPS = 110, 30
NULL_EVERY = 3
# One longer run for the CPU's share: starting and ending cost the same however long a run is.
LONG_STEPS, QUICK_LONG_STEPS, LONG_ROUNDS = 1000, 90, 3
# How far from 0 the account of a bare trainer may be: the wrapper's own end is not in it.
NULL_CPU = 0.002
# The first steps fill caches and carries.
WARM_UP_STEPS = 10


def run(settings: Settings) -> Findings:
    """Measure row 6."""
    found = Findings()
    example = _Example(settings)
    short = _speed(settings, example, found)
    _cpu(settings, example, short, found)
    run_lines(settings, found)
    return found


@dataclass(frozen=True)
class _Ran:
    """One run of the example: seconds per step, CPU seconds of the trainer, and those of everything else."""

    per_step_s: float
    trainer_cpu_s: float
    other_cpu_s: float


class _Example:
    """The example under the kit and bare, with the same resolved config."""

    def __init__(self, settings: Settings) -> None:
        self.stamps, self.cpu = settings.scratch / "stamps", settings.scratch / "cpu"
        program = [str(PROGRAMS / "timed_example.py"), str(self.stamps)]
        self._wrapper = ["-I", "-S", str(PROGRAMS / "cpu_of.py"), str(self.cpu)]
        # The example's own small run, as the shipped config has it.
        shipped = _shipped("EXP-01")
        shipped["training"] |= {"device": "cpu", "threads": 1}
        shipped["schedule"] = {"warmup_steps": WARM_UP_STEPS}
        shipped["trainer"] = {
            "command": [
                "{python}", *self._wrapper, "{python}", "-u", *program, "--run_id", "{run_id}", "--config",
                "{config_json}", "--checkpoint_dir", "{checkpoints_dir}", "--status_json_path", "{heartbeat_json}",
                "--logdir", "{logs_dir}",
            ]
        }  # fmt: skip
        self.lab = Lab(settings.scratch / "train", {"BENCH-6": shipped})
        self._bare_folder, self._config = settings.scratch / "bare", settings.scratch / "resolved_config.json"
        folder = self._bare_folder
        self._bare = [
            sys.executable, *self._wrapper, sys.executable, "-u", *program, "--run_id", "bare", "--config",
            str(self._config), "--checkpoint_dir", str(folder / "checkpoints"), "--status_json_path",
            str(folder / "status.json"), "--logdir", str(folder / "logs"),
        ]  # fmt: skip

    def clean(self) -> None:
        self.lab.forget_runs()
        shutil.rmtree(self._bare_folder, ignore_errors=True)

    def under_kit(self, steps: int) -> _Ran:
        ran = self._run(self.lab.run("BENCH-6", "--set", f"training.max_steps={steps}"), steps)
        (folder,) = self.lab.run_folders()
        shutil.copyfile(folder / "resolved_config.json", self._config)
        return ran

    def bare(self, steps: int) -> _Ran:
        """The same trainer started by hand, its output in a file, with the config of the last run under the kit."""
        return self._run([*self._bare, "--max_steps", str(steps)], steps)

    def _run(self, command: list[str], steps: int) -> _Ran:
        whole = timed(command, cwd=self.lab.folder, env=clean_environment(PYTHONUNBUFFERED="1"))
        trainer_s, wrapper_s = map(float, self.cpu.read_text(encoding="utf-8").split())
        stamps = [float(stamp) for stamp in self.stamps.read_text(encoding="utf-8").split()]
        if len(stamps) != steps:
            raise BenchmarkError(f"the example did {len(stamps)} steps, not {steps}")
        per_step_s = (stamps[-1] - stamps[WARM_UP_STEPS]) / (steps - 1 - WARM_UP_STEPS)
        return _Ran(per_step_s, trainer_s, (whole.cpu_s or 0.0) - trainer_s - wrapper_s)


def _speed(settings: Settings, example: _Example, found: Findings) -> list[_Ran]:
    """Steps per second over alternating pairs, evaluations and saves included; returns the runs under the kit."""
    steps = QUICK_STEPS if settings.is_quick else STEPS
    example.under_kit(steps)  # its resolved config is what the bare ones get
    ours: list[_Ran] = []

    def under_kit() -> Sample:
        ours.append(example.under_kit(steps))
        return Sample(ours[-1].per_step_s, ours[-1].trainer_cpu_s)

    def bare() -> Sample:
        ran = example.bare(steps)
        return Sample(ran.per_step_s, ran.trainer_cpu_s)

    variants = [Variant(OURS, under_kit), Variant(THEIRS, bare), Variant(AGAIN, bare, NULL_EVERY)]
    samples = measure(variants, settings.rounds, "row 6, steps per second", example.clean)
    found.samples["row 6, steps per second"] = samples
    title = f"steps per second of the example under the kit against bare, {steps} steps on one thread"
    notes = ("the CPU seconds are the trainer's own, start included",)
    line = compare("6b", title, samples, GOAL_SPEED, direction=AT_LEAST, is_rate=True, notes=notes)
    found.comparisons.append(line)
    return ours


def _cpu(settings: Settings, example: _Example, short: list[_Ran], found: Findings) -> None:
    """CPU seconds of everything but the trainer, over the trainer's; without the kit that is nothing."""
    steps, bare_steps = (QUICK_LONG_STEPS, QUICK_STEPS) if settings.is_quick else (LONG_STEPS, STEPS)
    ours, bare = [], []
    for _ in range(LONG_ROUNDS):
        example.clean()
        ours.append(example.under_kit(steps))
        example.clean()
        bare.append(example.bare(bare_steps))
    long, brief = ours[0], short[-1]
    rate = (long.other_cpu_s - brief.other_cpu_s) / (long.trainer_cpu_s - brief.trainer_cpu_s)
    found.samples["row 6, CPU"] = {
        OURS: {n: Sample(one.other_cpu_s) for n, one in enumerate(ours)},
        THEIRS: {n: Sample(one.trainer_cpu_s) for n, one in enumerate(ours)},
        AGAIN: {n: Sample(one.other_cpu_s) for n, one in enumerate(bare)},
    }
    found.comparisons.append(
        Comparison(
            row="6a", title=f"CPU seconds of the kit's own processes over the trainer's, {steps} steps",
            ours=spread([one.other_cpu_s for one in ours]), theirs=spread([one.trainer_cpu_s for one in ours]),
            ratio=spread([one.other_cpu_s / one.trainer_cpu_s for one in ours]),
            null=spread([one.other_cpu_s / one.trainer_cpu_s for one in bare]), goal=GOAL_CPU, null_is=0.0,
            null_within=NULL_CPU,
            notes=(
                f"start and end alone cost {brief.other_cpu_s:.2f} s; after that {rate:.2%} of the trainer's CPU",
                "the null comparison is the same account of a trainer without the kit",
            ),
        )
    )  # fmt: skip


def _shipped(experiment: str) -> dict:
    import yaml  # late: the other rows need no PyYAML

    found = yaml.safe_load((KIT / "config.yaml").read_text(encoding="utf-8"))["experiments"][experiment]
    # PyYAML reads 1e-3 as text; the kit as a number.
    return json.loads(json.dumps(found), object_hook=_numbers)


def _numbers(section: dict) -> dict:
    def number(value: object) -> object:
        try:
            return float(value) if isinstance(value, str) and "e-" in value else value
        except ValueError:
            return value

    return {key: number(value) for key, value in section.items()}
