"""Row 6: what the kit takes while training runs: CPU of its own processes, steps per second, and the way of the log.

The trainer is the embedded example on one thread, with its evaluations and checkpoints. The log's way is that of a
million lines to `train.log` and a terminal, against `| tee`.
Try it: `python benchmarks/bench.py 6 --quick`
"""

from __future__ import annotations

import json
import shutil
import sys

from arithmetic import AT_LEAST, ratios, spread
from comparison import Comparison, compare
from harness import AGAIN, OURS, THEIRS, Sample, Samples, Variant, measure
from lab import KIT, PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed
from row_lines import run_lines
from settings import Findings, Settings

GOAL_CPU, GOAL_SPEED = 0.01, 0.98
# Steps per run: enough that a run is mostly training, few enough that 21 rounds of three stay within some minutes.
STEPS, QUICK_STEPS = 150, 40
# One longer run for the CPU's share: starting and ending cost the same however long a run is.
LONG_STEPS, QUICK_LONG_STEPS, LONG_ROUNDS = 1000, 60, 3
# The first steps fill caches and carries.
WARM_UP_STEPS = 10


def run(settings: Settings) -> Findings:
    """Measure row 6."""
    found = Findings()
    example = _Example(settings)
    _speed(settings, example, found)
    _cpu(settings, example, found)
    run_lines(settings, found)
    return found


class _Example:
    """The example under the kit and bare, with the same resolved config."""

    def __init__(self, settings: Settings) -> None:
        self.stamps = settings.scratch / "stamps"
        command = [
            "{python}", "-u", str(PROGRAMS / "timed_example.py"), str(self.stamps), "--run_id", "{run_id}",
            "--config", "{config_json}", "--checkpoint_dir", "{checkpoints_dir}", "--status_json_path",
            "{heartbeat_json}", "--logdir", "{logs_dir}",
        ]  # fmt: skip
        # The example's own small run, as the shipped config has it.
        shipped = _shipped("EXP-01")
        shipped["trainer"] = {"command": command}
        shipped["training"] |= {"device": "cpu", "threads": 1}
        shipped["schedule"] = {"warmup_steps": WARM_UP_STEPS}
        self.lab = Lab(settings.scratch / "train", {"BENCH-6": shipped})
        self.bare_folder = settings.scratch / "bare"
        self._config = settings.scratch / "resolved_config.json"

    def clean(self) -> None:
        self.lab.forget_runs()
        shutil.rmtree(self.bare_folder, ignore_errors=True)
        self.stamps.unlink(missing_ok=True)

    def under_kit(self, steps: int) -> tuple[Sample, float, float]:
        """Return (what the command took, CPU seconds of the trainer, seconds per step)."""
        whole = self._timed(self.lab.run("BENCH-6", "--set", f"training.max_steps={steps}"))
        (folder,) = self.lab.run_folders()
        shutil.copyfile(folder / "resolved_config.json", self._config)
        return whole, *self._read_stamps(steps)

    def bare(self, steps: int) -> tuple[Sample, float, float]:
        """The same trainer started by hand, its output in a file, with the config of the last run under the kit."""
        folder = self.bare_folder
        arguments = [
            str(self.stamps), "--run_id", "bare", "--config", str(self._config), "--checkpoint_dir",
            str(folder / "checkpoints"), "--status_json_path", str(folder / "status.json"), "--logdir",
            str(folder / "logs"), "--max_steps", str(steps),
        ]  # fmt: skip
        whole = self._timed([sys.executable, "-u", str(PROGRAMS / "timed_example.py"), *arguments])
        return whole, *self._read_stamps(steps)

    def _timed(self, command: list[str]) -> Sample:
        return timed(command, cwd=self.lab.folder, env=clean_environment(PYTHONUNBUFFERED="1"))

    def _read_stamps(self, steps: int) -> tuple[float, float]:
        cpu_s, *stamps = map(float, self.stamps.read_text(encoding="utf-8").split())
        if len(stamps) != steps:
            raise BenchmarkError(f"the example did {len(stamps)} steps, not {steps}")
        return cpu_s, (stamps[-1] - stamps[WARM_UP_STEPS]) / (steps - 1 - WARM_UP_STEPS)


def _speed(settings: Settings, example: _Example, found: Findings) -> None:
    """Steps per second over alternating pairs, evaluations and saves included."""
    steps = QUICK_STEPS if settings.is_quick else STEPS
    example.under_kit(steps)  # its resolved config is what the bare ones get

    def ours() -> Sample:
        whole, _, per_step = example.under_kit(steps)
        return Sample(per_step, whole.cpu_s)

    def bare() -> Sample:
        whole, _, per_step = example.bare(steps)
        return Sample(per_step, whole.cpu_s)

    variants = [Variant(OURS, ours), Variant(THEIRS, bare), Variant(AGAIN, bare)]
    samples = measure(variants, settings.rounds, "row 6, steps per second", example.clean)
    found.samples["row 6, steps per second"] = samples
    title = f"steps per second of the example under the kit against bare, {steps} steps on one thread"
    line = compare("6b", title, samples, GOAL_SPEED, direction=AT_LEAST, is_rate=True)
    found.comparisons.append(line)


def _cpu(settings: Settings, example: _Example, found: Findings) -> None:
    """CPU seconds of everything but the trainer, over the trainer's; without the kit that is nothing."""
    steps = QUICK_LONG_STEPS if settings.is_quick else LONG_STEPS
    samples: Samples = {OURS: {}, THEIRS: {}, AGAIN: {}}
    seconds = []
    for number in range(LONG_ROUNDS):
        example.clean()
        whole, trainer_s, _ = example.under_kit(steps)
        example.clean()
        bare, bare_s, _ = example.bare(steps)
        seconds.append(trainer_s)
        samples[OURS][number] = Sample((whole.cpu_s or 0.0) - trainer_s)
        samples[THEIRS][number] = Sample(trainer_s)
        samples[AGAIN][number] = Sample((bare.cpu_s or 0.0) - bare_s)
    found.samples["row 6, CPU"] = samples
    values = {name: [one.wall_s for one in rounds.values()] for name, rounds in samples.items()}
    title = f"CPU seconds of the kit's own processes over the trainer's, {steps} steps ({seconds[0]:.0f} s of CPU)"
    found.comparisons.append(
        Comparison(
            row="6a", title=title, ours=spread(values[OURS]), theirs=spread(values[THEIRS]),
            ratio=spread(ratios(values[OURS], values[THEIRS])), null=spread(ratios(values[AGAIN], values[THEIRS])),
            goal=GOAL_CPU, null_is=0.0,
            notes=("the null comparison is the same account of a trainer without the kit, and must be near 0",),
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
