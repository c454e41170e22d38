"""Row 8: what a resume costs inside the trainer: loading, warm and cold, and the checks of the first two minutes.

Loading is measured against torch.load and load_state_dict, with the launcher's proof there already, as it is once the
trainer has imported torch. The checks are those of the trainer's side: random numbers, a dry batch, and every loaded
tensor compared with the file, for a model of 27 million parameters with AdamW; a fast evaluation costs what it costs.
Try it: `python benchmarks/bench.py 8 --quick`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from arithmetic import spread
from comparison import Comparison, compare
from harness import AGAIN, OURS, THEIRS, Sample, Variant, measure
from lab import KIT, PROGRAMS, Lab
from processes import BenchmarkError, clean_environment, timed
from settings import Findings, Settings

sys.path.append(str(KIT / "lib"))

from resumekit.checkpoint.proof import prove_for_run

GOAL_WARM, GOAL_COLD, GOAL_CHECKS = 0.35, 0.45, 0.02
WINDOW_S = 120.0
MB, QUICK_MB = 1000, 200
# A model of 27 million parameters with AdamW's moments.
CHECKED_MB = 324
NULL = "no checks"


def run(settings: Settings) -> Findings:
    """Measure row 8."""
    found = Findings()
    whole = _Loading(settings, QUICK_MB if settings.is_quick else MB)
    for row, goal, is_cold in (("8a", GOAL_WARM, False), ("8b", GOAL_COLD, True)):
        title = f"loading model and optimizer, {'cold' if is_cold else 'warm'}, {whole.megabytes} MB"
        variants = [
            Variant(name, lambda is_bare=is_bare, is_cold=is_cold: Sample(whole.ran(is_bare, is_cold)["load_s"]))
            for name, is_bare in ((OURS, False), (THEIRS, True), (AGAIN, True))
        ]
        samples = measure(variants, settings.rounds, f"row {row}")
        found.samples[f"row {row}"] = samples
        found.comparisons.append(compare(row, f"{title}, against torch.load + load_state_dict", samples, goal))
    _checks(settings, found)
    return found


def _checks(settings: Settings, found: Findings) -> None:
    checked = _Loading(settings, CHECKED_MB)
    variants = [
        Variant(OURS, lambda: Sample(checked.ran(is_bare=False, is_cold=False)["checks_s"])),
        Variant(NULL, lambda: Sample(0.0)),
    ]
    samples = measure(variants, settings.rounds, "row 8c")
    seconds = [sample.wall_s for sample in samples[OURS].values()]
    found.samples["row 8c"] = samples
    found.comparisons.append(
        Comparison(
            "8c",
            f"the checks after a resume, {CHECKED_MB} MB, over the first two minutes",
            spread(seconds),
            spread([WINDOW_S] * len(seconds)),
            spread([one / WINDOW_S for one in seconds]),
            spread([0.0, 0.0]),
            GOAL_CHECKS,
            null_is=0.0,
            notes=("beside a fast evaluation, which costs what the trainer's own does",),
        )
    )


class _Loading:
    """A checkpoint of some size in a run of the kit's, with the launcher's proof beside it."""

    def __init__(self, settings: Settings, megabytes: int) -> None:
        sys.path.append(str(PROGRAMS))
        from stack import width_for  # late: it imports torch

        self.megabytes, self._out = megabytes, settings.scratch / "pieces.json"
        self._width = str(width_for(megabytes))
        program = [str(PROGRAMS / "load_checkpoint.py"), "--ready", str(self._out), "--width", self._width]
        trainer = {"command": ["{python}", *program, "--save", "{checkpoints_dir}"], "loads_with_kit": True}
        trainer["resume_args"] = ["--resume", "{checkpoint}"]
        lab = Lab(settings.scratch / f"load-{megabytes}", {"BENCH-8": {"trainer": trainer}})
        lab.run_killed("BENCH-8")
        (self._run,) = lab.run_folders()
        (self._checkpoint,) = self._run.glob("checkpoints/*.pt")
        prove_for_run(self._run, self._checkpoint)

    def ran(self, is_bare: bool, is_cold: bool) -> dict[str, float]:
        """Return what the trainer measured."""
        self._out.unlink(missing_ok=True)
        words = ["--out", str(self._out), "--width", self._width, "--resume", str(self._checkpoint)]
        words += ["--bare"] * is_bare + ["--cold"] * is_cold
        env = clean_environment(RESUMEKIT_RUN_DIR=str(self._run), PYTHONPATH=str(KIT / "lib"))
        timed([sys.executable, str(PROGRAMS / "load_pieces.py"), *words], cwd=Path(PROGRAMS), env=env)
        if not self._out.exists():
            raise BenchmarkError("the trainer that loads said nothing")
        return json.loads(self._out.read_text(encoding="utf-8"))
