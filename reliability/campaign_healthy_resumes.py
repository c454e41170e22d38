"""Resume many healthy runs in every way that people do, and count the checks that cry wolf.

Each is a real resume (launcher, plan, sidecar; trainers as in sabotage_stage.py) under `resume.strict_checks`:
with changed settings, other precision, from runs that were killed or stopped, on a loaded machine. Prints what failed
or warned, and why; ends with 1 if a check failed, for that would have ended a healthy run.
Try it: `python -m reliability.campaign_healthy_resumes --count 200 --seed 1`
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reliability.sabotage_stage import EXAMPLE, LAB, PATTERNS, SMALL, WIRED, WRAPPED, Outcome, Stage
from support.lab_trainer_log import SHOWN, TENTH
from support.processes import wait_until
from support.runs import events

STRICT = ("--set", "resume.strict_checks=true", "--accept")
ANY_STEP = ("10", "20", "30")


class Way(NamedTuple):
    """A way to resume.

    Args:
        parent: a key of PARENTS.
        changes: 'section.key=value'.
        stop: 'KILL' or 'TERM': how the parent came to its end; '' it reached its last step.
        is_loaded: two processes beside it take all they can get.
        step: of the checkpoint; '' for any, 'newest' for what the kit chooses.
    """

    parent: str
    changes: tuple[str, ...] = ()
    stop: str = ""
    is_loaded: bool = False
    step: str = ""


PARENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "example": (EXAMPLE, ()),
    "no ema": (EXAMPLE, ("ema.enabled=false",)),
    "bf16": (EXAMPLE, ("training.amp=bf16",)),
    "fp16": (EXAMPLE, ("training.amp=fp16",)),
    "swa": (EXAMPLE, ("swa.enabled=true", "swa.start_step=15", "swa.cycle_steps=5")),
    "lion": (EXAMPLE, ("optimizer.name=lion", "optimizer.lr=3e-4")),
    "evals": (EXAMPLE, ("validation.fast_eval_every=5", "validation.full_eval_every=10")),
    "slow warm-up": (EXAMPLE, ("schedule.warmup_steps=25",)),
    "small": (SMALL, ()),
    "lab": (LAB, ()),
    "wired": (WIRED, ()),
    "wrapped": (WRAPPED, ()),
}
# How trainers tell of their steps (tests/support/lab_trainer_log.py), long enough for one that tells every tenth.
for _how in SHOWN:
    _more = (f"trainer.extra_args=[--shows, {_how}]", f"trainer.log_patterns={json.dumps(PATTERNS)}")
    _more += ("training.max_steps=200",) if _how == TENTH else ()
    PARENTS |= {f"lab, {_how}": (LAB, _more), f"wired, {_how}": (WIRED, _more)}
WAYS: dict[str, Way] = {
    "as it is": Way("example"),
    "as it is, from its newest step": Way("example", step="newest"),
    "batch size 5": Way("example", ("training.batch_size=5",)),
    "batch size 2 and accumulation 3": Way("example", ("training.batch_size=2", "training.grad_accum_steps=3")),
    "accumulation 4": Way("example", ("training.grad_accum_steps=4",)),
    "60 steps": Way("example", ("training.max_steps=60",)),
    "beyond the end": Way("example", ("training.max_steps=60",), step="40"),
    "at the end": Way("example", step="40"),
    "half the learning rate": Way("example", ("optimizer.lr=5e-4",)),
    "twice the learning rate": Way("example", ("optimizer.lr=2e-3", "optimizer.puzzle_lr=2e-2")),
    "longer warm-up": Way("example", ("schedule.warmup_steps=15",)),
    "Lion swap": Way("example", ("optimizer.name=lion",)),
    "Lion swap, ramp over in the middle": Way("example", ("optimizer.name=lion", "optimizer.swap_lr_steps=2")),
    "Lion swap, warm restart": Way("example", ("optimizer.name=lion", "optimizer.swap_warm_restart=true")),
    "rule head": Way("example", ("model.aux_rule_head=true",)),
    "DropPath": Way("example", ("model.droppath_h=0..0.2",)),
    "rule head and DropPath": Way("example", ("model.aux_rule_head=true", "model.droppath_h=0.1")),
    "EMA from here": Way("no ema", ("ema.enabled=true",)),
    "EMA no more": Way("example", ("ema.enabled=false",)),
    "slower EMA": Way("example", ("ema.decay=0.99",)),
    "SWA from here": Way("example", ("swa.enabled=true", "swa.start_step=25", "swa.cycle_steps=5")),
    "in its SWA tail": Way("swa", step="20"),
    "before its SWA tail": Way("swa", step="10"),
    "right after an eval": Way("evals"),
    "other evals": Way("example", ("validation.fast_eval_every=4", "validation.fast_fraction=0.5")),
    "more checkpoints": Way("example", ("checkpoint.every=3",)),
    "fewer checkpoints": Way("example", ("checkpoint.every=1000",)),
    "gradient noise": Way("example", ("training.grad_noise_sigma=0.001",)),
    "weight decay and clipping": Way("example", ("optimizer.weight_decay=0.05", "training.grad_clip=0.5")),
    "more dropout": Way("example", ("model.dropout=0.2",)),
    "no augmentation": Way("example", ("data.augment=false",)),
    "two threads": Way("example", ("training.threads=2",)),
    "optimizer reset": Way("example", ("resume.optimizer=reset", "resume.scheduler=refit")),
    "random numbers anew": Way("example", ("resume.rng=reset",)),
    "in its warm-up": Way("slow warm-up"),
    "bf16 goes on": Way("bf16"),
    "fp16 goes on": Way("fp16"),
    "bf16 from here": Way("example", ("training.amp=bf16",)),
    "fp16 from here": Way("example", ("training.amp=fp16",)),
    "fp16 no more": Way("fp16", ("training.amp=off",)),
    "Lion goes on": Way("lion"),
    "killed": Way("example", stop="KILL"),
    "stopped": Way("example", stop="TERM"),
    "killed, batch size 5": Way("example", ("training.batch_size=5",), stop="KILL"),
    "loaded machine": Way("example", is_loaded=True),
    "loaded machine, killed": Way("example", stop="KILL", is_loaded=True),
    "loaded machine, 60 steps": Way("example", ("training.max_steps=60",), is_loaded=True),
    "small, as it is": Way("small"),
    "small, 60 steps": Way("small", ("training.max_steps=60",)),
    "small, killed": Way("small", stop="KILL"),
    "small, loaded machine": Way("small", is_loaded=True),
    "lab, as it is": Way("lab"),
    "lab, 60 steps": Way("lab", ("training.max_steps=60",)),
    "lab, killed": Way("lab", stop="KILL"),
    "lab, loaded machine": Way("lab", is_loaded=True),
    "wired, as it is": Way("wired"),
    "wired, 60 steps": Way("wired", ("training.max_steps=60",)),
    "wired, Lion swap": Way("wired", ("optimizer.name=lion",)),
    "wired, optimizer reset": Way("wired", ("resume.optimizer=reset", "resume.scheduler=refit")),
    "wired, half the learning rate": Way("wired", ("optimizer.lr=5e-3",)),
    "wired, killed": Way("wired", stop="KILL"),
    "wrapped, as it is": Way("wrapped"),
    "wrapped, 60 steps": Way("wrapped", ("training.max_steps=60",)),
}
for _how in SHOWN:
    for _kind in ("lab", "wired"):
        _parent = f"{_kind}, {_how}"
        WAYS |= {
            _parent: Way(_parent),
            f"{_parent}, from its newest step": Way(_parent, step="newest"),
            f"{_parent}, longer": Way(_parent, ("training.max_steps=250",)),
            f"{_parent}, killed": Way(_parent, stop="KILL"),
        }


class Campaign:
    """The stage and the parents that were run on it so far."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.stage, self.rng = Stage(folder), rng
        self._parents: dict[str, Path] = {}

    def resume(self, way: Way) -> Outcome:
        """Do one resume, of a parent that is run when it is first needed; one that is stopped is run each time."""
        step = way.step or self.rng.choice(ANY_STEP)
        with busy(2 if way.is_loaded else 0):
            if way.stop:
                parent, step = self._stopped(way), "newest"
            else:
                parent = self._parents.get(way.parent) or self._started(way.parent)
            at = () if step == "newest" else ("--step", step)
            return self.stage.resume(parent, *at, *STRICT, *in_words(way.changes))

    def _started(self, name: str) -> Path:
        experiment, changes = PARENTS[name]
        self._parents[name] = self.stage.start(experiment, *in_words(changes))
        return self._parents[name]

    def _stopped(self, way: Way) -> Path:
        """Run a parent and signal its trainer at a random step behind its first checkpoint."""
        experiment, changes = PARENTS[way.parent]
        kit, at = self.stage.kit, self.rng.randint(12, 36)
        before = set(kit.run_dirs())
        process = kit.popen("run", experiment, "--fresh", *in_words(changes))
        run = wait_until(lambda: next(iter(set(kit.run_dirs()) - before), None), "a run folder")
        wait_until(lambda: process.poll() is not None or reached(run, at), f"step {at}")
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(events(run, "launched")[0]["trainer"]["pid"], signal.Signals[f"SIG{way.stop}"])
        process.communicate()
        return run


