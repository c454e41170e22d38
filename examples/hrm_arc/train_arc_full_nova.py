"""Train a Hierarchical Reasoning Model on ARC puzzles, so that it can be stopped anywhere and go on bit for bit.

Reads its hyper-parameters from `--config FILE` (resolved config, JSON); flags win. Writes checkpoints, one line per
`log_every` steps, and through the kit's helpers the journal and the heartbeat. Exit: 0 last step reached, 1 failed
(the loss is not finite, say), 2 usage, 143 or 130 stopped by TERM or INT after saving.
Try it: `python examples/hrm_arc/train_arc_full_nova.py --max_steps 40`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Python puts this folder first by itself; under `python -I` it leaves it out.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from arc_runtime import Speed, StopRequest, find_helpers, prepare_torch
from arc_settings import SettingsError, load_settings
from arc_start import starting_step

kit = find_helpers()


def main(argv: list[str] | None = None) -> int:
    """Train as the flags and the config say; returns the exit code."""
    args = parse_flags(argv)
    try:
        cfg = settings(args)
        return show_description(args, cfg) if args.describe else train(args, cfg)
    except Exception as error:
        # Errors that carry an exit code are whole sentences for a person; anything else is a fault and shows itself.
        if not hasattr(error, "exit_code"):
            raise
        print(f"train_arc_full_nova.py: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def settings(args: argparse.Namespace) -> SimpleNamespace:
    """Return defaults <- config <- flags; a swap that a policy asks for overrules the optimizer's name."""
    cfg = load_settings(args.config, flag_values(args))
    if args.resume and "swap_to_lion" in (args.optimizer_policy, cfg.resume.optimizer):
        cfg.optimizer.name = "lion"
    return cfg


def step_begun_at(args: argparse.Namespace, cfg: SimpleNamespace) -> int:
    """Return the completed steps that this run begins with."""
    step = starting_step(args.resume, args.resume_step, cfg.checkpoint.pattern)
    if step is None and (args.describe or cfg.optimizer.swap_at is not None):
        raise SettingsError(f"the step of '{args.resume}' (--resume) stands nowhere; say it with --resume_step N")
    return step or 0


def show_description(args: argparse.Namespace, cfg: SimpleNamespace) -> int:
    """Print what would be trained, as one JSON object and nothing else."""
    from arc_describe import describe  # late: torch comes with it

    print(json.dumps(describe(cfg, step_begun_at(args, cfg), args.resume)), flush=True)
    return 0


def train(args: argparse.Namespace, cfg: SimpleNamespace) -> int:
    stop = StopRequest()
    stop.listen()
    begins_at = step_begun_at(args, cfg)
    run_id, run_dir = run_place(args, cfg)
    checkpoints = Path(args.checkpoint_dir or run_dir / "checkpoints")
    for folder in (checkpoints, Path(args.logdir or run_dir / "logs")):
        folder.mkdir(parents=True, exist_ok=True)

    from arc_training import Training  # late: torch comes with it, and a usage error needs none (1.3 s)

    kit.journal_event("phase", phase="startup")
    job = Training(cfg, prepare_torch(cfg.training.seed, cfg.training.threads, cfg.training.device), begins_at)
    kit.journal_event("data", **job.data_summary())
    job.load(
        kit, args.resume, allow_partial=args.allow_partial, optimizer_policy=args.optimizer_policy,
        schedule_policy=args.schedule_policy,
    )  # fmt: skip
    print(f"run {run_id}: {job.describe()}", flush=True)
    job.check(kit)

    speed, now = Speed(), Now(phase="startup")
    status_json = args.status_json_path or run_dir / "status.json"
    write_status = kit.heartbeat_writer(
        str(status_json), lambda: status_fields(run_id, cfg, job, speed, now), cfg.status.interval_s
    )
    try:
        return loop(cfg, job, checkpoints, stop, speed, now)
    finally:
        write_status()
        write_status.close()


class Now:
    """What the heartbeat's thread may look at while a step runs."""

    def __init__(self, phase: str) -> None:
        self.phase, self.loss, self.lr = phase, None, None

    def enter(self, phase: str) -> None:
        if phase != self.phase:
            self.phase = phase
            kit.journal_event("phase", phase=phase)


def loop(cfg: SimpleNamespace, job: Any, checkpoints: Path, stop: StopRequest, speed: Speed, now: Now) -> int:
    """Step, evaluate, save, until the last step, a stop, or a loss that is not finite."""
    progress, saved_step, unsaved = job.progress, job.progress.step, False
    while True:
        best = None
        if progress.evals_pending and not stop.asked():
            now.enter(f"{progress.evals_pending[-1]}_eval")
            best = job.run_pending_evals(kit.journal_event, stop.asked)
            unsaved = unsaved or not progress.evals_pending
        finished = progress.step >= cfg.training.max_steps and not progress.evals_pending
        due = progress.step % cfg.checkpoint.every == 0 or finished or stop.asked()
        if best or (due and unsaved):
            now.enter("checkpoint")
            if job.save(kit, checkpoints, now.loss, best):
                saved_step, unsaved = progress.step, False
        if finished or stop.asked():
            return farewell(progress.step, saved_step, unsaved, None if finished else stop.signal)

        now.enter("train")
        with speed.step():
            outcome = job.step()
        if outcome.not_finite:
            kit.journal_event("nonfinite", step=progress.step + 1, what=outcome.not_finite)
            print(
                f"step {progress.step + 1}: the {outcome.not_finite} is not finite; it is not saved and training ends "
                f"(newest checkpoint: step {saved_step}). A smaller optimizer.lr than '{cfg.optimizer.lr}' may help",
                file=sys.stderr,
                flush=True,
            )
            return 1
        now.loss, now.lr, unsaved = outcome.loss, outcome.lr, True
        kit.journal_event(
            "step", step=progress.step, epoch=job.epoch, loss=outcome.loss, lr=outcome.lr,
            steps_per_sec=speed.per_second(),
        )  # fmt: skip
        if progress.step % cfg.training.log_every == 0:
            print(
                f"step {progress.step} loss {outcome.loss:.4f} lr {outcome.lr:.3e} {speed.per_second():.2f} steps/s",
                flush=True,
            )


def farewell(step: int, saved_step: int, unsaved: bool, signal_number: int | None) -> int:
    """Say how it ended and return the exit code; `signal_number` is None where the last step is done."""
    if unsaved:
        print(f"step {step} could not be saved; the newest checkpoint is of step {saved_step}", file=sys.stderr)
    if signal_number is None:
        print(f"finished: step {step}", flush=True)
        return 1 if unsaved else 0
    print(f"stopped by signal {signal_number} after step {step}, newest checkpoint of step {saved_step}", flush=True)
    return 128 + signal_number


def status_fields(run_id: str, cfg: SimpleNamespace, job: Any, speed: Speed, now: Now) -> dict[str, Any]:
    """Return the heartbeat's payload (protocol §3)."""
    progress, rate = job.progress, speed.per_second()

    def seconds_to(step: int) -> float | None:
        return (step - progress.step) / rate if rate else None

    def next_of(every: int) -> int:
        return (progress.step // every + 1) * every

    return kit.make_status_payload(
        run_id=run_id, global_step=progress.step, max_steps=cfg.training.max_steps, epoch=job.epoch, phase=now.phase,
        steps_per_sec=rate, loss=now.loss, lr=job.schedule.get_last_lr()[0] if now.lr is None else now.lr,
        lr_scale=job.schedule.rate.scale_at(progress.step), scheduler_phase=job.schedule.rate.phase(job.schedule.place),
        optimizer=progress.optimizer,
        swap_from_step=progress.swap_from_step, last_fast_eval_step=progress.last_fast and progress.last_fast["step"],
        last_full_eval_step=progress.last_full_step, best_eval_acc=progress.best_score,
        best_step=progress.best_step, eta_s=seconds_to(cfg.training.max_steps),
        eta_fast_eval_s=seconds_to(next_of(cfg.validation.fast_eval_every)),
        eta_full_eval_s=seconds_to(next_of(cfg.validation.full_eval_every)),
    )  # fmt: skip


def run_place(args: argparse.Namespace, cfg: SimpleNamespace) -> tuple[str, Path]:
    """Return the run's id and folder: the launcher's, or under ./runs when started by hand."""
    run_id = args.run_id or os.environ.get("RESUMEKIT_RUN_ID")
    if not run_id:
        name = args.exp_name or cfg.experiment.name or "EXP-01"
        run_id = kit.make_run_id(name, parent_run_id=args.parent_run_id, resume_step=args.resume_step)
    return run_id, Path(os.environ.get("RESUMEKIT_RUN_DIR") or Path("runs") / run_id)


def flag_values(args: argparse.Namespace) -> dict[tuple[str, str], Any]:
    """Return the flags that stand for a key of the config; None where not given."""
    return {
        ("model", "droppath_h"): args.droppath_h,
        ("training", "max_steps"): args.max_steps,
        ("validation", "fast_eval_every"): args.fast_eval_every,
        ("validation", "full_eval_every"): args.full_eval_every,
        ("validation", "gate_full_eval_on_fast_improvement"): args.gate_full_eval_on_fast_improvement,
        ("status", "interval_s"): args.write_status_json_every_sec,
    }


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line (protocol §11 and §13)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--config", metavar="FILE", help="resolved config, JSON; without it the built-in small run")
    add("--run_id", help="id of this run; else the launcher's, else made from --exp_name")
    add("--exp_name", help="experiment, for a run id of our own making")
    add("--parent_run_id", help="run that this one continues, for a run id of our own making")
    add("--resume_step", type=int, metavar="N", help="step that this one continues, for a run id of our own making")
    add("--resume", metavar="CHECKPOINT", help="checkpoint to continue from; nothing or '' starts fresh")
    add("--allow_partial", type=_truth, nargs="?", const=True, default=False, help="load what fits of the weights")
    add("--optimizer_policy", default="load", choices=("load", "reset", "swap_to_lion"))
    add("--schedule_policy", default="load", choices=("load", "reset"), help="reset: as the config says, step kept")
    add("--droppath_h", metavar="A..B", help="DropPath in the slow module: '0.1', or '0..0.2' over its depth")
    add("--max_steps", type=int, metavar="N", help="last optimizer step")
    add("--fast_eval_every", type=int, metavar="STEPS", help="steps between evaluations of the fixed subset")
    add("--full_eval_every", type=int, metavar="STEPS", help="steps between evaluations of all test pairs")
    add("--gate_full_eval_on_fast_improvement", type=_truth, metavar="true|false", help="skip without improvement")
    add("--write_status_json_every_sec", type=float, metavar="SECONDS", help="time between heartbeats")
    add("--status_json_path", metavar="FILE", help="where the heartbeat goes")
    add("--logdir", metavar="FOLDER", help="made if missing; the sidecar writes the log itself, of our output")
    add("--checkpoint_dir", metavar="FOLDER", help="where checkpoints go")
    add("--describe", action="store_true", help="print parameters and coming learning rates as JSON; train nothing")
    return parser.parse_args(argv)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


if __name__ == "__main__":
    raise SystemExit(main())