def reached(run: Path, step: int) -> bool:
    saved = list((run / "checkpoints").glob("hrm_arc_step_*.pt"))
    told = (run / "logs" / "output.log").read_text(errors="replace") if (run / "logs" / "output.log").exists() else ""
    return bool(saved) and (
        any(one["step"] >= step for one in events(run, "step")) or f"step {step} " in told or f" {step}/" in told
    )


def in_words(changes: tuple[str, ...]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` cores busy meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; returns 0 if no check failed and none has ended a run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many resumes (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of steps, moments and order (default 1)")
    parser.add_argument("--only", default="", help="only the ways whose names hold this")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    ways = [name for name in WAYS if args.only in name]
    order = [name for _ in range(-(-args.count // len(ways))) for name in rng.sample(ways, len(ways))][: args.count]
    verdicts, warned, failed, begun = collections.Counter(), collections.defaultdict(list), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder) / "stage", rng)
        try:
            for number, name in enumerate(order, 1):
                outcome = campaign.resume(WAYS[name])
                whole = outcome.checks.get("resume", {}).get("verdict", "none")
                verdicts[whole] += 1
                for check in outcome.named("warned"):
                    warned[check].append(name)
                if outcome.named("failed") or whole in ("failed", "none") or outcome.code != 0:
                    failed += 1
                    print(f"FALSE ALARM in resume {number}, '{name}': exit {outcome.code}, verdict {whole}")
                    print("".join(f"    {line}\n" for line in outcome.words.splitlines()[-6:]))
                for check in (*outcome.named("failed"), *outcome.named("warned")):
                    if check != "throughput":
                        one = outcome.checks[check]
                        said = f"expected {one['expected']}, found {one['found']} ({one['why']})"
                        print(f"  {name}: {check} {one['verdict']}: {said}", flush=True)
        finally:
            campaign.stage.close()
    for check, names in sorted(warned.items()):
        print(f"warned: {check} {len(names)} times: {dict(collections.Counter(names).most_common(8))}")
    print(
        f"{len(order)} healthy resumes in {len(set(order))} ways, seed {args.seed}: {failed} false alarms that would "
        f"end a run; "
        f"{', '.join(f'{count} {verdict}' for verdict, count in verdicts.most_common())}; "
        f"{time.monotonic() - begun:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
